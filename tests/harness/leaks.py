"""What a test must not leave behind: processes, mounts, cgroups, open descriptors.

The autouse fixture `no_leaks` (in conftest) takes a `Snapshot` before each test and compares afterwards. Fixtures of
module or session scope are set up *before* the snapshot, so what they hold open is not a leak. Two things remain to
be declared, both with `Leaks.allowing`, in the fixture that owns them:

- a long-lived process whose own children come and go (an engine's launcher refilling its warm pool): `trees=(pid,)`
- descriptors that appear while wider-scoped things are used (a connection pool): `fds=("socket:",)`

For example::

    @pytest.fixture(scope="module")
    def engine(leaks):
        with Engine(settings) as engine:
            engine.run("tiny", ["true"])  # whatever is lazy is now there
            with leaks.allowing(trees=[pid of the launcher]):
                yield engine

Orphans count too: `adopt_orphans` makes pytest the parent of descendants whose own parent ended
(PR_SET_CHILD_SUBREAPER), so a daemonised or forgotten process cannot hide behind pid 1.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from nbcontainer._linux.syscalls import set_child_subreaper
from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Tree = int | Callable[[], int]

__all__ = ["Leaks", "Snapshot", "adopt_orphans", "deserted_cgroups", "lives", "processes_below"]

_PATIENCE = patient(2.0)
"""Seconds that stragglers (a namespace being torn down, a process that was just killed) are given."""


def adopt_orphans() -> None:
    """Become the parent of this process's orphaned descendants."""
    set_child_subreaper()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    return found


def lives(pid: int) -> bool:
    """Whether a process is there and no zombie that somebody has yet to collect."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in {"Z", "X"}


def processes_below(pid: int, *, without: Iterable[int] = ()) -> set[int]:
    """Return the descendants of a process, leaving out the trees that hang from `without`."""
    found: set[int] = set()
    waiting = _children(pid)
    while waiting:
        child = waiting.pop()
        if child not in found and child not in without:
            found.add(child)
            waiting += _children(child)
    return found


def _describe(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
    except OSError:
        return f"process {pid} (ended meanwhile)"
    state, parent = rest.split()[:2]
    return f"process {pid} (state {state}, parent {parent}): {words[:200] or name}"


def _bury(pid: int) -> bool:
    """Reap a child that has ended; False when it lives or is not ours."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def _open_files() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of this very listing
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


_CACHED_FILES = ("/dev/null", "/dev/urandom")
"""Opened once and kept by the standard library and the interpreter."""


def _cgroup_places() -> list[str]:
    """Return where this package's cgroups may be: each hierarchy's top, our own place in it, and beside that."""
    own: dict[str, str] = {}
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        for line in file.read().splitlines():
            _, controllers, path = line.split(":", 2)
            own |= dict.fromkeys(controllers.split(","), path)  # "" is cgroup v2
    places: set[str] = set()
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            kind, _, options = after.split()[:3]
            if kind in {"cgroup", "cgroup2"}:
                root, point = before.split()[3:5]
                names = [""] if kind == "cgroup2" else options.split(",")
                here = next((own[name] for name in names if name in own), "/")
                below = here[len(root.rstrip("/")) :] if here.startswith(root) else ""
                places |= {point, f"{point}{below}".rstrip("/"), os.path.dirname(f"{point}{below}".rstrip("/"))}
    return sorted(places)


def _cgroups(places: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for place in places:
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            found.update(entry.path for entry in entries if entry.name.startswith("nbcontainer"))
    return found


def deserted_cgroups() -> set[str]:
    """Return the cgroups of this package that hold nobody: what a killed engine could not take away."""
    return {each for each in _cgroups(_cgroup_places()) if _is_deserted(each)}


def _is_deserted(cgroup: str) -> bool:
    """True for a cgroup that is there and holds nobody, below it neither: somebody else's live one holds processes."""
    for folder, _, _ in os.walk(cgroup):
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            if file.read(1):
                return False
    return os.path.isdir(cgroup)


def _mounts(words: Iterable[str]) -> dict[str, str]:
    """Return mount id and line of the mounts that mention one of `words`."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        lines = file.read().splitlines()
    return {line.split(" ", 1)[0]: line for line in lines if any(word in line for word in words)}


def _links() -> list[str]:
    """Return the links of networks of containers; their names go on with the key of the store."""
    with contextlib.suppress(OSError):
        return [name for name in os.listdir("/sys/class/net") if name.startswith("nbc")]
    return []


def _keys_of_keepers() -> set[str]:
    """Return the keys of the stores that have a keeper of networks, which other sessions on this machine may own."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if words[2].endswith(b"keeper.py"):
                found.add(str(json.loads(words[3])["key"]))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What there was before a test."""

    processes: frozenset[int]
    mounts: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    files: dict[int, str]


@dataclass(slots=True)
class Leaks:
    """Takes snapshots, compares them, and knows what wider-scoped fixtures may do meanwhile.

    Other programs mount and make cgroups on the same machine, so mounts count only when they mention `words` (this
    session's temporary folder, the package's name), and cgroups only while they hold no process.
    """

    words: tuple[str, ...]
    _trees: list[Tree] = field(default_factory=list)
    _fds: list[str] = field(default_factory=list)
    _places: list[str] = field(default_factory=_cgroup_places)

    @contextlib.contextmanager
    def allowing(self, *, trees: Iterable[Tree] = (), fds: Iterable[str] = ()) -> Iterator[None]:
        """Allow new descendants of the processes `trees`, and descriptors whose target starts with one of `fds`.

        A tree may be given as what tells its process each time, where another process can follow the first.
        """
        trees, fds = list(trees), list(fds)
        self._trees += trees
        self._fds += fds
        try:
            yield
        finally:
            for tree in trees:
                self._trees.remove(tree)
            for fd in fds:
                self._fds.remove(fd)

    def snapshot(self) -> Snapshot:
        """Note what is there."""
        return Snapshot(
            processes=frozenset(processes_below(os.getpid())),
            mounts=frozenset(_mounts(self.words)),
            cgroups=frozenset(_cgroups(self._places)),
            links=frozenset(_links()),
            files=_open_files(),
        )

    def left_since(self, before: Snapshot) -> list[str]:
        """Describe what is there now and was not before, after giving stragglers two seconds to go."""
        kinds: tuple[Callable[[Snapshot], list[str]], ...] = (
            self._processes_since,
            self._mounts_since,
            self._cgroups_since,
            self._links_since,
            self._files_since,
        )
        deadline = time.monotonic() + _PATIENCE
        pause = 0.002
        while True:
            found = [sentence for kind in kinds for sentence in kind(before)]
            if not found or time.monotonic() > deadline:
                return found
            gc.collect()  # a descriptor may hang in a cycle that nobody refers to
            time.sleep(pause)
            pause = min(pause * 2, 0.1)

    def _processes_since(self, before: Snapshot) -> list[str]:
        trees = {tree if isinstance(tree, int) else tree() for tree in self._trees}
        new = processes_below(os.getpid(), without=trees) - before.processes
        return [_describe(pid) for pid in sorted(new) if not _bury(pid)]

    def _mounts_since(self, before: Snapshot) -> list[str]:
        return [f"mount {line}" for number, line in _mounts(self.words).items() if number not in before.mounts]

    def _cgroups_since(self, before: Snapshot) -> list[str]:
        new = _cgroups(self._places) - before.cgroups
        return [f"cgroup {path} (empty, never removed)" for path in sorted(new) if _is_deserted(path)]

    def _links_since(self, before: Snapshot) -> list[str]:
        new = set(_links()) - before.links
        kept = _keys_of_keepers() if new else set()
        return [f"link {name}, whose keeper is gone" for name in sorted(new) if name[3:9] not in kept]

    def _files_since(self, before: Snapshot) -> list[str]:
        allowed = (*_CACHED_FILES, *self._fds)
        return [
            f"descriptor {fd} -> {target}"
            for fd, target in _open_files().items()
            # 0, 1 and 2 are pytest's own to redirect
            if fd > 2 and before.files.get(fd) != target and not target.startswith(allowed)
        ]
