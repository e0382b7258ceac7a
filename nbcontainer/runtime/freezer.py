"""Pausing: every process of a container stops where it is, and goes on later as if nothing had been.

On cgroup v2 a switch of every cgroup, on v1 a controller of its own. There, a container gets a cgroup in the freezer's
hierarchy when it is first paused, into which its processes are moved; its supervisor removes it. A process frozen by v1
cannot even be killed, so whoever ends a container lets it go on first. Sources: kernel documentation
cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst ("cgroup.freeze").
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from nbcontainer._linux.cgroups import KernelFiles, controller_of, machine_hierarchies, membership
from nbcontainer._linux.identity import parent_of
from nbcontainer.errors import Conflict, UnsupportedHost
from nbcontainer.runtime.cgroups import PREFIX
from nbcontainer.runtime.groups import ours
from nbcontainer.runtime.inside import processes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer._linux.cgroups import CgroupFiles, Hierarchy

__all__ = ["freeze", "freezer_prefix", "is_paused", "pause", "thaw"]

_PATIENCE = 5.0
_FILES: CgroupFiles = KernelFiles()


def pause(pid: int) -> None:
    """Stop every process of the container whose PID 1 is `pid`; safe twice. Raises `UnsupportedHost`."""
    hierarchy = controller_of(machine_hierarchies(), "freezer")
    if hierarchy is None:
        raise UnsupportedHost("containers cannot be paused here: no cgroup hierarchy has a freezer")
    try:
        if hierarchy.version == 1:
            _pause_v1(pid, hierarchy)
        else:
            _pause_v2(pid, hierarchy)
    except OSError as problem:
        raise UnsupportedHost(f"this container cannot be paused: {problem}") from problem


def _pause_v1(pid: int, hierarchy: Hierarchy) -> None:
    folder = _folder(pid, hierarchy)
    if not os.access(os.path.dirname(folder), os.W_OK):
        raise UnsupportedHost(
            f"containers cannot be paused here: cgroups v1 ({hierarchy.point}) may be written by root only; run as"
            " root, or on a machine with cgroup v2"
        )
    with contextlib.suppress(FileExistsError):
        _FILES.make(folder)
    os.chown(f"{folder}/freezer.state", _uid(_parent(pid)), -1)  # the launcher lets it go on before it ends it
    _FILES.write(f"{folder}/freezer.state", "FROZEN")
    moved: set[int] = set()
    while missing := set(processes_of(pid)) - moved:  # one not yet caught may have forked; a frozen one cannot
        for process in missing:
            with contextlib.suppress(ProcessLookupError):
                _FILES.write(f"{folder}/cgroup.procs", str(process))
        moved |= missing
    _await(lambda: _FILES.read(f"{folder}/freezer.state").strip() == "FROZEN", f"{folder}/freezer.state", "THAWED")


def _await(stands_still: Callable[[], bool], file: str, undo: str, files: CgroupFiles = _FILES) -> None:
    """Wait until it does; when it does not, take it back by writing `undo` and raise `Conflict`."""
    deadline = time.monotonic() + _PATIENCE
    while not stands_still():
        if time.monotonic() > deadline:
            files.write(file, undo)
            raise Conflict("a process of this container is in the middle of something that cannot be paused; try again")
        time.sleep(0.005)


def freezer_prefix(known: tuple[Hierarchy, ...], launcher: str) -> str:
    """What the names of a launcher's paused containers begin with (v1), or "": the pid of each PID 1 follows."""
    hierarchy = controller_of(known, "freezer")
    if hierarchy is None or hierarchy.version == 2:
        return ""
    return f"{hierarchy.places[0]}/{PREFIX}{launcher}-f"


def _folder(pid: int, hierarchy: Hierarchy) -> str:
    """The cgroup of one of them, found by anybody: its launcher is its parent, and both stand in the same place."""
    place = membership(pid, (hierarchy,)).get(hierarchy.point, "")
    return f"{place}/{PREFIX}{_parent(pid)}-f{pid}"


def _parent(pid: int) -> int:
    try:
        return parent_of(pid)
    except (ProcessLookupError, PermissionError):
        return 0


def _uid(pid: int) -> int:
    lines = (line.split() for line in _FILES.read(f"/proc/{pid}/status").splitlines())
    return next((int(words[1]) for words in lines if words[:1] == ["Uid:"]), 0)


def _pause_v2(pid: int, hierarchy: Hierarchy) -> None:
    """On v2, freeze the cgroup in which the container's command lives."""
    folder = _folder_v2(pid, hierarchy)
    if not folder:
        raise UnsupportedHost(
            "this container cannot be paused: it has no cgroup of its own; start Jupyter in a scope of your own:"
            " systemd-run --user --scope -p Delegate=yes jupyter lab"
        )
    freeze(folder)


def freeze(folder: str, files: CgroupFiles = _FILES) -> None:
    """Freeze a cgroup of v2 and wait until it is: the kernel answers before its last process stands still."""
    files.write(f"{folder}/cgroup.freeze", "1")
    events = f"{folder}/cgroup.events"
    _await(lambda: "frozen 1" in files.read(events).splitlines(), f"{folder}/cgroup.freeze", "0", files)


def _folder_v2(pid: int, hierarchy: Hierarchy) -> str:
    for process in processes_of(pid)[:1]:
        return ours(membership(process, (hierarchy,)).get(hierarchy.point, ""))
    return ""


def thaw(pid: int) -> None:
    """Let the container whose PID 1 is `pid` go on; nothing happens to one that is not paused."""
    hierarchy = controller_of(machine_hierarchies(), "freezer")
    if hierarchy is None:
        return
    with contextlib.suppress(OSError):
        if hierarchy.version == 1:
            _FILES.write(f"{_folder(pid, hierarchy)}/freezer.state", "THAWED")
        elif folder := _folder_v2(pid, hierarchy):
            _FILES.write(f"{folder}/cgroup.freeze", "0")


def is_paused(pid: int, known: tuple[Hierarchy, ...] | None = None) -> bool:
    """Whether the container whose PID 1 is `pid` stands still; `known` are the machine's hierarchies."""
    hierarchy = controller_of(machine_hierarchies() if known is None else known, "freezer")
    if hierarchy is None:
        return False
    if hierarchy.version == 1:
        return _FILES.read(f"{_folder(pid, hierarchy)}/freezer.state").strip() in {"FROZEN", "FREEZING"}
    folder = _folder_v2(pid, hierarchy)
    return bool(folder) and _FILES.read(f"{folder}/cgroup.freeze").strip() == "1"
