"""Process trees: who descends from whom, and ending all of one.

Sources: proc_tid_children(5), proc_pid_stat(5), setsid(2). A process that has taken a session of its own after its
parent ended (a daemon) belongs to no tree any more; ending those is what a pid namespace is for.
"""

from __future__ import annotations

import contextlib
import os
import signal

from nbcontainer._linux.identity import open_process, send_signal, start_time
from nbcontainer._linux.processes import pidfd_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

__all__ = ["descendants", "end_tree"]

_ROUNDS = 100
_PARENT, _SESSION = 1, 3  # the fourth and sixth field of stat(5), counted from the state


def descendants(pid: int) -> set[int]:
    """Everything below a process; orphans of a pid namespace are its PID 1's own children."""
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{parent}/children", encoding="ascii") as file:
            children = {int(word) for word in file.read().split()} - found
            found |= children
            waiting += children
    return found


def end_tree(leader: int) -> None:
    """Kill a session's leader, what descends from it and what is in its session.

    They are stopped first, until nobody is found who was not, so that none can fork away between a look and a kill.
    The caller is the leader's parent and has not collected it, so its number cannot be anybody else's.
    """
    held: dict[int, int] = {}  # by number, when each began: there may be more of them than descriptors
    for _ in range(_ROUNDS):
        new = ({leader} | descendants(leader) | _session(leader)) - held.keys()
        if not new:
            break
        for pid in new:
            pidfd = _opened(pid, leader, held.keys() | new)
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    held[pid] = start_time(pid)
                    send_signal(pidfd, signal.SIGSTOP)
                os.close(pidfd)
    for pid, started in sorted(held.items(), key=lambda each: each[0] == leader):  # who sees its end has seen all
        with contextlib.suppress(ProcessLookupError):
            pidfd = open_process(pid, started)
            send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)


def _opened(pid: int, leader: int, family: AbstractSet[int]) -> int:
    """A pidfd of a process that still belongs to the family, the caller's to close; -1 when its number does not."""
    try:
        pidfd = pidfd_open(pid)
    except OSError:
        return -1
    parent, session = _relatives(pid)
    if leader in {pid, session} or parent in family:
        return pidfd
    os.close(pidfd)
    return -1


def _session(leader: int) -> set[int]:
    """The processes in a session, wherever they hang by now."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit() and _relatives(int(name))[1] == leader}


def _relatives(pid: int) -> tuple[int, int]:
    """A process's parent and session; -1 for one that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[_PARENT]), int(fields[_SESSION])
    except (OSError, ValueError, IndexError):
        return -1, -1
