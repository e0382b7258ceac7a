"""EXPOSE: ports and ranges of ports, as an image's config has them."""

from __future__ import annotations

import re

from nbcontainer.errors import DockerfileError

__all__ = ["exposed_ports"]

_PORT = re.compile(
    r"(?:\[[0-9A-Fa-f:.]*\]:|[0-9.]*:)?(?:[0-9-]*:)?([0-9]{1,5})(?:-([0-9]{1,5}))?(?:/([A-Za-z]*))?", re.ASCII
)
_PROTOCOLS = ("tcp", "udp", "sctp")


def exposed_ports(word: str) -> tuple[str, ...]:
    """The ports that an expanded word of EXPOSE names; raises `DockerfileError` without a place.

    An address and a host's port in front, which say nothing here, are passed over as BuildKit does (and its check
    ExposeInvalidFormat warns of).

    >>> exposed_ports("53-54/UDP")
    ('53/udp', '54/udp')
    """
    match = _PORT.fullmatch(word)
    if not match:
        raise DockerfileError(f"the port {word!r} is not PORT[-PORT][/PROTOCOL]; write for example 80/tcp")
    first, last, protocol = int(match[1]), int(match[2] or match[1]), (match[3] or "tcp").lower()
    if not first <= last <= 65535:
        raise DockerfileError(f"the port {word!r} is not a range within 0 to 65535")
    if protocol not in _PROTOCOLS:
        raise DockerfileError(f"the protocol of port {word!r} is none of {', '.join(_PROTOCOLS)}")
    return tuple(f"{port}/{protocol}" for port in range(first, last + 1))
