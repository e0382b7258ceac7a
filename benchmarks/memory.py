#!/usr/bin/env python3
"""What an idle container costs in memory: ours against docker, podman, crun and runc.

    python benchmarks/memory.py [--containers 10] [--rounds 3] [--tar debian.tar] [--json FILE]

Each engine in turn holds some containers in which ``sleep`` runs, and the memory of this process with everything below
it (our engine and launcher, dockerd and containerd, every shim and monitor, which are adopted when orphaned) is
compared with and without them. So a daemon's own growth counts, its size at rest does not; nor does what the kernel
keeps for namespaces, mounts and cgroups, which every engine makes alike. The ``sleep`` itself is in the figure of each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import engines
import peers
import usage

from nbcontainer._linux.syscalls import set_child_subreaper

if TYPE_CHECKING:
    from collections.abc import Callable

_CALM = 1.0


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=3)
    parser.add_argument("--containers", type=int, default=10, help="idle containers at a time (default 10)")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    set_child_subreaper()
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar)
        only = tuple(filter(None, options.only.split(",")))
        ours, others, problems = engines.set_up(stage, tar, (engines.OURS, "crun", "runc", "podman", "docker"), only)
        holders: dict[str, tuple[Callable[[str], None], Callable[[str], None]]] = {}
        if ours is not None:
            ours.run()  # the launcher is there, and its pool
            holders[engines.OURS] = (ours.hold, ours.release)
        holders |= {each.name: (each.begin, each.end) for each in others}
        costs: dict[str, list[usage.Memory]] = {name: [] for name in holders}
        for _ in range(options.rounds):
            for name, (hold, release) in holders.items():
                if name not in problems:
                    try:
                        costs[name].append(cost(hold, release, options.containers))
                    except (RuntimeError, OSError) as problem:
                        problems[name] = str(problem)
        report(costs, problems)
        raw = {name: [asdict(each) for each in found] for name, found in costs.items()}
        peers.json_report(options.json, facts, (), memory=raw, problems=problems)


def cost(hold: Callable[[str], None], release: Callable[[str], None], count: int) -> usage.Memory:
    """Hold so many containers, and let them go; what one more costs."""
    names = [f"idle-{number}" for number in range(count + 1)]
    held = []
    try:
        for name in names[:1]:  # the first one loads what the others share
            hold(name)
            held.append(name)
        before = _everything()
        for name in names[1:]:
            hold(name)
            held.append(name)
        after = _everything()
    finally:
        for name in held:
            release(name)
        _bury()
    return usage.Memory(
        resident=(after.resident - before.resident) // count,
        proportional=(after.proportional - before.proportional) // count,
        private=(after.private - before.private) // count,
        unread=after.unread,
    )


def _everything() -> usage.Memory:
    """This process and all below it, when what was begun has calmed down."""
    time.sleep(_CALM)
    return usage.memory(usage.family(os.getpid()))


def _bury() -> None:
    """Wait for the monitors that were adopted and have ended, not for children that others wait for."""
    time.sleep(_CALM)
    for pid in usage.family(os.getpid()) - {os.getpid()}:
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == os.getpid():
                os.waitpid(pid, os.WNOHANG)
        except (FileNotFoundError, ProcessLookupError, ChildProcessError):
            continue


def report(costs: dict[str, list[usage.Memory]], problems: dict[str, str]) -> None:
    """Medians, and how many times ours."""
    medians = {
        name: tuple(
            statistics.median(getattr(each, kind) for each in found) for kind in ("proportional", "private", "resident")
        )
        for name, found in costs.items()
        if found and not any(each.unread for each in found)
    }
    print(f"{'':<12} {'PSS KiB':>9} {'private KiB':>12} {'RSS KiB':>9} {'x ' + engines.OURS + ' PSS':>19}")
    for name, (proportional, private, resident) in medians.items():
        ratio = f"{proportional / medians[engines.OURS][0]:>19.2f}" if engines.OURS in medians else ""
        print(f"{name:<12} {proportional / 1024:>9.0f} {private / 1024:>12.0f} {resident / 1024:>9.0f} {ratio}")
    for name, found in costs.items():
        if any(each.unread for each in found):
            unread = max(each.unread for each in found)
            print(f"{name:<12} not told: up to {unread} processes may not be read by this user; ask as root")
    for name, text in problems.items():
        print(f"{name:<12} failed: {text.strip().splitlines()[-1][:160]}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
