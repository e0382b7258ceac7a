"""DNS messages, as far as a server of container names that forwards the rest needs them: pure (RFC 1035, 6891).

A query comes from a container, an answer from the network: both are strangers' bytes, and reading them raises
`DnsError` for whatever is not well formed.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address

__all__ = [
    "AAAA",
    "NO_SUCH_NAME",
    "PTR",
    "REFUSED",
    "SERVER_FAILURE",
    "A",
    "Answer",
    "DnsError",
    "Query",
    "addresses_in",
    "answer_to_pointer",
    "is_allowed",
    "name_of_pointer",
    "read_query",
    "reply",
    "same_question",
    "truncated",
    "with_id",
]

A = 1
CNAME = 5
PTR = 12
AAAA = 28
OPT = 41
_INTERNET = 1
_ANSWERED = 0x8000
_AUTHORITATIVE = 0x0400
_TRUNCATED = 0x0200
_WANTED = 0x0100
_AVAILABLE = 0x0080
SERVER_FAILURE = 2
NO_SUCH_NAME = 3
NOT_IMPLEMENTED = 4
REFUSED = 5
_TTL = 5
"""Seconds for which the answer about a container may be remembered: it may be another one's name soon."""
_LONGEST_NAME = 255
_LONGEST_LABEL = 63
_MOST_JUMPS = 64
_PLAIN_SIZE = 512
_HEADER = 12


class DnsError(ValueError):
    """Bytes that are not a DNS message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question: `name` in lower case without its last dot; `size` is what the asker takes in one datagram."""

    id: int
    flags: int
    name: str
    kind: int
    question: bytes
    size: int = _PLAIN_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An address that an answer has, and for how many seconds."""

    address: str
    ttl: int


def read_query(data: bytes) -> Query:
    """One question as it was asked; raise `DnsError`."""
    if len(data) < _HEADER:
        raise DnsError("shorter than a header")
    number, flags, questions, answers, authorities, additional = struct.unpack_from("!6H", data)
    if flags & _ANSWERED or questions != 1 or answers or authorities:
        raise DnsError("not one question")
    name, end = _name(data, _HEADER)
    if end + 4 > len(data):
        raise DnsError("the question ends early")
    kind, space = struct.unpack_from("!2H", data, end)
    if space != _INTERNET:
        raise DnsError("not the Internet's names")
    return Query(
        id=number,
        flags=flags,
        name=name,
        kind=kind,
        question=data[_HEADER : end + 4],
        size=_wanted_size(data, end + 4) if additional else _PLAIN_SIZE,
    )


def _wanted_size(data: bytes, at: int) -> int:
    """What an OPT record behind the question says; anything else there means the plain size."""
    if len(data) >= at + 11 and data[at] == 0:
        kind, size = struct.unpack_from("!2H", data, at + 1)
        if kind == OPT:
            return max(_PLAIN_SIZE, int(size))
    return _PLAIN_SIZE


def _name(data: bytes, at: int) -> tuple[str, int]:
    """A name and where it ends. Compressed names point backwards, and not without end (RFC 1035, 4.1.4)."""
    labels: list[str] = []
    end = -1
    length = 0
    for _ in range(_MOST_JUMPS + _LONGEST_NAME):
        if at >= len(data):
            raise DnsError("a name ends early")
        size = data[at]
        if size & 0xC0 == 0xC0:
            if at + 1 >= len(data):
                raise DnsError("a pointer ends early")
            target = (size & 0x3F) << 8 | data[at + 1]
            end = at + 2 if end < 0 else end
            if target >= at:
                raise DnsError("a name points forwards")
            at = target
            continue
        if size > _LONGEST_LABEL:
            raise DnsError("a label of an unknown kind")
        if size == 0:
            return ".".join(labels), at + 1 if end < 0 else end
        label = data[at + 1 : at + 1 + size]
        length += size + 1
        if len(label) != size or length > _LONGEST_NAME:
            raise DnsError("a name ends early or is too long")
        labels.append(label.decode("latin-1").lower())
        at += size + 1
    raise DnsError("a name without end")


def reply(query: Query, addresses: Iterable[IPv4Address | IPv6Address] = (), *, code: int = 0) -> bytes:
    """Our own answer: those of the addresses that are of the kind asked for, or why there is none."""
    version = {A: 4, AAAA: 6}.get(query.kind, 0)
    records = [each.packed for each in addresses if each.version == version]
    body = b"".join(struct.pack("!3HIH", 0xC00C, query.kind, _INTERNET, _TTL, len(raw)) + raw for raw in records)
    return _header(query, code, len(records)) + query.question + body


def answer_to_pointer(query: Query, names: Sequence[str]) -> bytes:
    """Our answer to a reverse look-up."""
    records = [_packed(name) for name in names]
    body = b"".join(struct.pack("!3HIH", 0xC00C, PTR, _INTERNET, _TTL, len(raw)) + raw for raw in records)
    return _header(query, 0, len(records)) + query.question + body


def _header(query: Query, code: int, answers: int) -> bytes:
    flags = _ANSWERED | _AVAILABLE | (query.flags & _WANTED) | (query.flags & 0x7800) | code
    flags |= _AUTHORITATIVE if code in {0, NO_SUCH_NAME} else 0
    return struct.pack("!6H", query.id, flags, 1, answers, 0, 0)


def _packed(name: str) -> bytes:
    labels = [label.encode("latin-1", "replace")[:_LONGEST_LABEL] for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def name_of_pointer(name: str) -> IPv4Address | IPv6Address | None:
    """The address of which a reverse look-up asks the name, or None where it asks something else.

    >>> name_of_pointer("2.0.192.10.in-addr.arpa")
    IPv4Address('10.192.0.2')
    """
    labels = name.split(".")
    try:
        if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
            return ipaddress.IPv4Address(".".join(reversed(labels[:4])))
        if labels[-2:] == ["ip6", "arpa"] and len(labels) == 34:
            digits = "".join(reversed(labels[:32]))
            return ipaddress.IPv6Address(":".join(digits[at : at + 4] for at in range(0, 32, 4)))
    except ValueError:
        return None
    return None


def with_id(message: bytes, number: int) -> bytes:
    """The same message under another number."""
    return struct.pack("!H", number) + message[2:]


def same_question(answer: bytes, query: Query, number: int) -> bool:
    """Whether `answer` is one, to this very question as it was sent under `number`: any other is somebody's forgery."""
    if len(answer) < _HEADER:
        return False
    found, flags, questions = struct.unpack_from("!3H", answer)
    if found != number or not flags & _ANSWERED:
        return False
    if questions == 0:  # some servers leave it out of a refusal
        return bool(flags & 0x000F)
    asked = answer[_HEADER : _HEADER + len(query.question)]
    return asked.lower() == query.question.lower()


def truncated(query: Query) -> bytes:
    """The answer that tells the asker to ask again by TCP."""
    flags = _ANSWERED | _AVAILABLE | _TRUNCATED | (query.flags & _WANTED)
    return struct.pack("!6H", query.id, flags, 1, 0, 0, 0) + query.question


def addresses_in(answer: bytes) -> tuple[Answer, ...]:
    """The addresses that an answer gives; raise `DnsError` for one that is not well formed."""
    if len(answer) < _HEADER:
        raise DnsError("shorter than a header")
    questions, answers = struct.unpack_from("!2H", answer, 4)
    at = _HEADER
    for _ in range(questions):
        at = _name(answer, at)[1] + 4
    found = []
    for _ in range(answers):
        at = _name(answer, at)[1]
        if at + 10 > len(answer):
            raise DnsError("a record ends early")
        kind, space, ttl, size = struct.unpack_from("!2HIH", answer, at)
        at += 10
        raw = answer[at : at + size]
        if len(raw) != size:
            raise DnsError("a record ends early")
        if space == _INTERNET and (kind, size) in {(A, 4), (AAAA, 16)}:
            found.append(Answer(address=str(ipaddress.ip_address(raw)), ttl=ttl & 0x7FFFFFFF))
        at += size
    return tuple(found)


def is_allowed(name: str, hosts: Sequence[str]) -> bool:
    """Whether a name is among `hosts`, of which ``*.example.org`` are all below that one.

    >>> is_allowed("files.example.org", ("*.example.org",))
    True
    """
    return any(name == host or (host.startswith("*.") and name.endswith(host[1:])) for host in hosts)
