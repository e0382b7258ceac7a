"""Locks between threads and processes."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import Conflict
from nbcontainer.store import FileLock, lock_store
from nbcontainer.store import locks as locks_module
from nbcontainer.store.locks import open_locked, try_open_locked

if TYPE_CHECKING:
    from pathlib import Path


def test_one_excludes_another(tmp_path: Path) -> None:
    """Exclusive is alone, in one process too; a time-out is a conflict naming the file."""
    path = str(tmp_path / "x.lock")
    with FileLock(path) as lock:
        assert lock.held
        with pytest.raises(Conflict, match=r"x\.lock is still locked"):
            FileLock(path, timeout=0.05).acquire()
        with pytest.raises(Conflict, match="already locked by this very lock"):
            lock.acquire()
    with FileLock(path, timeout=0) as another:
        assert another.held


def test_shared_holders_exclude_only_the_exclusive(tmp_path: Path) -> None:
    """Pulls go together, a collection goes alone."""
    root = str(tmp_path)
    alone, together = (lock_store(root, shared=shared, timeout=0.02) for shared in (False, True))
    with lock_store(root, shared=True), lock_store(root, shared=True, timeout=0), pytest.raises(Conflict):
        alone.acquire()
    with lock_store(root, shared=False, timeout=0), pytest.raises(Conflict):
        together.acquire()


def test_waiting_ends_with_the_holder(tmp_path: Path) -> None:
    """A long wait is told once, and ends soon after the release."""
    path = str(tmp_path / "lock")
    told: list[int] = []
    first = FileLock(path)
    first.acquire()
    threading.Timer(0.7, first.release).start()
    started = time.monotonic()
    with FileLock(path, waiting=lambda: told.append(1)):
        assert 0.6 < time.monotonic() - started < 5
    assert told == [1]


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    """The kernel drops the lock of a process that died."""
    path = str(tmp_path / "lock")
    package = os.path.dirname(os.path.dirname(os.path.dirname(locks_module.__file__)))
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {package!r})
        from nbcontainer.store import FileLock
        with FileLock({path!r}):
            print("held", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert try_open_locked(path) is None
        child.kill()
        child.wait()
    with FileLock(path, timeout=1):
        pass


def test_an_unlinked_lock_file_is_not_believed(tmp_path: Path) -> None:
    """Whoever locks a file that was unlinked meanwhile starts over, so two never hold different files."""
    path = str(tmp_path / "lock")
    first = open_locked(path)
    results: list[int] = []
    waiter = threading.Thread(target=lambda: results.append(open_locked(path)))
    waiter.start()
    time.sleep(0.05)
    os.unlink(path)
    second = open_locked(path)
    os.close(first)
    waiter.join(0.2)
    assert waiter.is_alive()
    os.close(second)
    waiter.join()
    assert os.fstat(results[0]).st_ino == os.stat(path).st_ino
    os.close(results[0])


def test_a_file_unlinked_between_open_and_lock_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The classic race: its holder removes the file after we opened it and before we have the lock."""
    path = str(tmp_path / "lock")
    flock = fcntl.flock
    unlinked: list[int] = []

    def late(fd: int, operation: int) -> None:
        if not unlinked:
            unlinked.append(os.fstat(fd).st_ino)
            os.link(path, tmp_path / "keeps the inode from being used again")
            os.unlink(path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    fd = try_open_locked(path)
    assert fd is not None
    assert os.fstat(fd).st_ino == os.stat(path).st_ino != unlinked[0]
    os.close(fd)


def test_locks_are_not_followed_through_links(tmp_path: Path) -> None:
    """A symlink in the place of a lock file is an error and not a way to open something else."""
    (tmp_path / "victim").write_text("x")
    (tmp_path / "lock").symlink_to("victim")
    with pytest.raises(OSError, match="symbolic link"):
        try_open_locked(str(tmp_path / "lock"))
