"""The gate: where a container with a network waits for its link before the command starts.

A SEQPACKET socket whose other end a keeper of networks holds. The process that will become the command shows its
network namespace and a pidfd of PID 1 while its room is built, so that the link is made meanwhile; before the command
it waits for the word. A network that cannot be made is a container that does not start.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket

from nbcontainer._linux import processes, syscalls
from nbcontainer.errors import UnsupportedHost
from nbcontainer.runtime.child import setup, stage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["hold", "join", "show", "wait"]

_GO = b"."
_LONGEST = 4096
_PATIENCE = 30.0
_OWN = "/proc/self/ns/net"


def show(fd: int, pid: int = 1) -> socket.socket:
    """Hand this process's network namespace, and a pidfd of who lives there, to whoever is at the other end."""
    gate = socket.socket(fileno=fd)
    namespace = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        first = processes.pidfd_open(pid)
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (namespace, first)))]
            gate.sendmsg([_GO], ancillary, socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is gone: `wait` says so
        finally:
            os.close(first)
    finally:
        os.close(namespace)
    return gate


def wait(gate: socket.socket) -> None:
    """Wait until the link is there; raise `SetupError` with what was said instead."""
    with gate:
        _hear(gate)


def _hear(gate: socket.socket) -> None:
    gate.settimeout(_PATIENCE)
    try:
        word = gate.recv(_LONGEST)
    except TimeoutError as problem:
        raise setup.SetupError("the network keeper has made no link in time; try again") from problem
    except OSError:
        word = b""
    if not word:
        raise setup.SetupError("the network keeper ended before the container's link was made; run it again")
    if word != _GO:
        raise setup.SetupError(word.decode("utf-8", "replace"))


def hold(_: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """As a task: make a network namespace, have it connected, hand it over, and stay until one side has gone.

    fds: the gate, and a SEQPACKET socket on which the namespace is handed over. Whoever asks there afterwards is
    answered if the namespace is as new: who finds sockets left, of connections that linger, ends instead.
    """
    syscalls.unshare(processes.CLONE_NEWNET)
    stage.open_network("/proc")
    gate, taker = show(fds[0], os.getpid()), socket.socket(fileno=fds[1])
    with gate, taker:
        try:
            _hear(gate)
        except setup.SetupError as problem:
            raise UnsupportedHost(str(problem)) from problem
        namespace = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
        socket.send_fds(taker, [_GO], [namespace])
        os.close(namespace)
        poll = select.poll()
        poll.register(gate, 0)  # whoever closes it says so unasked
        poll.register(taker, select.POLLIN)
        while [fd for fd, _ in poll.poll()] == [taker.fileno()] and taker.recv(1) and not _lingers():
            taker.send(_GO)
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


def join(namespace: int) -> None:
    """Enter the network of another container, and show its /sys; the stage is still around."""
    try:
        syscalls.setns(namespace, processes.CLONE_NEWNET)
    except OSError as problem:
        raise setup.SetupError(
            f"the other container's network cannot be entered ({problem.strerror}): it was started in another way, or"
            " has just ended"
        ) from problem
    finally:
        os.close(namespace)
    stage.show_network()
