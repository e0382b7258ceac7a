"""The clerk: the launcher's child that works on files, so that the launcher itself stays small.

What a launcher has in memory it hands on to every process of every container, so it loads nothing that only tasks
need. The clerk does, in its own memory and beside the launcher's other preparations. It is forked while the
interpreter's files are still in reach, joins the launcher's namespaces when they are complete, and then forks a process
for each `Task`, and the *janitor*, which removes the writable layers of ended containers.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import time

from nbcontainer._linux import processes
from nbcontainer.runtime.child import modules
from nbcontainer.runtime.protocol import ProtocolError, Task, receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NoReturn

__all__ = ["Clerk", "start"]

_TASKS = "nbcontainer.runtime.child.tasks"
_JOINED = b"joined"
_MOMENT = 0.002


class Clerk:
    """The launcher's hold on its clerk."""

    def __init__(self, pid: int, requests: socket.socket, removals: socket.socket) -> None:
        self.pid = pid
        self._requests = requests
        self._removals = removals

    def join(self, leaf: str) -> None:
        """Have it enter our namespaces, current directory and, where there is one, cgroup; raise `OSError` if not."""
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            socket.send_fds(self._requests, [b"." + os.fsencode(leaf)], [here])
        finally:
            os.close(here)
        answer = self._requests.recv(4096)
        if answer != _JOINED:
            raise OSError(
                f"the process that works on files cannot join: {answer.decode(errors='replace') or 'it died'}"
            )

    def hand(self, request: Task, fds: list[int]) -> None:
        """Have a task performed; its result goes to the control socket, the first of `fds`."""
        send(self._requests, request, tuple(fds))

    def discard(self, folder: str) -> None:
        """Have a folder removed, whoever owns what is in it."""
        with contextlib.suppress(OSError):
            self._removals.send(os.fsencode(folder))

    def close(self) -> None:
        """Let go: it ends, the janitor when its work is done."""
        self._requests.close()
        self._removals.close()


def start(names: Iterable[str], channel: socket.socket, *others: int) -> Clerk:
    """Fork a clerk for tasks of these modules; it waits for `Clerk.join`.

    It lets go of the launcher's `channel`: whoever kept that open would keep the engine from hearing of our end. So it
    does of `others`, descriptors that are the launcher's alone.
    """
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    removals, taken = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        taken.close()
        return Clerk(pid, requests, removals)
    try:
        for ours in (channel, requests, removals):
            ours.close()
        for fd in others:
            os.close(fd)
        _serve(theirs, taken, names)
    finally:
        os._exit(1)


def _serve(requests: socket.socket, removals: socket.socket, names: Iterable[str]) -> NoReturn:
    parent = os.getppid()
    modules.load((_TASKS, "shutil", *names))
    message, fds, _, _ = socket.recv_fds(requests, 4096, 1)
    if not message:
        os._exit(0)
    try:
        _join(parent, fds[0], os.fsdecode(message[1:]))
    except OSError as problem:
        requests.send(str(problem).encode(errors="replace")[:4000])
        os._exit(1)
    requests.send(_JOINED)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    if os.fork() == 0:
        requests.close()
        _tidy(removals)
    removals.close()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # of its children nobody wants to hear (wait(2), "NOTES")
    while True:
        try:
            received = receive(requests)
        except ProtocolError:
            continue
        if received is None:
            _leave(parent)
        request, fds = received
        if isinstance(request, Task) and fds:
            _perform(request, fds, requests)
        for fd in fds:
            os.close(fd)


def _join(launcher: int, here: int, leaf: str) -> None:
    pidfd = processes.pidfd_open(launcher)
    processes.enter_user_namespace(pidfd, further=processes.CLONE_NEWNS)
    os.close(pidfd)
    os.fchdir(here)
    os.close(here)
    if leaf:
        processes.write_text(f"{leaf}/cgroup.procs", "0")


def _leave(launcher: int) -> NoReturn:
    """End when tasks and janitor have, if the launcher ends in good order; at once, tasks with us, if it was killed."""
    with contextlib.suppress(ChildProcessError):
        while os.getppid() == launcher:  # of one that was killed, descriptors are closed a moment before that changes
            os.waitpid(-1, os.WNOHANG)
            time.sleep(_MOMENT)
    os._exit(0)


def _perform(request: Task, fds: list[int], requests: socket.socket) -> None:
    if os.fork():
        return
    status = 1
    try:
        processes.die_with_parent()
        processes.on_signals(signal.SIGCHLD)
        requests.close()
        with socket.socket(fileno=fds[0]) as control:
            status = sys.modules[_TASKS].perform(request, control, fds[1:])
    finally:
        os._exit(status)


def _tidy(removals: socket.socket) -> NoReturn:
    """The janitor's life: remove the folders it is told of, until the launcher is gone."""
    shutil = sys.modules["shutil"]
    sys.setrecursionlimit(20_000)
    while path := removals.recv(4096):
        with contextlib.suppress(OSError):
            shutil.rmtree(os.fsdecode(path), ignore_errors=True)
    os._exit(0)
