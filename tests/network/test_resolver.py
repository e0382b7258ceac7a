"""The name server on loopback: what it knows itself, what it passes on, by UDP and by TCP, and what it refuses."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from nbcontainer.network import dns, resolver
from nbcontainer.network.loop import READ, Loop
from tests.network.test_dns import packed, question

if TYPE_CHECKING:
    from collections.abc import Iterator

UPSTREAM = "127.0.0.155"
WEB = (ipaddress.ip_address("10.192.0.2"), ipaddress.ip_address("fd00::2"))


class Asker:
    """A `Book` with one container, web; remembers what was learned."""

    servers: tuple[str, ...] = (UPSTREAM,)

    def __init__(self) -> None:
        self.heard: list[dns.Answer] = []

    def addresses(self, name):
        """See `Book.addresses`."""
        return WEB if name == "web" else None

    def names(self, address):
        """See `Book.names`."""
        return (("web",) if address in WEB else ()) if address in ipaddress.ip_network("10.192.0.0/24") else None

    def is_allowed(self, name):
        """See `Book.is_allowed`."""
        return not name.endswith("forbidden.example")

    def learned(self, answers):
        """See `Book.learned`."""
        self.heard += answers


@pytest.fixture
def asker() -> Asker:
    """Who asks."""
    return Asker()


@pytest.fixture
def server(asker: Asker) -> Iterator[tuple[str, int]]:
    """Run a name server for `asker`, who is at 127.0.0.1, in a thread."""
    loop = Loop()
    ours, theirs = os.pipe()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    listener = socket.socket()
    listener.bind(datagrams.getsockname())
    listener.listen()
    made = resolver.Resolver(loop, datagrams, listener, {"127.0.0.1": asker}.get)
    where = datagrams.getsockname()

    def stop(_: int) -> None:
        made.close()
        made.close()
        loop.stop()

    loop.watch(ours, READ, stop)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield where
    finally:
        os.write(theirs, b".")
        thread.join(10)
        loop.close()
        os.close(ours)
        os.close(theirs)


@pytest.fixture
def upstream() -> Iterator[None]:
    """Answer 192.0.2.7 to everything, by UDP and TCP; many addresses to ``many.example``."""
    if os.geteuid():
        pytest.skip("a name server's port is root's")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.socket() as listener:
        datagrams.bind((UPSTREAM, 53))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((UPSTREAM, 53))
        listener.listen()
        stop = threading.Event()
        for each in (datagrams, listener):
            each.settimeout(0.1)

        def by_udp() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    data, peer = datagrams.recvfrom(4096)
                    datagrams.sendto(b"\0\0forged", peer)
                    datagrams.sendto(answered(data), peer)

        def by_tcp() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    channel, _ = listener.accept()
                    with channel:
                        channel.settimeout(5)
                        data = channel.recv(4096)[2:]
                        reply = answered(data)
                        whole = struct.pack("!H", len(reply)) + reply
                        channel.sendall(whole[:5])
                        channel.sendall(whole[5:])

        threads = [threading.Thread(target=each) for each in (by_udp, by_tcp)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def answered(data: bytes) -> bytes:
    query = dns.read_query(data)
    count = 60 if query.name == "many.example" else 1
    return dns.reply(query, [ipaddress.ip_address(f"192.0.2.{7 + number}") for number in range(count)])


def ask(server: tuple[str, int], message: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(20)
        channel.sendto(message, server)
        return channel.recv(65535)


def code(answer: bytes) -> int:
    return answer[3] & 0xF


def test_containers_are_known(server):
    """By each kind of question; a kind that they do not have is empty, and no matter for others."""
    assert [each.address for each in dns.addresses_in(ask(server, question("WEB")))] == ["10.192.0.2"]
    assert [each.address for each in dns.addresses_in(ask(server, question("web", dns.AAAA)))] == ["fd00::2"]
    empty = ask(server, question("web", 15))
    assert (code(empty), dns.addresses_in(empty)) == (0, ())
    assert packed("web") in ask(server, question("2.0.192.10.in-addr.arpa", dns.PTR))
    assert code(ask(server, question("9.0.192.10.in-addr.arpa", dns.PTR))) == dns.NO_SUCH_NAME


def test_what_is_not_allowed_is_refused_at_once(server):
    """And what is no question gets no answer, but does not end the server."""
    assert code(ask(server, question("is.forbidden.example"))) == dns.REFUSED
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.sendto(b"nonsense", server)
    assert code(ask(server, question("is.forbidden.example"))) == dns.REFUSED


def test_strangers_are_refused(server):
    """An address that is nobody's is told nothing, not even of containers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.bind(("127.0.0.9", 0))
        channel.settimeout(20)
        channel.sendto(question("web"), server)
        assert code(channel.recv(512)) == dns.REFUSED


@pytest.mark.root
def test_the_rest_is_passed_on(server, asker, upstream):
    """Under another number and back under its own; a forged answer before the right one is not believed."""
    answer = ask(server, question("elsewhere.example", number=4711))
    assert answer[:2] == struct.pack("!H", 4711)
    assert [each.address for each in dns.addresses_in(answer)] == ["192.0.2.7"]
    assert [each.address for each in asker.heard] == ["192.0.2.7"]


@pytest.mark.root
def test_long_answers_come_by_tcp(server, upstream):
    """By UDP one is told to come back; by TCP all of it comes, and one connection serves several questions."""
    short = ask(server, question("many.example"))
    assert short[2] & 0x02
    assert dns.addresses_in(short) == ()
    assert len(dns.addresses_in(ask(server, question("many.example", size=4096)))) == 60
    with socket.create_connection(server, 20) as channel:
        for name, count in (("many.example", 60), ("web", 1)):
            message = question(name)
            channel.sendall(struct.pack("!H", len(message)) + message)
            (size,) = struct.unpack("!H", channel.recv(2, socket.MSG_WAITALL))
            assert len(dns.addresses_in(channel.recv(size, socket.MSG_WAITALL))) == count


def test_silent_servers_are_given_up(server, monkeypatch):
    """After all of them have been asked twice, with an answer that says so."""
    monkeypatch.setattr(resolver, "_PATIENCE", 0.05)
    assert code(ask(server, question("elsewhere.example"))) == dns.SERVER_FAILURE


def test_servers_of_the_machine(tmp_path):
    """The first three of a resolv.conf; the local one where there is none; its domains are the last line's."""
    path = tmp_path / "resolv.conf"
    lines = "# comment\nnameserver 192.0.2.1\nnameserver ::1\ndomain a.example\nsearch b.example c.example\n"
    path.write_text(f"{lines}nameserver 127.0.0.53\nnameserver 192.0.2.4\nnameserver\n", encoding="utf-8")
    assert resolver.machine_servers(str(path)) == ("192.0.2.1", "::1", "127.0.0.53")
    assert resolver.search_domains(str(path)) == ("b.example", "c.example")
    assert resolver.machine_servers(str(tmp_path / "none")) == ("127.0.0.1",)
    assert resolver.search_domains(str(tmp_path / "none")) == ()
