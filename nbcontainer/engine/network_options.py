"""The options of ``run`` about its network, as data for the verb table: docker's names and forms."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from nbcontainer.engine.command_line import Option, read_choice
from nbcontainer.errors import InvalidOption
from nbcontainer.model.network import NetworkChoice, NetworkOptions
from nbcontainer.network.plan import check_mac
from nbcontainer.network.ports import read_publish

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

__all__ = ["NETWORK_OPTIONS", "networking_of", "read_network"]

_HOST_NAME = re.compile(r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9_])?", re.ASCII)
_GATEWAY = "host-gateway"


def read_network(text: str) -> str:
    """What follows ``--network``, checked; the text itself is what travels."""
    choice = NetworkChoice.parse(text)
    return choice.name if choice.kind == "bridge" else text


def _read_address(option: str, version: int, example: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            address = ipaddress.ip_address(text)
        except ValueError as problem:
            raise InvalidOption(f"{option} {text!r} is no address; write for example {example}") from problem
        if version not in {0, address.version}:
            raise InvalidOption(f"{option} takes an IPv{version} address, e.g. {example}")
        return str(address)

    return read


def read_extra_host(text: str) -> str:
    """``NAME:ADDRESS`` (or ``NAME=ADDRESS``), where the address may be ``host-gateway``."""
    mark = "=" if "=" in text.partition(":")[0] else ":"
    name, found, address = text.partition(mark)
    if not found or not _HOST_NAME.fullmatch(name):
        raise InvalidOption(f"--add-host {text!r} is not NAME:ADDRESS; write for example db:10.1.2.3")
    if address != _GATEWAY:
        try:
            ipaddress.ip_address(address.strip("[]"))
        except ValueError as problem:
            raise InvalidOption(f"--add-host {text!r}: {address!r} is neither an address nor {_GATEWAY}") from problem
    return f"{name}:{address}"


NETWORK_OPTIONS: tuple[Option, ...] = (
    Option(
        flags=("--network", "--net"),
        metavar="{bridge,none,host,container:NAME,egress:HOST[,HOST…],NETWORK}",
        help="bridge (the default where it can be), none, this machine's own, another container's, one that reaches"
        " only these hosts, or a network that you have made",
        read=read_network,
        completes="network",
    ),
    Option(
        flags=("-p", "--publish"),
        metavar="[[IP:]PORT:]PORT[/udp]",
        many=True,
        help="have a port of this machine lead to one of the container; only from this machine, unless an IP is named",
        read=read_publish,
    ),
    Option(flags=("-P", "--publish-all"), help="publish every port that the image exposes, on free ports"),
    Option(
        flags=("--network-alias",),
        metavar="NAME",
        many=True,
        help="a further name for it in its network",
        read=read_choice("network alias", r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9_])?", "db"),
    ),
    Option(
        flags=("--add-host",),
        metavar="NAME:ADDRESS",
        many=True,
        help="a line for /etc/hosts; host-gateway is the network's gateway",
        read=read_extra_host,
    ),
    Option(
        flags=("--dns",),
        metavar="ADDRESS",
        many=True,
        help="ask this name server instead of this machine's; names of containers are known all the same",
        read=_read_address("--dns", 0, "192.0.2.53"),
    ),
    Option(
        flags=("--dns-search",),
        metavar="DOMAIN",
        many=True,
        help="complete short names with this domain",
        read=read_choice("domain", r"[a-zA-Z0-9_](?:[a-zA-Z0-9_.-]{0,251}[a-zA-Z0-9_])?", "example.org"),
    ),
    Option(
        flags=("--ip",),
        metavar="ADDRESS",
        help="the container's IPv4 address in its network",
        read=_read_address("--ip", 4, "10.192.0.7"),
    ),
    Option(
        flags=("--ip6",),
        metavar="ADDRESS",
        help="the container's IPv6 address in its network",
        read=_read_address("--ip6", 6, "fd00::7"),
    ),
    Option(flags=("--mac-address",), metavar="MAC", help="the hardware address of its link", read=check_mac),
    Option(flags=("--link",), metavar="NAME", refusal="links are of the past; containers of a network know each other"),
    Option(
        flags=("--expose",),
        metavar="PORT",
        refusal="nothing has to be exposed: containers of a network reach all ports",
    ),
)


def networking_of(arguments: Namespace) -> NetworkOptions:
    """The options of this module among parsed arguments."""
    return NetworkOptions(
        ports=tuple(mapping for listed in arguments.publish for mapping in listed),
        publish_all=arguments.publish_all,
        dns=arguments.dns,
        dns_search=arguments.dns_search,
        extra_hosts=arguments.add_host,
        address=arguments.ip or "",
        address6=arguments.ip6 or "",
        mac=arguments.mac_address or "",
        aliases=arguments.network_alias,
    )
