"""Where this process stands among the machine's cgroups, and how one of ours is made there.

A *hierarchy* is one mounted tree of cgroups. With cgroup v2 there is one for all controllers; with v1 each controller
(memory, cpu, pids, ...) has its own, and our place in one says nothing about our place in another; a *hybrid* machine
has both, and a controller belongs to exactly one of them. Sources: cgroups(7), cgroup_namespaces(7), kernel
documentation cgroup-v1 and cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from nbcontainer._linux.processes import read_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "ASIDE",
    "INSIDE",
    "CgroupFiles",
    "CgroupRefusal",
    "Hierarchy",
    "KernelFiles",
    "controller_of",
    "hand_down",
    "hierarchies",
    "layout_of",
    "machine_hierarchies",
    "make_cgroup",
    "membership",
    "refusal",
    "remove_cgroup",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One tree: its mount `point`, the path `own` of this process below it ("" at the top), its `controllers`.

    For v2 the controllers are those that the top, as far as we see it, has. `root` is which part of the tree is
    mounted (mountinfo(5)).
    """

    version: Literal[1, 2]
    controllers: frozenset[str]
    point: str
    own: str
    root: str = "/"

    @property
    def places(self) -> tuple[str, ...]:
        """Every folder from our own cgroup up to the top, nearest first."""
        found = []
        below = self.own.rstrip("/")
        while below:
            found.append(self.point + below)
            below = below[: below.rindex("/")]
        return (*found, self.point)


def hierarchies(mountinfo: str, own: str, offered: Callable[[str], frozenset[str]]) -> tuple[Hierarchy, ...]:
    """The hierarchies in the texts of ``/proc/self/mountinfo`` and ``/proc/self/cgroup``.

    `offered` tells the controllers of the v2 cgroup at a path. A hierarchy mounted twice counts once.
    """
    paths = dict(_own_paths(own))
    found: dict[str, Hierarchy] = {}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        words, kind = before.split(), after.split()
        if len(kind) < 3 or kind[0] not in {"cgroup", "cgroup2"}:
            continue
        root, point = words[3], words[4]
        names = set(kind[2].split(",")) if kind[0] == "cgroup" else {""}
        key = next((name for name in sorted(names) if name in paths), None)
        if key is None or key.startswith("name="):
            continue
        found.setdefault(
            key,
            Hierarchy(
                version=1 if key else 2,
                controllers=frozenset(names & set(paths)) if key else offered(point),
                point=point,
                own=_below(root, paths[key]),
                root=root,
            ),
        )
    return tuple(found.values())


def _own_paths(own: str) -> list[tuple[str, str]]:
    entries = []
    for line in own.splitlines():
        _, controllers, path = line.split(":", 2)
        entries += [(name, path) for name in controllers.split(",")]
    return entries


def _below(root: str, path: str) -> str:
    """`path` as seen from a mount whose root is `root`; "" where it is outside of what the mount shows."""
    base = root.rstrip("/")
    if ".." in path.split("/") or not (path == base or path.startswith(f"{base}/")):
        return ""
    return path[len(base) :].rstrip("/")


def machine_hierarchies() -> tuple[Hierarchy, ...]:
    """The hierarchies of this machine, as this process sees them; looked up again when its place in them changes."""
    return _hierarchies_from(_text("/proc/self/cgroup"), os.stat("/proc/self/ns/mnt").st_ino)


@functools.lru_cache(maxsize=1)
def _hierarchies_from(own: str, _mounts: int) -> tuple[Hierarchy, ...]:
    return hierarchies(_text("/proc/self/mountinfo"), own, _offered)


def _offered(point: str) -> frozenset[str]:
    return frozenset(_text(f"{point}/cgroup.controllers").split())


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return read_text(path)
    return ""


def controller_of(known: tuple[Hierarchy, ...], controller: str) -> Hierarchy | None:
    """The hierarchy that has `controller`, or None; the freezer of v2 is a part of every cgroup."""
    for hierarchy in known:
        if controller in hierarchy.controllers:
            return hierarchy
    if controller == "freezer":
        return next((each for each in known if each.version == 2), None)
    return None


def layout_of(known: tuple[Hierarchy, ...]) -> str:
    """``v1``, ``v2``, ``hybrid`` (both) or ``none``."""
    versions = {each.version for each in known}
    return {frozenset(): "none", frozenset({1}): "v1", frozenset({2}): "v2"}.get(frozenset(versions), "hybrid")


def membership(pid: int, known: tuple[Hierarchy, ...]) -> dict[str, str]:
    """The folder of a process's cgroup in each hierarchy, by mount point; empty when the process is gone."""
    found = {}
    for name, path in _own_paths(_text(f"/proc/{pid}/cgroup")):
        hierarchy = next((each for each in known if _is_named(each, name)), None)
        if hierarchy is not None:
            found[hierarchy.point] = hierarchy.point + _below(hierarchy.root, path)
    return found


def _is_named(hierarchy: Hierarchy, name: str) -> bool:
    return name in hierarchy.controllers if hierarchy.version == 1 else name == ""


# --- making one -----------------------------------------------------------------------------------------------------

INSIDE = "inside"
"""The leaf of a group in which the container lives: its cgroup namespace shows that and nothing above, so that the
limits, one level up, are out of its reach."""

ASIDE = "aside.nbcontainer"
"""The leaf into which everybody in a delegated cgroup is moved, so that there is room for containers beside them. It
must not look like a container's: Jupyter lives there."""
_ROUNDS = 10


class CgroupFiles(Protocol):
    """What is done to cgroup folders; `nbcontainer.testing.cgroupfs` has one that needs no kernel."""

    def make(self, path: str) -> None:
        """Make a cgroup; `OSError` as mkdir(2)."""

    def remove(self, path: str) -> None:
        """Remove a cgroup that holds nobody; `OSError` as rmdir(2)."""

    def read(self, path: str) -> str:
        """The text of a file, or "" where there is none that can be read."""

    def write(self, path: str, text: str) -> None:
        """Write in one call, creating nothing; `OSError` as open(2) and write(2)."""

    def has(self, path: str) -> bool:
        """Whether there is such a file."""

    def is_delegated(self, path: str) -> bool:
        """Whether a service manager has given this cgroup away, with everything below it."""


class KernelFiles:
    """The real ones."""

    def make(self, path: str) -> None:
        """See `CgroupFiles.make`."""
        os.mkdir(path, 0o755)

    def remove(self, path: str) -> None:
        """See `CgroupFiles.remove`."""
        os.rmdir(path)

    def read(self, path: str) -> str:
        """See `CgroupFiles.read`."""
        return _text(path)

    def write(self, path: str, text: str) -> None:
        """See `CgroupFiles.write`."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def has(self, path: str) -> bool:
        """See `CgroupFiles.has`."""
        return os.path.exists(path)

    def is_delegated(self, path: str) -> bool:
        """See `CgroupFiles.is_delegated`; the mark is systemd's, for Delegate=yes (its "Control Group APIs")."""
        with contextlib.suppress(OSError):
            return os.getxattr(path, "user.delegate") == b"1"
        return False


class CgroupRefusal(OSError):
    """No place for a cgroup: `cause` and `fix` are the two halves of a sentence."""

    def __init__(self, cause: str, fix: str, code: int = errno.EPERM) -> None:
        super().__init__(code, cause)
        self.cause = cause
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.cause}; {self.fix}"


def make_cgroup(
    hierarchy: Hierarchy, name: str, controllers: frozenset[str], files: CgroupFiles, *, leaf: str = ""
) -> str:
    """Make a cgroup `name` in the nearest place of `hierarchy` that has `controllers`; return its folder.

    With `leaf` there is one of that name in it, and on v2 the controllers are handed down to it too (which also keeps
    a service manager from taking them away above). Our own cgroup of v2 is such a place when it was delegated to us:
    then a container stays within the limits of whoever started it. Raises `CgroupRefusal`.
    """
    problems: list[tuple[OSError, str]] = []
    for place in hierarchy.places:
        folder = f"{place}/{name}"
        try:
            files.make(folder)  # first: where we may not, that is what there is to say
        except OSError as problem:
            problems.append((problem, place))
            continue
        try:
            if place == hierarchy.places[0]:
                _step_aside(hierarchy, place, files)
            hand_down(hierarchy, place, controllers, files)
            _refuse_invalid(folder, files)
            _fill(hierarchy, folder, files)
            if leaf:
                hand_down(hierarchy, folder, controllers, files)
                files.make(f"{folder}/{leaf}")
                _fill(hierarchy, f"{folder}/{leaf}", files)
        except OSError as problem:
            problems.append((problem, place))
            remove_cgroup(folder, files)
            continue
        return folder
    raise refusal(hierarchy, controllers, problems)


def _step_aside(hierarchy: Hierarchy, place: str, files: CgroupFiles) -> None:
    """Empty a delegated cgroup of v2 by moving who is in it into a leaf, as systemd asks of who is delegated one.

    A process that cannot be moved stays, and with it the cgroup is none to hand down from.
    """
    if hierarchy.version == 1 or not files.is_delegated(place):
        return
    for _ in range(_ROUNDS):  # one not yet moved may have forked
        processes = files.read(f"{place}/cgroup.procs").split()
        if not processes:
            return
        with contextlib.suppress(FileExistsError):
            files.make(f"{place}/{ASIDE}")
        for process in processes:
            with contextlib.suppress(OSError):
                files.write(f"{place}/{ASIDE}/cgroup.procs", process)


def hand_down(hierarchy: Hierarchy, folder: str, controllers: frozenset[str], files: CgroupFiles) -> None:
    """On v2, let the children of `folder` have `controllers`; `OSError` EBUSY when it holds processes itself.

    The kernel alone does not refuse that for cpu, cpuset and pids: those it would hand down even then, but to
    cgroups for threads, which no process can enter ("domain invalid", cgroup-v2.rst "Threads"), and it would leave
    `folder` the top of a threaded subtree.
    """
    if hierarchy.version == 1 or not controllers:
        return
    wanted = controllers - set(files.read(f"{folder}/cgroup.subtree_control").split())
    if not wanted:
        return
    missing = wanted - set(files.read(f"{folder}/cgroup.controllers").split())
    if missing:
        raise OSError(errno.ENOTSUP, " ".join(sorted(missing)))
    if files.has(f"{folder}/cgroup.type") and files.read(f"{folder}/cgroup.procs"):  # the machine's top has no type
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), folder)
    files.write(f"{folder}/cgroup.subtree_control", " ".join(f"+{each}" for each in sorted(wanted)))


def _refuse_invalid(folder: str, files: CgroupFiles) -> None:
    """Raise EBUSY for a new cgroup of v2 below one that holds both processes and controllers handed down already."""
    if "invalid" in files.read(f"{folder}/cgroup.type"):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), folder)


def _fill(hierarchy: Hierarchy, folder: str, files: CgroupFiles) -> None:
    """On v1, a new cpuset has neither processors nor memory, and nobody can enter it so (cpuset(7))."""
    if hierarchy.version == 1 and "cpuset" in hierarchy.controllers:
        for file in ("cpuset.cpus", "cpuset.mems"):
            if not files.read(f"{folder}/{file}").strip():
                files.write(f"{folder}/{file}", files.read(f"{os.path.dirname(folder)}/{file}").strip())


_SCOPE = "start Jupyter in a scope of your own: systemd-run --user --scope -p Delegate=yes jupyter lab"
_DELEGATE = (
    "let an administrator add [Service] Delegate=cpu cpuset io memory pids by `systemctl edit user@.service`, and log"
    " in again"
)


def refusal(hierarchy: Hierarchy, controllers: frozenset[str], problems: list[tuple[OSError, str]]) -> CgroupRefusal:
    """The most telling of the refusals, each with the place where it was met, as a cause and a fix."""
    by_code = {problem.errno: (problem, place) for problem, place in reversed(problems)}
    root = os.geteuid() == 0
    names = " and ".join(sorted(controllers))
    if errno.ENOTSUP in by_code:
        problem, place = by_code[errno.ENOTSUP]
        fix = "run where it is (the top of the cgroup tree), or give this service Delegate=yes" if root else _DELEGATE
        return CgroupRefusal(f"the controller {problem.strerror} is not handed down to {place}", fix)
    if errno.EBUSY in by_code:
        place = by_code[errno.EBUSY][1]
        return CgroupRefusal(
            f"{place} holds processes itself, so the kernel hands no controller down from it (no internal processes)",
            "move them into a cgroup below it first" if root else _SCOPE,
        )
    if errno.EROFS in by_code:
        return CgroupRefusal(
            f"{hierarchy.point} is mounted read-only, as in an outer container",
            "start that one with a writable /sys/fs/cgroup (podman: --systemd=always; docker: --privileged)",
        )
    problem, place = problems[0]
    if problem.errno in {errno.EACCES, errno.EPERM}:
        if hierarchy.version == 1:
            return CgroupRefusal(
                f"cgroups v1 ({place}) may be written by root only",
                f"run as root, or on a machine with cgroup v2 {_SCOPE}",
            )
        return CgroupRefusal(
            f"no cgroup from {place} upwards is yours",
            "run where /sys/fs/cgroup can be written" if root else _SCOPE,
        )
    return CgroupRefusal(
        f"a cgroup for {names} cannot be made in {place} ({problem.strerror})", "see `%container doctor`"
    )


def remove_cgroup(path: str, files: CgroupFiles) -> bool:
    """Remove a cgroup and those below it; False when one of them is still busy. What is gone is gone."""
    for folder, _, _ in os.walk(path, topdown=False):
        try:
            files.remove(folder)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True
