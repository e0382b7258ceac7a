"""Whole Dockerfiles: global arguments, stages, and what is wrong between lines."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile import Arg, Run, ShellForm, parse, parse_trigger
from nbcontainer.errors import DockerfileError, InvalidInput

THREE = """\
# syntax=docker/dockerfile:1
ARG v=1
FROM a:$v AS First
ARG v
RUN --mount=from=tools,target=/t --mount=from=tools,target=/u x
FROM first
COPY --from=first /a /b
COPY --from=0 /a /b
COPY --from=img:1 /a /b
FROM scratch AS first
"""


def test_stages() -> None:
    """Instructions belong to the FROM above them, and ARGs above the first FROM to the file."""
    dockerfile = parse(THREE)
    assert [type(each) for each in dockerfile.arguments] == [Arg]
    assert [(stage.index, stage.name, len(stage.instructions)) for stage in dockerfile.stages] == [
        (0, "first", 2),
        (1, "", 3),
        (2, "first", 0),
    ]
    assert [stage.sources for stage in dockerfile.stages] == [("tools",), ("first", "0", "img:1"), ()]
    assert dockerfile.directives.syntax == "docker/dockerfile:1"


@pytest.mark.parametrize(
    ("name", "before", "index"),
    [
        ("FIRST", None, 2),
        ("first", 2, 0),
        ("1", None, 1),
        ("1", 1, None),
        ("3", None, None),
        ("", None, None),
        ("second", None, None),
        ("9" * 5000, None, None),
        ("²", None, None),
    ],
)
def test_stage_by_name(name: str, before: int | None, index: int | None) -> None:
    """A stage is found by name in any case, the last of several, or by number."""
    stage = parse(THREE).stage(name, before=before)
    assert (stage.index if stage else None) == index


def test_bytes_and_text_are_the_same() -> None:
    """Bytes with a byte order mark and carriage returns are the same Dockerfile."""
    assert parse(b"\xef\xbb\xbf" + THREE.replace("\n", "\r\n").encode()) == parse(THREE)


@pytest.mark.parametrize(
    ("source", "message", "line"),
    [
        ("", "no FROM", 0),
        ("# only\n", "no FROM", 0),
        ("ARG a", "no FROM", 0),
        ("ARG a\nRUN b\nFROM c", "RUN stands before the first FROM", 2),
        ("FROM a\nRUN b\nRUN <<E", "no end", 3),
    ],
)
def test_refused(source: str, message: str, line: int) -> None:
    """A file without a stage, or with something before the first, is refused; the error is an invalid input."""
    with pytest.raises(InvalidInput) as caught:
        parse(source)
    assert isinstance(caught.value, DockerfileError)
    assert message in str(caught.value)
    assert caught.value.line == line


def test_trigger() -> None:
    """What an image keeps of ONBUILD is read with the default escape character."""
    run = parse_trigger("RUN a \\\n b")
    assert isinstance(run, Run)
    assert run.command == ShellForm("a  b")


@pytest.mark.parametrize("expression", ["", "RUN a\nRUN b", "FROM a", "ONBUILD RUN a", "MAINTAINER a", "RUM a"])
def test_trigger_refused(expression: str) -> None:
    """An image's trigger is one instruction of those that may be triggered."""
    with pytest.raises(DockerfileError):
        parse_trigger(expression)


def test_findings_are_kept() -> None:
    """What was noticed while lines were read is with the Dockerfile, and does not make two differ."""
    with_empty, without = parse("FROM a\nRUN b \\\n\n c"), parse("FROM a\nRUN b \\\n c")
    assert [each.check for each in with_empty.findings] == ["NoEmptyContinuation"]
    assert with_empty == without
