"""Keys of steps, and what is remembered under them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.cache import BuildCache, MadeLayer
from nbcontainer.build.failure import FailedStepStore
from nbcontainer.build.keys import step_key
from nbcontainer.build.request import FailedStep
from nbcontainer.layers.overlay import OverlaySnapshotter
from nbcontainer.model import Descriptor, Digest, IdMap, IdRange, Mount
from nbcontainer.store import ContentStore

if TYPE_CHECKING:
    from pathlib import Path


def test_keys_differ_by_every_part():
    """Kind, parent and each part have a say; the order of parts has none."""
    one = step_key("run", Digest.of(b"p"), a=1, b=[2])
    assert one == step_key("run", Digest.of(b"p"), b=[2], a=1)
    others = {
        step_key("copy", Digest.of(b"p"), a=1, b=[2]),
        step_key("run", None, a=1, b=[2]),
        step_key("run", Digest.of(b"p"), a=2, b=[2]),
        step_key("run", Digest.of(b"p"), a=1, b=[2, 3]),
    }
    assert one not in others
    assert len(others) == 4


@pytest.fixture
def cache(tmp_path: Path):
    """Lend a cache over an empty store."""
    ids = IdMap(
        method="own", uids=(IdRange(inside=0, outside=0, length=1),), gids=(IdRange(inside=0, outside=0, length=1),)
    )
    content = ContentStore(str(tmp_path))
    snapshots = OverlaySnapshotter(str(tmp_path), ids)
    return BuildCache(str(tmp_path / "build"), content, snapshots), content, snapshots


def test_an_entry_lives_as_long_as_its_layer(cache):
    """What was kept is found while blob and snapshot are there, and is a lease on both."""
    remembered, content, snapshots = cache
    blob = content.put(b"layer")
    chain = Digest.of(b"chain")
    made = MadeLayer(
        blob=Descriptor(media_type="x", digest=blob, size=5),
        diff_id=Digest.of(b"diff"),
        chain=chain,
        created="2026-01-01T00:00:00Z",
        notices=("n",),
    )
    key = Digest.of(b"key")
    remembered.keep(key, made)
    assert remembered.find(key) is None
    assert remembered.find(key, unpacked=False) == made
    snapshots.commit(snapshots.prepare(chain, None), sync=False)
    assert remembered.find(key) == made
    assert remembered.lease().blobs == {blob}
    assert remembered.lease().snapshots == {chain}
    content.delete(blob)
    assert remembered.find(key) is None
    assert remembered.clear() == 1
    assert remembered.lease().blobs == frozenset()


def test_damage_is_a_miss(cache, tmp_path: Path):
    """A record that cannot be read is none; words are kept beside layers."""
    remembered, _, _ = cache
    key = Digest.of(b"key")
    path = tmp_path / "build/cache" / key.hex[:2] / f"{key.hex}.json"
    path.parent.mkdir(parents=True)
    for text in ("", "[]", "{", '{"digest": 3}', '{"media_type": "", "digest": "sha256:x", "size": 1}'):
        path.write_text(text)
        assert remembered.find(key) is None
        assert remembered.lease().blobs == frozenset()
    assert remembered.word(key) is None
    remembered.keep_word(key, "text")
    assert remembered.word(key) == "text"


def test_only_what_was_of_no_use_goes(cache):
    """A prune by age leaves what was used since."""
    remembered, _, _ = cache
    remembered.keep_word(Digest.of(b"a"), "x")
    assert remembered.clear(unused_since=1.0) == 0
    assert remembered.word(Digest.of(b"a")) == "x"


def test_failed_step_is_read_back(tmp_path: Path):
    """A failed step is the same when it is read, is a lease on its files, and damage is none."""
    store = FailedStepStore(str(tmp_path))
    assert store.get() is None
    step = FailedStep(
        text="RUN x",
        line=3,
        stage="",
        code=1,
        before=Digest.of(b"a"),
        after=Digest.of(b"b"),
        variables=("A=1",),
        directory="/",
        user="",
        network="none",
        command=("x",),
        mounts=("cache at /c",),
        shown=(Mount(kind="bind", target="/c", source="/x"),),
    )
    store.put(step)
    assert store.get() == step
    assert store.lease().snapshots == {step.before, step.after}
    (tmp_path / "failed.json").write_text('{"text": 1}')
    assert store.get() is None
    store.forget()
    store.forget()
