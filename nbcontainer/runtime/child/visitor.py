"""A launcher's little sister, for visits to containers of other notebooks: ``python -I -S …/visitor.py SOCKET PIDFD``.

Such containers live in a user namespace that is not our launcher's, and nobody may go from one to the other. Whoever
owns both, the person, may enter either (setns(2) with a pidfd, Linux 5.8). So this process enters that namespace once,
with a mount namespace of its own, and serves `Visit` requests there. It leaves by itself when nobody has asked for some
time, because its presence keeps the namespace alive.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from typing import NoReturn

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))

from nbcontainer._linux import mounts, processes, syscalls
from nbcontainer.runtime.child import interpreter, tasks, visits
from nbcontainer.runtime.protocol import Configure, Failed, ProtocolError, Ready, Visit, receive, send

__all__ = ["main"]

_IDLE = 30.0
"""Seconds without a visit after which it ends."""


def main(fd: int, pidfd: int, memory: int = -1) -> NoReturn:
    """Enter the user namespace of the process behind `pidfd` and serve; `memory` as in a launcher's second life."""
    channel = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's own signature
    processes.hide_from_tracers()
    try:
        if memory < 0:
            received = receive(channel)
            if received is None or not isinstance(received[0], Configure):
                raise ProtocolError("expected Configure")
            configuration = received[0]
            exposed = interpreter.could_be_changed(configuration)
            if not exposed:  # from inside, root's own interpreter may be closed to us
                tasks.load(())
            _enter(pidfd)
            if exposed:
                interpreter.start_again(configuration, fd, pidfd)
        else:
            configuration = interpreter.remembered(memory)
            tasks.load(())
        os.close(pidfd)
        settings = visits.Settings(
            single_id=configuration.single_id,
            last_capability=processes.last_capability(),
            filters={name: bytes.fromhex(text) for name, text in configuration.filters.items()},
        )
    except (OSError, ProtocolError) as problem:
        with contextlib.suppress(OSError):
            send(channel, Failed("Conflict", str(problem)))
        os._exit(1)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    send(channel, Ready())
    _serve(channel, visits.Porters(settings, channel.close))
    os._exit(0)


def _enter(pidfd: int) -> None:
    syscalls.setns(pidfd, processes.CLONE_NEWUSER)
    with contextlib.suppress(PermissionError):  # one id: setgroups is denied, and there is no group to lose
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    syscalls.unshare(processes.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    os.chdir("/")


def _serve(channel: socket.socket, porters: visits.Porters) -> None:
    """Answer until the engine is gone, or has had nothing to ask for some time and nobody visits."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        asked, visited = poll.poll(_IDLE * 1000), _collect(porters)
        if not asked:
            if visited:
                continue
            return
        try:
            received = receive(channel)
        except ProtocolError:  # one bad message must not end every visit
            continue
        if received is None:
            return
        message, fds = received
        if isinstance(message, Visit) and fds:
            _admit(porters, message, fds)
        for fd in fds:
            os.close(fd)


def _collect(porters: visits.Porters) -> bool:
    """Collect the porters that have left; whether there is one still."""
    with contextlib.suppress(ChildProcessError):
        while pid := os.waitpid(-1, os.WNOHANG)[0]:
            porters.forget(pid)
        return True
    return False


def _admit(porters: visits.Porters, request: Visit, fds: list[int]) -> None:
    try:
        porters.admit(request, fds)
    except OSError as problem:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fds[0])) as control:
            send(control, Failed("UnsupportedHost", f"the command cannot be started: {problem}"))


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:]))
