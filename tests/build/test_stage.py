"""What each instruction does to a stage's settings, arguments and history."""

from __future__ import annotations

from typing import Any

import pytest

from nbcontainer.build.stage import (
    DEFAULT_PATH,
    StageState,
    created_by_run,
    scratch,
    started_from,
    with_arguments,
    with_metadata,
)
from nbcontainer.dockerfile.expansion import expand
from nbcontainer.dockerfile.instructions import Arg
from nbcontainer.dockerfile.parser import parse
from nbcontainer.errors import InvalidImage
from nbcontainer.model import Descriptor, Digest, Platform

_AMD = Platform("linux", "amd64")


def after(text: str, state: StageState | None = None, **given: str) -> StageState:
    """A stage after some instructions."""
    state = state or scratch(_AMD)
    for instruction in parse(f"FROM scratch\n{text}\n").stages[0].instructions:
        expanded = expand(instruction, state.environment).instruction
        if isinstance(expanded, Arg):
            state = with_arguments(state, expanded, given=given, outer={"OUTER": "global"})
        else:
            state = with_metadata(state, expanded)
    return state


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("ENV A=1 B='x y'", "Env", [f"PATH={DEFAULT_PATH}", "A=1", "B=x y"]),
        ("ENV A=1\nENV B=2\nENV A=3", "Env", [f"PATH={DEFAULT_PATH}", "A=3", "B=2"]),
        ("LABEL a=b\nLABEL c=d a=e", "Labels", {"a": "e", "c": "d"}),
        ("EXPOSE 80 53/UDP 8000-8001", "ExposedPorts", {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}),
        ('VOLUME ["/a", "/b c"]', "Volumes", {"/a": {}, "/b c": {}}),
        ("USER app:web", "User", "app:web"),
        ("CMD echo $HOME", "Cmd", ["/bin/sh", "-c", "echo $HOME"]),
        ('SHELL ["/bin/bash", "-c"]\nCMD x', "Cmd", ["/bin/bash", "-c", "x"]),
        ('CMD ["a"]\nCMD []', "Cmd", None),
        ("STOPSIGNAL SIGINT", "StopSignal", "SIGINT"),
        ("HEALTHCHECK --retries=2 CMD x", "Healthcheck", {"Test": ["CMD-SHELL", "x"], "Retries": 2}),
        ("ONBUILD RUN a\nONBUILD RUN b", "OnBuild", ["RUN a", "RUN b"]),
    ],
)
def test_settings(text: str, name: str, value: Any) -> None:
    """Each instruction sets what docker has it set."""
    assert after(text).options.get(name) == value


def test_entrypoint_takes_an_inherited_command_away() -> None:
    """An ENTRYPOINT resets the base's CMD, and not one of the same stage."""
    base = started_from({"config": {"Cmd": ["base"]}}, (), ())
    assert "Cmd" not in after('ENTRYPOINT ["e"]', base).options
    assert after('CMD ["c"]\nENTRYPOINT ["e"]', base).options["Cmd"] == ["c"]


def test_arguments() -> None:
    """A given value counts before a default, that before the global one; ENV counts before ARG."""
    state = after("ARG A=1 B\nARG OUTER\nARG D=4\nENV D=env", A="given")
    assert state.arguments == {"A": "given", "OUTER": "global", "D": "4"}
    assert state.environment["D"] == "env"
    assert [entry["created_by"] for entry in state.history][:3] == ["ARG A=1 B", "ARG OUTER", "ARG D=4"]


def test_whoever_came_last_counts() -> None:
    """An ARG after an ENV of its name counts for commands until the next ENV; the image keeps what ENV said."""
    state = after("ENV V=env\nARG V=arg")
    assert state.environment["V"] == "arg"
    assert "V=env" in state.options["Env"]
    assert after("ENV V=again", state).environment["V"] == "again"
    assert after("ENV V=env\nARG V").environment["V"] == "env"


def test_history_has_no_layer_for_settings() -> None:
    """Lines of history of settings say that they have no layer; triggers have none at all."""
    state = after("ENV A=1\nONBUILD RUN x\nMAINTAINER me\nUSER u")
    assert [entry["created_by"] for entry in state.history] == ["ENV A=1", "MAINTAINER me", "USER u"]
    assert all(entry["empty_layer"] for entry in state.history)
    assert state.history[-1]["author"] == "me"
    assert state.config()["author"] == "me"


def test_a_base_keeps_what_is_unknown() -> None:
    """Fields that nobody here knows pass through, those of the base alone do not, and PATH is always there."""
    state = started_from({"vendor": 1, "id": "x", "container": "y", "config": {"Odd": True}, "os": "linux"}, (), ())
    config = state.config()
    assert config["vendor"] == 1
    assert config["config"]["Odd"] is True
    assert not {"id", "container"} & set(config)
    assert state.options["Env"] == [f"PATH={DEFAULT_PATH}"]


def test_layers_that_do_not_fit() -> None:
    """An image whose layers and diff ids differ in number cannot be built upon."""
    blob = Descriptor(media_type="x", digest=Digest.of(b"x"), size=1)
    with pytest.raises(InvalidImage, match="1 layers and 0 diff ids"):
        started_from({}, (blob,), ())


def test_created_is_that_of_the_last_layer() -> None:
    """A build that finds all its layers gives the same document again, whenever it is made."""
    blob = Descriptor(media_type="x", digest=Digest.of(b"x"), size=1)
    state = scratch(_AMD).with_layer(
        blob, Digest.of(b"y"), "RUN x", created="2026-01-02T03:04:05Z", key=Digest.of(b"k")
    )
    state = after("ENV A=1", state)
    assert {entry["created"] for entry in state.history} == {"2026-01-02T03:04:05Z"}
    assert state.config()["created"] == "2026-01-02T03:04:05Z"


def test_run_lines() -> None:
    """The arguments of a RUN are counted in its line, as BuildKit writes it."""
    assert created_by_run(("/bin/sh", "-c", "x"), {}) == "RUN /bin/sh -c x # nbcontainer"
    assert created_by_run(("x",), {"A": "1", "B": "2"}) == "RUN |2 A=1 B=2 x # nbcontainer"


def test_paths_are_relative_to_the_workdir() -> None:
    """Paths are joined and cleaned; an odd WORKDIR of a base is below the root."""
    state = started_from({"config": {"WorkingDir": "app"}}, (), ())
    assert state.resolved("../x/./y") == "/x/y"
    assert state.resolved("/z/") == "/z"
