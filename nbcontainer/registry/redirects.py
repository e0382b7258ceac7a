"""Following redirects: at most ten, and with an eye on where they lead.

Two rules. *Authorization belongs to an origin*: it is dropped for good at the first hop to another scheme, host or
port (RFC 9110, 15.4; object stores also answer 400 to a header they did not ask for). *A stranger does not choose
what this machine talks to*: a registry of the Internet may not send us by plain http, nor to loopback or link-local
addresses, where notebook servers and cloud metadata live.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from nbcontainer.errors import RegistryRefused
from nbcontainer.registry.addresses import Origin, Reach, is_loopback_name, reaches_of, redact

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.registry.interrupts import Interrupt
    from nbcontainer.registry.settings import Endpoint, RegistrySettings
    from nbcontainer.registry.transport import HttpRequest, HttpResponse, RegistryTransport

__all__ = ["TargetPolicy", "follow"]

_MOST_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_KEEP_METHOD = frozenset({307, 308})


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPolicy:
    """Where a registry may send us: with a redirect, a token realm or a foreign layer URL.

    `forbidden` are the networks near to us. A registry that is there itself may name its neighbours: a token
    service beside a registry on a private network is the rule there.
    """

    endpoint: Endpoint
    settings: RegistrySettings
    what: str
    forbidden: frozenset[Reach]
    find_reaches: Callable[[str], frozenset[Reach]] = reaches_of

    def check(self, url: str) -> None:
        """Raise `RegistryRefused` when `url` must not be asked."""
        target = Origin.of(url)
        if self.settings.listed_insecure(target.authority) or self._is_registry(target):
            return
        if target.scheme == "http" and not self.endpoint.insecure:
            raise self._refused(url, "plain http instead of https")
        if self.endpoint.insecure:
            return
        near = self.find_reaches(target.host) & self.forbidden
        # All addresses of the registry must be as near: one public name may have a loopback address beside others.
        if near and self.find_reaches(self.endpoint.name) != near:
            raise self._refused(url, f"a {min(near)} address")

    def verify(self, url: str) -> bool:
        """Whether the certificate of `url` has to be valid."""
        target = Origin.of(url)
        if self._is_registry(target):
            return not self.endpoint.insecure
        return not (self.settings.listed_insecure(target.authority) or self._near(target))

    def _near(self, target: Origin) -> bool:
        return self.endpoint.insecure and is_loopback_name(target.host)

    def _is_registry(self, target: Origin) -> bool:
        """The registry's own host; by http only where the registry may be spoken to so."""
        own = Origin.of(f"{target.scheme}://{self.endpoint.host}")
        return own == target and target.scheme in self.endpoint.schemes

    def _refused(self, url: str, why: str) -> RegistryRefused:
        return RegistryRefused(
            f"{self.endpoint} named {redact(url)} as {self.what}: {why}, refused; if this is your own registry, add"
            f" {Origin.of(url).authority} to the insecure registries (NBCONTAINER_INSECURE_REGISTRIES)",
            status=0,
        )


def follow(
    transport: RegistryTransport, request: HttpRequest, policy: TargetPolicy, interrupt: Interrupt
) -> HttpResponse:
    """Send `request` and follow where it leads; the caller has vetted the first URL, or it is the registry's own."""
    for _ in range(_MOST_REDIRECTS + 1):
        response = transport.send(replace(request, verify=policy.verify(request.url)), interrupt)
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or not location:
            return response
        response.close()
        request = _redirected(request, response.status, urljoin(request.url, location), policy)
    raise RegistryRefused(f"{policy.endpoint} redirected more than {_MOST_REDIRECTS} times; refused", status=0)


def _redirected(request: HttpRequest, status: int, url: str, policy: TargetPolicy) -> HttpRequest:
    policy.check(url)
    same = Origin.of(url) == Origin.of(request.url)
    if request.body is not None:
        # The body of a token request holds the refresh token.
        if not same or status not in _KEEP_METHOD:
            raise RegistryRefused(
                f"{policy.endpoint} redirected a log-in to {redact(url)}; credentials are not sent on", status=0
            )
        return replace(request, url=url)
    return replace(request, url=url, authorization=request.authorization if same else None)
