"""What builds remember: found while everything it names is there, whole or not at all."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.cache import BuildCache, MadeLayer
from nbcontainer.layers.overlay import OverlaySnapshotter
from nbcontainer.model import Descriptor, Digest, IdMap, IdRange
from nbcontainer.store import ContentStore

if TYPE_CHECKING:
    from pathlib import Path

MINE = IdMap(uids=(IdRange(0, os.geteuid(), 1),), gids=(IdRange(0, os.getegid(), 1),), method="single")
KEY = Digest.of(b"key")
CHAIN = Digest.of(b"chain")


class Shop:
    """A cache with a store and snapshots that are real."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "build"
        self.content = ContentStore(str(folder))
        self.snapshots = OverlaySnapshotter(str(folder), MINE)
        self.cache = BuildCache(str(self.folder), self.content, self.snapshots)

    def made(self, *, chain: Digest = CHAIN, unpacked: bool = True) -> MadeLayer:
        """A layer that is stored, and unpacked if asked."""
        data = b"layer of " + str(chain).encode()
        digest = self.content.put(data)
        if unpacked:
            self.snapshots.commit(self.snapshots.prepare(chain, None), sync=False)
        return MadeLayer(
            blob=Descriptor(media_type="application/x", digest=digest, size=len(data)),
            diff_id=Digest.of(b"diff"),
            chain=chain,
            created="2026-01-01T00:00:00Z",
            notices=("a note",),
        )

    def file(self) -> Path:
        """The one entry's file."""
        (found,) = (path for path in self.folder.rglob("*.json"))
        return found


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    """Lend an empty one."""
    return Shop(tmp_path)


def test_kept_and_found(shop: Shop) -> None:
    """What was kept is found again, by another cache of the same folder, too, and by no other key."""
    made = shop.made()
    assert shop.cache.find(KEY) is None
    shop.cache.keep(KEY, made)
    assert shop.cache.find(KEY) == made
    assert BuildCache(str(shop.folder), shop.content, shop.snapshots).find(KEY) == made
    assert shop.cache.find(Digest.of(b"other")) is None


def test_what_is_gone_is_not_found(shop: Shop) -> None:
    """An entry whose layer is not unpacked counts only for who does not need that; one without its blob for nobody."""
    made = shop.made(unpacked=False)
    shop.cache.keep(KEY, made)
    assert shop.cache.find(KEY) is None
    assert shop.cache.find(KEY, unpacked=False) == made
    shop.content.delete(made.blob.digest)
    assert shop.cache.find(KEY, unpacked=False) is None


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"5", b"{}", b"\xff", b"[" * 100_000, b'{"digest": 5}',
        b'{"media_type":"x","digest":"sha256:../../x","size":1,"diff_id":"x","chain":"y","created":"z","notices":[]}',
    ],
)  # fmt: skip
def test_broken_entries(shop: Shop, data: bytes) -> None:
    """An entry that cannot be read is none, for builds and for what must not be collected, and is replaced."""
    made = shop.made()
    shop.cache.keep(KEY, made)
    shop.file().write_bytes(data)
    assert shop.cache.find(KEY) is None
    assert shop.cache.lease().blobs == frozenset()
    shop.cache.keep(KEY, made)
    assert shop.cache.find(KEY) == made


def test_half_an_entry(shop: Shop) -> None:
    """Every beginning of an entry is no entry: a crash cannot make another one of it."""
    made = shop.made()
    shop.cache.keep(KEY, made)
    path = shop.file()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert shop.cache.find(KEY) is None


def test_no_half_entry_is_left(shop: Shop) -> None:
    """An entry is written aside: there is nothing in the folder but entries."""
    shop.cache.keep(KEY, shop.made())
    shop.cache.keep_word(KEY, "word")
    names = [name for _, _, files in os.walk(shop.folder) for name in files]
    assert sorted(names) == [f"{KEY.hex}.json", f"{KEY.hex}.word"]


def test_words(shop: Shop) -> None:
    """Texts are kept beside layers under the same key."""
    assert shop.cache.word(KEY) is None
    shop.cache.keep_word(KEY, "a \udcff word")
    assert shop.cache.word(KEY) == "a \udcff word"
    assert shop.cache.find(KEY) is None


def test_lease(shop: Shop) -> None:
    """Blobs and snapshots of every entry are held."""
    made = shop.made()
    shop.cache.keep(KEY, made)
    shop.cache.keep_word(Digest.of(b"x"), "word")
    lease = shop.cache.lease()
    assert (lease.blobs, lease.snapshots) == (frozenset({made.blob.digest}), frozenset({CHAIN}))


def test_clear(shop: Shop) -> None:
    """Everything is forgotten, or what was of no use since a moment; words do not count."""
    made = shop.made()
    old, new = Digest.of(b"old"), Digest.of(b"new")
    for key in (old, new):
        shop.cache.keep(key, made)
    shop.cache.keep_word(old, "word")
    for path in shop.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1000, 1000))
    assert shop.cache.find(new) == made  # which is of use
    assert shop.cache.clear(unused_since=2000) == 1
    assert shop.cache.find(old) is None
    assert shop.cache.find(new) == made
    assert shop.cache.clear() == 1
    assert shop.cache.clear() == 0
    assert shop.cache.find(new) is None


def test_many_write_the_same(shop: Shop) -> None:
    """Of several that keep the same key at once any one's is found, whole, while they do."""
    made = shop.made()
    shop.cache.keep(KEY, made)

    def work(number: int) -> bool:
        shop.cache.keep(KEY, made)
        return number < 0 or shop.cache.find(KEY) == made

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(200)))
