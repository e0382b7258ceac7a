"""What every content store must do, as one suite, and the store in memory that proves the seam.

Subclass `ContentStoreSuite` and give a `blobs` fixture.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, BinaryIO

import pytest

from nbcontainer.errors import BlobNotFound, CorruptContent
from nbcontainer.model import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.store import BlobStore

__all__ = ["ContentStoreSuite", "MemoryStore"]

MISSING = Digest.of(b"never stored")


class MemoryStore:
    """A `BlobStore` that forgets: for tests of what stands on one."""

    def __init__(self) -> None:
        self.blobs: dict[Digest, bytes] = {}

    def put(self, data: bytes) -> Digest:
        """Keep it."""
        digest = Digest.of(data)
        self.blobs[digest] = data
        return digest

    def open(self, digest: Digest) -> BinaryIO:
        """A reader over a copy."""
        return io.BytesIO(self._get(digest))

    def read(self, digest: Digest, limit: int) -> bytes:
        """The content, within the limit."""
        data = self._get(digest)
        if len(data) > limit or Digest.of(data, digest.algorithm) != digest:
            raise CorruptContent(f"blob {digest} is not what it should be")
        return data

    def has(self, digest: Digest) -> bool:
        """Whether it was put."""
        return digest in self.blobs

    def size(self, digest: Digest) -> int:
        """Its bytes."""
        return len(self._get(digest))

    def delete(self, digest: Digest) -> int:
        """Forget it."""
        return len(self.blobs.pop(digest, b""))

    def walk(self) -> Iterator[Digest]:
        """All of them."""
        return iter(tuple(self.blobs))

    def _get(self, digest: Digest) -> bytes:
        try:
            return self.blobs[digest]
        except KeyError as problem:
            raise BlobNotFound(f"blob {digest} is not here") from problem


class ContentStoreSuite:
    """The promises of `nbcontainer.store.BlobStore`."""

    def test_what_was_put_is_there(self, blobs: BlobStore) -> None:
        """Put, has, size, read and open agree; an empty blob is a blob."""
        for data in (b"hello", b"", b"x" * 3_000_000):
            digest = blobs.put(data)
            assert digest == Digest.of(data)
            assert blobs.has(digest)
            assert blobs.size(digest) == len(data)
            assert blobs.read(digest, len(data)) == data
            with blobs.open(digest) as file:
                assert file.read() == data

    def test_putting_twice_is_putting_once(self, blobs: BlobStore) -> None:
        """Success means that it is stored."""
        assert blobs.put(b"twice") == blobs.put(b"twice")
        assert list(blobs.walk()) == [Digest.of(b"twice")]

    def test_what_is_missing_is_not_found(self, blobs: BlobStore) -> None:
        """Each way of asking says so."""
        assert not blobs.has(MISSING)
        assert blobs.delete(MISSING) == 0
        for ask in (blobs.open, blobs.size):
            with pytest.raises(BlobNotFound):
                ask(MISSING)
        with pytest.raises(BlobNotFound):
            blobs.read(MISSING, 10)

    def test_reading_is_bounded(self, blobs: BlobStore) -> None:
        """A document larger than it may be is refused."""
        digest = blobs.put(b"0123456789")
        with pytest.raises(CorruptContent):
            blobs.read(digest, 9)

    def test_deletion_frees(self, blobs: BlobStore) -> None:
        """It says how many bytes, and leaves the others."""
        one, two = blobs.put(b"one"), blobs.put(b"three")
        assert blobs.delete(two) == 5
        assert not blobs.has(two)
        assert list(blobs.walk()) == [one]
