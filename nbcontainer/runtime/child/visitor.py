"""A launcher's little sister, for visits to containers of other notebooks: ``python -I -S …/visitor.py SOCKET PIDFD``.

Such containers live in a user namespace that is not our launcher's, and nobody may go from one to the other. Whoever
owns both, the person, may enter either (setns(2) with a pidfd, Linux 5.8). So this process enters that namespace once,
with a mount namespace of its own, and serves `Visit` requests there. It leaves by itself when nobody has asked for some
time, because its presence keeps the namespace alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))

from nbcontainer._linux import identity, mounts, processes, syscalls
from nbcontainer.runtime.child import interpreter, modules, visits
from nbcontainer.runtime.protocol import Configure, Failed, ProtocolError, Ready, Visit, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_IDLE = 30.0
"""Seconds without a visit after which it ends."""
_OWN = "/proc/self/ns/user"
_NS_GET_PARENT = 0xB702  # ioctl_nsfs(2)
_CAP_SYS_PTRACE = 19


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
                modules.load()
            if not (exposed and _enter_above(pidfd)):
                _enter(pidfd)
            if exposed:
                interpreter.start_again(configuration, fd, pidfd)
            closed = True
        else:
            configuration = interpreter.remembered(memory)
            modules.load()
            closed = not _is_there(pidfd)
            if closed:
                _enter(pidfd)
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
    syscalls.set_child_subreaper()  # what a killed porter leaves: a container waits for who collects it
    # children of which nobody wants to hear are collected by the kernel (wait(2), "NOTES")
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(ignored, signal.SIG_IGN)
    send(channel, Ready())
    _serve(channel, visits.Porters(settings, channel.close), closed=closed)
    os._exit(0)


def _user_namespace(pidfd: int) -> int:
    """A descriptor of a process's user namespace."""
    namespace = os.open(f"/proc/{identity.pid_of(pidfd)}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    if identity.has_ended(pidfd):  # its number may be somebody else's
        os.close(namespace)
        raise ProcessLookupError(errno.ESRCH, "the process is over")
    return namespace


def _is_there(pidfd: int) -> bool:
    """Whether the user namespace of that process is the one in which we are."""
    namespace = _user_namespace(pidfd)
    try:
        return os.path.samestat(os.fstat(namespace), os.stat(_OWN))
    finally:
        os.close(namespace)


def _enter_above(pidfd: int) -> bool:
    """Enter the user namespace above that of the process, for a second life there (see `interpreter`).

    False when there is none between that and ours: a launcher whose interpreter is nobody's to change makes none.
    """
    namespace = _user_namespace(pidfd)
    try:
        above = fcntl.ioctl(namespace, _NS_GET_PARENT)
    except PermissionError:  # it is not below ours
        return False
    finally:
        os.close(namespace)
    try:
        if os.path.samestat(os.fstat(above), os.stat(_OWN)):
            return False
        _enter(above)
    finally:
        os.close(above)
    return True


def _enter(target: int) -> None:
    processes.enter_user_namespace(target)
    syscalls.unshare(processes.CLONE_NEWNS)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    os.chdir("/")


def _serve(channel: socket.socket, porters: visits.Porters, *, closed: bool) -> None:
    """Answer until the engine is gone, or has had nothing to ask for some time and nobody visits.

    One that is not `closed` to whoever may trace in that namespace joins no container that may.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while True:
        if not poll.poll(_IDLE * 1000):
            if _is_visited():
                continue
            return
        try:
            received = receive(channel)
        except ProtocolError:  # one bad message must not end every visit
            continue
        if received is None:
            return
        message, fds = received
        if isinstance(message, Visit) and fds and not closed and _CAP_SYS_PTRACE in message.room.capabilities:
            _refuse(fds[0])
        elif isinstance(message, Visit) and fds:
            _admit(porters, message, fds)
        for fd in fds:
            os.close(fd)


def _refuse(control: int) -> None:
    with socket.socket(fileno=os.dup(control)) as channel, contextlib.suppress(OSError):
        text = (
            "this container may trace processes (SYS_PTRACE), and could take over one that this interpreter starts in"
            " it; join it from a notebook whose Python is the one that started it, or is installed for all users"
        )
        send(channel, Failed("UnsupportedHost", text))


def _is_visited() -> bool:
    """Whether there is still a porter."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
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
