"""The process that is meant, and no other: a pid by itself may belong to a stranger by the time it is used.

The kernel gives a pid to somebody new once its owner has been collected. So whoever records a process records its
start time too, and whoever wants to signal it opens a pidfd first, compares, and sends through the pidfd.
Sources: pidfd_open(2), pidfd_send_signal(2), proc_pid_stat(5), proc_tid_children(5), pid_namespaces(7).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import select
import signal

from nbcontainer._linux.processes import pidfd_open, read_text

__all__ = [
    "boot_id",
    "first_child",
    "has_ended",
    "hides_processes",
    "is_ending",
    "open_child",
    "open_process",
    "own_pid_namespace",
    "parent_of",
    "pid_of",
    "send_signal",
    "start_time",
]

_START_TIME = 19  # the 22nd field of stat(5), counted from the state
_PARENT = 1
_FLAGS = 6
_EXITING = 0x4  # PF_EXITING
_PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


def start_time(pid: int) -> int:
    """When the process began, in clock ticks since the machine's start; raise `ProcessLookupError`."""
    return int(_stat(pid)[_START_TIME])


def parent_of(pid: int) -> int:
    """The pid of a process's parent; raise `ProcessLookupError`."""
    return int(_stat(pid)[_PARENT])


def pid_of(pidfd: int) -> int:
    """The pid, as we count, of the process behind a pidfd; raise `ProcessLookupError` when it is over and collected."""
    lines = read_text(f"/proc/self/fdinfo/{pidfd}").splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    pid = int(fields.get("Pid", "-1"))
    if pid <= 0:
        raise ProcessLookupError(errno.ESRCH, "the process is over")
    return pid


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on (the name before it may hold anything)."""
    try:
        return read_text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    except FileNotFoundError as problem:
        raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from problem


def own_pid_namespace() -> int:
    """Which pid namespace the pids we see are numbers of."""
    return os.stat("/proc/self/ns/pid").st_ino


def hides_processes(path: str = "/proc/1/stat") -> bool:
    """Whether /proc shows a person's own processes alone (hidepid of proc(5)): a container's are not among them."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, PermissionError):
        return True
    return False


@functools.lru_cache(maxsize=1)
def boot_id() -> str:
    """Which start of the machine this is (random(4), /proc/sys/kernel/random/boot_id); "" where it is not told."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def open_process(pid: int, started: int) -> int:
    """A pidfd of the process with this pid and start time, the caller's to close; raise `ProcessLookupError`.

    What is read from /proc belongs to the process behind the pidfd if that is still alive afterwards, since until
    then its number could not be given away.
    """
    pidfd = _pidfd(pid)
    try:
        same = start_time(pid) == started and not has_ended(pidfd)
    except BaseException:
        os.close(pidfd)
        raise
    if not same:
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, f"process {pid} is not the one that was recorded")
    return pidfd


def _pidfd(pid: int) -> int:
    try:
        return pidfd_open(pid)
    except OSError as problem:
        if problem.errno in {errno.ESRCH, errno.EINVAL}:
            raise ProcessLookupError(errno.ESRCH, f"there is no process {pid}") from problem
        raise


def open_child(parent: int, parent_pidfd: int) -> int:
    """A pidfd of the first of the children that `parent` has, verified; the caller's to close.

    Raises `ProcessLookupError` when it has none, or is not alive any more.
    """
    for _ in range(10):  # the child may be replaced by another while we look
        child = first_child(parent)
        with contextlib.suppress(ProcessLookupError):
            pidfd = _pidfd(child)
            try:
                if parent_of(child) == parent and not has_ended(pidfd) and not has_ended(parent_pidfd):
                    return pidfd
            except BaseException:
                os.close(pidfd)
                raise
            os.close(pidfd)
    raise ProcessLookupError(errno.ESRCH, f"process {parent} has no child that stays")


def first_child(parent: int) -> int:
    """The pid of the oldest child that a process has not collected; raise `ProcessLookupError`.

    The kernel appends those it inherits (orphans), so a first process's own first child comes first.
    """
    try:
        children = read_text(f"/proc/{parent}/task/{parent}/children").split()
    except FileNotFoundError:  # it is gone, or the kernel was built without this file
        children = [str(pid) for pid in _children_by_looking(parent)]
    if not children:
        raise ProcessLookupError(errno.ESRCH, f"process {parent} has no child")
    return int(children[0])


def _children_by_looking(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(ProcessLookupError):
                fields = _stat(int(name))
                if int(fields[_PARENT]) == parent:
                    found.append((int(fields[_START_TIME]), int(name)))
    return [pid for _, pid in sorted(found)]


def has_ended(pidfd: int) -> bool:
    """Whether the process is over, collected or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def is_ending(pid: int) -> bool:
    """Whether a process is on its way out, or gone: a first process takes all others along before it is over."""
    try:
        return bool(int(_stat(pid)[_FLAGS]) & _EXITING)
    except ProcessLookupError:
        return True


def send_signal(pidfd: int, number: int, *, group: bool = False) -> bool:
    """Send a signal to a process, or to the process group that it leads; False when it is over already.

    A process that leads no group gets it alone, and so does every process before Linux 6.9, which cannot name a
    group by a pidfd.
    """
    for flags in (_PROCESS_GROUP, 0) if group else (0,):
        try:
            signal.pidfd_send_signal(pidfd, number, None, flags)
        except OSError as problem:
            if problem.errno not in {errno.ESRCH, errno.EINVAL} or (problem.errno == errno.EINVAL and not flags):
                raise
        else:
            return True
    return False
