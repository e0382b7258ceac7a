"""Whole Dockerfiles and what they are read as, one folder each; a fixed fault leaves its input here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.dockerfile.dump import GOLDEN, dump

if TYPE_CHECKING:
    from pathlib import Path

CASES = sorted(GOLDEN.iterdir())


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_golden(folder: Path) -> None:
    """A Dockerfile is read as it was when somebody looked at it and found it right."""
    assert dump((folder / "Dockerfile").read_bytes()) == (folder / "expected").read_text(encoding="utf-8")


def test_there_are_some() -> None:
    """The folder is where this test looks for it."""
    assert len(CASES) > 20
