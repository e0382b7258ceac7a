"""Patterns of paths: one at a time and many, the same as by a simple matcher, and quick whatever they are."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.dockerfile.globs import Glob, Globs, has_wildcards, split_wildcards
from nbcontainer.errors import DockerfileError


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("", "", True),
        ("abc", "abc", True),
        ("abc", "abcd", False),
        ("*", "abc", True),
        ("*", "a/b", False),
        ("*c", "abc", True),
        ("a*/b", "ac/b", True),
        ("a*b*c", "abxbc", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a[^b]c", "a/c", False),
        ("[\\]a]", "]", True),
        ("[\\-]", "-", True),
        ("[x\\-z]", "-", True),
        ("[x\\-z]", "y", False),
        ("a\\*b", "a*b", True),
        ("a\\*b", "axb", False),
        ("*é?", "aéb", True),
        ("a**b", "axyb", True),
        ("**", "a/b", False),
    ],
)
def test_match(pattern: str, path: str, matches: bool) -> None:
    """A pattern matches a whole path, as Go's filepath.Match has it."""
    assert Glob(pattern).match(path) is matches


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**", "a", True),
        ("**", "a/b/c", True),
        ("**/a", "a", True),
        ("**/a", "x/y/a", True),
        ("**/a", "xa", False),
        ("a/**", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("a/**/b", "a/xb", False),
        ("**/*.c", "x/y.c", True),
        ("**/**/a", "x/a", True),
        ("a**b", "ab", True),
        ("a**b", "ax/b", True),
        ("a**b", "axb", False),
        ("***/a", "x/a", True),
        ("**/*", "a/b", True),
    ],
)
def test_double_stars(pattern: str, path: str, matches: bool) -> None:
    """Two stars are any directories where they are allowed."""
    assert Glob(pattern, double=True).match(path) is matches


@pytest.mark.parametrize("pattern", ["[", "[a", "[]a]", "[^]", "[-]", "[a-]", "[a-]]", "[\\", "a\\", "[x-", "a[b"])
def test_bad_patterns(pattern: str) -> None:
    """What Go calls a bad pattern is refused by name."""
    with pytest.raises(DockerfileError) as caught:
        Glob(pattern)
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "prefix", "rest"),
    [
        ("a/b", "a/b", ""),
        ("a/*.b/c", "a", "*.b/c"),
        ("*", "", "*"),
        ("a\\*/b?", "a*", "b?"),
        ("/a/[b]", "/a", "[b]"),
        ("a\\", "a\\", ""),
        ("", "", ""),
    ],
)
def test_split_wildcards(path: str, prefix: str, rest: str) -> None:
    """The part before the first wildcard is a path like any other."""
    assert split_wildcards(path) == (prefix, rest)
    assert has_wildcards(path) is bool(rest)


def test_many() -> None:
    """Of many patterns the last that matches is told, and a pass can be taken up again below a directory."""
    globs = Globs(["*", "a/*", "b/**", "a/x"])
    folder = globs.feed(globs.start, "a")
    assert globs.last(folder) == 0
    assert globs.last(globs.feed(folder, "/x")) == 3
    assert globs.last(globs.feed(folder, "/y")) == 1
    assert globs.last(globs.feed(folder, "/y/z")) == -1
    assert globs.feed(globs.feed(folder, "/y/z"), "more") == 0
    below = globs.feed(folder, "/")
    assert below & globs.states_of([1, 3])
    assert not below & globs.states_of([0, 2])


def test_stars_take_no_time() -> None:
    """A pattern of a hundred stars is as quick as any."""
    glob = Glob("**/" * 50 + "*a" * 50 + "b", double=True)
    start = time.process_time()
    assert not glob.match("a/" * 500 + "a" * 1000)
    assert time.process_time() - start < 2


def _expression(pattern: str) -> str:
    """The pattern as a regular expression: simple, and slow for some."""
    parts = {"*": "[^/]*", "?": "[^/]"}
    cut = re.findall(r"\*\*/?|.", pattern, re.DOTALL)
    last = len(cut) - 1
    found = [
        (".*" if index == last else "(?:.*/)?") if part.startswith("**") else parts.get(part, re.escape(part))
        for index, part in enumerate(cut)
    ]
    return "".join(found)


@given(st.lists(st.sampled_from(["a", "b", "/", "*", "**", "**/", "?", "."]), max_size=6), st.text("ab/.", max_size=8))
def test_as_a_regular_expression(pieces: list[str], path: str) -> None:
    """The automaton says what a backtracking matcher says."""
    pattern = re.sub(r"\*{3,}", "**", "".join(pieces))
    assert Glob(pattern, double=True).match(path) is bool(re.fullmatch(_expression(pattern), path, re.DOTALL))
