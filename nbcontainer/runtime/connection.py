"""The engine's end of one container's, visit's or task's control socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

from nbcontainer._linux.identity import send_signal
from nbcontainer._linux.terminals import is_master
from nbcontainer.runtime.protocol import (
    Accepted,
    Done,
    Exited,
    Failed,
    Message,
    ProtocolError,
    Signal,
    Started,
    receive,
    send,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.runtime.resources import Held

__all__ = ["Connection"]


class Connection:
    """The control socket of one container or task; `resources` is what a container holds beside its processes.

    `terminal` is the master of the command's terminal once it has `started`, if it was to have one. `alone` is whether
    no process of the container was left when its command's end was told. `whole` is whether `pidfd` is of a container's
    first process.
    """

    def __init__(self, channel: socket.socket, resources: Held | None = None) -> None:
        self._channel = channel
        self.resources = resources
        self.pid: int | None = None
        self.pidfd = -1
        self.started = False
        self.alone = False
        self.whole = False
        self.terminal = -1

    @classmethod
    def opened(cls, ask: Callable[[int], object], resources: Held | None = None) -> Connection:
        """A connection whose other end `ask` has sent along with a request; nothing stays open when that raises."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                ask(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        return cls(ours, resources)

    def fileno(self) -> int:
        """For poll(2): readable when there is a message, or when the other side is gone."""
        return self._channel.fileno()

    def receive(self) -> Exited | Failed | Done | None:
        """The next message that matters, or None when the other side is gone. Blocks; check `fileno` first."""
        message = self.receive_any()
        while isinstance(message, (Accepted, Started)):
            message = self.receive_any()
        return message if isinstance(message, (Exited, Failed, Done)) else None

    def receive_any(self) -> Message | None:
        """The next message of any kind, its effect on this object already applied."""
        try:
            received = receive(self._channel)
        except (OSError, ProtocolError):
            return None
        if received is None:
            return None
        message, fds = received
        if isinstance(message, Accepted) and len(fds) == 1 and self.pidfd < 0:
            self.pid, self.pidfd = message.pid, fds.pop()
        if isinstance(message, Exited):
            self.alone = message.alone
        if isinstance(message, Started):
            self.started = True
            if len(fds) == 1 and self.terminal < 0 and is_master(fds[0]):  # whatever else it is would not be a terminal
                self.terminal = fds.pop()
        for fd in fds:
            os.close(fd)
        return message

    def signal(self, number: int) -> None:
        """Send a signal to the command's process group."""
        self._thaw()
        with contextlib.suppress(OSError):
            send(self._channel, Signal(number))

    def end(self) -> None:
        """End every process of the container, at once."""
        self._thaw()
        if self.resources is not None and self.pid is not None:
            self.resources.look(self.pid)
        with contextlib.suppress(OSError):
            send(self._channel, Signal(9, everything=True))
        if self.whole and not self.started and self.pidfd >= 0:  # a file system may hold it up, and it hears nothing
            with contextlib.suppress(OSError):
                send_signal(self.pidfd, signal.SIGKILL)

    def _thaw(self) -> None:
        if self.resources is not None and self.pid is not None:
            self.resources.thaw(self.pid)

    def close(self) -> None:
        """Let go; a container that still runs ends."""
        self._channel.close()
        if self.resources is not None:
            self.resources.release(self.pid, self.pidfd)
            self.resources = None
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        if self.terminal >= 0:
            os.close(self.terminal)
            self.terminal = -1
