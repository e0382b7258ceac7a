"""A Dockerfile as text to compare with: what the golden folders keep beside each Dockerfile.

``python -m tests.dockerfile.dump`` writes all of them anew; read the difference before keeping it.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from nbcontainer.dockerfile import Dockerfile, Instruction, lint, parse
from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["GOLDEN", "dump"]

GOLDEN = Path(__file__).parents[1] / "golden/dockerfile"

_UNSAID = {"origin", "code", "comments", "keyword", "written_name", "as_keyword"}


def dump(source: bytes) -> str:
    """The directives, stages and findings of a Dockerfile, or the error it is refused with."""
    try:
        return "\n".join((*_lines(parse(source)), ""))
    except DockerfileError as problem:
        return f"{problem}\n"


def _lines(dockerfile: Dockerfile) -> Iterator[str]:
    directives = dockerfile.directives
    for name in ("syntax", "escape", "check"):
        if (value := getattr(directives, name)) not in {"", "\\"}:
            yield f"# {name}={value}"
    for arg in dockerfile.arguments:
        yield from _instruction(arg, "")
    for stage in dockerfile.stages:
        yield from _instruction(stage.base, "")
        for each in stage.instructions:
            yield from _instruction(each, "  ")
    for finding in lint(dockerfile).findings:
        yield f"{finding.check} in {finding.origin.first}-{finding.origin.last}: {finding.message}"


def _instruction(instruction: Instruction, indent: str) -> Iterator[str]:
    yield f"{indent}{instruction.origin.first}-{instruction.origin.last} {instruction.NAME}"
    for field in fields(instruction):
        value = getattr(instruction, field.name)
        if field.name in _UNSAID or value == field.default:
            continue
        if isinstance(value, Instruction):
            yield from _instruction(value, f"{indent}    ")
        else:
            for each in value if isinstance(value, tuple) else (value,):
                yield f"{indent}    {field.name}: {each!r}"


if __name__ == "__main__":
    for folder in GOLDEN.iterdir():
        (folder / "expected").write_text(dump((folder / "Dockerfile").read_bytes()))
