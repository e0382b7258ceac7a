"""Where the links are: in the machine's own network (root), or in one below (a user). Chosen once, by the keeper.

`MachineWiring` makes bridges beside the machine's own links and passes packets on through its packet filter.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from nbcontainer._linux import processes
from nbcontainer.errors import NbcontainerError, UnsupportedHost
from nbcontainer.network import rules
from nbcontainer.network.chains import forward_chains
from nbcontainer.network.links import Ends, Links, inside, new_namespace
from nbcontainer.network.plan import ANY_PREFIX, SERVER_ADDRESS, SERVER_PORT, desk_name, interface_prefix, table_name
from nbcontainer.network.programs import NO_NFT, found

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Network

    from nbcontainer.model.network import Endpoint
    from nbcontainer.network.plan import Subnets

__all__ = [
    "MachineWiring",
    "Office",
    "Wiring",
    "close_bridge",
    "connect_container",
    "lead_out",
    "open_bridge",
    "run_nft",
]

_FORWARDED = "/run/nbcontainer-forwarding.json"
"""What of the machine's forwarding we have turned on, for whichever keeper is the last to turn it off."""
_NFT_PATIENCE = 20.0
_BACKLOG = 16


class Wiring(Protocol):
    """What the keeper asks of whoever makes links."""

    limits: bool
    """Whether a packet filter is there that can limit what a network reaches."""

    @property
    def below(self) -> int:
        """The pid of a process of ours in the user namespace of a user's containers; 0 as root."""

    @property
    def changes(self) -> socket.socket | None:
        """Becomes readable when the filter has to be set anew, because this machine has other addresses now."""

    def taken(self) -> list[IPv4Network]:
        """The subnets that must not be taken for a network."""

    def mtu(self) -> int:
        """The MTU of the way out."""

    def open_bridge(self, name: str, subnets: Subnets, mtu: int) -> None:
        """Make a network's bridge."""

    def close_bridge(self, name: str) -> None:
        """Take it away; nothing happens when it is gone."""

    def name_server(self) -> tuple[socket.socket, socket.socket]:
        """The sockets of the name server, for datagrams and for connections; the caller's to close."""

    def connect(self, name: str, bridge: str, namespace: int, endpoint: Endpoint, *, mtu: int, first: bool) -> Endpoint:
        """Give a container a link; by the `first` one it goes out.

        The endpoint comes back with the name that its interface got.
        """

    def lead_out(self, namespace: int, endpoint: Endpoint) -> None:
        """Have a container go out by this place: the one by which it did is gone."""

    def disconnect(self, name: str) -> None:
        """Take a container's link away; nothing happens when it is gone with its namespace."""

    def open_socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """A socket from which containers can be reached."""

    def filter(self, bridges: Sequence[rules.Bridge], publications: Sequence[rules.Publication]) -> None:
        """Have the packet filter say this and nothing else of ours."""

    def admit(self, bridge: str, address: str, seconds: int) -> None:
        """Let a limited network reach an address."""

    def close(self) -> None:
        """Take everything away; safe twice."""


def run_nft(text: str) -> None:
    """Have the packet filter changed, in one transaction; raise `UnsupportedHost`."""
    program = found("nft")
    if program is None:
        raise UnsupportedHost(NO_NFT)
    try:
        done = subprocess.run(
            [program, "-f", "-"], input=text, capture_output=True, text=True, timeout=_NFT_PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError) as problem:
        raise UnsupportedHost(f"the packet filter of networks cannot be set: nft did not run ({problem})") from problem
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise UnsupportedHost(
            f"the packet filter of networks cannot be set: nft says {said!r}; the kernel may lack nf_tables"
        )


class Office:
    """Where the name server is: a network namespace with a link to every bridge, and the server's two sockets.

    On a bridge, and yet neither in a container, where its port would be taken from everybody, nor at the machine's own
    addresses, where a firewall of the machine would have to let it in.
    """

    def __init__(self) -> None:
        self._namespace = new_namespace()
        self._number = 0
        try:
            with inside(self._namespace):
                self._links = Links()
                self._links.become_office()
                self.sockets = _server_sockets()
        except BaseException:
            os.close(self._namespace)
            raise

    def open(self, links: Links, name: str, bridge: str, subnet: str, mtu: int) -> None:
        """Connect a bridge, by a link with this `name` on its side."""
        self._number += 1
        peer = f"desk{self._number}"
        links.make_desk(name, bridge, self._namespace, peer, mtu)
        self._links.open_desk(peer, subnet)

    def close(self) -> None:
        """Let the namespace go; its sockets are the name server's."""
        self._links.close()
        os.close(self._namespace)


def _server_sockets() -> tuple[socket.socket, socket.socket]:
    made: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            each = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            made.append(each)
            each.bind((SERVER_ADDRESS, SERVER_PORT))
        made[1].listen(_BACKLOG)
    except BaseException:
        for each in made:
            each.close()
        raise
    return made[0], made[1]


def open_bridge(links: Links, office: Office, name: str, subnets: Subnets, mtu: int) -> None:
    """The work of `Wiring.open_bridge`, from the namespace of the bridge: the name server is on it, too."""
    links.make_bridge(name, subnets, mtu)
    office.open(links, desk_name(name), name, str(subnets.subnet), mtu)


def close_bridge(links: Links, name: str) -> None:
    """The work of `Wiring.close_bridge`."""
    links.remove(desk_name(name))
    links.remove(name)


def connect_container(
    links: Links, name: str, bridge: str, namespace: int, endpoint: Endpoint, *, mtu: int, first: bool
) -> Endpoint:
    """The work of `Wiring.connect`, from the namespace of the bridge."""
    with inside(namespace):
        within = Ends()
    try:
        if first:
            within.make_room(endpoint.interface)
        else:
            endpoint = replace(endpoint, interface=within.free_name())
        links.make_pair(name, bridge, namespace, endpoint, mtu)
        try:
            within.configure(endpoint, first=first)
        except BaseException:
            links.remove(name)
            raise
    finally:
        within.close()
    return endpoint


def lead_out(namespace: int, endpoint: Endpoint) -> None:
    """The work of `Wiring.lead_out`."""
    with inside(namespace):
        within = Ends()
    try:
        within.lead_out(endpoint)
    finally:
        within.close()


class MachineWiring:
    """Bridges in the machine's own network namespace, with our own table in its packet filter. Takes root."""

    limits = True

    def __init__(self, key: str) -> None:
        if found("nft") is None:
            raise UnsupportedHost(NO_NFT)
        self._key = key
        self._table = table_name(key)
        self._links = Links()
        self._sweep()
        self._office = Office()

    @property
    def below(self) -> int:
        """See `Wiring.below`: the containers' links are made from here."""
        return 0

    @property
    def changes(self) -> socket.socket | None:
        """See `Wiring.changes`: here the kernel knows by itself which addresses are the machine's."""
        return None

    def name_server(self) -> tuple[socket.socket, socket.socket]:
        """See `Wiring.name_server`."""
        return self._office.sockets

    def _sweep(self) -> None:
        """Take away what a killed keeper has left."""
        for name in self._links.named(interface_prefix(self._key)):
            self._links.remove(name)
        run_nft(rules.removal(self._table))

    def taken(self) -> list[IPv4Network]:
        """See `Wiring.taken`."""
        return self._links.subnets()

    def mtu(self) -> int:
        """See `Wiring.mtu`."""
        uplink = self._links.uplink() or self._links.uplink(socket.AF_INET6)
        return uplink[1] if uplink else 1500

    def open_bridge(self, name: str, subnets: Subnets, mtu: int) -> None:
        """See `Wiring.open_bridge`."""
        open_bridge(self._links, self._office, name, subnets, mtu)
        with _forwarded() as turned:
            _turn_on(self._links, name, turned)

    def close_bridge(self, name: str) -> None:
        """See `Wiring.close_bridge`."""
        close_bridge(self._links, name)

    def connect(self, name: str, bridge: str, namespace: int, endpoint: Endpoint, *, mtu: int, first: bool) -> Endpoint:
        """See `Wiring.connect`."""
        return connect_container(self._links, name, bridge, namespace, endpoint, mtu=mtu, first=first)

    def lead_out(self, namespace: int, endpoint: Endpoint) -> None:
        """See `Wiring.lead_out`."""
        lead_out(namespace, endpoint)

    def disconnect(self, name: str) -> None:
        """See `Wiring.disconnect`."""
        self._links.remove(name)

    def open_socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """See `Wiring.open_socket`."""
        return socket.socket(family, kind | socket.SOCK_CLOEXEC)

    def filter(self, bridges: Sequence[rules.Bridge], publications: Sequence[rules.Publication]) -> None:
        """See `Wiring.filter`."""
        guarded = tuple(name for name in ("ipv4", "ipv6") if name in _turned_on())
        run_nft(rules.ruleset(self._table, interface_prefix(self._key), bridges, publications, guarded=guarded))

    def admit(self, bridge: str, address: str, seconds: int) -> None:
        """See `Wiring.admit`."""
        run_nft(rules.admit(self._table, bridge, address, seconds))

    def close(self) -> None:
        """See `Wiring.close`."""
        with contextlib.suppress(NbcontainerError):
            self._sweep()
        with contextlib.suppress(NbcontainerError, OSError), _forwarded() as turned:
            if not self._links.named(ANY_PREFIX):
                _turn_off(turned)
        self._office.close()
        self._links.close()


# --- forwarding, which is the machine's ------------------------------------------------------------------------------

_IPV4 = "/proc/sys/net/ipv4/ip_forward"
_IPV6 = "/proc/sys/net/ipv6/conf/{}/force_forwarding"
_IPV6_ALL = "/proc/sys/net/ipv6/conf/all/forwarding"


def _turned_on() -> dict[str, list[str]]:
    with contextlib.suppress(OSError, ValueError), open(_FORWARDED, encoding="utf-8") as file:
        read = json.load(file)
        if isinstance(read, dict):
            return read
    return {}


@contextlib.contextmanager
def _forwarded() -> Iterator[dict[str, list[str]]]:
    """What we have turned on of the machine's forwarding, to read and to change; other keepers wait."""
    fd = os.open(_FORWARDED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            turned = json.loads(file.read() or "{}")
        except ValueError:
            turned = {}
        yield turned
        if turned:
            file.seek(0)
            file.truncate()
            json.dump(turned, file)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_FORWARDED)


def _turn_on(links: Links, bridge: str, turned: dict[str, list[str]]) -> None:
    """Have the machine pass packets on; what was off before is noted, and for nobody else is anything passed on.

    For IPv6 a machine that passes on does not listen to its router any more (accept_ra of ip-sysctl), so there it
    is done per link, which takes Linux 6.17, or left as it is.
    """
    if _read(_IPV4) == "0":
        processes.write_text(_IPV4, "1")
        turned.setdefault("ipv4", []).append(_IPV4)
    if _read(_IPV6_ALL) == "0":
        uplink = links.uplink(socket.AF_INET6)
        for name in (bridge, *([uplink[0]] if uplink else [])):
            path = _IPV6.format(name)
            if _read(path) == "0":
                processes.write_text(path, "1")
                if name != bridge:
                    turned.setdefault("ipv6", []).append(path)


def _turn_off(turned: dict[str, list[str]]) -> None:
    """Put back what we have turned on, unless somebody else passes packets on by now."""
    paths = [path for listed in turned.values() for path in listed]
    turned.clear()
    if _others_forward():
        return
    for path in paths:
        if path == _IPV4 or path.startswith("/proc/sys/net/ipv6/conf/"):
            with contextlib.suppress(OSError):
                processes.write_text(path, "0")


def _others_forward() -> bool:
    """Whether another table has rules about forwarding: docker, libvirt and their kin make some when they start."""
    chains = forward_chains()
    return chains is None or bool(chains)


def _read(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return file.read().strip()
    return ""
