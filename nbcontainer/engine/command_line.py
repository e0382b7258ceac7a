"""How a command line is read: verbs, options and positionals as data; the parser and the help are made from them.

Docker's grammar, which people have in their fingers: ``VERB [OPTIONS] ARG…`` with options anywhere, except that a
verb which takes a command (``run``) ends its options at the image, and everything after the image is the command,
verbatim.

The scanner is our own forty lines and not `argparse`: that one classifies *every* word before it looks at any, so
``run debian ls --n`` can trip over an option of ours; it exits on ``-h``; and its messages, its treatment of ``--``
and of interleaved options differ between the Python versions we support. Here an error is one sentence with the
nearest name and the place to read more.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
from argparse import Namespace
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer.errors import InvalidOption
from nbcontainer.model import Platform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from nbcontainer.engine.door import Door, Session

__all__ = [
    "Completes",
    "HelpRequested",
    "Option",
    "Positional",
    "Verb",
    "nearest",
    "parse",
    "read_choice",
    "read_duration",
    "read_environment",
    "usage",
    "verb_help",
]

Completes = Literal["", "image", "stored", "container", "running", "either", "verb", "shell", "volume", "network"]
Count = Literal["one", "optional", "any", "some", "rest"]
PREFIX: dict[Door, str] = {"notebook": "%container", "terminal": "nbcontainer"}
_WIDTH = 100
_BRACES = "Options and {} may name variables in braces, as in -v {{folder}}:/data; COMMAND is taken as it is."


class HelpRequested(Exception):
    """``-h`` was met while reading a line; the door shows `text` instead of doing anything."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: a switch when it has no `metavar`.

    `read` turns the typed text into its value or raises `InvalidOption`. `door` limits an option to one door.
    `refusal` marks an option docker has and we do not (yet): it is understood, hidden from help, and refused with
    that sentence, so that nobody believes a limit was set.
    """

    flags: tuple[str, ...]
    help: str = ""
    metavar: str = ""
    many: bool = False
    read: Callable[[str], Any] = str
    choices: tuple[str, ...] = ()
    completes: Completes = ""
    door: Door | None = None
    refusal: str = ""

    @property
    def name(self) -> str:
        """The attribute that holds the value: the long flag's name."""
        return max(self.flags, key=len).lstrip("-").replace("-", "_")

    @property
    def unset(self) -> Any:
        """Its value where it is not given."""
        return False if not self.metavar else () if self.many else None

    @property
    def label(self) -> str:
        """``-e, --env NAME=VALUE``, as help shows it."""
        return f"{', '.join(self.flags)} {self.metavar}".rstrip()

    def offered_at(self, door: Door) -> bool:
        """Whether the help of this door lists it."""
        return not self.refusal and self.door in {None, door}


@dataclass(frozen=True, slots=True, kw_only=True)
class Positional:
    """One positional argument; ``rest`` takes every word after the ones before it, options of others included."""

    name: str
    help: str
    count: Count = "one"
    completes: Completes = ""

    @property
    def attribute(self) -> str:
        """The attribute that holds the value."""
        return self.name.lower()

    @property
    def label(self) -> str:
        """``IMAGE``, ``[IMAGE]`` or ``[COMMAND ARG…]``, as usage lines show it."""
        forms = {"one": "{0}", "optional": "[{0}]", "any": "[{0}…]", "some": "{0}…", "rest": "[{0} ARG…]"}
        return forms[self.count].format(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb of every door. `examples` are written without the door's own prefix."""

    name: str
    summary: str
    handler: Callable[[Session, Namespace], object]
    description: str = ""
    options: tuple[Option, ...] = ()
    positionals: tuple[Positional, ...] = ()
    examples: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    door: Door | None = None
    _unset: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def unset(self) -> Mapping[str, Any]:
        """The values of its options where none is given, by name; worked out once, since a line has few of many."""
        if not self._unset:
            self._unset.update({option.name: option.unset for option in self.options if not option.refusal})
        return self._unset

    @property
    def takes_command(self) -> bool:
        """True when the words after the fixed positionals are somebody else's command line."""
        return bool(self.positionals) and self.positionals[-1].count == "rest"

    def option(self, flag: str, door: Door) -> Option | None:
        """The option with this flag, refused ones included; one of this door before one of the other."""
        found = [option for option in self.options if flag in option.flags]
        return next((option for option in found if option.door in {None, door}), found[0] if found else None)

    def offered(self, door: Door) -> tuple[Option, ...]:
        """The options this door's help lists."""
        return tuple(option for option in self.options if option.offered_at(door))


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` when something close is known, else ""."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def parse(
    verb: Verb,
    words: Sequence[str],
    *,
    door: Door,
    substitute: Callable[[str], str] = str,
    default_image: str = "",
) -> Namespace:
    """Read the words after the verb into a namespace of typed values.

    `substitute` is applied to the text of options and fixed positionals, never to a command. `default_image` stands
    in when a verb that takes a command was given no word at all. Raises `InvalidOption` or `HelpRequested`.
    """
    scanner = _Scanner(verb, door)
    scanner.scan(words)
    values = Namespace(**verb.unset)
    for option, texts in scanner.options.items():
        setattr(values, option.name, _option_value(option, texts, substitute, scanner.help))
    if verb.takes_command and not scanner.words and default_image:
        scanner.words.append(default_image)
    _assign_positionals(verb, scanner, substitute, values)
    return values


class _Scanner:
    """One pass over the words: options aside, positionals in a row."""

    def __init__(self, verb: Verb, door: Door) -> None:
        self.verb = verb
        self.door = door
        self.help = f"see {PREFIX[door]} {verb.name} -h"
        self.options: dict[Option, list[str]] = {}
        self.words: list[str] = []

    def scan(self, words: Sequence[str]) -> None:
        queue = deque(words)
        fixed = len(self.verb.positionals) - 1 if self.verb.takes_command else None
        while queue and len(self.words) != fixed:
            word = queue.popleft()
            if word == "--":
                break
            if word.startswith("--"):
                self._long(word, queue)
            elif word.startswith("-") and word != "-":
                self._cluster(word, queue)
            else:
                self.words.append(word)
        self.words.extend(queue)

    def _long(self, word: str, queue: deque[str]) -> None:
        flag, equals, text = word.partition("=")
        option = self._find(flag)
        if option.metavar:
            self._store(option, text if equals else self._next(option, flag, queue))
            return
        if equals and text.lower() not in {"true", "1"}:
            raise InvalidOption(f"{flag} is a switch and takes no value, but got {text!r}; {self.help}")
        self._store(option, "")

    def _cluster(self, word: str, queue: deque[str]) -> None:
        """Read ``-q``, ``-aq``, ``-eA=b`` or ``-e A=b``."""
        for position, letter in enumerate(word[1:], start=1):
            option = self._find(f"-{letter}", word)
            if option.metavar:
                attached = word[position + 1 :].removeprefix("=")
                self._store(option, attached or self._next(option, f"-{letter}", queue))
                return
            self._store(option, "")

    def _find(self, flag: str, word: str = "") -> Option:
        if flag in {"-h", "--help"}:
            raise HelpRequested(verb_help(self.verb, self.door))
        option = self.verb.option(flag, self.door)
        if option is None:
            known = [name for option in self.verb.offered(self.door) for name in option.flags if name.startswith("--")]
            looked_for = f"-{word}" if word else flag
            raise InvalidOption(
                f"{self.verb.name} has no option {word or flag}{nearest(looked_for, known)} ({self.help})"
            )
        if option.door not in {None, self.door}:
            raise InvalidOption(f"{flag} works only in a {option.door}; {self.help}")
        if option.refusal:
            raise InvalidOption(f"{flag}: {option.refusal}")
        return option

    def _next(self, option: Option, flag: str, queue: deque[str]) -> str:
        if not queue:
            raise InvalidOption(f"{flag} needs a value: {flag} {option.metavar}; {self.help}")
        return queue.popleft()

    def _store(self, option: Option, text: str) -> None:
        self.options.setdefault(option, []).append(text)


def _option_value(option: Option, texts: list[str], substitute: Callable[[str], str], help_hint: str) -> Any:
    """The value of an option that was given: true, a tuple, or the last one (as docker has it)."""
    if not option.metavar:
        return True
    values = []
    for text in texts:
        written = substitute(text)
        if option.choices and written not in option.choices:
            allowed = " or ".join((", ".join(option.choices[:-1]), option.choices[-1])) if option.choices[1:] else ""
            raise InvalidOption(f"{max(option.flags, key=len)} must be {allowed}, not {written!r}; {help_hint}")
        values.append(option.read(written))
    return tuple(values) if option.many else values[-1]


def _assign_positionals(verb: Verb, scanner: _Scanner, substitute: Callable[[str], str], values: Namespace) -> None:
    words = list(scanner.words)
    for positional in verb.positionals:
        if positional.count in {"one", "some"} and not words:
            line = f"{PREFIX[scanner.door]} {verb.name}"
            raise InvalidOption(f"{line} needs {_article(positional.name)}; usage: {usage(verb, scanner.door)}")
        value: Any
        if positional.count == "one":
            value = substitute(words.pop(0))
        elif positional.count == "optional":
            value = substitute(words.pop(0)) if words else None
        elif positional.count == "rest":
            value, words = tuple(words), []
        else:
            value, words = tuple(substitute(word) for word in words), []
        setattr(values, positional.attribute, value)
    if words:
        raise InvalidOption(f"{verb.name} does not know what to do with {words[0]!r}; {scanner.help}")


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIO" else f"a {name}"


# Help


def usage(verb: Verb, door: Door) -> str:
    """``%container run [OPTIONS] IMAGE [COMMAND ARG…]``."""
    options = ["[OPTIONS]"] if verb.offered(door) else []
    return " ".join([PREFIX[door], verb.name, *options, *(positional.label for positional in verb.positionals)])


def verb_help(verb: Verb, door: Door) -> str:
    """What ``VERB -h`` shows."""
    parts = [f"{verb.summary}\n\nusage: {usage(verb, door)}"]
    if door == "notebook" and verb.takes_command:
        line = f"%{usage(verb, door)}".replace("%%container run ", "%%container ")
        parts[0] += f"\n       {line}      the cell is the script, or COMMAND's input"
        parts.append(_BRACES.format(verb.positionals[0].name))
    if verb.description:
        parts.append(textwrap.fill(verb.description, _WIDTH))
    arguments = [(positional.name, positional.help) for positional in verb.positionals]
    if arguments:
        parts.append("arguments:\n" + columns(arguments))
    options = [(option.label, option_help(option)) for option in verb.offered(door)]
    parts.append("options:\n" + columns([*options, ("-h, --help", "show this")]))
    if verb.aliases:
        parts.append(f"also called: {', '.join(verb.aliases)}")
    if verb.examples:
        parts.append("examples:\n" + "\n".join(f"  {PREFIX[door]} {example}" for example in verb.examples))
    return "\n\n".join(parts)


def option_help(option: Option) -> str:
    """The help of one option, with its choices and whether it may be repeated."""
    return option.help + ("; may be repeated" if option.many else "")


def columns(pairs: Sequence[tuple[str, str]]) -> str:
    """Two aligned, wrapped columns."""
    width = min(max(len(label) for label, _ in pairs), 32) + 2
    lines = []
    for label, text in pairs:
        wrapped = textwrap.wrap(text, _WIDTH - width - 2) or [""]
        if len(label) > width - 2:
            lines.append(f"  {label}")
        else:
            lines.append(f"  {label:<{width}}{wrapped.pop(0)}".rstrip())
        lines.extend(" " * (width + 2) + line for line in wrapped)
    return "\n".join(lines)


# Values: what people type, read once

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)
_VARIABLE = re.compile(r"[^=\s\0][^=\0]*")


def read_duration(text: str) -> float:
    """Seconds from ``90``, ``1.5``, ``1m30s``, ``2h`` or ``500ms``."""
    written = text.strip().lower()
    seconds = 0.0
    if re.fullmatch(r"\d+(?:\.\d*)?|\.\d+", written, re.ASCII):
        seconds = float(written)
    elif written and (match := _DURATION.fullmatch(written)):
        hours, minutes, rest, milliseconds = (float(part or 0) for part in match.groups())
        seconds = hours * 3600 + minutes * 60 + rest + milliseconds / 1000
    if not 0 < seconds < float("inf"):
        raise InvalidOption(f"time {text!r} is not a positive number of seconds or a duration such as 90, 1m30s or 2h")
    return seconds


def read_environment(text: str) -> str:
    """``NAME=VALUE`` as it is; a bare ``NAME`` takes the value it has here, and is "" when it has none."""
    name, equals, _ = text.partition("=")
    if not _VARIABLE.fullmatch(name) or "\0" in text:
        raise InvalidOption(f"environment variable {text!r} has no name; write NAME=VALUE")
    if equals:
        return text
    value = os.environ.get(name)
    return "" if value is None else f"{name}={value}"


def read_choice(what: str, pattern: str, example: str) -> Callable[[str], str]:
    """A reader for texts of one form, such as names; the error shows `example`."""
    form = re.compile(pattern, re.ASCII)

    def read(text: str) -> str:
        if not form.fullmatch(text):
            raise InvalidOption(f"{what} {text!r} cannot be used; write it like {example}")
        return text

    return read


def read_platform(text: str) -> str:
    """``linux/arm64`` in its normal form."""
    return str(Platform.parse(text))
