"""Commands in containers that run already, whoever's notebook started them.

A container of our own launcher is visited through that: both are in one user namespace. For another notebook's there
is a helper process that enters its namespace once (`nbcontainer.runtime.child.visitor`) and is kept for the next visit
for as long as it is used.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING

from nbcontainer._linux.values import replaced
from nbcontainer.errors import Conflict
from nbcontainer.runtime.connection import Connection
from nbcontainer.runtime.groups import entrances_to
from nbcontainer.runtime.joining import refusal
from nbcontainer.runtime.launcher import child_environment
from nbcontainer.runtime.protocol import send

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbcontainer.runtime.launcher import Launcher
    from nbcontainer.runtime.protocol import Configure, Visit

__all__ = ["Visitors"]

_FRESH = 20.0
"""Seconds for which a helper is trusted to be there still: it leaves after thirty without a visit."""
_START_TIMEOUT = 20.0
_LAST = 2.0


class Visitors:
    """The ways into containers for one engine; safe to use from several threads."""

    def __init__(self, configuration: Callable[[], Configure]) -> None:
        self._configuration = configuration
        self._lock = threading.Lock()
        self._helpers: dict[int, _Helper] = {}

    def visit(
        self,
        request: Visit,
        process: tuple[int, int],
        stdio: tuple[int, int, int],
        places: Sequence[str],
        *,
        launcher: Launcher | None,
    ) -> Connection:
        """Start a command beside `process`, the pid and pidfd of a container's own command.

        `places` are its cgroups, `launcher` is ours when the container is, too. Raises `Conflict` when it cannot be
        entered (any more).
        """
        pid, pidfd = process
        request = replaced(request, places="\0".join(places))
        connection = launcher.invited(request, stdio) if launcher is not None else None
        if connection is not None:
            return connection
        entrances = entrances_to(places)
        try:
            fds = (*stdio, pidfd, *entrances)
            if launcher is not None:
                return launcher.visit(request, fds)
            return self._helped(request, pid, pidfd, fds)
        finally:
            for fd in entrances:
                os.close(fd)

    def _helped(self, request: Visit, pid: int, pidfd: int, fds: Sequence[int]) -> Connection:
        try:
            namespace = os.stat(f"/proc/{pid}/ns/user").st_ino
        except OSError as problem:
            raise Conflict(f"the container cannot be entered ({problem.strerror}); it may have just ended") from problem
        with self._lock:
            helper = self._helpers.get(namespace)
            if helper is None or not helper.is_fresh():
                self._let_go(namespace)
                helper = _Helper(self._configuration(), pidfd)
                self._helpers[namespace] = helper
            return helper.visit(request, fds)

    def _let_go(self, namespace: int) -> None:
        """End the helper of this namespace and those that nobody uses."""
        for key in [key for key, each in self._helpers.items() if key == namespace or not each.is_fresh()]:
            self._helpers.pop(key).close()

    def close(self) -> None:
        """End the helpers and what they attend; safe twice."""
        with self._lock:
            while self._helpers:
                self._helpers.popitem()[1].close()


class _Helper:
    """One process in one user namespace."""

    def __init__(self, configuration: Configure, pidfd: int) -> None:
        self._used = time.monotonic()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.settimeout(_START_TIMEOUT)
        self._connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _program(), str(theirs.fileno()), str(pidfd)],
                pass_fds=[theirs.fileno(), pidfd],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
                env=child_environment(),
            )
        try:
            send(self._channel, configuration)
            problem = refusal(self._channel)
        except OSError as trouble:
            problem = str(trouble)
        except BaseException:
            self.close()
            raise
        if problem:
            self.close()
            raise Conflict(f"the container cannot be entered: {problem}")
        self._channel.settimeout(None)

    def is_fresh(self) -> bool:
        """Whether it is there, and will be when it is asked now."""
        used = time.monotonic() - self._used < _FRESH
        return self._process.poll() is None and (used or any(each.pidfd >= 0 for each in self._connections))

    def visit(self, request: Visit, fds: Sequence[int]) -> Connection:
        """Have a command join; see `Visitors.visit`."""
        self._used = time.monotonic()
        try:
            connection = Connection.opened(lambda control: send(self._channel, request, (control, *fds)))
        except OSError as problem:
            raise Conflict(f"the container cannot be entered ({problem.strerror}); try again") from problem
        self._connections.add(connection)  # weakly: one that an interrupt took from its owner must close
        return connection

    def close(self) -> None:
        self._channel.close()
        try:
            self._process.wait(_LAST)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _program() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "child", "visitor.py")
