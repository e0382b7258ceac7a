"""Inflating: what is recognised, what is tolerated, what is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
import zstandard

from nbcontainer.errors import CorruptContent, InvalidImage
from nbcontainer.layers import compression
from nbcontainer.layers.compression import InflateLimits, decompress, inflate, sniff, write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.model import Compression

TEXT = b"".join(b"line %d of a layer\n" % number for number in range(60_000))
NOISE = os.urandom(300_000)


def chunks(data: bytes, size: int = 50_000) -> Iterator[bytes]:
    """The bytes as a registry sends them."""
    return (data[start : start + size] for start in range(0, len(data), size))


def packed(kind: str, data: bytes) -> bytes:
    """Data compressed as its kind says."""
    if kind == "gzip":
        return gzip.compress(data, 6)
    return zstandard.ZstdCompressor().compress(data) if kind == "zstd" else data


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds with isal and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(compression, "_deflate_library", lambda: zlib)


@pytest.mark.parametrize("kind", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("data", [b"", b"x", TEXT, NOISE], ids=["empty", "byte", "text", "noise"])
@pytest.mark.parametrize("size", [1000, 50_000, 10_000_000])
def test_every_compression_round_trips(kind: Compression, data: bytes, size: int) -> None:
    """The sink gets the bytes in order, and the digest names them."""
    blob = packed(kind, data)
    pieces: list[bytes] = []
    inflated = inflate(chunks(blob, size), sink=pieces.append)
    assert b"".join(pieces) == data
    assert inflated.diff_id.hex == hashlib.sha256(data).hexdigest()
    assert (inflated.size, inflated.compressed, inflated.compression) == (len(data), len(blob), kind)
    assert b"".join(decompress(chunks(blob, size))) == data


def test_bytes_decide_and_not_the_name() -> None:
    """Magic bytes tell gzip and zstd (skippable frames too), anything else is plain."""
    assert sniff(gzip.compress(b"")) == "gzip"
    assert sniff(b"\x28\xb5\x2f\xfd") == sniff(b"\x51\x2a\x4d\x18") == "zstd"
    assert sniff(b"etc/") == sniff(b"") == "none"


def test_one_byte_at_a_time() -> None:
    """Chunks may be as short as they like, in the magic too."""
    for kind in ("gzip", "zstd", "none"):
        assert b"".join(decompress(chunks(packed(kind, b"hello" * 50), 1))) == b"hello" * 50


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_members_one_after_another_are_one_layer(kind: str) -> None:
    """Concatenated members (estargz, pigz, pzstd) are read through, empty ones too."""
    parts = [b"one" * 1000, b"", TEXT, b"three"]
    blob = b"".join(packed(kind, part) for part in parts)
    for size in (7, 1000, 10_000_000):
        assert b"".join(decompress(chunks(blob, size))) == b"".join(parts)


def test_skippable_frames_are_skipped() -> None:
    """zstd:chunked puts metadata in skippable frames."""
    skip = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"stuff"
    blob = skip + packed("zstd", b"a" * 1000) + skip + packed("zstd", b"b") + skip
    assert b"".join(decompress(chunks(blob, 9))) == b"a" * 1000 + b"b"


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"garbage after the end" * 500, b"\x1f", b"\x28\xb5"])
def test_trailing_garbage_is_let_be(kind: str, garbage: bytes) -> None:
    """What follows the last member and is none changes nothing, but is counted as read."""
    blob = packed(kind, TEXT) + garbage
    inflated = inflate(chunks(blob), sink=lambda _: None)
    assert inflated.diff_id.hex == hashlib.sha256(TEXT).hexdigest()
    assert inflated.compressed == len(blob)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("lost", [1, 8, 1000, -12])
def test_truncated_data_is_refused(kind: str, lost: int) -> None:
    """A blob that ends inside a member, in its last byte or in its head, is no layer."""
    blob = packed(kind, NOISE)
    with pytest.raises(CorruptContent, match="ends too early"):
        inflate(chunks(blob[:-lost]), sink=lambda _: None)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_damaged_data_is_refused(kind: str) -> None:
    """A wrong byte is found by the format itself."""
    blob = bytearray(
        packed(kind, TEXT) if kind == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(TEXT)
    )
    blob[len(blob) // 2] ^= 0xFF
    with pytest.raises(CorruptContent, match="damaged"):
        inflate(chunks(bytes(blob)), sink=lambda _: None)


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_bomb_ends_at_the_cap(kind: str) -> None:
    """The cap on bytes ends it, in bounded memory for each step."""
    blob = packed(kind, bytes(60_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidImage, match="bomb"):
            inflate(chunks(blob), sink=lambda _: None, limits=InflateLimits(size=40_000_000))
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_an_absurd_ratio_is_refused() -> None:
    """Beyond a free allowance, a blob may not grow without bounds."""
    limits = InflateLimits(ratio=100, ratio_free=1_000_000)
    with pytest.raises(InvalidImage, match="bomb"):
        inflate(chunks(packed("gzip", bytes(50_000_000))), sink=lambda _: None, limits=limits)


def test_a_huge_zstd_window_is_refused() -> None:
    """A frame that asks for a window beyond the cap is refused before memory is spent."""
    parameters = zstandard.ZstdCompressionParameters(window_log=24, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = compressor.compress(NOISE) + compressor.flush()
    with pytest.raises(CorruptContent, match="damaged"):
        inflate(chunks(blob), sink=lambda _: None, limits=InflateLimits(window=1 << 20))


def test_errors_of_source_and_sink_pass_through() -> None:
    """A broken pipe or a broken connection is the caller's to see, and no thread is left behind."""

    def broken() -> Iterator[bytes]:
        yield packed("gzip", TEXT)[:5000]
        raise ConnectionError("gone")

    def full(_: bytes) -> None:
        raise BrokenPipeError

    with pytest.raises(ConnectionError):
        inflate(broken(), sink=lambda _: None)
    with pytest.raises(BrokenPipeError):
        inflate(chunks(packed("gzip", TEXT)), sink=full)


def test_write_all_writes_all() -> None:
    """Short writes to a full pipe are continued."""
    reader, writer = os.pipe()
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", "wc -c >/dev/null"],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_CLOSE, writer)],
    )
    os.close(reader)
    write_all(writer, NOISE * 4)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
