#!/usr/bin/env python3
"""Building images: ten RUN steps, the same again from the cache, and a COPY of many files.

    python benchmarks/build.py [--rounds 10] [--files 20000] [--tar debian.tar] [--json FILE]

Four tables. ``run``: ten steps of ``RUN echo`` without cache. ``cached``: the same Dockerfile when all of it is known.
``copy``: a COPY of a folder that was made this moment, without cache. ``change``: the same folder with one file of it
changed. Ours is built in this process, as a cell does it, and by the command line ``nbcontainer build``; docker with
BuildKit and without, and buildah, by theirs. Everybody gives each step a layer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
import peers

from nbcontainer.build.request import BuildOptions, ContextSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

CLASSIC, BUILDKIT, BUILDAH, OURS_TYPED = "docker classic", "docker", "buildah", f"{engines.OURS} build"
_BASE = "nbc-bench"
_STEPS = 10
_FILES_IN_A_FOLDER = 200
_SLOW_ROUNDS = 4
_TARGETS = {
    "run": (peers.Target(contender=engines.OURS, reference=BUILDKIT, most=1 / 8),),
    "cached": tuple(
        peers.Target(contender=engines.OURS, reference=reference, most=1 / 5) for reference in (BUILDKIT, BUILDAH)
    ),
    "copy": (peers.Target(contender=engines.OURS, reference=BUILDKIT, most=1),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """One that builds. `build` is given the folder with a Dockerfile, and whether what is known may be used."""

    name: str
    base: str
    build: Callable[[str, bool], None]


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=10)
    parser.add_argument("--files", type=int, default=20_000, help="how many files COPY finds (default 20000)")
    parser.add_argument("--case", choices=tuple(_CASES), action="append", help="only this table; may be repeated")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    results: dict[str, Any] = {}
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar)
        found, problems = set_up(stage, tar, tuple(filter(None, options.only.split(","))))
        for case in options.case or _CASES:
            contenders = [contender(stage, case, builder, options.files) for builder in found]
            contenders += [
                peers.Contender(name=name, act=lambda: None, problem=text) for name, text in problems.items()
            ]
            heading, most = _CASES[case]
            print(f"\n{case}: {heading.format(files=options.files)}", flush=True)
            peers.alternate(contenders, min(options.rounds, most), warm_up=1, pause=0.5)
            peers.print_table(contenders, (engines.OURS, BUILDKIT, BUILDAH))
            targets = peers.print_targets(contenders, _TARGETS.get(case, ()))
            for each in contenders:
                problems.update({each.name: each.problem} if each.problem and each.seconds else {})
            results[case] = {
                "targets": targets,
                **{each.name: each.seconds or {"problem": each.problem} for each in contenders},
            }
        peers.json_report(options.json, facts, (), cases=results)


_CASES = {
    "run": (f"{_STEPS} steps of RUN echo, without cache", 100),
    "cached": ("the same, all of it known", 100),
    "copy": ("a new folder of {files} files, without cache", _SLOW_ROUNDS),
    "change": ("the same folder with one file changed", _SLOW_ROUNDS),
}
"""What each table is of, and the most rounds it is given."""


# --- the cases --------------------------------------------------------------------------------------------------------


def contender(stage: peers.Stage, case: str, builder: Builder, files: int) -> peers.Contender:
    """What a builder does in one case, with a folder of its own."""
    folder = stage.path(f"context-{builder.name.replace(' ', '-')}")
    os.makedirs(folder, exist_ok=True)

    dockerfile = Path(folder, "Dockerfile")

    def write(text: str) -> None:
        dockerfile.write_text(f"FROM {builder.base}\n{text}", encoding="utf-8")

    lines = "".join(f"RUN echo {number}\n" for number in range(_STEPS))
    many = Path(folder, "many")

    def new_folder() -> None:
        shutil.rmtree(many, ignore_errors=True)
        fill(many, files)
        write("COPY many /many\n")

    def changed() -> None:
        if not many.exists():
            new_folder()
        write("COPY many /many\n")
        with open(many / "0" / "0", "ab") as file:
            file.write(b"more\n")

    before = {"run": partial(write, lines), "cached": partial(write, lines), "copy": new_folder, "change": changed}
    return peers.Contender(
        name=builder.name, before=before[case], act=partial(builder.build, folder, case in {"cached", "change"})
    )


def fill(folder: Path, files: int) -> None:
    """Write small files that were never there before, in folders of some hundreds."""
    salt = os.urandom(8).hex()
    for number in range(files):
        below = folder / str(number // _FILES_IN_A_FOLDER)
        if number % _FILES_IN_A_FOLDER == 0:
            below.mkdir(parents=True)
        (below / str(number % _FILES_IN_A_FOLDER)).write_text(f"{salt} {number}\n" * 10, encoding="ascii")


# --- who builds -------------------------------------------------------------------------------------------------------


def set_up(stage: peers.Stage, tar: str, only: Collection[str]) -> tuple[list[Builder], dict[str, str]]:
    """Set up everybody that `only` admits; also tell who could not be, and why."""
    print("setting up …", flush=True)
    found: list[Builder] = []
    problems: dict[str, str] = {}
    docker: list[tuple[str, ...]] = []
    for name, recipe in _RECIPES.items():
        if only and not name.startswith(tuple(only)):
            continue
        if name in _PROGRAMS and peers.find(_PROGRAMS[name]) is None:
            print(f"{name}: absent")
            continue
        try:
            found.append(recipe(stage, tar, docker))
        except (RuntimeError, OSError) as problem:
            problems[name] = str(problem)
    return found, problems


def _ours(stage: peers.Stage, tar: str, _docker: list[tuple[str, ...]]) -> Builder:
    """The engine in this process, as a notebook has it."""
    ours = engines.Ours(stage, tar)

    def build(folder: str, use: bool) -> None:  # noqa: FBT001 - `Builder.build`
        options = BuildOptions(context=ContextSource(folder=folder), tags=("bench",), network="host", no_cache=not use)
        ours.engine.build(options)

    return Builder(name=engines.OURS, base=engines.OURS_IMAGE, build=build)


def _ours_typed(stage: peers.Stage, tar: str, _docker: list[tuple[str, ...]]) -> Builder:
    """Our command line, which starts a Python and an engine each time."""
    root = stage.path("typed")
    environment = {**os.environ, "NBCONTAINER_ROOT": root}
    served = stage.undo.enter_context(engines.InProcessRegistry())
    served.add_image(f"library/{engines.OURS_IMAGE}", "latest", layers=[Path(tar).read_bytes()], compression="none")
    program = (sys.executable, "-m", "nbcontainer")
    peers.check(
        *program, "pull", engines.OURS_IMAGE, env={**environment, "NBCONTAINER_MIRRORS": f"docker.io={served.url}"}
    )

    def build(folder: str, use: bool) -> None:  # noqa: FBT001 - `Builder.build`
        chosen = () if use else ("--no-cache",)
        peers.check(*program, "build", "--network", "host", "-t", "bench", *chosen, folder, env=environment)

    return Builder(name=OURS_TYPED, base=engines.OURS_IMAGE, build=build)


def _docker(
    variables: dict[str, str], name: str, stage: peers.Stage, tar: str, docker: list[tuple[str, ...]]
) -> Builder:
    """A dockerd of our own, one for both of its builders."""
    if os.geteuid() != 0:
        raise RuntimeError("dockerd needs root")
    if not docker:
        docker.append(stage.undo.enter_context(peers.dockerd(stage)))
        peers.check(*docker[0], "import", tar, _BASE)
    program = docker[0]
    environment = {**os.environ, **variables}

    def build(folder: str, use: bool) -> None:  # noqa: FBT001 - `Builder.build`
        chosen = () if use else ("--no-cache",)
        peers.check(*program, "build", "--network", "host", "-t", "bench", *chosen, folder, env=environment)

    return Builder(name=name, base=_BASE, build=build)


def _buildah(stage: peers.Stage, tar: str, _docker: list[tuple[str, ...]]) -> Builder:
    """A store of its own, and the first isolation that builds here: crun refuses some machines, a user has the last."""
    program: tuple[str, ...] = ("buildah", "--root", stage.path("buildah"), "--runroot", stage.path("buildah-run"))
    stage.undo.callback(subprocess.run, [*program, "rm", "--all"], capture_output=True, check=False)
    working = peers.check(*program, "from", "scratch").strip()
    peers.check(*program, "add", working, tar)
    peers.check(*program, "commit", "--rm", working, _BASE)
    base = f"localhost/{_BASE}"

    def build(isolation: tuple[str, ...], folder: str, use: bool) -> None:  # noqa: FBT001 - `Builder.build`
        chosen = () if use else ("--no-cache",)
        peers.check(
            *program, "build", "--layers", *isolation, *_BUILDAH_LIMITS, "--network", "host", "-t", "bench", *chosen,
            folder,
        )  # fmt: skip

    trial = stage.path("buildah-trial")
    os.makedirs(trial, exist_ok=True)
    Path(trial, "Dockerfile").write_text(f"FROM {base}\nRUN true\n", encoding="ascii")
    refusals = []
    for isolation in _ISOLATIONS if os.geteuid() == 0 else _ISOLATIONS[-1:]:
        try:
            build(isolation, trial, False)  # noqa: FBT003 - `Builder.build`
        except RuntimeError as problem:
            refusals.append(str(problem))
        else:
            print(f"{BUILDAH}: {' '.join(isolation)}")
            return Builder(name=BUILDAH, base=base, build=partial(build, isolation))
    raise RuntimeError("; ".join(refusals))


_ISOLATIONS = (
    ("--isolation", "oci", "--runtime", "crun"),
    ("--isolation", "oci", "--runtime", "runc"),
    ("--isolation", "chroot"),
)
_BUILDAH_LIMITS = peers.PODMAN_LIMITS
_RECIPES: dict[str, Callable[[peers.Stage, str, list[tuple[str, ...]]], Builder]] = {
    engines.OURS: _ours,
    OURS_TYPED: _ours_typed,
    BUILDKIT: partial(_docker, {"DOCKER_BUILDKIT": "1"}, BUILDKIT),
    CLASSIC: partial(_docker, {"DOCKER_BUILDKIT": "0"}, CLASSIC),
    BUILDAH: _buildah,
}
_PROGRAMS = {BUILDKIT: "docker", CLASSIC: "docker", BUILDAH: "buildah"}


if __name__ == "__main__":
    sys.exit(main())
