"""One request to one endpoint, with all that HTTP registries put around it: scheme, log-in, redirects.

What comes back is an answer of any status. Asking again after a failure, and asking another endpoint, is for the
callers: a document starts over, a blob goes on where it was.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from nbcontainer.registry.addresses import Origin
from nbcontainer.registry.auth import Authenticator
from nbcontainer.registry.challenges import parse_challenges
from nbcontainer.registry.failures import ConnectionFailed
from nbcontainer.registry.redirects import TargetPolicy, follow
from nbcontainer.registry.refusals import Complaint, denial
from nbcontainer.registry.transport import HttpRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.registry.interrupts import Interrupt
    from nbcontainer.registry.refusals import Subject
    from nbcontainer.registry.settings import Endpoint, RegistrySettings, Scheme
    from nbcontainer.registry.transport import HttpResponse, Method, RegistryTransport

__all__ = ["Exchange"]

# What https to a server of plain http looks like, depending on the server.
_MAYBE_PLAIN = frozenset({"plain-http", "tls", "refused", "broken", "timeout"})


@dataclass(slots=True)
class Exchange:
    """The way to endpoints, shared by all threads of a client; remembers the scheme that worked and the tokens."""

    transport: RegistryTransport
    settings: RegistrySettings
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: dict[str, Scheme] = field(default_factory=dict)
    _authenticator: Authenticator = field(init=False)

    def __post_init__(self) -> None:
        self._authenticator = Authenticator(self.transport, self.settings)

    def ask(
        self, subject: Subject, method: Method, tail: str, headers: Mapping[str, str], interrupt: Interrupt
    ) -> HttpResponse:
        """Ask the endpoint for ``manifests/…`` or ``blobs/…``, logging in when it wants that.

        Raises `Denied` when no log-in satisfies it; any other status is the caller's to judge.
        """
        endpoint = subject.endpoint
        schemes = self._schemes(endpoint)
        for scheme in schemes:
            url = endpoint.url(scheme, subject.reference.repository, tail)
            try:
                response = self._authorized(subject, HttpRequest(method=method, url=url, headers=headers), interrupt)
            except ConnectionFailed as problem:
                if scheme == schemes[-1] or problem.kind not in _MAYBE_PLAIN:
                    raise
            else:
                with self._lock:
                    self._known[endpoint.host] = scheme
                return response
        raise AssertionError("an endpoint has at least one scheme")

    def fetch_foreign(
        self, subject: Subject, url: str, headers: Mapping[str, str], interrupt: Interrupt
    ) -> HttpResponse:
        """Fetch a URL that a manifest names, anonymously whatever it answers (CVE-2020-15157)."""
        policy = TargetPolicy(
            endpoint=subject.endpoint,
            settings=self.settings,
            what="the source of a foreign layer",
            forbidden=frozenset({"loopback", "link-local", "private"}),
        )
        policy.check(url)
        return follow(self.transport, HttpRequest(method="GET", url=url, headers=headers), policy, interrupt)

    def _schemes(self, endpoint: Endpoint) -> tuple[Scheme, ...]:
        with self._lock:
            known = self._known.get(endpoint.host)
        return (known,) if known in endpoint.schemes and known is not None else endpoint.schemes

    def _authorized(self, subject: Subject, request: HttpRequest, interrupt: Interrupt) -> HttpResponse:
        endpoint, origin = subject.endpoint, Origin.of(request.url)
        policy = TargetPolicy(
            endpoint=endpoint,
            settings=self.settings,
            what="the place of what was asked for",
            forbidden=frozenset({"loopback", "link-local"}),
        )
        sent = self._authenticator.current(origin, endpoint.repository(subject.reference.repository))
        # A token held may have been revoked, then one a neighbour just fetched is tried, and then our own.
        for _ in range(3):
            response = follow(self.transport, replace(request, authorization=sent), policy, interrupt)
            if response.status not in (401, 403) or Origin.of(response.url) != origin:
                return response
            challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
            complaint = Complaint.read(response)
            fresh = None
            if response.status == 401:
                fresh = self._authenticator.answer(origin, subject, challenges, sent, interrupt)
            if fresh is None:
                break
            sent = fresh
        raise denial(replace(subject, login=self._authenticator.explain(origin, subject)), complaint)
