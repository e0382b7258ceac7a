"""Flags, words and the exec form, with the traps that BuildKit's parser has in each."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile.forms import MixedArray, exec_form, split_blanks, split_flags, split_words


@pytest.mark.parametrize(
    ("text", "flags", "rest"),
    [
        ("a b", [], "a b"),
        ("", [], ""),
        ("--a b", [("a", None)], "b"),
        ("--a=1 --b= --c=x=y d", [("a", "1"), ("b", ""), ("c", "x=y")], "d"),
        ("--a='1 2' --b=\"'\" c", [("a", "1 2"), ("b", "'")], "c"),
        (r"--a=1\ 2 --b='\'' c", [("a", "1 2"), ("b", "'")], "c"),
        ("--a=1", [("a", "1")], ""),
        ("-- --a b", [], "--a b"),
        ("--", [], ""),
        ("-a b", [], "-a b"),
        ("--a b --c", [("a", None)], "b --c"),
        ("--a='1 2", [("a", "1 2")], ""),
        ("--a=1\\", [("a", "1")], ""),
    ],
)
def test_flags(text: str, flags: list[tuple[str, str | None]], rest: str) -> None:
    """Flags end at the first word that is none; quotes go round parts of them."""
    found, at = split_flags(text)
    assert [(each.name, each.value) for each in found] == flags
    assert text[at:] == rest
    assert all(text.startswith("--", each.offset) for each in found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ()),
        (" \t ", ()),
        ("a b", ("a", "b")),
        ("a='b c' d", ("a='b c'", "d")),
        ('a="b \\" c" d', ('a="b \\" c"', "d")),
        ("a='b\\' c", ("a='b\\'", "c")),
        ("a\\ b c", ("a\\ b", "c")),
        ("a\\", ("a",)),
        ("\\", ()),
        ('"a b', ('"a b',)),
        ("'' b", ("''", "b")),
    ],
)
def test_words(text: str, words: tuple[str, ...]) -> None:
    """Blanks part words except in quotes and after the escape character, and all of that stays in the words."""
    assert split_words(text, "\\") == words


def test_words_with_another_escape() -> None:
    """The escape directive is heeded."""
    assert split_words("a` b c\\ d", "`") == ("a` b", "c\\", "d")


def test_blanks() -> None:
    """Blanks part words in quotes too, and other white space does not."""
    assert split_blanks(' "a b"\t\vc\u00a0d ') == ('"a', 'b"', "c\u00a0d")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["a", "b c"]', ("a", "b c")),
        ("[]", ()),
        (' ["a"]', None),
        ("['a']", None),
        ('["a",]', None),
        ('["a"] x', None),
        ('{"a": 1}', None),
        ("[" * 100_000, None),
        ("[NaN]", None),
        ("[1" + "0" * 10_000 + "]", None),
        ('["\\ud800", "\\u00e9"]', ("\ufffd", "é")),
    ],
)
def test_exec_form(text: str, words: tuple[str, ...] | None) -> None:
    """A JSON array of strings is the exec form, and anything that is no JSON array is the shell form."""
    assert exec_form(text) == words


@pytest.mark.parametrize("text", ["[1]", '["a", null]', '[["a"]]'])
def test_mixed_array(text: str) -> None:
    """An array of something else is a mistake, not a shell command."""
    with pytest.raises(MixedArray):
        exec_form(text)
