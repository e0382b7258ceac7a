"""What a person may ask of a container's network, and what a network is: frozen values, parsed once.

Docker's words: a *network* is a bridge with a subnet of its own, an *endpoint* is a container's place in one. A
container has none of its own (``none``), the machine's (``host``), another container's (``container:NAME``), a place
in a network (``bridge``, the default one, or a name), or one from which only some names can be reached (``egress:``).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from nbcontainer.errors import InvalidOption

__all__ = ["Endpoint", "Network", "NetworkChoice", "NetworkKind", "NetworkOptions", "PortMapping", "Protocol"]

NetworkKind = Literal["none", "host", "container", "bridge", "egress"]
Protocol = Literal["tcp", "udp"]

DEFAULT_NETWORK = "bridge"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_LONGEST_HOST = 253


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkChoice:
    """``--network``, parsed: `name` is that of a network or of another container, `hosts` are what may be reached."""

    kind: NetworkKind
    name: str = ""
    hosts: tuple[str, ...] = ()

    @property
    def is_bridged(self) -> bool:
        """Whether the container gets a place in a network of ours."""
        return self.kind in {"bridge", "egress"}

    @classmethod
    def parse(cls, text: str) -> NetworkChoice:
        """Read what follows ``--network``; raise `InvalidOption`.

        >>> NetworkChoice.parse("container:web").name
        'web'
        """
        if text in {"none", "host"}:
            return cls(kind="host" if text == "host" else "none")
        if text in {"default", DEFAULT_NETWORK}:
            return cls(kind="bridge", name=DEFAULT_NETWORK)
        word, colon, rest = text.partition(":")
        if colon and word == "container" and _NAME.fullmatch(rest):
            return cls(kind="container", name=rest)
        if colon and word == "egress":
            return cls(kind="egress", hosts=_hosts(rest))
        if not _NAME.fullmatch(text):
            raise InvalidOption(
                f"network {text!r} is not none, host, bridge, container:NAME, egress:HOST[,HOST…] or a network's name"
            )
        return cls(kind="bridge", name=text)


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(host.strip().rstrip(".").lower() for host in text.split(","))
    for host in hosts:
        if not host:
            raise InvalidOption(
                "--network egress: takes the names that may be reached, e.g. egress:example.org,github.com"
            )
        if not _is_address(host) and (len(host) > _LONGEST_HOST or not _HOST.fullmatch(host)):
            raise InvalidOption(
                f"--network egress: {host!r} is not a host name; e.g. example.org, *.github.com or 192.0.2.7"
            )
    return tuple(dict.fromkeys(hosts))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """One published port. `host_port` 0 is any free one; `host_ip` "" is the loopback of this machine."""

    container_port: int
    protocol: Protocol = "tcp"
    host_ip: str = ""
    host_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """What a person may ask of the place in a network; empty means as it comes.

    `publish_all` publishes what the image exposes. `extra_hosts` are lines ``NAME:ADDRESS`` of ``--add-host``, where
    an address may be ``host-gateway``.
    """

    ports: tuple[PortMapping, ...] = ()
    publish_all: bool = False
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    address: str = ""
    address6: str = ""
    mac: str = ""
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of containers. An empty subnet is chosen when its bridge is made; `hosts` limit what can be reached.

    An `internal` one leads nowhere outside.
    """

    name: str
    id: str
    subnet: str = ""
    gateway: str = ""
    subnet6: str = ""
    gateway6: str = ""
    internal: bool = False
    mtu: int = 0
    created: float = 0.0
    labels: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place in a network; addresses are without a prefix length, `ports` have their host ports."""

    network: str
    container: str
    interface: str
    mac: str
    address: str
    prefix: int
    gateway: str
    address6: str = ""
    prefix6: int = 0
    gateway6: str = ""
    names: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = field(default=())

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Endpoint:
        """What `dataclasses.asdict` made of one, after it was JSON."""
        ports = tuple(PortMapping(**each) for each in fields.get("ports", ()))
        return cls(**{**fields, "names": tuple(fields.get("names", ())), "ports": ports})
