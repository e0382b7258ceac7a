"""Where a URL leads: its origin, whether that is this machine or a private network, and how to show it.

Credentials are bound to an `Origin` (scheme, host, port); URLs come from strangers (redirects, token realms), so they
are read strictly: what two parsers could read in two ways is refused.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from nbcontainer.errors import RemoteError

__all__ = ["Origin", "Reach", "is_loopback_name", "reaches_of", "redact", "redact_text", "split_host"]

Reach = Literal["loopback", "link-local", "private", "public"]
_DEFAULT_PORTS = {"http": 80, "https": 443}
_AMBIGUOUS = re.compile(r"[\\\s\x00-\x1f\x7f]")
_QUERY = re.compile(r"(https?://[^\s?\"'<>]*)\?[^\s\"'<>]*", re.IGNORECASE)
_USERINFO = re.compile(r"(https?://)[^\s/\"'<>@]*@", re.IGNORECASE)
_SECRET = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9\-._~+/]{8,}=*", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a URL: what an Authorization header belongs to."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of an absolute http(s) URL; raises `RemoteError` for anything else or anything ambiguous."""
        try:
            parts = urlsplit(url)
            scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
        except ValueError as problem:
            raise RemoteError(f"the address {redact(url)!r} from the registry is malformed") from problem
        if scheme not in _DEFAULT_PORTS or not host or _AMBIGUOUS.search(url) or "@" in parts.netloc:
            raise RemoteError(
                f"the address {redact(url)!r} from the registry is not a plain http or https URL; refused"
            )
        return cls(scheme, host, port or _DEFAULT_PORTS[scheme])

    @property
    def authority(self) -> str:
        """``host[:port]``, the port left out when it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def split_host(host: str) -> str:
    """``host[:port]`` without the port and the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback_name(name: str) -> bool:
    """Whether a bare host name is this machine by its spelling alone, as docker has it."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def reaches_of(name: str) -> frozenset[Reach]:
    """The networks that the addresses of host `name` are in; empty when it does not resolve here.

    Behind a proxy names may well not resolve; then the proxy decides. A name may resolve differently a moment later:
    what stands against that is TLS, since a service inside has no certificate for the outside name.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(_reach(str(entry[4][0])) for entry in found)


def _reach(text: str) -> Reach:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return "public" if address.is_global else "private"


def redact(url: str) -> str:
    """A URL fit to be shown: without user, password, query (signatures live there) and fragment."""
    head, mark, _ = url.partition("?")
    head = _USERINFO.sub(r"\1", head.partition("#")[0])
    return f"{_CONTROL.sub(' ', head)[:300]}{'?…' if mark else ''}"


def redact_text(text: str, limit: int = 300) -> str:
    """A stranger's sentence fit to be shown: one line, no control codes, no signatures or tokens, bounded."""
    text = _CONTROL.sub(" ", text[: 20 * limit])
    text = _USERINFO.sub(r"\1", _QUERY.sub(r"\1?…", text))
    text = " ".join(_SECRET.sub(r"\1 …", text).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
