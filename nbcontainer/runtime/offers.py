"""What waits for us and was offered: rooms built ahead, and joiners. A command is started there without the launcher.

That saves the way from the engine to the launcher and from there to the container: some of the times that one process
has to wake another between a request and the end of its command.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.runtime.claim import Claim
from nbcontainer.runtime.connection import Connection
from nbcontainer.runtime.protocol import Execute, Furnish, Invitation, Offer, ProtocolError, Taken, receive, send

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.runtime.protocol import Message, Room, Run, Visit
    from nbcontainer.runtime.resources import Held

__all__ = ["Offers"]

_MOST = 16
"""More than an engine promises at once (see `nbcontainer.engine.successors`)."""
_FDS = 3
"""How many descriptors come with an offer, or an invitation: a claim, a pidfd, a socket."""
_STALE = 900.0
"""Seconds after which an offer is not used any more: an hour later others would sweep its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offered:
    """What came with an offer or an invitation, ours to close: `pidfd` is of PID 1, or of the joiner.

    `name` is the id of an offer.
    """

    claim: Claim
    pidfd: int
    channel: int
    since: float
    pid: int = 0
    name: str = ""

    def claimed(self) -> bool:
        """Whether it is ours, from now on: its process lives, it is fresh, nobody else has claimed it."""
        end = select.poll()
        end.register(self.pidfd, select.POLLIN)
        fresh = time.clock_gettime(time.CLOCK_BOOTTIME) - self.since <= _STALE
        return not end.poll(0) and fresh and self.claim.take()

    def start(
        self, request: Run, stdio: tuple[int, int, int], resources: Held, further: Sequence[int] | None = None
    ) -> Connection:
        """Have the waiting process become the command; raise `OSError` when it is not there any more.

        It builds the room before that if there are `further` descriptors, be it none, which it needs to.
        """
        pidfd = os.dup(self.pidfd)

        def ask(control: int) -> None:
            with _socket(self.channel) as container:
                if further is not None:
                    send(container, Furnish(request.room, ahead=False), tuple(further))
                send(container, Execute.of(request), (control, *stdio))

        try:
            connection = Connection.opened(ask, resources)
        except BaseException:
            os.close(pidfd)
            raise
        connection.pid, connection.pidfd = self.pid, pidfd
        return connection

    def visit(self, request: Visit, stdio: Sequence[int]) -> Connection:
        """Have the joiner become the command; raise `OSError` when it is not there any more."""

        def ask(control: int) -> None:
            with _socket(self.channel) as joiner:
                send(joiner, request, (control, *stdio))

        return Connection.opened(ask)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What is ours to close."""
        return (self.claim.fd, self.pidfd, self.channel)

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in self.descriptors:
            os.close(fd)


def _socket(fd: int) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, fileno=os.dup(fd))


class Offers:
    """What one launcher has offered. Not for several threads at once: its owner has a lock."""

    def __init__(self) -> None:
        self._rooms: OrderedDict[str, Room] = OrderedDict()
        self._offered: dict[str, _Offered] = {}
        self._empty: dict[str, _Offered] = {}
        self._visits: OrderedDict[str, tuple[Room, str]] = OrderedDict()
        self._invited: dict[str, _Offered] = {}

    def expect(self, rooms: Sequence[Room]) -> None:
        """Remember what was asked for: an offer names only the id of its room."""
        for room in rooms:
            self._rooms[room.id] = room
            self._rooms.move_to_end(room.id)
        while len(self._rooms) > _MOST:
            self._forget(next(iter(self._rooms)))

    def start(
        self, channel: socket.socket, request: Run, stdio: tuple[int, int, int], resources: Held
    ) -> Connection | None:
        """Start the command in a room that waits, if there is exactly this one; else None, and nothing has happened."""
        self._listen(channel)
        room = self._rooms.get(request.room.id)
        offered = self._offered.pop(request.room.id, None)
        self._forget(request.room.id)
        if offered is None:
            return None
        try:
            if room == request.room and offered.claimed():
                with contextlib.suppress(OSError):  # it has died just now; the launcher will make another
                    return offered.start(request, stdio, resources)
        finally:
            offered.close()
        return None

    def furnish(
        self,
        channel: socket.socket,
        request: Run,
        stdio: tuple[int, int, int],
        resources: Held,
        further: Sequence[int] = (),
    ) -> Connection | None:
        """Have the room built in a container that waits without one, if there is one; else None, and nothing happened.

        The launcher is told at once, so that it makes the next one while this one's room is built.
        """
        self._listen(channel)
        offered = self._empty.pop(request.room.network, None)
        if offered is None:
            return None
        try:
            if offered.claimed():
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: ask the launcher
                    connection = offered.start(request, stdio, resources, further)
                    _tell(channel, Taken(offered.name, request.room.scratch))
                    return connection
        finally:
            offered.close()
        return None

    def visit(self, channel: socket.socket, request: Visit, stdio: Sequence[int]) -> Connection | None:
        """Hand a visit to a joiner that waits for just such a one; else None, and nothing has happened."""
        self._listen(channel)
        key = request.room.id
        last = self._visits.get(key)
        self._visits[key] = (request.room, request.places)
        self._visits.move_to_end(key)
        while len(self._visits) > _MOST:
            _drop(self._invited, self._visits.popitem(last=False)[0])
        invited = self._invited.pop(key, None)
        if invited is None:
            return None
        try:
            if last == (request.room, request.places) and invited.claimed():
                with contextlib.suppress(OSError):  # it has died just now; the porter will make another
                    return invited.visit(request, stdio)
        finally:
            invited.close()
        return None

    def _listen(self, channel: socket.socket) -> None:
        """Take in what was offered meanwhile."""
        since = time.clock_gettime(time.CLOCK_BOOTTIME)
        with contextlib.suppress(OSError):
            while (received := _next(channel)) is not None:
                message, fds = received
                if isinstance(message, Offer) and message.network and len(fds) == _FDS:
                    _put(self._empty, message.network, fds, since, message)
                    if len(self._empty) > _MOST:
                        _drop(self._empty, next(iter(self._empty)))
                elif isinstance(message, Offer) and message.id in self._rooms and len(fds) == _FDS:
                    _put(self._offered, message.id, fds, since, message)
                elif isinstance(message, Invitation) and message.id in self._visits and len(fds) == _FDS:
                    _put(self._invited, message.id, fds, since)
                else:
                    for fd in fds:
                        os.close(fd)

    def expects(self, room: str) -> bool:
        """Whether the launcher may have the room with this id, built or being built."""
        return room in self._rooms

    def _forget(self, room: str) -> None:
        self._rooms.pop(room, None)
        _drop(self._offered, room)

    @property
    def descriptors(self) -> frozenset[int]:
        """What waiting rooms keep open here, for whoever counts descriptors."""
        waiting = (*self._offered.values(), *self._empty.values(), *self._invited.values())
        return frozenset(fd for each in waiting for fd in each.descriptors)

    def close(self) -> None:
        """Let go of everything; the launcher is gone."""
        for room in [*self._rooms]:
            self._forget(room)
        for container in self._visits:
            _drop(self._invited, container)
        self._visits.clear()
        for network in [*self._empty]:
            _drop(self._empty, network)


def _tell(channel: socket.socket, message: Message) -> None:
    """Tell the launcher, if it is still there."""
    with contextlib.suppress(OSError):
        send(channel, message)


def _put(among: dict[str, _Offered], key: str, fds: list[int], since: float, offer: Offer | None = None) -> None:
    """Keep what was offered under this key, instead of what was before."""
    _drop(among, key)
    claim, pidfd, channel = fds
    pid, name = (offer.pid, offer.id) if offer else (0, "")
    among[key] = _Offered(claim=Claim(claim), pidfd=pidfd, channel=channel, since=since, pid=pid, name=name)


def _drop(among: dict[str, _Offered], key: str) -> None:
    offered = among.pop(key, None)
    if offered is not None:
        offered.close()


def _next(channel: socket.socket) -> tuple[Message | None, list[int]] | None:
    """The next message, None at the end; what is none is None. `BlockingIOError` where nothing has come."""
    try:
        return receive(channel, wait=False)
    except ProtocolError:
        return None, []
