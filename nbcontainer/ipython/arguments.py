"""From the text after the magic to words: quoting, comments, continued lines, ``{name}`` and ``{{name}}``.

IPython's own splitting keeps quotes inside words and its expansion is all or nothing, so both are done here.
Variables are looked up strictly, a missing one is an error, and only text, numbers and paths are taken: the words of
a command line are no place for the ``repr`` of a data frame.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["expand_body", "expander", "join_continued", "split_line"]

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_WORD_FIELD = re.compile(rf"\{{\{{|\}}\}}|\{{({_NAME})\}}")
_BODY_FIELD = re.compile(rf"\{{\{{\s*({_NAME})\s*\}}\}}")


def split_line(line: str) -> list[str]:
    """The words of a line as a shell would split them; a ``#`` that begins a word begins a comment.

    >>> split_line("-e 'A=b c' debian ls -la  # list")
    ['-e', 'A=b c', 'debian', 'ls', '-la']
    """
    try:
        return shlex.split(_without_comment(line))
    except ValueError as problem:
        reason = "a quote is not closed" if "quotation" in str(problem) else "it ends with a backslash"
        raise InvalidOption(f"the line cannot be split into words: {reason}") from problem


def _without_comment(line: str) -> str:
    """Cut the comment off; `shlex` would cut ``a#b`` too, which is an ordinary word."""
    quote, escaped, before = "", False, " "
    for place, mark in enumerate(line):
        if escaped:
            escaped = False
        elif mark == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if mark == quote else quote
        elif mark in "'\"":
            quote = mark
        elif mark == "#" and before.isspace():
            return line[:place]
        before = mark
    return line


def join_continued(line: str, cell: str) -> tuple[str, str]:
    r"""Take the lines that a trailing backslash continues from the cell to the magic's own line."""
    while line.rstrip().endswith("\\") and cell:
        first, _, cell = cell.partition("\n")
        line = f"{line.rstrip()[:-1]} {first}"
    return line, cell


def expander(namespace: Mapping[str, Any]) -> Callable[[str], str]:
    """Replace ``{name}`` or ``{name.attribute}`` in a word; ``{{`` and ``}}`` are braces, any other brace is itself."""

    def expand(word: str) -> str:
        return _WORD_FIELD.sub(lambda field: _brace(field) or _text(namespace, field[1]), word)

    def _brace(field: re.Match[str]) -> str:
        return "" if field[1] else field[0][0]

    return expand


def expand_body(text: str, namespace: Mapping[str, Any]) -> str:
    """Replace ``{{name}}`` in a cell's text, for ``--expand``; nothing is quoted."""
    return _BODY_FIELD.sub(lambda field: _text(namespace, field[1]), text)


def _text(namespace: Mapping[str, Any], name: str) -> str:
    first, *attributes = name.split(".")
    try:
        value = namespace[first]
        for attribute in attributes:
            value = getattr(value, attribute)
    except (KeyError, AttributeError):
        raise InvalidOption(f"there is no variable {name!r}; for the text itself write {{{{{name}}}}}") from None
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    raise InvalidOption(f"variable {name!r} is a {type(value).__name__}; only text, numbers and paths can be put in")
