"""The person's own terminal, while the command in a container has it.

From the moment the command runs, every key goes to it as the byte it is, Ctrl-C and Ctrl-Z too; the size of the window
goes along. Whatever way it ends (the command's end, an exception, SIGTERM, SIGHUP), the terminal gets its settings
back. The sequence of keys that detaches (docker's: Ctrl-P Ctrl-Q) is found on the way and goes nowhere.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import termios
from typing import TYPE_CHECKING, Any, NoReturn

from nbcontainer._linux import consoles, terminals
from nbcontainer.errors import InvalidOption
from nbcontainer.runtime.inputs import FileSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer._linux.consoles import Settings

__all__ = ["DETACH_KEYS", "Console", "DetachKeys", "read_detach_keys", "say_to"]

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_CONTROL = re.compile(r"ctrl-([a-z@\[\\\]^_])", re.IGNORECASE)


def read_detach_keys(text: str) -> bytes:
    r"""Keys as docker writes them, ``ctrl-p,ctrl-q`` or ``a,b``; raise `InvalidOption` for others.

    >>> read_detach_keys("ctrl-p,x")
    b'\x10x'
    """
    keys = bytearray()
    for name in text.split(","):
        control = _CONTROL.fullmatch(name)
        if control:
            keys.append(ord(control[1].upper()) & 0x1F)
        elif len(name) == 1 and name.isascii() and name.isprintable():
            keys.append(ord(name))
        else:
            raise InvalidOption(
                f"--detach-keys {text!r}: {name!r} is neither one character nor ctrl- and a letter;"
                " write for example ctrl-p,ctrl-q"
            )
    return bytes(keys)


DETACH_KEYS = read_detach_keys("ctrl-p,ctrl-q")


class DetachKeys:
    """Finds a sequence of keys in what is typed, however it comes in pieces."""

    def __init__(self, keys: bytes = DETACH_KEYS) -> None:
        self._keys = keys
        self._held = b""

    def take(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on to the command, and whether the sequence was in it; what came after that is dropped.

        A beginning of the sequence is held back until the next key tells.
        """
        data = self._held + data
        place = data.find(self._keys)
        if place >= 0:
            self._held = b""
            return data[:place], True
        held = next((n for n in range(min(len(self._keys) - 1, len(data)), 0, -1) if data.endswith(self._keys[:n])), 0)
        self._held = data[len(data) - held :]
        return data[: len(data) - held], False


class Console:
    """A `Source` that is the person's terminal: `keys` is what is typed on (-1 for nothing), `screen` what is shown on.

    `on_detach` is called when the keys of that have been typed. Not for several threads: signal handlers are set.
    """

    def __init__(
        self, *, keys: int, screen: int, detach: bytes = DETACH_KEYS, on_detach: Callable[[], None] = lambda: None
    ) -> None:
        self._keys = FileSource(keys)
        self._screen = screen
        self._detach = DetachKeys(detach)
        self._on_detach = on_detach
        self._terminal = -1
        self._settings: Settings | None = None
        self._handlers: dict[int, Any] = {}

    def fileno(self) -> int:
        """See `Source.fileno`."""
        return self._keys.fileno()

    def window(self) -> tuple[int, int] | None:
        """See `Source.window`."""
        return consoles.window_size(self._screen) or consoles.window_size(self.fileno())

    def read(self) -> bytes | None:
        """See `Source.read`."""
        data = self._keys.read()
        if data is None or self._terminal < 0:
            return data
        if not data:  # no key of a raw terminal is an end: it has been hung up, and SIGHUP is ignored or on its way
            _leave(signal.SIGHUP, None)
        data, detached = self._detach.take(data)
        if detached:
            self._on_detach()
        return data or None

    def begin(self, terminal: int) -> None:
        """Make the terminal raw and have the size follow, unless the command has none of its own."""
        if terminal < 0:
            return
        self._terminal = terminal
        for number in _ENDING:
            self._handle(number, _leave)
        self._handle(signal.SIGWINCH, lambda *_: self._resize())
        if self.fileno() >= 0 and self._settings is None:
            self._settings = consoles.saved_settings(self.fileno())
            consoles.make_raw(self.fileno())
        self._resize()  # it may have changed since the command was asked for

    def end(self) -> None:
        """Give back what `begin` has taken."""
        settings, self._settings = self._settings, None
        self._terminal = -1
        try:
            if settings is not None:
                with contextlib.suppress(termios.error):  # it has been hung up
                    consoles.restore(self.fileno(), settings)
        finally:
            while self._handlers:
                number, handler = self._handlers.popitem()
                signal.signal(number, handler)

    def _handle(self, number: int, handler: Callable[[int, object], object]) -> None:
        """Take a signal, unless it is ignored (nohup) or this is not the thread that may."""
        before = signal.getsignal(number)
        if number in self._handlers or before is signal.SIG_IGN:
            return
        with contextlib.suppress(ValueError):
            signal.signal(number, handler)
            self._handlers[number] = before

    def _resize(self) -> None:
        size = self.window()
        if size is not None and self._terminal >= 0:
            with contextlib.suppress(OSError):
                terminals.set_window_size(self._terminal, *size)


def _leave(number: int, _: object) -> NoReturn:
    """End as the signal would, but by way of everybody's `finally`."""
    raise SystemExit(128 + number)


def say_to(screen: int, text: str) -> None:
    """Write a line between what a raw terminal shows."""
    with contextlib.suppress(OSError):
        os.write(screen, f"\r\n{text}\r\n".encode())
