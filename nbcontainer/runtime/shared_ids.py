"""One user namespace for all notebooks of a person: who starts a launcher joins that of one that lives.

Links can be moved only between network namespaces of one user namespace (or below one), so containers of two
notebooks can share a network, or one the other's, only when they share this. Who may join is decided by the kernel: the
person who owns it, from above. What separates two containers of one notebook separates those of two.

A launcher whose program could be changed by its containers has them in a namespace further down, above which it was
executed (`runtime.child.interpreter`). A second one of that kind joins it there, too.

A list of the launchers that live is kept in the store; a lock is held while one of them joins or begins. Whoever keeps
the networks of their containers is in it, too: it outlives the last launcher for a second, and can move links only
into network namespaces of the user namespace that it lives in.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from typing import TYPE_CHECKING

from nbcontainer._linux import identity

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.model import IdMap

__all__ = ["Namespaces", "top_namespace"]

_FILE = "launchers.json"
_LARGEST = 1 << 20
_MOST_ELSEWHERE = 50
"""Entries of other pid namespaces (a container that shares the store) that are kept: nobody here sees who lives."""
_NS_GET_PARENT = 0xB702  # ioctl_nsfs(2)


def top_namespace(pid: int) -> int:
    """Open the user namespace just below ours in which, or below which, a process is; raise `OSError`."""
    own = os.stat("/proc/self/ns/user")
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    while True:
        try:
            above = fcntl.ioctl(namespace, _NS_GET_PARENT)
        except OSError:
            os.close(namespace)
            raise
        if os.path.samestat(os.fstat(above), own):
            os.close(above)
            return namespace
        os.close(namespace)
        namespace = above


class Namespaces:
    """Who lives in the user namespace of one store's containers, as this start of another launcher finds them."""

    def __init__(self, store: str, id_map: IdMap) -> None:
        self._path = os.path.join(store, _FILE)
        self._key = f"{os.geteuid()} {id_map.uids} {id_map.gids}"
        self._fd = -1

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else joins or begins meanwhile."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(self._fd)
            self._fd = -1

    def open_theirs(self) -> tuple[int, ...]:
        """Open the user namespace of the launchers that live and have our ids; () when there are none.

        Where one of them has its containers further down, that namespace comes second.
        """
        found: tuple[int, ...] = ()
        for pid, started, key in self._living():
            if key != self._key:
                continue
            with contextlib.suppress(OSError):
                process = identity.open_process(pid, started)
                try:
                    if not found:
                        found = (top_namespace(pid),)
                    lower = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
                finally:
                    os.close(process)
                if _is_below(lower, found[0]):
                    return (*found, lower)
                os.close(lower)
        return found

    def add(self, pid: int) -> None:
        """Another one lives now."""
        with contextlib.suppress(OSError):
            here = identity.own_pid_namespace()
            known = [*self._living(), (pid, identity.start_time(pid), self._key)]
            elsewhere = [each for each in self._listed() if each[3] != here][-_MOST_ELSEWHERE:]
            data = json.dumps([*elsewhere, *([*each, here] for each in known)]).encode()
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, data, 0)

    def _living(self) -> list[tuple[int, int, str]]:
        found = []
        here = identity.own_pid_namespace()
        for pid, started, key, namespace in self._listed():
            with contextlib.suppress(OSError):
                if namespace == here and identity.start_time(pid) == started:
                    found.append((pid, started, key))
        return found

    def _listed(self) -> list[tuple[int, int, str, int]]:
        with contextlib.suppress(ValueError, TypeError):
            rows = json.loads(os.pread(self._fd, _LARGEST, 0) or b"[]")
            return [(int(pid), int(started), str(key), int(where)) for pid, started, key, where in rows]
        return []


def _is_below(lower: int, top: int) -> bool:
    """Whether one user namespace is just below another."""
    with contextlib.suppress(OSError):
        above = fcntl.ioctl(lower, _NS_GET_PARENT)
        try:
            return os.path.samestat(os.fstat(above), os.fstat(top))
        finally:
            os.close(above)
    return False
