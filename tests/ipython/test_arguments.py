"""Words from lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.ipython.arguments import expand_body, expander, join_continued, split_line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        ("debian", ["debian"]),
        ("-e 'A=b c' debian", ["-e", "A=b c", "debian"]),
        ('debian sh -c "echo \\"x\\" # y"', ["debian", "sh", "-c", 'echo "x" # y']),
        ("debian # a comment 'with a quote", ["debian"]),
        ("# only", []),
        ("-e A=b#c debian", ["-e", "A=b#c", "debian"]),
        ("debian echo '#' \\# x", ["debian", "echo", "#", "#", "x"]),
    ],
)
def test_lines_split_as_in_a_shell(line, words):
    """Quotes group and vanish; a comment begins at a word that begins with ``#``."""
    assert split_line(line) == words


@pytest.mark.parametrize(("line", "reason"), [("'a", "quote"), ("a \\", "backslash")])
def test_lines_that_do_not_end(line, reason):
    """Say what is missing."""
    with pytest.raises(InvalidOption, match=reason):
        split_line(line)


def test_backslash_continues_into_the_cell():
    """As many lines as end with one."""
    assert join_continued("-e A=b \\", "  -e C=d \\\n debian\nbody\nmore\n") == (
        "-e A=b    -e C=d   debian",
        "body\nmore\n",
    )
    assert join_continued("debian", "a \\\n") == ("debian", "a \\\n")


def test_word_expansion():
    """Names in braces, doubled braces, and braces that are neither."""
    expand = expander({"x": "1", "π": 3.14, "p": Path("/a/b")})
    assert expand("{x}-{π}-{{x}}-{}-{a b}-{0}-{p.name}") == "1-3.14-{x}-{}-{a b}-{0}-b"
    with pytest.raises(InvalidOption, match=r"p\.nothing"):
        expand("{p.nothing}")


def test_body_expansion_touches_only_double_braces():
    """Everything else belongs to the shell."""
    assert expand_body("{{x}} {x} ${x} {{ x }} {{x+y}}", {"x": 1}) == "1 {x} ${x} 1 {{x+y}}"
