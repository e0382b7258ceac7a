"""Layer tars for tests: honest ones by `tarfile`, forged ones by hand, and what a directory holds afterwards."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nbcontainer.layers.apply import AppliedLayer, ApplyLimits, apply

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MTIME = 1_000_000_000
OWNERS = os.geteuid() == 0
Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> Member:
    """One member; `fields` are attributes of `TarInfo`."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mtime = MTIME
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def folder(name: str, **fields: Any) -> Member:
    """A directory."""
    return member(name, tarfile.DIRTYPE, **fields)


def link(name: str, target: str, **fields: Any) -> Member:
    """A symlink."""
    return member(name, tarfile.SYMTYPE, linkname=target, **fields)


def hard(name: str, target: str, **fields: Any) -> Member:
    """A hard link."""
    return member(name, tarfile.LNKTYPE, linkname=target, **fields)


def tar(*members: Member, form: int = tarfile.GNU_FORMAT, **options: Any) -> bytes:
    """A whole archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, **options) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data) if data else None)
    return buffer.getvalue()


def header(name: bytes, kind: bytes = b"0", size: int = 0, link_name: bytes = b"", **raw: bytes) -> bytes:
    """One raw header block with a right checksum; `raw` gives fields as bytes (mode, uid, gid, size, mtime, magic)."""
    fields = {
        "mode": b"0000644\0",
        "uid": b"0000000\0",
        "gid": b"0000000\0",
        "size": b"%011o\0" % size,
        "mtime": b"%011o\0" % MTIME,
        "magic": b"ustar\x0000",
        "tail": b"",
    }
    fields.update(raw)
    start = name.ljust(100, b"\0") + fields["mode"] + fields["uid"] + fields["gid"] + fields["size"] + fields["mtime"]
    rest = kind + link_name.ljust(100, b"\0") + fields["magic"]
    block = (start + b" " * 8 + rest + fields["tail"]).ljust(512, b"\0")
    assert len(block) == 512
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padded(data: bytes) -> bytes:
    """Data as it lies in a tar."""
    return data + bytes(-len(data) % 512)


END = bytes(1024)


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A raw PAX header with its records."""
    body = b""
    for key, value in records:
        rest = b" " + key + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length = len(str(length)) + len(rest)
        body += str(length).encode() + rest
    return header(b"pax", kind, len(body)) + padded(body)


@contextmanager
def opened(*paths: Path) -> Iterator[list[int]]:
    """Directory descriptors, closed at the end."""
    fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in paths]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def unpack(
    data: bytes,
    target: Path,
    parents: Sequence[Path] = (),
    *,
    flat: bool = False,
    owners: bool = OWNERS,
    limits: ApplyLimits | None = None,
) -> AppliedLayer:
    """Apply a tar from memory; `parents` topmost first."""
    target.mkdir(exist_ok=True)
    stream = os.memfd_create("layer")
    try:
        os.write(stream, data)
        os.lseek(stream, 0, os.SEEK_SET)
        with opened(target, *parents) as fds:
            return apply(stream, fds[0], parents=fds[1:], owners=owners, flat=flat, limits=limits)
    finally:
        os.close(stream)


def listing(root: Path, *, times: bool = False) -> dict[str, tuple[object, ...]]:
    """What a directory holds: a kind, what distinguishes it, mode and owner for each path."""
    found: dict[str, tuple[object, ...]] = {}
    base = os.fsencode(root)
    for directory, names, files in os.walk(base):
        for name in names + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            entry: tuple[object, ...] = (stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode))
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    entry += (file.read(), status.st_nlink)
            elif stat.S_ISLNK(status.st_mode):
                entry += (os.readlink(path),)
            if times:
                entry += (status.st_uid, status.st_gid, status.st_mtime_ns)
            found[os.fsdecode(os.path.relpath(path, base))] = entry
    return found


def is_whiteout(path: Path) -> bool:
    """Whether an overlay whiteout lies there."""
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    """Whether a directory hides the lower ones."""
    try:
        return os.getxattr(path, "user.overlay.opaque") == b"y"
    except OSError:
        return False
