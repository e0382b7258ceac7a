"""A process that joins a running container to work on its files: ``python -I -S …/joined.py SOCKET PIDFD MODULES``.

Containers of other notebooks live in user namespaces that our launcher has no say in; whoever owns the namespace, the
person, may enter it (setns(2) with a pidfd, Linux 5.8). It joins the user and mount namespaces and *not* the process
ids: nothing in the container can see it, let alone trace it (CVE-2016-9962, CVE-2022-1227). Its root is then the
container's, it is container root there and nobody elsewhere, and everything it will need is loaded.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import NoReturn

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))

from nbcontainer._linux import processes
from nbcontainer.runtime.child import stage, tasks
from nbcontainer.runtime.child.modules import load
from nbcontainer.runtime.protocol import Failed, ProtocolError, Ready, Task, receive, send

__all__ = ["main"]


def main(channel: socket.socket, pidfd: int, modules: list[str]) -> NoReturn:
    """Join, say so, perform one task, end."""
    load(modules)
    processes.hide_from_tracers()
    try:
        processes.enter_user_namespace(pidfd, further=processes.CLONE_NEWNS)
        os.chdir("/")
        if not stage.is_a_container_root():
            raise OSError("it is just starting")
    except OSError as problem:
        send(channel, Failed("Conflict", str(problem)))
        os._exit(1)
    os.close(pidfd)
    send(channel, Ready())
    try:
        received = receive(channel)
    except ProtocolError:
        received = None
    if received is None or not isinstance(received[0], Task):
        os._exit(1)
    os._exit(tasks.perform(received[0], channel, received[1]))


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3].split(","))
