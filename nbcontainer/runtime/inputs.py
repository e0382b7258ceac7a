"""Live input of a command: where it comes from while the command runs.

Bytes that are known beforehand are fed by `nbcontainer.runtime.supervisor` itself. A `Source` is something that can be
waited for: a file, a person's terminal. `Asking` cannot, it is asked: a notebook's input box, opened when the command
reads and there is nothing for it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Asking", "FileSource", "Source"]

_CHUNK = 1 << 16


@runtime_checkable
class Source(Protocol):
    """Input that comes piece by piece. Its descriptor stays its owner's; `end` comes in any case, once or more."""

    def fileno(self) -> int:
        """For poll(2): readable when there is something, or when it is over; -1 if there will be nothing."""

    def read(self) -> bytes | None:
        """What there is, b"" when it is over, None when it was nothing for the command. Called when it is readable."""

    def window(self) -> tuple[int, int] | None:
        """Rows and columns of the screen beside it, if that is known."""

    def begin(self, terminal: int) -> None:
        """The command has been started; `terminal` is the master of its terminal, or -1."""

    def end(self) -> None:
        """Nobody reads any more."""


class FileSource:
    """An open file, pipe or terminal, as it is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """See `Source.fileno`."""
        return self._descriptor

    def read(self) -> bytes | None:
        """See `Source.read`."""
        try:
            return os.read(self._descriptor, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as problem:
            if problem.errno == errno.EIO:  # a terminal that has been hung up
                return b""
            raise

    def window(self) -> tuple[int, int] | None:
        """See `Source.window`."""
        return None

    def begin(self, terminal: int) -> None:
        """See `Source.begin`."""

    def end(self) -> None:
        """See `Source.end`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Input that somebody is asked for; `ask` gives a piece of it, or b"" when there will be no more.

    It is called in the thread that supervises, and may raise `KeyboardInterrupt`.
    """

    ask: Callable[[], bytes]
