"""A task that holds a network namespace, with its link, for containers that have it one after another.

Apart from `gate`, which every container has: what a module imports, each of its processes copies.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import TYPE_CHECKING

from nbcontainer._linux import processes, syscalls
from nbcontainer.errors import UnsupportedHost
from nbcontainer.runtime.child import gate, setup, stage

if TYPE_CHECKING:
    from typing import Any

__all__ = ["hold"]


def hold(_: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """As a task: make a network namespace, have it connected, hand it over, and stay until one side has gone.

    fds: the gate, and a SEQPACKET socket on which the namespace is handed over. Whoever asks there afterwards is
    answered if the namespace is as new: who finds sockets left, of connections that linger, ends instead.
    """
    syscalls.unshare(processes.CLONE_NEWNET)
    stage.open_network("/proc")
    door, taker = gate.show(fds[0], os.getpid()), socket.socket(fileno=fds[1])
    with door, taker:
        try:
            gate.hear(door)
        except setup.SetupError as problem:
            raise UnsupportedHost(str(problem)) from problem
        namespace = gate.own_namespace()
        socket.send_fds(taker, [gate.GO], [namespace])
        os.close(namespace)
        poll = select.poll()
        poll.register(door, 0)  # whoever closes it says so unasked
        poll.register(taker, select.POLLIN)
        while [fd for fd, _ in poll.poll()] == [taker.fileno()] and taker.recv(1) and not _lingers():
            taker.send(gate.GO)
    return {}


def _lingers() -> bool:
    """Whether this network namespace still has sockets of somebody: /proc/net/sockstat (proc_pid_net(5))."""
    for name in ("sockstat", "sockstat6"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/self/net/{name}", encoding="ascii") as file:
            for line in file:
                words = line.split()
                counts = dict(zip(words[1::2], words[2::2], strict=False))
                if counts.get("inuse", "0") != "0" or counts.get("tw", "0") != "0":
                    return True
    return False
