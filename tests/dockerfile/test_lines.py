"""Logical lines: what belongs together, where it stood, and what cannot be cut up."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile.lines import LONGEST_LINE, Directives, read_lines
from nbcontainer.errors import DockerfileError


def texts(source: str | bytes) -> list[str]:
    return [line.text for line in read_lines(source).lines]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("", []),
        ("\n \n# only this\n", []),
        ("FROM a", ["FROM a"]),
        ("\ufeffFROM a\n", ["FROM a"]),
        (b"\xef\xbb\xbfFROM a\r\nRUN b\r\n", ["FROM a", "RUN b"]),
        ("  FROM a  \n\tRUN b\t\n", ["FROM a", "RUN b"]),
        ("RUN a \\\n  b", ["RUN a   b"]),
        ("RUN a \\  \n b\\\t\nc", ["RUN a  bc"]),
        ("RUN a\\\\\nRUN b", ["RUN a\\\\", "RUN b"]),
        ("RUN a \\\n# comment\n  # another\n b", ["RUN a  b"]),
        ("RUN a \\\n\n \n b", ["RUN a  b"]),
        ("RUN a \\\r\n b\r\n", ["RUN a  b"]),
        ("RUN a \\", ["RUN a"]),
        ("RUN a \\\n# no more", ["RUN a"]),
        ("\\\nRUN a", ["RUN a"]),
        ("\\\n\\\n", []),
        ("RUN a # b", ["RUN a # b"]),
        ("# escape=`\nRUN a `\n b\\\nRUN c", ["RUN a  b\\", "RUN c"]),
    ],
)
def test_logical_lines(source: str | bytes, expected: list[str]) -> None:
    """Continuations are joined, comments and blank lines left out, byte order mark and carriage returns taken off."""
    assert texts(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a", Directives(syntax="docker/dockerfile:1")),
        ("#\tSyNtAx = x y \n# ESCAPE=`\n# check=skip=all", Directives(syntax="x y", escape="`", check="skip=all")),
        ("# about\n# escape=`\nFROM a", Directives()),
        ("\n# escape=`\nFROM a", Directives()),
        ("# unknown=1\n# escape=`\nFROM a", Directives()),
        ("FROM a\n# escape=`", Directives()),
        ("# escape=\nFROM a", Directives()),
        ("# escape=\\\nFROM a", Directives()),
    ],
)
def test_directives(source: str, expected: Directives) -> None:
    """Directives stand at the very top, in any case, and whatever is none of them ends them."""
    assert read_lines(source).directives == expected


def test_place_of_text() -> None:
    """An offset in a joined line is found again in the source."""
    line = read_lines("# c\n  RUN one \\\n# c\n\n   two").lines[0]
    assert line.text == "RUN one    two"
    assert line.place(0) == (2, 3)
    assert line.place(line.text.index("one")) == (2, 7)
    assert line.place(line.text.index("two")) == (5, 4)
    assert (line.origin.first, line.origin.last) == (2, 5)
    assert line.origin.text == "  RUN one \\\n# c\n\n   two"


def test_comments_above() -> None:
    """The comment block directly above a line belongs to it, and an empty line sets it apart."""
    lines = read_lines("# x\n\n# a is it\n#b\nARG a\nARG b\n# c\n\nARG c").lines
    assert [line.comments for line in lines] == [("a is it", "b"), (), ()]


def test_empty_continuation_is_found() -> None:
    """An empty line inside an instruction is skipped with a finding that has its lines; a comment is not."""
    text = read_lines("RUN a \\\n# c\n b\nRUN c \\\n\n d")
    assert [(each.check, each.origin.first, each.origin.last) for each in text.findings] == [
        ("NoEmptyContinuation", 4, 6)
    ]


def test_heredocs() -> None:
    """Several heredocs of a line follow each other, and each knows how it was opened."""
    source = "COPY <<a 3<<-'b' <<\"c\" <<d\\e /x\n1 $v\na\n\t2\n\tb\nc\n\nde\nRUN next"
    first, second = read_lines(source).lines
    assert [(each.name, each.content, each.expand, each.chomp, each.descriptor) for each in first.heredocs] == [
        ("a", "1 $v\n", True, False, None),
        ("b", "\t2\n", False, True, 3),
        ("c", "", False, False, None),
        ("de", "\n", False, False, None),
    ]
    assert first.heredocs[1].body == "2\n"
    assert (first.origin.first, first.origin.last) == (1, 8)
    assert second.text == "RUN next"


@pytest.mark.parametrize(
    "source",
    [
        "ENV a=<<b",
        "RUN a<<b",
        "RUN a << b",
        'RUN ["a", "<<b"]',
        'RUN ["a", 1, " <<b "]',
        "RUN echo '<<b'",
        'RUN echo "x <<b"',
        "RUN cat <<<b",
        "RUN x <<''",
        "ONBUILD ENV a <<b",
        "CMD cat <<b",
        "<<b",
    ],
)
def test_no_heredoc(source: str) -> None:
    """What only looks like a heredoc opens none, so the line below is the next instruction."""
    first, second = read_lines(source + "\nRUN c").lines
    assert (first.heredocs, second.text) == ((), "RUN c")


@pytest.mark.parametrize(
    "source", ["RUN <<b", "run\t<<b", "ONBUILD RUN cat <<b", "RUN --mount=type=tmpfs,target=/x <<b"]
)
def test_heredoc_takes_everything(source: str) -> None:
    """In a heredoc comments, continuations and instructions are its text, with their line ends."""
    (line,) = read_lines(f"{source}\n# c\nRUN \\\n\nFROM x\r\nb\r\n").lines
    assert [each.content for each in line.heredocs] == ["# c\nRUN \\\n\nFROM x\r\n"]


@pytest.mark.parametrize(
    ("source", "message", "place"),
    [
        ("# escape=x\nFROM a", "neither \\ nor `", (1, 10)),
        ("# check=a\n# CHECK=b", "'check' stands twice", (2, 3)),
        (b"FROM a\nRUN \xff", "not UTF-8", (2, 0)),
        ("FROM a\nRUN \0", "NUL", (2, 0)),
        ("FROM \ud800", "surrogate", (1, 0)),
        ("FROM a\n" + "é" * (LONGEST_LINE // 2 + 1), "longer than 65535 bytes", (2, 0)),
        ("FROM a\nRUN cat <<EOF\nx", "<<EOF has no end", (2, 9)),
        ("FROM a\nRUN \\\n cat <<EOF\nx", "<<EOF has no end", (3, 6)),
    ],
)
def test_refused(source: str | bytes, message: str, place: tuple[int, int]) -> None:
    """What cannot be cut into lines is refused with the line."""
    with pytest.raises(DockerfileError) as caught:
        read_lines(source)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == place


def test_longest_line_is_taken() -> None:
    """65,535 bytes are not too many."""
    assert len(texts("RUN " + "x" * (LONGEST_LINE - 4))[0]) == LONGEST_LINE


def test_drawing() -> None:
    """An error draws the lines around its place, numbered, with a caret that counts what is shown."""
    source = "\n" * 8 + "RUN a \\\n\tb \x1b \\\n  wrong \\\n  d \\\n  e"
    line = read_lines(source).lines[0]
    problem = line.error("no", line.text.index("wrong"), 5)
    assert str(problem).split("\n") == [
        "line 11: no",
        " 9 | RUN a \\",
        "10 |  b \\x1b \\",
        "11 |   wrong \\",
        "   |   ^^^^^",
        "12 |   d \\",
    ]


def test_drawing_of_a_long_line() -> None:
    """A place far to the right is shown in a window, and one at the end of the line has its caret too."""
    line = read_lines("RUN " + "x" * 1000 + "WRONG").lines[0]
    _, row, caret = str(line.error("no", 1004, 5)).split("\n")
    assert len(row) < 170
    assert row[caret.index("^") :] == "WRONG"
    assert str(line.error("no", 1009)).count("^") == 1
