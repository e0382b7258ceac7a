"""Removing and copying trees that nobody vouches for."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.layers import copying, remove
from tests.layers.layer_tars import OWNERS, folder, hard, link, listing, member, opened, tar, unpack

if TYPE_CHECKING:
    from pathlib import Path


def test_everything_goes_and_nothing_else(tmp_path: Path) -> None:
    """Files, links, fifos, whiteouts and nested directories go; what symlinks point to stays."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    data = tar(member("a"), folder("d"), member("d/b"), link("d/out", str(outside)), link("out", "../outside"))
    unpack(data, tmp_path / "fs")
    os.mknod(tmp_path / "fs/gone", stat.S_IFCHR, 0)
    with opened(tmp_path / "fs") as fds:
        assert remove.serve({}, fds) == {"removed": 6}
    assert listing(tmp_path / "fs") == {}
    assert (outside / "kept").exists()


def test_one_entry_can_be_removed(tmp_path: Path) -> None:
    """By name, directory or not; a name that is a path is refused; a missing one is nothing."""
    unpack(tar(member("a"), folder("d"), member("d/b"), member("c")), tmp_path / "fs")
    with opened(tmp_path / "fs") as fds:
        assert remove.serve({"name": "d"}, fds) == {"removed": 2}
        assert remove.serve({"name": "a"}, fds) == {"removed": 1}
        assert remove.serve({"name": "a"}, fds) == {"removed": 0}
        for name in ("..", ".", "", "c/..", "/etc"):
            with pytest.raises(InvalidOption):
                remove.serve({"name": name}, fds)
    assert set(listing(tmp_path / "fs")) == {"c"}


def test_two_remove_the_same(tmp_path: Path) -> None:
    """A launcher's janitor and an engine's sweep may meet: together they remove it, and neither fails."""
    for number in range(20):
        for inner in range(20):
            (tmp_path / f"fs/top/{number}/{inner}").mkdir(parents=True)
            (tmp_path / f"fs/top/{number}/{inner}/file").touch()
    with opened(tmp_path / "fs") as fds, ThreadPoolExecutor(4) as workers:
        calls = [workers.submit(remove.serve, {"name": "top"}, fds) for _ in range(4)]
        assert all(call.result()["removed"] >= 0 for call in calls)
    assert listing(tmp_path / "fs") == {}


def test_locked_directories_go_too(tmp_path: Path) -> None:
    """Directories without any permission, as an ordinary user leaves them, do not stop the removal."""
    (tmp_path / "fs/a/b/c").mkdir(parents=True)
    (tmp_path / "fs/a/b/file").touch()
    for name in ("a/b/c", "a/b", "a"):
        (tmp_path / "fs" / name).chmod(0)
    with opened(tmp_path / "fs") as fds:
        assert remove.serve({}, fds) == {"removed": 4}
    assert listing(tmp_path / "fs") == {}


def test_locked_directories_go_for_ordinary_users(tmp_path: Path) -> None:
    """The same without root's powers."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it becomes an ordinary user; the test above covers one")
    tmp_path.chmod(0o755)
    code = f"""if True:
        import os, sys
        sys.path.insert(0, {os.path.dirname(os.path.dirname(os.path.dirname(remove.__file__)))!r})
        from nbcontainer.layers import remove
        os.chdir({str(tmp_path)!r})
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        os.makedirs("fs/a/b/c"); open("fs/a/b/file", "w").close()
        for name in ("fs/a/b/c", "fs/a/b", "fs/a"): os.chmod(name, 0)
        print(remove.serve({{}}, [os.open("fs", os.O_RDONLY)]))
    """
    os.chown(tmp_path, 65534, 65534)
    for parent in list(tmp_path.parents)[:3]:
        if str(parent) != "/tmp" and parent.stat().st_uid == os.geteuid():
            parent.chmod(0o711)
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert "{'removed': 4}" in done.stdout, done.stderr


def test_depth_costs_neither_descriptors_nor_the_stack(tmp_path: Path) -> None:
    """A chain of directories deeper than PATH_MAX and the descriptor limit is removed."""
    top = tmp_path / "fs"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with opened(top) as fds:
        assert remove.serve({}, fds) == {"removed": 3000}
    assert os.listdir(top) == []


@pytest.mark.userns
def test_mounts_stop_the_removal(tmp_path: Path) -> None:
    """What is mounted inside is neither entered nor removed, even a bind of the same file system."""
    (tmp_path / "fs/d/m").mkdir(parents=True)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    package = os.path.dirname(os.path.dirname(os.path.dirname(remove.__file__)))
    code = f"""if True:
        import os, subprocess, sys
        sys.path.insert(0, {package!r})
        from nbcontainer.layers import remove
        from nbcontainer.errors import StorageError
        os.chdir({str(tmp_path)!r})
        subprocess.run(["mount", "--bind", "kept", "fs/d/m"], check=True)
        try:
            remove.serve({{}}, [os.open("fs", os.O_RDONLY)])
        except StorageError as problem:
            print(problem)
    """
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False
    )
    assert "mounted there" in done.stdout, done.stderr
    assert (tmp_path / "kept/file").exists()


def test_a_copy_is_exact(tmp_path: Path) -> None:
    """Content, modes, times, links between names, holes and attributes are those of the source."""
    data = tar(
        folder("d", mode=0o1777),
        member("d/a", data=b"x" * 5000, mode=0o4755, uid=3 if OWNERS else 0),
        hard("d/again", "d/a"),
        hard("top", "d/a"),
        link("l", "nowhere"),
        folder("empty", mode=0o700),
        member("pipe", b"6", mode=0o622),
        member("z"),
    )
    unpack(data, tmp_path / "one")
    with (tmp_path / "one/holes").open("wb") as file:
        file.truncate(50_000_000)
        file.seek(10_000_000)
        file.write(b"middle")
    os.setxattr(tmp_path / "one/z", "user.note", b"x")
    os.setxattr(tmp_path / "one/d", "user.overlay.opaque", b"y")
    (tmp_path / "two").mkdir()
    copying.copy_tree(str(tmp_path / "one"), str(tmp_path / "two"))
    assert listing(tmp_path / "two", times=True) == listing(tmp_path / "one", times=True)
    assert (tmp_path / "two/top").samefile(tmp_path / "two/d/a")
    assert (tmp_path / "two/holes").stat().st_blocks < 1000
    assert os.getxattr(tmp_path / "two/z", "user.note") == b"x"
    assert os.listxattr(tmp_path / "two/d") == []


def test_serving_takes_the_right_descriptors(tmp_path: Path) -> None:
    """Too few or too many descriptors are refused."""
    tmp_path.joinpath("a").mkdir()
    tmp_path.joinpath("b").mkdir()
    unpack(tar(member("x")), tmp_path / "a")
    with opened(tmp_path / "a", tmp_path / "b") as fds:
        assert copying.serve({"owners": False}, fds) == {"entries": 1}
        with pytest.raises(InvalidOption):
            copying.serve({}, fds[:1])
        with pytest.raises(InvalidOption):
            remove.serve({}, fds)
