#!/usr/bin/env python3
"""Container start to exit: ``true`` in a fresh container without network, and the same as a notebook cell.

    python benchmarks/start.py [--rounds 30] [--tar debian.tar] [--json FILE]

Ours, docker and podman give each container a copy-on-write layer of its own; bwrap, runc and crun are given a
directory that is unpacked already, which is less work. Ours is always in a user namespace, the others only when
started by a user who is not root. The last three contenders are cells of an IPython shell in this process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peers

from nbcontainer import Engine, Settings
from nbcontainer.testing.registry import InProcessRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

_OURS = "nbcontainer"
_SLOW_ROUNDS = 10
_IN_A_ROW = 50
_IMAGE = "nbc-bench"


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=30)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two measurements (default 0.05)")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar)
        contenders = make_contenders(stage, tar, tuple(filter(None, options.only.split(","))))
        peers.alternate(contenders, options.rounds, warm_up=2, pause=options.pause)
        peers.print_table(contenders, ("bwrap", _OURS))
        row = in_a_row(contenders)
        peers.json_report(options.json, facts, contenders, in_a_row=row)


def make_contenders(stage: peers.Stage, tar: str, only: tuple[str, ...]) -> list[peers.Contender]:
    """Set everybody up; whoever cannot be is a contender with a problem."""
    print("setting up …", flush=True)
    recipes: dict[str, Callable[[peers.Stage, str], peers.Contender]] = {
        _OURS: ours,
        "bwrap": bwrap,
        "runc": partial(oci_runtime, "runc"),
        "crun": partial(oci_runtime, "crun"),
        "podman": podman,
        "docker": docker,
    }
    chosen = {name: recipe for name, recipe in recipes.items() if not only or name.startswith(only)}
    directory = stage.path("rootfs")
    os.mkdir(directory)
    # device nodes are every contender's own business, and only root could make them
    peers.check("tar", "--extract", "--file", tar, "--directory", directory, "--exclude=./dev/*")
    contenders = []
    for name, recipe in chosen.items():
        if name != _OURS and peers.find(name) is None:
            print(f"{name}: absent")
            continue
        try:
            contenders.append(recipe(stage, tar))
        except (RuntimeError, OSError) as problem:
            contenders.append(peers.Contender(name=name, act=lambda: None, problem=str(problem)))
    cells = (
        [each for each in notebook_cells(stage) if not only or each.name.startswith(only)] if _OURS in chosen else []
    )
    return [*contenders, *cells]


def command(*argv: str, cwd: str | None = None) -> None:
    """Run a contender's command line; nothing is shown unless it fails."""
    done = subprocess.run(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()}")


# --- the contenders ---------------------------------------------------------------------------------------------------


def ours(stage: peers.Stage, tar: str) -> peers.Contender:
    """Our engine in this process, the image pulled from a registry in this process."""
    served = stage.undo.enter_context(InProcessRegistry())
    served.add_image("library/debian", "latest", layers=[Path(tar).read_bytes()], compression="none")
    settings = Settings(root=stage.path("ours"), mirrors={"docker.io": (served.url,)})
    engine = stage.undo.enter_context(Engine(settings))
    engine.pull("debian")
    return peers.Contender(name=_OURS, act=partial(_run_ours, engine))


def _run_ours(engine: Engine) -> None:
    engine.run("debian", ["true"], check=True)


def bwrap(stage: peers.Stage, _tar: str) -> peers.Contender:
    """All namespaces, the directory as root, private /proc and /dev."""
    act = partial(
        command,
        "bwrap",
        "--unshare-all",
        "--bind",
        stage.path("rootfs"),
        "/",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "true",
    )
    return peers.Contender(name="bwrap", act=act)


def oci_runtime(name: str, stage: peers.Stage, _tar: str) -> peers.Contender:
    """`runc spec`'s own bundle, with ``true`` for a command and no terminal."""
    bundle = stage.path(f"{name}-bundle")
    os.mkdir(bundle)
    rootless = os.geteuid() != 0
    peers.check(name, "spec", *(["--rootless"] if rootless else []), cwd=bundle)
    path = Path(bundle, "config.json")
    spec = json.loads(path.read_text(encoding="utf-8"))
    spec["process"].update(terminal=False, args=["true"])
    spec["root"]["path"] = stage.path("rootfs")
    path.write_text(json.dumps(spec), encoding="utf-8")
    program = (name, "--root", stage.path(f"{name}-state"))
    numbers = itertools.count()

    def act() -> None:
        command(*program, "run", f"nbc-bench-{os.getpid()}-{next(numbers)}", cwd=bundle)

    return peers.Contender(name=name, act=act)


def podman(stage: peers.Stage, tar: str) -> peers.Contender:
    """An imported image."""
    program = peers.podman(stage)
    peers.check(*program, "import", tar, _IMAGE)
    act = partial(command, *program, "run", "--rm", "--network", "none", *peers.PODMAN_LIMITS, _IMAGE, "true")
    return peers.Contender(name="podman", act=act, rounds=_SLOW_ROUNDS)


def docker(stage: peers.Stage, tar: str) -> peers.Contender:
    """A dockerd of our own."""
    if os.geteuid() != 0:
        raise RuntimeError("dockerd needs root")
    program = stage.undo.enter_context(peers.dockerd(stage))
    peers.check(*program, "import", tar, _IMAGE)
    act = partial(command, *program, "run", "--rm", "--network", "none", _IMAGE, "true")
    return peers.Contender(name="docker", act=act, rounds=_SLOW_ROUNDS)


def notebook_cells(stage: peers.Stage) -> list[peers.Contender]:
    """Cells of an IPython shell in this process, on the store that `ours` has filled."""
    os.environ["IPYTHONDIR"] = stage.path("ipython")
    os.environ["NBCONTAINER_ROOT"] = stage.path("ours")
    from IPython.core.interactiveshell import InteractiveShell

    shell: Any = InteractiveShell.instance()
    stage.undo.callback(shell.history_manager.end_session)
    shell.run_line_magic("load_ext", "nbcontainer")
    stage.undo.callback(shell.run_line_magic, "unload_ext", "nbcontainer")

    def run_cell(text: str) -> None:
        shell.run_cell(text, store_history=False).raise_error()

    cells = {"%%container": "%%container debian\ntrue\n", "%%bash": "%%bash\ntrue\n", "!true": "!true\n"}
    return [peers.Contender(name=name, act=partial(run_cell, text)) for name, text in cells.items()]


def in_a_row(contenders: list[peers.Contender]) -> dict[str, float]:
    """Start one after the other without any pause, so that nothing done in the background is for free."""
    means = {}
    for each in contenders:
        if each.name in {_OURS, "bwrap"} and not each.problem:
            began = time.perf_counter()
            for _ in range(_IN_A_ROW):
                each.act()
            means[each.name] = (time.perf_counter() - began) / _IN_A_ROW
    if means:
        told = ", ".join(f"{name} {seconds * 1000:.2f} ms" for name, seconds in means.items())
        print(f"\nmean of {_IN_A_ROW} in a row, without a pause: {told}")
    return means


if __name__ == "__main__":
    sys.exit(main())
