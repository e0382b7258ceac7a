"""Many containers, one after the other and at once, leave nothing: not a descriptor, mount, process, cgroup or file."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from tests.harness.leaks import processes_below
from tests.harness.patience import patient
from tests.integration.tiers import wait_until

if TYPE_CHECKING:
    from tests.integration.tiers import Driver, Tier

IN_A_ROW, AT_ONCE, THREADS = 200, 40, 8
MEMORY_GROWTH = 6 << 20
"""What an allocator may keep; 200 containers that leave 32 KiB each are found."""


def holdings(driver: Driver) -> dict[str, int]:
    """Count what engine and launcher hold, by name; none of it may grow."""
    looked = driver.look()
    launcher = looked["launcher"]
    own = f"/nbcontainer-{launcher}"
    return {
        "descriptors": len(looked["fds"]),
        "descriptors of the launcher": len(os.listdir(f"/proc/{launcher}/fd")),
        "threads": looked["threads"],
        "processes": len(processes_below(driver.pid)),
        "mounts": lines(f"/proc/{driver.pid}/mountinfo"),
        "mounts of the launcher": lines(f"/proc/{launcher}/mountinfo"),
        "cgroups": sum(own in top for top, _, _ in os.walk("/sys/fs/cgroup")),
        **{f"entries of {name} in the store": count for name, count in entries(looked["root"]).items()},
    }


def settled(driver: Driver) -> dict[str, int]:
    """The same when it has not changed for a moment: what is built ahead is built, and known to whom it concerns."""
    found: dict[str, int] = {}
    while found != (now := holdings(driver)):
        found = now
        time.sleep(patient(0.3))
    return found


def lines(path: str) -> int:
    """How many lines a file has."""
    with open(path, "rb") as file:
        return file.read().count(b"\n")


def entries(root: str) -> dict[str, int]:
    """How many there are in each folder of a store."""
    return {entry.name: len(os.listdir(entry.path)) for entry in os.scandir(root) if entry.is_dir()}


def memory(pid: int) -> int:
    """Bytes that would come back if the process ended."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        sizes = [line.split()[1] for line in file if line.startswith("Private_")]
    return sum(int(size) << 10 for size in sizes)


def weight(driver: Driver) -> dict[str, int]:
    """The memory of engine and launcher."""
    return {"engine": memory(driver.pid), "launcher": memory(driver.look()["launcher"])}


def run_many(driver: Driver, *, threads: int, rounds: int, **asked: Any) -> None:
    """Run containers from several threads; all must end well."""
    driver.begin("many", threads=threads, rounds=rounds, **asked)
    results = driver.finish(within=110)
    assert results == [(0, "on\n")] * (threads * rounds), [each for each in results if each != (0, "on\n")][:3]


def come_back(driver: Driver, before: dict[str, int]) -> None:
    """Wait until nothing is more than before; the failure names what is."""
    grown: dict[str, tuple[int, int]] = {}

    def nothing_more() -> bool:
        now = holdings(driver)
        grown.clear()
        grown.update({name: (before.get(name, 0), count) for name, count in now.items() if count > before.get(name, 0)})
        return not grown

    deadline = time.monotonic() + patient(10)
    while not nothing_more():
        assert time.monotonic() < deadline, f"grown (before, now): {grown}"
        time.sleep(0.1)


def test_nothing_grows(tier: Tier) -> None:
    """After 200 in a row and then 40 at once, everything is what it was, and memory nearly."""
    root = str(tier.folder("store"))
    with tier.spawn(root=root) as driver:
        driver.pull(tier.image)
        argv = ["echo", "on"]
        run_many(driver, image=tier.image, argv=argv, threads=1, rounds=5)
        run_many(driver, image=tier.image, argv=argv, threads=THREADS, rounds=2)  # then all that is ahead is offered
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool")
        wait_until(lambda: os.listdir(f"{root}/containers"), what="the next one's room is built ahead")
        before = settled(driver)
        run_many(driver, image=tier.image, argv=argv, threads=THREADS, rounds=2)
        come_back(driver, before)
        weighed = weight(driver)  # threads have run, so what they keep is in it

        run_many(driver, image=tier.image, argv=argv, threads=1, rounds=IN_A_ROW // 2)
        run_many(driver, image=tier.image, argv=argv, threads=THREADS, rounds=IN_A_ROW // 2 // THREADS)
        come_back(driver, before)
        run_many(driver, image=tier.image, argv=argv, threads=AT_ONCE, rounds=1)
        come_back(driver, before)
        for who, now in weight(driver).items():
            assert now - weighed[who] < MEMORY_GROWTH, f"memory of the {who}: {weighed[who]} before, {now} now"
