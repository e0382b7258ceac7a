"""What .dockerignore (and --exclude) leaves out, as moby's patternmatcher decides it.

Of the lines that match a path, or a directory that it is in, the last one decides; ``!`` makes it bring back. Lines
are cleaned (blanks around, ``/`` in front and behind, ``./`` and ``..`` inside); ``#`` begins a comment in the first
column only. A directory that is left out can be skipped as a whole unless a later ``!`` line could match inside.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbcontainer.dockerfile.globs import Globs
from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Ignore", "Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided about a path.

    `ignored`: it is left out. `skippable`: so is all that is in it, if it is a directory. The rest is where `Ignore`
    goes on for its entries.
    """

    ignored: bool
    skippable: bool
    rule: int = field(repr=False)
    states: int = field(repr=False)


class Ignore:
    r"""The rules, ready to be asked.

    A walk asks `entry` with the verdict of the directory it is in, which reads each name once:

    >>> rules = Ignore.parse("build\n!build/keep")
    >>> build = rules.entry(rules.top, "build")
    >>> build.ignored, build.skippable, rules.entry(build, "keep").ignored
    (True, False, False)
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        """Take patterns, each perhaps with a ``!``; raises `DockerfileError` for one that is none."""
        cleaned = [rule for rule in map(_rule, patterns) if rule]
        self._back = [number for number, (_, back) in enumerate(cleaned) if back]
        self._globs = Globs(pattern for pattern, _ in cleaned)
        self._later: dict[int, int] = {}
        self.top = Verdict(ignored=False, skippable=False, rule=-1, states=-1)
        """The directory that paths are relative to; it is never ignored itself."""

    @classmethod
    def parse(cls, source: str | bytes) -> Ignore:
        """Read a .dockerignore file; raises `DockerfileError` with the line."""
        text = source.decode("utf-8", "surrogateescape") if isinstance(source, bytes) else source
        patterns = []
        for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
            if not line.startswith("#"):
                try:
                    cls((line,))
                except DockerfileError as problem:
                    raise DockerfileError(f".dockerignore: {problem}", line=number) from problem
                patterns.append(line)
        return cls(patterns)

    def __bool__(self) -> bool:
        return self._globs.start != 0

    def entry(self, folder: Verdict, name: str) -> Verdict:
        """The verdict about `name` in a directory with the verdict `folder`."""
        if folder.states == -1:
            states = self._globs.feed(self._globs.start, name)
        else:
            states = self._globs.feed(folder.states, "/" + name)
        rule = max(folder.rule, self._globs.last(states))
        ignored = rule >= 0 and rule not in self._back
        skippable = ignored and not self._globs.feed(states, "/") & self._back_after(rule)
        return Verdict(ignored=ignored, skippable=skippable, rule=rule, states=states)

    def _back_after(self, rule: int) -> int:
        """The states of the ``!`` lines after a rule."""
        if rule not in self._later:
            self._later[rule] = self._globs.states_of(number for number in self._back if number > rule)
        return self._later[rule]

    def ignores(self, path: str) -> bool:
        """Whether one relative path is left out; a walk had better use `entry`."""
        verdict = self.top
        for name in path.split("/"):
            verdict = self.entry(verdict, name)
        return verdict.ignored


def _rule(line: str) -> tuple[str, bool] | None:
    """A line as a clean pattern and whether it brings back; None for one that says nothing."""
    pattern = line.strip()
    back = pattern.startswith("!")
    if back:
        pattern = pattern[1:].strip()
        if not pattern:
            raise DockerfileError("'!' stands alone; write the pattern to bring back behind it")
    if not pattern:
        return None
    if pattern.startswith("/"):
        return posixpath.normpath("/" + pattern.lstrip("/"))[1:], back
    return posixpath.normpath(pattern), back
