"""What running containers use, and holding them still or to other limits: seen and done from another engine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.cgroups import KernelFiles, controller_of, machine_hierarchies, membership
from nbcontainer.errors import Conflict, InvalidOption, UnsupportedHost
from nbcontainer.model import Limits
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.patience import patient
from tests.integration.test_limits import MIB, keeps
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from tests.integration.tiers import Driver, Tier

COUNT = "import time\nn = 0\nwhile True:\n    n += 1\n    print(n, flush=True)\n    time.sleep(0.01)"
SPIN = "print('go', flush=True)\nwhile True: pass"


def start(driver: Driver, script: str, *, name: str = "work", **options: Any) -> None:
    """Start a script in a container of that name, and wait for its first word."""
    driver.begin_run(script=script, shell=[PYTHON, "-I", "-S"], name=name, remove=True, **options)
    driver.wait_for_output(b"\n")


def end(driver: Driver) -> Any:
    """Interrupt it, and give its result."""
    driver.interrupt()
    return driver.finish()


def refused(tier: Tier, method: str, *arguments: Any, kind: type[Exception], match: str) -> None:
    """A call that raises one of ours."""
    with pytest.raises(Raised, match=match) as caught:
        tier.driver.call(method, *arguments)
    assert caught.value.is_a(kind)


def test_stats_of_another_notebook(tier: Tier) -> None:
    """Processor, memory and processes of a container are seen from any notebook, with or without cgroups."""
    with tier.spawn() as driver:
        start(driver, "x = bytearray(30 << 20)\n" + SPIN)
        (row,) = tier.driver.call("stats")
        assert (row.name, row.pids, row.memory_limit) == ("work", 1, None)
        assert 20 < row.cpu < 130
        assert 30 * MIB < row.memory < 60 * MIB
        assert row.read is None or row.read >= 0
        end(driver)
    assert tier.driver.call("stats") == ()
    refused(tier, "stats", ("work",), kind=LookupError, match="no container 'work'")


def test_stats_with_limits(tier: Tier) -> None:
    """With limits, what the kernel counts is shown beside them."""
    if not keeps(tier, "memory"):
        pytest.skip("needs a memory cgroup of one's own")
    with tier.spawn() as driver:
        start(driver, "x = bytearray(30 << 20)\n" + COUNT, limits=Limits(memory=100 * MIB, pids=50))
        (row,) = tier.driver.call("stats", ("work",))
        assert (row.memory_limit, row.pids_limit) == (100 * MIB, 50)
        assert 30 * MIB < row.memory < 100 * MIB
        end(driver)


def test_stays_within_what_was_delegated(tier: Tier) -> None:
    """In a scope that was delegated to the person, containers are inside it, limited or not: its own limits hold too."""
    known = machine_hierarchies()
    hierarchy = controller_of(known, "pids")
    assert hierarchy is not None
    scope = next((each for each in hierarchy.places[:2] if KernelFiles().is_delegated(each)), "")
    if tier.user is not None or not scope:
        pytest.skip("needs a cgroup that was delegated to whoever runs the tests")
    for limits in (Limits(), Limits(memory=100 * MIB)):
        with tier.spawn() as driver:
            start(driver, COUNT, limits=limits)
            (process,) = tier.driver.call("top", "work")
            assert membership(process.pid, known)[hierarchy.point].startswith(f"{scope}/nbcontainer-")
            end(driver)


def test_top(tier: Tier) -> None:
    """The processes are listed with the container's users and their commands; PID 1 is ours and is not."""
    script = "import os, time\nif os.fork() == 0:\n    time.sleep(100)\nprint('go', flush=True)\ntime.sleep(100)"
    with tier.spawn() as driver:
        start(driver, script)
        rows = tier.driver.call("top", "work")
        assert [row.user for row in rows] == [0, 0]
        assert {row.state for row in rows} <= {"R", "S"}  # it has spoken, and is about to sleep
        assert rows[1].parent == rows[0].pid
        assert all(PYTHON in row.command and os.path.exists(f"/proc/{row.pid}") for row in rows)
        end(driver)
        if tier.has_users:
            start(driver, script, name="other", user="1000")
            assert {row.user for row in tier.driver.call("top", "other")} == {1000}
            end(driver)


def heard(driver: Driver, seconds: float) -> int:
    """How many lines arrive in this time."""
    before = driver.output["stdout"].count(b"\n")
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if driver._connection.poll(left):
            _, _, data = driver._connection.recv()
            driver.output["stdout"] += data
    return driver.output["stdout"].count(b"\n") - before


def test_pause(tier: Tier) -> None:
    """A paused container stands still, is listed so, and goes on where it was."""
    with tier.spawn() as driver:
        start(driver, COUNT)
        if not keeps(tier, "freezer"):
            refused(tier, "pause", "work", kind=UnsupportedHost, match="cannot be paused.*(run as root|systemd-run)")
            end(driver)
            return
        assert tier.driver.call("pause", "work").paused
        heard(driver, 0.2)
        assert heard(driver, 0.4) == 0
        (row,) = tier.driver.call("containers")
        assert row.paused
        refused(tier, "pause", "work", kind=Conflict, match="paused already")
        assert not tier.driver.call("unpause", "work").paused
        assert heard(driver, 1.0) > 5
        refused(tier, "unpause", "work", kind=Conflict, match="not paused")
        numbers = [int(line) for line in driver.output["stdout"].split()]
        assert numbers == list(range(1, len(numbers) + 1))
        end(driver)


@pytest.mark.parametrize("way", ["interrupt", "remove", "stop", "kill verb", "timeout", "kill", "launcher"])
def test_paused_container_can_be_ended(tier: Tier, way: str) -> None:
    """Whoever ends a paused container, and however: it is over at once, and nothing stays."""
    if not keeps(tier, "freezer"):
        pytest.skip("needs a freezer of one's own")
    with tier.spawn() as driver:
        start(driver, COUNT, timeout=2.0 if way == "timeout" else None)
        below = driver.processes()
        tier.driver.call("pause", "work")
        began = time.monotonic()
        if way == "interrupt":
            assert end(driver)["reason"] == "interrupted"
        elif way in {"remove", "stop", "kill verb"}:
            if way == "remove":
                tier.driver.call("remove_container", "work", force=True)
            else:
                tier.driver.call(way.partition(" ")[0], "work")
            assert driver.finish()["reason"] == "stopped"
        elif way == "timeout":
            assert driver.finish()["reason"] == "timeout"
        elif way == "launcher":
            os.kill(next(pid for pid in below if is_launcher(pid, driver.pid)), 9)
            assert driver.finish()["reason"] == "lost"
        else:
            driver.kill()
        wait_until(lambda: not any(PYTHON in line for line in commands(below)), what="its processes are gone")
        assert time.monotonic() - began < patient(8)
    if way in {"kill", "launcher"}:
        with tier.spawn() as driver:  # sweeps
            assert driver.run("true").ok


def is_launcher(pid: int, parent: int) -> bool:
    """Whether a process is the child of an engine's."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(parent)


def commands(pids: set[int]) -> list[str]:
    """The command lines of those that live."""
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_update_of_what_was_limited(tier: Tier) -> None:
    """Limits of a running container change, and the changed one is what holds and what is told."""
    if not keeps(tier, "memory"):
        pytest.skip("needs a memory cgroup of one's own")
    script = "import time\nprint('go', flush=True)\ntime.sleep(1.5)\nx = bytearray(90 << 20)\ntime.sleep(60)"
    with tier.spawn() as driver:
        start(driver, script, limits=Limits(memory=200 * MIB, memory_swap=200 * MIB))
        tier.driver.call("update", "work", Limits(memory=50 * MIB, memory_swap=50 * MIB))
        (row,) = tier.driver.call("stats")
        assert row.memory_limit == 50 * MIB
        result = driver.finish()
        assert result["reason"] == "oom"
        assert "memory limit 50 MiB" in result["detail"]


def test_memory_below_what_is_used(tier: Tier) -> None:
    """What a container has cannot be taken away by a limit: the kernel refuses, and the sentence says so."""
    if not keeps(tier, "memory"):
        pytest.skip("needs a memory cgroup of one's own")
    if getattr(controller_of(machine_hierarchies(), "memory"), "version", 2) == 2:
        pytest.skip("cgroup v2 takes a lower limit and reclaims")
    with tier.spawn() as driver:
        start(driver, "x = bytearray(60 << 20)\n" + COUNT, limits=Limits(memory=200 * MIB))
        refused(
            tier, "update", "work", Limits(memory=20 * MIB), kind=UnsupportedHost, match="less than the container uses"
        )
        end(driver)


def test_update_of_what_was_free(tier: Tier) -> None:
    """Time, processors and processes can be limited later; memory, which was not counted apart, cannot."""
    with tier.spawn() as driver:
        start(driver, SPIN)
        refused(tier, "update", "work", Limits(), kind=InvalidOption, match="without a limit")
        refused(tier, "update", "work", Limits(cpus=10_000.0), kind=InvalidOption, match="outside 0.01")
        refused(tier, "update", "work", Limits(memory=64 * MIB), kind=UnsupportedHost, match="--memory cannot be kept")
        if keeps(tier, "cpu"):
            tier.driver.call("update", "work", Limits(cpus=0.2))
            last = max(os.sched_getaffinity(0))
            tier.driver.call("update", "work", Limits(pids=30))
            (row,) = tier.driver.call("stats")
            assert row.cpu < 60
            assert row.pids_limit == 30
            if keeps(tier, "cpuset"):
                tier.driver.call("update", "work", Limits(cpuset_cpus=str(last)))
                (process,) = tier.driver.call("top", "work")
                assert os.sched_getaffinity(process.pid) == {last}
            else:  # what systemd hands to a user's manager is cpu, memory and pids
                asked = Limits(cpuset_cpus=str(last))
                refused(tier, "update", "work", asked, kind=UnsupportedHost, match="cpuset is not handed .*Delegate=")
            tier.driver.call("update", "work", Limits(cpus=1.0))
            # more than it had before; how much more is up to who else is at work here
            wait_until(lambda: tier.driver.call("stats")[0].cpu > 25, within=30, what="it has more time again")
        else:
            refused(tier, "update", "work", Limits(cpus=0.2), kind=UnsupportedHost, match="--cpus cannot be kept")
        end(driver)


@pytest.mark.parametrize("method", ["top", "pause", "unpause"])
def test_container_that_does_not_run(tier: Tier, method: str) -> None:
    """A container that has ended is said to have."""
    tier.run("true", name="done")
    try:
        refused(tier, method, "done", kind=Conflict, match="container done is not running")
        refused(tier, "update", "done", Limits(cpus=1.0), kind=Conflict, match="is not running")
    finally:
        tier.driver.call("remove_container", "done")
