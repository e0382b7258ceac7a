"""What a person may set about registries, frozen, and the endpoints that follow from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from nbcontainer.errors import InvalidOption
from nbcontainer.model.reference import DEFAULT_REGISTRY
from nbcontainer.registry.addresses import is_loopback_name, redact, split_host

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Endpoint", "RegistrySettings", "Scheme", "canonical_registry"]

Scheme = Literal["https", "http"]
_HUB_HOST = "registry-1.docker.io"
_HUB_NAMES = frozenset({DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_HOST = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)


def _no_mirrors() -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address that serves a registry's images.

    `schemes` are tried in order: an insecure host is asked by https (unverified) first and by http then, as docker
    does. `base` and `prefix` come from a mirror's path; see `RegistrySettings.mirrors`.
    """

    host: str
    schemes: tuple[Scheme, ...]
    insecure: bool
    mirror: bool
    base: str = "/v2"
    prefix: str = ""

    @property
    def credential_key(self) -> str:
        """The registry under whose name its credentials are filed: its own, never that of what it mirrors."""
        return canonical_registry(self.host)

    @property
    def name(self) -> str:
        """The bare host name, without a port."""
        return split_host(self.host).lower()

    def repository(self, repository: str) -> str:
        """The name this endpoint knows `repository` by."""
        return f"{self.prefix}/{repository}" if self.prefix else repository

    def url(self, scheme: Scheme, repository: str, tail: str) -> str:
        """The URL of ``manifests/…`` or ``blobs/…`` (distribution-spec, "Endpoints")."""
        return f"{scheme}://{self.host}{self.base}/{self.repository(repository)}/{tail}"

    def __str__(self) -> str:
        return DEFAULT_REGISTRY if self.host == _HUB_HOST else self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How to reach registries.

    `mirrors`: registry to bases asked first, each ``host[:port]`` or a URL whose scheme is then binding (``http://``
    is plain). A path in it goes before the repository name (``harbor.example/hub`` serves ``hub/library/ubuntu``),
    unless it has a ``v2`` component: then it is the base of the API as it stands
    (``https://art.example/api/hub/v2``).

    `insecure`: ``host`` or ``host:port`` that may be spoken to in plain http or with an unverified certificate; this
    machine (localhost, 127.0.0.0/8, ::1) always is.

    `timeout`: seconds of silence before giving up on an answer; a connection must be made within ten of them.
    `attempts` and `backoff`: how often a passing failure is met, and the first pause (it doubles each time, with
    jitter). `longest_wait`: a registry that asks for a longer pause than this is not waited for.

    `docker_config`: the one credentials file (or the folder of its config.json) to read; None searches as docker and
    podman do.
    """

    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=_no_mirrors)
    insecure: tuple[str, ...] = ()
    timeout: float = 30.0
    attempts: int = 5
    backoff: float = 0.5
    longest_wait: float = 60.0
    docker_config: str | None = None

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.timeout <= 0:
            raise InvalidOption("registry attempts must be at least 1 and the timeout more than 0 seconds")
        for registry in self.mirrors:
            self.endpoints(registry)

    def listed_insecure(self, host: str) -> bool:
        """Whether a person listed `host` (``name`` or ``name:port``) as insecure."""
        return host.lower() in self._insecure or split_host(host).lower() in self._insecure

    def is_insecure(self, host: str) -> bool:
        """Whether plain http and unverified TLS are allowed with `host`."""
        return is_loopback_name(split_host(host).lower()) or self.listed_insecure(host)

    def endpoints(self, registry: str) -> tuple[Endpoint, ...]:
        """The mirrors of `registry` in order, then itself."""
        mirrors = tuple(self._mirror(text) for text in self.mirrors.get(registry, ()))
        host = _HUB_HOST if registry == DEFAULT_REGISTRY else registry
        insecure = self.is_insecure(host)
        return (*mirrors, Endpoint(host, _schemes(insecure=insecure), insecure, mirror=False))

    @property
    def _insecure(self) -> frozenset[str]:
        return frozenset(name.strip().lower() for name in self.insecure)

    def _mirror(self, text: str) -> Endpoint:
        scheme, mark, rest = text.strip().rpartition("://")
        host, _, path = rest.partition("/")
        known: dict[str, Scheme] = {"http": "http", "https": "https"}
        if (mark and scheme not in known) or not _HOST.fullmatch(host) or urlsplit(f"//{rest}").query:
            raise InvalidOption(
                f"mirror {redact(text)!r} is not host[:port][/path] or an http or https URL of that form"
            )
        insecure = self.is_insecure(host) or scheme == "http"
        schemes = (known[scheme],) if mark else _schemes(insecure=insecure)
        path = path.strip("/")
        if "v2" in path.split("/"):
            return Endpoint(host, schemes, insecure, mirror=True, base=f"/{path}")
        return Endpoint(host, schemes, insecure, mirror=True, prefix=path)


def canonical_registry(host: str) -> str:
    """One name for the several hosts of Docker Hub; any other host in lower case."""
    host = host.lower()
    return DEFAULT_REGISTRY if host in _HUB_NAMES else host


def _schemes(*, insecure: bool) -> tuple[Scheme, ...]:
    return ("https", "http") if insecure else ("https",)
