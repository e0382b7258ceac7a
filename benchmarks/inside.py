#!/usr/bin/env python3
"""``exec true`` in a container that runs already: ours against docker, podman, crun and runc.

    python benchmarks/inside.py [--rounds 20] [--tar debian.tar] [--json FILE]

Each engine holds one container in which a command sleeps. Ours is a call in this process, as from a cell; the others
are command lines.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import engines
import peers

_HELD = "held"
_TARGETS = (peers.Target(contender=engines.OURS, reference="docker", most=1 / 20),)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=20)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two measurements (default 0.05)")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar)
        only = tuple(filter(None, options.only.split(",")))
        ours, others, problems = engines.set_up(stage, tar, (engines.OURS, "crun", "runc", "podman", "docker"), only)
        contenders = [_contender(engines.OURS, ours.hold, ours.enter)] if ours else []
        contenders += [_contender(each.name, each.begin, each.visit) for each in others]
        contenders += [peers.Contender(name=name, act=lambda: None, problem=text) for name, text in problems.items()]
        peers.alternate(contenders, options.rounds, warm_up=2, pause=options.pause)
        print("exec true:")
        peers.print_table(contenders, (engines.OURS, "docker"))
        targets = peers.print_targets(contenders, _TARGETS)
        peers.json_report(options.json, facts, contenders, targets=targets)


def _contender(name: str, hold, enter) -> peers.Contender:  # noqa: ANN001 - two methods of an engine
    try:
        hold(_HELD)
    except (RuntimeError, OSError) as problem:
        return peers.Contender(name=name, act=lambda: None, problem=str(problem))
    return peers.Contender(name=name, act=partial(enter, _HELD))


if __name__ == "__main__":
    sys.exit(main())
