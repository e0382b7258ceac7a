"""Removing trees whose content nobody vouches for.

By directory descriptor, one component at a time: symlinks are removed and never followed, a mount inside stops the
removal (`RESOLVE_NO_XDEV`), directories nobody may read are opened up first. Depth costs neither memory nor
descriptors: a tree deeper than we care to hold open is re-hung at the top. It must run where the files' owners exist,
so inside the user namespace that wrote them; `serve` is the entry point there.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any

from nbcontainer._linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from nbcontainer.errors import InvalidOption, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["remove_children", "remove_entry", "serve"]

RESOLVE_NO_XDEV = 0x01
_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
_DEEPEST = 64
_MOST_TRIES = 10_000


def serve(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Empty the directory ``fds[0]``; with ``name`` in `arguments`, remove only that entry of it.

    Returns ``{"removed": entries}``.
    """
    if len(fds) != 1:
        raise InvalidOption(f"removing takes one directory, {len(fds)} were given")
    name = arguments.get("name")
    if name is None:
        return {"removed": remove_children(fds[0])}
    encoded = os.fsencode(str(name))
    if b"/" in encoded or encoded in {b"", b".", b".."}:
        raise InvalidOption(f"cannot remove {name!r}: it is not the name of a directory entry")
    return {"removed": remove_entry(fds[0], encoded)}


def remove_entry(directory_fd: int, name: bytes) -> int:
    """Remove `name` and everything in it; 0 when there is none. `StorageError` at a mount point.

    Somebody else may be removing it at the same time (a launcher's janitor, another engine's sweep): between them it
    goes.
    """
    for _ in range(_MOST_TRIES):
        try:
            return _remove_entry(directory_fd, name)
        except FileNotFoundError:
            continue
    raise StorageError(f"cannot remove {os.fsdecode(name)!r}: its content comes and goes; try again")


def _remove_entry(directory_fd: int, name: bytes) -> int:
    try:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        _unlink(directory_fd, name)
        return 1
    fd = _open(directory_fd, name)
    try:
        removed = remove_children(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory_fd)
    return removed + 1


def remove_children(top_fd: int) -> int:
    """Remove everything in a directory, and say how many entries that were."""
    top = _Level(b"", top_fd)
    chain = [top]
    removed = top.unlink_files()
    number = 0
    try:
        while True:
            level = chain[-1]
            if not level.directories:
                if level is top:
                    return removed
                os.close(chain.pop().fd)
                os.rmdir(level.name, dir_fd=chain[-1].fd)
                removed += 1
                continue
            name = level.directories.pop()
            if len(chain) > _DEEPEST:
                number += 1
                top.directories.append(_rehang(level.fd, name, top_fd, number))
                continue
            inner = _Level(name, _open(level.fd, name))
            chain.append(inner)
            removed += inner.unlink_files()
    finally:
        for level in chain[1:]:
            os.close(level.fd)


class _Level:
    """One directory on the way down, and the directories in it that are still to be removed."""

    __slots__ = ("directories", "fd", "name")

    def __init__(self, name: bytes, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.directories: list[bytes] = []

    def unlink_files(self) -> int:
        """Remove what is not a directory; remember what is."""
        count = 0
        with os.scandir(self.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self.directories.append(os.fsencode(entry.name))
                else:
                    _unlink(self.fd, os.fsencode(entry.name))
                    count += 1
        return count


def _unlink(fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except PermissionError:
        _open_up(fd)
        os.unlink(name, dir_fd=fd)
    except OSError as problem:
        if problem.errno == errno.EBUSY:
            raise _mounted(name) from problem
        raise


def _open(fd: int, name: bytes) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    try:
        return openat2(fd, name, flags, resolve=_RESOLVE)
    except OSError as problem:
        if problem.errno == errno.EXDEV:
            raise _mounted(name) from problem
        if problem.errno != errno.EACCES:
            raise
    os.chmod(name, 0o700, dir_fd=fd)
    return openat2(fd, name, flags, resolve=_RESOLVE)


def _open_up(fd: int) -> None:
    os.fchmod(fd, 0o700)


def _rehang(fd: int, name: bytes, top_fd: int, number: int) -> bytes:
    """Move a directory that lies too deep to the top, under a name that is free there."""
    while True:
        fresh = b".removing-%d-%d" % (os.getpid(), number)
        try:
            os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=top_fd)
        except PermissionError:
            _open_up(fd)
            os.chmod(name, 0o700, dir_fd=fd)
            os.rename(name, fresh, src_dir_fd=fd, dst_dir_fd=top_fd)
        except OSError as problem:
            if problem.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            number += 1_000_000
            continue
        return fresh


def _mounted(name: bytes) -> StorageError:
    return StorageError(
        f"cannot remove {os.fsdecode(name)!r}: something is mounted there; unmount it, or stop the container using it"
    )
