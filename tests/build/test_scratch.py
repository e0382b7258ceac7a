"""Temporary files of builds: gone with their block, and with the next build after a kill."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.scratch import Scratch
from nbcontainer.errors import StorageError

if TYPE_CHECKING:
    from pathlib import Path

_HOLDER = """\
import sys
from nbcontainer.build.scratch import Scratch
with Scratch(sys.argv[1]).folder() as path:
    open(path + "/x", "w").close()
    print(path, flush=True)
    sys.stdin.read()
"""


def test_folders_and_files(tmp_path: Path) -> None:
    """They are closed to others, and nothing is left, not even of folders that were closed to everybody."""
    scratch = Scratch(str(tmp_path))
    with scratch.folder() as one, scratch.folder() as other, scratch.file() as file:
        assert one != other
        assert os.stat(one).st_mode & 0o7777 == 0o700
        os.makedirs(f"{one}/closed/inner")
        os.symlink("/", f"{one}/closed/link")
        os.chmod(f"{one}/closed", 0)
        file.write(b"x")
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == []


def test_what_a_kill_leaves(tmp_path: Path) -> None:
    """A folder that is used stays; one whose owner was killed goes; what is not ours stays."""
    (tmp_path / "scratch-file").write_text("x")
    (tmp_path / "cache").mkdir()
    scratch = Scratch(str(tmp_path))
    argv = [sys.executable, "-c", _HOLDER, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        path = holder.stdout.readline().strip()
        scratch.sweep()
        assert os.listdir(path) == ["x"]
        holder.kill()
        holder.wait()
    assert os.path.isdir(path)
    scratch.sweep()
    assert sorted(os.listdir(tmp_path)) == ["cache", "scratch-file"]


def test_a_deep_tree(tmp_path: Path) -> None:
    """However deep an archive or a repository goes, its folder is removed."""
    with Scratch(str(tmp_path)).folder() as path:
        fd = os.open(path, os.O_RDONLY)
        for _ in range(sys.getrecursionlimit() + 100):
            os.mkdir("d", dir_fd=fd)
            inner = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
    assert os.listdir(tmp_path) == []


def test_no_place(tmp_path: Path) -> None:
    """A store that cannot be written is told as one."""
    scratch = Scratch(str(tmp_path / "none"))
    with pytest.raises(StorageError), scratch.folder():
        pass
    with pytest.raises(StorageError):
        scratch.file()
