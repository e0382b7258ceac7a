"""Published ports: how they are written, and that they are held."""

from __future__ import annotations

import socket

import pytest

from nbcontainer.errors import Conflict, InvalidOption
from nbcontainer.model.network import PortMapping
from nbcontainer.network.ports import exposed_mappings, is_loopback, listen, port_text, read_publish


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", [("", 0, 80, "tcp")]),
        ("8080:80", [("", 8080, 80, "tcp")]),
        ("8080:80/tcp", [("", 8080, 80, "tcp")]),
        ("5300:53/UDP", [("", 5300, 53, "udp")]),
        ("0.0.0.0:8080:80", [("0.0.0.0", 8080, 80, "tcp")]),
        ("127.0.0.1::80", [("127.0.0.1", 0, 80, "tcp")]),
        ("[::]:8080:80", [("::", 8080, 80, "tcp")]),
        ("[0:0::1]:8080:80", [("::1", 8080, 80, "tcp")]),
        ("8000-8002:80-82", [("", 8000, 80, "tcp"), ("", 8001, 81, "tcp"), ("", 8002, 82, "tcp")]),
        ("7000-7001", [("", 0, 7000, "tcp"), ("", 0, 7001, "tcp")]),
        ("65535:65535", [("", 65535, 65535, "tcp")]),
    ],
)
def test_docker_writes_it_so(text, expected):
    """Address, host port, container port and protocol, with ranges port by port."""
    read = [(each.host_ip, each.host_port, each.container_port, each.protocol) for each in read_publish(text)]
    assert read == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a port"),
        ("http", "'http' is not a port"),
        ("0:80", "from 1 to 65535"),
        ("8080:65536", "from 1 to 65535"),
        ("82-80", "lower one first"),
        ("8000-8002:80", "as many ports of the container"),
        ("8000-8002:80-81", "3 and 2 ports"),
        ("80/sctp", "'sctp' is not tcp or udp"),
        ("::1:80:80", "IPv6 address in brackets"),
        ("[::1]80", "in brackets is followed"),
        ("example.org:80:80", "no address of this machine"),
        ("8080:\u0661", "is not a port"),
    ],
)
def test_other_writing_is_refused(text, words):
    """With what is wrong with it, and how it is written."""
    with pytest.raises(InvalidOption, match=words):
        read_publish(text)


def test_exposed_ports_are_read_as_images_have_them():
    """``PORT/PROTOCOL`` and ranges count; what a stranger's image has beside that is left out."""
    found = exposed_mappings(("80/tcp", "53/udp", "9000-9001/tcp", "127.0.0.1:1:2", "nonsense", ""))
    assert [(each.container_port, each.protocol) for each in found] == [
        (80, "tcp"), (53, "udp"), (9000, "tcp"), (9001, "tcp"),
    ]  # fmt: skip
    assert all(each.host_port == 0 and not each.host_ip for each in found)


def test_port_text_is_dockers():
    """The form of `ps`, IPv6 in brackets."""
    assert port_text(PortMapping(container_port=80, host_port=8080)) == "127.0.0.1:8080->80/tcp"
    mapping = PortMapping(container_port=53, protocol="udp", host_ip="::", host_port=5300)
    assert port_text(mapping) == "[::]:5300->53/udp"


@pytest.mark.parametrize(("address", "only_here"), [("", True), ("127.0.0.5", True), ("::1", True), ("0.0.0.0", False)])
def test_loopback_is_this_machine_alone(address, only_here):
    """Also where the address says so."""
    assert is_loopback(address) is only_here


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_is_held(protocol):
    """On both loopback addresses, under one number, until the sockets are closed; nobody else gets it meanwhile."""
    mapping, sockets = listen(PortMapping(container_port=80, protocol=protocol))
    try:
        assert mapping.host_port > 0
        assert {each.getsockname()[1] for each in sockets} == {mapping.host_port}
        assert sockets[0].getsockname()[0] == "127.0.0.1"
        with pytest.raises(Conflict, match=f"{mapping.host_port} .*in use"):
            listen(mapping)
    finally:
        for each in sockets:
            each.close()
    _, again = listen(mapping)
    for each in again:
        each.close()


def test_half_a_port_is_not_taken():
    """One that is free on one of the two loopback addresses only is refused, and the free one is let go."""
    with socket.socket(socket.AF_INET6) as other:
        try:
            other.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 loopback here")
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(Conflict):
            listen(PortMapping(container_port=80, host_port=port))
        with socket.socket() as free:
            free.bind(("127.0.0.1", port))


def test_address_of_another_machine_is_refused():
    """A port can be taken only at addresses that this machine has."""
    with pytest.raises(InvalidOption, match="does not have that address"):
        listen(PortMapping(container_port=80, host_port=18099, host_ip="203.0.113.7"))
