"""Watching one command from the calling thread: output, input, its terminal, deadline, interrupt, exit.

A plain poll loop, so that Ctrl-C (and Jupyter's ■) arrives as `KeyboardInterrupt` wherever it waits. The ladder:
SIGINT to the command's process group, after a grace SIGTERM, then the end of the whole pid namespace, which no
descendant survives; another interrupt on the way goes to the end at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nbcontainer.runtime.protocol import Accepted, Exited, Failed, Started
from nbcontainer.runtime.reading import is_read

if TYPE_CHECKING:
    from nbcontainer.model import ExitReason
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.inputs import Asking, Source

__all__ = ["Outcome", "Sink", "supervise"]

Sink = Callable[[Literal["stdout", "stderr"], bytes], None]

_CHUNK = 1 << 16
_ASK = 0.1
"""Seconds of silence after which it is looked whether the command waits for an answer."""
_TERM_GRACE = 1.0
_DRAIN = 0.5
_ANSWER = 2.0
_DEATH = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How it ended: a wait status or a failure to start; `steps` tells what was done to end it.

    `remains` is for what could not be ended: a request that the launcher never took ("unanswered": it is stopped or
    hangs, and will find nobody to answer when it goes on), or processes that the kernel has not let go of yet
    ("dying": in an uninterruptible wait for a device, as a rule). `refused` is how often the limit on processes that
    every container has was met.
    """

    status: int | None
    failure: Failed | None
    reason: ExitReason
    steps: tuple[str, ...] = ()
    remains: Literal["", "unanswered", "dying"] = ""
    refused: int = 0


class _Supervision:
    """The state of one loop."""

    def __init__(
        self,
        connection: Connection,
        *,
        stdout: int,
        stderr: int,
        stdin: int,
        feed: bytes,
        source: Source | None,
        asking: Asking | None,
        terminal: bool,
        sink: Sink,
        on_accepted: Callable[[int], None],
        on_running: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._sink = sink
        self._on_accepted = on_accepted
        self._on_running = on_running
        self._names: dict[int, Literal["stdout", "stderr"]] = {}
        self._open: set[int] = set()
        self._stdin = -1
        self._feed = memoryview(feed)
        self._source = source
        self._listening = False
        self._asking = asking
        self._terminal = terminal
        self.exited: Exited | None = None
        self.failure: Failed | None = None
        self.gone = False
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)
        if not terminal:
            self._hear(stdout, "stdout")
            self._hear(stderr, "stderr")
            self._talk_to(stdin)

    def _hear(self, fd: int, name: Literal["stdout", "stderr"]) -> None:
        self._names[fd] = name
        self._open.add(fd)
        self._poll.register(fd, select.POLLIN)

    def _talk_to(self, fd: int) -> None:
        """Have `fd` be what the input is written to; it is closed here."""
        self._stdin = fd
        if fd >= 0:
            os.set_blocking(fd, False)
            self._go_on()

    def _go_on(self) -> None:
        """Wait for room while there is something to write, else for something; close when there will be nothing."""
        source = self._source
        if self._feed:
            self._poll.register(self._stdin, select.POLLOUT)
            self._listen(None)
            return
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._stdin)
        if source is not None and source.fileno() >= 0:
            self._listen(source)
            self._poll.register(self._stdin, 0)  # a pipe that nobody reads any more says so unasked
        elif self._asking is None:
            self.close_stdin()

    def _listen(self, source: Source | None) -> None:
        if self._source is None or self._listening == (source is not None):
            return
        self._listening = source is not None
        if source is not None:
            self._poll.register(source.fileno(), select.POLLIN)
        else:
            self._poll.unregister(self._source.fileno())

    @property
    def finished(self) -> bool:
        return self.gone or self.exited is not None or self.failure is not None

    def step(self, timeout: float | None) -> None:
        """Handle what happens next, for at most `timeout` seconds."""
        patience = None if timeout is None else max(0, timeout)
        asks = self._asking is not None and self._stdin >= 0 and not self._feed and not self.finished
        if asks:
            patience = _ASK if patience is None else min(patience, _ASK)
        events = self._poll.poll(None if patience is None else patience * 1000)
        for fd, event in events:
            if fd == self._connection.fileno():
                self._message()
            elif fd in self._open:
                self._read(fd)
            elif fd == self._stdin:
                if event & select.POLLOUT:
                    self._write()
                else:
                    self._turn_away()
            elif self._listening and self._source is not None and fd == self._source.fileno():
                self._take()
        if asks and not events and patience:
            self._ask()

    def _message(self) -> None:
        message = self._connection.receive_any()
        if isinstance(message, Accepted):
            self._on_accepted(message.pid)
        elif isinstance(message, Started):
            self._begin()
            if not self.finished:
                self._on_running()
        elif isinstance(message, Exited):
            self.exited = message
        elif isinstance(message, Failed):
            self.failure = message
        elif message is None:
            self.gone = True
        if self.finished:
            self._poll.unregister(self._connection.fileno())

    def _begin(self) -> None:
        """The command runs: listen to its terminal, if it has one, and let the input begin."""
        master = self._connection.terminal
        if self._terminal and master < 0:  # the bytes of a container are not to be believed
            self.failure = Failed("ContainerStartError", "what came for the container's terminal is none; refused")
            self._connection.end()
            return
        if self._terminal:
            os.set_blocking(master, False)
            self._hear(master, "stdout")
        if self._source is not None:
            self._source.begin(master if self._terminal else -1)
        if self._terminal and self._source is not None and self._source.fileno() >= 0:
            self._talk_to(os.dup(master))

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError as problem:
            if problem.errno != errno.EIO:
                raise
            data = b""  # a terminal that nobody has open any more
        if data:
            self._sink(self._names[fd], data)
        else:
            self._open.discard(fd)
            self._poll.unregister(fd)

    def _write(self) -> None:
        try:
            self._feed = self._feed[os.write(self._stdin, self._feed[:_CHUNK]) :]
        except BlockingIOError:
            return
        except OSError as problem:
            if problem.errno not in {errno.EPIPE, errno.EIO}:
                raise
            self._turn_away()
        else:
            if not self._feed:
                self._go_on()

    def _take(self) -> None:
        """Take a piece of live input."""
        assert self._source is not None
        data = self._source.read()
        if data is None:
            return
        if data:
            self._feed = memoryview(data)
            self._go_on()
        else:
            self.close_stdin()

    def _ask(self) -> None:
        """Have somebody asked for input, if the command waits for it."""
        pid = self._connection.pid
        if self._asking is not None and pid is not None and is_read(pid, self._stdin):
            self._feed = memoryview(self._asking.ask())
            if not self._feed:
                self._asking = None
            self._go_on()

    def stop_asking(self) -> None:
        """Ask nobody any more: it is about to end."""
        if self._asking is not None:
            self._asking = None
            self.close_stdin()

    def _turn_away(self) -> None:
        """Nobody reads the input any more."""
        self._feed = self._feed[:0]
        self.close_stdin()

    def close_stdin(self) -> None:
        """Let there be no further input."""
        self._listen(None)
        if self._stdin >= 0:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

    def close(self) -> None:
        """Let go of the input, and of the person's terminal."""
        self.close_stdin()
        if self._source is not None:
            self._source.end()

    def drain(self) -> None:
        """Take what the command wrote before it ended; processes it left behind are dying and close their ends."""
        deadline = time.monotonic() + _DRAIN
        while self._open and (left := deadline - time.monotonic()) > 0:
            self.step(left)


def _ignore_pid(pid: int) -> None:
    """Nobody wants to know the pid."""


def _ignore() -> None:
    """Nobody wants to know."""


def supervise(
    connection: Connection,
    *,
    stdout: int = -1,
    stderr: int = -1,
    stdin: int = -1,
    feed: bytes = b"",
    source: Source | None = None,
    asking: Asking | None = None,
    terminal: bool = False,
    sink: Sink,
    on_accepted: Callable[[int], None] = _ignore_pid,
    on_running: Callable[[], None] = _ignore,
    timeout: float | None = None,
    grace: float = 2.0,
) -> Outcome:
    """Pump until the container is over.

    `stdin`, a pipe's writing end, is fed `feed`, then what comes from `source` or is asked for by `asking`, and closed
    here. With `terminal` there are no pipes: the command's terminal comes when it has been started, what it shows goes
    to `sink` as standard output, and `source` is typed on it.
    `timeout` and `grace` are seconds. Returns only when the outcome is known; after an interrupt or a timeout, only
    when every process of the container is gone. `on_accepted` is told the pid of its PID 1, `on_running` is called when
    the command is being executed.
    """
    loop = _Supervision(
        connection,
        stdout=stdout,
        stderr=stderr,
        stdin=stdin,
        feed=feed,
        source=source,
        asking=asking,
        terminal=terminal,
        sink=sink,
        on_accepted=on_accepted,
        on_running=on_running,
    )
    reason: ExitReason = "exited"
    steps: tuple[str, ...] = ()
    remains: Literal["", "unanswered", "dying"] = ""
    deadline = None if timeout is None else time.monotonic() + timeout
    try:
        try:
            while not loop.finished:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    reason = "timeout"
                    break
                loop.step(left)
        except KeyboardInterrupt:
            reason = "interrupted"
        if reason != "exited":
            loop.stop_asking()
            steps, remains = _wind_down(loop, connection, grace if reason == "interrupted" else 0)
        with contextlib.suppress(KeyboardInterrupt):
            loop.drain()
    finally:
        loop.close()
    if loop.exited is None and loop.failure is None and reason == "exited":
        reason = "lost"
    return Outcome(
        status=loop.exited.status if loop.exited else None,
        failure=loop.failure,
        reason=reason,
        steps=steps,
        remains=remains,
        refused=loop.exited.refused if loop.exited else 0,
    )


def _wind_down(
    loop: _Supervision, connection: Connection, grace: float
) -> tuple[tuple[str, ...], Literal["", "unanswered", "dying"]]:
    """Climb the ladder; return its steps and what it could not end. A further interrupt jumps to the end."""
    steps = []
    try:
        rungs = ((signal.SIGINT, grace), (signal.SIGTERM, _TERM_GRACE)) if grace > 0 else ()
        for number, patience in rungs:
            connection.signal(number)
            steps.append(number.name)
            deadline = time.monotonic() + patience
            while not loop.finished and (left := deadline - time.monotonic()) > 0:
                loop.step(left)
            if loop.finished:
                break
    except KeyboardInterrupt:
        pass
    if not loop.finished:
        connection.end()
        steps.append("SIGKILL")
    asked = time.monotonic()
    while True:
        try:
            return tuple(steps), _wait_gone(loop, connection, asked)
        except KeyboardInterrupt:
            connection.end()


def _wait_gone(loop: _Supervision, connection: Connection, asked: float) -> Literal["", "unanswered", "dying"]:
    """Wait until PID 1, and with it every process of the pid namespace, is over; but not without end.

    Of a command that has joined, the pidfd is its own, and whoever attends it speaks when all of it has ended.

    `asked` is when they were asked to end. A launcher that is stopped takes no request, and gives no pidfd.
    """
    while not loop.finished and connection.pidfd < 0:
        left = asked + _ANSWER - time.monotonic()
        if left <= 0:
            return "unanswered"
        loop.step(left)
        if connection.pidfd >= 0:  # now it can be ended although it may not hear yet
            connection.end()
    if connection.pidfd < 0:
        return ""
    end = select.poll()
    end.register(connection.pidfd, select.POLLIN)
    while not end.poll(50):
        if time.monotonic() > asked + _DEATH:
            return "dying"
        loop.step(0)
    while not loop.finished and (left := asked + _DEATH - time.monotonic()) > 0:  # it may be ending what is left of it
        loop.step(left)
    return ""
