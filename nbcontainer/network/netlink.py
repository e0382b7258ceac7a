"""What a container's link takes, asked of the kernel at once: requests of rtnetlink(7) in one message after another.

pyroute2 encodes them. Its own calls run a loop of asyncio for each request, which with a socket of its own for each
container was six milliseconds of work for seven requests, while the container waited; this is one and a half.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

from pyroute2 import netlink
from pyroute2.netlink import rtnl
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from nbcontainer.errors import Conflict, UnsupportedHost

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from nbcontainer.errors import NbcontainerError

__all__ = [
    "ANY_REFUSAL",
    "MAIN_TABLE",
    "NO_DETECTION",
    "ON_LINK",
    "Netlink",
    "Request",
    "new_address",
    "new_pair",
    "new_route",
    "refusal",
    "set_up",
    "taken_away",
]

_ASKED = netlink.NLM_F_REQUEST | netlink.NLM_F_ACK
_NEW = _ASKED | netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
_IN_PLACE = _ASKED | netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
_SOL_NETLINK, _CAP_ACK = 270, 10  # netlink(7)
_ANSWER = struct.Struct("=IHHIIi")  # struct nlmsghdr and the number of struct nlmsgerr
_ALIGNMENT = 4
_ROOM = 65536
_SIOCGIFINDEX = 0x8933  # netdevice(7)
_REQUEST = struct.Struct("16si20x")  # struct ifreq with a number in it
_LONGEST_NAME = 15
ANY_REFUSAL = range(1, 4096)
"""Of a request that is only a comfort."""
_UP = 0x1  # IFF_UP of netdevice(7)
NO_DETECTION = 0x02  # IFA_F_NODAD of if_addr.h: the address is ours, nobody has to be asked for a second
_NO_SIXTH = frozenset({errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL})
_UNICAST, _STATIC, ON_LINK, MAIN_TABLE = 1, 4, 253, 254  # RTN_UNICAST and its kin of rtnetlink(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: what it is for, in words for a person, and which refusals of the kernel are none (errno)."""

    what: str
    kind: int
    flags: int
    message: Any
    tolerated: Container[int] = ()

    def encoded(self, number: int) -> bytes:
        """Its bytes, with this sequence number."""
        header = self.message["header"]
        header["type"], header["flags"], header["sequence_number"] = self.kind, self.flags, number
        self.message.encode()
        return bytes(self.message.data)


class Netlink:
    """Sockets of the network namespace in which it was opened, wherever the process may be later. Close it."""

    def __init__(self) -> None:
        self._asking = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._looking = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._asking.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # an answer need not repeat the request
        self._numbers = count(1)

    def close(self) -> None:
        """Close the sockets."""
        self._asking.close()
        self._looking.close()

    def carry_out(self, *requests: Request) -> None:
        """Have the kernel do all of it, in this order; raise what `refusal` makes of the first that is refused.

        A refusal does not keep it from doing the rest.
        """
        numbered = {next(self._numbers): each for each in requests}
        self._asking.send(b"".join(each.encoded(number) for number, each in numbered.items()))
        refused: dict[int, NbcontainerError] = {}
        while numbered:
            for number, code in _answers(self._asking.recv(_ROOM)):
                request = numbered.pop(number, None)
                if request is not None and code and code not in request.tolerated:
                    refused[number] = refusal(request.what, code)
        if refused:
            raise refused[min(refused)]

    def index(self, name: str) -> int:
        """The number of a link; raise `UnsupportedHost` where there is none of this name."""
        # netdevice(7): asking for it by netlink takes longer, and each container's link is looked for thrice
        request = _REQUEST.pack(name.encode()[:_LONGEST_NAME], 0)
        try:
            answer = fcntl.ioctl(self._looking, _SIOCGIFINDEX, request)
        except OSError as problem:
            raise UnsupportedHost(f"link {name} is not there any more; somebody has taken it away") from problem
        index: int = _REQUEST.unpack(answer)[1]
        return index


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """The sequence numbers that are answered in it, each with an errno or 0."""
    position = 0
    while position + _ANSWER.size <= len(data):
        length, kind, _, number, _, code = _ANSWER.unpack_from(data, position)
        if kind == netlink.NLMSG_ERROR:
            yield number, -code
        position += -(-max(length, _ANSWER.size) // _ALIGNMENT) * _ALIGNMENT


def refusal(what: str, code: int) -> NbcontainerError:
    """What netlink refused with this errno, in our words: `Conflict`, or `UnsupportedHost`."""
    reason = os.strerror(code)
    if code == errno.EEXIST:
        return Conflict(f"{what}: it exists already")
    if code in {errno.EPERM, errno.EACCES}:
        return UnsupportedHost(
            f"{what} is not permitted here ({reason}); this takes CAP_NET_ADMIN, see `%container doctor`"
        )
    if code == errno.EOPNOTSUPP:
        return UnsupportedHost(f"{what}: this kernel has no such kind of link (modules bridge, veth)")
    return UnsupportedHost(f"{what} cannot be done: {reason}")


def new_pair(what: str, *, name: str, master: int, mtu: int, peer: str, mac: str, namespace: int) -> Request:
    """A pair of links, veth(4): one up at a bridge with this number, one in another namespace and not up."""
    far = {
        "index": 0,
        "attrs": [
            ("IFLA_IFNAME", peer),
            ("IFLA_NET_NS_FD", namespace),
            ("IFLA_MTU", mtu),
            *([("IFLA_ADDRESS", mac)] if mac else []),
        ],
    }
    data = {"attrs": [("VETH_INFO_PEER", far)]}
    message = ifinfmsg()
    message["flags"] = message["change"] = _UP
    message["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", mtu),
        ("IFLA_MASTER", master),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", data)]}),
    ]
    return Request(what=what, kind=rtnl.RTM_NEWLINK, flags=_NEW, message=message)


def set_up(what: str, *, index: int) -> Request:
    """Have the link with this number up."""
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = message["change"] = _UP
    return Request(what=what, kind=rtnl.RTM_NEWLINK, flags=_ASKED, message=message)


def taken_away(what: str, *, index: int) -> Request:
    """Have the link with this number gone, and its other end with it; it may be already."""
    message = ifinfmsg()
    message["index"] = index
    return Request(what=what, kind=rtnl.RTM_DELLINK, flags=_ASKED, message=message, tolerated={errno.ENODEV})


def new_address(what: str, *, index: int, address: str, length: int) -> Request:
    """Give a link an address; one of IPv6 only where there is IPv6."""
    sixth = ":" in address
    message = ifaddrmsg()
    message["index"], message["prefixlen"] = index, length
    message["family"] = socket.AF_INET6 if sixth else socket.AF_INET
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address), ("IFA_FLAGS", NO_DETECTION if sixth else 0)]
    tolerated = _NO_SIXTH if sixth else ()
    return Request(what=what, kind=rtnl.RTM_NEWADDR, flags=_NEW, message=message, tolerated=tolerated)


def new_route(
    what: str,
    *,
    to: str = "",
    length: int = 0,
    gateway: str = "",
    link: int = 0,
    tolerated: Container[int] = (),
) -> Request:
    """Lead to a subnet, or anywhere without one: by a gateway, or to what is on this link itself."""
    message = rtmsg()
    message["family"] = socket.AF_INET6 if ":" in to + gateway else socket.AF_INET
    message["dst_len"] = length
    message["table"], message["proto"], message["type"] = MAIN_TABLE, _STATIC, _UNICAST
    message["scope"] = 0 if gateway else ON_LINK
    attributes = {"RTA_DST": to, "RTA_GATEWAY": gateway, "RTA_OIF": link}
    message["attrs"] = [(name, value) for name, value in attributes.items() if value]
    return Request(what=what, kind=rtnl.RTM_NEWROUTE, flags=_IN_PLACE, message=message, tolerated=tolerated)
