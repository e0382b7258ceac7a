"""A cgroup file system that needs no kernel: folders with the files a kernel would show, and its rules.

For tests of what makes and fills cgroups, of layouts that the machine at hand does not have. It keeps the rules that
decide whether a place can be used: on v2, controllers are handed down from parent to child, from a cgroup that holds
processes only those for threads, and then to children that no process can enter; a folder is owned by somebody; one
with children or processes cannot be removed.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from nbcontainer._linux.cgroups import Hierarchy

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["FakeCgroups"]

_V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": "9223372036854771712",
        "memory.memsw.limit_in_bytes": "9223372036854771712",
        "memory.soft_limit_in_bytes": "9223372036854771712",
        "memory.max_usage_in_bytes": "0",
        "memory.usage_in_bytes": "0",
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
    },
    "cpu": {"cpu.shares": "1024", "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.events": "max 0"},
    "freezer": {"freezer.state": "THAWED"},
}
_FOR_THREADS = frozenset({"cpu", "cpuset", "pids"})
_V2_FILES = {
    "memory": {
        "memory.max": "max",
        "memory.swap.max": "max",
        "memory.low": "0",
        "memory.current": "0",
        "memory.peak": "0",
        "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0",
    },
    "cpu": {"cpu.max": "max 100000", "cpu.weight": "100", "cpu.stat": "usage_usec 0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.events": "max 0"},
    "io": {"io.stat": ""},
}


@dataclass
class FakeCgroups:
    """One hierarchy below `point`, which must be an empty folder; a `CgroupFiles`.

    `closed` are folders that belong to somebody else, `delegated` those that a service manager has given away;
    `missing` are files this kernel does not have, `rooted` processes that cannot be moved, or (v2) frozen.
    """

    point: str
    version: Literal[1, 2]
    controllers: frozenset[str]
    closed: set[str] = field(default_factory=set)
    delegated: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    rooted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._populate(self.point, self.controllers)
        for name, text in (("cpuset.cpus", "0-3"), ("cpuset.mems", "0")):
            if "cpuset" in self.controllers and self.version == 1:
                self._put(f"{self.point}/{name}", text)

    def hierarchy(self, own: str = "") -> Hierarchy:
        """What a process whose cgroup is `own` sees."""
        return Hierarchy(version=self.version, controllers=self.controllers, point=self.point, own=own)

    def grow(self, path: str, *, enabled: Iterable[str] = (), processes: Iterable[int] = ()) -> str:
        """Make a cgroup that was there before, `enabled` being handed on to its children; return its folder."""
        folder = f"{self.point}{path}"
        self.make(folder)
        if enabled:
            self._put(f"{folder}/cgroup.subtree_control", " ".join(sorted(enabled)))
        self._put(f"{folder}/cgroup.procs", "".join(f"{pid}\n" for pid in processes))
        return folder

    def set(self, path: str, text: str) -> None:
        """Let the kernel have written `text`."""
        self._put(path, text)

    def make(self, path: str) -> None:
        """See `CgroupFiles.make`."""
        parent = os.path.dirname(path)
        self._check(parent)
        os.mkdir(path)
        handed = self.read(f"{parent}/cgroup.subtree_control").split() if self.version == 2 else self.controllers
        self._populate(path, handed)

    def remove(self, path: str) -> None:
        """See `CgroupFiles.remove`."""
        if not os.path.isdir(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        entries = list(os.scandir(path))
        if any(entry.is_dir() for entry in entries) or self.read(f"{path}/cgroup.procs").strip():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
        for entry in entries:
            os.unlink(entry.path)
        os.rmdir(path)

    def read(self, path: str) -> str:
        """See `CgroupFiles.read`."""
        if not os.path.exists(path):
            return ""
        with open(path, encoding="ascii") as file:
            return file.read()

    def has(self, path: str) -> bool:
        """See `CgroupFiles.has`."""
        return os.path.exists(path)

    def is_delegated(self, path: str) -> bool:
        """See `CgroupFiles.is_delegated`."""
        return path in self.delegated

    def write(self, path: str, text: str) -> None:
        """See `CgroupFiles.write`."""
        folder, name = os.path.split(path)
        self._check(folder)
        if not os.path.exists(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if name == "cgroup.subtree_control":
            self._hand_down(folder, text)
        elif name == "cpuset.cpus" and self.version == 1:
            self._narrow(folder, text)
        elif name == "cgroup.freeze":
            self._put(path, text)
            self._freeze(folder, asked=text.strip() == "1")
        elif name == "cgroup.procs":
            if "invalid" in self.read(f"{folder}/cgroup.type"):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), folder)
            self._move(path, text)
        else:
            self._put(path, text)

    def _move(self, path: str, pid: str) -> None:
        """A process is in one cgroup of a tree at a time."""
        if int(pid) in self.rooted:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), path)
        for folder, _, _ in os.walk(self.point):
            there = self.read(f"{folder}/cgroup.procs").splitlines()
            if pid in there:
                there.remove(pid)
                self._put(f"{folder}/cgroup.procs", "".join(f"{each}\n" for each in there))
        self._put(path, f"{self.read(path)}{pid}\n")

    def _freeze(self, folder: str, *, asked: bool) -> None:
        """What was asked and what has come about are two things."""
        frozen = asked and not self.rooted & {int(pid) for pid in self.read(f"{folder}/cgroup.procs").split()}
        self._put(f"{folder}/cgroup.events", f"populated 1\nfrozen {int(frozen)}\n")

    def _check(self, folder: str) -> None:
        if folder in self.closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)

    def _hand_down(self, folder: str, text: str) -> None:
        asked = {word.removeprefix("+") for word in text.split()}
        if not asked <= set(self.read(f"{folder}/cgroup.controllers").split()):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), folder)
        if self._is_busy(folder):  # no internal processes; but threads may compete
            if asked - _FOR_THREADS:
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), folder)
            self._put(f"{folder}/cgroup.type", "domain threaded\n")
        enabled = asked | set(self.read(f"{folder}/cgroup.subtree_control").split())
        self._put(f"{folder}/cgroup.subtree_control", " ".join(sorted(enabled)))
        for entry in os.scandir(folder):
            if entry.is_dir():
                self._populate(entry.path, enabled)
                self._put(f"{entry.path}/cgroup.type", self._type_below(folder))

    def _is_busy(self, folder: str) -> bool:
        return folder != self.point and bool(self.read(f"{folder}/cgroup.procs").strip())

    def _type_below(self, folder: str) -> str:
        above = self.read(f"{folder}/cgroup.type").strip()
        return "domain invalid\n" if above in {"domain threaded", "domain invalid"} else "domain\n"

    def _narrow(self, folder: str, text: str) -> None:
        """A cpuset of v1 holds no less than its children and no more than its parent."""
        wanted = _processors(text)
        children = [_processors(self.read(f"{each.path}/cpuset.cpus")) for each in os.scandir(folder) if each.is_dir()]
        above = folder if folder == self.point else os.path.dirname(folder)
        if not wanted <= _processors(self.read(f"{above}/cpuset.cpus")):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        if any(not child <= wanted for child in children):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), folder)
        self._put(f"{folder}/cpuset.cpus", text)

    def _populate(self, folder: str, controllers: Iterable[str]) -> None:
        files = {"cgroup.procs": ""}
        if self.version == 2:
            files |= {"cgroup.controllers": " ".join(sorted(controllers)), "cgroup.subtree_control": ""}
            if folder != self.point:
                files |= {"cgroup.freeze": "0", "cgroup.type": self._type_below(os.path.dirname(folder))}
        for controller in controllers:
            files |= (_V1_FILES if self.version == 1 else _V2_FILES).get(controller, {})
        for name, text in files.items():
            path = f"{folder}/{name}"
            if name not in self.missing and (not os.path.exists(path) or name == "cgroup.controllers"):
                self._put(path, text)

    @staticmethod
    def _put(path: str, text: str) -> None:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)


def _processors(text: str) -> set[int]:
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found
