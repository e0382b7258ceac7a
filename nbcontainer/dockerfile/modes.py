"""``--chmod``: octal or symbolic, parsed once and applied to as many modes as are copied.

Symbolic grammar: clauses ``[ugoa…][+-=][rwxXst…]`` or ``[ugoa…][+-=][ugo]``, with several operators after one "who",
joined by commas. Without a "who" it is all three: there is no umask in a build. ``X`` is execution for directories, and
for files that somebody may execute already (chmod(1)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbcontainer.errors import DockerfileError

__all__ = ["Chmod"]

_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007}
_SHIFT = {"u": 6, "g": 3, "o": 0}
_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")


@dataclass(frozen=True, slots=True)
class Chmod:
    """A change of mode: `octal`, or else `changes`, each (who, operator, permissions), in order.

    >>> oct(Chmod.parse("u=rwX,go=rX").apply(0o600, is_dir=True))
    '0o755'
    """

    octal: int | None
    changes: tuple[tuple[str, str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Chmod:
        """Read an expanded ``--chmod``; raises `DockerfileError` without a place."""
        if re.fullmatch(r"0*[0-7]{1,4}", text, re.ASCII):
            return cls(int(text, 8))
        if text.isascii() and text.isdigit():
            raise DockerfileError(f"the mode {text!r} is not octal from 0 to 7777; write for example 0755")
        changes: list[tuple[str, str, str]] = []
        for clause in text.split(","):
            match = _CLAUSE.fullmatch(clause)
            if not match:
                raise DockerfileError(
                    f"the mode {text!r} is neither octal nor symbolic; write for example 0755 or u=rwX,go=rX"
                )
            who = "ugo" if not match[1] or "a" in match[1] else match[1]
            changes += [(who, operator, what) for operator, what in _ACTION.findall(match[2])]
        return cls(None, tuple(changes))

    def apply(self, mode: int, *, is_dir: bool) -> int:
        """The permission bits (07777) that become of `mode`, whose file type, if it has any, is ignored."""
        if self.octal is not None:
            return self.octal
        mode &= 0o7777
        for who, operator, what in self.changes:
            bits = _bits(who, what, mode, is_dir=is_dir)
            if operator == "+":
                mode |= bits
            elif operator == "-":
                mode &= ~bits
            else:
                cleared = 0
                for each in who:
                    cleared |= _WHO[each]
                if is_dir:  # chmod(1): "=" keeps the set-id bits of a directory unless they are named
                    cleared &= ~0o6000
                mode = mode & ~cleared | bits
        return mode


def _bits(who: str, what: str, mode: int, *, is_dir: bool) -> int:
    """The bits that the permissions name for these people."""
    if what in _SHIFT:  # "g=u": the permissions somebody has now
        permissions = mode >> _SHIFT[what] & 0o7
    else:
        runs = "x" in what or ("X" in what and (is_dir or bool(mode & 0o111)))
        permissions = 4 * ("r" in what) + 2 * ("w" in what) + runs
    bits = 0
    for each in set(who):
        bits |= permissions << _SHIFT[each]
    if "s" in what:
        bits |= 0o4000 * ("u" in who) | 0o2000 * ("g" in who)
    return bits | 0o1000 * ("t" in what and "o" in who)
