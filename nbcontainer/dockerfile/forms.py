"""The three ways in which an instruction's arguments are cut up: flags in front, words, and the exec (JSON) form.

Each is a rule of BuildKit's parser with traps of its own, stated at the function. Nothing is expanded here and, but
for flags, quotes stay on: `nbcontainer.dockerfile.words` takes them off when it knows the environment.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

__all__ = ["BLANKS", "Flag", "MixedArray", "exec_form", "split_blanks", "split_flags", "split_words"]

BLANKS = re.compile(r"[\t\v\f\r ]+")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


class MixedArray(ValueError):
    """A JSON array in which something is not a string: BuildKit refuses it instead of giving it to a shell."""


@dataclass(frozen=True, slots=True)
class Flag:
    """``--name[=value]`` in front of an instruction's arguments; `value` is None without ``=``."""

    name: str
    value: str | None
    offset: int
    width: int


def split_flags(text: str) -> tuple[tuple[Flag, ...], int]:
    r"""Cut ``--flags`` off the front; also return the offset at which the arguments begin.

    Quotes go round parts of a flag and a backslash takes the next character as it is, whatever the escape directive
    says. A bare ``--`` ends the flags.

    >>> split_flags('--mount=type=cache,target="/a b" true')[1]
    33
    """
    flags: list[Flag] = []
    at = 0
    while True:
        while at < len(text) and text[at].isspace():
            at += 1
        if not text.startswith("--", at):
            return tuple(flags), at
        start = at
        word, at = _flag_word(text, at)
        if word == "--":
            return tuple(flags), at + (len(text[at:]) - len(text[at:].lstrip()))
        name, equals, value = word[2:].partition("=")
        flags.append(Flag(name, value if equals else None, start, at - start))


def _flag_word(text: str, at: int) -> tuple[str, int]:
    word, quote = "", ""
    while at < len(text):
        mark = text[at]
        if not quote and mark.isspace():
            break
        at += 1
        if mark == quote:
            quote = ""
        elif not quote and mark in "\"'":
            quote = mark
        elif mark == "\\":
            word += text[at : at + 1]
            at += 1
        else:
            word += mark
    return word, min(at, len(text))


def split_words(text: str, escape: str) -> tuple[str, ...]:
    r"""Words as ENV, LABEL and ARG have them: blanks part them except in quotes or after the escape character.

    Quotes and escapes stay in the words.

    >>> split_words(r'a="b c" d=e\ f', "\\")
    ('a="b c"', 'd=e\\ f')
    """
    words: list[str] = []
    word, quote, at = "", "", 0
    while at < len(text):
        mark = text[at]
        at += 1
        if not quote and mark.isspace():
            if word:
                words.append(word)
            word = ""
            continue
        if mark == escape and quote != "'":
            # an escape character at the very end escapes nothing, and is dropped
            word += text[at - 1 : at + 1] if at < len(text) else ""
            at += 1
            continue
        if quote:
            quote = "" if mark == quote else quote
        elif mark in "\"'":
            quote = mark
        word += mark
    return (*words, word) if word else tuple(words)


def split_blanks(text: str) -> tuple[str, ...]:
    """Words as COPY, EXPOSE and FROM have them: blanks part them, in quotes too."""
    return tuple(word for word in BLANKS.split(text) if word)


def exec_form(text: str) -> tuple[str, ...] | None:
    """The strings of a JSON array, or None when the text is anything else, which then is the shell form.

    Raises `MixedArray` for an array that holds something else. Single quotes are no JSON: ``['a']`` is shell form.
    """
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(each, str) for each in value):
        raise MixedArray(text)
    # half a surrogate pair, which JSON can spell and nothing can encode, becomes what Go's decoder makes of it
    return tuple(_SURROGATES.sub("\ufffd", each) for each in value)


def _refuse(constant: str) -> None:
    raise ValueError(constant)
