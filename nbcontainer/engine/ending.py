"""Why a container was ended from elsewhere: a note in its record, which its own cell reads and tells.

Whoever ends a container of another notebook, or of this one, writes the note first and sends the signal second; so
whoever watches the container finds it there. A note alone is no proof: a container that outlived a ``kill -s USR1``
has ended by itself, whatever was noted before.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from nbcontainer.model import ExitReason

__all__ = ["Note", "Told", "signal_name"]

EndingVerb = Literal["kill", "stop", "restart", "rm -f"]
_VERBS: tuple[EndingVerb, ...] = ("kill", "stop", "restart", "rm -f")


def signal_name(number: int) -> str:
    """``SIGTERM`` for 15; ``signal 40`` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """How an end is reported: the reason, the code when the command left none, and the words."""

    reason: ExitReason
    code: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Who is ending a container, and with which signals so far."""

    verb: EndingVerb
    signals: tuple[int, ...]

    def as_field(self) -> dict[str, Any]:
        """The note as a record keeps it."""
        return {"verb": self.verb, "signals": list(self.signals)}

    @classmethod
    def from_field(cls, field: object) -> Note | None:
        """The note in a record; None when there is none that can be read."""
        if not isinstance(field, dict) or field.get("verb") not in _VERBS:
            return None
        signals = field.get("signals")
        if not isinstance(signals, list) or not all(type(number) is int for number in signals):
            return None
        return cls(verb=field["verb"], signals=tuple(signals))

    def told(self, *, by_signal: int | None) -> Told | None:
        """What to say of a container that ended after this note; None when the note has nothing to do with it.

        `by_signal` is the signal that ended the command, SIGKILL when everything was ended at once, or None when the
        command ended by itself.
        """
        last = self.signals[-1] if self.signals else int(signal.SIGKILL)
        code = 128 + (last if by_signal is None else by_signal)
        typed = f"`%container {self.verb}`"
        steps = ", ".join(signal_name(number) for number in self.signals)
        if self.verb in {"stop", "restart"}:
            return Told(reason="stopped", code=code, detail=f"stopped by {typed} ({steps})")
        if by_signal != last:
            return None
        if last == signal.SIGKILL:
            return Told(reason="stopped", code=code, detail=f"killed by {typed}")
        return Told(reason="signalled", code=code, detail=f"killed by {signal_name(last)} ({typed})")
