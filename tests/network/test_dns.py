"""DNS messages: what is understood, what is answered, and that nothing else is believed."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.network import dns


def packed(name: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in name.split(".") if label) + b"\0"


def question(name: str = "web", kind: int = dns.A, *, number: int = 77, size: int = 0) -> bytes:
    extra = b"\0" + struct.pack("!2HIH", 41, size, 0, 0) if size else b""
    return (
        struct.pack("!6H", number, 0x0100, 1, 0, 0, 1 if size else 0)
        + packed(name)
        + struct.pack("!2H", kind, 1)
        + extra
    )


def test_question_is_read():
    """Name in lower case, kind, number, and what the asker takes."""
    query = dns.read_query(question("Web.Example", dns.AAAA, size=1232))
    assert (query.id, query.name, query.kind, query.size) == (77, "web.example", dns.AAAA, 1232)
    assert dns.read_query(question()).size == 512


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0" * 11,
        question()[:-1],
        struct.pack("!6H", 1, 0x8180, 1, 0, 0, 0) + packed("web") + b"\0\1\0\1",
        struct.pack("!6H", 1, 0x0100, 2, 0, 0, 0) + packed("web") + b"\0\1\0\1",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + packed("web") + b"\0\1\0\3",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x80abc\0\0\1\0\1",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + b"\x3fabc\0\0\1\0\1",
        struct.pack("!6H", 1, 0x0100, 1, 0, 0, 0) + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1",
    ],
    ids=["nothing", "short", "cut", "an answer", "two", "chaos", "itself", "unknown label", "long label", "long name"],
)
def test_other_bytes_are_refused(message):
    """An answer, two questions, names that end early, point to themselves or are too long."""
    with pytest.raises(dns.DnsError):
        dns.read_query(message)


def test_answer_has_the_addresses_of_the_kind_asked_for():
    """And none when the name is known, but not by that kind: then the asker does not ask elsewhere."""
    addresses = [ipaddress.ip_address("10.192.0.2"), ipaddress.ip_address("fd00::2")]
    for kind, expected in ((dns.A, "10.192.0.2"), (dns.AAAA, "fd00::2")):
        reply = dns.reply(dns.read_query(question(kind=kind)), addresses)
        assert [each.address for each in dns.addresses_in(reply)] == [expected]
        assert reply[:2] == question()[:2]
    nothing = dns.reply(dns.read_query(question(kind=15)), addresses)
    assert struct.unpack_from("!6H", nothing)[3] == 0
    assert nothing[3] & 0xF == 0


@pytest.mark.parametrize("code", [dns.REFUSED, dns.NO_SUCH_NAME, dns.SERVER_FAILURE])
def test_refusal_carries_its_code(code):
    """And the question."""
    reply = dns.reply(dns.read_query(question()), code=code)
    assert reply[3] & 0xF == code
    assert reply.endswith(question()[12:])


def test_reverse_names():
    """Both kinds are understood, and nothing that only looks like one."""
    assert dns.name_of_pointer("2.0.192.10.in-addr.arpa") == ipaddress.ip_address("10.192.0.2")
    six = ipaddress.ip_address("fd00::2")
    assert dns.name_of_pointer(six.reverse_pointer) == six
    for name in ("in-addr.arpa", "1.2.3.in-addr.arpa", "300.0.0.10.in-addr.arpa", "g." * 32 + "ip6.arpa", "web"):
        assert dns.name_of_pointer(name) is None
    reply = dns.answer_to_pointer(dns.read_query(question("2.0.192.10.in-addr.arpa", dns.PTR)), ("web",))
    assert packed("web") in reply


def test_forged_answers_are_told():
    """Another number, another question, or no answer at all."""
    query = dns.read_query(question())
    right = dns.with_id(dns.reply(query, [ipaddress.ip_address("10.0.0.1")]), 4000)
    assert dns.same_question(right, query, 4000)
    assert not dns.same_question(right, query, 4001)
    assert not dns.same_question(dns.with_id(question(), 4000), query, 4000)
    assert not dns.same_question(dns.with_id(dns.reply(dns.read_query(question("wob"))), 4000), query, 4000)
    assert not dns.same_question(b"", query, 4000)


def test_addresses_behind_other_names_are_found():
    """A chain of aliases with compressed names, each with its time."""
    head = struct.pack("!6H", 1, 0x8180, 1, 3, 0, 0) + packed("a.example") + b"\0\1\0\1"
    alias = b"\xc0\x0c" + struct.pack("!2HIH", 5, 1, 60, 4) + b"\1b\xc0\x0e"
    first = b"\xc0\x0c" + struct.pack("!2HIH", 1, 1, 30, 4) + b"\xc0\0\2\7"
    second = b"\xc0\x0c" + struct.pack("!2HIH", 28, 1, 20, 16) + ipaddress.ip_address("2001:db8::7").packed
    found = dns.addresses_in(head + alias + first + second)
    assert [(each.address, each.ttl) for each in found] == [("192.0.2.7", 30), ("2001:db8::7", 20)]
    with pytest.raises(dns.DnsError):
        dns.addresses_in((head + alias + first + second)[:-1])


@pytest.mark.parametrize(
    ("name", "hosts", "allowed"),
    [
        ("example.org", ("example.org",), True),
        ("files.example.org", ("example.org",), False),
        ("files.example.org", ("*.example.org",), True),
        ("a.files.example.org", ("*.example.org",), True),
        ("example.org", ("*.example.org",), False),
        ("evilexample.org", ("*.example.org", "example.org"), False),
        ("example.org.evil.example", ("example.org",), False),
    ],
)
def test_which_names_an_egress_network_has(name, hosts, allowed):
    """Those that were named, and with a star those below, but not what ends or begins alike."""
    assert dns.is_allowed(name, hosts) is allowed


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    """Nothing else is ever raised, of questions and of answers."""
    for read in (dns.read_query, dns.addresses_in):
        with contextlib.suppress(dns.DnsError):
            read(data)
        with contextlib.suppress(dns.DnsError):
            read(question()[:12] + data)
