"""What networks stand on: found or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbcontainer.network.programs import found, may_open_tun

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_program_beside_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program is found on the PATH, and where administrators' programs lie; else there is none."""
    program = tmp_path / "nbc-program"
    program.write_text("#!/bin/sh\n", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("nbc-program") == str(program)
    monkeypatch.setenv("PATH", "/nowhere")
    assert found("nbc-program") is None


def test_device_that_is_not_there(tmp_path: Path) -> None:
    """A device that is missing cannot be opened, one that is open to us can."""
    assert not may_open_tun(str(tmp_path / "tun"))
    assert may_open_tun("/dev/null")
