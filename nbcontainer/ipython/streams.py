"""A container's bytes on their way to the notebook: decoded, capped, captured, in order.

They go through `sys.stdout` and `sys.stderr`, looked up at each write, so that ``%%capture``, output widgets and
tests see them. Nothing is stripped: the front end draws colours and carriage returns. ipykernel gathers small writes
by itself; a terminal is flushed at once.
"""

from __future__ import annotations

import codecs
import sys
import time
from typing import TYPE_CHECKING, Literal

from nbcontainer.engine.tables import size_text

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["OutputWriter", "Stream"]

Stream = Literal["stdout", "stderr"]
_TAIL = 64 * 1024
_LINE = 300
_CAPTURE_LIMIT = 1 << 30
_SWITCH_INTERVAL = 0.01
_FREE_SWITCHES = 200


class OutputWriter:
    """Takes the output of one run. `captured` streams are kept as text instead of being shown.

    Each stream is shown up to `limit` bytes (0 is no limit), then a note says so once and the rest is dropped while
    the run goes on: a front end that was sent gigabytes never comes back.
    """

    def __init__(self, *, limit: int = 0, captured: Collection[Stream] = ()) -> None:
        self._limit = limit
        self._shown: dict[Stream, _Decoder] = {"stdout": _Decoder(), "stderr": _Decoder()}
        self._captured: dict[Stream, bytearray] = {stream: bytearray() for stream in captured}
        self._stderr_tail = bytearray()
        self._line = ""
        self._last: Stream | None = None
        self._flushed = 0.0
        self._switches = 0

    def write(self, stream: Stream, data: bytes) -> None:
        """Take a piece; this is the engine's output sink."""
        if stream == "stderr":
            self._stderr_tail += data
            del self._stderr_tail[:-_TAIL]
        if (kept := self._captured.get(stream)) is not None:
            kept += data[: max(0, _CAPTURE_LIMIT - len(kept))]
            return
        self._show(stream, data)

    def _show(self, stream: Stream, data: bytes) -> None:
        decoder = self._shown[stream]
        if decoder.closed:
            return
        room = self._limit - decoder.taken if self._limit else len(data)
        text = decoder.decode(data[:room])
        if len(data) > room:
            limit, option = size_text(self._limit), f"--{stream[3:]} VARIABLE"
            text += f"{decoder.close()}\n[{stream} truncated after {limit}; use {option}, or write to a file]\n"
        self._put(stream, text)

    def _put(self, stream: Stream, text: str) -> None:
        if not text:
            return
        if self._last not in {None, stream}:
            self._keep_order()
        self._last = stream
        self._line = (self._line + text)[-_LINE:]
        target = getattr(sys, stream)
        target.write(text)
        if target.isatty():
            target.flush()

    def _keep_order(self) -> None:
        """Before the other stream speaks, flush the first: each has its own buffer in ipykernel.

        A flush waits for the kernel's output thread, so a run that changes streams a great deal gets one every 10 ms.
        """
        self._switches += 1
        now = time.monotonic()
        if self._last is not None and (self._switches < _FREE_SWITCHES or now - self._flushed > _SWITCH_INTERVAL):
            getattr(sys, self._last).flush()
            self._flushed = now

    def close(self) -> None:
        """Show what an incomplete UTF-8 sequence at the very end stands for."""
        for stream, decoder in self._shown.items():
            self._put(stream, decoder.close())

    def text(self, stream: Stream) -> str:
        """The text of a captured stream."""
        return self._captured[stream].decode(errors="replace")

    def last_words(self) -> str:
        """The end of what has been shown of either stream."""
        return self._line

    @property
    def stderr_tail(self) -> str:
        """The last part of standard error, shown or captured."""
        return self._stderr_tail.decode(errors="replace")


class _Decoder:
    """UTF-8 piece by piece: a character split across reads waits for its rest."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.taken = 0
        self.closed = False

    def decode(self, data: bytes) -> str:
        self.taken += len(data)
        return self._decoder.decode(data)

    def close(self) -> str:
        if self.closed:
            return ""
        self.closed = True
        return self._decoder.decode(b"", final=True)
