"""Freezing a cgroup of v2, on a fake file system; for real containers see ``tests/integration/test_resources``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import Conflict
from nbcontainer.runtime import freezer
from nbcontainer.testing.cgroupfs import FakeCgroups

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def v2(tmp_path: Path) -> FakeCgroups:
    """Lend a tree with one container, of two processes."""
    tree = FakeCgroups(str(tmp_path), 2, frozenset({"pids"}))
    tree.grow("/box", processes=(7, 8))
    return tree


def test_frozen(v2: FakeCgroups) -> None:
    """It stands still when the call returns, not some time later."""
    freezer.freeze(f"{v2.point}/box", v2)
    assert "frozen 1" in v2.read(f"{v2.point}/box/cgroup.events")


def test_what_does_not_freeze_goes_on(v2: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one process cannot be stopped, all are let go on, and the sentence says so."""
    monkeypatch.setattr(freezer, "_PATIENCE", 0.05)
    v2.rooted = {8}
    with pytest.raises(Conflict, match="cannot be paused; try again"):
        freezer.freeze(f"{v2.point}/box", v2)
    assert v2.read(f"{v2.point}/box/cgroup.freeze") == "0"
