"""A network that several containers have, one after another: made by a task, known to the launcher by its name."""

from __future__ import annotations

import os
import secrets
import select
import socket
from typing import TYPE_CHECKING

from nbcontainer.errors import UnsupportedHost

if TYPE_CHECKING:
    from nbcontainer.runtime.launcher import Launcher

__all__ = ["LentNetwork"]

_HOLD = "nbcontainer.runtime.child.gate:hold"


class LentNetwork:
    """The network, for as long as this object is open, its launcher lives, and whoever has connected it does."""

    def __init__(self, launcher: Launcher, gate: int) -> None:
        """Make it and wait until it is connected at the `gate`; raise `UnsupportedHost` with what was said instead."""
        self.name = f"lent-{secrets.token_hex(8)}"
        self._launcher = launcher
        self._holder, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                task = launcher.begin(_HOLD, {}, (gate, theirs.fileno()))
            try:
                _, fds, _, _ = socket.recv_fds(self._holder, 1, 1)
                if not fds:
                    launcher.finish(task)
                    raise UnsupportedHost("the process that holds a network died without a word")
            finally:
                task.close()
            launcher.lend(self.name, fds[0])
            os.close(fds[0])
            self._pid = launcher.pid
        except BaseException:
            self._holder.close()
            raise

    @property
    def is_there(self) -> bool:
        """Whether containers can still be started in it."""
        poll = select.poll()
        poll.register(self._holder, 0)
        return not poll.poll(0) and not self._launcher.has_died and self._pid == self._launcher.pid

    def close(self) -> None:
        """Let go of it: it ends with the last container in it. Safe twice."""
        if self._holder.fileno() >= 0:
            self._holder.close()
            if self._pid == self._launcher.pid:
                self._launcher.lend(self.name)
