"""What the store holds, in bytes."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from nbcontainer._linux.idmaps import single_id_map
from nbcontainer.engine.disk import disk_usage
from nbcontainer.engine.records import ContainerRecords
from nbcontainer.images.library import Library
from nbcontainer.layers.overlay import OverlaySnapshotter
from nbcontainer.layers.snapshotter import Usage
from nbcontainer.model import ContainerId, Digest
from nbcontainer.store import ContentStore, RefStore, VolumeStore

if TYPE_CHECKING:
    from pathlib import Path


def test_disk_usage(tmp_path: Path) -> None:
    """Layers without a name are loose, those a container stands on are in use, and what nobody needs can go."""
    root = str(tmp_path)
    snapshots = OverlaySnapshotter(root, single_id_map(os.geteuid(), os.getegid()))
    library = Library(ContentStore(root), RefStore(root), snapshots)
    bottom, top, loose = (Digest.of(name) for name in (b"bottom", b"top", b"loose"))
    for chain, parent, size in ((bottom, None, 1000), (top, bottom, 20), (loose, None, 3)):
        snapshots.commit(snapshots.prepare(chain, parent), Usage(bytes=size, entries=1), sync=False)
    library.content.put(b"x" * 7)
    os.makedirs(f"{root}/containers", exist_ok=True)
    records = ContainerRecords(root, None)
    running = records.create(ContainerId("1" * 64), {"name": "", "chain": str(top)})
    ended = records.create(ContainerId("2" * 64), {"name": "n", "chain": str(top), "keep": True})
    ended.close()
    volumes = VolumeStore(root, ids="", owner=None, users=lambda: {"used": {"2" * 64: "n"}}, discard=shutil.rmtree)
    for name in ("used", "spare"):
        volumes.create(name)
        (tmp_path / "volumes" / name / "_data" / "file").write_text(name)
    usage = disk_usage(root, library, tuple(records.walk()), frozenset({top}), volumes)
    running.close()
    lines = {line.kind: line for line in usage.lines}
    assert (lines["Images"].count, lines["Images"].size) == (0, 0)
    assert (lines["Downloads"].count, lines["Downloads"].size) == (1, 7)
    assert (lines["Loose layers"].count, lines["Loose layers"].active, lines["Loose layers"].reclaimable) == (3, 2, 3)
    assert (lines["Containers"].count, lines["Containers"].active) == (2, 1)
    assert 0 < lines["Containers"].reclaimable <= lines["Containers"].size
    assert (lines["Volumes"].count, lines["Volumes"].active) == (2, 1)
    assert 0 < lines["Volumes"].reclaimable < lines["Volumes"].size
    assert 0 < usage.free <= usage.total
