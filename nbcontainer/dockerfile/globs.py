r"""Patterns of paths, many at once: Go's filepath.Match, and the ``**`` that moby's patternmatcher adds.

    *       any text without a slash
    ?       any character but a slash
    [a-z]   one of these; [^a-z] none of these; never a slash
    \x      x itself
    **      (where it is allowed) any text, slashes too: ``**/x`` is x in any directory, ``x/**`` all that is in x

A pattern matches a whole path or nothing of it. All patterns of a set are one automaton whose states are the bits of a
number, so a match takes one pass over the path however many stars there are: patterns come from strangers, and a
backtracking matcher can be kept busy for years by twenty stars. A pass can be stopped after a directory and taken up
again for each of its entries.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Glob", "Globs", "has_wildcards", "split_wildcards"]


@dataclass(frozen=True, slots=True)
class _One:
    """One character: of the ranges, or with `negated` of none of them."""

    ranges: tuple[tuple[str, str], ...]
    negated: bool = False

    def takes(self, mark: str) -> bool:
        inside = any(low <= mark <= high for low, high in self.ranges)
        return inside != self.negated and (mark != "/" or not self.negated)


_QUESTION = _One((), negated=True)
_STAR = "*"
_ANY = "**"
_FOLDERS = "**/"  # nothing, or any text that ends in a slash: two states, the second of which is inside that text
_INSIDE = "…/"

_Token = _One | str


def has_wildcards(path: str) -> bool:
    """Whether a COPY source is a pattern: it has ``*``, ``?`` or ``[`` that no backslash makes ordinary."""
    return bool(re.match(r"(?:\\.|[^*?\[\\])*[*?\[]", path, re.DOTALL))


def split_wildcards(path: str) -> tuple[str, str]:
    r"""The part of a pattern before its first component with a wildcard, without backslashes, and the rest.

    >>> split_wildcards("a/b/*.c/d")
    ('a/b', '*.c/d')
    """
    parts = path.split("/")
    first = next((index for index, part in enumerate(parts) if has_wildcards(part)), len(parts))
    return re.sub(r"\\(.)", r"\1", "/".join(parts[:first])), "/".join(parts[first:])


def _tokens(pattern: str, *, double: bool) -> list[_Token]:
    """A pattern as tokens; raises `DockerfileError` where Go says ErrBadPattern."""
    tokens: list[_Token] = []
    at = 0
    while at < len(pattern):
        mark = pattern[at]
        at += 1
        if mark == "*":
            stars = len(pattern[at - 1 :]) - len(pattern[at - 1 :].lstrip("*"))
            at += stars - 1
            token = _STAR
            if double and stars > 1:
                at += pattern.startswith("/", at)
                token = _ANY if at == len(pattern) else _FOLDERS
            if not (tokens and tokens[-1 if token != _FOLDERS else -2 :][:1] == [token]):  # twice is as good as once
                tokens += [token, _INSIDE] if token == _FOLDERS else [token]
        elif mark == "?":
            tokens.append(_QUESTION)
        elif mark == "[":
            one, at = _class(pattern, at)
            tokens.append(one)
        else:
            if mark == "\\":
                if at == len(pattern):
                    raise DockerfileError(f"the pattern {pattern!r} ends in a backslash; write \\\\ for a backslash")
                mark = pattern[at]
                at += 1
            tokens.append(_One(((mark, mark),)))
    return tokens


def _class(pattern: str, at: int) -> tuple[_One, int]:
    """Read ``[…]`` from behind its opening bracket."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[tuple[str, str]] = []
    while not (pattern.startswith("]", at) and ranges):
        low, at = _class_mark(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_mark(pattern, at + 1)
        ranges.append((low, high))
    return _One(tuple(ranges), negated), at + 1


def _class_mark(pattern: str, at: int) -> tuple[str, int]:
    if pattern.startswith("\\", at):
        at += 1
        if at < len(pattern):
            return pattern[at], at + 1
    elif at < len(pattern) and pattern[at] not in "-]":
        return pattern[at], at + 1
    raise DockerfileError(f"the pattern {pattern!r} has a '[' that is not well closed; write \\[ for a bracket")


class Globs:
    """Patterns as one automaton. States are numbers: begin with `start`, feed text, ask which patterns match."""

    def __init__(self, patterns: Iterable[str], *, double: bool = True) -> None:
        self._tokens: list[_Token | None] = []  # None is the state after a pattern's last token
        self._ends: dict[int, int] = {}  # the bit of that state, and the pattern's number
        self._spans: list[tuple[int, int]] = []  # the first state of each pattern, and how many it has
        start = 0
        for number, pattern in enumerate(patterns):
            first = len(self._tokens)
            start |= 1 << first
            self._tokens += [*_tokens(pattern, double=double), None]
            self._ends[1 << (len(self._tokens) - 1)] = number
            self._spans.append((first, len(self._tokens) - first))
        self._accepting = sum(self._ends)
        self._skipping = self._mask(_STAR) | self._mask(_ANY)
        self._folders = self._mask(_FOLDERS)
        self._anything = self._mask(_ANY) | self._mask(_INSIDE)
        self._stars = self._mask(_STAR)
        self._steps: dict[str, tuple[int, int]] = {}
        self.start = self._closed(start)

    def _mask(self, wanted: str) -> int:
        return sum(1 << index for index, token in enumerate(self._tokens) if token == wanted)

    def _closed(self, states: int) -> int:
        """The states that are reached without a character too: past a star, and past or into ``**/``."""
        while True:
            more = states | (states & self._skipping) << 1
            folders = states & self._folders
            more |= folders << 1 | folders << 2
            if more == states:
                return states
            states = more

    def feed(self, states: int, text: str) -> int:
        """The states after some more text of a path; 0 when nothing can match any more."""
        for mark in text:
            if not states:
                return 0
            taking, staying = self._steps.get(mark) or self._step(mark)
            states = self._closed((states & taking) << 1 | states & staying)
        return states

    def _step(self, mark: str) -> tuple[int, int]:
        """The states that a character moves on from, and those that it leaves where they are."""
        taking = sum(
            1 << index for index, token in enumerate(self._tokens) if isinstance(token, _One) and token.takes(mark)
        )
        if mark == "/":
            taking |= self._mask(_INSIDE)
        staying = self._anything | (self._stars if mark != "/" else 0)
        self._steps[mark] = (taking, staying)
        return taking, staying

    def last(self, states: int) -> int:
        """The number of the last pattern that matches what was fed; -1 when none does."""
        accepted = states & self._accepting
        return self._ends[1 << (accepted.bit_length() - 1)] if accepted else -1

    def states_of(self, numbers: Iterable[int]) -> int:
        """All states of some patterns: what is left of them could still match longer text."""
        return sum((1 << size) - 1 << first for first, size in map(self._spans.__getitem__, numbers))


class Glob:
    """One pattern of COPY's sources: Go's filepath.Match, with ``**`` only when `double`.

    >>> Glob("*.py").match("a.py"), Glob("*").match("a/b"), Glob("**/*.py", double=True).match("a/b.py")
    (True, False, True)
    """

    def __init__(self, pattern: str, *, double: bool = False) -> None:
        self._globs = Globs((pattern,), double=double)

    def match(self, path: str) -> bool:
        """Whether the whole path matches."""
        return self._globs.last(self._globs.feed(self._globs.start, path)) == 0
