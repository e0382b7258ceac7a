"""Many containers on behind at once, started and killed at random: every look at `ps` is true, and nothing stays.

In small by default. ``NBCONTAINER_CHURN=50:120`` has fifty of them for two minutes.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux.identity import parent_of
from nbcontainer.model import HealthCheck, RestartPolicy, RunOptions, ServiceOptions
from nbcontainer.model.network import NetworkOptions, PortMapping
from nbcontainer.network.plan import store_key
from nbcontainer.network.programs import found
from tests.harness.leaks import deserted_cgroups, lives, processes_below
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from nbcontainer.engine.views import ContainerSummary
    from tests.integration.tiers import Tier

COUNT, SECONDS = (int(each) for each in os.environ.get("NBCONTAINER_CHURN", "12:15").split(":"))
SCRIPT = "trap 'exit 0' TERM; echo up; while :; do sleep 5 & wait $!; done"
AGAIN = RestartPolicy(name="always")


class Churn:
    """The containers, and what each must be."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self.networked = found("nft") is not None and (tier.privileged or found("pasta") is not None)
        self.chance = random.Random(20261126)
        self.up: dict[str, ContainerSummary] = {}
        self.down: set[str] = set()
        self.below: set[int] = set()
        self.done = dict.fromkeys(("stop", "kill", "start", "restart", "remove", "monitor", "launcher", "first"), 0)

    def launch(self, name: str) -> None:
        """Start one anew: with a health check, a policy, or a published port, as its number says."""
        number = int(name.removeprefix("s"))
        health = HealthCheck(test=("CMD", "true"), interval=1) if number % 3 == 0 else HealthCheck()
        service = ServiceOptions(health=health, restart=AGAIN if number % 2 else RestartPolicy())
        options = RunOptions(name=name, service=service)
        if number % 4 == 0 and self.networked:
            published = NetworkOptions(ports=(PortMapping(container_port=80),))
            options = replace(options, network="bridge", networking=published)
        self.up[name] = self.tier.driver.call("launch", self.tier.image, (), options=options, script=SCRIPT)
        self.down.discard(name)
        self.note(name)

    def note(self, name: str) -> None:
        """Remember its processes, to see that none outlives it."""
        pid = self.up[name].pid
        assert pid is not None
        with contextlib.suppress(ProcessLookupError):
            monitor = parent_of(parent_of(pid))
            self.below |= {monitor, *processes_below(monitor)}

    def step(self) -> None:
        """Do something to one of them."""
        what = self.chance.choice(list(self.done))
        if what == "start" or not self.up:
            if self.down:
                name = self.chance.choice(sorted(self.down))
                self.up[name] = self.tier.driver.call("start_behind", name)
                self.down.discard(name)
                self.note(name)
                self.done["start"] += 1
            return
        name = self.chance.choice(sorted(self.up))
        self.done[what] += 1
        if what in {"stop", "kill"}:
            ended = self.tier.driver.call(what, name)
            assert (ended.state, ended.pid) == ("exited", None)
            self.fell(name)
        elif what == "restart":
            self.up[name] = self.tier.driver.call("restart_behind", name)
            self.note(name)
        elif what == "remove":
            self.tier.driver.call("remove_container", name, force=True)
            self.launch(name)
        else:
            self.shoot(name, what)

    def fell(self, name: str) -> None:
        """It is down, and should be."""
        del self.up[name]
        self.down.add(name)

    def shoot(self, name: str, victim: str) -> None:
        """Kill a process of it without warning."""
        pid = self.up[name].pid
        assert pid is not None
        chosen = {"first": pid, "launcher": parent_of(pid), "monitor": parent_of(parent_of(pid))}[victim]
        os.kill(chosen, signal.SIGKILL)
        if victim == "monitor" or int(name.removeprefix("s")) % 2 == 0:
            wait_until(lambda: self.row(name).state in {"dead", "exited"}, what=f"{name} is down")
            self.fell(name)
            return
        wait_until(lambda: self.row(name).pid not in {None, pid}, within=30, what=f"{name} is up again")
        self.up[name] = self.row(name)
        self.note(name)

    def row(self, name: str) -> ContainerSummary:
        """What `ps -a` says of one."""
        (found,) = [each for each in self.tier.driver.call("containers", everything=True) if each.name == name]
        summary: ContainerSummary = found
        return summary

    def look(self) -> None:
        """`ps` is true: who is listed as running runs, with that pid, and nobody else does."""
        rows = {each.name: each for each in self.tier.driver.call("containers", everything=True)}
        assert set(rows) == set(self.up) | self.down
        assert {name for name, row in rows.items() if row.state == "running"} == set(self.up)
        for name in self.up:
            pid = rows[name].pid
            assert pid == self.up[name].pid
            assert Path(f"/proc/{pid}").exists()


@pytest.mark.slow
@pytest.mark.timeout(SECONDS * 3 + COUNT * 10 + 60)
@OWN_TIER
def test_churn(tier: Tier) -> None:
    """Start, stop, kill, shoot, remove: no process, cgroup, mount, link or rule is left, and no look was wrong."""
    known = deserted_cgroups()
    churn = Churn(tier)
    try:
        for number in range(COUNT):
            churn.launch(f"s{number}")
        churn.look()
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            churn.step()
            churn.look()
        assert sum(churn.done.values()) >= SECONDS / 2 / patient(1), churn.done
        print(f"{tier.name}: {churn.done}")  # noqa: T201 - for who runs it in full
    finally:
        for row in tier.driver.call("containers", everything=True):
            with contextlib.suppress(Raised):
                tier.driver.call("remove_container", row.id, force=True)
    wait_until(lambda: not [pid for pid in churn.below if lives(pid)], what="every process is gone")
    tier.driver.begin("close")
    tier.driver.finish()
    wait_until(lambda: not _keepers(tier), within=30, what="the keeper of networks has left")
    if churn.networked and tier.privileged:
        key = store_key(os.path.realpath(tier.store), 0)
        assert f"nbc{key}" not in _told("ip", "-o", "link")
        assert key not in _told(str(found("nft")), "list", "tables")
    with tier.spawn() as other:  # its launcher sweeps what killed ones left
        assert other.run("true").ok
    wait_until(lambda: deserted_cgroups() <= known, what="no cgroup is left")
    for pid in churn.below:  # those that nobody collected are ours
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _keepers(tier: Tier) -> list[str]:
    lines = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            lines[name] = Path(f"/proc/{name}/cmdline").read_bytes()
    return [name for name, line in lines.items() if b"keeper.py" in line and tier.store.encode() in line]


def _told(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout
