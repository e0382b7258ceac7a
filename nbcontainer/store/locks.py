"""File locks between threads, kernels and command lines that share one store (flock(2)).

A flock belongs to the open file, so it also excludes two threads of one process, and the kernel drops it when its
holder dies. Waiting polls with a growing pause: that can be interrupted in the main thread, and given a deadline in
any. A lock file may be unlinked only by its holder; whoever was waiting on the old inode then finds, after
locking, that the path names another file, and starts over.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING, final

from nbcontainer.errors import Conflict
from nbcontainer.store.faults import storage_faults

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["FileLock", "lock_store", "open_locked", "try_open_locked"]

_FIRST_PAUSE = 0.001
_LONGEST_PAUSE = 0.05
_WORTH_TELLING = 0.5


def _same_file(fd: int, path: str) -> bool:
    """Whether `path` still names the file behind `fd`: false once a former holder unlinked or renamed it."""
    try:
        named = os.stat(path)
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def try_open_locked(path: str, *, shared: bool = False, create: bool = True) -> int | None:
    """Open `path` and lock it without waiting; None when somebody else holds it.

    The caller owns the descriptor; closing it drops the lock. Raises `OSError`, `FileNotFoundError`
    among them when `create` is false.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if _same_file(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def open_locked(
    path: str,
    *,
    shared: bool = False,
    timeout: float | None = None,
    waiting: Callable[[], None] | None = None,
) -> int:
    """Open `path` and lock it, waiting for other holders; the caller owns the descriptor.

    `waiting` is called once when the wait lasts long enough for a person to wonder. Raises `Conflict`
    after `timeout` seconds.
    """
    started = time.monotonic()
    pause = _FIRST_PAUSE
    while (fd := try_open_locked(path, shared=shared)) is None:
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise Conflict(f"{path} is still locked by another kernel after {waited:.1f} s; wait for it or stop it")
        if waiting is not None and waited >= _WORTH_TELLING:
            waiting()
            waiting = None
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    return fd


@final
class FileLock:
    """A named lock as a context manager; not reentrant, and one object is one holder."""

    def __init__(
        self,
        path: str,
        *,
        shared: bool = False,
        timeout: float | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self.path = path
        self._shared = shared
        self._timeout = timeout
        self._waiting = waiting
        self._fd = -1

    @property
    def held(self) -> bool:
        """True between acquire and release."""
        return self._fd >= 0

    def acquire(self) -> None:
        """Wait for the lock; `Conflict` after the time-out, `StorageError` when the file cannot be made."""
        if self.held:
            raise Conflict(f"{self.path} is already locked by this very lock; release it first")
        with storage_faults("lock the store", self.path):
            try:
                self._fd = self._open()
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
                self._fd = self._open()

    def _open(self) -> int:
        return open_locked(self.path, shared=self._shared, timeout=self._timeout, waiting=self._waiting)

    def release(self) -> None:
        """Let go; safe twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_store(
    root: str, *, shared: bool, timeout: float | None = None, waiting: Callable[[], None] | None = None
) -> FileLock:
    """The store-wide lock: pulls, builds and container starts hold it shared, garbage collection alone."""
    return FileLock(os.path.join(root, "store.lock"), shared=shared, timeout=timeout, waiting=waiting)
