"""An instruction and an environment to the expanded instruction, as BuildKit does it when an instruction is its turn.

What is expanded:

    FROM                        image, --platform: with the global arguments only
    ENV LABEL                   names and values
    ARG                         defaults
    COPY ADD                    sources, destination, --chown, --chmod, --checksum; unquoted heredocs
    RUN                         the value of each option of --mount but ``from``
    EXPOSE                      ports; an unquoted value may become several
    VOLUME USER WORKDIR STOPSIGNAL

and what is not: the commands of RUN, CMD, ENTRYPOINT and HEALTHCHECK (a shell's), SHELL, MAINTAINER, --from, --exclude,
--network, --security, and ONBUILD (its trigger is expanded where it runs). All words of an instruction see the
environment as it was before the instruction, but those of ARG see what stands to their left too.
"""

from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from nbcontainer.dockerfile.instructions import (
    Add,
    Arg,
    Argument,
    Copy,
    Env,
    Expose,
    From,
    Instruction,
    Label,
    Pair,
    Run,
    Stopsignal,
    Transfer,
    User,
    Volume,
    Workdir,
)
from nbcontainer.dockerfile.modes import Chmod
from nbcontainer.dockerfile.mounts import parse_mount
from nbcontainer.dockerfile.ports import exposed_ports
from nbcontainer.dockerfile.signals import SIGNALS, is_signal
from nbcontainer.dockerfile.words import Expansion, expand_text, expand_word
from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Expanded", "assign_arguments", "expand", "global_arguments"]

_I = TypeVar("_I", bound=Instruction)
_T = TypeVar("_T", bound=Transfer)
_REMOTE = re.compile(r"https?://|(?:git|ssh)://|git@", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Expanded(Generic[_I]):
    """An expanded instruction.

    `used` are the variables that had a say in it, which is what makes an ARG count for a cache key; `undefined` are
    those that were not set where nothing said what then.
    """

    instruction: _I
    used: frozenset[str]
    undefined: frozenset[str]


def expand(instruction: _I, environment: Mapping[str, str], *, escape: str = "\\", judge: bool = True) -> Expanded[_I]:
    """Expand all that is expanded of an instruction; raises `DockerfileError` that draws its lines.

    `environment` holds ENV over ARG; for FROM it is what `global_arguments` gives. What could not be judged while it
    held variables (mounts, modes, ports, names that became empty) is judged now, unless `judge` is False: checks do
    that, who know names of variables but not values.
    """
    words = _Expander(instruction, environment, escape, judge=judge)
    expander = _EXPANDERS.get(type(instruction))
    if expander is None:
        return Expanded(instruction, frozenset(), frozenset())
    try:
        expanded = cast("_I", expander(words, instruction))
    except DockerfileError as problem:
        raise words.located(problem) from problem
    return Expanded(expanded, frozenset(words.used), frozenset(words.undefined))


def global_arguments(
    arguments: tuple[Arg, ...], given: Mapping[str, str], predefined: Mapping[str, str], *, escape: str = "\\"
) -> dict[str, str]:
    """The environment of FROM lines: ARGs before the first FROM, left to right, over the predefined ones.

    `given` are --build-args, which win over defaults; those that no ARG names are not in the result. An ARG without
    default that is not given stays unset.
    """
    environment = dict(predefined)
    for arg in arguments:
        assigned = assign_arguments(arg, environment, given, {}, escape=escape).instruction
        environment.update((each.name, each.default) for each in assigned.arguments if each.default is not None)
    return environment


def assign_arguments(
    arg: Arg, environment: Mapping[str, str], given: Mapping[str, str], outer: Mapping[str, str], *, escape: str = "\\"
) -> Expanded[Arg]:
    """An ARG whose defaults are the values it sets: what is given, else the default, else what `outer` has, else None.

    `given` are --build-args and `outer`, in a stage, the global arguments. A default is looked at only where nothing is
    given, so ``ARG v=${w:?say so}`` asks for one of the two. Each default sees the values to its left.
    """
    words = _Expander(arg, environment, escape, judge=True)
    try:
        assigned = words.assigned(arg, given, outer)
    except DockerfileError as problem:
        raise words.located(problem) from problem
    return Expanded(assigned, frozenset(words.used), frozenset(words.undefined))


class _Expander:
    """Expands words in one environment and remembers what was looked up, and which word is at work."""

    def __init__(self, instruction: Instruction, environment: Mapping[str, str], escape: str, *, judge: bool) -> None:
        self._instruction = instruction
        self._environment = environment
        self._escape = escape
        self._word = ""
        self.judge = judge
        self.used: set[str] = set()
        self.undefined: set[str] = set()

    def one(self, word: str) -> str:
        """A word that stays one word."""
        return self._expanded(word).text

    def each(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Several of them."""
        return tuple(self.one(word) for word in words)

    def several(self, word: str) -> tuple[str, ...]:
        """A word that may become none or several."""
        return self._expanded(word).words

    def body(self, text: str) -> str:
        """The body of a heredoc."""
        self._word = ""
        return self._noted(expand_text(text, self._environment)).text

    def judged(self, word: str, judge: Callable[[str], object]) -> str:
        """A word whose expansion, if anything is left of it, must pass `judge`."""
        expanded = self.one(word)
        if expanded and self.judge:
            judge(expanded)
        return expanded

    def needed(self, word: str, what: str) -> str:
        """A word whose expansion may not be empty."""
        expanded = self.one(word)
        if not expanded and self.judge:
            raise DockerfileError(
                f"{what} {word!r} is empty when its variables are put in; set them, or give a default"
            )
        return expanded

    def assigned(self, arg: Arg, given: Mapping[str, str], outer: Mapping[str, str]) -> Arg:
        """An ARG with the values of its names, each of which the defaults after it see."""
        arguments = []
        for each in arg.arguments:
            if each.name in given:
                value: str | None = given[each.name]
            else:
                value = outer.get(each.name) if each.default is None else self.one(each.default)
            if value is not None:
                self._environment = {**self._environment, each.name: value}
            arguments.append(Argument(each.name, value))
        return replace(arg, arguments=tuple(arguments))

    def _expanded(self, word: str) -> Expansion:
        self._word = word
        return self._noted(expand_word(word, self._environment, escape=self._escape))

    def _noted(self, expansion: Expansion) -> Expansion:
        self.used |= expansion.used
        self.undefined |= expansion.undefined
        return expansion

    def located(self, problem: DockerfileError) -> DockerfileError:
        """The same error with the instruction drawn, and a caret below the word where a line has it as it is."""
        origin = self._instruction.origin
        for number, row in enumerate(origin.text.split("\n"), origin.first):
            if self._word and (at := row.find(self._word)) >= 0:
                return origin.error(str(problem), line=number, column=at + 1, width=len(self._word))
        return origin.error(str(problem))


def _from(words: _Expander, it: From) -> From:
    return replace(it, image=words.needed(it.image, "the image name"), platform=words.one(it.platform))


def _run(words: _Expander, it: Run) -> Run:
    mounts = []
    for flag in it.mount_flags:
        with nullcontext() if words.judge else suppress(DockerfileError):
            mount = parse_mount(flag, words.one)
            assert mount is not None  # it is None only where nothing is expanded
            mounts.append(mount)
    return replace(it, mounts=tuple(mounts))


def _transfer(words: _Expander, it: _T) -> _T:
    return replace(
        it,
        sources=words.each(it.sources),
        destination=words.needed(it.destination, "the destination"),
        owner=words.one(it.owner),
        mode=words.judged(it.mode, Chmod.parse),
        heredocs=tuple(
            replace(each, content=words.body(each.body), chomp=False) if each.expand else each for each in it.heredocs
        ),
    )


def _add(words: _Expander, it: Add) -> Add:
    return replace(_transfer(words, it), checksum=words.one(it.checksum))


def _pairs(words: _Expander, it: Env | Label) -> Env | Label:
    pairs = (Pair(words.needed(each.name, "the name"), words.one(each.value), each.legacy) for each in it.pairs)
    return replace(it, pairs=tuple(pairs))


def _copy(words: _Expander, it: Copy) -> Copy:
    copy = _transfer(words, it)
    for source in copy.sources if words.judge else ():
        if _REMOTE.match(source):
            raise DockerfileError(f"COPY takes files of the context and not {source!r}; write ADD to download it")
    return copy


def _arg(words: _Expander, it: Arg) -> Arg:
    return words.assigned(it, {}, {})


def _expose(words: _Expander, it: Expose) -> Expose:
    ports = []
    for word in it.ports:
        for port in words.several(word):
            if words.judge:
                exposed_ports(port)
            ports.append(port)
    return replace(it, ports=tuple(ports))


def _volume(words: _Expander, it: Volume) -> Volume:
    return replace(it, paths=tuple(words.needed(path, "the path") for path in it.paths))


def _user(words: _Expander, it: User) -> User:
    return replace(it, user=words.needed(it.user, "the user"))


def _workdir(words: _Expander, it: Workdir) -> Workdir:
    return replace(it, path=words.one(it.path))


def _stopsignal(words: _Expander, it: Stopsignal) -> Stopsignal:
    signal = words.needed(it.signal, "the signal")
    if words.judge and not is_signal(signal):
        near = get_close_matches(signal.upper(), SIGNALS, 1)
        hint = f"did you mean {near[0]}?" if near else "write for example SIGTERM or 15"
        raise DockerfileError(f"there is no signal {signal!r}; {hint}")
    return replace(it, signal=signal)


_EXPANDERS: dict[type[Instruction], Callable[[_Expander, Any], Instruction]] = {
    Add: _add,
    Arg: _arg,
    Copy: _copy,
    Env: _pairs,
    Expose: _expose,
    From: _from,
    Label: _pairs,
    Run: _run,
    Stopsignal: _stopsignal,
    User: _user,
    Volume: _volume,
    Workdir: _workdir,
}
