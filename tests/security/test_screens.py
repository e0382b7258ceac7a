"""Escape sequences in names, commands, image fields and errors: a screen is shown them, and does not obey."""

from __future__ import annotations

import contextlib
import io
import unicodedata
from typing import TYPE_CHECKING

import pytest

from nbcontainer import Engine, RunOptions, Settings
from nbcontainer.cli import main
from nbcontainer.errors import ContainerExit, ContainerStartError, InvalidOption, NbcontainerError
from nbcontainer.testing.rootfs import root_layer
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from pathlib import Path

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Tier

TITLE, CLEAR, COPY = "\x1b]0;owned\x07", "\x1b[2J\x1b[H", "\x1b]52;c;b3duZWQ=\x07"
MEAN = f"a{TITLE}b{CLEAR}c{COPY}\x9b31md\u202ee\u2066f\r\x08\x7f\u2028g"
HTML = "<img src=x onerror=alert(1)>"


def steering(text: str) -> set[str]:
    """The characters of a text that a terminal or browser would obey."""
    return {mark for mark in text if unicodedata.category(mark) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n"}


@pytest.mark.parametrize("mean", [MEAN, "\udcff\ud800", "x" * 100_000], ids=["escapes", "surrogates", "endless"])
def test_error_sentences(mean: str) -> None:
    """A sentence with a stranger's words in it can be shown and written anywhere."""
    for problem in (
        NbcontainerError(mean),
        ContainerStartError(f"x: {mean}", exit_code=127),
        ContainerExit(1, (mean,), image=mean, reason=mean, stderr_tail=f"{mean}\n{mean}"),
    ):
        shown = [str(problem), *problem._render_traceback_()]
        assert {mark for text in shown for mark in steering(text)} == set()
        assert all(len(text) < 20_000 for text in shown)
        "".join(shown).encode()


def test_colours_of_a_tail_are_left_out() -> None:
    """The last lines of a coloured traceback read as text; whoever wants the bytes has them."""
    problem = ContainerExit(1, ("x",), image="x", stderr_tail="\x1b[0;31mValueError\x1b[0m: no\r\n\tat x")
    assert str(problem) == "x: exit code 1\nValueError: no\n at x"
    assert problem.stderr == "\x1b[0;31mValueError\x1b[0m: no\r\n\tat x"


@pytest.mark.parametrize("where", ["command", "interpreter", "user", "directory", "stderr"])
def test_errors_of_a_container(tier: Tier, where: str) -> None:
    """What a container fails with says nothing to the terminal, whatever was asked for."""
    asked = {
        "command": ((MEAN,), {}),
        "interpreter": ((), {"script": f"#!/bin/{MEAN.replace(chr(13), '')}\n"}),
        "user": (("true",), {"user": MEAN}),
        "directory": (("true",), {"working_directory": f"/etc/passwd/{MEAN}"}),
        "stderr": (("/bin/sh", "-c", 'printf "$0" >&2; exit 3', MEAN), {"check": True}),
    }
    argv, options = asked[where]
    with pytest.raises(Raised) as raised:
        tier.run(*argv, **options)  # type: ignore[arg-type]
    assert raised.value.is_ours, raised.value.kinds
    assert steering(str(raised.value)) == set()


@pytest.fixture(scope="module")
def mean_store(registry: InProcessRegistry, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Lend a store with an image whose every field is hostile, and a container kept of it; and the image's name."""
    root = tmp_path_factory.mktemp("mean") / "store"
    config = {
        "Env": [f"A={MEAN}{HTML}"], "Cmd": ["/bin/echo", MEAN, HTML], "Labels": {MEAN: HTML, HTML: MEAN}, "StopSignal": MEAN,
        "ExposedPorts": {MEAN: {}}, "Volumes": {f"/{MEAN}{HTML}": {}}, "Shell": [MEAN],
    }  # fmt: skip
    registry.add_image("mean", "latest", layers=[root_layer(("sh", "echo"))], compression="none", config=config)
    name = registry.reference("mean")
    with Engine(Settings(root=str(root))) as engine:
        engine.run(name, options=RunOptions(name="kept"))
    return root, name


@pytest.mark.root
@pytest.mark.userns
@pytest.mark.overlay
@pytest.mark.parametrize(
    "line", ["ps -a", "ps -a --no-trunc", "inspect kept", "inspect IMAGE", "history --no-trunc IMAGE", "images", "info"]
)
def test_tables_of_the_terminal(mean_store: tuple[Path, str], line: str) -> None:
    """Every table shows a hostile image and its container without obeying them."""
    root, name = mean_store
    words = [name if word == "IMAGE" else word for word in line.split()]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        main(words, make_engine=lambda: Engine(Settings(root=str(root))))
    assert steering(out.getvalue() + err.getvalue()) == set()


@pytest.mark.root
@pytest.mark.userns
@pytest.mark.overlay
def test_tables_of_the_notebook(mean_store: tuple[Path, str]) -> None:
    """In a notebook the same is HTML in which nothing of theirs is markup."""
    from nbcontainer.engine import tables

    root, name = mean_store
    with Engine(Settings(root=str(root))) as engine:
        shown = [
            tables.container_table(engine.containers(everything=True))._repr_html_(),
            tables.Document(tables.describe_image(engine.inspect_image(name)))._repr_html_(),
            tables.history_table(engine.history(name))._repr_html_(),
        ]
    for text in shown:
        assert "<img" not in text
        assert steering(text) == set()


@pytest.mark.parametrize("name", [MEAN, HTML, "../x", "a/b", "-rm", "a\nb", "", " "])
def test_names_of_containers(tier: Tier, name: str) -> None:
    """A name that could be more than a name is refused (an empty one is none)."""
    try:
        assert tier.run("true", name=name).ok
    except Raised as raised:
        assert raised.is_a(InvalidOption), raised.kinds
        assert steering(str(raised)) == set()
    else:
        assert name == ""
