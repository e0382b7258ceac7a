"""A Dockerfile as a value: directives, global arguments and stages.

    Dockerfile
    ├── directives         # syntax=  # escape=  # check=
    ├── arguments          ARG before the first FROM: for FROM lines, and for stages that declare the name again
    └── stages             FROM and what follows it, in order; the last is what is built unless another is named

Nothing is expanded and nothing outside the text is looked at, so the same text is always the same value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from nbcontainer.dockerfile.instructions import Arg, Copy, From, Instruction, Run
from nbcontainer.dockerfile.lines import Directives, Finding, read_lines
from nbcontainer.dockerfile.mounts import mount_source
from nbcontainer.dockerfile.reading import read_instruction
from nbcontainer.errors import DockerfileError

__all__ = ["Dockerfile", "Stage", "parse", "parse_trigger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """FROM, as `base`, and the instructions up to the next one; `index` is its number, from 0."""

    index: int
    base: From
    instructions: tuple[Instruction, ...]

    @property
    def name(self) -> str:
        """The name in lower case, or "" for a stage that has only a number."""
        return self.base.name

    @property
    def sources(self) -> tuple[str, ...]:
        """What its instructions copy or mount from, as written: names and numbers of stages, and images."""
        found: dict[str, None] = {}
        for each in self.instructions:
            if isinstance(each, Copy) and each.from_:
                found[each.from_] = None
            elif isinstance(each, Run):
                found.update((source, None) for flag in each.mount_flags if (source := mount_source(flag)))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """A whole Dockerfile. `findings` are those of its lines; `nbcontainer.dockerfile.lint.lint` has them all."""

    directives: Directives
    arguments: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    findings: tuple[Finding, ...] = field(default=(), compare=False)

    def stage(self, name: str, *, before: int | None = None) -> Stage | None:
        """The stage of a name (in any case) or a number, among the first `before` ones; the last of several so named.

        An instruction of stage n may name only what stands before it; ``--target`` may name any.
        """
        stages = self.stages[:before]
        wanted = name.lower()
        for stage in reversed(stages):
            if wanted and stage.name == wanted:
                return stage
        number = int(name) if name.isascii() and name.isdigit() and len(name) < 10 else len(stages)
        return stages[number] if number < len(stages) else None


def parse(source: str | bytes) -> Dockerfile:
    r"""Read a Dockerfile; raises `DockerfileError` with line, column and a drawing of the place.

    >>> parse("FROM debian AS base\nRUN true\n").stages[0].name
    'base'
    """
    text = read_lines(source)
    arguments: list[Arg] = []
    bases: list[From] = []
    bodies: list[list[Instruction]] = []
    for line in text.lines:
        instruction = read_instruction(line, text.directives.escape)
        if isinstance(instruction, From):
            bases.append(instruction)
            bodies.append([])
        elif bodies:
            bodies[-1].append(instruction)
        elif isinstance(instruction, Arg):
            arguments.append(instruction)
        else:
            raise line.error(
                f"{instruction.NAME} stands before the first FROM; begin with FROM IMAGE (only ARG may come before it)",
                0,
                len(instruction.keyword),
            )
    if not bases:
        raise DockerfileError("the Dockerfile has no FROM; begin with FROM IMAGE, or FROM scratch for an empty one")
    stages = tuple(
        Stage(index=index, base=base, instructions=tuple(body))
        for index, (base, body) in enumerate(zip(bases, bodies, strict=True))
    )
    return Dockerfile(directives=text.directives, arguments=tuple(arguments), stages=stages, findings=text.findings)


def parse_trigger(expression: str) -> Instruction:
    """Read what an image's config keeps of ONBUILD: one instruction, with the default escape character."""
    lines = read_lines(expression, escape="\\").lines
    if len(lines) != 1:
        raise DockerfileError(f"the ONBUILD trigger {expression[:80]!r} of the base image is not one instruction")
    instruction = read_instruction(lines[0])
    if instruction.NAME in {"FROM", "ONBUILD", "MAINTAINER"}:
        raise lines[0].error(f"an ONBUILD trigger of the base image is {instruction.NAME}, which it cannot be")
    return instruction
