"""Boot Debian in qemu and run the tests there: ``python -m tests.vm [OPTIONS] [-- PYTEST-ARGUMENT…]``.

The machine has systemd, cgroup v2 alone, AppArmor and no network. Tests run in it as root, as a service would, then as
a user who is logged in and has started them in a scope of their own (``systemd-run --user --scope -p Delegate=yes``),
and those of limits as one who has not. What pytest says there is shown as it comes; the exit
status is 0 when all of it passed.

The disk is made once and kept in the cache folder, with Debian's packages by mmdebstrap and Python's by pip, each asked
in its ordinary way. Nothing of the machine's own is changed, and root is not needed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from tests.vm.guest import SESSIONS, Plan
from tests.vm.image import TOOLS, Recipe, checkout, disk, missing
from tests.vm.machine import Machine, boot

__all__ = ["main"]


def main() -> int:
    """Read the command line, make what is missing, boot, and answer what the guest answered."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that qemu is ended, and what is half made removed
    options = _parser().parse_args()
    lacking = missing((*TOOLS, Machine.program))
    if lacking:
        sys.exit(f"needs {', '.join(lacking)}: apt install {' '.join(sorted(set(lacking.values())))}")
    recipe = Recipe(suite=options.suite)
    built = disk(recipe, options.cache)
    if options.build_only:
        return 0
    plan = Plan(
        sessions=tuple(options.session or SESSIONS),
        seconds=options.timeout * 60 * 0.9,
        tests=tuple(options.tests or ()),
        arguments=tuple(options.arguments),
        patience=options.patience,
    )
    with tempfile.TemporaryDirectory(prefix="nbcontainer-vm-") as folder:
        kept = options.keep or Path(folder)
        kept.mkdir(parents=True, exist_ok=True)
        machine = Machine(
            disk=built,
            checkout=checkout(kept / "checkout.tar", plan),
            folder=kept,
            memory=options.memory,
            processors=options.processors,
        )
        return boot(machine, timeout=options.timeout * 60, show=sys.stdout.write)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser.add_argument(
        "--cache", type=Path, default=caches / "nbcontainer-vm", metavar="FOLDER", help="where the disk is kept"
    )
    parser.add_argument("--suite", default="trixie", help="the Debian release (trixie)")
    parser.add_argument("--build-only", action="store_true", help="make the disk and do not boot it")
    parser.add_argument(
        "--session", action="append", choices=sorted(SESSIONS), help="run only as these people; repeatable (all)"
    )
    parser.add_argument(
        "--tests", action="append", metavar="PATH", help="run only these tests; repeatable (what each session is for)"
    )
    parser.add_argument("--timeout", type=float, default=180, metavar="MINUTES", help="for everything in it (180)")
    parser.add_argument(
        "--patience", type=float, default=10, metavar="TIMES", help="how much longer than usual a test may wait (10)"
    )
    parser.add_argument("--memory", type=int, default=4096, metavar="MIB", help="the machine's memory (4096)")
    parser.add_argument("--processors", type=int, default=2, metavar="N", help="the machine's processors (2)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep console.log and report.txt there")
    parser.add_argument("arguments", nargs="*", metavar="PYTEST-ARGUMENT", help="after --: goes to pytest")
    return parser


if __name__ == "__main__":
    sys.exit(main())
