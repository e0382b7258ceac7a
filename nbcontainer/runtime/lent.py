"""A network that several containers have, one after another: made by a task, known to the launcher by its name."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import time
from typing import TYPE_CHECKING

from nbcontainer.errors import UnsupportedHost

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.runtime.launcher import Launcher

__all__ = ["HOLDER", "LentNetwork"]

HOLDER = "nbcontainer.runtime.child.holder"
_PATIENCE = 40.0
_MOMENT = 0.1
_ASK = b"?"


class LentNetwork:
    """The network, for as long as this object is open, its launcher lives, and whoever has connected it does."""

    def __init__(self, launcher: Launcher, gate: int, given_up: Callable[[], bool]) -> None:
        """Make it and wait until it is connected at the `gate`, or `given_up`.

        Raises `UnsupportedHost` with what was said instead.
        """
        self.name = f"lent-{secrets.token_hex(8)}"
        self._launcher = launcher
        self._asked = False
        self._holder, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                task = launcher.begin(f"{HOLDER}:hold", {}, (gate, theirs.fileno()))
            try:
                namespace = self._handed_over(given_up)
                if namespace < 0:
                    launcher.finish(task)
                    raise UnsupportedHost("the process that holds a network died without a word")
            finally:
                task.close()
            self._pid = launcher.pid
            try:
                launcher.lend(self.name, namespace)
            finally:
                os.close(namespace)
        except BaseException:
            self._holder.close()
            launcher.lend(self.name)
            raise

    def _handed_over(self, given_up: Callable[[], bool]) -> int:
        """The namespace, or -1 when its holder has ended."""
        deadline = time.monotonic() + _PATIENCE
        while not self._hears(_MOMENT):
            if given_up():
                raise UnsupportedHost("nobody waits for the network any more")
            if time.monotonic() > deadline:
                raise UnsupportedHost("the launcher has made no network in time; try again")
        _, fds, _, _ = socket.recv_fds(self._holder, 1, 1, socket.MSG_CMSG_CLOEXEC)
        return fds[0] if fds else -1

    def _hears(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._holder, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def look(self) -> None:
        """A container there is over: have it looked whether anything of it is left. `is_there` has the answer."""
        with contextlib.suppress(OSError):  # its holder has ended
            self._asked = bool(self._holder.send(_ASK, socket.MSG_NOSIGNAL))

    def is_there(self) -> bool:
        """Whether another container can be started in it, and finds it as new."""
        if self._launcher.has_died or self._pid != self._launcher.pid:
            return False
        try:
            if self._asked and not (self._hears(_PATIENCE) and self._holder.recv(1)):
                return False
        except OSError:
            return False
        self._asked = False
        return not self._hears(0)

    def close(self) -> None:
        """Let go of it: it ends with the last container in it. Safe twice."""
        if self._holder.fileno() >= 0:
            self._holder.close()
            if self._pid == self._launcher.pid:
                self._launcher.lend(self.name)
