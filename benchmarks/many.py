#!/usr/bin/env python3
"""Many containers: what a thousand in a row and a hundred at once leave behind, and how many start in a second.

    python benchmarks/many.py [--row 1000] [--at-once 100] [--containers 200] [--rounds 3] [--json FILE]

1. In a row, in one engine of this process: descriptors, processes, mounts, cgroups, entries of the store, and the
   memory of engine and launcher, counted at rest before, at 100, at 500, and after. Only memory may differ, and little.
2. At once, each from a thread of its own: all of them run at the same moment, then all end. The same figures.
3. Containers per second when 1, 2, 8 and 32 are asked for at the same time: ours from threads of this process, bwrap
   and crun by xargs(1), so that no Python stands in their way.

The exit code is 1 when something has grown that must not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import engines
import peers
import usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer import Engine

_PARALLEL = (1, 2, 8, 32)
_WARM_UP = 20
_READY = b"ready\n"
_STARTING = 60.0
_MEMORY_GROWTH = 8 << 20
"""More than that, of engine or launcher, is called growth: allocators keep some."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A census, and what had been done until then."""

    after: str
    census: usage.Census


def main() -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=3)
    parser.add_argument("--row", type=int, default=1000, help="containers in a row (default 1000)")
    parser.add_argument("--at-once", type=int, default=100, help="containers at the same time (default 100)")
    parser.add_argument("--containers", type=int, default=200, help="containers in a round of part 3 (default 200)")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar)
        only = tuple(filter(None, options.only.split(",")))
        ours, others, problems = engines.set_up(stage, tar, (engines.OURS, "bwrap", "crun"), only)
        grown: list[str] = []
        lines: list[Line] = []
        if ours is not None:
            for begin, count in ((in_a_row, options.row), (at_once, options.at_once)):
                if count:
                    told = begin(ours.engine, count)
                    print_lines(told)
                    lines += told
                    grown += growth(told)
        for sentence in grown or ["nothing has grown"] * bool(lines):
            print(sentence, flush=True)
        contenders = throughput(ours, others, options.containers, options.rounds) if options.containers else []
        contenders += [peers.Contender(name=name, act=lambda: None, problem=text) for name, text in problems.items()]
        census = [{"after": each.after, **asdict(each.census)} for each in lines]
        peers.json_report(options.json, facts, contenders, census=census, grown=grown)
    return 1 if grown else 0


# --- what is left behind ----------------------------------------------------------------------------------------------


def in_a_row(engine: Engine, count: int) -> list[Line]:
    """One container after the other, in one thread."""
    _run(engine, _WARM_UP)
    lines = [Line(after="before", census=usage.settled(engine))]
    done = 0
    for stop in sorted({min(100, count), min(500, count), count}):
        began = time.perf_counter()
        _run(engine, stop - done)
        took = (time.perf_counter() - began) / max(stop - done, 1)
        done = stop
        census = usage.settled(engine, lines[0].census)
        lines.append(Line(after=f"{done} in a row ({took * 1000:.1f} ms each)", census=census))
    return lines


def _run(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.run(engines.OURS_IMAGE, ["true"], check=True)


def at_once(engine: Engine, count: int) -> list[Line]:
    """All run at the same moment; a second time tells what the first one's memory was for."""
    _together(engine, 2)  # so that rooms for cells of this kind are built ahead before, too
    lines = [Line(after="before", census=usage.settled(engine))]
    for turn in ("", ", again"):
        took, memory = _together(engine, count)
        each = (memory.proportional - lines[-1].census.launcher_memory.proportional) / count
        cost = "memory not told, a user may not read it" if memory.unread else f"{each / 1024:.0f} KiB for each"
        print(f"{count} at once{turn}: all running after {took:.2f} s; {cost}", flush=True)
        lines.append(Line(after=f"{count} at once{turn}", census=usage.settled(engine, lines[0].census)))
    return lines


def _together(engine: Engine, count: int) -> tuple[float, usage.Memory]:
    """Start them in threads and let them end when all are there; how long that took, and their memory."""
    reader, writer = os.pipe()
    ready = threading.Semaphore(0)

    def one(source: Any) -> None:
        engine.run(
            engines.OURS_IMAGE, script="echo ready; read line; :", stdin=source, check=True,
            output=lambda _, data: ready.release() if data == _READY else None,
        )  # fmt: skip

    with os.fdopen(reader, "rb") as source, ThreadPoolExecutor(count) as pool:
        try:
            began = time.perf_counter()
            running = [pool.submit(one, source) for _ in range(count)]
            for _ in range(count):
                if not ready.acquire(timeout=_STARTING):
                    raise RuntimeError(next((str(each.exception()) for each in running if each.done()), "too slow"))
            took = time.perf_counter() - began
            session = engine._session  # noqa: SLF001 - as in `usage.census`
            memory = usage.memory(usage.family(session.runtime.pid) if session and session.runtime.pid else [])
        finally:
            os.close(writer)  # end of file is what they wait for
        for each in running:
            each.result()
    return took, memory


def print_lines(lines: Sequence[Line]) -> None:
    """A line for each census."""
    width = max(len(each.after) for each in lines)
    names = list(lines[0].census.counts)
    sizes = ("engine RSS", "engine PSS", "launcher RSS", "launcher PSS")
    print(f"{'':<{width}} " + " ".join(f"{name:>{max(len(name), 6)}}" for name in (*names, *sizes)) + "  (MiB)")
    for each in lines:
        counts = [f"{count:>{max(len(name), 6)}}" for name, count in each.census.counts.items()]
        engine, launcher = each.census.engine_memory, each.census.launcher_memory
        figures = (engine.resident, engine.proportional, launcher.resident, launcher.proportional)
        megabytes = [f"{figure / (1 << 20):>{len(name)}.1f}" for name, figure in zip(sizes, figures, strict=True)]
        print(f"{each.after:<{width}} " + " ".join((*counts, *megabytes)), flush=True)
    print()


def growth(lines: Sequence[Line]) -> list[str]:
    """What is more at the end than it was, a sentence each; memory counts from the first stop on."""
    first, last = lines[0], lines[-1]
    found = [
        f"GROWN after {last.after}: {name}, {first.census.counts[name]} before, {count} now"
        for name, count in last.census.counts.items()
        if count > first.census.counts[name]
    ]
    for who in ("engine", "launcher"):
        before, now = (getattr(each.census, f"{who}_memory").private for each in (lines[1], last))
        if now - before > _MEMORY_GROWTH:
            found.append(f"GROWN after {last.after}: memory of the {who}, {before >> 10} KiB before, {now >> 10} now")
    return found


# --- how many in a second ---------------------------------------------------------------------------------------------


def throughput(
    ours: engines.Ours | None, others: Sequence[engines.Peer], count: int, rounds: int
) -> list[peers.Contender]:
    """Let everybody start `count` containers, so many at a time; contenders answer seconds for one container."""
    contenders: list[peers.Contender] = []
    for parallel in _PARALLEL:
        group: list[peers.Contender] = []
        if ours is not None:
            group.append(
                peers.Contender(name=f"{engines.OURS} -P {parallel}", act=partial(_threads, ours, count, parallel))
            )
        group += [
            peers.Contender(name=f"{each.name} -P {parallel}", act=partial(_xargs, each, count, parallel))
            for each in others
        ]
        peers.alternate(group, rounds, warm_up=0, pause=0.5)
        contenders += group
    print(f"time per container, {count} in a round; -P is how many at a time")
    peers.print_table(contenders, tuple(f"{engines.OURS} -P {parallel}" for parallel in _PARALLEL))
    for each in contenders:
        if each.seconds:
            print(f"{each.name}: {1 / each.median:.0f} containers per second")
    sys.stdout.flush()
    return contenders


def _threads(ours: engines.Ours, count: int, parallel: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        for done in [pool.submit(ours.run) for _ in range(count)]:
            done.result()
    return (time.perf_counter() - began) / count


def _xargs(peer: engines.Peer, count: int, parallel: int) -> float:
    lines = "".join(" ".join(peer.fresh()) + "\n" for _ in range(count))
    began = time.perf_counter()
    done = subprocess.run(
        ["xargs", "--max-procs", str(parallel), "--max-lines=1", "env"],
        input=lines, text=True, cwd=peer.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()}")
    return (time.perf_counter() - began) / count


if __name__ == "__main__":
    sys.exit(main())
