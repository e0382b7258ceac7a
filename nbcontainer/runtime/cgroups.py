"""A cgroup subtree for one launcher, given to container root so that the launcher can make a leaf per container.

Only process counts are limited yet. Where no pids hierarchy is writable (an ordinary user without delegation) there
is no limit, and `%container doctor` says so. Sources: cgroups(7), kernel docs cgroup-v1/pids.rst and cgroup-v2.rst
"Delegation".
"""

from __future__ import annotations

import contextlib
import os

__all__ = ["PREFIX", "make_subtree", "remove_subtree", "sweep"]

PREFIX = "nbcontainer-"
_V1 = "/sys/fs/cgroup/pids"
_V2 = "/sys/fs/cgroup"


def pids_hierarchy() -> str:
    """The directory below which a subtree can be made, or ""."""
    if os.path.exists(f"{_V1}/tasks"):
        base = _V1 + _own_path("pids")
    elif os.path.exists(f"{_V2}/cgroup.controllers"):
        base = _V2
    else:
        return ""
    return base if os.access(base, os.W_OK) else ""


def _own_path(controller: str) -> str:
    with contextlib.suppress(OSError), open("/proc/self/cgroup", encoding="ascii", errors="replace") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controller in controllers.split(","):
                return "" if path == "/" or ".." in path else path
    return ""


def make_subtree(name: str, uid: int, gid: int) -> str:
    """Make ``nbcontainer-NAME`` and give it to `uid`; return its path, or "" where no hierarchy can be written."""
    base = pids_hierarchy()
    if not base:
        return ""
    sweep(base)
    path = os.path.join(base, PREFIX + name)
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        remove_subtree(path)
        os.mkdir(path, 0o755)
    except OSError:
        return ""
    if base == _V2:
        with contextlib.suppress(OSError), open(f"{base}/cgroup.subtree_control", "w", encoding="ascii") as file:
            file.write("+pids")
        if not os.path.exists(f"{path}/pids.max"):
            os.rmdir(path)
            return ""
    for entry in ("", "/cgroup.procs", "/tasks", "/cgroup.threads", "/cgroup.subtree_control"):
        with contextlib.suppress(FileNotFoundError):
            os.chown(path + entry, uid, gid)
    return path


def remove_subtree(path: str) -> None:
    """Remove a subtree whose processes are gone; what is still busy stays for the next sweep."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)
        os.rmdir(path)


def sweep(base: str) -> None:
    """Remove subtrees whose launcher, named by its pid, is gone (its engine was killed and could not)."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(base):
            owner = entry.name.removeprefix(PREFIX)
            if owner != entry.name and not _is_alive(owner) and not _has_processes(entry.path):
                remove_subtree(entry.path)


def _is_alive(pid: str) -> bool:
    """Whether a process runs; one that has ended and was not collected yet (a zombie) does not."""
    with (
        contextlib.suppress(OSError, IndexError),
        open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file,
    ):
        return file.read().rpartition(")")[2].split()[0] not in {"Z", "X"}
    return False


def _has_processes(path: str) -> bool:
    for folder in (path, f"{path}/launcher"):
        with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as file:
            if file.read(1):
                return True
    return False
