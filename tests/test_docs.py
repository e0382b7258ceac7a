"""That the documents are true where a program can tell: links lead somewhere, names exist, pages are current."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer.cli import TERMINAL_VERBS
from nbcontainer.engine.command_line import parse
from nbcontainer.engine.door import FAILED
from nbcontainer.engine.settings import Settings
from nbcontainer.engine.verbs import RUN, VERBS, find_verb, split_verb
from nbcontainer.ipython.arguments import split_line
from nbcontainer.ipython.magics import ContainerMagics
from nbcontainer.runtime.capabilities import DEFAULT_CAPABILITIES

if TYPE_CHECKING:
    from nbcontainer.engine.door import Door

TOP = Path(__file__).parent.parent
PAGES = sorted([*TOP.glob("*.md"), *TOP.glob("docs/*.md")])
named = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_VERB_LINE = re.compile(r"^(%container|nbcontainer) (\w.*)$", re.MULTILINE)
_CELL_LINE = re.compile(r"^%%container (.*)$", re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the fragment that forges make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Return the fragments of a page's headings."""
    return {anchor(heading) for heading in _HEADING.findall(page.read_text(encoding="utf-8"))}


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages."""
    return [text for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


@named
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, every fragment a heading."""
    wrong = []
    for link in _LINK.findall(_BLOCK.sub("", page.read_text(encoding="utf-8"))):
        target, _, fragment = link.partition("#")
        if ":" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (fragment and fragment not in anchors(path)):
            wrong.append(link)
    assert wrong == []


@named
def test_verbs_and_options_exist(page: Path) -> None:
    """Every line that calls a verb, and every first line of a cell, is one that can be read."""
    for text in blocks(page, "", "sh"):
        for prefix, line in _VERB_LINE.findall(text):
            door: Door = "notebook" if prefix == "%container" else "terminal"
            known, _ = split_verb(line.split(), TERMINAL_VERBS, door)
            if "[" not in line:
                parse(known, split_verb(split_line(line), TERMINAL_VERBS, door)[1], door=door)
        for rest in _CELL_LINE.findall(text):
            if "[" not in rest and not re.search(r"-v [.~]", rest):  # folders of the reader are not here
                failed = FAILED if "--failed" in rest else ""
                parse(RUN, split_line(rest), door="notebook", default_image=failed)
        for rest in re.findall(r"^%%dockerfile\b(.*)$", text, re.MULTILINE):
            if "[" not in rest:
                parse(find_verb("build", TERMINAL_VERBS, "notebook"), split_line(rest), door="notebook")


@named
def test_python_examples_use_what_there_is(page: Path) -> None:
    """Examples in Python parse, and what they import from us exists."""
    for text in blocks(page, "python"):
        if text.startswith("%"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.module == "nbcontainer":
                assert {each.name for each in node.names} <= set(importlib.import_module("nbcontainer").__all__)


def test_reference_is_current() -> None:
    """The reference page is what the table of verbs makes of it."""
    page = TOP / "docs" / "reference.py"
    done = subprocess.run(
        [sys.executable, str(page), "--check"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(TOP)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert all(f"## {verb.name}\n" in (TOP / "docs" / "reference.md").read_text(encoding="utf-8") for verb in VERBS)


def test_readme_names_every_setting() -> None:
    """Every trait and every environment variable stands in the README, and no other."""
    text = (TOP / "README.md").read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert table == set(ContainerMagics.class_own_traits(config=True))
    known = {"NBCONTAINER_ROOT", "NBCONTAINER_MIRRORS", "NBCONTAINER_INSECURE_REGISTRIES", "NBCONTAINER_NETWORK"}
    assert set(re.findall(r"NBCONTAINER_\w+", text)) == known
    read = Settings.from_environment(
        dict.fromkeys(known, "") | {"NBCONTAINER_MIRRORS": "docker.io=https://mirror.example"}
    )
    assert read.mirrors == {"docker.io": ("https://mirror.example",)}


def test_security_names_the_capabilities() -> None:
    """The list of capabilities in SECURITY.md is the list in the code."""
    text = (TOP / "SECURITY.md").read_text(encoding="utf-8")
    listed = re.search(r"Docker's fourteen \(([A-Z_, ]+)\)", text)
    assert listed is not None
    assert set(listed[1].split(", ")) == set(DEFAULT_CAPABILITIES)
    assert len(DEFAULT_CAPABILITIES) == 14


def test_version_has_an_entry() -> None:
    """The version of the package has a section in the changelog."""
    version = importlib.import_module("nbcontainer").__version__
    assert f"## [{version}]" in (TOP / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f'version = "{version}"' in (TOP / "pyproject.toml").read_text(encoding="utf-8")


def test_environment_configuration_is_real() -> None:
    """The ready-made IPython configuration sets what exists, its commented lines included."""
    from traitlets.config import Config

    path = TOP / "jupyter-config" / "ipython" / "nbcontainer_config.py"
    config = Config()
    runpy.run_path(str(path), {"get_config": lambda: config})
    assert config.InteractiveShellApp.extensions.get_value([]) == ["nbcontainer"]
    lines = re.findall(r"^#? ?c\.ContainerMagics\.(\w+) = (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    magics = ContainerMagics(shell=None)
    for name, value in lines:
        assert name in magics.class_own_traits(config=True)
        setattr(magics, name, ast.literal_eval(value))
    assert lines


def test_attacks_have_tests() -> None:
    """Every file that SECURITY.md names for a class of attack holds tests, and no security test is left out."""
    text = (TOP / "SECURITY.md").read_text(encoding="utf-8")
    named_there = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert named_there
    for name in named_there:
        assert "\ndef test_" in (TOP / name).read_text(encoding="utf-8"), name
    assert {f"tests/security/{path.name}" for path in (TOP / "tests/security").glob("test_*.py")} <= named_there
