"""What processes hold: memory, descriptors, mounts, cgroups, and the entries of a store.

Memory is told in three ways (proc_pid_smaps(5)): *resident*, where a page shared by two processes counts twice;
*proportional* (PSS), where it counts half for each; *private*, what would come back if the process ended. Sums over
processes are of the last two only.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbcontainer import Engine

__all__ = ["Census", "Memory", "census", "family", "memory", "settled"]

_CALM = 0.3
_PATIENCE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of some processes; `unread` of them would not tell."""

    resident: int = 0
    proportional: int = 0
    private: int = 0
    unread: int = 0


def memory(pids: Iterable[int]) -> Memory:
    """Sum up these processes; one that ended meanwhile holds nothing."""
    resident = proportional = private = unread = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
                fields = dict(line.split(":", 1) for line in file.read().splitlines()[1:])
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            unread += 1
            continue
        sizes = {name: int(text.split()[0]) << 10 for name, text in fields.items()}
        resident += sizes["Rss"]
        proportional += sizes["Pss"]
        private += sizes["Private_Clean"] + sizes["Private_Dirty"]
    return Memory(resident=resident, proportional=proportional, private=private, unread=unread)


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
            parent = int(file.read().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        found.add(each)
        waiting += children.get(each, [])
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What an engine in this process holds, with its launcher; a launcher that is not running holds nothing."""

    descriptors: int
    launcher_descriptors: int
    processes: int
    mounts: int
    launcher_mounts: int
    cgroups: int
    store_entries: int
    engine_memory: Memory
    launcher_memory: Memory

    @property
    def counts(self) -> dict[str, int]:
        """Everything that must come back to what it was."""
        return {
            "fds": self.descriptors,
            "launcher fds": self.launcher_descriptors,
            "processes": self.processes,
            "mounts": self.mounts,
            "launcher mounts": self.launcher_mounts,
            "cgroups": self.cgroups,
            "store": self.store_entries,
        }


def census(engine: Engine) -> Census:
    """Count now."""
    session = engine._session  # noqa: SLF001 - the launcher is nobody's business but a benchmark's
    launcher = session.runtime.pid if session else None
    return Census(
        descriptors=len(os.listdir("/proc/self/fd")),
        launcher_descriptors=len(os.listdir(f"/proc/{launcher}/fd")) if launcher else 0,
        processes=len(family(launcher)) if launcher else 0,
        mounts=_mounts("self"),
        launcher_mounts=_mounts(str(launcher)) if launcher else 0,
        cgroups=_cgroups(launcher) if launcher else 0,
        store_entries=_entries(engine.settings.root),
        engine_memory=memory([os.getpid()]),
        launcher_memory=memory([launcher] if launcher else []),
    )


def settled(engine: Engine, like: Census | None = None) -> Census:
    """Count when nothing changes any more, or `like` is reached: teardown and the next container's room take a moment.

    What never comes back is seen in the counts, after ten seconds.
    """
    deadline = time.monotonic() + _PATIENCE
    last = census(engine)
    while time.monotonic() < deadline:
        time.sleep(_CALM)
        now = census(engine)
        if now.counts == last.counts and (like is None or now.counts == like.counts):
            return now
        last = now
    return last


def _mounts(process: str) -> int:
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return file.read().count(b"\n")


def _cgroups(launcher: int) -> int:
    """Folders of this launcher in every hierarchy: its own, and one for each container in it."""
    own = f"/nbcontainer-{launcher}"
    return sum(own in top for top, _, _ in os.walk("/sys/fs/cgroup"))


def _entries(root: str) -> int:
    """Files and folders of the store that are its own; what lies in layers and containers is not entered."""
    found = 0
    for top, folders, files in os.walk(root):
        found += len(folders) + len(files)
        if os.path.dirname(top) == root:
            folders.clear()
    return found
