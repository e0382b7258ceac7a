#!/usr/bin/env python3
"""Builds beside docker build (BuildKit) and buildah: ten RUN steps, the same from the cache, a COPY of many files.

    python benchmarks/build.py [--rounds 5] [--files 20000] [--tar root.tar] [--json FILE]

Three stories, each a table of its own: ``FROM`` Debian and ten ``RUN echo`` without cache; the same Dockerfile when
every step is known; one ``COPY`` of a folder of small files without cache. Ours is timed in the process of a notebook,
as `%%dockerfile` has it, and as the command `nbcontainer build`; the others as the commands people type. All have the
machine's network in RUN, and the same image out of a registry on loopback, pulled before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peers
import pull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbcontainer import Engine

_OURS = "nbcontainer"
_COMMAND = "nbcontainer build"
_STEPS = 10
_FILES = 20_000
_STORIES: dict[str, tuple[peers.Target, ...]] = {
    "ten RUN echo, without cache": (peers.Target(contender=_OURS, reference="docker", most=1 / 8),),
    "ten RUN echo, all cached": (
        peers.Target(contender=_OURS, reference="docker", most=1 / 5),
        peers.Target(contender=_OURS, reference="buildah", most=1 / 5),
    ),
    "COPY of many files": (peers.Target(contender=_OURS, reference="docker", most=1),),
}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=5)
    parser.add_argument("--files", type=int, default=_FILES, help="files of the COPY (default %(default)s)")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    only = tuple(filter(None, options.only.split(",")))
    with peers.open_stage(options.temporary) as stage:
        host = stage.undo.enter_context(peers.registry(stage))
        image, _ = pull.push(stage, stage.root_tar(options.tar), host, "gzip")
        contexts = {
            "ten RUN echo, without cache": _steps_context(stage, image, "steps"),
            "ten RUN echo, all cached": _steps_context(stage, image, "cached"),
            "COPY of many files": _files_context(stage, image, options.files),
        }
        builders = _builders(stage, image, only)
        report: dict[str, Any] = {}
        for story, folder in contexts.items():
            cached = "cached" in story
            contenders = [
                peers.Contender(name=name, act=partial(build, folder, cached)) for name, build in builders.items()
            ]
            if cached:  # the first build fills it; who fails says so below
                for build in builders.values():
                    with contextlib.suppress(RuntimeError):
                        build(folder, True)  # noqa: FBT003 - from the cache
            print(f"\n{story}")
            peers.alternate(contenders, options.rounds, warm_up=1, pause=0.2)
            peers.print_table(contenders, ("docker", _OURS))
            report[story] = {
                "seconds": {each.name: each.seconds for each in contenders},
                "targets": peers.print_targets(contenders, _STORIES[story]),
            }
        peers.json_report(options.json, facts, [], stories=report)


# --- what is built ----------------------------------------------------------------------------------------------------


def _steps_context(stage: peers.Stage, image: str, name: str) -> str:
    folder = Path(stage.path(name))
    folder.mkdir()
    steps = "".join(f"RUN echo {name} {number}\n" for number in range(_STEPS))
    (folder / "Dockerfile").write_text(f"FROM {image}\n{steps}", encoding="ascii")
    return str(folder)


def _files_context(stage: peers.Stage, image: str, count: int) -> str:
    """Files of 1 to 4 KiB in folders of a hundred."""
    folder = Path(stage.path("files"))
    for number in range(count):
        path = folder / "tree" / f"{number // 100}" / f"{number}.txt"
        if number % 100 == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(f"{number} ".encode() * (200 + number % 600))
    (folder / "Dockerfile").write_text(f"FROM {image}\nCOPY tree /tree\n", encoding="ascii")
    return str(folder)


# --- who builds it ----------------------------------------------------------------------------------------------------


def _builders(stage: peers.Stage, image: str, only: Sequence[str]) -> dict[str, Callable[[str, bool], None]]:
    """Everybody who is here, each with the image in a store of its own."""
    wanted = [
        name
        for name in (_OURS, _COMMAND, "docker", "buildah")
        if not only or any(name.startswith(each) for each in only)
    ]
    found: dict[str, Callable[[str, bool], None]] = {}
    if _OURS in wanted or _COMMAND in wanted:
        from nbcontainer import Engine, Settings

        engine = stage.undo.enter_context(Engine(Settings(root=stage.path("ours"))))
        engine.pull(image)
        found[_OURS] = partial(_ours, engine)
        found[_COMMAND] = partial(_command, stage.path("ours"))
    if "docker" in wanted and peers.find("dockerd"):
        docker = stage.undo.enter_context(peers.dockerd(stage))
        peers.check(*docker, "pull", image)
        found["docker"] = partial(_docker, docker)
    if "buildah" in wanted and peers.find("buildah"):
        root = ("buildah", "--root", stage.path("buildah"), "--runroot", stage.path("buildah-run"))
        peers.check(*root, "pull", "--tls-verify=false", image)
        found["buildah"] = partial(_buildah, root)
    return {name: build for name, build in found.items() if name in wanted}


def _ours(engine: Engine, folder: str, cached: bool) -> None:  # noqa: FBT001 - one of two stories
    from nbcontainer.build.context import ContextSource
    from nbcontainer.build.request import BuildOptions

    engine.build(BuildOptions(context=ContextSource(folder=folder), tags=("bench",), no_cache=not cached))


def _command(root: str, folder: str, cached: bool) -> None:  # noqa: FBT001 - one of two stories
    cache = () if cached else ("--no-cache",)
    environment = {**os.environ, "NBCONTAINER_ROOT": root}
    peers.check(sys.executable, "-m", "nbcontainer", "build", "-q", *cache, "-t", "bench", folder, env=environment)


def _docker(docker: tuple[str, ...], folder: str, cached: bool) -> None:  # noqa: FBT001 - one of two stories
    cache = () if cached else ("--no-cache",)
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    peers.check(*docker, "build", "-q", "--network", "host", *cache, "-t", "bench", folder, env=environment)


def _buildah(root: tuple[str, ...], folder: str, cached: bool) -> None:  # noqa: FBT001 - one of two stories
    cache = ("--layers",) if cached else ("--layers", "--no-cache")
    peers.check(
        *root, "build", "-q", "--isolation", "chroot", "--network", "host", "--tls-verify=false", *cache, "-t", "bench",
        folder,
    )  # fmt: skip


if __name__ == "__main__":
    main()
