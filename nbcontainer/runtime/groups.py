"""The cgroups of one container that was given limits: made before it starts, read when it has ended, then removed.

A group has one folder per hierarchy that it needs (one in all on v2), each with a leaf in which the container lives.
They are made and owned by the engine, not by container root. The container's command enters them itself, through
descriptors that travel with the request, before it does anything else; PID 1 stays outside, so that the kernel's
out-of-memory killer finds only what the person asked to run.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nbcontainer._linux.cgroups import (
    INSIDE,
    CgroupRefusal,
    KernelFiles,
    controller_of,
    hand_down,
    make_cgroup,
    membership,
    refusal,
    remove_cgroup,
)
from nbcontainer.errors import UnsupportedHost
from nbcontainer.runtime.cgroups import PREFIX
from nbcontainer.runtime.limits import OPTIONS, Setting, binary_size, controllers_asked, parse_cpu_list, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nbcontainer._linux.cgroups import CgroupFiles, Hierarchy
    from nbcontainer.model import ContainerId, Limits

__all__ = [
    "Group",
    "Verdict",
    "change_limits",
    "entrances_to",
    "group_in",
    "group_of",
    "late_folders",
    "make_group",
    "open_controller",
    "places_in",
]

_PATIENCE = 2.0
_NO_LIMIT = 1 << 60
"""From here on a limit on memory of v1 is none: the kernel shows its largest number, rounded to pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the limits did: processes killed for memory, the most memory used, processes refused; and the limits."""

    oom_kills: int = 0
    peak: int | None = None
    memory_limit: int | None = None
    pids_refused: int = 0
    pids_limit: int | None = None


class Group:
    """One container's folders by controller; several controllers share one on v2."""

    def __init__(self, folders: Mapping[str, tuple[str, Hierarchy]], files: CgroupFiles) -> None:
        self._folders = dict(folders)
        self._files = files

    def add(self, controller: str, folder: str, hierarchy: Hierarchy) -> None:
        """Note that a controller holds in `folder`."""
        self._folders[controller] = (folder, hierarchy)

    @property
    def controllers(self) -> frozenset[str]:
        """The controllers that hold here."""
        return frozenset(self._folders)

    @property
    def folders(self) -> tuple[str, ...]:
        """Each folder once."""
        return tuple(dict.fromkeys(folder for folder, _ in self._folders.values()))

    def folder(self, controller: str) -> str:
        """The folder of a controller, or "" where it does not hold."""
        return self._folders[controller][0] if controller in self._folders else ""

    def entrances(self) -> list[int]:
        """A descriptor for each folder: a process that writes ``0`` there moves itself in. The caller's to close."""
        fds: list[int] = []
        try:
            for folder in self.folders:
                fds.append(os.open(f"{folder}/{INSIDE}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        return fds

    def apply(self, limits: Limits) -> None:
        """Write the limits of the controllers that hold here; raise `UnsupportedHost` for one the kernel refuses.

        What depends on another (swap on memory) is tried again after it.
        """
        waiting = [
            (setting, *self._folders[setting.controller])
            for version in (1, 2)
            for setting in settings(limits, version)
            if setting.controller in self._folders and self._folders[setting.controller][1].version == version
        ]
        again = []
        for setting, folder, hierarchy in waiting:
            if setting.optional and not self._files.has(f"{folder}/{setting.file}"):
                continue
            try:
                self._write(setting, folder, hierarchy)
            except OSError:
                again.append((setting, folder, hierarchy))
        for setting, folder, hierarchy in again:
            try:
                self._write(setting, folder, hierarchy)
            except OSError as problem:
                raise UnsupportedHost(self._refused(setting, folder, problem)) from problem

    def _write(self, setting: Setting, folder: str, hierarchy: Hierarchy) -> None:
        if setting.file == "cpuset.cpus" and hierarchy.version == 1:
            self._write_processors(folder, setting.value)
            return
        self._files.write(f"{folder}/{setting.file}", setting.value)
        if hierarchy.version == 2:  # a program that looks up its own limit (a JVM does) finds it where it is
            with contextlib.suppress(OSError):
                self._files.write(f"{folder}/{INSIDE}/{setting.file}", setting.value)

    def _write_processors(self, folder: str, wanted: str) -> None:
        """On v1 a leaf may never have what its parent has not: widen the parent, set the leaf, narrow the parent."""
        leaf = f"{folder}/{INSIDE}"
        now = self._files.read(f"{leaf}/cpuset.cpus").strip()
        both = sorted(parse_cpu_list(wanted) | (parse_cpu_list(now) if now else frozenset()))
        self._files.write(f"{folder}/cpuset.cpus", ",".join(map(str, both)))
        self._files.write(f"{leaf}/cpuset.cpus", wanted)
        self._files.write(f"{folder}/cpuset.cpus", wanted)

    def _refused(self, setting: Setting, folder: str, problem: OSError) -> str:
        option = OPTIONS[setting.controller]
        if setting.file.startswith(("memory.memsw", "memory.swap")):
            option = "--memory-swap"
            if problem.errno == errno.ENOENT:
                return "--memory-swap cannot be kept here: this kernel does not count swap; boot it with swapaccount=1"
        if problem.errno == errno.EBUSY and setting.controller == "memory":
            used = self._files.read(f"{folder}/memory.usage_in_bytes").strip()
            now = f" ({binary_size(int(used))})" if used.isdigit() else ""
            return f"--memory {setting.value} is less than the container uses now{now}, and that cannot be taken away"
        return (
            f"{option} cannot be kept here: the kernel refused {setting.value!r} in {folder}/{setting.file}"
            f" ({problem.strerror}); see what its parent cgroup allows"
        )

    def counts(self) -> tuple[int, int]:
        """How often it was out of memory, and how often a process was refused, so far."""
        memory, pids = self.folder("memory"), self.folder("pids")
        kills = sum(self._counter(f"{memory}/{file}", "oom_kill") for file in _OOM_FILES) if memory else 0
        refused = max((self._counter(f"{pids}/{file}", "max") for file in _PIDS_FILES), default=0) if pids else 0
        return kills, refused

    def verdict(self) -> Verdict:
        """What the limits have done so far."""
        kills, refused = self.counts()
        return Verdict(
            oom_kills=kills,
            peak=self.peak(),
            memory_limit=self.memory_limit(),
            pids_refused=refused,
            pids_limit=self.pids_limit(),
        )

    def peak(self) -> int | None:
        """The most memory used at once, in bytes; None where nobody has counted."""
        return self._number("memory", "memory.peak", "memory.max_usage_in_bytes")

    def memory(self) -> int | None:
        """The memory in use, without what is only kept as long as nobody needs the room (docker counts so too)."""
        used = self._number("memory", "memory.current", "memory.usage_in_bytes")
        path = f"{self.folder('memory')}/memory.stat"
        idle = self._counter(path, "total_inactive_file") or self._counter(path, "inactive_file")
        return None if used is None else max(0, used - idle)

    def memory_limit(self) -> int | None:
        """The limit on memory as it is now, in bytes; None for none."""
        limit = self._number("memory", "memory.max", "memory.limit_in_bytes")
        return limit if limit is not None and limit < _NO_LIMIT else None

    def pids_limit(self) -> int | None:
        """The limit on processes and threads as it is now; None for none."""
        return self._number("pids", "pids.max")

    def _number(self, controller: str, *files: str) -> int | None:
        folder = self.folder(controller)
        for file in files if folder else ():
            text = self._files.read(f"{folder}/{file}").strip()
            if text.isdigit():
                return int(text)
        return None

    def _counter(self, path: str, name: str) -> int:
        for line in self._files.read(path).splitlines():
            word, _, value = line.partition(" ")
            if word == name and value.strip().isdigit():
                return int(value)
        return 0

    def remove(self) -> None:
        """Remove the folders; waits a moment for processes that are on their way out. Safe twice."""
        deadline = time.monotonic() + _PATIENCE
        for folder in self.folders:
            while not remove_cgroup(folder, self._files) and time.monotonic() < deadline:
                time.sleep(0.002)


_OOM_FILES = ("memory.events", "memory.oom_control", f"{INSIDE}/memory.oom_control")
_PIDS_FILES = ("pids.events", f"{INSIDE}/pids.events")


def make_group(
    container: ContainerId,
    limits: Limits,
    known: tuple[Hierarchy, ...],
    *,
    pids: int | None,
    always: frozenset[str] = frozenset(),
    files: CgroupFiles | None = None,
) -> Group | None:
    """Make and fill what these limits need; None when they need nothing.

    `pids` is the limit on processes that holds anyway (None: there is none); `always` are controllers wanted in any
    case, where they can be had.
    Raises `UnsupportedHost` naming the option, the cause and the fix; then nothing is left behind.
    """
    if pids is None and limits.pids == -1:  # there is none, and none is what was asked for
        limits = replace(limits, pids=None)
    asked = controllers_asked(limits)
    files = files or KernelFiles()
    name = f"{PREFIX}{os.getpid()}-{container[:12]}"
    group = Group({}, files)
    try:
        for hierarchy, controllers in _by_hierarchy(asked, always, known).items():
            try:
                folder = make_cgroup(hierarchy, name, controllers, files, leaf=INSIDE)
            except CgroupRefusal as problem:
                if not controllers & asked:
                    continue
                raise UnsupportedHost(_cannot_keep(controllers & asked, problem)) from problem
            for controller in controllers:
                group.add(controller, folder, hierarchy)
        if not group.controllers:
            return None
        group.apply(limits if limits.pids is not None else replace(limits, pids=pids))
    except BaseException:
        group.remove()
        raise
    return group


def _by_hierarchy(
    asked: frozenset[str], always: frozenset[str], known: tuple[Hierarchy, ...]
) -> dict[Hierarchy, frozenset[str]]:
    """Which controllers are wanted of which hierarchy; on v2 also the limit on processes, which the move leaves."""
    found: dict[Hierarchy, frozenset[str]] = {}
    for controller in sorted(asked | always):
        hierarchy = controller_of(known, controller)
        if hierarchy is None:
            if controller in asked:
                raise UnsupportedHost(_cannot_keep({controller}, _missing(controller)))
            continue
        found[hierarchy] = found.get(hierarchy, frozenset()) | {controller}
    return {
        hierarchy: controllers | ({"pids"} & hierarchy.controllers if hierarchy.version == 2 else frozenset())
        for hierarchy, controllers in found.items()
    }


def _missing(controller: str) -> CgroupRefusal:
    boot = "; boot it with cgroup_enable=memory" if controller == "memory" else ""
    return CgroupRefusal(
        f"there is no {controller} controller: the kernel has none, or it is not mounted below /sys/fs/cgroup",
        f"see `%container doctor`{boot}",
    )


def _cannot_keep(controllers: frozenset[str] | set[str], problem: CgroupRefusal) -> str:
    options = " and ".join(OPTIONS[each] for each in sorted(controllers))
    return f"{options} cannot be kept here: {problem.cause}; {problem.fix}"


# --- containers that run already -------------------------------------------------------------------------------------


def group_of(pid: int, known: tuple[Hierarchy, ...], files: CgroupFiles | None = None) -> Group:
    """The group in which a process lives, as the kernel tells it; one without controllers when it lives in none."""
    return group_in(membership(pid, known), known, files)


def group_in(member: Mapping[str, str], known: tuple[Hierarchy, ...], files: CgroupFiles | None = None) -> Group:
    """The same for who is known to be a `member` of these cgroups."""
    files = files or KernelFiles()
    group = Group({}, files)
    for hierarchy in known:
        folder = ours(member.get(hierarchy.point, ""))
        if folder:
            on_v2 = files.read(f"{folder}/cgroup.controllers").split() if hierarchy.version == 2 else ()
            for controller in on_v2 or hierarchy.controllers:
                group.add(controller, folder, hierarchy)
    return group


def places_in(member: Mapping[str, str]) -> list[str]:
    """The folders of this package's cgroups among those of a member, sorted; none for a process that is over."""
    return sorted({folder for folder in member.values() if ours(folder)})


def entrances_to(places: Sequence[str]) -> list[int]:
    """A descriptor for each of these cgroups: the way to join them.

    The caller's to close. Raises `UnsupportedHost` for one that we may not send processes to.
    """
    fds: list[int] = []
    try:
        for folder in places:
            fds.append(os.open(f"{folder}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as problem:
        for fd in fds:
            os.close(fd)
        raise UnsupportedHost(
            f"the container's cgroup {folder} cannot be joined ({problem.strerror}), and without it its limits would"
            " not hold; see `%container doctor`"
        ) from problem
    return fds


def ours(folder: str) -> str:
    """The folder of this package in which a process of a container is limited, or ""."""
    if os.path.basename(folder) == INSIDE:
        folder = os.path.dirname(folder)
    names = (os.path.basename(folder), os.path.basename(os.path.dirname(folder)))
    return folder if any(name.startswith(PREFIX) for name in names) else ""


def late_folders(pid: int, known: tuple[Hierarchy, ...]) -> tuple[str, ...]:
    """Where `change_limits` may have made folders for the container whose PID 1 is `pid`."""
    name = _late_name(pid)
    movable = (each for each in known if each.version == 1 and {"cpu", "cpuset"} & each.controllers)
    return tuple(f"{each.places[0]}/{name}" for each in movable)


def _late_name(pid: int) -> str:
    return f"{PREFIX}{pid}-late"


def change_limits(
    pid: int, processes: list[int], limits: Limits, known: tuple[Hierarchy, ...], files: CgroupFiles | None = None
) -> None:
    """Change the limits of a running container: `pid` is its PID 1, `processes` are its others.

    Time and processors can be limited even when nothing was asked at the start: its processes are moved (v1), or the
    controller is handed down (v2). Memory cannot: what was used before would belong to somebody else. Raises
    `UnsupportedHost` naming the option.
    """
    files = files or KernelFiles()
    group = group_of(processes[0], known, files)
    for controller in sorted(controllers_asked(limits) - group.controllers):
        hierarchy = controller_of(known, controller)
        try:
            _refuse_late(controller, hierarchy)
            assert hierarchy is not None
            if hierarchy.version == 2:
                folder = ours(membership(processes[0], (hierarchy,)).get(hierarchy.point, ""))
                open_controller(controller, folder, hierarchy, files)
                group.add(controller, folder, hierarchy)
            else:
                group.add(controller, _move(pid, processes, controller, hierarchy, files), hierarchy)
        except CgroupRefusal as problem:
            raise UnsupportedHost(_cannot_keep({controller}, problem)) from problem
    group.apply(limits)


def _refuse_late(controller: str, hierarchy: Hierarchy | None) -> None:
    """Raise for what cannot be limited any more when a container runs."""
    if hierarchy is None:
        raise _missing(controller)
    if controller == "memory":
        raise CgroupRefusal(
            "the container was started without it, so what it has used is not counted apart",
            "start it with --memory, of any size, to change it later",
        )
    if controller == "pids" and hierarchy.version == 1:
        raise CgroupRefusal("no cgroup counts this container's processes", "start it with --pids-limit")


def open_controller(controller: str, folder: str, hierarchy: Hierarchy, files: CgroupFiles) -> None:
    """Hand a controller of v2 down to `folder`, in which a container of the pool lives; raises `CgroupRefusal`."""
    if not folder:
        raise CgroupRefusal("the container has no cgroup of its own", f"start it with {OPTIONS[controller]}")
    chain = [os.path.dirname(folder)]
    if os.path.basename(chain[0]).startswith(PREFIX):
        chain.insert(0, os.path.dirname(chain[0]))
    try:
        for each in chain:
            hand_down(hierarchy, each, frozenset({controller}), files)
    except OSError as problem:
        raise refusal(hierarchy, frozenset({controller}), [(problem, each)]) from problem


def _move(pid: int, processes: list[int], controller: str, hierarchy: Hierarchy, files: CgroupFiles) -> str:
    """Make a group (v1) where the container is now, and move its processes there."""
    here = membership(processes[0], (hierarchy,)).get(hierarchy.point, hierarchy.point)
    at_container = replace(hierarchy, own=here[len(hierarchy.point) :])
    folder = make_cgroup(at_container, _late_name(pid), frozenset({controller}), files, leaf=INSIDE)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            files.write(f"{folder}/{INSIDE}/cgroup.procs", str(process))
    return folder
