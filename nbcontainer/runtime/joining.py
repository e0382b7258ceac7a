"""Calling functions inside a running container, whoever's notebook started it.

A helper process joins the container (`nbcontainer.runtime.child.joined`) and performs one task there. PID 1 is closed
to everybody, so it joins by way of PID 1's first child, the command, which lives as long as the container does.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from nbcontainer._linux import identity, processes
from nbcontainer.errors import Conflict, UnsupportedHost
from nbcontainer.runtime.connection import Connection
from nbcontainer.runtime.launcher import Launcher
from nbcontainer.runtime.protocol import Failed, ProtocolError, Ready, Task, receive, send

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from typing_extensions import Self

__all__ = ["Joined", "refusal"]

_PATIENCE = 3.0
"""Seconds to wait for a container that is just starting."""
_PAUSE = 0.02
_LAST = 5.0


class Joined:
    """A helper inside the container whose PID 1 is `pid`, for one task; a context manager that ends it."""

    def __init__(self, pid: int, modules: Sequence[str]) -> None:
        self._pid = pid
        self._modules = ",".join(modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._channel: socket.socket | None = None

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _PATIENCE
        why = "it has no process to join"
        try:
            first = processes.pidfd_open(self._pid)
        except OSError as problem:
            raise Conflict("the container has just ended; try again") from problem
        try:
            while True:
                for child in _children(self._pid):
                    why = self._enter_through(child) or why
                    if self._channel is not None:
                        return self
                if identity.has_ended(first):
                    raise Conflict("the container has just ended; try again")
                if time.monotonic() > deadline:
                    raise UnsupportedHost(f"the running container cannot be entered: {why}")
                time.sleep(_PAUSE)
        finally:
            os.close(first)

    def _enter_through(self, child: int) -> str:
        """Start a helper that joins `child`'s namespaces; the reason why it could not, or ""."""
        try:
            pidfd = processes.pidfd_open(child)
        except OSError:
            return ""
        try:
            if _parent(child) != self._pid:  # its number is somebody else's by now
                return ""
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", _program(), str(theirs.fileno()), str(pidfd), self._modules],
                    pass_fds=[theirs.fileno(), pidfd],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    cwd="/",
                    env={},
                )
        finally:
            os.close(pidfd)
        self._channel = ours
        said = refusal(ours)
        if said:
            self._end(0)
        return said

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Start ``module:function``; see `Runtime.begin`."""
        assert self._channel is not None
        send(self._channel, Task(target, dict(arguments)), tuple(fds))
        self._connection, self._channel = Connection(self._channel), None

    def finish(self) -> dict[str, Any]:
        """Wait for its result; raise what it raised."""
        assert self._connection is not None
        return Launcher.finish(self._connection)

    def _end(self, patience: float) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._channel is not None:
            self._channel.close()
        self._connection = self._channel = None
        if self._process is not None:
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end(_LAST if kind is None else 0)


def refusal(channel: socket.socket) -> str:
    """Why a helper process could not enter a container, or "" when it says that it is there. Waits for its word."""
    try:
        received = receive(channel)
    except (OSError, ProtocolError) as problem:
        return str(problem)
    if received is None:
        return "the helper process died without a word"
    message = received[0]
    if isinstance(message, Failed):
        return message.message
    return "" if isinstance(message, Ready) else f"the helper process said {type(message).__name__}"


def _program() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "child", "joined.py")


def _children(pid: int) -> list[int]:
    """The children of a process, oldest first (proc_pid_children(5)); found by looking at all where that is missing."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [child for child in sorted(found) if _parent(child) == pid]
    except OSError:
        return []


def _parent(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return -1
