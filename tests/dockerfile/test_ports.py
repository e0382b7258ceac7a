"""Words of EXPOSE, as an image's config has them."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile.ports import exposed_ports
from nbcontainer.errors import DockerfileError


@pytest.mark.parametrize(
    ("word", "ports"),
    [
        ("80", ("80/tcp",)),
        ("80/", ("80/tcp",)),
        ("080/UDP", ("80/udp",)),
        ("7000-7002/sctp", ("7000/sctp", "7001/sctp", "7002/sctp")),
        ("8080:80", ("80/tcp",)),
        ("127.0.0.1::80/udp", ("80/udp",)),
        ("[::1]:8080:80", ("80/tcp",)),
        ("1-2:3-4", ("3/tcp", "4/tcp")),
        ("0-65535", tuple(f"{port}/tcp" for port in range(65536))),
    ],
)
def test_ports(word: str, ports: tuple[str, ...]) -> None:
    """Ranges are spelled out, the protocol is tcp unless given, and what a host has to do with it is passed over."""
    assert exposed_ports(word) == ports


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("", "write for example 80/tcp"),
        ("http", "write for example 80/tcp"),
        ("80/tcp/udp", "write for example"),
        ("-1", "write for example"),
        ("٣", "write for example"),
        ("65536", "within 0 to 65535"),
        ("90-80", "within 0 to 65535"),
        ("80/icmp", "none of tcp, udp, sctp"),
    ],
)
def test_refused(word: str, message: str) -> None:
    """What is no port is refused."""
    with pytest.raises(DockerfileError) as caught:
        exposed_ports(word)
    assert message in str(caught.value)
