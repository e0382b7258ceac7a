"""Which stages a build needs, and what each stands on."""

from __future__ import annotations

import pytest

from nbcontainer.build.plan import plan
from nbcontainer.dockerfile.parser import parse
from nbcontainer.errors import DockerfileError, InvalidOption
from nbcontainer.model import Platform

_AMD = Platform("linux", "amd64")
_TEXT = """\
ARG BASE=debian
FROM $BASE AS tools
RUN make
FROM tools AS child
FROM alpine AS unused
FROM scratch
COPY --from=child /a /
COPY --from=busybox /b /
RUN --mount=from=0,target=/t true
"""


def planned(text: str, target: str = "", **given: str):
    """The plan of a text."""
    return plan(parse(text), target=target, given=given, platform=_AMD)


def test_only_what_is_needed():
    """The target, what it is built on, copies from and mounts, and nothing else."""
    found = planned(_TEXT)
    assert found.target == 3
    assert list(found.stages) == [0, 1, 3]
    assert found.stages[3].needs == (0, 1)
    assert found.stages[1].parent == 0
    assert found.stages[0].image == "debian"


@pytest.mark.parametrize(("target", "stages"), [("tools", [0]), ("Child", [0, 1]), ("2", [2])])
def test_target(target, stages):
    """A target is a name in any case, or a number."""
    assert list(planned(_TEXT, target).stages) == stages


def test_target_that_is_not_there():
    """The error lists the stages there are."""
    with pytest.raises(InvalidOption, match="there are: tools, child, unused"):
        planned(_TEXT, "test")


def test_arguments_of_from_lines():
    """A given argument wins over its default; one that leaves nothing is an error with the line."""
    assert planned(_TEXT, "tools", BASE="fedora").stages[0].image == "fedora"
    with pytest.raises(DockerfileError, match="is empty"):
        planned("ARG X\nFROM $X\n")


def test_a_number_is_no_stage_for_from():
    """``FROM 0`` is an image called 0, as in BuildKit."""
    assert planned("FROM a\nFROM 0\n").stages[1].image == "0"


def test_host_is_refused():
    """The machine's own root has no layers to build upon; a stage of that name is a stage."""
    with pytest.raises(DockerfileError, match="this machine's own root"):
        planned("FROM host\n")
    assert planned("FROM debian AS host\nFROM host\n").stages[1].parent == 0


def test_platforms():
    """FROM --platform counts before the build's, and variables tell both."""
    found = planned("FROM --platform=linux/arm64 a AS x\nFROM --platform=$TARGETPLATFORM b\n")
    assert str(found.stages[1].platform) == "linux/amd64"
    assert found.globals["TARGETARCH"] == "amd64"
    with pytest.raises(DockerfileError, match="is not OS/ARCH"):
        planned("FROM --platform=nonsense/x/y/z a\n")
