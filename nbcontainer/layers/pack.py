"""Writing files as tar: trees for people (`cp`, `export`), and the entries that make a layer.

One writer for all of them, and what it writes depends on nothing but the files: PAX (POSIX pax(1), "ustar Interchange
Format") with names, numbers and times in the plain header where they fit, xattrs as ``SCHILY.xattr.``, holes as GNU's
sparse format 1.0, no user names, entries in the order of their names. It reads by directory descriptor and never
through a symlink; whoever changes the tree meanwhile gets a file cut or filled up to the size it had when its header
was written.

Standard library only: it runs in the user namespace, too.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nbcontainer._linux.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    file_system_type,
    openat2,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Packer", "Status", "TarWriter", "is_made_by_kernel", "kept_xattrs"]

_BLOCK = 512
_BUFFER = 1024 * 1024
_SMALL = 64 * 1024
_LARGEST = {8: 0o7777777, 12: 0o77777777777}
"""The largest number that a field of this many bytes holds."""
_LONGEST_NAME = 100
_LONGEST_PATH = 4095
"""PATH_MAX without its NUL: longer paths can be made step by step, but nobody could unpack them by name."""
_MOST_PIECES = 10_000
_MOST_NOTICES = 20
_BILLION = 1_000_000_000
_KINDS = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFDIR: b"5", stat.S_IFIFO: b"6"}
_HARD_LINK = b"1"
_PAX = b"x"
_OVERLAY = "user.overlay."
_KEPT_XATTRS = ("user.", "system.posix_acl_")
_CAPABILITY = "security.capability"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_VANISHED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE})
_MADE_BY_KERNEL = frozenset({
    0x9FA0,  # proc
    0x62656572,  # sysfs
    0x63677270,  # cgroup2
    0x27E0EB,  # cgroup
    0x1CD1,  # devpts
    0x19800202,  # mqueue
    0x64626720,  # debugfs
    0x74726163,  # tracefs
})  # fmt: skip
"""File systems (statfs(2), ``f_type``) whose files are answers of the kernel and not content."""


def is_made_by_kernel(fd: int) -> bool:
    """Whether what lies in this directory is made up by the kernel when it is read: /proc, /sys and their like."""
    return file_system_type(fd) in _MADE_BY_KERNEL


def kept_xattrs(fd: int) -> dict[str, bytes]:
    """The extended attributes that belong to a file's content: not labels of the machine, nor what overlayfs notes."""
    try:
        names = os.listxattr(fd)
    except OSError:
        return {}
    kept = {}
    for name in sorted(names):
        if name == _CAPABILITY or (name.startswith(_KEPT_XATTRS) and not name.startswith(_OVERLAY)):
            try:
                kept[name] = os.getxattr(fd, name)
            except OSError:
                continue
    return kept


class Status(Protocol):
    """What of stat(2) goes into an entry: an `os.stat_result`, or what somebody wants to be written instead."""

    @property
    def st_mode(self) -> int:
        """Type and permissions."""

    @property
    def st_uid(self) -> int:
        """The owner."""

    @property
    def st_gid(self) -> int:
        """The group."""

    @property
    def st_size(self) -> int:
        """Bytes of a file."""

    @property
    def st_blocks(self) -> int:
        """Blocks of 512 bytes that it takes."""

    @property
    def st_mtime_ns(self) -> int:
        """The time, in nanoseconds."""


class TarWriter:
    """Entries as bytes into a descriptor. No time in it is later than `latest` (nanoseconds), when there is one."""

    def __init__(self, fd: int, *, latest: int | None = None) -> None:
        self._fd = fd
        self._latest = latest
        self._held = bytearray()
        self._can_send = True
        self.entries = 0
        self.bytes = 0
        """Bytes of files written, holes not counted."""

    def entry(
        self,
        name: bytes,
        status: Status,
        *,
        link: bytes = b"",
        hard: bool = False,
        xattrs: Mapping[str, bytes] | None = None,
        size: int = 0,
    ) -> None:
        """The header of one entry, `size` bytes of data to follow."""
        kind = _HARD_LINK if hard else _KINDS[stat.S_IFMT(status.st_mode)]
        if stat.S_ISDIR(status.st_mode) and not name.endswith(b"/"):
            name += b"/"
        records = [(b"SCHILY.xattr." + os.fsencode(key), value) for key, value in (xattrs or {}).items()]
        self._write(name, kind, _numbers(status), size=size, link=link, records=records)

    def marker(self, name: bytes) -> None:
        """An empty file that only its name matters of: a whiteout."""
        self._write(name, b"0", (0, 0, 0, 0), size=0, link=b"", records=[])

    def _write(
        self,
        name: bytes,
        kind: bytes,
        numbers: tuple[int, int, int, int],
        *,
        size: int,
        link: bytes,
        records: list[tuple[bytes, bytes]],
    ) -> None:
        mode, uid, gid, mtime = numbers
        if self._latest is not None:
            mtime = min(mtime, self._latest)
        seconds, fraction = divmod(mtime, _BILLION)
        if fraction or not 0 <= seconds <= _LARGEST[12]:
            records.append((b"mtime", _time(mtime)))
            seconds = min(max(seconds, 0), _LARGEST[12])
        for key, text, limit in ((b"path", name, _LONGEST_NAME), (b"linkpath", link, _LONGEST_NAME)):
            if len(text) > limit or not text.isascii():
                records.append((key, text))
        for key, number, width in ((b"uid", uid, 8), (b"gid", gid, 8), (b"size", size, 12)):
            if number > _LARGEST[width]:
                records.append((key, b"%d" % number))
        if records:
            self._extension(name, records)
        self._held += _header(name, kind, (mode, uid, gid, size, seconds), link)
        self.entries += 1
        if len(self._held) >= _BUFFER:
            self.flush()

    def _extension(self, name: bytes, records: list[tuple[bytes, bytes]]) -> None:
        body = b"".join(_record(key, value) for key, value in records)
        base = b"PaxHeaders.0/" + name.rstrip(b"/").rpartition(b"/")[2]
        self._held += _header(base[:_LONGEST_NAME], _PAX, (0o644, 0, 0, len(body), 0), b"")
        self._held += body + bytes(-len(body) % _BLOCK)

    def content(self, data: bytes | memoryview) -> None:
        """Some of the data that the last `entry` said would follow; `pad` after all of it."""
        self.bytes += len(data)
        self._held += data
        if len(self._held) >= _BUFFER:
            self.flush()

    def pad(self, size: int) -> None:
        """Fill the last block of an entry of `size` bytes."""
        self._pad(size)

    def file(self, name: bytes, fd: int, status: Status) -> None:
        """A regular file with its data and xattrs; large holes are not written."""
        xattrs = kept_xattrs(fd)
        size = status.st_size
        pieces = _pieces(fd, size) if size > _SMALL and status.st_blocks * _BLOCK < size else None
        if pieces is None:
            self.entry(name, status, xattrs=xattrs, size=size)
            self._data(fd, 0, size)
            self._pad(size)
            return
        self.sparse(name, status, pieces, size=size, xattrs=xattrs)
        for offset, length in pieces:
            self._data(fd, offset, length)
        self._pad(sum(length for _, length in pieces))

    def sparse(
        self,
        name: bytes,
        status: Status,
        pieces: Sequence[tuple[int, int]],
        *,
        size: int,
        xattrs: Mapping[str, bytes] | None = None,
    ) -> None:
        """The header of a file of `size` bytes that is holes but for `pieces`, whose data follow; `pad` after them."""
        pieces = list(pieces)
        if not pieces or sum(pieces[-1]) < size:
            pieces.append((size, 0))
        text = b"".join(b"%d\n" % number for number in (len(pieces), *(each for piece in pieces for each in piece)))
        text += bytes(-len(text) % _BLOCK)
        stored = sum(length for _, length in pieces)
        records = [
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", name),
            (b"GNU.sparse.realsize", b"%d" % size),
            *((b"SCHILY.xattr." + os.fsencode(key), value) for key, value in (xattrs or {}).items()),
        ]
        self._write(
            b"GNUSparseFile.0/" + name.rpartition(b"/")[2],
            b"0",
            _numbers(status),
            size=len(text) + stored,
            link=b"",
            records=records,
        )
        self._held += text

    def _data(self, fd: int, offset: int, count: int) -> None:
        """`count` bytes of a file from `offset`; zeros for what it has not any more."""
        self.bytes += count
        if count > _SMALL:
            self.flush()
            sent = self._send(fd, offset, count)
            offset, count = offset + sent, count - sent
        while count:
            data = os.pread(fd, min(count, _BUFFER), offset)
            if not data:
                break
            self._held += data
            offset, count = offset + len(data), count - len(data)
            if len(self._held) >= _BUFFER:
                self.flush()
        while count:
            zeros = min(count, _BUFFER)
            self._held += bytes(zeros)
            count -= zeros
            self.flush()

    def _send(self, fd: int, offset: int, count: int) -> int:
        """Let the kernel move the data (sendfile(2)) as far as it will, and say how far that was."""
        sent = 0
        while self._can_send and sent < count:
            try:
                moved = os.sendfile(self._fd, fd, offset + sent, min(count - sent, 1 << 30))
            except OSError as problem:
                if problem.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                    raise
                self._can_send = False
                break
            if not moved:
                break
            sent += moved
        return sent

    def _pad(self, size: int) -> None:
        self._held += bytes(-size % _BLOCK)

    def flush(self) -> None:
        """Write out what is held back."""
        view = memoryview(bytes(self._held))
        self._held.clear()
        while view:
            view = view[os.write(self._fd, view) :]

    def finish(self) -> None:
        """Two zero blocks, the end of an archive."""
        self._held += bytes(2 * _BLOCK)
        self.flush()


@dataclass(slots=True)
class Packer:
    """Files into a `TarWriter`: remembers those with several names, and what it had to leave out."""

    writer: TarWriter
    left_out: int = 0
    notices: list[str] = field(default_factory=list)
    _first: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def tree(self, top_fd: int, name: bytes, *, skip_root: bool = False) -> None:
        """A directory and everything in it, as `name` in the archive.

        What other file systems show is packed too, except what the kernel makes up. Directories are opened from the
        top by their path, so depth costs no descriptors.
        """
        if not skip_root:
            self.writer.entry(name or b"./", os.fstat(top_fd), xattrs=kept_xattrs(top_fd))
        pending = [b""]
        while pending:
            path = pending.pop()
            with _Opened(top_fd, path) as fd:
                if fd < 0:
                    continue
                if path:
                    self.writer.entry(_joined(name, path), os.fstat(fd), xattrs=kept_xattrs(fd))
                pending += reversed(list(self._files(fd, path, name)))

    def _files(self, fd: int, path: bytes, name: bytes) -> Iterator[bytes]:
        """Pack what is no directory in this one; give the paths of those that are."""
        if is_made_by_kernel(fd):
            return
        for child in sorted(os.fsencode(entry) for entry in os.listdir(fd)):
            below = _joined(path, child)
            try:
                status = os.stat(child, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if len(below) + len(name) + 1 > _LONGEST_PATH:
                self.leave_out(below, "its path is too long")
            elif stat.S_ISDIR(status.st_mode):
                yield below
            else:
                self.add(fd, child, _joined(name, below), status)

    def add(self, directory_fd: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        """Anything but a directory, as `path` in the archive; what vanishes meanwhile is left out silently."""
        kind = stat.S_IFMT(status.st_mode)
        if kind not in _KINDS:
            self.leave_out(path, "it is a socket" if kind == stat.S_IFSOCK else "it is a device")
            return
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1:
            first = self._first.get(key)
            if first is not None:
                self.writer.entry(path, status, link=first, hard=True)
                return
        try:
            self._content(directory_fd, name, path, status)
        except OSError as problem:
            if problem.errno not in _VANISHED:
                problem.filename = os.fsdecode(path)
                raise
            return
        if status.st_nlink > 1:
            self._first[key] = path

    def _content(self, directory_fd: int, name: bytes, path: bytes, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            self.writer.entry(path, status, link=os.readlink(name, dir_fd=directory_fd))
        elif stat.S_ISFIFO(status.st_mode):
            self.writer.entry(path, status)
        else:
            fd = os.open(name, _OPEN_FILE, dir_fd=directory_fd)
            try:
                opened = os.fstat(fd)
                if stat.S_ISREG(opened.st_mode):  # it may have been exchanged since
                    self.writer.file(path, fd, opened)
            finally:
                os.close(fd)

    def leave_out(self, path: bytes, reason: str) -> None:
        """Note that something is not in the archive."""
        self.left_out += 1
        if len(self.notices) < _MOST_NOTICES:
            self.notices.append(f"{os.fsdecode(path)} was left out: {reason}")


class _Opened:
    """A directory below another, closed at the end; -1 when it is not there (any more)."""

    def __init__(self, top_fd: int, path: bytes) -> None:
        self._top_fd = top_fd
        self._path = path
        self._fd = -1

    def __enter__(self) -> int:
        try:
            self._fd = openat2(self._top_fd, self._path or b".", _OPEN_DIRECTORY, resolve=_BELOW)
        except OSError as problem:
            if problem.errno not in _VANISHED:
                problem.filename = os.fsdecode(self._path)
                raise
        return self._fd

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def _numbers(status: Status) -> tuple[int, int, int, int]:
    """Mode, uid, gid, and the time in nanoseconds."""
    return stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder else name


def _pieces(fd: int, size: int) -> list[tuple[int, int]] | None:
    """Where the data of a file with holes lies, or None when it is better written whole."""
    pieces: list[tuple[int, int]] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as problem:
            if problem.errno == errno.ENXIO:  # nothing but a hole is left
                return pieces
            if problem.errno == errno.EINVAL:
                return None
            raise
        if start >= size:
            return pieces
        pieces.append((start, position - start))
        if len(pieces) > _MOST_PIECES:
            return None
    return None if pieces == [(0, size)] else pieces


def _time(nanoseconds: int) -> bytes:
    """A PAX time: a decimal number of seconds."""
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), _BILLION)
    text = b"%s%d.%09d" % (sign, seconds, fraction)
    return text.rstrip(b"0").rstrip(b".")


def _record(key: bytes, value: bytes) -> bytes:
    r"""``LENGTH KEY=VALUE\n``, with LENGTH counting its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _header(name: bytes, kind: bytes, numbers: tuple[int, int, int, int, int], link: bytes) -> bytes:
    """A ustar header; what does not fit is cut here and said in full by the PAX header before it."""
    mode, uid, gid, size, seconds = numbers
    numbers = (_fitting(mode, 8), _fitting(uid, 8), _fitting(gid, 8), _fitting(size, 12), _fitting(seconds, 12))
    before = name[:_LONGEST_NAME].ljust(_LONGEST_NAME, b"\0") + b"%07o\0%07o\0%07o\0%011o\0%011o\0" % numbers
    after = kind + link[:_LONGEST_NAME].ljust(_LONGEST_NAME, b"\0") + b"ustar\x0000"
    total = sum(before) + sum(after) + 8 * ord(" ")  # the sum's own field counts as spaces
    return (before + b"%06o\0 " % total + after).ljust(_BLOCK, b"\0")


def _fitting(number: int, width: int) -> int:
    return number if number <= _LARGEST[width] else 0
