"""Bridges, links, addresses and routes, by pyroute2, whose errors become ours here.

A `Links`, and an `Ends` of a container, work in the network namespace in which they were opened. They are used by the
keeper, in a process without threads: entering another namespace for a moment (`inside`) moves the whole process there.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from itertools import count
from typing import TYPE_CHECKING

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nbcontainer._linux import processes, syscalls
from nbcontainer.errors import UnsupportedHost
from nbcontainer.network.netlink import (
    ANY_REFUSAL,
    MAIN_TABLE,
    NO_DETECTION,
    ON_LINK,
    Netlink,
    new_address,
    new_pair,
    new_route,
    refusal,
    set_up,
    taken_away,
)
from nbcontainer.network.plan import SERVER_ADDRESS, mac_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network

    from nbcontainer.model.network import Endpoint
    from nbcontainer.network.netlink import Request
    from nbcontainer.network.plan import Subnets

__all__ = ["Ends", "Links", "inside", "new_namespace"]

_SHORTEST = 8
_DEFAULT_MTU = 1500


@contextlib.contextmanager
def _ours(what: str) -> Iterator[None]:
    """Say in our words what netlink refused."""
    try:
        yield
    except NetlinkError as problem:
        raise refusal(what, problem.code) from problem


@contextlib.contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Be in another network namespace for a moment; only for a process of one thread."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(namespace, processes.CLONE_NEWNET)
        try:
            yield
        finally:
            syscalls.setns(home, processes.CLONE_NEWNET)
    finally:
        os.close(home)


def new_namespace() -> int:
    """Make a network namespace and open it; this process stays where it is."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(processes.CLONE_NEWNET)
        try:
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            syscalls.setns(home, processes.CLONE_NEWNET)
    finally:
        os.close(home)


class Links:
    """The links of one network namespace. Close it."""

    def __init__(self) -> None:
        with _ours("opening a netlink socket"):
            self._route = IPRoute()
        self._netlink = Netlink()

    def close(self) -> None:
        """Close its sockets."""
        self._route.close()
        self._netlink.close()

    # --- looking ----------------------------------------------------------------------------------------------------

    def subnets(self) -> list[IPv4Network]:
        """What this machine's routes lead to, without the default route."""
        found = []
        with _ours("reading routes"):
            for route in self._route.get_routes(family=socket.AF_INET, table=MAIN_TABLE):
                target, length = route.get_attr("RTA_DST"), route["dst_len"]
                if target and length >= _SHORTEST:
                    found.append(ipaddress.IPv4Network((target, length), strict=False))
        return found

    def own_addresses(self) -> set[str]:
        """Every address of this namespace but loopback and link-local ones."""
        with _ours("reading addresses"):
            texts = [each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS") for each in self._route.get_addr()]
        addresses = [ipaddress.ip_address(text) for text in texts if text]
        return {str(each) for each in addresses if not each.is_loopback and not each.is_link_local}

    def uplink(self, family: socket.AddressFamily = socket.AF_INET) -> tuple[str, int] | None:
        """Name and MTU of the link of the default route, or None where there is none."""
        with _ours("reading routes"):
            for route in self._route.get_default_routes(family=family, table=MAIN_TABLE):
                index = route.get_attr("RTA_OIF")
                if index:
                    link = self._route.get_links(index)[0]
                    return link.get_attr("IFLA_IFNAME"), link.get_attr("IFLA_MTU") or _DEFAULT_MTU
        return None

    def named(self, prefix: str) -> list[str]:
        """The links whose names begin so."""
        with _ours("reading links"):
            names = [link.get_attr("IFLA_IFNAME") for link in self._route.get_links()]
        return [name for name in names if name.startswith(prefix)]

    # --- making -----------------------------------------------------------------------------------------------------

    def make_bridge(self, name: str, subnets: Subnets, mtu: int) -> None:
        """A bridge with the gateway's addresses, up. Not one that would learn routes from what is on it.

        Its hardware address is its own: otherwise it would have the lowest of its links', another one as containers
        come and go, and those that stay would send to the one that they remember for seconds.
        """
        mac = mac_of(subnets.gateway)
        with _ours(f"making bridge {name}"):
            self._route.link(
                "add", ifname=name, kind="bridge", mtu=mtu, address=mac, br_stp_state=0, br_forward_delay=0
            )
        try:
            for setting, value in (("accept_ra", "0"), ("autoconf", "0")):  # CVE-2020-13401
                with contextlib.suppress(OSError):
                    processes.write_text(f"/proc/sys/net/ipv6/conf/{name}/{setting}", value)
            with _ours(f"setting bridge {name} up"):
                index = self._netlink.index(name)
                self._route.link("set", index=index, state="up")
                self._route.addr("add", index=index, address=str(subnets.gateway), prefixlen=subnets.subnet.prefixlen)
            if subnets.subnet6 is not None and subnets.gateway6 is not None:
                self._address6(index, str(subnets.gateway6), subnets.subnet6.prefixlen)
        except BaseException:
            self.remove(name)
            raise

    def _address6(self, index: int, address: str, length: int) -> None:
        """Give a link an IPv6 address; a machine without IPv6 has none."""
        try:
            self._route.addr("add", index=index, address=address, prefixlen=length, flags=NO_DETECTION)
        except NetlinkError as problem:
            if problem.code not in {errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL}:
                raise UnsupportedHost(f"address {address} cannot be set: {os.strerror(problem.code)}") from problem

    def make_pair(self, name: str, bridge: str, namespace: int, endpoint: Endpoint, mtu: int) -> None:
        """A pair of links: `name` on the bridge, the other end in a container's namespace, not up yet."""
        self._netlink.carry_out(
            new_pair(
                f"making the link of container {endpoint.container[:12]}",
                name=name,
                master=self._netlink.index(bridge),
                mtu=mtu,
                peer=endpoint.interface,
                mac=endpoint.mac,
                namespace=namespace,
            )
        )

    def become_office(self) -> None:
        """In the name server's namespace: loopback up, with the server's address, and nothing is passed on."""
        for path, value in (("ip_forward", "0"), ("conf/all/rp_filter", "1"), ("conf/default/rp_filter", "1")):
            processes.write_text(f"/proc/sys/net/ipv4/{path}", value)
        with _ours("setting up the name server's network"):
            self._route.link("set", index=1, state="up")
            self._route.addr("add", index=1, address=SERVER_ADDRESS, prefixlen=32)

    def make_desk(self, name: str, bridge: str, office: int, peer: str, mtu: int) -> None:
        """A pair of links between a bridge and the name server's namespace."""
        with _ours(f"connecting the name server to {bridge}"):
            self._route.link(
                "add",
                ifname=name,
                kind="veth",
                mtu=mtu,
                master=self._netlink.index(bridge),
                state="up",
                peer={"ifname": peer, "net_ns_fd": office, "mtu": mtu},
            )

    def open_desk(self, peer: str, subnet: str) -> None:
        """In the name server's namespace: answer the containers of a subnet by this link."""
        with _ours(f"opening the name server to {subnet}"):
            index = self._netlink.index(peer)
            self._route.link("set", index=index, state="up")
            self._route.route("add", dst=subnet, oif=index, scope=ON_LINK, prefsrc=SERVER_ADDRESS)

    def remove(self, name: str) -> None:
        """Take a link away; nothing happens for one that is not there."""
        with contextlib.suppress(NetlinkError, UnsupportedHost):
            self._route.link("del", index=self._netlink.index(name))


class Ends:
    """The container's ends of its links, in its network namespace. Close it."""

    def __init__(self) -> None:
        self._netlink = Netlink()

    def close(self) -> None:
        """Close its sockets."""
        self._netlink.close()

    def make_room(self, name: str) -> None:
        """Take away a link by this name: the kernel has not come yet to what a keeper that was killed has left."""
        if self._is_there(name):
            self._netlink.carry_out(taken_away(f"taking {name} away", index=self._netlink.index(name)))

    def free_name(self) -> str:
        """The first of eth0, eth1, … that is not there."""
        return next(name for number in count() if not self._is_there(name := f"eth{number}"))

    def _is_there(self, name: str) -> bool:
        try:
            self._netlink.index(name)
        except UnsupportedHost:
            return False
        return True

    def configure(self, endpoint: Endpoint, *, first: bool) -> None:
        """Addresses, up, and the way out by the first of its links."""
        what = f"setting up {endpoint.interface} of container {endpoint.container[:12]}"
        index = self._netlink.index(endpoint.interface)
        addresses = [new_address(what, index=index, address=endpoint.address, length=endpoint.prefix)]
        if endpoint.address6:
            addresses.append(new_address(what, index=index, address=endpoint.address6, length=endpoint.prefix6))
        routes = _ways_out(endpoint, index) if first else ()
        self._netlink.carry_out(*addresses, set_up(what, index=index), *routes)

    def lead_out(self, endpoint: Endpoint) -> None:
        """The way to the name server and, in a network that has one, to the outside."""
        self._netlink.carry_out(*_ways_out(endpoint, self._netlink.index(endpoint.interface)))


def _ways_out(endpoint: Endpoint, index: int) -> Iterator[Request]:
    what = f"setting the routes of container {endpoint.container[:12]}"
    yield new_route(what, to=SERVER_ADDRESS, length=32, link=index)
    if endpoint.gateway:
        yield new_route(what, gateway=endpoint.gateway)
    if endpoint.gateway6:  # which a container without IPv6 refuses
        yield new_route(what, gateway=endpoint.gateway6, tolerated=ANY_REFUSAL)
