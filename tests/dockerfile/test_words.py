"""Word expansion: each form, alone and nested, and the same answers as a shell gives."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.dockerfile.words import Expansion, expand_text, expand_word
from nbcontainer.errors import DockerfileError

VALUES = {"a": "one", "b": "x y", "empty": "", "path": "/usr/local/bin", "stars": "a*b?c", "é": "accent"}


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$a", "one"),
        ("${a}", "one"),
        ("$a$a", "oneone"),
        ("$a-b", "one-b"),
        ("$ab", ""),
        ("${a}b", "oneb"),
        ("$é", "accent"),
        ("$", "$"),
        ("a$", "a$"),
        ("$/x", "$/x"),
        ("$'x'", "$x"),
        ("\\$a", "$a"),
        ("\\${a}", "${a}"),
        ("\\\\$a", "\\one"),
        ("a\\b", "ab"),
        ("a\\", "a"),
        ("'$a'", "$a"),
        ("'\\$a'", "\\$a"),
        ("'it'\\''s'", "it's"),
        ('"$a"', "one"),
        ('"\\$a"', "$a"),
        ('"\\""', '"'),
        ('"\\\\"', "\\"),
        ('"a\\b"', "a\\b"),
        ("\"'$a'\"", "'one'"),
        ("$1${2}$10x", "x"),
        ("$@$*$#$?$-$$$!${@}", ""),
        ("${a:-w}", "one"),
        ("${a-w}", "one"),
        ("${no:-w}", "w"),
        ("${no-w}", "w"),
        ("${empty:-w}", "w"),
        ("${empty-w}", ""),
        ("${a:+w}", "w"),
        ("${a+w}", "w"),
        ("${no:+w}", ""),
        ("${no+w}", ""),
        ("${empty:+w}", ""),
        ("${empty+w}", "w"),
        ("${a:?m}", "one"),
        ("${empty?m}", ""),
        ("${no:-}", ""),
        ("${no:-$a}", "one"),
        ("${no:-${a}}", "one"),
        ("${no:-${nor:-${a}}}", "one"),
        ("${no:-'}'}", "}"),
        ("${no:-\\}}", "}"),
        ('${no:-"$b"}', "x y"),
        ("${path#*/}", "usr/local/bin"),
        ("${path##*/}", "bin"),
        ("${path%/*}", "/usr/local"),
        ("${path%%/*}", ""),
        ("${path#/???}", "/local/bin"),
        ("${path#nothing}", "/usr/local/bin"),
        ("${path%nothing*}", "/usr/local/bin"),
        ("${stars#a\\*}", "b?c"),
        ("${stars%\\?c}", "a*b"),
        ("${stars#a*b}", "?c"),
        ("${path##*$no/}", "bin"),
        ("${no#x}", ""),
        ("${path/usr/opt}", "/opt/local/bin"),
        ("${path/l/L}", "/usr/Local/bin"),
        ("${path//l/L}", "/usr/LocaL/bin"),
        ("${path//\\//:}", ":usr:local:bin"),
        ("${path/l*l/-}", "/usr/-/bin"),
        ("${path//l*/-}", "/usr/-"),
        ("${path//no/-}", "/usr/local/bin"),
        ("${path//*z/-}", "/usr/local/bin"),
        ("${path//x*no/-}", "/usr/local/bin"),
        ("${path/local/$a}", "/usr/one/bin"),
        ("${path/local/}", "/usr//bin"),
        ("${path//?/x}", "xxxxxxxxxxxxxx"),
        ("${path///}", "/usr/local/bin"),
        ("${a/o\\}/x}", "one"),
        ("${no//a/b}", ""),
    ],
)
def test_expand(word: str, text: str) -> None:
    """Each form means what the reference says."""
    assert expand_word(word, VALUES).text == text


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("", ()),
        ("a", ("a",)),
        ("$b", ("x", "y")),
        ("1$b-2", ("1x", "y-2")),
        ('"$b"', ("x y",)),
        ("'a b'c", ("a bc",)),
        ("$empty", ()),
        ('"$empty"', ("",)),
        ("''", ("",)),
        ("a\\ b", ("a b",)),
        (" a  b ", ("a", "b")),
        ("${no:-1 2}", ("1", "2")),
    ],
)
def test_words(word: str, words: tuple[str, ...]) -> None:
    """Where several words are allowed, unquoted blanks part them, those of values too."""
    assert expand_word(word, VALUES).words == words


@pytest.mark.parametrize(
    ("word", "used", "undefined"),
    [
        ("$a '$b' \\$b", {"a"}, set()),
        ("$a$no", {"a"}, {"no"}),
        ("${no:-$a}", {"a"}, set()),
        ("${no-x}${no+x}", set(), set()),
        ("${a:+$nor}", {"a"}, {"nor"}),
        ("${no#x}${nor/x/y}", set(), {"no", "nor"}),
        ("${empty:-x}", {"empty"}, set()),
        ("$1$@", set(), set()),
    ],
)
def test_what_was_looked_up(word: str, used: set[str], undefined: set[str]) -> None:
    """Variables that had a say are told from those that nobody set, when nothing said what then."""
    expansion = expand_word(word, VALUES)
    assert (set(expansion.used), set(expansion.undefined)) == (used, undefined)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("${", "no name"),
        ("${}", "no name"),
        ("${:-x}", "no name"),
        ("${{a}}", "no name"),
        ("${a", "no matching '}'"),
        ("${a:", "no matching '}'"),
        ("${a:-x", "no matching '}'"),
        ("${a#x", "no matching '}'"),
        ("${a/x}", "no matching '/'"),
        ("${a/x/y", "no matching '}'"),
        ("${a:=x}", "cannot assign"),
        ("${a=x}", "cannot assign"),
        ("${a^}", "'^' is no modifier"),
        ("${a:#x}", "':#' is no modifier"),
        ("${a b}", "' ' is no modifier"),
        ("'a", "single quote"),
        ('"a', "double quote"),
        ('"a\\', "double quote"),
        ('"${a"', "'\"' is no modifier"),
        ("${no:?}", "the variable no is not set"),
        ("${empty:?}", "the variable empty is empty"),
        ("${no?give it}", "no: give it"),
        ("${no:?${a}}", "no: one"),
        ("${a:-" * 100, "nested more than"),
    ],
)
def test_refused(word: str, message: str) -> None:
    """What cannot be expanded is refused by a sentence."""
    with pytest.raises(DockerfileError) as caught:
        expand_word(word, VALUES)
    assert message in str(caught.value)


def test_escape_character() -> None:
    """With another escape character a backslash is nothing special, but for patterns that character is it."""
    assert expand_word('`$a \\$a "`$a"', VALUES, escape="`").text == "$a \\one $a"
    assert expand_word("${stars#a`*}", VALUES, escape="`").text == "b?c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\"$a\" '$a'\n", "\"one\" 'one'\n"),
        ("\\$a\n", "$a\n"),
        ("\\\\\n", "\\\n"),
        ("\\\n", "\n"),
        ("`$a", "`one"),
    ],
)
def test_expand_text(text: str, expected: str) -> None:
    """In the body of a heredoc quotes are text."""
    assert expand_text(text, VALUES).text == expected


@pytest.mark.parametrize("word", ["$v" * 200, '"' + "$v" * 200 + '"', "${v//v/$v}", "${v:?}" * 200, "${v:-$v}" * 200])
def test_growth_is_bounded(word: str) -> None:
    """A value that is put in again and again stops at what execve would take, not at the end of memory."""
    with pytest.raises(DockerfileError, match="longer than 131072"):
        expand_word(word, {"v": "v" * 1000})


def test_patterns_take_no_time() -> None:
    """Stars do not backtrack."""
    word = "${v%%" + "*a" * 50 + "b}${v//" + "*a" * 50 + "b/x}"
    assert expand_word(word, {"v": "a" * 20_000}).text == "a" * 40_000


def _cases() -> list[tuple[str, str]]:
    """Values, and expansions of ``$v`` in them, the same each time."""
    choose = random.Random(1)
    cases = []
    for _ in range(1500):
        value = "".join(choose.choices("aab*?\\/.", k=choose.randrange(9)))
        pieces = choose.choices(["a", "b", "ab", "*", "?", "\\*", "\\?", "\\\\", "."], k=choose.randrange(1, 6))
        pattern = "".join(pieces)
        form = choose.choice(["#", "##", "%", "%%", "/", "//"])
        if "/" in form and pattern.endswith("\\*"):  # bash 5.2 takes "*\*" and "*[*]" for different things there
            continue
        cases.append((value, f"${{v{form}{pattern}/R}}" if "/" in form else f"${{v{form}{pattern}}}"))
    return cases


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash to compare with")
def test_patterns_as_in_bash() -> None:
    """Prefixes, suffixes and replacements come out as in bash."""
    cases = _cases()
    script = "".join(f"v={_quoted(value)}; printf '%s\\0' \"{word}\"\n" for value, word in cases)
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
    ours = [expand_word(word, {"v": value}).text for value, word in cases]
    assert [pair for pair in zip(cases, ours, told, strict=False) if pair[1] != pair[2]] == []
    assert len(told) == len(cases) + 1


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@given(
    st.text("ab${}:-+?#%/*\\'\" =", max_size=30), st.dictionaries(st.sampled_from("ab"), st.text("ab *", max_size=5))
)
def test_only_one_error(word: str, environment: dict[str, str]) -> None:
    """Whatever is expanded is expanded or refused, and the same twice."""
    with contextlib.suppress(DockerfileError):
        first = expand_word(word, environment)
        assert isinstance(first, Expansion)
        assert first == expand_word(word, environment)
        assert not first.used & first.undefined
        assert "".join(first.words).replace(" ", "") == first.text.replace(" ", "")
