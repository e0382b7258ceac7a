"""Where a build puts what it needs for a moment: archives unpacked, files fetched. In the store and not in ``/tmp``.

The store is where there is room; ``/tmp`` is memory on many machines, and everybody's. A folder is locked while it is
used, so the next build can take away what a killed one has left.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from typing import IO, TYPE_CHECKING

from nbcontainer.store.faults import storage_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Scratch"]

_PREFIX = "scratch-"


class Scratch:
    """Temporary files and folders in the folder where builds keep what they keep."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def folder(self) -> Iterator[str]:
        """A folder of one's own, for the length of a block."""
        with storage_faults("make a temporary folder", self._folder):
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=self._folder)
        with contextlib.ExitStack() as undo:
            undo.callback(_remove, path)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path

    def file(self) -> IO[bytes]:
        """A file without a name."""
        with storage_faults("make a temporary file", self._folder):
            return tempfile.TemporaryFile(dir=self._folder)

    def sweep(self) -> None:
        """Take away the folders that nobody uses."""
        for name in os.listdir(self._folder):
            path = os.path.join(self._folder, name)
            if name.startswith(_PREFIX) and not _used(path):
                _remove(path)


def _remove(path: str) -> None:
    """Remove a tree of ours, also one whose archive closed its folders to everybody."""
    shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        for directory, names, _ in os.walk(path):
            for name in names:
                inner = os.path.join(directory, name)
                if not os.path.islink(inner):
                    os.chmod(inner, 0o700)
        shutil.rmtree(path, ignore_errors=True)


def _used(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or none of ours
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
