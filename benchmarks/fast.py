#!/usr/bin/env python3
"""Everything about the speed and cost of running containers, in one go: start, inside, network, memory and many.

    python benchmarks/fast.py [--as USER]… [--quick] [--tar debian.tar] [--json FILE]

Each program runs as whoever calls this and then, when root calls it, as each USER again: one with a range of
subordinate ids and one without give the two other kinds of isolation. USER must be able to run this interpreter and to
read this folder. ``--quick`` takes a fraction of the rounds, to see that all of it works.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from pathlib import Path
from typing import Any

import peers

_PROGRAMS: dict[str, tuple[str, ...]] = {
    "start.py": ("--rounds", "4"),
    "inside.py": ("--rounds", "4"),
    "network.py": ("--rounds", "4", "--seconds", "1"),
    "memory.py": ("--rounds", "1", "--containers", "4"),
    "many.py": ("--row", "100", "--at-once", "20", "--containers", "20", "--rounds", "1"),
}
"""The programs, and what makes them quick."""


def main() -> int:
    """Run all of it; the exit code is 1 when a program failed or found growth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--as", metavar="USER", dest="users", action="append", default=[], help="also as this user")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--tar", metavar="FILE", help="a root file system to use, instead of running mmdebstrap")
    options = parser.parse_args()
    accounts = peers.accounts(parser, options.users)
    results: dict[str, dict[str, Any]] = {}
    failed = []
    with peers.open_stage() as stage:
        os.chmod(stage.folder, 0o711)  # users read the root file system in it, by its name
        tar = stage.root_tar(options.tar)
        for account in (None, *accounts):
            who = "root" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
            who = account.pw_name if account else who
            results[who] = {}
            for program, quick in _PROGRAMS.items():
                print(f"\n═══ {program} as {who}\n", flush=True)
                arguments = ("--tar", tar, *(quick if options.quick else ()))
                found, code = peers.run_program(program, arguments, account)
                results[who][program] = found
                if code:
                    failed.append(f"{program} as {who} ended with exit code {code}")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print("\n" + "\n".join(failed or ["all programs ended well"]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
