"""Talking with a command from start to end: its pipes, its input, what is kept of its output.

The same for a container's own command (`nbcontainer.engine.running`) and for one that joins it
(`nbcontainer.engine.executing`).
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

from nbcontainer.errors import InvalidOption
from nbcontainer.runtime.groups import Verdict
from nbcontainer.runtime.inputs import Asking, FileSource, Source
from nbcontainer.runtime.supervisor import supervise

if TYPE_CHECKING:
    from nbcontainer.engine.session import Session
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.driver import Window
    from nbcontainer.runtime.supervisor import Outcome, Sink

__all__ = ["Heard", "Input", "Kept", "OutputSink", "Starter", "Talk", "attend", "check_input"]

Input = bytes | BinaryIO | Source | Asking | None
"""What a command can be given: bytes, an open file that it reads itself, somebody's terminal, somebody to ask."""
Starter = Callable[[tuple[int, int, int], "Window"], "Connection"]
"""Starts a command with these standard streams, or with a terminal of that size."""

OutputSink = Callable[[Literal["stdout", "stderr"], bytes], None]
"""Called in the calling thread with each piece of output as it arrives."""

_AT_ONCE = 0.0003
"""Seconds of sleep that let a command begin which waits for our processor."""
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
    """What is said and listened to: input, where output goes, and for how long (seconds).

    With a `terminal` the command's streams are one of its own, and not pipes.
    """

    stdin: Input
    sink: Sink
    timeout: float | None
    grace: float
    terminal: bool = False


def check_input(stdin: Input, *, terminal: bool) -> None:
    """Refuse input that a terminal cannot have; to be asked before anything is begun."""
    if terminal and stdin is not None and not isinstance(stdin, Source):
        raise InvalidOption(
            "the input is not a terminal, so it cannot be typed on the container's: leave -t away to pass it on as it"
            " is, or -i to have no input"
        )


def attend(
    session: Session,
    talk: Talk,
    start: Starter,
    *,
    on_started: Callable[[], None] = lambda: None,
    on_accepted: Callable[[int], None] = lambda _: None,
    on_running: Callable[[], None] = lambda: None,
) -> tuple[Outcome, Verdict]:
    """Start a command with streams of its own, pump them until it is over; how it ended, and what its limits did.

    `on_started` is called when the request is out, `on_accepted` with the pid when there is a process, `on_running`
    when that executes the command. One whose pid is known at once we have woken ourselves, on our own processor as a
    rule, for which it would wait: so first we sleep for a moment.
    """
    with contextlib.ExitStack() as undo:
        streams = _terminal(talk.stdin, undo) if talk.terminal else _pipes(session, talk.stdin, undo)
        given, stdout, stderr = streams.input, streams.stdout, streams.stderr
        connection = start((given.reader.number, stdout.number, stderr.number), streams.window)
        undo.callback(connection.close)
        for theirs in (given.reader, stdout, stderr):
            theirs.close()
        if connection.pid is not None:
            time.sleep(_AT_ONCE)
            on_accepted(connection.pid)
        on_started()
        outcome = supervise(
            connection,
            stdout=streams.heard[0],
            stderr=streams.heard[1],
            stdin=given.writer.release() if given.writer else -1,
            feed=given.feed,
            source=given.source,
            asking=talk.stdin if isinstance(talk.stdin, Asking) else None,
            terminal=talk.terminal,
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
    source: Source | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Streams:
    """What a command is started with: the container's ends, and `heard`, ours of both outputs, where there are any."""

    input: _Input
    stdout: _End
    stderr: _End
    heard: tuple[int, int] = (-1, -1)
    window: Window = None


def _pipes(session: Session, stdin: Input, undo: contextlib.ExitStack) -> _Streams:
    out_read, out_write = _pipe(undo)
    err_read, err_write = _pipe(undo)
    for end in (out_write, err_write):
        session.adopt(end.number)
    given = _input(stdin, undo)
    return _Streams(input=given, stdout=out_write, stderr=err_write, heard=(out_read.number, err_read.number))


def _terminal(stdin: Input, undo: contextlib.ExitStack) -> _Streams:
    """Nothing but a window's size: the terminal comes from the container when the command has been started."""
    null = _End(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
    undo.callback(null.close)
    source = stdin if isinstance(stdin, Source) else None
    given = _Input(reader=null, source=source)
    return _Streams(input=given, stdout=null, stderr=null, window=source.window() if source else None)


def _input(stdin: Input, undo: contextlib.ExitStack) -> _Input:
    """A file is read by us and goes through a pipe: from a descriptor of it the container could open it for writing.

    So is a terminal: with a descriptor of it the container could change its settings, read what is typed to others, or
    write to it.
    """
    if isinstance(stdin, (bytes, Asking)):
        reader, writer = _pipe(undo)
        return _Input(reader=reader, writer=writer, feed=stdin if isinstance(stdin, bytes) else b"")
    if stdin is not None and (isinstance(stdin, Source) or not _can_be_shared(stdin.fileno())):
        reader, writer = _pipe(undo)
        source = stdin if isinstance(stdin, Source) else FileSource(stdin.fileno())
        return _Input(reader=reader, writer=writer, source=source)
    end = _End(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if stdin is None else os.dup(stdin.fileno()))
    undo.callback(end.close)
    return _Input(reader=end)


def _can_be_shared(descriptor: int) -> bool:
    """Whether it leads to no file on a disk, and to nobody's terminal: a pipe, a socket, the null device."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (stat.S_ISCHR(mode) and not os.isatty(descriptor))
