"""Blobs: in, verified, resumed, shared, and whole after a kill."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import CorruptContent, StorageError
from nbcontainer.model import Digest
from nbcontainer.store import BlobStore, ContentStore, content
from nbcontainer.testing.contentstores import ContentStoreSuite, MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

DATA = bytes(range(256)) * 1000
DIGEST = Digest.of(DATA)


class TestOnDisk(ContentStoreSuite):
    """The one that ships."""

    @pytest.fixture
    def blobs(self, tmp_path: Path) -> BlobStore:
        """An empty store."""
        return ContentStore(str(tmp_path / "store"))


class TestInMemory(ContentStoreSuite):
    """The one for tests."""

    @pytest.fixture
    def blobs(self) -> BlobStore:
        """An empty store."""
        return MemoryStore()


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    """An empty store."""
    return ContentStore(str(tmp_path / "store"))


def take_in(store: ContentStore, data: bytes = DATA, digest: Digest = DIGEST) -> None:
    with store.ingest(digest, len(data)) as ingest:
        if not ingest.exists:
            ingest.write(data[ingest.offset :])
        ingest.commit()


def test_nothing_is_there_before_commit(store: ContentStore) -> None:
    """A blob appears whole, under its final name, or not at all."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA)
        assert not store.has(DIGEST)
        assert list(store.walk()) == []
        assert ingest.commit() == DIGEST
        assert ingest.commit() == DIGEST
    assert store.has(DIGEST)
    assert list(store.partials()) == []


def test_the_store_is_closed_to_other_users(store: ContentStore) -> None:
    """Layers may hold setuid files, so nobody else may walk in (CVE-2021-41091); an open root is closed again."""
    take_in(store)
    assert stat.S_IMODE(os.stat(store.root).st_mode) == 0o700
    os.chmod(store.root, 0o755)
    store.put(b"more")
    assert stat.S_IMODE(os.stat(store.root).st_mode) == 0o700


def test_wrong_bytes_are_not_stored(store: ContentStore) -> None:
    """Other content of the right length is refused and thrown away."""
    with pytest.raises(CorruptContent, match="other content"):
        take_in(store, b"\xff" * len(DATA))
    assert not store.has(DIGEST)
    assert list(store.partials()) == []


def test_too_many_bytes_are_refused_at_once(store: ContentStore) -> None:
    """A server that sends more than announced is cut off before the disk is full."""
    with store.ingest(DIGEST, 10) as ingest, pytest.raises(CorruptContent, match="more were sent"):
        ingest.write(DATA)
    assert list(store.partials()) == []


def test_too_few_bytes_are_kept_for_later(store: ContentStore) -> None:
    """A short transfer is an error that can be resumed, with the hash fed again."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:1000])
        with pytest.raises(CorruptContent, match="ended after 1000"):
            ingest.commit()
    with store.ingest(DIGEST, len(DATA)) as ingest:
        assert ingest.offset == 1000
        ingest.write(memoryview(DATA)[1000:])
        ingest.commit()
    assert store.read(DIGEST, len(DATA)) == DATA


def test_a_resume_over_garbage_is_noticed(store: ContentStore) -> None:
    """What an earlier ingest left is verified with the rest; the next try starts over."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(b"garbage")
    with pytest.raises(CorruptContent):
        take_in(store)
    take_in(store)
    assert store.has(DIGEST)


def test_a_resume_can_be_declined(store: ContentStore) -> None:
    """When the server sends no range, the ingest starts at byte 0."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(b"left over")
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.restart()
        assert ingest.offset == 0
        ingest.write(DATA)
        ingest.commit()
    assert store.read(DIGEST, len(DATA)) == DATA


def test_an_overlong_partial_is_dropped(store: ContentStore) -> None:
    """A partial file longer than the blob cannot be part of it."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:100])
    with store.ingest(DIGEST, 50) as ingest:
        assert ingest.offset == 0


def test_abort_keeps_or_discards(store: ContentStore) -> None:
    """Leaving keeps the partial file, discarding removes it, both are safe twice."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:10])
        ingest.abort()
        ingest.abort()
    assert [partial.size for partial in store.partials()] == [10]
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.abort(discard=True)
        ingest.abort(discard=True)
    assert list(store.partials()) == []


def test_the_second_of_two_waits_and_finds_it_there(store: ContentStore) -> None:
    """Two pulls of one blob write it once."""
    seen: list[bool] = []

    def second() -> None:
        with store.ingest(DIGEST, len(DATA)) as ingest:
            seen.append(ingest.exists)
            ingest.commit()

    with store.ingest(DIGEST, len(DATA)) as ingest:
        thread = threading.Thread(target=second)
        thread.start()
        ingest.write(DATA)
        thread.join(0.1)
        assert thread.is_alive()
        ingest.commit()
    thread.join()
    assert seen == [True]
    assert list(store.partials()) == []


def test_the_second_takes_over_when_the_first_gives_up(store: ContentStore) -> None:
    """After a discarded ingest the one waiting locks the new file and not the removed one."""
    done: list[int] = []

    def second() -> None:
        with store.ingest(DIGEST, len(DATA)) as ingest:
            done.append(ingest.offset)
            ingest.write(DATA)
            ingest.commit()

    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(b"wrong")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        ingest.abort(discard=True)
    thread.join()
    assert done == [0]
    assert store.has(DIGEST)


def test_many_threads_write_one_blob_once(store: ContentStore) -> None:
    """Racing ingests end with one good blob and nothing beside it."""
    threads = [threading.Thread(target=take_in, args=(store,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(DIGEST, len(DATA)) == DATA
    assert list(store.partials()) == []


def test_a_killed_ingest_leaves_a_consistent_store(store: ContentStore) -> None:
    """SIGKILL in the middle: the blob is not there, the lock is free, and the rest can be fetched."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(content.__file__)))
    code = f"""if True:
        import sys, time
        sys.path.insert(0, {package!r})
        from nbcontainer.store import ContentStore
        from nbcontainer.model import Digest
        store = ContentStore({store.root!r})
        with store.ingest(Digest.parse({str(DIGEST)!r}), {len(DATA)}) as ingest:
            ingest.write((bytes(range(256)) * 1000)[:100_000])
            print("half", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not store.has(DIGEST)
    with store.ingest(DIGEST, len(DATA)) as ingest:
        assert ingest.offset == 100_000
        ingest.write(DATA[100_000:])
        ingest.commit()
    assert store.read(DIGEST, len(DATA)) == DATA


def test_killed_between_sync_and_rename(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete partial file that was never renamed is taken up without a byte of network."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        take_in(store)
    monkeypatch.undo()
    assert not store.has(DIGEST)
    with store.ingest(DIGEST, len(DATA)) as ingest:
        assert ingest.offset == len(DATA)
        ingest.commit()
    assert store.has(DIGEST)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, r"disk holding .* is full \(.* free\).*%container df.*NBCONTAINER_ROOT"),
        (errno.EDQUOT, "quota.*%container df"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not use"),
        (errno.EIO, "check that disk"),
    ],
)
def test_trouble_with_the_disk_is_one_sentence(
    store: ContentStore, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    """What, why and what to do; the operating system's error stays as the cause."""

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StorageError, match=words) as caught:
        take_in(store)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_blob_changed_on_disk_is_noticed(store: ContentStore) -> None:
    """Documents are verified again when they are read."""
    take_in(store)
    os.chmod(store.path(DIGEST), 0o600)
    with open(store.path(DIGEST), "r+b") as file:
        file.write(b"edited")
    with pytest.raises(CorruptContent, match="changed on disk"):
        store.read(DIGEST, len(DATA))


def test_other_files_are_not_blobs(store: ContentStore) -> None:
    """Names that are no digests are passed over, and other algorithms are digests."""
    take_in(store)
    long = Digest.of(DATA, "sha512")
    with store.ingest(long, len(DATA)) as ingest:
        ingest.write(DATA)
        ingest.commit()
    for name in ("README", "A" * 64, "0" * 63):
        with open(os.path.join(store.root, "blobs", "sha256", name), "w", encoding="ascii"):
            pass
    assert set(store.walk()) == {DIGEST, long}


def test_discarding_spares_a_running_ingest(store: ContentStore) -> None:
    """An unfinished ingest that somebody is writing is not garbage."""
    with store.ingest(DIGEST, len(DATA)) as ingest:
        ingest.write(DATA[:10])
        (partial,) = store.partials()
        assert store.discard(partial) is None
        ingest.write(DATA[10:])
        ingest.commit()
    assert store.discard(partial) is None
    assert store.has(DIGEST)
