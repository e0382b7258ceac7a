""".dockerignore: which line decides, and which directories need not be entered."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.dockerfile.ignore import Ignore
from nbcontainer.errors import DockerfileError


@pytest.mark.parametrize(
    ("source", "ignored", "taken"),
    [
        ("", [], ["a", "a/b"]),
        ("a", ["a", "a/b", "a/b/c"], ["b", "b/a", "ab"]),
        ("/a/", ["a", "a/b"], ["b/a"]),
        ("//a", ["a"], ["b"]),
        ("./a/../b", ["b"], ["a"]),
        ("../a", [], ["a", "b"]),
        ("/../a", ["a"], ["b"]),
        (".", [], ["a"]),
        ("  a  ", ["a"], ["b"]),
        ("a\r\nb\r\n", ["a", "b"], ["c"]),
        ("\ufeffa", ["a"], ["b"]),
        ("#a\n #b\n\\#c", ["#b", "#c"], ["a", "b", "#a"]),
        ("*.pyc", ["a.pyc"], ["b/a.pyc"]),
        ("**/*.pyc", ["a.pyc", "b/c/a.pyc", "d.pyc/x"], ["a.py"]),
        ("**", ["a", "a/b"], []),
        ("a\n!a/b", ["a", "a/c"], ["a/b", "a/b/c"]),
        ("a\n!a/b\na/b/c", ["a", "a/b/c"], ["a/b", "a/b/d"]),
        ("!a\na", ["a"], ["b"]),
        ("*\n!README*\nREADME-secret*", ["a", "README-secret.md"], ["README.md"]),
        ("**\n! keep/x ", ["a", "keep", "keep/y"], ["keep/x", "keep/x/y"]),
        ("a\n!**/b", ["a", "a/c"], ["a/b", "a/c/b"]),
        ("a b", ["a b"], ["a", "b"]),
        ("!/a\n", [], ["a"]),
        ("é\n!é/ü", ["é"], ["é/ü"]),
    ],
)
def test_rules(source: str, ignored: list[str], taken: list[str]) -> None:
    """The last line that matches a path, or what it is in, decides."""
    rules = Ignore.parse(source)
    assert [path for path in (*ignored, *taken) if rules.ignores(path)] == ignored
    assert [path for path in ignored if Ignore.parse(source.encode()).ignores(path)] == ignored


@pytest.mark.parametrize(
    ("source", "folder", "skippable"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a\n!b", "a", True),
        ("a\n!a/b", "a", False),
        ("a\n!a/b", "a/c", True),
        ("!a/b\na", "a", True),
        ("a\n!**/b", "a", False),
        ("a\n!*/b", "a", False),
        ("a\n!*/b", "a/c", True),
        ("a\n!ab/c", "a", True),
        ("a\n!a", "a", False),
    ],
)
def test_skippable(source: str, folder: str, skippable: bool) -> None:
    """A directory is skipped only where no later line could bring something in it back."""
    rules = Ignore.parse(source)
    verdict = rules.top
    for name in folder.split("/"):
        verdict = rules.entry(verdict, name)
    assert verdict.skippable is skippable


def test_whether_there_are_rules() -> None:
    """No rules are told from some."""
    assert not Ignore()
    assert not Ignore.parse("# a\n\n")
    assert Ignore(["a"])
    assert not Ignore(["#a"]).ignores("a")
    assert Ignore(["#a"]).ignores("#a")


@pytest.mark.parametrize(("source", "line"), [("a\n!", 2), ("!  ", 1), ("a\nb\n[", 3), ("!a[", 1), ("a\\", 1)])
def test_refused(source: str, line: int) -> None:
    """A line that is no pattern is refused with its number."""
    with pytest.raises(DockerfileError, match=r"\.dockerignore") as caught:
        Ignore.parse(source)
    assert caught.value.line == line


def test_bytes_that_are_not_utf8() -> None:
    """A name in any encoding can be ignored, as the file system hands it out."""
    assert Ignore.parse(b"\xff").ignores("\udcff")


_NAMES = st.sampled_from(["a", "b", "ab"])
_PATTERN = st.lists(st.sampled_from(["a", "b", "*", "**", "a*"]), min_size=1, max_size=3).map("/".join)
_LINE = st.builds("{}{}".format, st.sampled_from(["", "", "!"]), _PATTERN)


@given(st.lists(_LINE, max_size=6), st.lists(_NAMES, min_size=1, max_size=4))
def test_walk_and_rules_agree(lines: list[str], names: list[str]) -> None:
    """Walking gives what "the last line that matches the path or a parent" gives, and skips only what it may."""
    rules = Ignore(lines)
    verdict = rules.top
    parents = ["/".join(names[: end + 1]) for end in range(len(names))]
    skipped = False
    for end, name in enumerate(names):
        verdict = rules.entry(verdict, name)
        expected = False
        for line in lines:
            expression = _expression(line.removeprefix("!"))
            if any(re.fullmatch(expression, path) for path in parents[: end + 1]):
                expected = not line.startswith("!")
        assert verdict.ignored is expected
        assert verdict.ignored or not skipped
        skipped = skipped or verdict.skippable


def _expression(pattern: str) -> str:
    text = re.escape(pattern).replace(re.escape("**") + "/", "(?:.*/)?")
    return text.replace(re.escape("**"), ".*").replace(re.escape("*"), "[^/]*")


def test_twenty_thousand_files() -> None:
    """A walk over a large context with usual rules is no noticeable part of a build."""
    rules = Ignore.parse("**/node_modules\n**/*.pyc\n.git\n*.log\ndocs/**/build\n!docs/keep/**\n**/__pycache__\n.env*")
    start = time.process_time()
    count = 0
    for number in range(200):
        folder = rules.entry(rules.top, f"package{number}")
        count += sum(rules.entry(folder, f"some_module_{index}.py").ignored for index in range(100))
    assert count == 0
    assert time.process_time() - start < 5
