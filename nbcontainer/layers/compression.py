"""From a compressed layer to its tar: sniffed, inflated, hashed and bounded in one pass.

The bytes decide what a blob is, not its media type. ``isal`` inflates gzip two to three times faster than zlib and,
like everything slow here, lets go of the GIL; without it zlib does the same work. Output is taken in bounded steps,
so a bomb costs time up to the cap and never memory.

What is tolerated, because the tools that made the image's layers tolerate it: several gzip members or zstd frames one
after another, and zeros or garbage after the last one (GNU gzip: "trailing garbage ignored").
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from nbcontainer.errors import CorruptContent, InvalidImage
from nbcontainer.model import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

    from nbcontainer.model import Compression

__all__ = ["Compressor", "InflateLimits", "Inflated", "decompress", "inflate", "sniff", "write_all"]

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = tuple(bytes([value, 0x2A, 0x4D, 0x18]) for value in range(0x50, 0x60))
_NEED = 4
_STEP = 1024 * 1024
_GZIP_WINDOW = 31
_GZIP_LEVEL = 6
_ISAL_LEVEL = 2
"""isal's levels go from 0 to 3; this one is about as small as zlib's 2 and ten times as fast as its 6."""
_RLE_BLOCK = 1
_GZIP_SLICE = 128 * 1024
_ZSTD_BLOCKS = 8
_QUEUED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class InflateLimits:
    """How large a layer may become. `ratio` counts only beyond `ratio_free` bytes: small layers may be mostly zeros."""

    size: int = 256 * 1024**3
    ratio: int = 1100
    """Deflate reaches 1032 to 1; zstd goes further, but no honest layer does."""
    ratio_free: int = 1024**3
    window: int = 128 * 1024 * 1024
    """Largest zstd window, so largest memory (``zstd --long=27``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inflated:
    """What went through: `diff_id` names the `size` bytes of the tar, made of `compressed` bytes."""

    diff_id: Digest
    size: int
    compressed: int
    compression: Compression


def sniff(first: bytes) -> Compression:
    """What a blob starting with these bytes (four suffice) is; anything unknown is taken as plain."""
    if first.startswith(_GZIP):
        return "gzip"
    if first.startswith((_ZSTD, *_ZSTD_SKIPPABLE)):
        return "zstd"
    return "none"


def inflate(
    chunks: Iterable[bytes], *, sink: Callable[[bytes], object], limits: InflateLimits | None = None
) -> Inflated:
    """Inflate `chunks`, hand each piece of the tar to `sink` in order, and name the whole.

    Hashing runs in a thread of its own, so it overlaps with inflating and with a sink that waits. An exception of
    `chunks` or `sink` passes through. Raises `CorruptContent` for damaged or cut-off data, `InvalidImage` for a bomb.
    """
    counted = _Counted(chunks)
    first, rest = counted.peek()
    compression = sniff(first)
    bounds = limits or InflateLimits()
    size = 0
    with _Hashing() as hashing:
        for piece in _PIECES[compression](rest, bounds):
            size += len(piece)
            _check_bounds(size, counted.total, bounds)
            hashing.update(piece)
            sink(piece)
        diff_id = hashing.digest()
    return Inflated(diff_id=diff_id, size=size, compressed=counted.total, compression=compression)


def decompress(chunks: Iterable[bytes], limits: InflateLimits | None = None) -> Iterator[bytes]:
    """The same pieces as an iterator, for readers that pull; nothing is hashed."""
    counted = _Counted(chunks)
    first, rest = counted.peek()
    bounds = limits or InflateLimits()
    size = 0
    for piece in _PIECES[sniff(first)](rest, bounds):
        size += len(piece)
        _check_bounds(size, counted.total, bounds)
        yield piece


@final
class Compressor:
    """A tar on its way into a blob: compressed with gzip, both sides hashed or counted.

    No name and no time stand in the gzip header, so the same tar gives the same blob as long as the library does.
    """

    def __init__(self, sink: Callable[[bytes], object]) -> None:
        library = _deflate_library()
        level = _GZIP_LEVEL if library is zlib else _ISAL_LEVEL
        self._deflate: Any = library.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW)
        self._sink = sink
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes of the tar."""

    def write(self, data: bytes) -> None:
        """Take the next bytes of the tar."""
        self._hash.update(data)
        self.size += len(data)
        compressed = self._deflate.compress(data)
        if compressed:
            self._sink(compressed)

    def finish(self) -> Digest:
        """Write the rest; the tar's digest, which is the layer's diff id."""
        self._sink(self._deflate.flush())
        return Digest("sha256", self._hash.hexdigest())


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, in as many pieces as the pipe takes: a sink is ``partial(write_all, fd)``."""
    written = os.write(fd, data)
    if written < len(data):
        view = memoryview(data)
        while written < len(data):
            written += os.write(fd, view[written:])


def _check_bounds(size: int, compressed: int, limits: InflateLimits) -> None:
    if size > limits.size or (size > limits.ratio_free and size > limits.ratio * compressed):
        raise InvalidImage(
            f"the layer inflates to more than {size} bytes from {compressed}, beyond what is allowed; refused as a bomb"
        )


class _Counted:
    """Chunks on their way in: counts bytes, shows the first ones."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.total = 0

    def peek(self) -> tuple[bytes, Iterator[bytes]]:
        held = b""
        while len(held) < _NEED:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            held += chunk
        return held, self._all(held)

    def _all(self, held: bytes) -> Iterator[bytes]:
        if held:
            self.total += len(held)
            yield held
        for chunk in self._chunks:
            if chunk:
                self.total += len(chunk)
                yield chunk


def _plain(chunks: Iterator[bytes], limits: InflateLimits) -> Iterator[bytes]:  # noqa: ARG001 - one shape for all
    yield from chunks


def _gunzip(chunks: Iterator[bytes], limits: InflateLimits) -> Iterator[bytes]:  # noqa: ARG001 - one shape for all
    library = _deflate_library()
    errors: tuple[type[Exception], ...] = (zlib.error, getattr(library, "error", zlib.error))
    stream = _Members(lambda: library.decompressobj(wbits=_GZIP_WINDOW), "gzip", errors, bounded=True)
    return stream.pieces(_sliced(chunks, _GZIP_SLICE), lambda data: data.startswith(_GZIP))


def _unzstd(chunks: Iterator[bytes], limits: InflateLimits) -> Iterator[bytes]:
    import zstandard

    def frame() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=limits.window).decompressobj()

    stream = _Members(frame, "zstd", (zstandard.ZstdError,), bounded=False)
    return stream.pieces(_zstd_slices(_Feed(chunks)), lambda data: data.startswith((_ZSTD, *_ZSTD_SKIPPABLE)))


class _Members:
    """Inflate member (gzip) after member, frame (zstd) after frame; what follows the last one is let be.

    `bounded` says that the library's ``decompress`` takes a largest output. zstd's does not, so there the slices of
    input are cut to bound it.
    """

    def __init__(
        self, make: Callable[[], Any], name: str, errors: tuple[type[Exception], ...], *, bounded: bool
    ) -> None:
        self._make = make
        self._name = name
        self._errors = errors
        self._bound = (_STEP,) if bounded else ()
        self._member: Any = None

    def pieces(self, slices: Iterator[bytes], starts_member: Callable[[bytes], bool]) -> Iterator[bytes]:
        """The inflated bytes, piece by piece."""
        held = b""
        for chunk in slices:
            data = held + chunk if held else chunk
            held = b""
            while data:
                if self._member is None:
                    if len(data) < _NEED:
                        held = data
                        break
                    if not starts_member(data):
                        _drain(slices)
                        return
                    self._member = self._make()
                piece = self._step(data)
                if piece:
                    yield piece
                member = self._member
                if member.eof:
                    data, self._member = member.unused_data, None
                elif self._bound and len(piece) == _STEP and not member.unconsumed_tail:
                    yield from self._rest()
                    data = b""
                    if member.eof:
                        data, self._member = member.unused_data, None
                else:
                    data = member.unconsumed_tail
        if self._member is not None:
            raise CorruptContent(f"the layer's {self._name} data ends too early; pull the image again")

    def _rest(self) -> Iterator[bytes]:
        """What a member still holds after it took all of its input and filled a whole step."""
        while not self._member.eof and (piece := self._step(b"")):
            yield piece

    def _step(self, data: bytes) -> bytes:
        try:
            piece: bytes = self._member.decompress(data, *self._bound)
        except self._errors as problem:
            raise CorruptContent(
                f"the layer's {self._name} data is damaged ({problem}); pull the image again"
            ) from problem
        return piece


def _sliced(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in slices of at most `size`, so that what a member leaves over is cheap to keep."""
    for chunk in chunks:
        if len(chunk) <= size:
            yield chunk
        else:
            yield from (chunk[start : start + size] for start in range(0, len(chunk), size))


class _Feed:
    """Chunks as a stream of which exactly so many bytes can be taken."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._data = b""
        self._start = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        while len(self._data) - self._start < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            self._data = self._data[self._start :] + chunk
            self._start = 0
        start = self._start
        self._start = min(start + count, len(self._data))
        return self._data[start : self._start]


def _zstd_slices(feed: _Feed) -> Iterator[bytes]:
    """Cut a zstd stream between blocks, so that no slice makes more than `_ZSTD_BLOCKS` times 128 KiB.

    RFC 8878, section 3.1: a frame is magic, header, blocks, perhaps a checksum; a block's header of three bytes holds
    whether it is the last one, its type and its size, and no block regenerates more than 128 KiB. Nothing is judged
    here: what makes no sense is passed on for the library to refuse.
    """
    while magic := feed.take(4):
        if magic in _ZSTD_SKIPPABLE:
            size = feed.take(4)
            yield magic + size
            left = int.from_bytes(size, "little")
            while left > 0 and (piece := feed.take(min(left, _GZIP_SLICE))):
                left -= len(piece)
                yield piece
        elif magic == _ZSTD:
            yield from _frame_slices(feed, magic)
        else:
            yield magic
            while piece := feed.take(_GZIP_SLICE):
                yield piece


def _frame_slices(feed: _Feed, magic: bytes) -> Iterator[bytes]:
    descriptor = feed.take(1)
    flags = descriptor[0] if descriptor else 0
    single, checksum = flags & 0x20, flags & 0x04
    content_size = (1 if single else 0, 2, 4, 8)[flags >> 6]
    group = [magic, descriptor, feed.take((0 if single else 1) + (0, 1, 2, 4)[flags & 3] + content_size)]
    blocks, last = 0, 0
    while not last:
        head = feed.take(3)
        number = int.from_bytes(head, "little")
        last, kind, size = number & 1, (number >> 1) & 3, number >> 3
        group += [head, feed.take(1 if kind == _RLE_BLOCK else size)]
        blocks += 1
        if len(head) < 3:
            break
        if last and checksum:
            group.append(feed.take(4))
        if last or blocks % _ZSTD_BLOCKS == 0:
            yield b"".join(group)
            group = []
    if group:
        yield b"".join(group)


def _drain(chunks: Iterator[bytes]) -> None:
    """Let a source that counts or verifies see all of its bytes."""
    for _ in chunks:
        pass


def _deflate_library() -> ModuleType:
    """``isal`` where there is a wheel for it, else the standard library."""
    try:
        from isal import isal_zlib
    except ImportError:
        return zlib
    library: ModuleType = isal_zlib
    return library


@final
class _Hashing:
    """A digest computed beside everything else, in a thread fed by a short queue."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_QUEUED)
        self._thread = threading.Thread(target=self._work, name="nbcontainer-diff-id", daemon=True)

    def _work(self) -> None:
        while (piece := self._queue.get()) is not None:
            self._hash.update(piece)

    def update(self, piece: bytes) -> None:
        self._queue.put(piece)

    def digest(self) -> Digest:
        self._stop()
        return Digest("sha256", self._hash.hexdigest())

    def _stop(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def __enter__(self) -> _Hashing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()


_PIECES: dict[str, Callable[[Iterator[bytes], InflateLimits], Iterator[bytes]]] = {
    "none": _plain,
    "gzip": _gunzip,
    "zstd": _unzstd,
}
