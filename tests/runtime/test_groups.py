"""The cgroups of a container with limits, on fake file systems of every layout."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.cgroups import ASIDE, INSIDE, CgroupRefusal
from nbcontainer.errors import UnsupportedHost
from nbcontainer.model import ContainerId, Limits
from nbcontainer.runtime.groups import Verdict, make_group, open_controller, ours
from nbcontainer.testing.cgroupfs import FakeCgroups

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from nbcontainer.runtime.groups import Group

ID = ContainerId("ab" * 32)
MIB = 1 << 20
EVERYTHING = frozenset({"memory", "cpu", "cpuset", "pids"})
NAME = f"nbcontainer-{os.getpid()}-{ID[:12]}"


@pytest.fixture
def v2(tmp_path: Path) -> FakeCgroups:
    """Lend a tree of v2, seen from its top by root."""
    return FakeCgroups(str(tmp_path), 2, EVERYTHING)


class V1:
    """A tree for each controller, as `CgroupFiles` in one."""

    def __init__(self, folder: Path) -> None:
        self.trees = {}
        for name in sorted(EVERYTHING):
            (folder / name).mkdir()
            self.trees[name] = FakeCgroups(str(folder / name), 1, frozenset({name}))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(path: str, *rest: str) -> Any:
            tree = next(tree for tree in self.trees.values() if path.startswith(f"{tree.point}/"))
            return getattr(tree, method)(path, *rest)

        return call


def made(files: Any, limits: Limits, *, pids: int | None = 4096, **more: Any) -> Group:
    """A group for these limits."""
    trees = files.trees.values() if isinstance(files, V1) else [files]
    group = make_group(ID, limits, tuple(tree.hierarchy() for tree in trees), pids=pids, files=files, **more)
    assert group is not None
    return group


def test_unified(v2: FakeCgroups) -> None:
    """On v2 one folder has every limit, the usual one on processes too; the leaf shows them."""
    group = made(v2, Limits(memory=64 * MIB, cpus=0.5))
    assert group.folders == (f"{v2.point}/{NAME}",)
    for folder in (group.folders[0], f"{group.folders[0]}/{INSIDE}"):
        assert v2.read(f"{folder}/memory.max") == str(64 * MIB)
        assert v2.read(f"{folder}/memory.swap.max") == str(64 * MIB)
        assert v2.read(f"{folder}/cpu.max") == "50000 100000"
        assert v2.read(f"{folder}/pids.max") == "4096"
    (entrance,) = group.entrances()
    os.write(entrance, b"0")
    os.close(entrance)
    assert v2.read(f"{group.folders[0]}/{INSIDE}/cgroup.procs") == "0"
    v2.set(f"{group.folders[0]}/{INSIDE}/cgroup.procs", "")
    group.remove()
    group.remove()
    assert NAME not in os.listdir(v2.point)


def test_one_tree_per_controller(tmp_path: Path) -> None:
    """On v1 only the trees of what was asked get a folder."""
    files = V1(tmp_path)
    group = made(files, Limits(memory=64 * MIB, cpuset_cpus="1-2", cpu_shares=100))
    assert group.controllers == {"memory", "cpuset", "cpu"}
    entrances = group.entrances()
    for entrance in entrances:
        os.close(entrance)
    assert len(group.folders) == len(entrances) == 3
    assert files.read(f"{group.folder('memory')}/memory.memsw.limit_in_bytes") == str(128 * MIB)
    assert files.read(f"{group.folder('cpuset')}/{INSIDE}/cpuset.cpus") == "1-2"
    assert files.read(f"{group.folder('cpu')}/cpu.shares") == "100"
    assert group.folder("pids") == ""
    group.remove()
    assert not [folder for folder, _, _ in os.walk(tmp_path) if "nbcontainer" in folder]


def test_processors_change(tmp_path: Path) -> None:
    """On v1 a leaf holds no more than its parent at any moment, whichever way the set changes."""
    files = V1(tmp_path)
    group = made(files, Limits(cpuset_cpus="0-1"))
    for wanted in ("2-3", "1-3", "0"):
        group.apply(Limits(cpuset_cpus=wanted))
        assert files.read(f"{group.folder('cpuset')}/cpuset.cpus") == wanted
        assert files.read(f"{group.folder('cpuset')}/{INSIDE}/cpuset.cpus") == wanted


def test_controller_is_opened_late(v2: FakeCgroups) -> None:
    """A container of the pool gets a controller through its launcher; one that is not here is named."""
    v2.grow("/app", enabled=("pids",))
    v2.grow("/app/nbcontainer-7", enabled=("pids",))
    folder = v2.grow("/app/nbcontainer-7/c1", processes=(8,))
    v2.set(f"{v2.point}/app/cgroup.controllers", "cpu pids")
    open_controller("cpu", folder, v2.hierarchy("/app"), v2)
    assert v2.read(f"{folder}/cgroup.controllers") == "cpu pids"
    with pytest.raises(CgroupRefusal) as caught:
        open_controller("cpuset", folder, v2.hierarchy("/app"), v2)
    assert caught.value.cause == f"the controller cpuset is not handed down to {v2.point}/app"
    assert "Delegate=" in caught.value.fix


@pytest.mark.parametrize(("limits", "pids"), [({}, 4096), ({}, None), ({"pids": -1}, None)])
def test_nothing_asked(v2: FakeCgroups, limits: dict[str, Any], pids: int | None) -> None:
    """Without limits there is no group; no limit where there is none is no limit either."""
    assert make_group(ID, Limits(**limits), (v2.hierarchy(),), pids=pids, files=v2) is None
    assert sorted(os.listdir(v2.point)) == sorted(os.listdir(FakeCgroups(v2.point, 2, EVERYTHING).point))


def test_limit_on_processes_is_lifted(v2: FakeCgroups) -> None:
    """-1 takes the usual limit away."""
    group = made(v2, Limits(pids=-1))
    assert v2.read(f"{group.folders[0]}/pids.max") == "max"


def test_always(v2: FakeCgroups) -> None:
    """A controller that is wanted in any case brings the usual limit; one that is not here is no error."""
    group = made(v2, Limits(), always=frozenset({"pids"}))
    assert v2.read(f"{group.folders[0]}/pids.max") == "4096"
    group.remove()
    assert make_group(ID, Limits(), (), pids=None, always=frozenset({"pids"}), files=v2) is None


def test_missing_controller(tmp_path: Path) -> None:
    """A controller that no hierarchy has is named by its option."""
    tree = FakeCgroups(str(tmp_path), 2, frozenset({"pids"}))
    with pytest.raises(UnsupportedHost, match=r"--memory cannot be kept here: there is no memory controller.*enable"):
        make_group(ID, Limits(memory=64 * MIB), (tree.hierarchy(),), pids=None, files=tree)


def test_refused_place_leaves_nothing(tmp_path: Path) -> None:
    """When the second of two trees refuses, the first is as it was."""
    files = V1(tmp_path)
    files.trees["memory"].closed = {files.trees["memory"].point}
    with pytest.raises(UnsupportedHost, match="--memory cannot be kept here"):
        made(files, Limits(memory=64 * MIB, cpus=1))
    assert not [folder for folder, _, _ in os.walk(tmp_path) if "nbcontainer" in folder]


def test_swap_is_not_counted(tmp_path: Path) -> None:
    """Where the kernel does not count swap, memory alone is limited; a limit on swap is refused."""
    tree = FakeCgroups(str(tmp_path), 1, frozenset({"memory"}), missing={"memory.memsw.limit_in_bytes"})
    group = made(tree, Limits(memory=64 * MIB))
    assert tree.read(f"{group.folders[0]}/memory.limit_in_bytes") == str(64 * MIB)
    group.remove()
    with pytest.raises(UnsupportedHost, match="--memory-swap cannot be kept here: this kernel does not count swap"):
        made(tree, Limits(memory=64 * MIB, memory_swap=64 * MIB))
    assert not [name for name in os.listdir(tmp_path) if "nbcontainer" in name]


@pytest.mark.parametrize("version", [1, 2])
def test_verdict(tmp_path: Path, version: Any) -> None:
    """What the limits did is read in the words of both versions."""
    tree = FakeCgroups(str(tmp_path), version, EVERYTHING)
    group = made(tree, Limits(memory=64 * MIB, pids=5))
    assert group.verdict() == Verdict(peak=0, memory_limit=64 * MIB, pids_limit=5)
    folder = group.folders[0]
    if version == 1:
        tree.set(f"{folder}/{INSIDE}/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
        tree.set(f"{folder}/memory.max_usage_in_bytes", "67108864\n")
        tree.set(f"{folder}/{INSIDE}/pids.events", "max 7\n")
    else:
        tree.set(f"{folder}/memory.events", "low 0\noom 3\noom_kill 2\n")
        tree.set(f"{folder}/memory.peak", "67108864\n")
        tree.set(f"{folder}/pids.events", "max 7\n")
    assert group.verdict() == Verdict(oom_kills=2, peak=64 * MIB, memory_limit=64 * MIB, pids_refused=7, pids_limit=5)


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("/cg/nbcontainer-7-abc/inside", "/cg/nbcontainer-7-abc"),
        ("/cg/nbcontainer-7/c3", "/cg/nbcontainer-7/c3"),
        ("/cg/user.slice", ""),
        ("/cg/inside", ""),
        (f"/cg/jupyter.scope/{ASIDE}", ""),
        ("", ""),
    ],
)
def test_ours(folder: str, expected: str) -> None:
    """A process's cgroup is recognised as one of this package's, whichever kind."""
    assert ours(folder) == expected
