"""Talking with a command from start to end: its pipes, its input, what is kept of its output.

The same for a container's own command (`nbcontainer.engine.running`) and for one that joins it
(`nbcontainer.engine.executing`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

from nbcontainer.runtime.groups import Verdict
from nbcontainer.runtime.supervisor import supervise

if TYPE_CHECKING:
    from nbcontainer.engine.session import Session
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.supervisor import Outcome, Sink

__all__ = ["Heard", "Kept", "OutputSink", "Talk", "attend"]

OutputSink = Callable[[Literal["stdout", "stderr"], bytes], None]
"""Called in the calling thread with each piece of output as it arrives."""

_TAIL = 64 * 1024
_KEPT = 64 * 1024 * 1024


class Log(Protocol):
    """Where output is kept beside us: a container's record."""

    def append(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep a piece."""


class Kept:
    """Passes output on and keeps its end: 64 MiB when nobody else gets it, else 64 KiB."""

    def __init__(self, output: OutputSink | None, stream: Literal["stdout", "stderr"], record: Log | None) -> None:
        self._output = output
        self._stream: Literal["stdout", "stderr"] = stream
        self._record = record
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._limit = _KEPT if output is None else _TAIL

    def take(self, data: bytes) -> None:
        """A piece that has arrived."""
        self._pieces.append(data)
        self._size += len(data)
        if self._record is not None:
            self._record.append(self._stream, data)
        while self._size - len(self._pieces[0]) >= self._limit:
            self._size -= len(self._pieces.popleft())
        if self._output is not None:
            self._output(self._stream, data)

    @property
    def data(self) -> bytes:
        """What is kept."""
        return b"".join(self._pieces)[-self._limit :]


class Heard:
    """Both streams of one command; `take` is the sink of its supervision."""

    def __init__(self, output: OutputSink | None, record: Log | None) -> None:
        self.stdout = Kept(output, "stdout", record)
        self.stderr = Kept(output, "stderr", record)

    def take(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """A piece that has arrived."""
        (self.stdout if stream == "stdout" else self.stderr).take(data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """What is said and listened to: input, where output goes, and for how long (seconds)."""

    stdin: bytes | BinaryIO | None
    sink: Sink
    timeout: float | None
    grace: float


def attend(
    session: Session,
    talk: Talk,
    start: Callable[[tuple[int, int, int]], Connection],
    *,
    on_started: Callable[[], None] = lambda: None,
    on_accepted: Callable[[int], None] = lambda _: None,
    on_running: Callable[[], None] = lambda: None,
) -> tuple[Outcome, Verdict]:
    """Start a command with pipes of its own, pump them until it is over; how it ended, and what its limits did.

    `on_started` is called when the request is out, `on_accepted` with the pid when there is a process, `on_running`
    when that executes the command.
    """
    with contextlib.ExitStack() as undo:
        out_read, out_write = _pipe(undo)
        err_read, err_write = _pipe(undo)
        for end in (out_write, err_write):
            session.adopt(end.number)
        given = _input(talk.stdin, undo)
        connection = start((given.reader.number, out_write.number, err_write.number))
        undo.callback(connection.close)
        for theirs in (given.reader, out_write, err_write):
            theirs.close()
        if connection.pid is not None:
            on_accepted(connection.pid)
        on_started()
        outcome = supervise(
            connection,
            stdout=out_read.number,
            stderr=err_read.number,
            stdin=given.writer.release() if given.writer else -1,
            feed=given.feed,
            source=given.source,
            sink=talk.sink,
            on_accepted=on_accepted,
            on_running=on_running,
            timeout=talk.timeout,
            grace=talk.grace,
        )
        return outcome, connection.resources.verdict(outcome.refused) if connection.resources else Verdict()


class _End:
    """One end of a pipe, closed once."""

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.release())

    def release(self) -> int:
        number, self.number = self.number, -1
        return number


def _pipe(undo: contextlib.ExitStack) -> tuple[_End, _End]:
    reader, writer = (_End(number) for number in os.pipe2(os.O_CLOEXEC))
    undo.callback(reader.close)
    undo.callback(writer.close)
    return reader, writer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """Where standard input comes from: the container's end, and what is pumped into `writer`, if anything is."""

    reader: _End
    writer: _End | None = None
    feed: bytes = b""
    source: int = -1


def _input(stdin: bytes | BinaryIO | None, undo: contextlib.ExitStack) -> _Input:
    """A file is read by us and goes through a pipe: from a descriptor of it the container could open it for writing."""
    if isinstance(stdin, bytes):
        reader, writer = _pipe(undo)
        return _Input(reader=reader, writer=writer, feed=stdin)
    if stdin is not None and not _can_be_shared(stdin.fileno()):
        reader, writer = _pipe(undo)
        return _Input(reader=reader, writer=writer, source=stdin.fileno())
    source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if stdin is None else os.dup(stdin.fileno())
    end = _End(source)
    undo.callback(end.close)
    return _Input(reader=end)


def _can_be_shared(descriptor: int) -> bool:
    """Whether it leads to no file on a disk: a pipe, a socket, a terminal."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)
