"""Published ports: reading ``-p``, what an image exposes, and the sockets that hold a port of this machine.

Docker's grammar: ``[[IP:][HOSTPORT]:]PORT[/PROTOCOL]``, where ports may be ranges. Unlike docker's, a port without an
address is published on the loopback of this machine only.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
from dataclasses import replace

from nbcontainer.errors import Conflict, Denied, InvalidOption
from nbcontainer.model.network import PortMapping, Protocol

__all__ = ["exposed_mappings", "is_loopback", "listen", "port_text", "read_publish"]

_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)
_EXAMPLE = "e.g. 8080:80, 127.0.0.1:5300:53/udp or 8000-8003:8000-8003"
_HIGHEST = 65535
_BACKLOG = 512
_ATTEMPTS = 20


def read_publish(text: str) -> tuple[PortMapping, ...]:
    """Read what follows ``-p``; raise `InvalidOption`.

    >>> [each.host_port for each in read_publish("8000-8001:80-81/udp")]
    [8000, 8001]
    """
    places, slash, word = text.partition("/")
    protocol = word.lower() if slash else "tcp"
    if protocol not in {"tcp", "udp"}:
        raise InvalidOption(f"port {text!r}: {word!r} is not tcp or udp; {_EXAMPLE}")
    address, ours, theirs = _split(places, text)
    inside = _range(theirs, text)
    outside = _range(ours, text) if ours else range(0)
    if not ours:
        hosts = [0] * len(inside)
    elif len(outside) == len(inside):
        hosts = list(outside)
    elif len(inside) == 1:
        raise InvalidOption(f"port {text!r}: a range of host ports needs as many ports of the container; {_EXAMPLE}")
    else:
        raise InvalidOption(f"port {text!r}: the two ranges have {len(outside)} and {len(inside)} ports; {_EXAMPLE}")
    kind: Protocol = "tcp" if protocol == "tcp" else "udp"
    return tuple(
        PortMapping(container_port=port, protocol=kind, host_ip=address, host_port=host)
        for port, host in zip(inside, hosts, strict=True)
    )


def _split(places: str, text: str) -> tuple[str, str, str]:
    """Address, host ports and container ports, as texts."""
    address = ""
    if places.startswith("["):
        address, bracket, places = places[1:].partition("]:")
        if not bracket:
            raise InvalidOption(f"port {text!r}: the address in brackets is followed by :PORT:PORT; {_EXAMPLE}")
    elif places.count(":") == 2:
        address, _, places = places.partition(":")
    elif places.count(":") > 2:
        raise InvalidOption(f"port {text!r}: write an IPv6 address in brackets, as in [::1]:8080:80")
    if address:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError as problem:
            raise InvalidOption(f"port {text!r}: {address!r} is no address of this machine; {_EXAMPLE}") from problem
    ours, _, theirs = places.rpartition(":")
    return address, ours, theirs


def _range(words: str, text: str) -> range:
    found = _RANGE.fullmatch(words)
    if not found:
        raise InvalidOption(f"port {text!r}: {words!r} is not a port or a range of ports; {_EXAMPLE}")
    first = int(found[1])
    last = int(found[2] or first)
    if not 0 < first <= last <= _HIGHEST:
        raise InvalidOption(f"port {text!r}: ports go from 1 to {_HIGHEST}, the lower one first; {_EXAMPLE}")
    return range(first, last + 1)


def exposed_mappings(exposed: tuple[str, ...]) -> tuple[PortMapping, ...]:
    """What ``-P`` publishes of an image's exposed ports (``80/tcp``); what cannot be read is left out."""
    found: list[PortMapping] = []
    for entry in exposed:
        with contextlib.suppress(InvalidOption):
            found += read_publish(entry if ":" not in entry else "")
    return tuple(found)


def is_loopback(host_ip: str) -> bool:
    """Whether a port is published to this machine alone."""
    return not host_ip or ipaddress.ip_address(host_ip).is_loopback


def port_text(mapping: PortMapping) -> str:
    """As `ps` and `port` show it: ``127.0.0.1:8080->80/tcp``."""
    host = mapping.host_ip or "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{mapping.host_port}->{mapping.container_port}/{mapping.protocol}"


def listen(mapping: PortMapping) -> tuple[PortMapping, tuple[socket.socket, ...]]:
    """Take the port on this machine; return it with its number, and the sockets, which are the caller's to close.

    Without an address both loopback addresses are taken. Raises `Conflict` when somebody has the port, `Denied` when
    ports below 1024 are not ours to take.
    """
    hosts = [mapping.host_ip] if mapping.host_ip else ["127.0.0.1", *(["::1"] if _has_ipv6_loopback() else [])]
    for attempt in range(_ATTEMPTS):
        sockets: list[socket.socket] = []
        port = mapping.host_port
        try:
            for host in hosts:
                sockets.append(_bound(host, port, mapping.protocol))
                port = port or sockets[0].getsockname()[1]
        except OSError as problem:
            for each in sockets:
                each.close()
            if mapping.host_port == 0 and problem.errno == errno.EADDRINUSE and attempt < _ATTEMPTS - 1:
                continue
            raise _refusal(mapping, problem) from problem
        except BaseException:
            for each in sockets:
                each.close()
            raise
        return replace(mapping, host_port=port), tuple(sockets)
    raise Conflict("no port of this machine is free on both loopback addresses; name one with -p HOST:CONTAINER")


def _bound(host: str, port: int, protocol: Protocol) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    made = socket.socket(family, kind | socket.SOCK_CLOEXEC)
    try:
        if protocol == "tcp":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        if protocol == "tcp":
            made.listen(_BACKLOG)
        made.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    except BaseException:
        made.close()
        raise
    return made


def _has_ipv6_loopback() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


def _refusal(mapping: PortMapping, problem: OSError) -> Exception:
    where = f"{mapping.host_ip or '127.0.0.1'}:{mapping.host_port} ({mapping.protocol})"
    if problem.errno == errno.EADDRINUSE:
        return Conflict(f"port {where} is in use on this machine; publish another one, or stop who has it")
    if problem.errno == errno.EACCES:
        return Denied(
            f"port {where} cannot be taken: ports below 1024 are root's on this machine; publish a higher one, e.g."
            f" -p {mapping.host_port + 8000 if mapping.host_port < 1024 else 8080}:{mapping.container_port}"
        )
    if problem.errno == errno.EADDRNOTAVAIL:
        return InvalidOption(f"port {where} cannot be taken: this machine does not have that address")
    return InvalidOption(f"port {where} cannot be taken: {os.strerror(problem.errno or 0)}")
