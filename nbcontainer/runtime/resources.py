"""What a running container holds beside its processes, how it is given back, and what a guest may know of it.

Its group of cgroups when it has limits of its own, and what `update` and `pause` may have added meanwhile, from
another notebook perhaps.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from nbcontainer._linux.cgroups import KernelFiles, remove_cgroup
from nbcontainer.runtime.freezer import thaw
from nbcontainer.runtime.groups import Verdict, group_of, late_folders

if TYPE_CHECKING:
    from nbcontainer._linux.cgroups import Hierarchy
    from nbcontainer.runtime.groups import Group

__all__ = ["Borrowed", "Held", "Resources"]

_PATIENCE_MS = 5000
_LEAVING = 2.0


class Held(Protocol):
    """What stands behind a connection beside the process."""

    def verdict(self, refused: int = 0) -> Verdict:
        """What limits have done so far; `refused` is what the container says of the limit that every one has."""

    def look(self, pid: int) -> None:
        """Look once more before all of it is ended at once: then nobody tells what its limits did."""

    def thaw(self, pid: int) -> None:
        """Let the container go on if it is paused; `pid` is the connection's process."""

    def release(self, pid: int | None, pidfd: int) -> None:
        """Give back what is ours when the process is gone."""


class Borrowed:
    """A container's resources as a guest has them: looked at, and nobody's to give back.

    `group` is that of its own command, `first` its PID 1.
    """

    def __init__(self, group: Group, first: int) -> None:
        self._first = first
        self._group = group
        self._before = self._group.counts()

    def verdict(self, refused: int = 0) -> Verdict:
        """What the limits have done since the guest came."""
        if self._group.counts() == self._before:
            return Verdict()
        now, (kills, refused) = self._group.verdict(), self._before
        return replace(now, oom_kills=max(0, now.oom_kills - kills), pids_refused=max(0, now.pids_refused - refused))

    def look(self, pid: int) -> None:
        """Do nothing: the container stays."""

    def thaw(self, pid: int) -> None:  # noqa: ARG002 - the guest's; it is the container that is paused
        """Let the container go on: a frozen guest cannot be signalled."""
        thaw(self._first)

    def release(self, pid: int | None, pidfd: int) -> None:
        """Do nothing: nothing is the guest's."""


class Resources:
    """One container's, for whoever supervises it.

    `known` are the hierarchies in which something may be, `freezer` begins the name of its cgroup while it is paused,
    `pids_limit` is the limit on processes that every container has.
    """

    def __init__(
        self, group: Group | None, known: tuple[Hierarchy, ...], freezer: str = "", *, pids_limit: int | None = None
    ) -> None:
        self._group = group
        self._known = known
        self._freezer = freezer
        self._pids_limit = pids_limit
        self._refused = 0

    def verdict(self, refused: int = 0) -> Verdict:
        """What its limits have done so far: those of its own, and the one on processes that it has anyway."""
        verdict = self._group.verdict() if self._group else Verdict()
        refused = refused or self._refused
        if verdict.pids_refused or not refused:
            return verdict
        return replace(verdict, pids_refused=refused, pids_limit=self._pids_limit)

    def look(self, pid: int) -> None:
        """Count what the limit on processes has refused, while its cgroup is still there."""
        self._refused = group_of(pid, self._known).verdict().pids_refused

    def thaw(self, pid: int) -> None:
        """Let it go on if it is paused: before it is signalled, before it is ended."""
        thaw(pid)

    def release(self, pid: int | None, pidfd: int) -> None:
        """Remove its cgroups when its last process is gone. It has been told to end; `pidfd` tells when it has."""
        late = [] if pid is None else [folder for folder in self._late(pid) if os.path.isdir(folder)]
        if not late and self._group is None:
            return
        for folder in late:
            with contextlib.suppress(OSError):
                KernelFiles().write(f"{folder}/freezer.state", "THAWED")
        if pidfd >= 0:
            end = select.poll()
            end.register(pidfd, select.POLLIN)
            end.poll(_PATIENCE_MS)
        if self._group is not None:
            self._group.remove()
            self._group = None
        deadline = time.monotonic() + _LEAVING
        for folder in late:  # the door of its visitors may still be on its way out
            while not remove_cgroup(folder, KernelFiles()) and time.monotonic() < deadline:
                time.sleep(0.002)

    def _late(self, pid: int) -> tuple[str, ...]:
        return (*late_folders(pid, self._known), *([f"{self._freezer}{pid}"] if self._freezer else []))
