"""Where a build puts what it needs for a moment: archives unpacked, files fetched. In the store and not in ``/tmp``.

The store is where there is room; ``/tmp`` is memory on many machines, and everybody's. A folder is locked while it is
used, so the next build can take away what a killed one has left.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import IO, TYPE_CHECKING

from nbcontainer.errors import StorageError
from nbcontainer.layers.remove import remove_entry
from nbcontainer.layers.snapshotter import HeldLock
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
            path, lock = self._made()
        try:
            yield path
        finally:
            try:
                self._remove(path)
            finally:
                lock.release()

    def _made(self) -> tuple[str, HeldLock]:
        while True:
            path = tempfile.mkdtemp(prefix=_PREFIX, dir=self._folder)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another build swept it before we had it
                lock = HeldLock(path)
                if lock.names(path):
                    return path, lock
                lock.release()

    def file(self) -> IO[bytes]:
        """A file without a name."""
        with storage_faults("make a temporary file", self._folder):
            return tempfile.TemporaryFile(dir=self._folder)

    def sweep(self) -> None:
        """Take away the folders that nobody uses."""
        for name in os.listdir(self._folder):
            if name.startswith(_PREFIX):
                path = os.path.join(self._folder, name)
                with contextlib.suppress(OSError):  # used, gone meanwhile, or none of ours
                    lock = HeldLock(path)
                    try:
                        self._remove(path)
                    finally:
                        lock.release()

    def _remove(self, path: str) -> None:
        """Remove a tree of ours, however deep, also one whose archive closed its folders to everybody."""
        parent = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with contextlib.suppress(OSError, StorageError):  # what cannot be removed stays for the next sweep
                remove_entry(parent, os.fsencode(os.path.basename(path)))
        finally:
            os.close(parent)
