"""Commands that join a container which runs already: what `exec` is made of.

Three processes. The *attendant* is a child of whoever serves the engine and stays outside: it passes signals on,
reports the end, and ends everything when nobody listens any more. It outlives its own parent: a container cannot end
before every process in it has been collected, which is the attendant's task. The *joiner* enters the container's
cgroups and namespaces by a pidfd of its command, looks the user up, drops everything; nothing inside can see it,
because it joins the process ids for its children only. Last it makes the *command*, as the attendant's child
(CLONE_PARENT). So what becomes visible in the container has no more rights than the container gives, and no descriptor
but its own (CVE-2016-9962, CVE-2022-1227, CVE-2024-21626). Sources: setns(2), pid_namespaces(7), clone(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer._linux import processes, syscalls
from nbcontainer._linux.trees import descendants, end_tree
from nbcontainer.runtime.child import init, setup, views
from nbcontainer.runtime.protocol import (
    Accepted,
    Execute,
    Exited,
    ProtocolError,
    Signal,
    Started,
    encode,
    receive,
    send,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.runtime.protocol import Visit

__all__ = ["Settings", "attend"]

_NAMESPACES = (
    processes.CLONE_NEWNS
    | processes.CLONE_NEWIPC
    | processes.CLONE_NEWUTS
    | processes.CLONE_NEWCGROUP
    | processes.CLONE_NEWPID
)
_PIDFD = 4
_ENTRANCES = slice(5, None)
_ENTERED = b"entered"


@dataclass(frozen=True)
class Settings:
    """What every visit of this process has in common."""

    single_id: bool
    last_capability: int
    filters: Mapping[str, bytes]


def attend(request: Visit, control: socket.socket, fds: list[int], settings: Settings) -> int:
    """Have the command join, and stay with it until it ends; the exit status of this process."""
    processes.hide_from_tracers()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    joiner = os.fork()
    if joiner == 0:
        try:
            ours.close()
            _join(request, control, theirs, fds, settings)
        finally:
            os._exit(125)
    theirs.close()
    for fd in fds:
        os.close(fd)
    with ours:
        folder, arrived = _arrival(ours, control, joiner)
    try:
        if arrived is None:
            return 1
        pid, pidfd = arrived
        with contextlib.suppress(OSError):  # the engine may be gone already
            send(control, Accepted(pid), (pidfd,))
        status = _watch(pid, pidfd, control, detached=request.detached)
    finally:
        if folder >= 0:
            with contextlib.suppress(OSError):
                os.unlink(os.path.basename(request.script_path), dir_fd=folder)
    with contextlib.suppress(OSError):
        send(control, Exited(status))
    return 0


def _arrival(joined: socket.socket, control: socket.socket, joiner: int) -> tuple[int, tuple[int, int] | None]:
    """The folder of the command's text or -1, and its pid and pidfd, or None when it never came to be."""
    poll = select.poll()
    poll.register(joined, select.POLLIN)
    poll.register(control, select.POLLIN)
    folder = -1
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if joined.fileno() in ready:
            said, fds, _, _ = socket.recv_fds(joined, 64, 1)
            if said != _ENTERED:
                break
            folder = fds[0]
        elif not _wants_on(control):  # interrupted before it began
            poll.unregister(control)
            os.kill(joiner, signal.SIGKILL)
    os.waitpid(joiner, 0)
    if not said:
        _end_unannounced()
        return folder, None
    return folder, (int(said), fds[0])


def _end_unannounced() -> None:
    """End the command of a joiner that was killed after it had made it, and before it could say so."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in descendants(os.getpid()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.wait()


def _wants_on(control: socket.socket) -> bool:
    """Read what the engine says to a command that is not there yet; False when it should not come to be."""
    try:
        received = receive(control)
    except (OSError, ProtocolError):
        return False
    return received is not None and isinstance(received[0], Signal) and not received[0].everything


def _watch(pid: int, pidfd: int, control: socket.socket, *, detached: bool) -> int:
    """Do what the engine says until the command has ended; its wait status.

    The engine speaks only to end it. A command that obeys may have started others that do not (a shell's background
    processes ignore SIGINT), so those in its session end with it.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(control, select.POLLIN)
    ending = False
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if pidfd in ready:
            if ending:
                end_tree(pid)
            return os.waitpid(pid, 0)[1]
        ending = not detached
        if not init.obey(control, pid):
            poll.unregister(control)
            if not detached:
                end_tree(pid)


# --- the joiner -------------------------------------------------------------------------------------------------------


def _join(request: Visit, control: socket.socket, joined: socket.socket, fds: list[int], settings: Settings) -> None:
    """Enter, drop, become the command. Returns only when that failed, which has been told."""
    try:
        init.keep_only(control.fileno(), joined.fileno(), *fds[1:])
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        processes.new_session_keyring()
        _enter(request, fds, joined)
        room = request.room
        processes.drop_bounding_set(frozenset(room.capabilities), settings.last_capability)
        built = setup.settle(
            room,
            init.filter_of(room, settings.filters),
            single_id=settings.single_id,
            script_path=request.script_path,
            make_directory=False,
        )
        started = encode(Started())

        def announce() -> None:
            _arrive(joined, detached=request.detached)
            control.sendall(started)

        command = Execute(request.argv, request.environment, request.script)
        setup.execute(built, command, (fds[1], fds[2], fds[3]), announce)
    except setup.SetupError as trouble:
        init.report(control, str(trouble), trouble.exit_code)
    except Exception as trouble:  # noqa: BLE001 - the boundary of a process: whatever it was must be told
        init.report(control, f"the command could not be started: {type(trouble).__name__}: {trouble}", 125)


def _enter(request: Visit, fds: list[int], joined: socket.socket) -> None:
    """Join the container, and give the attendant the folder that will hold the command's text, if there is one."""
    try:
        for entrance in fds[_ENTRANCES]:
            os.write(entrance, b"0")
        # a network that is the machine's own is ours already, and nobody here may join it
        network = 0 if request.room.network == "host" else processes.CLONE_NEWNET
        syscalls.setns(fds[_PIDFD], _NAMESPACES | network)
        os.chdir("/")
    except OSError as problem:
        raise setup.SetupError(
            f"the container cannot be entered: {problem.strerror}; it may have just ended"
        ) from problem
    if not views.is_a_container_root():
        raise setup.SetupError("the container is just starting, or has no /proc; try again")
    for fd in fds[_PIDFD:]:
        os.close(fd)
    if request.room.script:
        path = os.path.dirname(request.script_path)
        try:
            folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as problem:
            raise setup.SetupError(f"the container's {path} cannot be used: {problem.strerror}") from problem
        socket.send_fds(joined, [_ENTERED], [folder])
        os.close(folder)


def _arrive(joined: socket.socket, *, detached: bool) -> None:
    """Become visible in the container: go on as a child of the attendant, which is told who that is."""
    processes.hide_from_tracers()  # a change of identity has undone it
    try:
        pid, pidfd = processes.clone_sibling()
    except OSError as problem:
        if problem.errno == errno.EAGAIN:
            text = (
                "the container's limit on processes (--pids-limit, --ulimit nproc) is reached; no further one can start"
            )
            raise setup.SetupError(text) from problem
        if problem.errno == errno.ENOMEM:  # what fork(2) says of a pid namespace whose PID 1 has ended
            raise setup.SetupError("the container has just ended") from problem
        raise
    if pid:
        socket.send_fds(joined, [b"%d" % pid], [pidfd])
        os._exit(0)
    os.setsid()
    if not detached:
        processes.die_with_parent()
