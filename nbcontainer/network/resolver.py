"""The name server of all networks, at one link-local address in each.

It answers for the containers of the asker's networks and passes the rest on to the machine's servers (those on its
loopback included: the keeper is on the machine), or to the ones that the asker was given with ``--dns``. Who asks is
told by the address, which only a network's own containers can have there (rp_filter of ip-sysctl).
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from nbcontainer.network import dns
from nbcontainer.network.loop import READ, WRITE
from nbcontainer.network.plan import SERVER_PORT

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from nbcontainer.network.loop import Loop, Timer

__all__ = ["Book", "Resolver", "machine_servers", "search_domains"]

_PATIENCE = 2.0
"""Seconds after which the next server is asked."""
_ROUNDS = 2
_MOST_PENDING = 256
"""Questions of one container under way; one more is refused, so that none can take all descriptors."""
_MOST_CONNECTIONS = 128
_MOST_OF_ONE = 8
"""Connections, of all and of one container."""
_TCP_PATIENCE = 10.0
_LARGEST = 65535
_LISTED = 3
"""So many servers of a resolv.conf count (MAXNS of resolv.conf(5))."""


class Book(Protocol):
    """What a resolver asks of whoever knows the containers."""

    def addresses(self, name: str) -> tuple[IPv4Address | IPv6Address, ...] | None:
        """The addresses of a container by that name in the asker's networks; None when there is none."""

    def names(self, address: IPv4Address | IPv6Address) -> tuple[str, ...] | None:
        """The names of an address in the asker's networks; None when it is not one of theirs."""

    @property
    def servers(self) -> tuple[str, ...]:
        """The servers that were asked for; none for the machine's own."""

    def is_allowed(self, name: str) -> bool:
        """Whether the asker may look up what is outside."""

    def learned(self, answers: tuple[dns.Answer, ...]) -> None:
        """An answer from outside goes to the asker now."""


def machine_servers(path: str = "/etc/resolv.conf") -> tuple[str, ...]:
    """The machine's name servers, at most three; the local one where nothing is said (resolv.conf(5))."""
    servers: list[str] = []
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file.read(64 * 1024).splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                servers.append(words[1])
    return tuple(servers[:_LISTED]) or ("127.0.0.1",)


@dataclass(slots=True)
class _Pending:
    """A question that was passed on."""

    query: dns.Query
    message: bytes
    book: Book
    servers: tuple[str, ...]
    answer: Callable[[bytes], None]
    attempt: int = 0
    number: int = 0
    channel: socket.socket | None = None
    timer: Timer | None = None
    by_tcp: bool = False
    received: bytes = b""


@dataclass(slots=True)
class _Connection:
    """Somebody who asks by TCP."""

    channel: socket.socket
    asker: str
    collected: bytearray = field(default_factory=bytearray)
    timer: Timer | None = None


class Resolver:
    """The server; its sockets are bound in the networks and closed here. `asker` knows whose an address is."""

    def __init__(
        self,
        loop: Loop,
        datagrams: socket.socket,
        listener: socket.socket,
        asker: Callable[[str], Book | None],
        machine: Callable[[], tuple[str, ...]] = machine_servers,
    ) -> None:
        self._loop = loop
        self._datagrams = datagrams
        self._listener = listener
        self._asker = asker
        self._machine = machine
        self._pending: list[_Pending] = []
        self._connections: dict[int, _Connection] = {}
        loop.watch(datagrams.fileno(), READ, self._datagram)
        loop.watch(listener.fileno(), READ, self._accept)

    def close(self) -> None:
        """Answer no more; safe twice."""
        for each in (self._datagrams, self._listener):
            if each.fileno() >= 0:
                self._loop.forget(each.fileno())
                each.close()
        for pending in list(self._pending):
            self._settle(pending)
        for connection in list(self._connections.values()):
            self._hang_up(connection)

    def forget(self, book: Book) -> None:
        """Somebody who asked is gone."""
        for pending in [each for each in self._pending if each.book is book]:
            self._settle(pending)

    # --- questions --------------------------------------------------------------------------------------------------

    def _datagram(self, _: int) -> None:
        try:
            message, asker = self._datagrams.recvfrom(_LARGEST)
        except OSError:
            return

        def answer(data: bytes) -> None:
            with contextlib.suppress(OSError):
                self._datagrams.sendto(data, asker)

        self._take(message, asker[0], answer, by_tcp=False)

    def _take(self, message: bytes, asker: str, answer: Callable[[bytes], None], *, by_tcp: bool) -> None:
        book = self._asker(asker)
        try:
            query = dns.read_query(message)
        except dns.DnsError:
            return
        own = self._own(query, book) if book is not None else None
        if own is not None:
            answer(own)
            return
        waiting = sum(1 for each in self._pending if each.book is book)
        if book is None or not book.is_allowed(query.name) or waiting >= _MOST_PENDING:
            answer(dns.reply(query, code=dns.REFUSED))
            return
        servers = book.servers or self._machine()
        pending = _Pending(query=query, message=message, book=book, servers=servers, answer=answer, by_tcp=by_tcp)
        self._pending.append(pending)
        self._pass_on(pending)

    @staticmethod
    def _own(query: dns.Query, book: Book) -> bytes | None:
        """The answer where it is about containers."""
        if query.kind == dns.PTR:
            address = dns.name_of_pointer(query.name)
            names = book.names(address) if address is not None else None
            if names is None:
                return None
            return dns.answer_to_pointer(query, names) if names else dns.reply(query, code=dns.NO_SUCH_NAME)
        addresses = book.addresses(query.name)
        return None if addresses is None else dns.reply(query, addresses)

    # --- passing on -------------------------------------------------------------------------------------------------

    def _pass_on(self, pending: _Pending) -> None:
        """Ask the next server; after all of them, twice, give up."""
        self._let_go(pending)
        if pending.attempt >= len(pending.servers) * _ROUNDS:
            pending.answer(dns.reply(pending.query, code=dns.SERVER_FAILURE))
            self._settle(pending)
            return
        server = pending.servers[pending.attempt % len(pending.servers)]
        pending.attempt += 1
        pending.number = secrets.randbits(16)
        try:
            pending.channel = self._connected(server, by_tcp=pending.by_tcp)
            if not pending.by_tcp:
                pending.channel.send(dns.with_id(pending.message, pending.number))
        except OSError:
            self._let_go(pending)
            pending.timer = self._loop.later(0, lambda: self._pass_on(pending))
            return
        pending.timer = self._loop.later(_PATIENCE, lambda: self._pass_on(pending))
        events = WRITE if pending.by_tcp else READ
        self._loop.watch(pending.channel.fileno(), events, lambda events: self._heard(pending, events))

    @staticmethod
    def _connected(server: str, *, by_tcp: bool) -> socket.socket:
        """A fresh socket for each question: a port nobody can guess is half of what keeps forgers out (RFC 5452)."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        kind = socket.SOCK_STREAM if by_tcp else socket.SOCK_DGRAM
        channel = socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            address, _, zone = server.partition("%")
            scope = (0, socket.if_nametoindex(zone)) if zone else ()
            with contextlib.suppress(BlockingIOError):
                channel.connect((address, SERVER_PORT, *scope))
        except BaseException:
            channel.close()
            raise
        return channel

    def _heard(self, pending: _Pending, events: int) -> None:
        assert pending.channel is not None
        try:
            if pending.by_tcp:
                answer = self._stream(pending, events)
                if answer is None:
                    return
            else:
                answer = pending.channel.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            self._pass_on(pending)
            return
        if not dns.same_question(answer, pending.query, pending.number):
            if pending.by_tcp:
                self._pass_on(pending)
            return  # of datagrams, the right one may follow
        self._deliver(pending, answer)

    def _stream(self, pending: _Pending, events: int) -> bytes | None:
        """One step of a question by TCP: send when connected, then collect; the answer when it is all there."""
        assert pending.channel is not None
        if events & WRITE and not pending.received and pending.number >= 0:
            message = dns.with_id(pending.message, pending.number)
            pending.channel.sendall(struct.pack("!H", len(message)) + message)
            self._loop.watch(pending.channel.fileno(), READ, lambda events: self._heard(pending, events))
            return None
        data = pending.channel.recv(_LARGEST)
        if not data:
            raise ConnectionResetError
        pending.received += data
        size = struct.unpack_from("!H", pending.received)[0] if len(pending.received) > 1 else _LARGEST
        return pending.received[2 : 2 + size] if len(pending.received) >= 2 + size else None

    def _deliver(self, pending: _Pending, answer: bytes) -> None:
        with contextlib.suppress(dns.DnsError):
            pending.book.learned(dns.addresses_in(answer))
        answer = dns.with_id(answer, pending.query.id)
        if not pending.by_tcp and len(answer) > pending.query.size:
            answer = dns.truncated(pending.query)
        pending.answer(answer)
        self._settle(pending)

    def _let_go(self, pending: _Pending) -> None:
        if pending.timer is not None:
            pending.timer.cancel()
        if pending.channel is not None:
            self._loop.forget(pending.channel.fileno())
            pending.channel.close()
            pending.channel = None
        pending.received = b""

    def _settle(self, pending: _Pending) -> None:
        self._let_go(pending)
        if pending in self._pending:
            self._pending.remove(pending)

    # --- questions by TCP -------------------------------------------------------------------------------------------

    def _accept(self, _: int) -> None:
        try:
            channel, asker = self._listener.accept()
        except OSError:
            return
        of_one = sum(1 for each in self._connections.values() if each.asker == asker[0])
        if of_one >= _MOST_OF_ONE or len(self._connections) >= _MOST_CONNECTIONS:
            channel.close()
            return
        channel.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        connection = _Connection(channel=channel, asker=asker[0])
        connection.timer = self._loop.later(_TCP_PATIENCE, lambda: self._hang_up(connection))
        self._connections[channel.fileno()] = connection
        self._loop.watch(channel.fileno(), READ, lambda _: self._from_stream(connection))

    def _from_stream(self, connection: _Connection) -> None:
        channel, collected = connection.channel, connection.collected
        try:
            data = channel.recv(_LARGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up(connection)
            return
        collected += data

        def answer(reply: bytes) -> None:
            with contextlib.suppress(OSError):
                channel.send(struct.pack("!H", len(reply)) + reply)

        while len(collected) > 1 and len(collected) >= 2 + (size := struct.unpack_from("!H", collected)[0]):
            message = bytes(collected[2 : 2 + size])
            del collected[: 2 + size]
            self._take(message, connection.asker, answer, by_tcp=True)

    def _hang_up(self, connection: _Connection) -> None:
        number = connection.channel.fileno()
        if number >= 0:
            del self._connections[number]
            self._loop.forget(number)
            connection.channel.close()
        if connection.timer is not None:
            connection.timer.cancel()


def search_domains(path: str = "/etc/resolv.conf") -> tuple[str, ...]:
    """The domains in which the machine looks short names up (the last ``search`` or ``domain`` line counts)."""
    found: tuple[str, ...] = ()
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        for line in file.read(64 * 1024).splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in {"search", "domain"}:
                found = tuple(words[1:])
    return tuple(each for each in found if each != ".")
