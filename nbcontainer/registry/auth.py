"""Logging in: from a 401 and its challenges to an Authorization header.

A registry says with 401 how it wants to be asked (distribution, "Token Authentication Specification"): by Basic, or
by a Bearer token fetched from a *realm*, with GET (and Basic there when we have a password) or, with an identity
token, by OAuth2 POST. Tokens are kept per origin and repository until they expire or are refused; parallel downloads
share one.

A registry names its own realm, so credentials go where it says: the realm must be https and public unless the
registry itself is not (`TargetPolicy`), and only that registry's own credentials are ever used.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from nbcontainer.errors import Denied, RegistryRefused, RemoteError
from nbcontainer.registry.credentials import Credentials, Login, find_login
from nbcontainer.registry.redirects import TargetPolicy, follow
from nbcontainer.registry.refusals import BODY_LIMIT, BUSY, Complaint, Subject, login_command, refusal
from nbcontainer.registry.transport import HttpRequest, HttpResponse, read_capped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.registry.addresses import Origin
    from nbcontainer.registry.challenges import Challenge
    from nbcontainer.registry.interrupts import Interrupt
    from nbcontainer.registry.settings import RegistrySettings
    from nbcontainer.registry.transport import RegistryTransport

__all__ = ["Authenticator", "Authorization"]

_CLIENT_ID = "nbcontainer"
_DEFAULT_LIFETIME = 60.0
_LONGEST_LIFETIME = 24 * 3600.0
_MARGIN = 5.0
# RFC 6750, 2.1 (b64token); anything else could not stand in a header.
_TOKEN = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Authorization:
    """A header value and until when it holds (`time.monotonic`)."""

    value: str = field(repr=False)
    expires: float = float("inf")

    @property
    def fresh(self) -> bool:
        """True while it need not be fetched again."""
        return time.monotonic() < self.expires


@dataclass(slots=True)
class _Account:
    """What is known for one origin and repository; its lock lets one thread log in while the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    held: Authorization | None = None
    login: Login | None = None


class Authenticator:
    """Holds the authorizations of one client."""

    def __init__(self, transport: RegistryTransport, settings: RegistrySettings) -> None:
        self._transport = transport
        self._settings = settings
        self._lock = threading.Lock()
        self._accounts: dict[tuple[Origin, str], _Account] = {}

    def current(self, origin: Origin, repository: str) -> str | None:
        """The header to send without being asked, if we hold one for exactly this origin and repository."""
        held = self._account(origin, repository).held
        return held.value if held and held.fresh else None

    def answer(
        self,
        origin: Origin,
        subject: Subject,
        challenges: tuple[Challenge, ...],
        rejected: str | None,
        interrupt: Interrupt,
    ) -> str | None:
        """A header that meets `challenges`, other than the `rejected` one; None when there is none to be had."""
        repository = subject.endpoint.repository(subject.reference.repository)
        account = self._account(origin, repository)
        with _held(account.lock, interrupt):
            if account.held and account.held.fresh and account.held.value != rejected:
                return account.held.value
            if account.login is None:
                account.login = find_login(subject.endpoint.credential_key, repository, self._settings, interrupt)
            account.held = self._meet(subject, repository, challenges, account.login.credentials, interrupt)
            if account.held is None or account.held.value == rejected:
                account.held = None
                return None
            return account.held.value

    def explain(self, origin: Origin, subject: Subject) -> str:
        """The end of a denial: with whose credentials we came, or that there were none, and what to do."""
        login = self._account(origin, subject.endpoint.repository(subject.reference.repository)).login or Login(None)
        command = login_command(subject.endpoint)
        problems = "".join(f"; {problem}" for problem in login.problems)
        if login.credentials is None:
            return f"no credentials for {subject.endpoint} were found, log in with: {command}{problems}"
        who = login.credentials.username or "the identity token"
        return f"the credentials of {who} from {login.credentials.source} were used, log in again with: {command}"

    def _account(self, origin: Origin, repository: str) -> _Account:
        with self._lock:
            return self._accounts.setdefault((origin, repository), _Account())

    def _meet(
        self,
        subject: Subject,
        repository: str,
        challenges: tuple[Challenge, ...],
        credentials: Credentials | None,
        interrupt: Interrupt,
    ) -> Authorization | None:
        """Bearer before Basic, whatever their order: a token says less than a password."""
        if credentials and credentials.registry_token:
            return Authorization(f"Bearer {credentials.registry_token}")
        for challenge in challenges:
            if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                exchange = _TokenExchange(self._transport, self._settings, subject, repository, challenge, interrupt)
                return exchange.token(credentials)
        basic = credentials.basic if credentials else None
        if basic and any(challenge.scheme == "basic" for challenge in challenges):
            return Authorization(basic)
        return None


class _held:  # noqa: N801 - reads as `with _held(lock, interrupt)`
    """A lock taken in small waits, so that `interrupt` ends the waiting."""

    def __init__(self, lock: threading.Lock, interrupt: Interrupt) -> None:
        self._lock = lock
        self._interrupt = interrupt

    def __enter__(self) -> None:
        while not self._lock.acquire(timeout=0.1):
            self._interrupt.check()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@dataclass(frozen=True, slots=True)
class _TokenExchange:
    """One Bearer challenge, met."""

    transport: RegistryTransport
    settings: RegistrySettings
    subject: Subject
    repository: str
    challenge: Challenge
    interrupt: Interrupt

    def token(self, credentials: Credentials | None) -> Authorization:
        """Fetch a token, with `credentials` or anonymously."""
        policy = TargetPolicy(
            endpoint=self.subject.endpoint,
            settings=self.settings,
            what="its token server",
            forbidden=frozenset({"loopback", "link-local", "private"}),
        )
        policy.check(self._realm)
        asked = time.monotonic()
        for request in self._requests(credentials):
            response = follow(self.transport, request, policy, self.interrupt)
            if request.method == "POST" and response.status in (404, 405):
                response.close()
                continue
            return self._authorization(response, credentials, asked)
        raise RemoteError(f"the token server of {self.subject.endpoint} takes no identity tokens; log in again")

    def _requests(self, credentials: Credentials | None) -> Iterator[HttpRequest]:
        """The ways to ask, best first; the next is for servers without the OAuth2 endpoint (404, 405)."""
        if credentials and credentials.identity_token:
            fields = {
                "grant_type": "refresh_token",
                "service": self.challenge.parameters.get("service", ""),
                "client_id": _CLIENT_ID,
                "scope": self._scope,
                "refresh_token": credentials.identity_token,
            }
            yield HttpRequest(
                method="POST",
                url=self._realm,
                headers={"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"},
                body=urlencode(fields).encode("ascii"),
            )
            user = credentials.username or "<token>"
            password = credentials.password or credentials.identity_token
            credentials = Credentials(username=user, password=password)
        yield HttpRequest(
            method="GET",
            url=self._get_url(credentials),
            headers={"Accept": "application/json"},
            authorization=credentials.basic if credentials else None,
        )

    @property
    def _realm(self) -> str:
        return self.challenge.parameters["realm"]

    @property
    def _scope(self) -> str:
        return self.challenge.parameters.get("scope") or f"repository:{self.repository}:pull"

    def _get_url(self, credentials: Credentials | None) -> str:
        parts = urlsplit(self._realm)
        query = parse_qsl(parts.query, keep_blank_values=True)
        if service := self.challenge.parameters.get("service"):
            query.append(("service", service))
        query += [("scope", scope) for scope in self._scope.split(" ") if scope]
        if credentials and credentials.username:
            query.append(("account", credentials.username))
        return urlunsplit(parts._replace(query=urlencode(query), fragment=""))

    def _authorization(self, response: HttpResponse, credentials: Credentials | None, asked: float) -> Authorization:
        if response.status in BUSY or response.status == 429:
            raise refusal(response, self.subject)
        if response.status in (400, 401, 403):
            raise self._denied(response, credentials)
        if response.status != 200:
            complaint = Complaint.read(response)
            raise RegistryRefused(
                f"the token server of {self.subject.endpoint} answered status {response.status}{complaint.clause}",
                status=response.status,
                codes=complaint.codes,
            )
        return _decode_token(read_capped(response, BODY_LIMIT), asked, str(self.subject.endpoint))

    def _denied(self, response: HttpResponse, credentials: Credentials | None) -> Denied:
        complaint = Complaint.read(response)
        command = login_command(self.subject.endpoint)
        if credentials is None:
            return Denied(
                f"{self.subject.endpoint} gives no anonymous access to {self.subject.reference}: it does not exist, or"
                f" it is private{complaint.clause}; log in with: {command}"
            )
        who = credentials.username or "the identity token"
        return Denied(
            f"{self.subject.endpoint} refused the credentials of {who} from {credentials.source}{complaint.clause};"
            f" log in again with: {command}"
        )


def _decode_token(body: bytes | None, asked: float, who: str) -> Authorization:
    """``token`` or ``access_token`` for ``expires_in`` seconds from when it was asked for, 60 unless told."""
    if body is None:
        raise RemoteError(f"the token server of {who} sent more than {BODY_LIMIT} bytes; refused")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise RemoteError(f"the token server of {who} did not answer with a JSON object")
    token = answer.get("token") or answer.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise RemoteError(f"the token server of {who} sent no usable token")
    stated = answer.get("expires_in")
    lifetime = stated if isinstance(stated, (int, float)) and not isinstance(stated, bool) else 0
    # "a token should never be returned with less than 60 seconds to live" (token specification)
    lifetime = min(max(float(lifetime), _DEFAULT_LIFETIME), _LONGEST_LIFETIME)
    return Authorization(f"Bearer {token}", asked + lifetime - _MARGIN)
