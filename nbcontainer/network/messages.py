"""What engine and keeper say to each other: a closed set of messages as JSON over SEQPACKET sockets.

One question, one answer, on one connection. Descriptors travel beside (SCM_RIGHTS). Both ends are the same person's,
but a store may be shared by versions of this package, so what cannot be read is refused with a sentence.
"""

from __future__ import annotations

import array
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from typing import Any

from nbcontainer.model.network import Endpoint, Network, PortMapping

__all__ = [
    "Attach",
    "Attached",
    "Claim",
    "Detach",
    "Done",
    "Look",
    "Message",
    "MessageError",
    "Name",
    "Refused",
    "Remove",
    "Seen",
    "receive",
    "send",
]

_LARGEST = 1 << 20
_MOST_FDS = 250


class MessageError(Exception):
    """The other end said something that is not a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attach:
    """Give a container a place in a network.

    fds: its *gate* (see `nbcontainer.runtime.child.gate`), or with `living` its network namespace and a pidfd of a
    process whose end is the container's; then the sockets of its published ports, `sockets` of them for each port.
    `names` are what it is called in the network, `dns` replaces the machine's servers, `hosts` are the only names it
    may look up. One that is asked for `ahead` of its container holds nobody here, until it is claimed.
    """

    container: str
    network: Network
    names: tuple[str, ...] = ()
    address: str = ""
    address6: str = ""
    mac: str = ""
    dns: tuple[str, ...] = ()
    ports: tuple[PortMapping, ...] = ()
    sockets: tuple[int, ...] = ()
    living: bool = False
    ahead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """Keeper: this is the place; the link is there when the container's gate says so, or already."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Detach:
    """Take a container out of a network, or out of all: it is `over`, or does not want to be there any more."""

    container: str
    network: str = ""
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The container for which a place was asked ahead is started now; refused when the place is not there any more."""

    container: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A container is called so now, in all its networks."""

    container: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Forget a network that nobody is in any more; refused while somebody is."""

    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What is there?"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Keeper: the networks that have a bridge now, with their subnets, and who is in them."""

    networks: tuple[Network, ...]
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """Keeper: it is so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Keeper: it cannot be; `error` names a class of `nbcontainer.errors`."""

    error: str
    message: str


Message = Attach | Attached | Claim | Detach | Name | Remove | Look | Seen | Done | Refused
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Attach, Attached, Claim, Detach, Name, Remove, Look, Seen, Done, Refused)
}
_VALUES: dict[str, type[Any]] = {
    "Network": Network,
    "Endpoint": Endpoint,
    "tuple[PortMapping, ...]": PortMapping,
    "tuple[Network, ...]": Network,
    "tuple[Endpoint, ...]": Endpoint,
}
_SIMPLE: dict[str, type[Any]] = {"str": str, "int": int, "bool": bool, "float": float, "Protocol": str}


def encode(message: Message) -> bytes:
    """One message as bytes."""
    return json.dumps([type(message).__name__, asdict(message)]).encode()


def decode(data: bytes) -> Message:
    """Bytes as one message; raise `MessageError` for anything else."""
    try:
        name, body = json.loads(data)
        message: Message = _made(_KINDS[name], body)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as problem:
        raise MessageError(f"not a message: {data[:80]!r}") from problem
    return message


def _made(kind: type[Any], body: Any) -> Any:
    declared = {each.name: str(each.type) for each in fields(kind)}
    return kind(**{name: _value(value, declared[name]) for name, value in body.items()})


def _value(value: Any, declared: str) -> Any:
    inner = _VALUES.get(declared)
    if inner is not None:
        return tuple(_made(inner, each) for each in value) if declared.startswith("tuple") else _made(inner, value)
    if declared.startswith("tuple["):
        simple = _SIMPLE[declared[6:].partition(",")[0]]
        if not isinstance(value, list) or not all(isinstance(each, simple) for each in value):
            raise TypeError(f"not {declared}")
        return tuple(value)
    if not isinstance(value, _SIMPLE[declared]) and not (declared == "float" and isinstance(value, int)):
        raise TypeError(f"not {declared}")
    return value


def send(channel: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one message and copies of `fds`."""
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([encode(message)], ancillary, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (the caller's to close), or None at end of file."""
    data, ancillary, flags, _ = channel.recvmsg(_LARGEST, socket.CMSG_SPACE(_MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if not data and not fds:
        return None
    try:
        fitted = not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        return decode(data if fitted else b""), list(fds)
    except MessageError:
        for fd in fds:
            os.close(fd)
        raise
