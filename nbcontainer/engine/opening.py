"""Where a browser finds what a container has published, and the page shown in a notebook: pure, from the record.

Behind JupyterHub the person's browser is on another machine, where 127.0.0.1 is something else; there jupyter-server-
proxy, when it is installed, passes on what is asked of the notebook server. A page that comes that way has the
server's own origin, so inside a notebook it is shown without the rights of one (the ``sandbox`` of its frame).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.tables import escape, printable
from nbcontainer.errors import InvalidOption, NotFound

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Launched", "Page", "Published", "address", "behind_hub", "behind_proxy", "chosen_port", "published_ports"]

_HUB = "JUPYTERHUB_SERVICE_PREFIX"
_ALLOWED = "allow-scripts allow-forms allow-popups allow-downloads allow-modals"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A port of a container that is one of this machine's, too."""

    ip: str
    host_port: int
    container_port: int
    protocol: str = "tcp"

    def __str__(self) -> str:
        host = f"[{self.ip}]" if ":" in self.ip else self.ip or "0.0.0.0"  # noqa: S104 - as it is shown
        return f"{host}:{self.host_port}->{self.container_port}/{self.protocol}"


def published_ports(record: Mapping[str, Any]) -> tuple[Published, ...]:
    """The published ports that a record tells of; what cannot be read is left out."""
    listed = record.get("ports")
    return tuple(
        Published(
            ip=str(each.get("ip") or ""),
            host_port=each["host_port"],
            container_port=each["container_port"],
            protocol=str(each.get("protocol") or "tcp"),
        )
        for each in (listed if isinstance(listed, (list, tuple)) else ())
        if isinstance(each, dict) and all(type(each.get(name)) is int for name in ("host_port", "container_port"))
    )


def chosen_port(record: Mapping[str, Any], name: str, wanted: int | None) -> Published:
    """The published port that `wanted`, one of the container's, is; without it the only one.

    A container in this machine's network has this machine's ports.
    """
    spec = record.get("spec")
    if isinstance(spec, dict) and spec.get("network") == "host":
        if wanted is None:
            raise InvalidOption(f"container {name} is in this machine's network; say which port: open {name} PORT")
        return Published(ip="127.0.0.1", host_port=wanted, container_port=wanted)
    ports = [each for each in published_ports(record) if each.protocol == "tcp"]
    fitting = [each for each in ports if wanted in {None, each.container_port}]
    if not ports:
        raise NotFound(f"container {name} publishes no port; start it with -p HOST:CONTAINER, for example -p 8080:80")
    if not fitting:
        known = ", ".join(sorted({str(each.container_port) for each in ports}, key=int))
        raise NotFound(f"container {name} does not publish its port {wanted}; it publishes {known}")
    if len({each.container_port for each in fitting}) > 1:
        known = ", ".join(sorted({str(each.container_port) for each in fitting}, key=int))
        raise InvalidOption(f"container {name} publishes several ports ({known}); say which: open {name} PORT")
    return min(fitting, key=lambda each: (":" in each.ip, each.ip))


def behind_hub(environment: Mapping[str, str]) -> bool:
    """Whether the notebook is behind JupyterHub."""
    return bool(environment.get(_HUB))


def behind_proxy(environment: Mapping[str, str]) -> bool:
    """Whether the notebook is behind JupyterHub, and what listens here can be reached through its server."""
    return behind_hub(environment) and find_spec("jupyter_server_proxy") is not None


def address(port: Published, environment: Mapping[str, str], *, proxied: bool) -> str:
    """The address of a published port for the person's browser; `proxied` as `behind_proxy` has it."""
    host = port.ip or "127.0.0.1"
    if ipaddress.ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    if proxied:
        prefix = environment.get(_HUB, "/").rstrip("/")
        there = str(port.host_port) if host == "127.0.0.1" else f"{host}:{port.host_port}"
        return f"{prefix}/proxy/{there}/"
    return f"http://[{host}]:{port.host_port}/" if ":" in host else f"http://{host}:{port.host_port}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An address as an answer: its text in terminals, the page itself in a notebook; `note` is to stand below it."""

    url: str
    proxied: bool = False
    height: int = 480
    note: str = ""

    def __str__(self) -> str:
        return f"{self.url}\n{self.note}" if self.note else self.url

    __repr__ = __str__

    def _repr_html_(self) -> str:
        url = escape(self.url)
        rights = _ALLOWED if self.proxied else f"{_ALLOWED} allow-same-origin"
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        return (
            f'<iframe src="{url}" width="100%" height="{self.height}" sandbox="{rights}" style="border:1px solid #8888"'
            f'></iframe><p><a href="{url}" target="_blank" rel="noopener noreferrer">{url}</a></p>{note}'
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A container that runs on behind now: its name and id, and links to what it publishes.

    `links` are pairs of a port's text and its address.
    """

    id: str
    name: str = ""
    links: tuple[tuple[str, str], ...] = ()

    @property
    def _head(self) -> str:
        head = f"{self.name} ({self.id[:12]})" if self.name else self.id[:12]
        return printable(f"{head} runs on behind")

    def __str__(self) -> str:
        return "\n".join([self._head, *(printable(f"{text}  {url}") for text, url in self.links)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<br><code>{escape(text)}</code> <a href="{escape(url)}" target="_blank" rel="noopener noreferrer">'
            f"{escape(url)}</a>"
            for text, url in self.links
        )
        return f"<div>{escape(self._head)}{rows}</div>"
