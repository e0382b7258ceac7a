"""What a network looks like: names, subnets, addresses. Pure, so every rule can be tested without privilege.

Interfaces carry the store they belong to in their names (``nbc`` and six hex digits), so that what a killed keeper has
left is found and swept by its successor, and nothing else is touched.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from nbcontainer.errors import Conflict, InvalidOption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbcontainer.model.network import Network

__all__ = [
    "ANY_PREFIX",
    "SERVER_ADDRESS",
    "SERVER_PORT",
    "Addresses",
    "Subnets",
    "bridge_name",
    "check_mac",
    "check_subnet",
    "choose_subnet",
    "desk_name",
    "egress_network",
    "interface_prefix",
    "mac_of",
    "peer_name",
    "store_key",
    "subnets_of",
    "table_name",
    "unique_local",
]

ANY_PREFIX = "nbc"
"""How the name of every interface of ours begins, whichever store's it is."""

POOL = IPv4Network("10.192.0.0/10")
"""Where subnets are taken from: the upper quarter of 10/8, which neither docker, podman nor Kubernetes takes first."""

SERVER_ADDRESS = "169.254.53.53"
"""The name server's address in every network: link-local, so that it takes none of a network's own."""

SERVER_PORT = 53

_SUBNET_LENGTH = 24
_SMALLEST = 30
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def store_key(root: str, uid: int) -> str:
    """Six hex digits by which everything of one store and user is known in the machine's tables."""
    return hashlib.sha256(f"{uid}:{root}".encode("utf-8", "surrogateescape")).hexdigest()[:6]


def table_name(key: str) -> str:
    """The table of ours in the machine's packet filter."""
    return f"nbcontainer-{key}"


def interface_prefix(key: str) -> str:
    """How the interfaces of one store begin."""
    return f"{ANY_PREFIX}{key}"


def bridge_name(key: str, network_id: str) -> str:
    """The bridge of a network; at most fifteen characters, as all interfaces (IFNAMSIZ of netdevice(7))."""
    return f"{interface_prefix(key)}-{hashlib.sha256(network_id.encode()).hexdigest()[:5]}"


def desk_name(bridge: str) -> str:
    """The link between a bridge and the name server, on the bridge's side."""
    return f"{bridge[:-6]}d{bridge[-5:]}"


def peer_name(key: str, serial: int) -> str:
    """The machine's end of a container's link."""
    return f"{interface_prefix(key)}{serial % 0x1000000:06x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnets:
    """The subnets of a network that has its bridge, and the bridge's own addresses in them."""

    subnet: IPv4Network
    gateway: IPv4Address
    subnet6: IPv6Network | None = None
    gateway6: IPv6Address | None = None


def choose_subnet(seed: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """A subnet that overlaps none of those `taken` (the machine's routes, other networks).

    The same `seed` finds the same one, as long as that is free. Raises `Conflict` when none is.
    """
    known = list(taken)
    count = 1 << (_SUBNET_LENGTH - POOL.prefixlen)
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big")
    base = int(POOL.network_address)
    for step in range(count):
        number = (first + step) % count
        subnet = IPv4Network((base + (number << (32 - _SUBNET_LENGTH)), _SUBNET_LENGTH))
        if not any(subnet.overlaps(each) for each in known):
            return subnet
    raise Conflict(f"no subnet of {POOL} is free on this machine; make a network with a --subnet of your own")


def unique_local(key: str, network_id: str) -> IPv6Network:
    """The IPv6 subnet of a network: a unique local one (RFC 4193), of which a store has its own 40 bits."""
    store = hashlib.sha256(f"store {key}".encode()).digest()[:5]
    network = hashlib.sha256(f"network {network_id}".encode()).digest()[:2]
    return IPv6Network((bytes((0xFD,)) + store + network + bytes(8), 64))


def subnets_of(network: Network, key: str, taken: Iterable[IPv4Network]) -> Subnets:
    """What a network gets: what it was made with, and what it was not made with chosen."""
    subnet = IPv4Network(network.subnet) if network.subnet else choose_subnet(f"{key} {network.id}", taken)
    subnet6 = IPv6Network(network.subnet6) if network.subnet6 else unique_local(key, network.id)
    return Subnets(
        subnet=subnet,
        gateway=IPv4Address(network.gateway) if network.gateway else subnet[1],
        subnet6=subnet6,
        gateway6=IPv6Address(network.gateway6) if network.gateway6 else subnet6[1],
    )


def check_subnet(text: str, gateway: str = "") -> tuple[str, str]:
    """``--subnet`` and ``--gateway``, in their usual form; raise `InvalidOption`."""
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError as problem:
        raise InvalidOption(f"subnet {text!r} is not ADDRESS/BITS with no bits beside, e.g. 10.50.0.0/24") from problem
    if subnet.num_addresses < 1 << (32 - _SMALLEST):
        raise InvalidOption(f"subnet {subnet} is too small for a gateway and a container; take at least four addresses")
    if subnet.is_loopback or subnet.is_multicast or subnet.is_link_local or subnet.is_unspecified:
        raise InvalidOption(f"subnet {subnet} has a meaning of its own on every machine; take a private one")
    if not gateway:
        return str(subnet), ""
    try:
        address = ipaddress.ip_address(gateway)
    except ValueError as problem:
        raise InvalidOption(f"gateway {gateway!r} is no address") from problem
    if address.version != subnet.version or address not in subnet or address == subnet.network_address:
        raise InvalidOption(f"gateway {address} is not an address of a machine in {subnet}")
    return str(subnet), str(address)


def check_mac(text: str) -> str:
    """``--mac-address`` in its usual form; raise `InvalidOption` for one that no interface may have."""
    mac = text.lower().replace("-", ":")
    if not _MAC.fullmatch(mac):
        raise InvalidOption(f"MAC address {text!r} is not six pairs of hex digits, e.g. 02:42:ac:11:00:02")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidOption(f"MAC address {mac} is one of a group, or none; the first pair must be even, e.g. 02")
    return mac


def mac_of(address: IPv4Address) -> str:
    """The hardware address that goes with an address: locally administered, so it is nobody's product."""
    return "02:42:" + ":".join(f"{byte:02x}" for byte in address.packed)


def egress_network(container: str, hosts: tuple[str, ...]) -> str:
    """The id of the network that one container with ``egress:`` has for itself."""
    return f"egress {container} {','.join(hosts)}"


class Addresses:
    """Who has which address of a network. The next free one is given, not the lowest: caches may know the last."""

    def __init__(self, subnets: Subnets) -> None:
        self._subnets = subnets
        self._owners: dict[IPv4Address, str] = {}
        self._owners6: dict[IPv6Address, str] = {}
        self._last = 1

    def take(self, owner: str, wanted: str = "") -> IPv4Address:
        """Give `owner` an address, the one `wanted` if any; raise `InvalidOption` or `Conflict`."""
        subnet = self._subnets.subnet
        highest = subnet.num_addresses - 2
        if wanted:
            address = _parsed(wanted, 4)
            assert isinstance(address, IPv4Address)
            if address not in subnet or not 0 < int(address) - int(subnet.network_address) <= highest:
                raise InvalidOption(
                    f"address {wanted} is not one of a machine in {subnet}; see `%container network inspect`"
                )
            self._check(address, address == self._subnets.gateway, self._owners.get(address))
        else:
            address = self._next(highest)
        self._owners[address] = owner
        return address

    def _next(self, highest: int) -> IPv4Address:
        subnet = self._subnets.subnet
        for step in range(highest):
            number = self._last % highest + 1
            self._last = number
            address = subnet[number]
            if address != self._subnets.gateway and address not in self._owners:
                return address
            del step
        raise Conflict(f"every address of {subnet} is taken; end some containers, or make a larger network")

    def take6(self, owner: str, wanted: str, beside: IPv4Address) -> IPv6Address | None:
        """Give `owner` an IPv6 address: the one `wanted`, else the one with the number that `beside` has."""
        subnet = self._subnets.subnet6
        if subnet is None:
            if wanted:
                raise InvalidOption(f"address {wanted} cannot be given: the network has no IPv6 subnet")
            return None
        if wanted:
            address = _parsed(wanted, 6)
            assert isinstance(address, IPv6Address)
            if address not in subnet or address == subnet.network_address:
                raise InvalidOption(
                    f"address {wanted} is not one of a machine in {subnet}; see `%container network inspect`"
                )
        else:
            number = int(beside) - int(self._subnets.subnet.network_address)
            address = subnet[number % subnet.num_addresses]
        self._check(address, address == self._subnets.gateway6, self._owners6.get(address))
        self._owners6[address] = owner
        return address

    def _check(self, address: object, is_gateway: bool, owner: str | None) -> None:  # noqa: FBT001 - of this class
        if is_gateway:
            raise InvalidOption(f"address {address} is the network's own gateway; take another one")
        if owner is not None:
            raise Conflict(f"address {address} is taken by container {owner[:12]}; take another one")

    def give_back(self, owner: str) -> None:
        """What `owner` had is free again; nothing happens for one that had none."""
        self._owners = {address: who for address, who in self._owners.items() if who != owner}
        self._owners6 = {address: who for address, who in self._owners6.items() if who != owner}


def _parsed(text: str, version: int) -> IPv4Address | IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as problem:
        raise InvalidOption(f"{text!r} is no address") from problem
    if address.version != version:
        raise InvalidOption(f"address {text} is IPv{address.version}; --ip takes IPv4, --ip6 takes IPv6")
    return address
