"""What every snapshotter must do, as one suite: subclass it and give a `snapshots` fixture.

For example::

    class TestMine(SnapshotterSuite):
        @pytest.fixture
        def snapshots(self, tmp_path):
            return MySnapshotter(str(tmp_path), idmap)

The suite fills layers through `apply`, as pulls do, and looks at them through `lowers`, so it needs no mount and no
privileges.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import Conflict, NotFound
from nbcontainer.layers import snapshotter
from nbcontainer.layers.apply import apply
from nbcontainer.layers.snapshotter import Usage
from nbcontainer.model import Digest

if TYPE_CHECKING:
    from nbcontainer.layers.snapshotter import ActiveLayer, Snapshotter

__all__ = ["SnapshotterSuite", "fill", "visible"]

ONE, TWO, THREE = (Digest.of(name) for name in (b"one", b"two", b"three"))


def fill(active: ActiveLayer, layer: bytes) -> None:
    """Apply a tar in memory to an active layer, as the caller itself."""
    with ExitStack() as stack:
        stream = os.memfd_create("layer")
        stack.callback(os.close, stream)
        os.write(stream, layer)
        os.lseek(stream, 0, os.SEEK_SET)
        fds = []
        for path in (active.fs, *active.lowers):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
            stack.callback(os.close, fds[-1])
        apply(stream, fds[0], parents=fds[1:], owners=False, flat=active.flat)


def visible(snapshots: Snapshotter, chain: Digest) -> set[str]:
    """The names of files that a mount of the chain would show; whiteouts of whole names only."""
    seen: dict[str, bool] = {}
    for lower in snapshots.lowers(chain):
        for directory, _, files in os.walk(lower):
            for name in files:
                path = os.path.join(directory, name)
                seen.setdefault(os.path.relpath(path, lower), os.path.isfile(path))
    return {name for name, is_file in seen.items() if is_file}


def _layer(*names: str) -> bytes:
    """A tar of empty files, by hand: ustar needs no more than names."""
    blocks = []
    for name in names:
        head = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % 0 * 2
        block = (head + b" " * 8 + b"0" + bytes(100) + b"ustar\x0000").ljust(512, b"\0")
        blocks.append(block[:148] + b"%06o\0 " % sum(block) + block[156:])
    return b"".join(blocks) + bytes(1024)


class SnapshotterSuite:
    """The promises of `nbcontainer.layers.snapshotter.Snapshotter`."""

    def commit(self, snapshots: Snapshotter, chain: Digest, parent: Digest | None, *names: str) -> None:
        """One whole life."""
        active = snapshots.prepare(chain, parent)
        fill(active, _layer(*names))
        snapshots.commit(active, Usage(bytes=len(names), entries=len(names)), sync=False)

    def test_nothing_is_there_before_commit(self, snapshots: Snapshotter) -> None:
        """An active layer is invisible; committed, it is there."""
        active = snapshots.prepare(ONE, None)
        fill(active, _layer("a"))
        assert not snapshots.has(ONE)
        assert list(snapshots.walk()) == []
        snapshots.commit(active, Usage(bytes=7, entries=1))
        assert snapshots.has(ONE)
        assert list(snapshots.walk()) == [ONE]
        assert snapshots.usage(ONE) == Usage(bytes=7, entries=1)
        assert visible(snapshots, ONE) == {"a"}

    def test_a_chain_shows_all_of_its_layers(self, snapshots: Snapshotter) -> None:
        """What is below shows, what was whited out does not."""
        self.commit(snapshots, ONE, None, "a", "b", "d/x")
        self.commit(snapshots, TWO, ONE, "c", ".wh.b")
        self.commit(snapshots, THREE, TWO, "d/y", ".wh.c")
        assert visible(snapshots, ONE) == {"a", "b", "d/x"}
        assert visible(snapshots, TWO) == {"a", "c", "d/x"}
        assert visible(snapshots, THREE) == {"a", "d/x", "d/y"}
        assert (snapshots.parent(THREE), snapshots.parent(ONE)) == (TWO, None)

    def test_a_layer_is_applied_against_its_parents(self, snapshots: Snapshotter) -> None:
        """Either the parents are given as lowers, or they are in the directory already."""
        self.commit(snapshots, ONE, None, "a")
        active = snapshots.prepare(TWO, ONE)
        try:
            assert bool(active.lowers) != active.flat
            assert os.path.exists(os.path.join(active.fs, "a")) == active.flat
        finally:
            snapshots.abort(active)

    def test_abort_leaves_nothing(self, snapshots: Snapshotter) -> None:
        """An aborted layer is gone, aborting twice or after commit is nothing, and it can be prepared again."""
        active = snapshots.prepare(ONE, None)
        fill(active, _layer("a"))
        snapshots.abort(active)
        snapshots.abort(active)
        assert not os.path.exists(active.path)
        assert not snapshots.has(ONE)
        again = snapshots.prepare(ONE, None)
        snapshots.commit(again, sync=False)
        snapshots.abort(again)
        assert snapshots.has(ONE)

    def test_what_is_there_is_not_made_again(self, snapshots: Snapshotter) -> None:
        """Preparing a committed chain is a conflict, on a missing parent an error."""
        self.commit(snapshots, ONE, None, "a")
        with pytest.raises(Conflict):
            snapshots.prepare(ONE, None)
        with pytest.raises(NotFound):
            snapshots.prepare(THREE, TWO)

    def test_two_may_unpack_the_same_layer(self, snapshots: Snapshotter) -> None:
        """The first commit wins, the second is content with it, and no work is left over."""
        first, second = snapshots.prepare(ONE, None), snapshots.prepare(ONE, None)
        assert first.path != second.path
        fill(first, _layer("a"))
        fill(second, _layer("a"))
        snapshots.commit(second, sync=False)
        snapshots.commit(first, sync=False)
        assert visible(snapshots, ONE) == {"a"}
        assert not os.path.exists(first.path)
        assert snapshots.reap() == 0

    def test_many_threads_agree(self, snapshots: Snapshotter) -> None:
        """Racing commits of one chain leave one snapshot."""

        def unpack(_: int) -> bool:
            try:
                self.commit(snapshots, ONE, None, "a", "b")
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(6) as pool:
            assert any(pool.map(unpack, range(12)))
        assert visible(snapshots, ONE) == {"a", "b"}
        assert snapshots.reap() == 0

    def test_removal_frees_and_forgets(self, snapshots: Snapshotter) -> None:
        """A removed snapshot is gone, says what it took, and removing it again is nothing."""
        self.commit(snapshots, ONE, None, "a", "b")
        (lower,) = snapshots.lowers(ONE)
        assert snapshots.remove(ONE) == 2
        assert snapshots.remove(ONE) == 0
        assert not os.path.exists(lower)
        assert not snapshots.has(ONE)
        with pytest.raises(NotFound):
            snapshots.lowers(ONE)
        with pytest.raises(NotFound):
            snapshots.usage(ONE)

    def test_reaping_spares_the_living(self, snapshots: Snapshotter) -> None:
        """A layer whose maker died is removed, one that is being made is not."""
        dead, living = snapshots.prepare(ONE, None), snapshots.prepare(TWO, None)
        fill(dead, _layer("a"))
        dead.lock.release()  # what the kernel does when a process dies
        assert snapshots.reap() == 1
        assert not os.path.exists(dead.path)
        assert os.path.exists(living.fs)
        snapshots.abort(living)

    def test_reaped_before_it_was_locked(self, snapshots: Snapshotter, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever reaps between the making of a directory and its lock costs the maker a second try, and no more."""
        lock = snapshotter.HeldLock

        def late(path: str) -> snapshotter.HeldLock:
            monkeypatch.setattr(snapshotter, "HeldLock", lock)
            held = lock(path)
            os.rmdir(path)
            return held

        monkeypatch.setattr(snapshotter, "HeldLock", late)
        active = snapshots.prepare(ONE, None)
        assert os.path.isdir(active.fs)
        snapshots.abort(active)

    def test_mounts_are_data(self, snapshots: Snapshotter, tmp_path_factory: pytest.TempPathFactory) -> None:
        """Writable with an upper, read-only without, and the snapshot itself is never what is written to."""
        self.commit(snapshots, ONE, None, "a")
        self.commit(snapshots, TWO, ONE, "b")
        upper, work = (str(tmp_path_factory.mktemp(name)) for name in ("upper", "work"))
        (view,) = snapshots.mounts(TWO)
        (root,) = snapshots.mounts(TWO, upper=upper, work=work)
        assert (view.target, view.read_only) == ("/", True)
        assert (root.target, root.read_only) == ("/", False)
        written = root.upper if root.kind == "overlay" else root.source
        assert written == upper
        assert set(snapshots.lowers(TWO)) <= {*root.lower, *snapshots.lowers(TWO)}
