"""What a COPY or ADD brings that this process reads itself: files of the context, heredocs, downloads, archives.

A part knows its tops (which decide where things go), a digest for the step's key, and how to write itself into a
layer. Files of stages and images are read by a task instead (`nbcontainer.build.landing`).
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import os
import stat
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any, Protocol

from nbcontainer.build.landing import placed_name, write_placed
from nbcontainer.build.sources import Attributes, Selection, Top, measured
from nbcontainer.dockerfile.modes import Chmod
from nbcontainer.errors import CorruptContent, InvalidImage, InvalidInput
from nbcontainer.layers.compression import decompress
from nbcontainer.layers.tar import DIRECTORY, FIFO, FILE, HARD_LINK, SYMLINK, Archive, Stream

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Iterator, Sequence

    from nbcontainer.build.scratch import Scratch
    from nbcontainer.build.sources import Entry as TreeEntry
    from nbcontainer.build.sources import FileTree
    from nbcontainer.layers.pack import TarWriter
    from nbcontainer.layers.tar import Entry

__all__ = ["ArchivePart", "Part", "TreePart", "archive_parts"]

_PIECE = 1 << 20
_HEAD = 512
_LARGEST_UNPACKED = 256 * 1024**3
_KINDS = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, FIFO: stat.S_IFIFO}


class Part(Protocol):
    """Something to copy."""

    @property
    def tops(self) -> Sequence[Top]:
        """Its sources as found."""

    @property
    def digest(self) -> str:
        """A name for all that would be copied."""

    @property
    def entries(self) -> Sequence[Sequence[Any]]:
        """[top, below, is a folder] of what would be copied, as far as it must be compared with what is there."""

    def write(self, writer: TarWriter, places: Sequence[str], owner: Sequence[int] | None) -> bool:
        """Write it, each top at its place, and to an owner if there is one; whether that is what has the digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePart:
    """Files of a tree."""

    tree: FileTree
    selection: Selection
    tops: tuple[Top, ...]
    digest: str
    entries: Sequence[Sequence[Any]]
    stamp: str = ""

    @classmethod
    def of(cls, tree: FileTree, selection: Selection, tops: Sequence[Top] | None = None) -> TreePart:
        """Look for the sources and read them all, once."""
        found = tuple(tree.tops(selection) if tops is None else tops)
        name, entries, stamp = measured(tree, found, selection)
        return cls(tree=tree, selection=selection, tops=found, digest=name, entries=entries, stamp=stamp)

    def write(self, writer: TarWriter, places: Sequence[str], owner: Sequence[int] | None) -> bool:
        """See `Part.write`."""
        selection = self.selection if owner is None else replace(self.selection, owner=(owner[0], owner[1]))
        return write_placed(writer, self.tree, self.tops, selection, places) == self.stamp


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePart:
    """A local archive that ADD unpacks: `file` is the plain tar, whatever it was compressed with."""

    file: IO[bytes]
    top: Top
    digest: str
    mode: str = ""

    @property
    def tops(self) -> tuple[Top, ...]:
        """The archive counts as the folder that it holds."""
        return (self.top,)

    @property
    def entries(self) -> Sequence[Sequence[Any]]:
        """Archives replace what is in their way, as docker's do."""
        return ()

    def write(self, writer: TarWriter, places: Sequence[str], owner: Sequence[int] | None) -> bool:
        """See `Part.write`; a name that leads out of the archive's folder is refused."""
        (place,) = places
        os.lseek(self.file.fileno(), 0, os.SEEK_SET)
        stream = Stream(self.file.fileno())
        for entry in Archive(stream):
            name = _inside(entry.name)
            if not name or (entry.kind not in _KINDS and entry.kind != HARD_LINK):
                stream.skip(entry.data)
                continue
            self._entry(writer, entry, stream, place, owner)
        return True

    def _entry(
        self,
        writer: TarWriter,
        entry: Entry,
        stream: Stream,
        place: str,
        owner: Sequence[int] | None,
    ) -> None:
        name = placed_name(place, os.fsdecode(_inside(entry.name)))
        kind = _KINDS.get(entry.kind, stat.S_IFREG)
        mode = entry.mode & 0o7777
        if self.mode and kind != stat.S_IFLNK:
            mode = Chmod.parse(self.mode).apply(mode, is_dir=kind == stat.S_IFDIR)
        status = Attributes(
            st_mode=kind | mode,
            st_uid=entry.uid if owner is None else owner[0],
            st_gid=entry.gid if owner is None else owner[1],
            st_mtime_ns=entry.mtime,
        )
        xattrs = {os.fsdecode(key): value for key, value in (entry.xattrs or {}).items()}
        if entry.kind == HARD_LINK:
            target = placed_name(place, os.fsdecode(_inside(entry.link)))
            writer.entry(name, status, link=target, hard=True)
        elif entry.kind == FILE and entry.sparse is not None:
            # its holes stay holes: some bytes of a map can claim any number of zeros
            writer.sparse(name, status, entry.sparse, size=entry.size, xattrs=xattrs)
            left = sum(length for _, length in entry.sparse)
            self._content(writer, stream, left)
            return
        elif entry.kind == FILE:
            writer.entry(name, status, xattrs=xattrs, size=entry.size)
            self._content(writer, stream, entry.size)
            return
        else:
            link = entry.link if kind == stat.S_IFLNK else b""
            writer.entry(name, status, link=link, xattrs=xattrs)
        stream.skip(entry.data)

    @staticmethod
    def _content(writer: TarWriter, stream: Stream, size: int) -> None:
        left = size
        while left:
            piece = stream.piece(left)
            left -= len(piece)
            writer.content(piece)
        writer.pad(size)


def _inside(name: bytes) -> bytes:
    """A name below the archive's folder; ``..`` is refused."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if b".." in parts:
        raise InvalidInput(f"the archive has the entry {os.fsdecode(name)!r}, which leads out of it; refused")
    return b"/".join(parts)


def archive_parts(
    tree: FileTree, tops: Sequence[Top], *, mode: str, scratch: Scratch, undo: contextlib.ExitStack
) -> tuple[list[ArchivePart], list[Top]]:
    """Those of `tops` that are archives, by what is in them and not by their names; and the others."""
    found: list[ArchivePart] = []
    others: list[Top] = []
    for top in tops:
        part = None if top.is_dir else _archive(tree, top, mode, scratch, undo)
        if part is None:
            others.append(top)
        else:
            found.append(part)
    return found, others


def _archive(tree: FileTree, top: Top, mode: str, scratch: Scratch, undo: contextlib.ExitStack) -> ArchivePart | None:
    for entry in tree.entries([top], Selection(sources=())):
        if not stat.S_ISREG(entry.status.st_mode):
            return None
        with _opened(entry) as packed:
            plain = _plain_tar(packed, scratch, undo)
        if plain is None:
            return None
        renamed = replace(top, name="", is_dir=True)
        return ArchivePart(file=plain, top=renamed, digest=_digest_of(plain), mode=mode)
    return None


def _opened(entry: TreeEntry) -> IO[bytes]:
    if entry.content is not None:
        return io.BytesIO(entry.content)
    # a pipe that has come in the file's place must not be waited for
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(entry.leaf, flags, dir_fd=entry.directory_fd), "rb")


def _plain_tar(packed: IO[bytes], scratch: Scratch, undo: contextlib.ExitStack) -> IO[bytes] | None:
    """The tar in a file, decompressed into a temporary one; None when it is no tar."""
    pieces = _decompressed(packed)
    plain = None
    try:
        head = b""
        while len(head) < _HEAD and (piece := next(pieces, b"")):
            head += piece
        if not _is_tar(head[:_HEAD]):
            return None
        plain = undo.enter_context(scratch.file())
        plain.write(head)
        size = len(head)
        for piece in pieces:
            size += len(piece)
            if size > _LARGEST_UNPACKED:
                raise InvalidInput("an archive that ADD unpacks grows beyond what a layer may have; refused as a bomb")
            plain.write(piece)
        plain.flush()
    except (CorruptContent, InvalidImage, OSError, EOFError, lzma.LZMAError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise InvalidInput(f"an archive that ADD unpacks cannot be read: {problem.strerror}") from problem
        if plain is not None:  # it began as one
            raise InvalidInput(f"an archive that ADD unpacks is broken: {problem}") from problem
        return None
    return plain


def _decompressed(packed: IO[bytes]) -> Iterator[bytes]:
    first = packed.read(6)
    packed.seek(0)
    if first.startswith(b"BZh"):
        with bz2.BZ2File(packed) as bzip2:
            yield from iter(lambda: bzip2.read1(_PIECE), b"")
    elif first == b"\xfd7zXZ\0":
        with lzma.LZMAFile(packed) as xz:
            yield from iter(lambda: xz.read1(_PIECE), b"")
    else:
        yield from decompress(iter(lambda: packed.read(_PIECE), b""))


def _is_tar(block: bytes) -> bool:
    """Whether a file begins like a tar: its first header has the sum that it says."""
    if len(block) < _HEAD or not block.rstrip(b"\0"):
        return False
    field = block[148:156].strip(b" \0")
    try:
        said = int(field, 8)
    except ValueError:
        return False
    return said == sum(block[:148]) + sum(block[156:]) + 8 * 0x20


def _digest_of(file: IO[bytes]) -> str:
    total = hashlib.sha256(b"archive\0")
    file.seek(0)
    while piece := file.read(_PIECE):
        total.update(piece)
    return total.hexdigest()
