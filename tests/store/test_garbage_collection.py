"""What stays and what goes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.model import Digest, Reference, chain_ids
from nbcontainer.store import ContentStore, ImageRecord, Lease, mark, sweep

if TYPE_CHECKING:
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    """An empty store."""
    return ContentStore(str(tmp_path))


def image(store: ContentStore, name: str, *layers: bytes) -> tuple[ImageRecord, tuple[Digest, ...]]:
    """Store an image whose layers are these bytes, and give its record and chains."""
    diff_ids = tuple(Digest.of(b"tar of " + layer) for layer in layers)
    rootfs = {"type": "layers", "diff_ids": [str(each) for each in diff_ids]}
    config = store.put(json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs, "name": name}).encode())
    blobs = [{"mediaType": LAYER, "digest": str(store.put(layer)), "size": len(layer)} for layer in layers]
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": str(config), "size": store.size(config)},
        "layers": blobs,
    }
    manifest = store.put(json.dumps(document).encode())
    record = ImageRecord(
        reference=Reference.parse(name), target=manifest, manifest=manifest, config=config, pulled_at=0, size=0
    )
    return record, chain_ids(diff_ids)


def test_what_no_name_reaches_goes(store: ContentStore) -> None:
    """Shared layers stay with the image that is still named; the other's own go, children first."""
    kept, kept_chains = image(store, "kept", b"base", b"mine")
    gone, gone_chains = image(store, "gone", b"base", b"theirs", b"top")
    before = sum(store.size(digest) for digest in store.walk())
    chains = [*gone_chains, *kept_chains[1:]]
    parents = dict(zip((*kept_chains, *gone_chains), (None, kept_chains[0], None, *gone_chains[:2]), strict=True))
    removed: list[Digest] = []

    def remove(chain: Digest) -> int:
        removed.append(chain)
        return 1000

    reachable = mark([kept], blobs=store, parent=parents.get)
    swept = sweep(store, reachable, snapshots=chains, parent=parents.get, remove_snapshot=remove)
    assert removed == [gone_chains[2], gone_chains[1]] == list(swept.snapshots)
    assert set(swept.blobs) >= {gone.manifest, gone.config, Digest.of(b"theirs"), Digest.of(b"top")}
    assert all(store.has(digest) for digest in (kept.manifest, kept.config, Digest.of(b"base"), Digest.of(b"mine")))
    assert swept.freed == 2000 + before - sum(store.size(digest) for digest in store.walk())


def test_leases_keep_what_has_no_name(store: ContentStore) -> None:
    """A container's root keeps its chain and all below; a lease of blobs keeps those."""
    record, chains = image(store, "gone", b"base", b"top")
    parents = dict(zip(chains, (None, *chains), strict=False))
    lease = Lease(blobs=frozenset({record.config}), snapshots=frozenset({chains[1]}))
    reachable = mark([], [lease], blobs=store, parent=parents.get)
    assert reachable.snapshots == set(chains)
    swept = sweep(store, reachable, snapshots=chains, parent=parents.get, remove_snapshot=lambda _: 0)
    assert swept.snapshots == ()
    assert list(store.walk()) == [record.config]


def test_a_damaged_image_does_not_stop_the_rest(store: ContentStore) -> None:
    """Its record is reported, the others are marked as ever."""
    good, _ = image(store, "good", b"one")
    bad, _ = image(store, "bad", b"two")
    os.unlink(store.path(bad.manifest))
    reachable = mark([good, bad], blobs=store, parent=lambda _: None)
    assert reachable.damaged == (bad,)
    assert Digest.of(b"one") in reachable.blobs
    assert bad.config in reachable.blobs


def test_old_partials_go_and_young_ones_stay(store: ContentStore) -> None:
    """An unfinished download is kept for a while, and never taken from who is writing it."""
    for name in (b"old", b"young"):
        with store.ingest(Digest.of(name), 100) as ingest:
            ingest.write(name)
    running = store.ingest(Digest.of(b"running"), 100)
    with running:
        running.write(b"x")
        for partial in store.partials():
            if Digest.of(b"young").hex not in partial.path:
                os.utime(partial.path, (0, 0))
        nothing = mark([], blobs=store, parent=lambda _: None)
        swept = sweep(store, nothing, parent=lambda _: None, remove_snapshot=lambda _: 0)
    assert swept.freed == 3
    assert swept.partials == 1
    assert {os.path.basename(partial.path) for partial in store.partials()} == {
        f"sha256-{Digest.of(name).hex}" for name in (b"young", b"running")
    }
