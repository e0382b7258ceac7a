"""The keeper's knowledge of who is where: networks with a bridge, containers in them, their names and ports."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbcontainer._linux import identity
from nbcontainer.network import dns, rules
from nbcontainer.network.plan import Addresses

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from nbcontainer.model.network import Endpoint, Network
    from nbcontainer.network.forwarding import Datagrams, Streams
    from nbcontainer.network.plan import Subnets

__all__ = ["Guest", "Place", "Room"]

_LEAST = 60
"""Seconds for which an address can be reached at least: programs keep it for a moment after they have looked it up."""
_MOST = 86400


@dataclass(slots=True)
class Room:
    """A network that has its bridge, and who is in it."""

    network: Network
    subnets: Subnets
    bridge: str
    mtu: int
    addresses: Addresses = field(init=False)
    places: dict[str, Place] = field(default_factory=dict)
    allowed: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.addresses = Addresses(self.subnets)
        for host in self.network.hosts:
            with contextlib.suppress(ValueError):
                self.allowed[str(ipaddress.ip_address(host))] = 0

    def as_filtered(self) -> rules.Bridge:
        """How the packet filter sees it now."""
        now = time.monotonic()
        allowed = [(address, int(until - now) if until else 0) for address, until in self.allowed.items()]
        return rules.Bridge(
            interface=self.bridge,
            subnet=str(self.subnets.subnet),
            subnet6=str(self.subnets.subnet6 or ""),
            internal=self.network.internal,
            limited=bool(self.network.hosts),
            allowed=tuple((address, left) for address, left in allowed if left > 0 or not self.allowed[address]),
        )

    def newly_allowed(self, answers: tuple[dns.Answer, ...]) -> Iterator[tuple[str, int]]:
        """The addresses of an answer that the filter must be told of, with their seconds."""
        now = time.monotonic()
        for answer in answers:
            address = ipaddress.ip_address(answer.address)
            if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
                continue
            seconds = min(max(answer.ttl, _LEAST), _MOST)
            until = self.allowed.get(answer.address)
            if until is None or (until and until - now < seconds / 2):
                self.allowed[answer.address] = now + seconds
                yield answer.address, seconds


@dataclass(slots=True)
class Place:
    """A container in one network. `link` is the name of our end, "" while there is none."""

    room: Room
    endpoint: Endpoint
    link: str = ""
    forwards: list[Streams | Datagrams] = field(default_factory=list)
    publications: tuple[rules.Publication, ...] = ()


@dataclass(slots=True)
class Guest:
    """A container and its places; `namespace` and `pidfd` are -1 until it is there.

    It is its own `resolver.Book`.
    """

    container: str
    hosts: tuple[str, ...]
    admit: Callable[[Room, str, int], None]
    servers: tuple[str, ...] = ()
    gate: socket.socket | None = None
    ahead: bool = False
    namespace: int = -1
    pidfd: int = -1
    places: dict[str, Place] = field(default_factory=dict)

    def addresses(self, name: str) -> tuple[IPv4Address | IPv6Address, ...] | None:
        """See `Book.addresses`."""
        found: list[IPv4Address | IPv6Address] = []
        for place in self.places.values():
            for other in place.room.places.values():
                if any(name == each.lower() for each in other.endpoint.names):
                    found.append(ipaddress.IPv4Address(other.endpoint.address))
                    if other.endpoint.address6:
                        found.append(ipaddress.IPv6Address(other.endpoint.address6))
        return tuple(found) or None

    def names(self, address: IPv4Address | IPv6Address) -> tuple[str, ...] | None:
        """See `Book.names`."""
        for place in self.places.values():
            subnets = place.room.subnets
            if address in subnets.subnet or (subnets.subnet6 is not None and address in subnets.subnet6):
                for other in place.room.places.values():
                    if str(address) in {other.endpoint.address, other.endpoint.address6}:
                        return other.endpoint.names[:1]
                return ()
        return None

    def is_allowed(self, name: str) -> bool:
        """See `Book.is_allowed`. Whoever is in internal networks alone has nobody outside to talk to."""
        if self.hosts:
            return dns.is_allowed(name, self.hosts)
        return any(not place.room.network.internal for place in self.places.values())

    def learned(self, answers: tuple[dns.Answer, ...]) -> None:
        """See `Book.learned`."""
        for place in self.places.values():
            if place.room.network.hosts:
                for address, seconds in place.room.newly_allowed(answers):
                    self.admit(place.room, address, seconds)

    def is_over(self) -> bool:
        """Whether the container has ended."""
        return self.pidfd >= 0 and identity.has_ended(self.pidfd)

    def close(self) -> None:
        """Let go of what the kernel keeps for it; safe twice."""
        if self.gate is not None:
            self.gate.close()
            self.gate = None
        self.let_go()

    def let_go(self) -> None:
        """Let go of its process and its network namespace; safe twice."""
        for fd in (self.namespace, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.namespace = self.pidfd = -1
