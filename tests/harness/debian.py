"""A Debian for tests that install something: `debian_root`, made by mmdebstrap from the package mirror, once a session.

A test that takes it is marked ``network``, ``slow`` and ``peers("mmdebstrap")``.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["debian_root"]


@pytest.fixture(scope="session")
def debian_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Lend the tar of a minimal bookworm: apt and what it needs."""
    path = tmp_path_factory.mktemp("debian") / "root.tar"
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", "--quiet", "bookworm", str(path)], check=True, timeout=patient(600)
    )
    yield path
    path.unlink()
