"""A registry in this process: real HTTP on loopback, content in memory, and faults on request.

It serves what the OCI distribution-spec 1.1 asks of pull (manifests by tag and digest, blobs with Range) and of
simple push, so other tools can use it too. It says no, breaks off, lies and dawdles when its `Faults` say so, and
remembers every request, so that a test can ask what was sent.

>>> with InProcessRegistry() as registry:
...     digest = registry.add_image("tiny", "latest", layers=[])
...     registry.reference("tiny").endswith("/tiny:latest")
True
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qs, urlsplit

from nbcontainer.errors import InvalidDigest
from nbcontainer.model import Digest, Platform
from nbcontainer.testing.images import BuiltImage, MediaFamily, build_image, build_index

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from nbcontainer.model import Compression, Descriptor

__all__ = ["AuthScheme", "Faults", "InProcessRegistry", "RecordedRequest"]

AuthScheme = Literal["none", "basic", "token"]
_LINUX_AMD64 = Platform("linux", "amd64")
_PIECE = 64 * 1024
_CONTENT = re.compile(r"/v2/(?P<name>[^?]+?)/(?P<kind>manifests|blobs)/(?P<target>[^/?]+)")
_UPLOAD = re.compile(r"/v2/(?P<name>[^?]+?)/blobs/uploads/(?P<session>[^/?]*)")
_TAGS = re.compile(r"/v2/(?P<name>[^?]+?)/tags/list")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request as it arrived; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(slots=True)
class Faults:
    """What the registry does wrong; set a field at any time. Counters fall as they are used up."""

    drop_after: int | None = None
    """Break the connection after this many bytes of a blob's body …"""
    drop_times: int = 1
    """… this many times."""
    corrupt: set[Digest] = field(default_factory=set)
    """Blobs and manifests whose last byte is changed."""
    truncate: set[Digest] = field(default_factory=set)
    """Blobs that lack their second half, with a Content-Length that agrees."""
    lengthen: set[Digest] = field(default_factory=set)
    """Blobs with a byte too many, sent in chunks without a Content-Length."""
    rate_limit: int = 0
    """How many requests for content are answered 429 …"""
    unavailable: int = 0
    """… or 503 …"""
    retry_after: str | None = None
    """… with this Retry-After."""
    redirect_blobs: str | None = None
    """Answer blob requests with 307 to this base URL; the path is kept and a fake signature is added."""
    range_ignored: bool = False
    """Answer 200 and the whole blob to a Range request."""
    range_shifted: bool = False
    """Answer 206 from a byte earlier than was asked for, and say so."""
    delay: float = 0.0
    """Seconds before each answer."""
    piece_delay: float = 0.0
    """Seconds between pieces of 64 KiB of a blob."""
    digest_header: str | None = None
    """What to state as Docker-Content-Digest: empty for none, or a lie."""
    media_type: str | None = None
    """What to state as the Content-Type of a manifest."""
    head_status: int | None = None
    """Answer HEAD of manifests with this status."""
    error_body: bytes | None = None
    """Send this as the body of every error."""
    redirects: int = 0
    """How many times to redirect a manifest request to itself."""


@dataclass(slots=True)
class _Stored:
    data: bytes
    media_type: str


class InProcessRegistry:
    """A registry on 127.0.0.1 while the context is open.

    `auth`: with "basic", the user name and password are asked for; with "token", a token of `/token` is, given to
    whoever knows them, or to anybody when `anonymous`. `oauth` has the token server take POST with `identity_token`;
    without, it answers 405 to that. `tls` makes it https.
    """

    def __init__(
        self,
        *,
        auth: AuthScheme = "none",
        username: str = "alice",
        password: str = "wonderland",  # noqa: S107 - a fake's
        identity_token: str = "identity-of-alice",  # noqa: S107 - a fake's
        anonymous: bool = True,
        oauth: bool = True,
        token_field: str = "token",  # noqa: S107 - the name of a field
        token_lifetime: int | None = None,
        realm: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.auth = auth
        self.username = username
        self.password = password
        self.identity_token = identity_token
        self.anonymous = anonymous
        self.oauth = oauth
        self.token_field = token_field
        self.token_lifetime = token_lifetime
        self.realm = realm
        self.faults = Faults()
        self.tokens: set[str] = set()
        self._tls = tls
        self._lock = threading.RLock()
        self._requests: list[RecordedRequest] = []
        self._manifests: dict[tuple[str, str], _Stored] = {}
        self._blobs: dict[Digest, bytes] = {}
        self._uploads: dict[str, bytes] = {}
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._server = _Server(self, self._tls)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="registry")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.end()

    @property
    def host(self) -> str:
        """``127.0.0.1:PORT``, as in an image name."""
        assert self._server is not None, "the registry is not running"
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        return f"{'https' if self._tls else 'http'}://{self.host}"

    @property
    def requests(self) -> tuple[RecordedRequest, ...]:
        """Every request so far."""
        with self._lock:
            return tuple(self._requests)

    def asked(self, part: str, method: str = "GET") -> tuple[RecordedRequest, ...]:
        """The requests of `method` whose path holds `part`."""
        return tuple(request for request in self.requests if request.method == method and part in request.path)

    def reference(self, repository: str, tag: str = "latest") -> str:
        """The full name of an image here."""
        return f"{self.host}/{repository}:{tag}"

    def add_image(
        self,
        repository: str,
        tag: str | None,
        *,
        layers: Sequence[bytes],
        media: MediaFamily = "oci",
        compression: Compression = "gzip",
        config: Mapping[str, Any] | None = None,
        platform: Platform = _LINUX_AMD64,
    ) -> Digest:
        """Build an image of layer tars and hold it; without a tag it is known by its digest only."""
        image = build_image(layers, media=media, compression=compression, config=config, platform=platform)
        return self.add_built(repository, tag, image)

    def add_built(self, repository: str, tag: str | None, image: BuiltImage) -> Digest:
        """Hold an image made by `build_image`."""
        for blob in image.blobs.values():
            self.add_blob(blob)
        return self.add_manifest(repository, tag, image.manifest_bytes, image.manifest.media_type)

    def add_index(
        self, repository: str, tag: str | None, members: Sequence[Descriptor], *, media: MediaFamily = "oci"
    ) -> Digest:
        """Hold an index of `members` (see `BuiltImage.descriptor`); add their images separately."""
        index = build_index(members, media=media)
        return self.add_manifest(repository, tag, index.index_bytes, index.media_type)

    def add_manifest(self, repository: str, tag: str | None, data: bytes, media_type: str) -> Digest:
        """Hold any bytes as a manifest, under their digest and `tag`."""
        digest = Digest.of(data)
        with self._lock:
            for target in filter(None, (str(digest), tag)):
                self._manifests[repository, target] = _Stored(data, media_type)
        return digest

    def add_blob(self, data: bytes) -> Digest:
        """Hold a blob; every repository sees it."""
        digest = Digest.of(data)
        with self._lock:
            self._blobs[digest] = data
        return digest

    def remove_blob(self, digest: Digest) -> None:
        """Forget a blob."""
        with self._lock:
            self._blobs.pop(digest, None)

    def revoke_tokens(self) -> None:
        """Make every token given out so far worthless, before its time."""
        with self._lock:
            self.tokens.clear()

    # What the handlers below ask.

    def record(self, request: RecordedRequest) -> None:
        """Remember a request (called by the server)."""
        with self._lock:
            self._requests.append(request)

    def find_manifest(self, name: str, target: str) -> tuple[bytes, str] | None:
        """A manifest and its media type (called by the server)."""
        with self._lock:
            stored = self._manifests.get((name, target))
        return (stored.data, stored.media_type) if stored else None

    def find_blob(self, digest: Digest) -> bytes | None:
        """A blob (called by the server)."""
        with self._lock:
            return self._blobs.get(digest)

    def tags(self, name: str) -> list[str]:
        """The tags of a repository."""
        with self._lock:
            return sorted(target for held, target in self._manifests if held == name and ":" not in target)

    def upload(self, session: str, data: bytes) -> int:
        """Add to an upload (called by the server); returns how many bytes it has."""
        with self._lock:
            self._uploads[session] = self._uploads.get(session, b"") + data
            return len(self._uploads[session])

    def finish_upload(self, session: str) -> bytes:
        """End an upload (called by the server)."""
        with self._lock:
            return self._uploads.pop(session, b"")

    def use_up(self, counter: Literal["rate_limit", "unavailable", "drop_times", "redirects"]) -> bool:
        """Whether a counted fault happens now (called by the server)."""
        with self._lock:
            left: int = getattr(self.faults, counter)
            if left > 0:
                setattr(self.faults, counter, left - 1)
            return left > 0

    def new_token(self) -> str:
        """Give out a token (called by the server)."""
        token = f"token-{uuid.uuid4().hex}"
        with self._lock:
            self.tokens.add(token)
        return token

    def knows_token(self, token: str) -> bool:
        """Whether a token was given out and not revoked (called by the server)."""
        with self._lock:
            return token in self.tokens


class _Server(http.server.ThreadingHTTPServer):
    """A server that can end: it shuts its idle connections and waits for their threads."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def __init__(self, registry: InProcessRegistry, tls: ssl.SSLContext | None) -> None:
        self.registry = registry
        self._tls = tls
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for one connection."""
        with self._connections_lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection, in its own thread: the TLS handshake must not hold up the others."""
        try:
            if self._tls is None:
                super().finish_request(request, client_address)
                return
            with self._tls.wrap_socket(request.dup(), server_side=True) as secured:
                super().finish_request(secured, client_address)
        finally:
            with self._connections_lock:
                self._connections.discard(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients of a test hang up as they please."""

    def end(self) -> None:
        """Close everything and join every thread."""
        with self._connections_lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Hangup(Exception):
    """The handler broke the connection on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Routes by the spec's table of endpoints, "end-1" to "end-8"."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Log nothing; requests are recorded instead."""

    def do_GET(self) -> None:
        """Serve content, tokens and tags."""
        self._serve()

    do_HEAD = do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815 - named by http.server

    def _serve(self) -> None:
        body = self._read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._registry.record(RecordedRequest(self.command, self.path, headers, body))
        time.sleep(self._faults.delay)
        try:
            self._route(body)
        except (_Hangup, OSError):
            self.close_connection = True

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue
        return b"".join(chunks)

    @property
    def _registry(self) -> InProcessRegistry:
        return self.server.registry

    @property
    def _faults(self) -> Faults:
        return self._registry.faults

    def _route(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        if path == "/token":
            self._token(body)
        elif not self._authorized():
            self._challenge()
        elif path == "/v2/":
            self._answer(200, b"{}", {"Docker-Distribution-Api-Version": "registry/2.0"})
        elif self._registry.use_up("rate_limit"):
            self._refuse(429, "TOOMANYREQUESTS", "you have reached your pull rate limit", self._later)
        elif self._registry.use_up("unavailable"):
            self._refuse(503, "UNAVAILABLE", "come back later", self._later)
        elif match := _UPLOAD.fullmatch(path):
            self._upload(match["name"], match["session"], body)
        elif match := _TAGS.fullmatch(path):
            self._answer(200, json.dumps({"name": match["name"], "tags": self._registry.tags(match["name"])}).encode())
        elif match := _CONTENT.fullmatch(path):
            self._content(match["name"], match["kind"], match["target"], body)
        else:
            self._refuse(404, "UNSUPPORTED", "no such endpoint")

    @property
    def _later(self) -> dict[str, str]:
        return {} if self._faults.retry_after is None else {"Retry-After": self._faults.retry_after}

    # Answers

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()
        body = body if self._faults.error_body is None else self._faults.error_body
        self._answer(status, body, {"Content-Type": "application/json", **(headers or {})})

    # Authentication

    def _authorized(self) -> bool:
        registry, scheme = self._registry, self._registry.auth
        if scheme == "none":
            return True
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme == "basic":
            return kind == "Basic" and self._is_password(value)
        return kind == "Bearer" and registry.knows_token(value)

    def _is_password(self, value: str) -> bool:
        try:
            return base64.b64decode(value).decode() == f"{self._registry.username}:{self._registry.password}"
        except ValueError:
            return False

    def _challenge(self) -> None:
        registry = self._registry
        challenge = 'Basic realm="fake, registry"'
        if registry.auth == "token":
            match = _CONTENT.fullmatch(urlsplit(self.path).path)
            scope = f',scope="repository:{match["name"]}:pull"' if match else ""
            realm = registry.realm or f"{registry.url}/token"
            challenge = f'Negotiate, Bearer realm="{realm}",service="fake"{scope}'
        self._refuse(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})

    def _token(self, body: bytes) -> None:
        registry = self._registry
        kind, _, value = self.headers.get("Authorization", "").partition(" ")
        if self.command == "POST":
            fields = parse_qs(body.decode())
            if not registry.oauth:
                self._refuse(405, "UNSUPPORTED", "GET only")
                return
            known = fields.get("refresh_token") == [registry.identity_token]
        else:
            secret = base64.b64decode(value).decode().partition(":")[2] if kind == "Basic" else ""
            known = (kind == "Basic" and self._is_password(value)) or secret == registry.identity_token
            known = known or (registry.anonymous and not kind)
        if not known:
            self._refuse(401, "UNAUTHORIZED", "incorrect username or password")
            return
        answer: dict[str, Any] = {registry.token_field: registry.new_token()}
        if registry.token_lifetime is not None:
            answer["expires_in"] = registry.token_lifetime
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    # Content

    def _content(self, name: str, kind: str, target: str, body: bytes) -> None:
        if self.command == "PUT" and kind == "manifests":
            self._put_manifest(name, target, body)
        elif self.command not in ("GET", "HEAD"):
            self._refuse(405, "UNSUPPORTED", "not here")
        elif kind == "manifests":
            self._manifest(name, target)
        else:
            self._blob(target)

    def _manifest(self, name: str, target: str) -> None:
        if self.command == "HEAD" and self._faults.head_status is not None:
            self._answer(self._faults.head_status, b"")
            return
        if self._registry.use_up("redirects"):
            self._answer(302, b"", {"Location": self.path})
            return
        found = self._registry.find_manifest(name, target)
        if found is None:
            self._refuse(404, "MANIFEST_UNKNOWN", "manifest unknown")
            return
        data, media_type = found
        digest = Digest.of(data)
        if digest in self._faults.corrupt:
            data = _with_other_end(data)
        headers = {"Content-Type": self._faults.media_type or media_type, "Docker-Content-Digest": str(digest)}
        if self._faults.digest_header is not None:
            headers["Docker-Content-Digest"] = self._faults.digest_header
        self._answer(200, data, {name: value for name, value in headers.items() if value})

    def _blob(self, target: str) -> None:
        try:
            digest = Digest.parse(target)
        except InvalidDigest as problem:
            self._refuse(400, "DIGEST_INVALID", str(problem))
            return
        if self._faults.redirect_blobs is not None:
            location = f"{self._faults.redirect_blobs}{self.path}?X-Signature=do-not-show-me"
            self._answer(307, b"", {"Location": location})
            return
        data = self._registry.find_blob(digest)
        if data is None:
            self._refuse(404, "BLOB_UNKNOWN", "blob unknown to registry")
            return
        if digest in self._faults.corrupt:
            data = _with_other_end(data)
        if digest in self._faults.truncate:
            data = data[: len(data) // 2]
        if digest in self._faults.lengthen:
            self._send_chunked(data + b"!")
            return
        self._send_range(data)

    def _send_range(self, data: bytes) -> None:
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        if asked is None or self._faults.range_ignored:
            self._send_body(200, data, {})
            return
        first = int(asked[1])
        if first >= len(data):
            self._refuse(416, "RANGE_INVALID", "beyond the end", {"Content-Range": f"bytes */{len(data)}"})
            return
        first = max(0, first - 1) if self._faults.range_shifted else first
        last = min(int(asked[2] or len(data)), len(data) - 1)
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send_body(206, data[first : last + 1], headers)

    def _send_body(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Length": str(len(data)),
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        limit = self._faults.drop_after
        breaks = limit is not None and limit < len(data) and self._registry.use_up("drop_times")
        self._send_pieces(data[:limit] if breaks else data)
        if breaks:
            self.wfile.flush()
            raise _Hangup

    def _send_pieces(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            self.wfile.write(data[start : start + _PIECE])
            time.sleep(self._faults.piece_delay)

    def _send_chunked(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    # Push (distribution-spec, "Push"): enough for other tools to bring images here

    def _upload(self, name: str, session: str, body: bytes) -> None:
        query = parse_qs(urlsplit(self.path).query)
        wanted = query.get("digest", [""])[0]
        mount = query.get("mount", [""])[0]
        if self.command == "POST" and mount and self._registry.find_blob(Digest.parse(mount)) is not None:
            self._created(name, "blobs", Digest.parse(mount))
            return
        session = session or uuid.uuid4().hex
        size = self._registry.upload(session, body)
        if not wanted:
            location = {"Location": f"/v2/{name}/blobs/uploads/{session}", "Range": f"0-{max(size - 1, 0)}"}
            self._answer(202, b"", location)
            return
        data = self._registry.finish_upload(session)
        if str(Digest.of(data)) != wanted:
            self._refuse(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
            return
        self._created(name, "blobs", self._registry.add_blob(data))

    def _put_manifest(self, name: str, target: str, body: bytes) -> None:
        tag = None if ":" in target else target
        media_type = self.headers.get("Content-Type", "")
        self._created(name, "manifests", self._registry.add_manifest(name, tag, body, media_type))

    def _created(self, name: str, kind: str, digest: Digest) -> None:
        headers = {"Location": f"/v2/{name}/{kind}/{digest}", "Docker-Content-Digest": str(digest)}
        self._answer(201, b"", headers)


def _with_other_end(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])
