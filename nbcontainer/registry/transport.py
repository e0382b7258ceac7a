"""One HTTP request and its answer: the seam, and the implementation over `requests`.

The seam does no more than one hop: no redirects, no retries, no credentials but those it is handed. That is on
purpose: `requests` would read a redirect's body without bound, send what ~/.netrc says, and strip an Authorization
header on the way to another host only when it had put it there itself. So its adapter is used, and its `Session` only
for proxies and CA bundles from the environment. Every foreign exception becomes `ConnectionFailed` here, and only
here.
"""

from __future__ import annotations

import errno
import http.client
import logging
import socket
import ssl
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import requests
import requests.adapters
import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions
from urllib3.util.ssl_ import create_urllib3_context

from nbcontainer.registry.addresses import Origin, is_loopback_name, redact
from nbcontainer.registry.failures import ConnectionFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nbcontainer.registry.interrupts import Interrupt

__all__ = ["HttpRequest", "HttpResponse", "Method", "RegistryTransport", "RequestsTransport", "read_capped"]

_log = logging.getLogger(__name__)
Method = Literal["GET", "HEAD", "POST"]
_LONGEST_CONNECT = 10.0
_SILENT = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL})
# What OpenSSL calls an answer that is not TLS; the name changed with 3.5.
_NOT_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What to send. `authorization` is apart from the headers, so that nothing copies it along by accident."""

    method: Method
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = field(default=None, repr=False)
    body: bytes | None = field(default=None, repr=False)
    verify: bool = True


class HttpResponse(Protocol):
    """An answer whose body has not been read; whoever got it closes it."""

    @property
    def status(self) -> int: ...  # noqa: D102 - the HTTP status
    @property
    def url(self) -> str: ...  # noqa: D102 - what was asked
    @property
    def headers(self) -> Mapping[str, str]:
        """By name in any case; several of one name are joined by a comma."""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes as they were sent, never decoded; empty at the end.

        Raises `ConnectionFailed`, or `TransferCancelled` once the interrupt it was sent under has tripped.
        """

    def close(self) -> None:
        """Give the connection back, or close it when the body was not read to its end; safe twice."""


class RegistryTransport(Protocol):
    """Sends one request and follows nothing; called by several threads at once."""

    def send(self, request: HttpRequest, interrupt: Interrupt) -> HttpResponse:
        """The answer, whatever its status; raises `ConnectionFailed` when there is none."""

    def close(self) -> None:
        """Close idle connections; safe twice."""


def read_capped(response: HttpResponse, limit: int) -> bytes | None:
    """The whole body, or None when it is longer than `limit`; closes the response."""
    chunks, room = [], limit
    try:
        while chunk := response.read(min(room + 1, 65536)):
            room -= len(chunk)
            if room < 0:
                return None
            chunks.append(chunk)
    finally:
        response.close()
    return b"".join(chunks)


class RequestsTransport:
    """The real thing: pooled connections, proxies and CA bundles as `requests` finds them in the environment."""

    def __init__(self, *, timeout: float = 30.0) -> None:
        self._timeout = timeout
        self._session = requests.Session()
        self._adapter = _Adapter(pool_maxsize=16)

    def send(self, request: HttpRequest, interrupt: Interrupt) -> HttpResponse:
        """See `RegistryTransport.send`."""
        interrupt.check()
        _log.debug("%s %s", request.method, redact(request.url))
        watch = _Watch(interrupt)
        token = _WATCHER.set(watch)
        failure: ConnectionFailed | None = None
        try:
            response = self._exchange(request)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, http.client.HTTPException) as problem:
            watch.release()
            interrupt.check()
            failure = _translated(problem, request.url, self._timeout)
        except BaseException:
            watch.release()
            raise
        finally:
            _WATCHER.reset(token)
        if failure is not None:
            # Outside the except block: the foreign exception holds the URL with its signature, and would be
            # shown as the context of ours.
            raise failure
        return _Response(response, request.url, watch, interrupt, self._timeout)

    def close(self) -> None:
        """See `RegistryTransport.close`."""
        # urllib3 2 leaves the connections of a cleared manager to the garbage collector: close them ourselves
        managers = (self._adapter.poolmanager, *self._adapter.proxy_manager.values())
        pools = [manager.pools[key] for manager in managers for key in manager.pools.keys()]  # noqa: SIM118 - no iterator
        for pool in pools:
            pool.close()
        self._adapter.close()
        self._session.close()

    def _exchange(self, request: HttpRequest) -> requests.Response:
        headers = {"User-Agent": "nbcontainer", "Accept-Encoding": "identity", **request.headers}
        if request.authorization is not None:
            headers["Authorization"] = request.authorization
        # Prepared without the session: neither cookies nor netrc; the no-op auth also stops a user in the URL.
        prepared = requests.Request(
            request.method, request.url, headers=headers, data=request.body, auth=_as_it_is
        ).prepare()
        surroundings = self._session.merge_environment_settings(
            prepared.url or request.url, {}, stream=True, verify=request.verify, cert=None
        )
        # As Go's http client, and so docker, does: what runs on this machine is not asked for through a proxy.
        local = is_loopback_name(Origin.of(request.url).host)
        return self._adapter.send(
            prepared,
            stream=True,
            timeout=(min(self._timeout, _LONGEST_CONNECT), self._timeout),
            verify=surroundings["verify"] or False,
            cert=surroundings["cert"],
            proxies={} if local else surroundings["proxies"],
        )


class _Watch:
    """Ties the sockets of one exchange to the interrupt that may end it."""

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self._unwatch: list[Callable[[], None]] = []

    def add(self, connection: socket.socket) -> None:
        self._unwatch.append(self._interrupt.watch(lambda: _shut_down(connection)))

    def add_copy(self, connection: socket.socket) -> None:
        """The same for one that TLS is about to take over: its descriptor goes elsewhere before the handshake."""
        copy = connection.dup()
        self._unwatch.append(copy.close)
        self.add(copy)

    def release(self) -> None:
        while self._unwatch:
            self._unwatch.pop()()


def _shut_down(connection: socket.socket) -> None:
    """Wake whoever reads from `connection`; the plain socket's method, for TLS would first drop its state."""
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except (OSError, TypeError):  # closed already; or TLS inside TLS, which only its time-out ends
        _log.debug("a connection was gone before it could be shut down")


_WATCHER: ContextVar[_Watch | None] = ContextVar("_WATCHER", default=None)
"""The exchange this thread is in: urllib3 makes its connections where no argument of ours reaches."""


class _PlainConnection(urllib3.connection.HTTPConnection):
    def getresponse(self) -> Any:
        _announce(self.sock)
        return super().getresponse()


class _TlsConnection(urllib3.connection.HTTPSConnection):
    def connect(self) -> None:
        if self.cert_reqs == "CERT_NONE" and self.ssl_context is None:
            # Otherwise the system's CA certificates are loaded for each connection, to verify nothing: 20 ms.
            self.ssl_context = create_urllib3_context(cert_reqs=ssl.CERT_NONE)
        super().connect()
        # Only read by the pool, to warn (process-wide) of what was asked for with the insecure setting.
        self.is_verified = True

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        watch = _WATCHER.get()
        if watch is not None:
            watch.add_copy(connection)
        return connection

    def getresponse(self) -> Any:
        _announce(self.sock)
        return super().getresponse()


def _announce(connection: Any) -> None:
    watch = _WATCHER.get()
    if watch is not None and isinstance(connection, socket.socket):
        watch.add(connection)


class _PlainPool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _TlsPool(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


_POOLS = {"http": _PlainPool, "https": _TlsPool}


class _Adapter(requests.adapters.HTTPAdapter):
    """The usual adapter with connections that can be shut down from outside."""

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        if type(manager) is urllib3.ProxyManager:  # a SOCKS manager has connections of its own
            manager.pool_classes_by_scheme = _POOLS
        return manager


def _as_it_is(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authenticate nothing (the `auth` of a request that must not look into ~/.netrc)."""
    return prepared


class _Response:
    """`HttpResponse` over a streamed response of requests."""

    def __init__(
        self, response: requests.Response, url: str, watch: _Watch, interrupt: Interrupt, timeout: float
    ) -> None:
        response.raw.enforce_content_length = True  # the default of urllib3 2 only
        self._response = response
        self._watch = watch
        self._interrupt = interrupt
        self._timeout = timeout
        self._url = url

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def url(self) -> str:
        return self._url

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    def read(self, size: int) -> bytes:
        failure: ConnectionFailed
        try:
            chunk: bytes = self._response.raw.read(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException) as problem:
            failure = _translated(problem, self._url, self._timeout)
        else:
            if not chunk:
                self._interrupt.check()
                self._watch.release()
            return chunk
        self.close()
        self._interrupt.check()
        raise failure

    def close(self) -> None:
        self._watch.release()
        self._response.close()


def _causes(problem: BaseException) -> Iterator[BaseException]:
    """`problem` and all it wraps: urllib3 keeps causes in `reason`, requests in `args`, Python in `__context__`."""
    seen: set[int] = set()
    waiting: list[Any] = [problem]
    while waiting:
        found = waiting.pop(0)
        if not isinstance(found, BaseException) or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += [getattr(found, "reason", None), *found.args, found.__cause__, found.__context__]


def _translated(problem: BaseException, url: str, timeout: float) -> ConnectionFailed:
    """Our error for a foreign one, in words that name the host and never the rest of the URL."""
    host = _shown_host(url)
    causes = list(_causes(problem))
    failure = _classified(causes, host, timeout, local=_is_here(url))
    # The cause kept is the system's own, which names no URL.
    cause = next((c for c in causes if isinstance(c, OSError) and type(c).__module__ in _OWN_MODULES), None)
    failure.__cause__ = cause
    if cause is not None:
        cause.__context__ = None
        cause.__cause__ = None
    return failure


_OWN_MODULES = frozenset({"builtins", "socket", "ssl"})


def _is_here(url: str) -> bool:
    try:
        return is_loopback_name(Origin.of(url).host)
    except Exception:  # noqa: BLE001 - a URL that may be anything
        return False


def _shown_host(url: str) -> str:
    try:
        return Origin.of(url).authority
    except Exception:  # noqa: BLE001 - a name for a message about a URL that may be anything
        return redact(url)


def _classified(  # noqa: PLR0911 - a table of causes, the more telling first
    causes: list[BaseException], host: str, timeout: float, *, local: bool
) -> ConnectionFailed:
    def first(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    if first(urllib3.exceptions.ProxyError, requests.exceptions.ProxyError):
        return ConnectionFailed(
            f"cannot reach {host}: the proxy set in the environment did not let us through;"
            " check HTTPS_PROXY, HTTP_PROXY and NO_PROXY",
            kind="proxy",
            transient=True,
        )
    if found := first(socket.gaierror):
        again = getattr(found, "errno", None) == socket.EAI_AGAIN
        return ConnectionFailed(
            f"cannot reach {host}: its name does not resolve; check its spelling and the network connection",
            kind="dns",
            transient=again,
        )
    if found := first(ssl.SSLCertVerificationError):
        why = getattr(found, "verify_message", "") or "not valid"
        return ConnectionFailed(
            f"cannot trust {host}: its TLS certificate was refused ({why}); point REQUESTS_CA_BUNDLE to the CA that"
            f" signed it, or add {host} to the insecure registries (NBCONTAINER_INSECURE_REGISTRIES)",
            kind="certificate",
            transient=False,
        )
    if any(mark in str(cause) for cause in causes if isinstance(cause, ssl.SSLError) for mark in _NOT_TLS):
        return ConnectionFailed(
            f"cannot reach {host} by https: the server speaks plain http; if the network to it can be trusted, add"
            f" {host} to the insecure registries (NBCONTAINER_INSECURE_REGISTRIES)",
            kind="plain-http",
            transient=False,
        )
    if first(ConnectionRefusedError):
        return ConnectionFailed(
            f"cannot reach {host}: the connection was refused; is a registry running there?",
            kind="refused",
            transient=not local,  # on this very machine nothing is on its way: a port is closed until somebody opens it
        )
    if any(isinstance(cause, OSError) and cause.errno in _SILENT for cause in causes):
        return ConnectionFailed(
            f"cannot reach {host}: there is no route to it; check the network connection",
            kind="refused",
            transient=True,
        )
    # After the refusals: urllib3 1.26 calls every failure to connect a time-out.
    if first(TimeoutError, urllib3.exceptions.TimeoutError):
        limit = min(timeout, _LONGEST_CONNECT) if first(requests.exceptions.ConnectTimeout) else timeout
        return ConnectionFailed(
            f"{host} did not answer within {limit:g} s; check the network connection, or try again later",
            kind="timeout",
            transient=True,
        )
    if found := first(ssl.SSLError):
        why = getattr(found, "reason", None)
        why = why if isinstance(why, str) else "the handshake ended early"
        ended = isinstance(found, (ssl.SSLEOFError, ssl.SSLZeroReturnError))
        return ConnectionFailed(f"TLS with {host} failed: {why}", kind="tls", transient=ended)
    if first(requests.exceptions.InvalidURL, requests.exceptions.InvalidHeader, urllib3.exceptions.LocationValueError):
        return ConnectionFailed(f"the address {host} cannot be used", kind="address", transient=False)
    return ConnectionFailed(
        f"the connection to {host} broke before all was sent; try again", kind="broken", transient=True
    )
