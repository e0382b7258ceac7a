#!/usr/bin/env python3
"""``%load_ext nbcontainer``: how long it takes in a fresh interpreter, and what it imports.

    python benchmarks/load.py [--rounds 20] [--json FILE]

IPython is imported and its shell made before the clock starts, as in a notebook. *Heavy* modules are those that the
first cell may need and loading must not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

import peers

_HEAVY = (
    "ipywidgets", "pyroute2", "requests", "urllib3", "ssl", "http.client", "zstandard", "isal", "pyseccomp", "ctypes",
    "asyncio", "argparse", "importlib.metadata", "nbcontainer.engine.engine", "nbcontainer.registry",
    "nbcontainer.runtime.driver",
)  # fmt: skip
_PROGRAM = """\
import json, sys, time
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
began = time.perf_counter()
shell.run_line_magic("load_ext", "nbcontainer")
took = time.perf_counter() - began
print(json.dumps({"seconds": took, "new": sorted(set(sys.modules) - before), "before": sorted(before)}))
"""


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="fresh interpreters (default 20)")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    options = parser.parse_args()
    facts = peers.environment()
    print(f"Python {facts['python']}, Linux {facts['kernel']}, {facts['cpus']} CPUs\n")
    last = {}

    def load() -> float:
        told = in_fresh_interpreter()
        last.update(told)
        return float(told["seconds"])

    contender = peers.Contender(name="%load_ext nbcontainer", act=load)
    # the first one compiles what is not compiled yet
    peers.alternate([contender], options.rounds, warm_up=1, pause=0)
    peers.print_table([contender], ())
    if contender.problem:
        sys.exit(contender.problem)
    ours = [name for name in last["new"] if name.split(".")[0] == "nbcontainer"]
    heavy = [name for name in _HEAVY if name in last["new"]]
    already = [name for name in _HEAVY if name in last["before"]]
    print(f"\n{len(last['new'])} modules imported, {len(ours)} of them ours: {', '.join(ours)}")
    print(f"heavy ones imported by it: {', '.join(heavy) or 'none'}")
    print(f"heavy ones that IPython had imported before: {', '.join(already) or 'none'}")
    peers.json_report(options.json, facts, [contender], modules=last["new"], heavy=heavy)


def in_fresh_interpreter() -> dict[str, object]:
    """Load the extension in a new process whose IPython has no configuration or history of anybody's."""
    with tempfile.TemporaryDirectory(prefix="nbc-bench-") as folder:
        environment = {**os.environ, "IPYTHONDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    told: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main()
