"""The processes of a running container as the machine sees them in /proc: who they are and what they have used.

A process belongs to a container when it is in the pid namespace of the container's PID 1, whoever started it: that
holds for orphans and for what joined later. Sources: proc(5), pid_namespaces(7), getconf CLK_TCK.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

from nbcontainer._linux.trees import descendants

__all__ = ["Consumption", "Process", "consumption", "processes_of", "table_of"]

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; `pid`, `parent` and `uid` are the machine's, `seconds` are of processor time."""

    pid: int
    parent: int
    uid: int
    state: str
    seconds: float
    started: float
    memory: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """What a container's processes have used: seconds of processor, bytes of memory, bytes read and written.

    `pids` are processes and threads, as a limit on them counts. None is what we may not see.
    """

    seconds: float
    memory: int
    pids: int
    read: int | None
    written: int | None


def processes_of(pid: int) -> list[int]:
    """The processes in the pid namespace of `pid`, a PID 1, without itself; empty when it is gone.

    As a user we may not look at our PID 1 (it is closed to everybody), but at its descendants.
    """
    below = descendants(pid)
    for each in (pid, *sorted(below)):
        namespace = _namespace(each)
        if namespace:
            found = {int(name) for name in os.listdir("/proc") if name.isdigit() and _namespace(int(name)) == namespace}
            return sorted((found | below) - {pid})
    return sorted(below)


def _namespace(pid: int) -> int:
    """The number of a process's pid namespace; 0 when it is gone or may not be looked at."""
    with contextlib.suppress(OSError):
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    return 0


def table_of(pid: int) -> tuple[Process, ...]:
    """The container's processes, without the PID 1 that is ours."""
    return tuple(process for number in processes_of(pid) if (process := _process(number)) is not None)


def _process(pid: int) -> Process | None:
    words = _stat(pid)
    if not words:
        return None
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            uid = next((int(line.split()[1]) for line in file if line.startswith("Uid:")), uid)
        with open(f"/proc/{pid}/cmdline", "rb") as raw:
            command = raw.read(4096).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    return Process(
        pid=pid,
        parent=int(words[2]),
        uid=uid,
        state=words[1],
        seconds=(int(words[12]) + int(words[13])) / _TICK,
        started=int(words[20]) / _TICK,
        memory=int(words[22]) * _PAGE,
        command=command or f"[{words[0]}]",
    )


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the name on; the name may hold anything, parentheses too."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
    except OSError:
        return []
    return [name, *rest.split()]


def consumption(pid: int) -> Consumption:
    """What the container whose PID 1 is `pid` has used, as its processes tell, and their parents of the ended ones."""
    seconds, memory, count = 0.0, 0, 0
    read: int | None = 0
    written: int | None = 0
    for each in (pid, *processes_of(pid)):
        words = _stat(each)
        if not words:
            continue
        seconds += sum(int(word) for word in words[14 if each == pid else 12 : 16]) / _TICK
        if each == pid:  # the interpreter that watches is ours, what it has collected is the container's
            continue
        count += int(words[18])
        memory += _memory(each, int(words[22]))
        moved = _moved(each)
        if moved is None or read is None or written is None:
            read = written = None
        else:
            read, written = read + moved[0], written + moved[1]
    return Consumption(seconds=seconds, memory=memory, pids=count, read=read, written=written)


def _memory(pid: int, resident_pages: int) -> int:
    """A process's own share of memory (Pss), or what is resident where we may not look closer."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return resident_pages * _PAGE


def _moved(pid: int) -> tuple[int, int] | None:
    """Bytes that a process fetched from and sent to storage."""
    try:
        with open(f"/proc/{pid}/io", encoding="ascii") as file:
            fields = dict(line.split(": ") for line in file.read().splitlines())
        return int(fields["read_bytes"]), int(fields["write_bytes"])
    except (OSError, ValueError, KeyError):
        return None
