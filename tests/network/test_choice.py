"""``--network``, and what goes with it."""

from __future__ import annotations

import pytest

from nbcontainer.engine.network_options import read_extra_host, read_network
from nbcontainer.engine.networking import check_networking, resolved_networking
from nbcontainer.errors import InvalidOption
from nbcontainer.model import ImageConfig, Platform
from nbcontainer.model.network import NetworkChoice, NetworkOptions, PortMapping


@pytest.mark.parametrize(
    ("text", "kind", "name", "hosts"),
    [
        ("none", "none", "", ()),
        ("host", "host", "", ()),
        ("bridge", "bridge", "bridge", ()),
        ("default", "bridge", "bridge", ()),
        ("my.lab-1", "bridge", "my.lab-1", ()),
        ("container:web", "container", "web", ()),
        ("egress:Example.org.,*.github.com", "egress", "", ("example.org", "*.github.com")),
        ("egress:192.0.2.7,2001:db8::7", "egress", "", ("192.0.2.7", "2001:db8::7")),
    ],
)
def test_networks_as_they_are_written(text, kind, name, hosts):
    """Each kind, with what belongs to it."""
    choice = NetworkChoice.parse(text)
    assert (choice.kind, choice.name, choice.hosts) == (kind, name, hosts)
    assert NetworkChoice.parse(read_network(text)) == choice


@pytest.mark.parametrize(
    "text", ["", "a b", "container:", "container:a/b", "egress:", "egress:a,,b", "egress:a b", "egress:*", "x:y", "-x"]
)
def test_other_networks_are_refused(text):
    """Before anything is started."""
    with pytest.raises(InvalidOption):
        NetworkChoice.parse(text)


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("none", NetworkOptions(ports=(PortMapping(container_port=80),)), "-p does not go with no network"),
        ("host", NetworkOptions(publish_all=True), "-p does not go with this machine's network"),
        ("host", NetworkOptions(dns=("192.0.2.1",)), "--dns does not go"),
        ("container:x", NetworkOptions(extra_hosts=("a:192.0.2.1",)), "--add-host does not go"),
        ("container:x", NetworkOptions(aliases=("a",)), "--network-alias does not go"),
        ("egress:a.example", NetworkOptions(address="10.0.0.1"), "--ip does not go with --network egress"),
    ],
)
def test_what_does_not_go_together(network, options, words):
    """Is refused by name."""
    with pytest.raises(InvalidOption, match=words):
        check_networking(NetworkChoice.parse(network), options)


def test_what_goes_together():
    """A bridge takes everything, and hosts can be added without one."""
    options = NetworkOptions(ports=(PortMapping(container_port=80),), dns=("192.0.2.1",), address="10.0.0.1", mac="x")
    check_networking(NetworkChoice.parse("bridge"), options)
    check_networking(NetworkChoice.parse("none"), NetworkOptions(extra_hosts=("a:192.0.2.1",)))


def test_all_exposed_ports_are_published_once():
    """Those that were published by hand stay as they are."""
    config = ImageConfig(platform=Platform("linux", "amd64"), exposed_ports=("80/tcp", "443/tcp", "80/udp"))
    mine = PortMapping(container_port=80, host_port=8080)
    found = resolved_networking(NetworkOptions(ports=(mine,), publish_all=True), config)
    assert found.ports[0] == mine
    assert [(each.container_port, each.protocol, each.host_port) for each in found.ports[1:]] == [
        (443, "tcp", 0), (80, "udp", 0),
    ]  # fmt: skip
    assert not found.publish_all
    assert resolved_networking(NetworkOptions(ports=(mine,)), config).ports == (mine,)


@pytest.mark.parametrize(
    ("text", "read"),
    [("db:10.1.2.3", "db:10.1.2.3"), ("db=10.1.2.3", "db:10.1.2.3"), ("six:::1", "six:::1"), ("m:host-gateway",) * 2],
)
def test_added_hosts(text, read):
    """Docker's two forms, IPv6, and the gateway."""
    assert read_extra_host(text) == read


@pytest.mark.parametrize("text", ["db", "db:", ":10.1.2.3", "db:ten", "a b:10.1.2.3", "db:10.1.2.3\n127.0.0.1 bank"])
def test_added_hosts_that_are_none(text):
    """Nothing can smuggle a line of its own into /etc/hosts."""
    with pytest.raises(InvalidOption):
        read_extra_host(text)
