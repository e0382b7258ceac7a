"""Run one fuzz target for as long as wanted: ``python -m tests.fuzz TARGET [--seconds N] [--seed N] [--atheris]``.

Mutates the corpus at random, or lets atheris, guided by coverage, do it where that is installed. An input that makes a
finding is written into the corpus, where the short run of every test session meets it too. As root, run it in
namespaces of its own (``unshare --mount --pid --fork``): a finding of the layer targets is a write to the wrong place.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import time
import traceback

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import CORPUS, TARGETS, corpus

SLOW = 2.0
"""Seconds of processor time after which an input of some hundred bytes is a finding."""


def main() -> int:
    """Read the command line and run; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument("--seed", type=int, default=time.time_ns(), help="start of the random numbers (the time)")
    parser.add_argument("--atheris", action="store_true", help="let atheris guide it; it takes over the process")
    options = parser.parse_args()
    if options.atheris:
        return guided(options.target, options.seconds)
    return at_random(options.target, options.seconds, options.seed)


def at_random(name: str, seconds: float, seed: int) -> int:
    """Mutate the corpus until the time is over."""
    numbers = random.Random(seed)
    seeds = [path.read_bytes() for path in corpus(name)] or [b""]
    began, count, found = time.monotonic(), 0, 0
    while time.monotonic() - began < seconds:
        data = numbers.randbytes(numbers.randrange(400))
        if numbers.randrange(3):
            data = mutated(numbers.choice(seeds), numbers.randbytes(numbers.randrange(60)), numbers.choice(seeds))
        count += 1
        started = time.process_time()
        try:
            TARGETS[name](data)
            assert time.process_time() - started < SLOW, "an input this small took this long"
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            found += 1
            print(f"{keep(name, data)}:\n{traceback.format_exc()}")
            if found >= 10:
                break
    print(f"{name}: {count} inputs in {time.monotonic() - began:.0f} s from seed {seed}, {found} findings")
    return 1 if found else 0


def guided(name: str, seconds: float) -> int:
    """Let libFuzzer choose; it ends the process itself."""
    import atheris

    def target(data: bytes) -> None:
        try:
            TARGETS[name](data)
        except BaseException:
            print(keep(name, data))
            raise

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", str(CORPUS / name)], target)
    atheris.Fuzz()
    return 0


def keep(name: str, data: bytes) -> str:
    """Write an input into the corpus; its path."""
    path = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    os.makedirs(path.parent, exist_ok=True)
    path.write_bytes(data)
    return str(path)


if __name__ == "__main__":
    sys.exit(main())
