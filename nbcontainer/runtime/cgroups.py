"""A launcher's own cgroup: given to container root, so that the launcher can make a leaf per container in it.

It is for the limit on processes that always holds. Where no hierarchy is writable (an ordinary user without
delegation) there is none, and `%container doctor` says so. What belongs to one container with limits of its own is in
`nbcontainer.runtime.groups`.

Names begin with the pid of whoever answers for them, so that what a killed engine left can be swept. Sources:
cgroups(7), kernel documentation cgroup-v1/{pids,freezer-subsystem}.rst and cgroup-v2.rst "Delegation".
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from nbcontainer._linux.cgroups import (
    CgroupRefusal,
    KernelFiles,
    controller_of,
    machine_hierarchies,
    make_cgroup,
    remove_cgroup,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbcontainer._linux.cgroups import Hierarchy

__all__ = ["PREFIX", "make_subtree", "remove_subtree", "sweep"]

PREFIX = "nbcontainer-"
_PATIENCE = 0.5


def make_subtree(name: str, uid: int, gid: int) -> str:
    """Make ``nbcontainer-NAME`` for a launcher and give it to `uid`; return its path, or "" where none can be made."""
    known = machine_hierarchies()
    hierarchy = controller_of(known, "pids")
    if hierarchy is None:
        return ""
    try:
        path = make_cgroup(hierarchy, PREFIX + name, frozenset({"pids"}), KernelFiles())
    except CgroupRefusal:
        return ""
    for entry in ("", "/cgroup.procs", "/tasks", "/cgroup.threads", "/cgroup.subtree_control"):
        with contextlib.suppress(FileNotFoundError):
            os.chown(path + entry, uid, gid)
    return path


def remove_subtree(path: str) -> None:
    """Remove a subtree whose processes are going; what is still busy after a moment stays for the next sweep."""
    deadline = time.monotonic() + _PATIENCE
    while not remove_cgroup(path, KernelFiles()) and time.monotonic() < deadline:
        time.sleep(0.002)


def sweep(known: Iterable[Hierarchy] | None = None) -> None:
    """Remove cgroups whose owner, named by its pid, is gone (it was killed and could not)."""
    for hierarchy in machine_hierarchies() if known is None else known:
        for place in hierarchy.places if hierarchy.version == 2 else hierarchy.places[:1]:
            with contextlib.suppress(OSError):
                for entry in os.scandir(place):
                    owner = entry.name.removeprefix(PREFIX).partition("-")[0]
                    if entry.name.startswith(PREFIX) and owner.isdigit() and not _is_alive(owner):
                        _sweep(entry.path, frozen="freezer" in hierarchy.controllers)


def _sweep(path: str, *, frozen: bool) -> None:
    if frozen:  # a frozen process of v1 cannot even be killed
        with contextlib.suppress(OSError):
            KernelFiles().write(f"{path}/freezer.state", "THAWED")
    if not _has_processes(path):
        remove_cgroup(path, KernelFiles())


def _is_alive(pid: str) -> bool:
    """Whether a process runs; one that has ended and was not collected yet (a zombie) does not."""
    with (
        contextlib.suppress(OSError, IndexError),
        open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file,
    ):
        return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


def _has_processes(path: str) -> bool:
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            if file.read(1):
                return True
    return False
