"""What running containers use, and holding them still or to other limits: of any notebook of this user.

Everything is asked of the kernel at that moment, by the pid of a container's PID 1, which its record has: its cgroups
where it has some, its processes' own accounts where it has none. So an answer is right whoever started the container,
and whoever has changed its limits since.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from nbcontainer._linux.cgroups import machine_hierarchies
from nbcontainer.engine.lifecycle import check_visible
from nbcontainer.engine.views import ContainerProcess, ContainerUsage
from nbcontainer.errors import Conflict, InvalidOption
from nbcontainer.model import Limits
from nbcontainer.runtime import freezer
from nbcontainer.runtime.groups import change_limits, group_of
from nbcontainer.runtime.inside import consumption, processes_of, table_of
from nbcontainer.runtime.limits import check_limits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from nbcontainer._linux.cgroups import Hierarchy
    from nbcontainer.engine.records import Stored
    from nbcontainer.model import IdMap
    from nbcontainer.runtime.inside import Consumption

__all__ = ["change", "held_still", "pause", "paused", "processes", "running_pid", "unpause", "usage"]

_BETWEEN = 0.5
"""Seconds between the two looks from which the use of the processor is told."""


def running_pid(stored: Stored) -> int:
    """The pid of a running container's PID 1; raise `Conflict` for one that does not run (yet)."""
    if not stored.locked:
        raise Conflict(f"container {_name(stored)} is not running; `%container ps` lists those that are")
    pid = stored.fields.get("pid")
    if not isinstance(pid, int) or not os.path.exists(f"/proc/{pid}"):
        check_visible(stored)
    if not isinstance(pid, int):
        raise Conflict(f"container {_name(stored)} is just starting; try again")
    return pid


def _name(stored: Stored) -> str:
    return str(stored.fields.get("name") or stored.id[:12])


# --- looking --------------------------------------------------------------------------------------------------------


def usage(containers: Iterable[Stored]) -> tuple[ContainerUsage, ...]:
    """What each of these uses now; those that end meanwhile are left out."""
    known = machine_hierarchies()
    started = time.monotonic()
    first = [(stored, running_pid(stored)) for stored in containers]
    before = [(stored, pid, consumption(pid)) for stored, pid in first]
    if before:
        time.sleep(_BETWEEN)
    found = []
    for stored, pid, earlier in before:
        now = consumption(pid)
        passed = time.monotonic() - started
        if now.pids:
            found.append(_usage(stored, pid, known, now, (now.seconds - earlier.seconds) / passed))
    return tuple(found)


def _usage(stored: Stored, pid: int, known: tuple[Hierarchy, ...], now: Consumption, share: float) -> ContainerUsage:
    inside = processes_of(pid)
    group = group_of(inside[0] if inside else pid, known)
    memory = group.memory()
    return ContainerUsage(
        id=stored.id,
        name=str(stored.fields.get("name", "")),
        image=str(stored.fields.get("image", "")),
        cpu=max(0.0, share) * 100,
        memory=now.memory if memory is None else memory,
        memory_limit=group.memory_limit(),
        pids=now.pids,
        pids_limit=group.pids_limit(),
        read=now.read,
        written=now.written,
    )


def processes(stored: Stored, id_map: IdMap) -> tuple[ContainerProcess, ...]:
    """The processes of a running container, with users as it counts them."""
    return tuple(
        ContainerProcess(
            pid=each.pid,
            parent=each.parent,
            user=_inside(each.uid, id_map),
            state=each.state,
            seconds=each.seconds,
            memory=each.memory,
            command=each.command,
        )
        for each in table_of(running_pid(stored))
    )


def _inside(uid: int, id_map: IdMap) -> int | None:
    """The id inside for one of the machine's; None for one that the container does not have."""
    for ids in id_map.uids:
        if ids.outside <= uid < ids.outside + ids.length:
            return uid - ids.outside + ids.inside
    return None


# --- holding --------------------------------------------------------------------------------------------------------


def pause(stored: Stored) -> None:
    """Stop every process of a running container where it is; raise `Conflict` when it stands still already."""
    pid = running_pid(stored)
    if freezer.is_paused(pid):
        raise Conflict(f"container {_name(stored)} is paused already")
    freezer.pause(pid)


def unpause(stored: Stored) -> None:
    """Let a paused container go on."""
    pid = running_pid(stored)
    if not freezer.is_paused(pid):
        raise Conflict(f"container {_name(stored)} is not paused")
    freezer.thaw(pid)


@contextlib.contextmanager
def held_still(stored: Stored) -> Iterator[None]:
    """Pause a running container for a while; one that is paused already stays so afterwards."""
    pid = running_pid(stored)
    if freezer.is_paused(pid):
        yield
        return
    freezer.pause(pid)
    try:
        yield
    finally:
        freezer.thaw(pid)


def paused(pids: Sequence[int]) -> frozenset[int]:
    """Which of the containers with these PID 1s stand still."""
    known = machine_hierarchies() if pids else ()
    return frozenset(pid for pid in pids if freezer.is_paused(pid, known))


def change(stored: Stored, limits: Limits, processors: frozenset[int]) -> None:
    """Hold a running container to other limits; what is not named stays as it is.

    Raises `InvalidOption` for limits that cannot be, `UnsupportedHost` for one that cannot be kept.
    """
    if limits == Limits():
        raise InvalidOption("update changes nothing without a limit; give for example --memory 512m or --cpus 1.5")
    check_limits(limits, processors)
    pid = running_pid(stored)
    inside = processes_of(pid)
    if not inside:
        raise Conflict(f"container {_name(stored)} is just starting or ending; try again")
    change_limits(pid, inside, limits, machine_hierarchies())
