"""A person at a terminal: `Screen` starts a command with one, types, reads, resizes, and sees how it was left.

The terminal is the command's controlling one, as a shell's is, so signals of the kernel (Ctrl-C, a changed size, the
end of the connection) arrive as they do in life.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Screen"]

_TAKE = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "nohup" else signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, sys.argv[2:])
"""


class Screen:
    """A Python command line with a terminal of `size` (rows, columns), which may ignore that it is hung up."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        python: str = sys.executable,
        environment: Mapping[str, str],
        size: tuple[int, int] = (24, 80),
        nohup: bool = False,
        **acting: Any,
    ) -> None:
        self.master, self._slave = os.openpty()
        self.resize(*size)
        self._before = termios.tcgetattr(self._slave)
        self.shown = b""
        self.process = subprocess.Popen(
            [python, "-c", _TAKE, "nohup" if nohup else "", python, *words],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env=dict(environment),
            start_new_session=True,
            **acting,
        )

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self.master, keys)

    def resize(self, rows: int, columns: int) -> None:
        """Draw the window larger or smaller."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def see(self, pattern: bytes, *, within: float = 20) -> re.Match[bytes]:
        """Wait until this is shown; what was before it has then been seen."""
        found: list[re.Match[bytes]] = []

        def there() -> bool:
            match = re.search(pattern, self.shown)
            if match:
                found.append(match)
            return bool(match)

        assert self._read(there, within), f"{pattern!r} is not shown, but {self.shown!r}"
        self.shown = self.shown[found[0].end() :]
        return found[0]

    def sees(self, pattern: bytes, *, within: float) -> bool:
        """Whether this is shown in time."""
        return self._read(lambda: bool(re.search(pattern, self.shown)), within)

    def code(self, *, within: float = 20) -> int:
        """The exit code, when it has ended; what it showed until then is in `shown`."""
        assert self._read(lambda: self.process.poll() is not None, within), f"it has not ended: {self.shown!r}"
        self._read(lambda: False, 0)
        return self.process.wait()

    @property
    def is_as_before(self) -> bool:
        """Whether the terminal has the settings it had."""
        return termios.tcgetattr(self._slave) == self._before

    @property
    def is_raw(self) -> bool:
        """Whether every key arrives as it is."""
        return not termios.tcgetattr(self._slave)[3] & (termios.ICANON | termios.ISIG | termios.ECHO)

    @property
    def waiting(self) -> int:
        """How many bytes there are to be read at the seat, as if they had been typed."""
        found = fcntl.ioctl(self._slave, termios.FIONREAD, bytes(4))
        return int(struct.unpack("i", found)[0])

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self.master)
        self.master = -1

    def _read(self, enough: Callable[[], bool], within: float) -> bool:
        deadline = time.monotonic() + patient(within)
        while True:
            while self.master >= 0 and select.select([self.master], [], [], 0)[0]:
                self.shown += os.read(self.master, 65536)
            if enough():
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        for fd in (self.master, self._slave):
            if fd >= 0:
                os.close(fd)
        self.process.wait()
