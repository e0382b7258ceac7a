"""Cgroups with a limit on processes, in which containers-to-be are made, one after another.

Who moves a process between cgroups waits for the whole machine (a grace period of RCU, up to ten milliseconds), and
whoever makes or removes a cgroup meanwhile waits along. So a container is in its cgroup from its first moment: with
cgroups v2 the kernel clones into it (CLONE_INTO_CGROUP of clone(2), Linux 5.7). With v1 a child is where its parent is,
so there is a *nursery* in each cgroup, a process that does nothing but clone; the launcher is its children's parent
(CLONE_PARENT), as it would be without. When a container is over, the next one is made there, in its cgroup.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import struct

from nbcontainer._linux import processes
from nbcontainer._linux.values import replaced
from nbcontainer.runtime.child import init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container
    from typing import NoReturn

__all__ = ["Places"]

_PID_AND_ERROR = struct.Struct("=ii")
_OWN, _MACHINES, _LENT = b"o", b"m", b"l"
_MOST_DEATHS = 20


class Places:
    """The cgroups below one, with a limit on processes each; "" for none, where containers have no limit.

    So many nurseries are `kept`, in use or not, while anything is kept waiting.
    """

    def __init__(self, root: str, limit: int, kept: int, settings: init.Settings) -> None:
        self._root = root
        self._nursing = bool(root) and not os.path.exists(f"{root}/cgroup.controllers")
        self._kept = kept if self._nursing else 0
        self._limit = str(limit or "max")
        self._settings = settings
        self._serial = self._deaths = 0
        self._taken: dict[int, _Place] = {}
        self._free: list[_Place] = []
        self._emptied: list[str] = []

    def prepare(self, *, private_network: bool, namespace: int) -> init.Prepared:
        """Make a container-to-be, in a cgroup that another has left or in a new one; raise `OSError`."""
        settings = replaced(self._settings, private_network=private_network, namespace=namespace)
        if not self._root:
            return init.prepare(lambda end: init.clone(settings, end))
        while self._free:
            with contextlib.suppress(OSError):  # somebody has ended the process there that would have made it
                return self._made_in(self._free.pop(), settings)
        return self._made_in(self._new(), settings)

    def _new(self) -> _Place:
        self._serial += 1
        return _Place(os.path.join(self._root, f"c{self._serial}"), self._settings, nursing=self._nursing)

    def _made_in(self, place: _Place, settings: init.Settings) -> init.Prepared:
        try:
            prepared = place.prepare(settings, self._limit)
        except OSError:
            self._give_up(place)
            raise
        self._taken[prepared.pid] = place
        return prepared

    def _give_up(self, place: _Place) -> None:
        place.close()
        self._emptied.append(place.path)

    def leave(self, pid: int) -> None:
        """This process has ended: its cgroup is free if it was a container's first, useless if it cloned there."""
        place = self._taken.pop(pid, None)
        if place is not None and (place.pid < 0 or place.refused):  # the next one would be told of it
            self._give_up(place)
        elif place is not None:
            self._free.append(place)
        for place in [each for each in self._free if each.pid == pid]:
            self._free.remove(place)
            self._give_up(place)
            self._count_death()
        self._emptied = [each for each in self._emptied if not _removed(each)]

    @property
    def _surplus(self) -> int:
        """How many nurseries there are more than are kept; less than 0 when some are lacking."""
        return len(self._free) + sum(place.pid >= 0 for place in self._taken.values()) - self._kept

    @property
    def are_tidy(self) -> bool:
        """Whether there are as many nurseries as are kept."""
        return self._surplus == 0

    def tidy(self, waiting: Container[int]) -> None:
        """Give up free places that are more than are kept, then the nurseries of old containers; or make what lacks.

        Those by whose pids nobody has asked yet keep theirs: a cgroup without one would be one more than is needed.
        """
        while self._free and self._surplus > 0:
            self._give_up(self._free.pop())
        for pid, place in self._taken.items():
            if place.pid >= 0 and pid not in waiting and self._surplus > 0:
                place.retire()
        if self._surplus < 0:
            try:
                self._free.append(self._new())
            except OSError:  # who needs one meets the same problem, and reports it
                self._kept = 0

    def _count_death(self) -> None:
        """Make no more ahead where something ends them."""
        self._deaths += 1
        if self._deaths >= _MOST_DEATHS:
            self._kept = 0

    def give_up_free(self) -> None:
        """Nobody has asked for anything for long."""
        while self._free:
            self._give_up(self._free.pop())

    def close(self) -> None:
        """Let go of everything that makes containers; also for a child that will make none."""
        for place in (*self._taken.values(), *self._free):
            place.close()


class _Place:
    """One cgroup; `pid` is that of its nursery, if it has one. Raises `OSError` when it cannot be made."""

    def __init__(self, path: str, settings: init.Settings, *, nursing: bool) -> None:
        self.path = path
        self.pid = -1
        self._group = -1
        self._requests: socket.socket | None = None
        os.mkdir(path, 0o755)
        try:
            if nursing:
                self._start(replaced(settings, cgroup=path))
            else:
                self._group = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self.close()
            os.rmdir(path)
            raise

    @property
    def refused(self) -> int:
        """How often the limit was met here, since the cgroup was made."""
        with contextlib.suppress(OSError):  # older kernels do not count
            events = os.open(f"{self.path}/pids.events", os.O_RDONLY | os.O_CLOEXEC)
            try:
                return init.refused(events)
            finally:
                os.close(events)
        return 0

    def prepare(self, settings: init.Settings, limit: str) -> init.Prepared:
        """Make a container-to-be; raise `OSError`. Its predecessor may have been given another limit."""
        processes.write_text(f"{self.path}/pids.max", limit)
        settings = replaced(settings, cgroup=self.path)
        if self._requests is None:
            return init.prepare(lambda end: init.clone(settings, end, cgroup=self._group))
        return init.prepare(lambda end: self._ask(settings, end))

    def retire(self) -> None:
        """Let its nursery end: a megabyte of memory, while a container runs that has it for its last."""
        if self._requests is not None:
            self._requests.close()
        self.pid = -1

    def close(self) -> None:
        """Let go: its nursery ends."""
        if self._group >= 0:
            os.close(self._group)
        if self._requests is not None:
            self._requests.close()

    def _ask(self, settings: init.Settings, requests: socket.socket) -> tuple[int, int]:
        assert self._requests is not None
        kind, fds = _MACHINES, [requests.fileno()]
        if settings.private_network:
            kind = _OWN if settings.namespace < 0 else _LENT
        if kind == _LENT:
            fds.append(settings.namespace)
        socket.send_fds(self._requests, [kind], fds)
        answer, fds, _, _ = socket.recv_fds(self._requests, _PID_AND_ERROR.size, 1, socket.MSG_CMSG_CLOEXEC)
        if not answer:
            raise OSError(errno.ESRCH, "the process in its cgroup that would make it has ended")
        pid, problem = _PID_AND_ERROR.unpack(answer)
        if problem:
            raise OSError(problem, os.strerror(problem))
        return pid, fds[0]

    def _start(self, settings: init.Settings) -> None:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid:
                return
            try:
                _live(theirs, settings)
            finally:
                os._exit(1)


def _live(requests: socket.socket, settings: init.Settings) -> NoReturn:
    """Enter the cgroup and clone there whenever it is asked for, until nobody will ask any more."""
    processes.die_with_parent()
    processes.hide_from_tracers()
    signal.set_wakeup_fd(-1)
    processes.on_signals(signal.SIGCHLD)
    init.keep_only(requests.fileno())
    processes.write_text(f"{settings.cgroup}/cgroup.procs", "0")
    while True:
        kind, fds, _, _ = socket.recv_fds(requests, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if not kind:
            os._exit(0)
        namespace = fds[1] if kind == _LENT else -1
        asked = replaced(settings, private_network=kind != _MACHINES, namespace=namespace)
        end = socket.socket(fileno=fds[0])
        try:
            pid, pidfd = init.clone(asked, end, further=processes.CLONE_PARENT)
        except OSError as problem:
            requests.send(_PID_AND_ERROR.pack(-1, problem.errno or errno.EAGAIN))
        else:
            with contextlib.suppress(OSError):  # the launcher is gone, and we with it
                socket.send_fds(requests, [_PID_AND_ERROR.pack(pid, 0)], [pidfd])
            os.close(pidfd)
        end.close()
        if namespace >= 0:
            os.close(namespace)


def _removed(cgroup: str) -> bool:
    """Take away the cgroup of a container that is over; the door of its visitors may still be on its way out."""
    try:
        os.rmdir(cgroup)
    except OSError as problem:
        return problem.errno != errno.EBUSY
    return True
