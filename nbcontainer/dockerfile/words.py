r"""Word expansion: quotes taken off, escapes resolved, ``$variables`` put in, as BuildKit's shell lexer does it.

    $v ${v}                  the value; nothing when v is not set
    ${v:-w} ${v-w}           w when v is unset (with the colon: or empty)
    ${v:+w} ${v+w}           w when v is set (with the colon: and not empty), else nothing
    ${v:?m} ${v?m}           the error m when v is unset (with the colon: or empty)
    ${v#p} ${v##p}           without the shortest or longest match of p at the start
    ${v%p} ${v%%p}           the same at the end
    ${v/p/r} ${v//p/r}       the first or every match of p replaced by r

``w``, ``m``, ``p`` and ``r`` are words themselves. In a pattern ``*`` is any text and ``?`` any character; a backslash
makes ``*``, ``?``, ``\``, ``}`` and ``/`` ordinary. Single quotes stop all of it, double quotes stop only splitting,
and the escape character before ``$`` makes it ordinary. Positional and special parameters (``$1 $@ $? …``) are empty.
There is no assignment: ``${v:=w}`` is an error.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Expansion", "expand_text", "expand_word"]

_SPECIAL = frozenset("@*#!?-$")
_QUOTES = "'\""
_DEEPEST = 64
_LONGEST_WORD = 1 << 17
"""MAX_ARG_STRLEN: execve(2) takes no longer argument or variable. A value may be doubled on every line."""
_LONGEST_TEXT = 1 << 24


@dataclass(frozen=True, slots=True)
class Expansion:
    """What became of a word.

    `text` is the word as one; `words` is what it is where several are allowed: blanks that came unquoted part it, also
    those from a variable's value. `used` are the variables that were looked up and set, `undefined` those that were
    not set and had no ``-``, ``+`` or ``?`` to say what then.
    """

    text: str
    words: tuple[str, ...]
    used: frozenset[str]
    undefined: frozenset[str]


def expand_word(word: str, environment: Mapping[str, str], *, escape: str = "\\") -> Expansion:
    """Expand an argument of an instruction; raises `DockerfileError` without a place, which the caller knows.

    >>> expand_word("${a:-x}/'$b'", {}).text
    'x/$b'
    """
    return _Expander(word, environment, escape, quotes=True, longest=_LONGEST_WORD).whole()


def expand_text(text: str, environment: Mapping[str, str]) -> Expansion:
    r"""Expand the body of a heredoc of COPY or ADD: quotes are ordinary there and the escape is always a backslash.

    >>> expand_text('"$a" \\$a', {"a": "1"}).text
    '"1" $a'
    """
    return _Expander(text, environment, "\\", quotes=False, longest=_LONGEST_TEXT).whole()


class _Words:
    """The same text twice: as one, and cut where blanks part it."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self._words: list[str] = []
        self._word: list[str] = []
        self._open = False

    def plain(self, text: str) -> None:
        """Take text in which blanks part words."""
        self.text.append(text)
        for part in re.findall(r"\s+|\S+", text):
            if not part.isspace():
                self._word.append(part)
                self._open = True
            elif self._open:
                self._words.append("".join(self._word))
                self._word.clear()
                self._open = False

    def quoted(self, text: str) -> None:
        """Take text that stays together, and makes a word even when it is empty."""
        self.text.append(text)
        self._word.append(text)
        self._open = True

    def words(self) -> tuple[str, ...]:
        return (*self._words, "".join(self._word)) if self._open else tuple(self._words)


class _Expander:
    """One pass over a word, a character at a time; nested words recur."""

    def __init__(self, text: str, environment: Mapping[str, str], escape: str, *, quotes: bool, longest: int) -> None:
        self._text = text
        self._at = 0
        self._environment = environment
        self._escape = escape
        self._quotes = quotes
        self._depth = 0
        self._longest = longest
        self._left = longest
        self._used: set[str] = set()
        self._undefined: set[str] = set()

    def whole(self) -> Expansion:
        words = self._until("")
        return Expansion("".join(words.text), words.words(), frozenset(self._used), frozenset(self._undefined))

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        mark = self._peek()
        self._at += 1
        return mark

    def _until(self, stop: str, *, keep_escapes: bool = False) -> _Words:
        """Expand up to `stop` and step over it ("" is the end); `keep_escapes` is for patterns."""
        words = _Words()
        ordinary = _ordinary(self._escape, stop, quotes=self._quotes)
        while True:
            if run := ordinary.match(self._text, self._at):
                words.plain(run[0])
                self._at = run.end()
            if not (mark := self._next()):
                break
            if mark == stop:
                return words
            if mark == "$":
                words.plain(self._dollar())
            elif mark == "'" and self._quotes:
                words.quoted(self._single_quoted())
            elif mark == '"' and self._quotes:
                words.quoted(self._double_quoted(keep_escapes=keep_escapes))
            elif mark == self._escape:
                # an escape character that ends the word escapes nothing
                following = self._next()
                if keep_escapes:
                    words.quoted(mark + following)
                elif following:
                    words.quoted(following)
        if stop:
            raise DockerfileError(f"'${{' has no matching '{stop}'; add it, or write \\$ for a dollar sign")
        return words

    def _single_quoted(self) -> str:
        end = self._text.find("'", self._at)
        if end < 0:
            raise DockerfileError("a single quote is opened and not closed; add ' or write \\' for an apostrophe")
        start, self._at = self._at, end + 1
        return self._text[start:end]

    def _double_quoted(self, *, keep_escapes: bool) -> str:
        parts: list[str] = []
        while mark := self._next():
            if mark == '"':
                return "".join(parts)
            if mark == "$":
                parts.append(self._dollar())
            elif mark == self._escape:
                # only these can be escaped between double quotes, before anything else it is ordinary
                if (following := self._peek()) and following in f'"${self._escape}':
                    self._at += 1
                    parts.append(mark + following if keep_escapes else following)
                elif following:
                    parts.append(mark)
            else:
                parts.append(mark)
        raise DockerfileError('a double quote is opened and not closed; add " or write \\" for a quotation mark')

    def _dollar(self) -> str:
        """What stands for ``$…`` or ``${…}``; the dollar sign has been read."""
        if self._peek() != "{":
            name = self._name()
            return self._value(name) if name else "$"
        self._at += 1
        self._depth += 1
        if self._depth > _DEEPEST:
            raise DockerfileError(
                f"'${{' is nested more than {_DEEPEST} deep; give the inner parts names with ARG or ENV"
            )
        value = self._braced()
        self._depth -= 1
        return value

    def _name(self) -> str:
        """A variable's name, a run of digits, or a special parameter; "" where there is none of them."""
        mark = self._peek()
        if mark and mark in _SPECIAL:
            self._at += 1
            return mark
        match = re.compile(r"\d+|\w+").match(self._text, self._at)
        if not match:
            return ""
        self._at = match.end()
        return match[0]

    def _braced(self) -> str:
        start = self._at
        name = self._name()
        mark = self._next()
        if not name or (not mark and not name):
            raise self._wrong(start, "there is no name after '${'")
        if mark == "}":
            return self._value(name)
        if mark == "/":
            return self._replaced(name)
        colon = mark == ":"
        modifier = self._next() if colon else mark
        if modifier in {"#", "%"} and modifier and not colon:
            return self._trimmed(name, modifier)
        if modifier not in {"-", "+", "?"}:
            if modifier == "=":
                raise self._wrong(start, "a Dockerfile cannot assign in '${'; use ENV or ARG, or ':-' for a default")
            if not modifier:
                raise self._wrong(start, "'${' has no matching '}'")
            raise self._wrong(
                start, f"{(':' if colon else '') + modifier!r} is no modifier; there are :- - :+ + :? ? # ## % %% / //"
            )
        return self._conditional(name, modifier, colon=colon)

    def _conditional(self, name: str, modifier: str, *, colon: bool) -> str:
        """``-``, ``+`` and ``?``, with or without a colon, which makes an empty value count as unset."""
        word = "".join(self._until("}").text)
        value = self._environment.get(name)
        if value is not None:
            self._used.add(name)
        present = value is not None and not (colon and not value)
        if modifier == "+":
            return word if present else ""
        if value is not None and present:
            self._spend(len(value))
            return value
        if modifier == "-":
            return word
        state = "empty" if value is not None else "not set"
        raise DockerfileError(f"{name}: {word}" if word else f"the variable {name} is {state}; give it a value")

    def _trimmed(self, name: str, modifier: str) -> str:
        longest = self._peek() == modifier
        self._at += longest
        pattern = _Wildcard("".join(self._until("}", keep_escapes=True).text), self._escape)
        value = self._value(name)
        if modifier == "#":
            return value[pattern.prefix(value, longest=longest) :]
        return value[: len(value) - pattern.reverse().prefix(value[::-1], longest=longest)]

    def _replaced(self, name: str) -> str:
        every = self._peek() == "/"
        self._at += every
        pattern = _Wildcard("".join(self._until("/", keep_escapes=True).text), self._escape)
        replacement = "".join(self._until("}").text)
        parts = pattern.split(self._value(name), every=every)
        self._spend(len(replacement) * len(parts))
        return replacement.join(parts)

    def _value(self, name: str) -> str:
        value = self._environment.get(name)
        if value is None:
            if re.match(r"[^\W\d]", name):
                self._undefined.add(name)
            return ""
        self._used.add(name)
        self._spend(len(value))
        return value

    def _spend(self, size: int) -> None:
        """Count what variables and replacements put in, before memory is spent on it."""
        self._left -= size
        if self._left < 0:
            raise DockerfileError(f"with its variables the text is longer than {self._longest} characters; use a file")

    def _wrong(self, start: int, why: str) -> DockerfileError:
        shown = self._text[start - 2 : start + 30]
        return DockerfileError(f"{shown!r} cannot be expanded: {why}")


@functools.cache
def _ordinary(escape: str, stop: str, *, quotes: bool) -> re.Pattern[str]:
    """What needs no looking at, up to the next character that does."""
    return re.compile(f"[^${re.escape(escape + stop)}{_QUOTES if quotes else ''}]+")


class _Wildcard:
    """A pattern of ``*`` and ``?``, matched without backtracking: its pieces between stars are searched in order."""

    def __init__(self, pattern: str, escape: str, *, pieces: tuple[tuple[str, ...], ...] = ()) -> None:
        self._pieces = pieces or _pieces(pattern, escape)

    def reverse(self) -> _Wildcard:
        """The pattern that matches the same texts written backwards."""
        return _Wildcard("", "", pieces=tuple(piece[::-1] for piece in self._pieces[::-1]))

    def prefix(self, text: str, *, longest: bool) -> int:
        """The length of the shortest or longest match at the start of `text`; 0 also when there is none."""
        return max(0, self._end(text, 0, longest=longest))

    def split(self, text: str, *, every: bool) -> list[str]:
        """What stands around the first or every (longest, leftmost) match in `text`.

        A match with a star in it reaches to the last place it can, so there is no second one. An empty match is none,
        but for a star in an empty text, as in a shell.
        """
        first = _regex(self._pieces[0])
        parts: list[str] = []
        at = 0
        while match := first.search(text, at):
            end = self._end(text, match.start(), longest=True)
            if end < 0 or (end == match.start() and (text or len(self._pieces) == 1)):
                break
            parts.append(text[at : match.start()])
            at = end
            if not every or at == len(text):
                break
        return [*parts, text[at:]]

    def _end(self, text: str, start: int, *, longest: bool) -> int:
        """Where the match that begins at `start` ends; -1 when there is none.

        Taking each piece as early as possible finds a match if there is any, and the shortest; the longest is the same
        but for its last piece, which is taken as late as possible.
        """
        match = _regex(self._pieces[0]).match(text, start)
        if not match:
            return -1
        at = match.end()
        for index, piece in enumerate(self._pieces[1:], 2):
            regex = _regex(piece)
            if longest and index == len(self._pieces):
                latest = (where for where in range(len(text) - len(piece), at - 1, -1) if regex.match(text, where))
                found = next(latest, -1)
                return found + len(piece) if found >= 0 else -1
            match = regex.search(text, at)
            if not match:
                return -1
            at = match.end()
        return at


def _pieces(pattern: str, escape: str) -> tuple[tuple[str, ...], ...]:
    """What stands between the stars: characters, and "" for any one character."""
    pieces: list[list[str]] = [[]]
    at = 0
    while at < len(pattern):
        mark = pattern[at]
        at += 1
        if mark == escape and at < len(pattern):
            pieces[-1].append(pattern[at])
            at += 1
        elif mark == "*":
            pieces.append([])
        else:
            pieces[-1].append("" if mark == "?" else mark)
    return tuple(map(tuple, pieces))


def _regex(piece: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("".join(re.escape(mark) if mark else "." for mark in piece), re.DOTALL)
