"""Which stages a target needs, and what each stands on."""

from __future__ import annotations

import pytest

from nbcontainer.build.plan import Plan, plan, platform_arguments
from nbcontainer.dockerfile.parser import parse
from nbcontainer.errors import DockerfileError, InvalidOption
from nbcontainer.model import Platform

AMD64 = Platform("linux", "amd64", "")


def planned(text: str, *, target: str = "", platform: Platform = AMD64, **given: str) -> Plan:
    """The plan of a Dockerfile."""
    return plan(parse(text), target=target, given=given, platform=platform)


def test_only_what_is_needed() -> None:
    """Stages that the target neither stands on, copies from nor mounts are not in the plan."""
    text = (
        "FROM a AS base\nFROM base AS child\nFROM b AS copied\nFROM c AS mounted\nFROM d AS unused\n"
        "FROM child\nCOPY --from=copied /x /x\nRUN --mount=from=mounted,target=/m true\n"
    )
    found = planned(text)
    assert list(found.stages) == [0, 1, 2, 3, 5]
    assert found.target == 5
    assert found.stages[5].needs == (1, 2, 3)
    assert (found.stages[1].parent, found.stages[1].image) == (0, "")
    assert (found.stages[0].parent, found.stages[0].image) == (None, "a")


@pytest.mark.parametrize(("target", "stages"), [("first", [0]), ("FIRST", [0]), ("0", [0]), ("1", [1]), ("", [0, 2])])
def test_targets(target: str, stages: list[int]) -> None:
    """A target is a name in any case or a number; without one it is the last stage."""
    assert list(planned("FROM a AS first\nFROM b\nFROM first\n", target=target).stages) == stages


@pytest.mark.parametrize("target", ["nowhere", "3", "-1", "1x", "99999999999999999999"])
def test_no_such_target(target: str) -> None:
    """A target that is not there is refused with the names that are."""
    with pytest.raises(InvalidOption, match="there are: one, two"):
        planned("FROM a AS one\nFROM b AS two\nFROM c\n", target=target)
    with pytest.raises(InvalidOption, match="no stage has a name"):
        planned("FROM a\n", target="x")


def test_names_are_looked_for_before_only() -> None:
    """A --from names an earlier stage or an image: never itself and never a later one, so no stage waits for itself."""
    found = planned("FROM a AS x\nCOPY --from=y / /\nCOPY --from=x / /\nCOPY --from=0 / /\nFROM b AS y\n", target="x")
    assert list(found.stages) == [0]
    assert found.stages[0].needs == ()


def test_the_last_of_several_names_counts() -> None:
    """Of stages with one name the last before the instruction is meant, and FROM takes no numbers."""
    found = planned("FROM a AS x\nFROM b AS x\nFROM x\nFROM 0\n", target="2")
    assert found.stages[2].parent == 1
    assert planned("FROM a\nFROM 0\n").stages[1].image == "0"


def test_arguments_of_from() -> None:
    """FROM sees the arguments before the first FROM, and what was given for them."""
    text = "ARG BASE=debian\nARG TAG=${BASE}-slim\nFROM ${BASE}:${TAG}\n"
    assert planned(text).stages[0].image == "debian:debian-slim"
    assert planned(text, BASE="alpine").stages[0].image == "alpine:alpine-slim"
    assert planned(text, TAG="9").globals == {**planned(text).globals, "TAG": "9"}
    with pytest.raises(DockerfileError, match="is empty when its variables") as caught:
        planned("ARG BASE\nFROM $BASE\n")
    assert caught.value.line == 2


def test_an_argument_may_name_a_stage() -> None:
    """What FROM expands to may be a stage."""
    assert planned("ARG WHICH=one\nFROM a AS one\nFROM $WHICH\n").stages[1].parent == 0


def test_host_is_refused() -> None:
    """The machine's own root is no base; a stage of that name is one."""
    with pytest.raises(DockerfileError, match="machine's own root") as caught:
        planned("FROM scratch\nFROM host\n")
    assert caught.value.line == 2
    assert planned("FROM a AS host\nFROM host\n").stages[1].parent == 0


def test_platforms() -> None:
    """A stage has the platform of its FROM, else that of the build; nonsense is told with its line."""
    text = "FROM --platform=linux/arm/v7 a\nFROM --platform=$TARGETPLATFORM b\nCOPY --from=0 / /\n"
    found = planned(text, platform=Platform("linux", "riscv64", ""))
    assert str(found.stages[0].platform) == "linux/arm/v7"
    assert str(found.stages[1].platform) == "linux/riscv64"
    with pytest.raises(DockerfileError) as caught:
        planned("FROM --platform=a/b/c/d x\n")
    assert caught.value.line == 1


def test_platform_arguments() -> None:
    """The automatic arguments tell the target's platform and the machine's, and the stage."""
    found = platform_arguments(Platform("linux", "arm", "v7"), stage="x")
    assert (found["TARGETPLATFORM"], found["TARGETVARIANT"], found["TARGETSTAGE"]) == ("linux/arm/v7", "v7", "x")
    assert found["BUILDPLATFORM"] == str(Platform.host())
    assert platform_arguments(AMD64, stage="")["TARGETSTAGE"] == "default"


def test_labels() -> None:
    """A stage is called by its name, or by its place in the file."""
    found = planned("FROM a AS x\nFROM x\n")
    assert [each.label for each in found.stages.values()] == ["x", "stage 2"]
