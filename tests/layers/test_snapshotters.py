"""Both snapshotters, by one suite, and what is particular to each."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import StorageError
from nbcontainer.layers.native import NativeSnapshotter
from nbcontainer.layers.overlay import OverlaySnapshotter
from nbcontainer.layers.snapshotter import Snapshotter, Usage
from nbcontainer.model import Digest, IdMap, IdRange
from nbcontainer.testing.snapshotters import ONE, TWO, SnapshotterSuite, fill
from tests.layers.layer_tars import member, tar

if TYPE_CHECKING:
    from pathlib import Path

MINE = IdMap(uids=(IdRange(0, os.geteuid(), 1),), gids=(IdRange(0, os.getegid(), 1),), method="single")


class TestOverlay(SnapshotterSuite):
    """The default."""

    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> Snapshotter:
        """An empty store."""
        return OverlaySnapshotter(str(tmp_path), MINE)


class TestNative(SnapshotterSuite):
    """The one that copies."""

    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> Snapshotter:
        """An empty store."""
        return NativeSnapshotter(str(tmp_path), MINE)


def committed(snapshots: Snapshotter, chain: Digest, parent: Digest | None, data: bytes) -> None:
    active = snapshots.prepare(chain, parent)
    fill(active, data)
    snapshots.commit(active, Usage(bytes=1, entries=1), sync=False)


def test_an_overlay_lists_its_lowers_topmost_first(tmp_path: Path) -> None:
    """The order that overlayfs wants."""
    snapshots = OverlaySnapshotter(str(tmp_path), MINE)
    committed(snapshots, ONE, None, tar(member("a")))
    committed(snapshots, TWO, ONE, tar(member("b")))
    (mount,) = snapshots.mounts(TWO, upper="/u", work="/w")
    assert [os.listdir(lower) for lower in mount.lower] == [["b"], ["a"]]
    assert (mount.kind, mount.upper, mount.work) == ("overlay", "/u", "/w")


def test_a_native_root_is_a_copy(tmp_path: Path) -> None:
    """A container's writes do not reach the snapshot."""
    snapshots = NativeSnapshotter(str(tmp_path), MINE)
    committed(snapshots, ONE, None, tar(member("a", data=b"x")))
    upper = tmp_path / "upper"
    upper.mkdir()
    (mount,) = snapshots.mounts(ONE, upper=str(upper))
    (upper / "a").write_bytes(b"changed")
    assert (mount.kind, mount.source) == ("bind", str(upper))
    assert (tmp_path / snapshots.lowers(ONE)[0] / "a").read_bytes() == b"x"


def test_id_maps_and_kinds_do_not_mix(tmp_path: Path) -> None:
    """Files written under one map, or by one kind, mean nothing under another."""
    other = IdMap(uids=(IdRange(0, 5, 9),), gids=(IdRange(0, 5, 9),), method="helpers")
    committed(OverlaySnapshotter(str(tmp_path), MINE), ONE, None, tar())
    assert not NativeSnapshotter(str(tmp_path), MINE).has(ONE)
    assert not OverlaySnapshotter(str(tmp_path), other).has(ONE)


def test_removal_and_copying_are_the_callers(tmp_path: Path) -> None:
    """Recursive work goes through the callables, which know how to enter the namespace."""
    calls: list[tuple[str, ...]] = []

    def remove(path: str) -> None:
        calls.append(("remove",))
        os.rename(path, tmp_path / f"gone{len(calls)}")

    def copy(source: str, target: str) -> None:
        calls.append(("copy", source, target))

    snapshots = NativeSnapshotter(str(tmp_path), MINE, remove_tree=remove, copy_tree=copy)
    committed(snapshots, ONE, None, tar())
    active = snapshots.prepare(TWO, ONE)
    snapshots.abort(active)
    snapshots.remove(ONE)
    assert [call[0] for call in calls] == ["copy", "remove", "remove"]


def test_damaged_records_are_named(tmp_path: Path) -> None:
    """A record that cannot be read is an error naming the file."""
    snapshots = OverlaySnapshotter(str(tmp_path), MINE)
    committed(snapshots, ONE, None, tar())
    record = next(tmp_path.rglob("snapshot.json"))
    for text in ("", "[]", '{"parent": "sha256:../..", "bytes": 0, "entries": 0}', '{"parent": null}'):
        record.write_text(text)
        with pytest.raises(StorageError, match=r"snapshot\.json is damaged"):
            snapshots.usage(ONE)


def test_circles_of_parents_end(tmp_path: Path) -> None:
    """Records that name each other are an error and not a hang."""
    snapshots = OverlaySnapshotter(str(tmp_path), MINE)
    committed(snapshots, ONE, None, tar())
    record = next(tmp_path.rglob("snapshot.json"))
    record.write_text(json.dumps({"parent": str(ONE), "bytes": 0, "entries": 0}))
    with pytest.raises(StorageError, match="circle"):
        snapshots.lowers(ONE)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root may give files away")
def test_container_root_owns_what_it_fills(tmp_path: Path) -> None:
    """As root, the directory to fill belongs to the outside id of container root."""
    idmap = IdMap(uids=(IdRange(0, 100_000, 65536),), gids=(IdRange(0, 200_000, 65536),), method="privileged")
    snapshots = OverlaySnapshotter(str(tmp_path), idmap)
    active = snapshots.prepare(ONE, None)
    status = os.stat(active.fs)
    snapshots.abort(active)
    assert (status.st_uid, status.st_gid) == (100_000, 200_000)
