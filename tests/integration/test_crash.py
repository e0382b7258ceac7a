"""Somebody is killed without warning: the kernel, the launcher, PID 1. Nothing stays, and the next one goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness.leaks import deserted_cgroups, lives, processes_below
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Driver, Tier

SLEEPER = "echo kept; setsid nohup sh -c \"trap '' TERM INT HUP; echo ready; sleep 1000\" & sleep 1000"


def start(driver: Driver, **options: Any) -> None:
    """Start a container with a grandchild that clings to life, and wait until it does."""
    driver.begin_run(script=SLEEPER, **options)
    driver.wait_for_output(b"ready")


def test_killed_while_running(tier: Tier) -> None:
    """Nothing survives the kill of an engine, and the next one sweeps what its container wrote."""
    with tier.spawn() as driver:
        start(driver)
        before = set(tier.containers())
        wait_until(lambda: len(driver.processes()) > driver.at_rest, what="a full pool beside the container")
        below = driver.kill()
        assert len(below) > driver.at_rest
        wait_until(lambda: not any(map(lives, below)), what="every process is gone")
        with tier.spawn() as other:
            assert other.run("echo", "on").stdout == "on\n"
            wait_until(lambda: not before & set(tier.containers()), what="the directory is gone")


def test_killed_with_named_container(tier: Tier) -> None:
    """A named container stays after a kill -9, with what it wrote, and `ps` tells the truth before and after."""
    known = deserted_cgroups()
    with tier.spawn() as driver:
        start(driver, name="work")
        (row,) = [each for each in tier.driver.call("containers") if each.name == "work"]
        assert (row.state, row.image) == ("running", tier.short)
        assert os.path.exists(f"/proc/{row.pid}")
        driver.kill()
    (row,) = [each for each in tier.driver.call("containers", everything=True) if each.name == "work"]
    assert (row.state, row.pid, row.exit_code) == ("dead", None, None)
    assert [each.name for each in tier.driver.call("containers")] == []
    assert b"".join(line.data for line in tier.driver.call("logs", "work")).startswith(b"kept\n")
    with pytest.raises(Raised, match="container name 'work' is taken"):
        tier.run("true", name="work")
    tier.driver.call("remove_container", "work")
    assert tier.driver.call("containers", everything=True) == ()
    sweep(tier, known)


def sweep(tier: Tier, known: AbstractSet[str] = frozenset()) -> None:
    """Let a new engine take away what the killed one's could not: its cgroup, its containers' directories."""

    def clean() -> bool:
        with tier.spawn() as driver:
            assert driver.run("true").ok
        return not deserted_cgroups() - known  # other sessions of the machine have theirs

    wait_until(clean, what="a new engine sweeps the killed one's cgroup, once its launcher has ended")


def test_killed_while_pulling(tier: Tier, registry: InProcessRegistry) -> None:
    """A pull cut short by kill -9 leaves a store that the next start uses; what had arrived is not fetched again."""
    root = str(tier.folder("store"))
    registry.faults.piece_delay = 0.002
    try:
        with tier.spawn(root=root) as driver:
            driver.begin("pull", image=tier.image)
            driver.wait_for_event("LayerProgress")
            wait_until(lambda: any(size for size in _sizes(root)), what="some bytes arrived")
            below = driver.kill()
            wait_until(lambda: not any(map(lives, below)), what="every process is gone")
    finally:
        registry.faults.piece_delay = 0
    active = [path for path, _, _ in os.walk(os.path.join(root, "snapshots")) if os.path.basename(path) == "active"]
    assert [len(os.listdir(path)) for path in active] == [1]
    with tier.spawn(root=root) as driver:
        assert all(each.reference == "host" for each in driver.call("images"))
        assert driver.run("echo", "on").stdout == "on\n"
        assert any("range" in request.headers for request in registry.asked("/blobs/"))
        assert [os.listdir(path) for path in active] == [[]], "the next pull takes away what was half unpacked"
        driver.call("remove_image", tier.image)
        assert [os.listdir(path) for path in active] == [[] for _ in active]


def _sizes(root: str) -> list[int]:
    return [
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(os.path.join(root, "ingest"))
        for name in names
    ]


def test_killed_launcher(tier: Tier) -> None:
    """When the launcher is killed a running cell ends with a clear word, and the next one has a new launcher."""
    known = deserted_cgroups()
    before = set(tier.containers())
    with tier.spawn() as driver:
        assert driver.run("true").ok
        launcher = driver.look()["launcher"]
        start(driver)
        below = processes_below(launcher)
        os.kill(launcher, signal.SIGKILL)
        result = driver.finish()
        assert result["reason"] == "lost"
        assert result["exit_code"] == 125
        assert "vanished without an exit code" in result["detail"]
        wait_until(lambda: not any(map(lives, below)), what="every process is gone")
        assert set(tier.containers()) <= before, "the launcher's janitor died too, so the engine sweeps"
        assert deserted_cgroups() <= known
        assert driver.run("echo", "on").stdout == "on\n"
        assert driver.look()["launcher"] != launcher
    sweep(tier, known)


def test_stopped_launcher(tier: Tier) -> None:
    """A launcher that does not answer (SIGSTOP) cannot hold a notebook: an interrupt ends the wait, truthfully.

    When it goes on, the request that waited for it makes no container that lives.
    """
    with tier.spawn() as driver:
        assert driver.run("true").ok
        wait_until(lambda: len(driver.processes()) == driver.at_rest)
        before = set(tier.containers())
        launcher = driver.look()["launcher"]
        os.kill(launcher, signal.SIGSTOP)
        try:
            driver.begin_run(script="echo started; sleep 1000", network="host")  # none waits with this network
            time.sleep(0.3)
            driver.interrupt()
            result = driver.finish(within=15)
        finally:
            os.kill(launcher, signal.SIGCONT)
        assert (result["reason"], result["exit_code"]) == ("interrupted", 130)
        assert result["detail"] == "interrupted before it was started; the launcher process does not answer"
        assert driver.run("echo", "on").stdout == "on\n"
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the processes at rest")
        wait_until(lambda: set(tier.containers()) <= before, what="its directory is gone")


@pytest.mark.parametrize("killed", ["at once", "while it waits"])
def test_launcher_dies_before_it_answers(tier: Tier, killed: str) -> None:
    """A request to a launcher that dies before it has taken it ends; the next one has a new launcher."""
    known = deserted_cgroups()
    with tier.spawn() as driver:
        assert driver.run("true").ok
        launcher = driver.look()["launcher"]
        os.kill(launcher, signal.SIGSTOP)
        driver.begin_run("echo", "on", network="host")  # none waits with this network
        time.sleep(0.3)
        if killed == "while it waits":
            driver.interrupt()
        os.kill(launcher, signal.SIGKILL)
        result = driver.finish(within=15)
        assert result["reason"] == ("interrupted" if killed == "while it waits" else "lost")
        assert driver.run("echo", "on").stdout == "on\n"
    sweep(tier, known)


def test_killed_idle_launcher(tier: Tier) -> None:
    """A launcher that died while nobody looked is replaced without a word."""
    known = deserted_cgroups()
    with tier.spawn() as driver:
        assert driver.run("true").ok
        for _ in range(3):
            launcher = driver.look()["launcher"]
            os.kill(launcher, signal.SIGKILL)
            wait_until(lambda pid=launcher: not any(map(lives, [pid])))  # type: ignore[misc]
            assert driver.run("echo", "on").stdout == "on\n"
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the processes at rest")
    sweep(tier, known)


def test_killed_first_process(tier: Tier) -> None:
    """When PID 1 of a container is killed from outside, the run ends and says that it was so."""
    with tier.spawn() as driver:
        start(driver, name="shot")
        (row,) = [each for each in tier.driver.call("containers") if each.name == "shot"]
        os.kill(row.pid, signal.SIGKILL)
        result = driver.finish()
        assert (result["reason"], result["exit_code"]) == ("lost", 125)
        (row,) = [each for each in tier.driver.call("containers", everything=True) if each.name == "shot"]
        assert row.state == "exited"
        tier.driver.call("remove_container", "shot")


def test_killed_waiting_containers(tier: Tier) -> None:
    """When the prepared containers are killed, the next run gets a fresh one."""
    with tier.spawn() as driver:
        assert driver.run("true").ok
        wait_until(lambda: len(driver.processes()) == driver.at_rest)
        launcher = driver.look()["launcher"]
        for _ in range(5):
            for pid in processes_below(launcher):
                # a pool that is being refilled lets go of processes while we look
                if _pid_inside(pid) == 1:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            result = None
            while result is None:
                try:
                    result = driver.run("echo", "on")
                except Raised as raised:  # it was taken before the launcher heard of its death
                    assert "prepared container had died" in str(raised), raised.kinds
            assert result.reason in {"exited", "lost"}


def _pid_inside(pid: int) -> int:
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/status", encoding="utf-8") as file,
    ):
        fields = dict(line.split(":", 1) for line in file)
        return int(fields["NSpid"].split()[-1])
    return 0


def test_remove_running_by_force(tier: Tier) -> None:
    """A running container of another notebook can be removed by force; its cell ends."""
    with tier.spawn() as driver:
        start(driver, name="busy")
        with pytest.raises(Raised, match="busy is running"):
            tier.driver.call("remove_container", "busy")
        tier.driver.call("remove_container", "busy", force=True)
        assert driver.finish()["reason"] == "stopped"
        assert tier.driver.call("containers", everything=True) == ()
