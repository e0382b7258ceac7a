"""Which stages a build needs, and what each of them stands on: pure.

A stage is needed when it is the target, or a needed one is built on it, copies from it or mounts it. Names are decided
here: a ``--from`` that is no earlier stage is an image. Triggers of base images are not known yet and may name further
stages when they run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.dockerfile.expansion import expand, global_arguments
from nbcontainer.errors import InvalidOption
from nbcontainer.model import Platform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.dockerfile.parser import Dockerfile, Stage

__all__ = ["SCRATCH", "Plan", "PlannedStage", "plan", "platform_arguments"]

SCRATCH = "scratch"
_HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage of the file with its FROM decided: built on the stage `parent`, or on the image `image`.

    `needs` are the numbers of the stages that must be built for it.
    """

    stage: Stage
    parent: int | None
    image: str
    platform: Platform
    needs: tuple[int, ...]

    @property
    def index(self) -> int:
        """Its number in the file."""
        return self.stage.index

    @property
    def label(self) -> str:
        """What it is called in headings."""
        return self.stage.name or f"stage {self.index + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The needed stages by number, in the order of the file; `target` is the last one to build.

    `globals` are the arguments that FROM lines saw, which a stage gets one by one by declaring them.
    """

    dockerfile: Dockerfile
    target: int
    stages: Mapping[int, PlannedStage]
    globals: Mapping[str, str]
    escape: str


def platform_arguments(target: Platform, *, stage: str) -> dict[str, str]:
    """The arguments that are there without being given (Dockerfile reference, "Automatic platform ARGs")."""
    build = Platform.host()
    found = {"TARGETSTAGE": stage or "default"}
    for prefix, platform in (("TARGET", target), ("BUILD", build)):
        found[f"{prefix}PLATFORM"] = str(platform)
        found[f"{prefix}OS"] = platform.os
        found[f"{prefix}ARCH"] = platform.architecture
        found[f"{prefix}VARIANT"] = platform.variant
    return found


def plan(dockerfile: Dockerfile, *, target: str, given: Mapping[str, str], platform: Platform) -> Plan:
    """Decide what to build; raise `InvalidOption` for a target that is not there, `DockerfileError` for a bad FROM."""
    wanted = dockerfile.stages[-1]
    if target:
        found = dockerfile.stage(target)
        if found is None:
            names = ", ".join(stage.name for stage in dockerfile.stages if stage.name) or "no stage has a name"
            raise InvalidOption(f"there is no stage {target!r} in the Dockerfile; there are: {names}")
        wanted = found
    escape = dockerfile.directives.escape
    predefined = platform_arguments(platform, stage=target)
    predefined |= {name: given[name] for name in predefined if name in given}
    arguments = global_arguments(dockerfile.arguments, given, predefined, escape=escape)
    stages: dict[int, PlannedStage] = {}
    waiting = [wanted]
    while waiting:
        stage = waiting.pop()
        if stage.index not in stages:
            planned = _planned(dockerfile, stage, arguments, platform)
            stages[stage.index] = planned
            waiting += [dockerfile.stages[index] for index in planned.needs]
    return Plan(
        dockerfile=dockerfile,
        target=wanted.index,
        stages=dict(sorted(stages.items())),
        globals=arguments,
        escape=escape,
    )


def _planned(dockerfile: Dockerfile, stage: Stage, arguments: Mapping[str, str], platform: Platform) -> PlannedStage:
    base = expand(stage.base, arguments, escape=dockerfile.directives.escape).instruction
    chosen = platform
    if base.platform:
        try:
            chosen = Platform.parse(base.platform)
        except InvalidOption as problem:
            raise stage.base.origin.error(str(problem)) from problem
    parent = dockerfile.stage(base.image, before=stage.index) if not _is_number(base.image) else None
    if parent is None and base.image == _HOST:
        raise stage.base.origin.error(
            "host is this machine's own root, which cannot be built upon: it has no layers that anybody else could get;"
            " build on an image, for example debian"
        )
    needs = {parent.index} if parent else set()
    for source in stage.sources:
        found = dockerfile.stage(source, before=stage.index)
        if found is not None:
            needs.add(found.index)
    return PlannedStage(
        stage=stage,
        parent=parent.index if parent else None,
        image="" if parent else base.image,
        platform=chosen,
        needs=tuple(sorted(needs)),
    )


def _is_number(text: str) -> bool:
    """FROM takes names of stages and no numbers: ``FROM 0`` is an image."""
    return text.isascii() and text.isdigit()
