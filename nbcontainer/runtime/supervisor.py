"""Watching one foreground container from the calling thread: output, input, deadline, interrupt, exit.

A plain poll loop, so that Ctrl-C (and Jupyter's ■) arrives as `KeyboardInterrupt` wherever it waits. The ladder:
SIGINT to the command's process group, after a grace SIGTERM, then the end of the whole pid namespace, which no
descendant survives; another interrupt on the way goes to the end at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nbcontainer.runtime.protocol import Accepted, Exited, Failed, Started

if TYPE_CHECKING:
    from nbcontainer.model import ExitReason
    from nbcontainer.runtime.connection import Connection

__all__ = ["Outcome", "Sink", "supervise"]

Sink = Callable[[Literal["stdout", "stderr"], bytes], None]

_CHUNK = 1 << 16
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
        source: int,
        sink: Sink,
        on_accepted: Callable[[int], None],
        on_running: Callable[[], None],
    ) -> None:
        self._connection = connection
        self._sink = sink
        self._on_accepted = on_accepted
        self._on_running = on_running
        self._names: dict[int, Literal["stdout", "stderr"]] = {stdout: "stdout", stderr: "stderr"}
        self._open = set(self._names)
        self._stdin = stdin
        self._feed = memoryview(feed)
        self._source = source
        self.exited: Exited | None = None
        self.failure: Failed | None = None
        self.gone = False
        self._poll = select.poll()
        for fd in (*self._names, connection.fileno()):
            self._poll.register(fd, select.POLLIN)
        if stdin >= 0:
            os.set_blocking(stdin, False)
            self._poll.register(stdin, select.POLLOUT)

    @property
    def finished(self) -> bool:
        return self.gone or self.exited is not None or self.failure is not None

    def step(self, timeout: float | None) -> None:
        """Handle what happens next, for at most `timeout` seconds."""
        for fd, _ in self._poll.poll(None if timeout is None else max(0, timeout) * 1000):
            if fd == self._connection.fileno():
                self._message()
            elif fd == self._stdin:
                self._write()
            elif fd in self._open:
                self._read(fd)

    def _message(self) -> None:
        message = self._connection.receive_any()
        if isinstance(message, Accepted):
            self._on_accepted(message.pid)
        elif isinstance(message, Started):
            self._on_running()
        elif isinstance(message, Exited):
            self.exited = message
        elif isinstance(message, Failed):
            self.failure = message
        elif message is None:
            self.gone = True
        if self.finished:
            self._poll.unregister(self._connection.fileno())

    def _read(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if data:
            self._sink(self._names[fd], data)
        else:
            self._open.discard(fd)
            self._poll.unregister(fd)

    def _write(self) -> None:
        if not self._feed and self._source >= 0:
            self._feed = memoryview(os.read(self._source, _CHUNK))
        try:
            written = os.write(self._stdin, self._feed[:_CHUNK])
            self._feed = self._feed[written:]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._feed, self._source = self._feed[:0], -1
        else:
            if written and self._source >= 0:
                return  # there may be more
        if not self._feed:
            self.close_stdin()

    def close_stdin(self) -> None:
        if self._stdin >= 0:
            self._poll.unregister(self._stdin)
            os.close(self._stdin)
            self._stdin = -1

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
    stdout: int,
    stderr: int,
    stdin: int = -1,
    feed: bytes = b"",
    source: int = -1,
    sink: Sink,
    on_accepted: Callable[[int], None] = _ignore_pid,
    on_running: Callable[[], None] = _ignore,
    timeout: float | None = None,
    grace: float = 2.0,
) -> Outcome:
    """Pump until the container is over.

    `stdin`, a pipe's writing end, is fed `feed` and what can be read from the file `source`, and closed here.
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
            steps, remains = _wind_down(loop, connection, grace if reason == "interrupted" else 0)
        with contextlib.suppress(KeyboardInterrupt):
            loop.drain()
    finally:
        loop.close_stdin()
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
