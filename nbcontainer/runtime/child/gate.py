"""The gate: where a container with a network waits for its link before the command starts.

A SEQPACKET socket whose other end a keeper of networks holds. Whoever builds the room shows the network namespace and a
pidfd of PID 1 before, so that the link is made meanwhile; before the command it waits for the word. A network that
cannot be made is a container that does not start.
"""

from __future__ import annotations

import array
import os
import select
import socket

from nbcontainer._linux import processes, syscalls
from nbcontainer.runtime.child import setup, stage

__all__ = ["GO", "hear", "join", "own_namespace", "show", "wait"]

GO = b"."
_LONGEST = 4096
_PATIENCE = 30.0
_LATE = "the network keeper has made no link in time; try again"


def show(fd: int, pid: int = 1) -> socket.socket:
    """Hand this process's network namespace, and a pidfd of who lives there, to whoever is at the other end."""
    gate = socket.socket(fileno=fd)
    namespace = own_namespace()
    try:
        first = processes.pidfd_open(pid)
        try:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (namespace, first)))]
            gate.sendmsg([GO], ancillary, socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it is gone: `wait` says so
        finally:
            os.close(first)
    finally:
        os.close(namespace)
    return gate


def own_namespace() -> int:
    """Open this process's network namespace."""
    return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def wait(gate: socket.socket, unless: socket.socket | None = None) -> bool:
    """Wait until the link is there; False when there is something to hear at another socket before.

    Raises `SetupError` with what was said instead, also when nothing was.
    """
    if unless is not None:
        poll = select.poll()
        for channel in (gate, unless):
            poll.register(channel, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(_PATIENCE * 1000)]
        if ready == [unless.fileno()]:
            return False
        if not ready:
            raise setup.SetupError(_LATE)
    hear(gate)
    gate.close()
    return True


def hear(gate: socket.socket) -> None:
    """The same for who goes on to use the gate."""
    gate.settimeout(_PATIENCE)
    try:
        word = gate.recv(_LONGEST)
    except TimeoutError as problem:
        raise setup.SetupError(_LATE) from problem
    except OSError:
        word = b""
    if not word:
        raise setup.SetupError("the network keeper ended before the container's link was made; run it again")
    if word != GO:
        raise setup.SetupError(word.decode("utf-8", "replace"))


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
