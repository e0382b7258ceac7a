"""Published ports in user space: connections to a port of this machine are handed on to a container.

TCP goes by splice(2) through pipes, so that no byte passes through Python; UDP has a socket for each peer, which is
forgotten after a minute of silence. The packet filter takes connections to other addresses than loopback before they
come here, where it can (`rules`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from nbcontainer.network.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.network.loop import Loop, Timer

    Opener = Callable[[socket.AddressFamily, socket.SocketKind], socket.socket]

__all__ = ["Datagrams", "Streams"]

_PIPE = 1 << 18
_F_SETPIPE_SZ = 1031
_MOST_PEERS = 1024
_SILENCE = 60.0
_LARGEST = 65535
_RESET = struct.pack("ii", 1, 0)


class Streams:
    """One listening socket and its connections. `targets` are tried in order; `opener` makes a socket towards them."""

    def __init__(
        self, loop: Loop, listener: socket.socket, targets: tuple[tuple[str, int], ...], opener: Opener
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._targets = targets
        self._opener = opener
        self._pairs: set[_Pair] = set()
        listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        loop.watch(listener.fileno(), READ, self._accept)

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        _Pair(self._loop, client, self._targets, self._opener, self._pairs)

    def close(self) -> None:
        """Take no more connections and end those there are; safe twice."""
        if self._listener.fileno() >= 0:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
        for pair in list(self._pairs):
            pair.close()


class _Pair:
    """One connection: the client's end, the container's, and a pipe for each direction."""

    def __init__(
        self,
        loop: Loop,
        client: socket.socket,
        targets: tuple[tuple[str, int], ...],
        opener: Opener,
        siblings: set[_Pair],
    ) -> None:
        self._loop = loop
        self._client = client
        self._server: socket.socket | None = None
        self._targets = list(targets)
        self._opener = opener
        self._siblings = siblings
        self._ways: list[_Way] = []
        siblings.add(self)
        self._connect()

    def _connect(self) -> None:
        """Try the next address; a client of which nobody wants to hear is reset, as by a closed port."""
        while self._targets:
            host, port = self._targets.pop(0)
            try:
                server = self._opener(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            except OSError:
                continue
            self._server = server
            server.setblocking(False)  # noqa: FBT003 - the standard library's own signature
            try:
                server.connect((host, port))
            except BlockingIOError:
                self._loop.watch(server.fileno(), WRITE, lambda _: self._connected())
                return
            except OSError:
                self._drop_server()
                continue
            self._connected()
            return
        with contextlib.suppress(OSError):
            self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.close()

    def _drop_server(self) -> None:
        if self._server is not None:
            self._loop.forget(self._server.fileno())
            self._server.close()
            self._server = None

    def _connected(self) -> None:
        assert self._server is not None
        if self._server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._drop_server()
            self._connect()
            return
        try:
            for each in (self._client, self._server):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ways.append(_Way(self._client, self._server))
            self._ways.append(_Way(self._server, self._client))
        except OSError:
            self.close()
            return
        self._attend()

    def _attend(self) -> None:
        """Watch what there is to wait for, on both ends."""
        assert self._server is not None
        there, back = self._ways
        for each, reading, writing in ((self._client, there, back), (self._server, back, there)):
            events = (READ if reading.can_take else 0) | (WRITE if writing.has_some else 0)
            if events:
                self._loop.watch(each.fileno(), events, lambda _: self._move())
            else:
                self._loop.forget(each.fileno())

    def _move(self) -> None:
        try:
            for way in self._ways:
                way.move()
        except OSError:  # one end was reset: so is the other
            for each in (self._client, self._server):
                if each is not None:
                    with contextlib.suppress(OSError):
                        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()
            return
        if all(way.is_over for way in self._ways):
            self.close()
        else:
            self._attend()

    def close(self) -> None:
        """Let go of everything; safe twice."""
        self._siblings.discard(self)
        if self._client.fileno() >= 0:
            self._loop.forget(self._client.fileno())
            self._client.close()
        self._drop_server()
        for way in self._ways:
            way.close()
        self._ways = []


class _Way:
    """One direction: what has been taken and not yet given is in a pipe."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source = source
        self._target = target
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # a user's allowance of pipes may be spent: a small one will do
            import fcntl

            fcntl.fcntl(self._write, _F_SETPIPE_SZ, _PIPE)
        self._held = 0
        self._ended = False
        self._full = False
        self.is_over = False

    @property
    def can_take(self) -> bool:
        """Whether there is reason to wait for its source."""
        return not self._ended and not self._held

    @property
    def has_some(self) -> bool:
        """Whether there is reason to wait for its target."""
        return self._held > 0

    def move(self) -> None:
        """Take and give what goes now; raise when an end has been reset."""
        while not self.is_over:
            if not self._held and not self._ended:
                try:
                    taken = os.splice(self._source.fileno(), self._write, _PIPE, flags=_NONBLOCK)
                except BlockingIOError:
                    return
                self._held += taken
                self._ended = taken == 0
            if self._held:
                try:
                    self._held -= os.splice(self._read, self._target.fileno(), self._held, flags=_NONBLOCK)
                except BlockingIOError:
                    return
            if self._ended and not self._held:
                with contextlib.suppress(OSError):
                    self._target.shutdown(socket.SHUT_WR)
                self.is_over = True

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._read)
        os.close(self._write)


_NONBLOCK = getattr(os, "SPLICE_F_NONBLOCK", 2)


class Datagrams:
    """One socket of a published UDP port, and a socket towards the container for each peer."""

    def __init__(
        self, loop: Loop, listener: socket.socket, targets: tuple[tuple[str, int], ...], opener: Opener
    ) -> None:
        self._loop = loop
        self._listener = listener
        self._target = targets[0]
        self._opener = opener
        self._peers: dict[tuple[Any, ...], tuple[socket.socket, Timer]] = {}
        listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        loop.watch(listener.fileno(), READ, self._from_outside)

    def _from_outside(self, _: int) -> None:
        try:
            data, peer = self._listener.recvfrom(_LARGEST)
        except OSError:
            return
        channel = self._channel_of(peer)
        if channel is not None:
            with contextlib.suppress(OSError):
                channel.send(data)

    def _channel_of(self, peer: tuple[Any, ...]) -> socket.socket | None:
        known = self._peers.get(peer)
        if known is not None:
            channel, timer = known
            timer.cancel()
        else:
            if len(self._peers) >= _MOST_PEERS:
                self._forget(next(iter(self._peers)))
            host, port = self._target
            try:
                channel = self._opener(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
                channel.setblocking(False)  # noqa: FBT003 - the standard library's own signature
                channel.connect((host, port))
            except OSError:
                return None
            self._loop.watch(channel.fileno(), READ, lambda _: self._from_inside(peer, channel))
        self._peers[peer] = (channel, self._loop.later(_SILENCE, lambda: self._forget(peer)))
        return channel

    def _from_inside(self, peer: tuple[Any, ...], channel: socket.socket) -> None:
        try:
            data = channel.recv(_LARGEST)
        except OSError as problem:
            if problem.errno not in {errno.EAGAIN, errno.ECONNREFUSED}:
                self._forget(peer)
            return
        with contextlib.suppress(OSError):
            self._listener.sendto(data, peer)

    def _forget(self, peer: tuple[Any, ...]) -> None:
        known = self._peers.pop(peer, None)
        if known is not None:
            known[1].cancel()
            self._loop.forget(known[0].fileno())
            known[0].close()

    def close(self) -> None:
        """Take no more and forget every peer; safe twice."""
        if self._listener.fileno() >= 0:
            self._loop.forget(self._listener.fileno())
            self._listener.close()
        for peer in list(self._peers):
            self._forget(peer)
