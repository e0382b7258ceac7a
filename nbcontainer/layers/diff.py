"""What a writable layer changed, as a list for people and as a layer for images: `apply` backwards.

The *upper* is what overlayfs left in a container's writable directory: new and copied files, whiteouts (0/0 character
devices), opaque directories (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"). The
*lower* is the merged view of everything below. Both are walked side by side, each by descriptors from its own top, so
a link in either leads nowhere.

A directory that overlayfs copied up only because something in it changed has not changed itself: it appears with what
is below it, or not at all. What the runtime put there is not a change of the container's: the empty files and folders
that our mounts needed to be mounted on.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nbcontainer._linux.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from nbcontainer.layers.pack import Packer, TarWriter, kept_xattrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Difference", "differences", "write_layer"]

_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_OPAQUE = ("user.overlay.opaque", "trusted.overlay.opaque")
_WHITEOUT = b".wh."
_MOUNTED_FILES = frozenset({b"etc/hosts", b"etc/hostname", b"etc/resolv.conf"})
_MOUNTED_FOLDERS = frozenset({b"proc", b"sys", b"dev"})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

Kind = Literal["A", "C", "D"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One path that was added, changed or deleted; `status` and `directory_fd` (valid until the next) are the upper's.

    `opaque` marks a directory whose content below was all hidden first. A deletion that an opaque directory implies has
    no `status`.
    """

    kind: Kind
    path: bytes
    status: os.stat_result | None
    directory_fd: int
    opaque: bool = False

    @property
    def name(self) -> bytes:
        """The last component."""
        return self.path.rpartition(b"/")[2]


def differences(upper_fd: int, lower_fd: int) -> Iterator[Difference]:
    """Every difference between the lower view (-1: there is none) and what `upper_fd` makes of it.

    Directories come before what is in them, and names in order within each.
    """
    return iter(_Walk(upper_fd, lower_fd))


def write_layer(upper_fd: int, lower_fd: int, out_fd: int, *, latest: int | None = None) -> Packer:
    """Write the differences as a layer's tar, and give what was packed and left out.

    Applied on the same lower layers it makes the same merged tree. The same files give the same bytes. Times after
    `latest` (nanoseconds) are written as that.
    """
    writer = TarWriter(out_fd, latest=latest)
    packer = Packer(writer)
    _write_root(writer, upper_fd, lower_fd)
    for difference in differences(upper_fd, lower_fd):
        name, path, status = difference.name, difference.path, difference.status
        if name.startswith(_WHITEOUT):
            packer.leave_out(path, "in a layer such a name means that a file is deleted")
        elif difference.kind == "D":
            if status is not None:
                writer.marker(path[: len(path) - len(name)] + _WHITEOUT + name)
        elif status is not None and stat.S_ISDIR(status.st_mode):
            _write_directory(writer, difference, status)
        elif status is not None:
            packer.add(difference.directory_fd, name, path, status)
    writer.finish()
    return packer


def _write_root(writer: TarWriter, upper_fd: int, lower_fd: int) -> None:
    """The root has an entry only when its mode or owner are not those of the root below."""
    status = os.fstat(upper_fd)
    below = os.fstat(lower_fd) if lower_fd >= 0 else None
    if below is not None and _identity(status)[:3] != _identity(below)[:3]:
        writer.entry(b"./", status, xattrs=kept_xattrs(upper_fd))


def _write_directory(writer: TarWriter, difference: Difference, status: os.stat_result) -> None:
    fd = _open_below(difference.directory_fd, difference.name)
    if fd < 0:  # it went away since
        return
    try:
        writer.entry(difference.path, status, xattrs=kept_xattrs(fd))
    finally:
        os.close(fd)
    if difference.opaque:
        writer.marker(difference.path + b"/.wh..wh..opq")


class _Walk:
    """The two trees, side by side."""

    def __init__(self, upper_fd: int, lower_fd: int) -> None:
        self._upper_fd = upper_fd
        self._lower_fd = lower_fd
        self._held: dict[bytes, Difference] = {}
        """Directories that have not changed themselves, until something in them has."""

    def __iter__(self) -> Iterator[Difference]:
        pending = [(b"", self._lower_fd >= 0, False)]
        while pending:
            path, merged, covered = pending.pop()
            upper = _open_below(self._upper_fd, path or b".")
            if upper < 0:
                continue
            lower = _open_below(self._lower_fd, path or b".") if merged else -1
            try:
                folders: list[tuple[bytes, bool, bool]] = []
                for found in self._in_directory(path, upper, lower, folders, covered=covered):
                    yield from self._with_parents(found)
                pending += reversed(folders)
            finally:
                os.close(upper)
                if lower >= 0:
                    os.close(lower)

    def _in_directory(
        self, path: bytes, upper: int, lower: int, folders: list[tuple[bytes, bool, bool]], *, covered: bool
    ) -> Iterator[Difference]:
        """One directory; `covered` ones lie in an opaque one, so nothing in them comes from below."""
        for name in sorted(os.fsencode(entry) for entry in os.listdir(upper)):
            full = path + b"/" + name if path else name
            status, below = _status(upper, name), _status(lower, name)
            if status is None:
                continue
            if _is_whiteout(status):
                if below is not None:
                    yield Difference(kind="D", path=full, status=status, directory_fd=upper)
                continue
            if _is_ours(full, status, below, upper):
                continue
            kind: Kind = "A" if below is None else "C"
            if not stat.S_ISDIR(status.st_mode):
                yield Difference(kind=kind, path=full, status=status, directory_fd=upper)
                continue
            opaque = _is_opaque(upper, name)
            found = Difference(kind=kind, path=full, status=status, directory_fd=upper, opaque=opaque)
            merged = below is not None and stat.S_ISDIR(below.st_mode)
            kept = merged and not opaque and not covered
            if kept and below is not None and _same(status, below, full, upper, lower):
                self._held[full] = found
            else:
                yield found
            if merged and opaque:
                yield from _hidden(full, upper, lower)
            folders.append((full, merged, covered or opaque))

    def _with_parents(self, found: Difference) -> Iterator[Difference]:
        """`found` after those of its parents that were held back, from the top; their descriptors are opened anew."""
        if self._held:
            position = found.path.find(b"/")
            while position >= 0:
                parent = self._held.pop(found.path[:position], None)
                if parent is not None:
                    yield from self._released(parent)
                position = found.path.find(b"/", position + 1)
        yield found

    def _released(self, held: Difference) -> Iterator[Difference]:
        fd = _open_below(self._upper_fd, held.path.rpartition(b"/")[0] or b".")
        if fd >= 0:
            try:
                yield Difference(
                    kind=held.kind, path=held.path, status=held.status, directory_fd=fd, opaque=held.opaque
                )
            finally:
                os.close(fd)


def _hidden(path: bytes, upper: int, lower: int) -> Iterator[Difference]:
    """What an opaque directory of the upper hides and does not have again."""
    name = path.rpartition(b"/")[2]
    above, below = _open_below(upper, name), _open_below(lower, name)
    try:
        if above >= 0 and below >= 0:
            kept = {os.fsencode(entry) for entry in os.listdir(above)}
            for entry in sorted(os.fsencode(entry) for entry in os.listdir(below)):
                if entry not in kept:
                    yield Difference(kind="D", path=path + b"/" + entry, status=None, directory_fd=-1)
    finally:
        for fd in (above, below):
            if fd >= 0:
                os.close(fd)


def _is_whiteout(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _is_opaque(directory_fd: int, name: bytes) -> bool:
    fd = _open_below(directory_fd, name)
    if fd < 0:
        return False
    try:
        return any(_xattr(fd, key) == b"y" for key in _OPAQUE)
    finally:
        os.close(fd)


def _xattr(fd: int, key: str) -> bytes:
    try:
        return os.getxattr(fd, key)
    except OSError:
        return b""


def _is_ours(path: bytes, status: os.stat_result, below: os.stat_result | None, directory_fd: int) -> bool:
    """Whether this is only what one of our own mounts was put on: an empty file or folder that was not there."""
    if path in _MOUNTED_FILES:
        missing = below is None or stat.S_ISLNK(below.st_mode)
        return missing and stat.S_ISREG(status.st_mode) and status.st_size == 0
    if path in _MOUNTED_FOLDERS and below is None and stat.S_ISDIR(status.st_mode):
        return _is_empty(directory_fd, path)
    return path == b"etc" and below is None and stat.S_ISDIR(status.st_mode) and _holds_only_ours(directory_fd)


def _is_empty(directory_fd: int, name: bytes) -> bool:
    fd = _open_below(directory_fd, name)
    if fd < 0:
        return False
    try:
        return not os.listdir(fd)
    finally:
        os.close(fd)


def _holds_only_ours(directory_fd: int) -> bool:
    fd = _open_below(directory_fd, b"etc")
    if fd < 0:
        return False
    try:
        return all(
            _is_ours(b"etc/" + os.fsencode(name), os.stat(name, dir_fd=fd, follow_symlinks=False), None, fd)
            for name in os.listdir(fd)
        )
    finally:
        os.close(fd)


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns


def _same(above: os.stat_result, below: os.stat_result, path: bytes, upper: int, lower: int) -> bool:
    """Whether a copied-up directory is as it was; the time of one that our mounts were put into does not count."""
    mounted = path == b"etc" and _has_ours(upper)
    length = 3 if mounted else 4
    if _identity(above)[:length] != _identity(below)[:length]:
        return False
    name = path.rpartition(b"/")[2]
    above_fd, below_fd = _open_below(upper, name), _open_below(lower, name)
    try:
        return above_fd < 0 or below_fd < 0 or kept_xattrs(above_fd) == kept_xattrs(below_fd)
    finally:
        for fd in (above_fd, below_fd):
            if fd >= 0:
                os.close(fd)


def _has_ours(directory_fd: int) -> bool:
    for path in _MOUNTED_FILES:
        try:
            status = os.stat(path, dir_fd=directory_fd, follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return True
    return False


def _status(fd: int, name: bytes) -> os.stat_result | None:
    if fd < 0:
        return None
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _open_below(fd: int, path: bytes) -> int:
    """A directory below `fd`, or -1 where there is none."""
    if fd < 0:
        return -1
    try:
        return openat2(fd, path, _OPEN_DIRECTORY, resolve=_BELOW)
    except OSError as problem:
        if problem.errno in _ABSENT:
            return -1
        raise
