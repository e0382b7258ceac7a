"""Where we stand among the cgroups, on layouts that this machine has and on those it has not; making one, and where."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux.cgroups import (
    ASIDE,
    INSIDE,
    CgroupRefusal,
    Hierarchy,
    controller_of,
    hierarchies,
    layout_of,
    machine_hierarchies,
    make_cgroup,
    membership,
    remove_cgroup,
)
from nbcontainer.testing.cgroupfs import FakeCgroups

if TYPE_CHECKING:
    from pathlib import Path

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
V1 = """\
34 29 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
35 29 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
36 29 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
37 29 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
OWN_V1 = "4:memory:/process/one\n3:cpu,cpuacct:/two\n2:name=systemd:/x\n0::/three"


def none(_: str) -> frozenset[str]:
    """Offer no controller."""
    return frozenset()


def test_hybrid() -> None:
    """Each controller of v1 has its own tree and our own place in it; the tree without a controller is left out."""
    known = hierarchies(V1, OWN_V1, none)
    assert layout_of(known) == "hybrid"
    memory, cpu = controller_of(known, "memory"), controller_of(known, "cpuacct")
    assert memory is not None
    assert cpu is not None
    assert memory.places == (
        "/sys/fs/cgroup/memory/process/one",
        "/sys/fs/cgroup/memory/process",
        "/sys/fs/cgroup/memory",
    )
    assert (cpu.version, cpu.own, sorted(cpu.controllers)) == (1, "/two", ["cpu", "cpuacct"])
    assert controller_of(known, "pids") is None
    freezer = controller_of(known, "freezer")
    assert freezer is not None
    assert (freezer.version, freezer.own) == (2, "/three")


def test_unified() -> None:
    """On v2 one tree has every controller, as far as it is told."""
    known = hierarchies(V2, "0::/user.slice/a.scope", lambda point: frozenset({"memory", point[1:4]}))
    assert layout_of(known) == "v2"
    assert known == (
        Hierarchy(
            version=2, controllers=frozenset({"memory", "sys"}), point="/sys/fs/cgroup", own="/user.slice/a.scope"
        ),
    )


@pytest.mark.parametrize(
    ("root", "own", "expected"),
    [
        ("/docker/abc", "/docker/abc/inner", "/inner"),
        ("/docker/abc", "/docker/abc", ""),
        ("/docker/abc", "/docker/abcd", ""),
        ("/", "/../other", ""),
        ("/", "/", ""),
    ],
)
def test_partial_mount(root: str, own: str, expected: str) -> None:
    """What the mount does not show is no place; our own path counts from what it shows."""
    (found,) = hierarchies(f"30 24 0:26 {root} /cg rw - cgroup2 cgroup2 rw", f"0::{own}", none)
    assert found.own == expected


def test_nothing() -> None:
    """Without a mount there is nothing, and a second mount of the same tree changes nothing."""
    assert hierarchies("", "0::/", none) == ()
    assert layout_of(()) == "none"
    assert len(hierarchies(f"{V2}\n{V2}", "0::/", none)) == 1


def test_this_machine() -> None:
    """Our own membership, read from the kernel, is the nearest place of each hierarchy."""
    known = machine_hierarchies()
    assert membership(os.getpid(), known) == {each.point: each.places[0] for each in known}
    assert membership(2**22 + 1, known) == {}


EVERYTHING = frozenset({"memory", "cpu", "cpuset", "pids"})


@pytest.fixture
def v2(tmp_path: Path) -> FakeCgroups:
    """Lend a systemd-like tree: the user's manager owns app.slice, where Jupyter runs in a scope."""
    tree = FakeCgroups(str(tmp_path), 2, EVERYTHING)
    tree.set(f"{tmp_path}/cgroup.subtree_control", "memory pids")
    tree.grow("/user", enabled=("memory", "pids"))
    tree.grow("/user/app", enabled=("memory", "pids"))
    tree.grow("/user/app/jupyter", processes=(100,))
    return tree


def test_delegated(v2: FakeCgroups) -> None:
    """A cgroup is made beside the one that holds our process: no internal processes; its leaf has the controllers."""
    v2.closed = {v2.point}
    made = make_cgroup(v2.hierarchy("/user/app/jupyter"), "box", frozenset({"memory"}), v2, leaf=INSIDE)
    assert made == f"{v2.point}/user/app/box"
    assert v2.read(f"{made}/{INSIDE}/cgroup.controllers") == "memory"
    assert v2.read(f"{v2.point}/user/app/jupyter/cgroup.subtree_control") == ""
    assert remove_cgroup(made, v2)
    assert remove_cgroup(made, v2)
    assert not os.path.exists(made)


def test_enables_what_is_offered(v2: FakeCgroups) -> None:
    """A place that has a controller and does not hand it down yet is told to."""
    v2.set(f"{v2.point}/user/app/cgroup.subtree_control", "pids")
    make_cgroup(v2.hierarchy("/user/app/jupyter"), "box", frozenset({"memory"}), v2)
    assert v2.read(f"{v2.point}/user/app/cgroup.subtree_control") == "memory pids"
    assert "memory" in v2.read(f"{v2.point}/user/app/box/cgroup.controllers")


def refusal(tree: FakeCgroups, own: str, controller: str) -> CgroupRefusal:
    """What is said where a cgroup with `controller` cannot be made."""
    with pytest.raises(CgroupRefusal) as caught:
        make_cgroup(tree.hierarchy(own), "box", frozenset({controller}), tree, leaf=INSIDE)
    left = [folder for folder, _, _ in os.walk(tree.point) if "box" in folder]
    assert left == []
    return caught.value


def test_not_handed_down(v2: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """A controller that the administrator did not delegate is named, with what to ask for."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    v2.closed = {v2.point}
    problem = refusal(v2, "/user/app/jupyter", "cpu")
    assert "controller cpu is not handed down" in problem.cause
    assert "Delegate=cpu" in problem.fix


def test_login_session(v2: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a session scope of the system nothing is ours: a scope of one's own helps."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    v2.closed = {v2.point, *(f"{v2.point}{each}" for each in ("/user", "/user/app", "/user/app/jupyter"))}
    problem = refusal(v2, "/user/app/jupyter", "memory")
    assert "no cgroup from" in problem.cause
    assert "systemd-run --user --scope" in problem.fix


def test_internal_processes(v2: FakeCgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone in one's own cgroup, with nothing above it, nothing can be handed down."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    v2.closed = {v2.point, *(f"{v2.point}{each}" for each in ("/user", "/user/app"))}
    problem = refusal(v2, "/user/app/jupyter", "memory")
    assert "holds processes itself" in problem.cause


@pytest.mark.parametrize("before", ["", "pids"])
def test_controllers_for_threads(v2: FakeCgroups, before: str) -> None:
    """From a cgroup that holds processes pids is not handed down, though the kernel would: nobody could enter.

    Where somebody has done that already, what is below it is left alone too.
    """
    if before:
        v2.write(f"{v2.point}/user/app/jupyter/cgroup.subtree_control", f"+{before}")
    kind = v2.read(f"{v2.point}/user/app/jupyter/cgroup.type")
    made = make_cgroup(v2.hierarchy("/user/app/jupyter"), "box", frozenset({"pids"}), v2)
    assert made == f"{v2.point}/user/app/box"
    assert v2.read(f"{made}/cgroup.type") == "domain\n"
    assert v2.read(f"{v2.point}/user/app/jupyter/cgroup.type") == kind
    assert not os.path.exists(f"{v2.point}/user/app/jupyter/box")
    v2.write(f"{made}/cgroup.procs", "7")


def test_delegated_scope(v2: FakeCgroups) -> None:
    """Whoever is in a scope that was delegated moves into a leaf of it, and containers come beside them, within it."""
    scope = f"{v2.point}/user/app/jupyter"
    v2.delegated = {scope}
    v2.set(f"{scope}/cgroup.procs", "100\n101\n")
    made = make_cgroup(v2.hierarchy("/user/app/jupyter"), "box", frozenset({"memory", "pids"}), v2, leaf=INSIDE)
    assert made == f"{scope}/box"
    assert v2.read(f"{scope}/{ASIDE}/cgroup.procs") == "100\n101\n"
    assert v2.read(f"{scope}/cgroup.subtree_control") == "memory pids"
    again = make_cgroup(v2.hierarchy(f"/user/app/jupyter/{ASIDE}"), "box2", frozenset({"memory"}), v2)
    assert again == f"{scope}/box2"


def test_delegated_scope_that_stays_busy(v2: FakeCgroups) -> None:
    """Where somebody cannot be moved, the place beside the scope is taken, as where nothing was delegated."""
    scope = f"{v2.point}/user/app/jupyter"
    v2.delegated, v2.rooted = {scope}, {101}
    v2.set(f"{scope}/cgroup.procs", "100\n101\n")
    made = make_cgroup(v2.hierarchy("/user/app/jupyter"), "box", frozenset({"pids"}), v2)
    assert made == f"{v2.point}/user/app/box"
    assert v2.read(f"{scope}/cgroup.subtree_control") == ""
    assert not os.path.exists(f"{scope}/box")


def test_fake_keeps_the_rule_of_threads(v2: FakeCgroups) -> None:
    """The kernel's own answers: pids goes down from a busy cgroup, memory does not, and no process can follow."""
    busy = f"{v2.point}/user/app/jupyter"
    with pytest.raises(OSError, match="busy"):
        v2.write(f"{busy}/cgroup.subtree_control", "+memory")
    v2.write(f"{busy}/cgroup.subtree_control", "+pids")
    v2.make(f"{busy}/box")
    with pytest.raises(OSError, match="not supported"):
        v2.write(f"{busy}/box/cgroup.procs", "7")


def test_v1_as_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On v1 only root may, and the sentence says so."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    tree = FakeCgroups(str(tmp_path), 1, frozenset({"memory"}), closed={str(tmp_path)})
    problem = refusal(tree, "", "memory")
    assert "cgroups v1" in problem.cause
    assert "run as root" in str(problem)


def test_v1_cpuset(tmp_path: Path) -> None:
    """A new cpuset of v1 is filled from above, leaf too: an empty one could not be entered."""
    tree = FakeCgroups(str(tmp_path), 1, frozenset({"cpuset"}))
    made = make_cgroup(tree.hierarchy(), "box", frozenset({"cpuset"}), tree, leaf=INSIDE)
    assert tree.read(f"{made}/{INSIDE}/cpuset.cpus") == "0-3"
    assert tree.read(f"{made}/{INSIDE}/cpuset.mems") == "0"


def test_busy_cgroup_stays(v2: FakeCgroups) -> None:
    """What still holds a process is not removed, and says so."""
    made = make_cgroup(v2.hierarchy("/user/app/jupyter"), "box", frozenset({"memory"}), v2, leaf=INSIDE)
    v2.set(f"{made}/{INSIDE}/cgroup.procs", "7\n")
    assert not remove_cgroup(made, v2)
    v2.set(f"{made}/{INSIDE}/cgroup.procs", "")
    assert remove_cgroup(made, v2)
