"""What may go: blobs and snapshots that no name and no lease reaches.

`mark` decides and touches nothing; `sweep` acts on its answer. Both run under the store-wide lock held alone
(`lock_store(root, shared=False)`), and everything that adds content holds it shared, so a blob that is stored but
not yet named cannot be taken away. Snapshots are removed by a callback, because their files belong to ids that only
exist inside the user namespace they were written in.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import BlobNotFound, CorruptContent, InvalidImage
from nbcontainer.model import ImageConfig, Manifest, chain_ids
from nbcontainer.model.oci import DOCUMENT_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from nbcontainer.model import Digest
    from nbcontainer.store.content import BlobStore, ContentStore
    from nbcontainer.store.refs import ImageRecord

__all__ = ["PARTIAL_AGE", "Lease", "Reachable", "Swept", "mark", "sweep"]

PARTIAL_AGE = 7 * 24 * 3600.0
"""Seconds after which an unfinished download is no longer worth resuming."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Content somebody needs without having a name for it: a container's root, a build's cache."""

    blobs: frozenset[Digest] = frozenset()
    snapshots: frozenset[Digest] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reachable:
    """What must stay. `damaged` are records whose manifest or config could not be read."""

    blobs: frozenset[Digest]
    snapshots: frozenset[Digest]
    damaged: tuple[ImageRecord, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What went, and the bytes that freed."""

    blobs: tuple[Digest, ...] = ()
    snapshots: tuple[Digest, ...] = ()
    partials: int = 0
    freed: int = 0


def mark(
    records: Iterable[ImageRecord],
    leases: Iterable[Lease] = (),
    *,
    blobs: BlobStore,
    parent: Callable[[Digest], Digest | None],
) -> Reachable:
    """Walk from names and leases to everything they need.

    `parent` gives the chain id below a snapshot, None for a bottom one or an unknown one.
    """
    kept: set[Digest] = set()
    chains: set[Digest] = set()
    damaged = []
    for record in records:
        kept |= {record.target, record.manifest, record.config}
        try:
            kept |= _layer_blobs(record, blobs)
            chains |= _chains(record, blobs)
        except (BlobNotFound, CorruptContent, InvalidImage):
            damaged.append(record)
    for lease in leases:
        kept |= lease.blobs
        chains.update(*(_ancestry(chain, parent) for chain in lease.snapshots))
    return Reachable(blobs=frozenset(kept), snapshots=frozenset(chains), damaged=tuple(damaged))


def sweep(
    store: ContentStore,
    reachable: Reachable,
    *,
    snapshots: Iterable[Digest] = (),
    parent: Callable[[Digest], Digest | None],
    remove_snapshot: Callable[[Digest], int],
    partial_age: float = PARTIAL_AGE,
) -> Swept:
    """Remove what `reachable` does not hold, children before their parents.

    `remove_snapshot` removes one and says how many bytes that freed.
    """
    freed = 0
    doomed = _children_first((chain for chain in snapshots if chain not in reachable.snapshots), parent)
    for chain in doomed:
        freed += remove_snapshot(chain)
    loose = tuple(digest for digest in store.walk() if digest not in reachable.blobs)
    for digest in loose:
        freed += store.delete(digest)
    oldest = time.time() - partial_age
    stale = [partial for partial in store.partials() if partial.modified <= oldest]
    gone = [size for size in map(store.discard, stale) if size is not None]
    return Swept(blobs=loose, snapshots=doomed, partials=len(gone), freed=freed + sum(gone))


def _layer_blobs(record: ImageRecord, blobs: BlobStore) -> set[Digest]:
    manifest = Manifest.from_json(blobs.read(record.manifest, DOCUMENT_LIMIT))
    return {layer.digest for layer in manifest.layers}


def _chains(record: ImageRecord, blobs: BlobStore) -> set[Digest]:
    config = ImageConfig.from_json(blobs.read(record.config, DOCUMENT_LIMIT))
    return set(chain_ids(config.diff_ids))


def _ancestry(chain: Digest, parent: Callable[[Digest], Digest | None]) -> Iterator[Digest]:
    current: Digest | None = chain
    while current is not None:
        yield current
        current = parent(current)


def _children_first(chains: Iterable[Digest], parent: Callable[[Digest], Digest | None]) -> tuple[Digest, ...]:
    depth = {chain: sum(1 for _ in _ancestry(chain, parent)) for chain in chains}
    return tuple(sorted(depth, key=lambda chain: -depth[chain]))
