"""The registry client: a name to a manifest, a tag to a digest, a descriptor to bytes.

Source: OCI distribution-spec 1.1, "Pull". Every document is bounded in size, checked against the digest asked for
(or, for a tag, against what the registry itself says), and decoded by the model; nothing raw leaves this island but
the bytes whose digests are the names in the store.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nbcontainer.errors import (
    CorruptContent,
    Denied,
    ImageNotFound,
    InvalidDigest,
    InvalidImage,
    NbcontainerError,
    NotFound,
    RemoteError,
)
from nbcontainer.model import Descriptor, Digest, ImageConfig, Index, Manifest, decode_document
from nbcontainer.model.oci import (
    DOCKER_CONFIG,
    DOCUMENT_LIMIT,
    INDEX_MEDIA_TYPES,
    MANIFEST_MEDIA_TYPES,
    OCI_CONFIG,
)
from nbcontainer.registry.blobs import BlobSource, BlobStream, Hasher
from nbcontainer.registry.exchange import Exchange
from nbcontainer.registry.failures import TransferCancelled
from nbcontainer.registry.interrupts import Interrupt
from nbcontainer.registry.refusals import Subject, refusal
from nbcontainer.registry.retries import Patience
from nbcontainer.registry.settings import RegistrySettings
from nbcontainer.registry.transport import RequestsTransport, read_capped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

    from nbcontainer.model import Platform, Reference
    from nbcontainer.registry.settings import Endpoint
    from nbcontainer.registry.transport import HttpResponse, RegistryTransport

__all__ = ["RegistryClient", "ResolvedImage"]

_T = TypeVar("_T")
_ACCEPT = ", ".join((*INDEX_MEDIA_TYPES, *MANIFEST_MEDIA_TYPES))
_MOST_INDEXES = 2
"""An index may name an index (image-index.md allows it); deeper is not seen in the wild."""
_NO_DIGEST_BY_HEAD = frozenset({400, 404, 405, 501})


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """What a name stood for when it was asked.

    `digest` is of what the tag or digest named, an index or a manifest; `manifest_descriptor` is of the image chosen
    from it. `index_bytes` is the outermost index, or None.
    """

    reference: Reference
    digest: Digest
    manifest_descriptor: Descriptor
    manifest: Manifest
    manifest_bytes: bytes
    index_bytes: bytes | None
    config_bytes: bytes
    config: ImageConfig


@dataclass(frozen=True, slots=True)
class _Document:
    """A verified answer to a manifest request."""

    data: bytes
    media_type: str
    digest: Digest


class RegistryClient:
    """Reads from registries; safe to share between threads, closed by whoever made it.

    `notice` is given sentences for the person (a retry, a mirror passed over), from any thread.
    """

    def __init__(
        self,
        settings: RegistrySettings | None = None,
        *,
        notice: Callable[[str], None] | None = None,
        transport: RegistryTransport | None = None,
    ) -> None:
        self._settings = settings or RegistrySettings()
        self._notice = notice or _say_nothing
        self._transport = transport or RequestsTransport(timeout=self._settings.timeout)
        self._exchange = Exchange(self._transport, self._settings)
        self._interrupt = Interrupt("the work of this registry client")
        self._lock = threading.Lock()
        self._distrusted: set[tuple[Endpoint, Digest]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all that is under way, in any thread, with `TransferCancelled`; safe twice."""
        self._interrupt.trip()
        self._transport.close()

    def resolve(self, reference: Reference, platform: Platform) -> ResolvedImage:
        """Find the image that `reference` names for `platform`, with its manifest and config.

        Raises `ImageNotFound` (also when no image is offered for the platform), `Denied`, `InvalidImage`,
        `CorruptContent` or a `RemoteError`.
        """
        named = self._document(reference, reference.digest)
        document, chosen, index_bytes = named, None, None
        for _ in range(_MOST_INDEXES + 1):
            decoded = _decoded(document, reference)
            if isinstance(decoded, Manifest):
                break
            index_bytes = index_bytes if index_bytes is not None else document.data
            chosen = _chosen(decoded, reference, platform)
            document = self._member(reference, chosen)
        else:
            raise InvalidImage(f"{reference} is an index within an index within an index; refused")
        config_bytes, config = self._config(reference, decoded)
        if platform.preference(config.platform) is None:
            self._notice(f"{reference} is made for {config.platform}, not for {platform}; it may not run")
        return ResolvedImage(
            reference=reference,
            digest=named.digest,
            manifest_descriptor=chosen or _described(document, decoded),
            manifest=decoded,
            manifest_bytes=document.data,
            index_bytes=index_bytes,
            config_bytes=config_bytes,
            config=config,
        )

    def head(self, reference: Reference) -> Digest:
        """The digest that the tag points at now; the digest itself for a reference that has one.

        A HEAD, which Docker Hub does not count as a pull; a GET where that does not say.
        """
        if reference.digest is not None:
            return reference.digest

        def ask(subject: Subject, interrupt: Interrupt) -> Digest:
            return self._digest_by_head(subject, interrupt) or self._get_document(subject, None, interrupt).digest

        return self._from_any(reference, ask)

    def open_blob(
        self, reference: Reference, descriptor: Descriptor, *, offset: int = 0, hasher: Hasher | None = None
    ) -> BlobStream:
        """A stream of the blob's bytes from `offset` on; nothing is asked before the first read.

        To go on with what an earlier process kept, give `offset` and a `hasher` of the descriptor's algorithm fed
        with the bytes before it; the stream feeds it on.
        """
        if not 0 <= offset <= descriptor.size or (offset and hasher is None):
            raise ValueError("an offset lies within the blob and comes with a hash of the bytes before it")
        interrupt = Interrupt(f"the download of {descriptor.digest.short} of {reference}", self._interrupt)
        return BlobStream(
            descriptor,
            self._blob_sources(reference, descriptor),
            patience=lambda: Patience(self._settings, interrupt, self._notice),
            interrupt=interrupt,
            distrust=lambda source: self._distrust(source, descriptor.digest),
            notice=self._notice,
            offset=offset,
            hasher=hasher,
        )

    # Documents: manifests, indexes and configs, whole or not at all.

    def _from_any(self, reference: Reference, ask: Callable[[Subject, Interrupt], _T]) -> _T:
        """The first endpoint's answer: each mirror is given one chance, the registry all of `attempts`."""
        passed_over: list[str] = []
        for endpoint in self._settings.endpoints(reference.registry):
            subject = Subject(reference, endpoint)
            try:
                if endpoint.mirror:
                    return ask(subject, self._interrupt)
                patience = Patience(self._settings, self._interrupt, self._notice)
                return patience.insist(lambda subject=subject: ask(subject, self._interrupt))  # type: ignore[misc]
            except TransferCancelled:
                raise
            except (RemoteError, NotFound, Denied, CorruptContent, InvalidImage) as problem:
                if not endpoint.mirror:
                    raise _with_mirrors(problem, passed_over)  # noqa: B904 - the same error, told in full
                passed_over.append(f"{endpoint}: {problem}")
                self._notice(f"the mirror {endpoint} did not serve {reference} ({problem}); asking the next")
        raise AssertionError("the registry itself is always an endpoint")

    def _document(self, reference: Reference, digest: Digest | None) -> _Document:
        return self._from_any(reference, lambda subject, interrupt: self._get_document(subject, digest, interrupt))

    def _get_document(self, subject: Subject, digest: Digest | None, interrupt: Interrupt) -> _Document:
        tail = f"manifests/{digest or subject.reference.tag}"
        response = self._exchange.ask(subject, "GET", tail, {"Accept": _ACCEPT}, interrupt)
        if response.status != 200:
            raise refusal(response, subject)
        stated = response.headers.get("Docker-Content-Digest", "")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        data = read_capped(response, DOCUMENT_LIMIT)
        if data is None:
            raise InvalidImage(
                f"{subject.endpoint} sent a manifest of {subject.reference} of more than the {DOCUMENT_LIMIT} bytes"
                " allowed"
            )
        return _Document(data, media_type, _checked_digest(data, digest, stated, subject))

    def _digest_by_head(self, subject: Subject, interrupt: Interrupt) -> Digest | None:
        tail = f"manifests/{subject.reference.tag}"
        response = self._exchange.ask(subject, "HEAD", tail, {"Accept": _ACCEPT}, interrupt)
        if response.status in _NO_DIGEST_BY_HEAD:
            response.close()
            return None
        if response.status != 200:
            raise refusal(response, subject)
        response.close()
        try:
            return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
        except InvalidDigest:
            return None

    def _member(self, reference: Reference, chosen: Descriptor) -> _Document:
        """The manifest (or index) that an index entry describes."""
        if chosen.size > DOCUMENT_LIMIT:
            raise InvalidImage(
                f"{reference} names a manifest of {chosen.size} bytes, more than the {DOCUMENT_LIMIT} allowed"
            )
        if chosen.data is not None:
            return _Document(chosen.data, chosen.media_type, chosen.digest)
        document = self._document(reference, chosen.digest)
        if len(document.data) != chosen.size:
            raise CorruptContent(
                f"manifest {chosen.digest.short} of {reference} has {len(document.data)} bytes, but its index says"
                f" {chosen.size}; tell the image's owner"
            )
        return document

    def _config(self, reference: Reference, manifest: Manifest) -> tuple[bytes, ImageConfig]:
        descriptor = manifest.config
        kind = descriptor.media_type
        if kind.startswith("application/vnd.") and kind not in (OCI_CONFIG, DOCKER_CONFIG):
            raise InvalidImage(f"{reference} is not a container image: its config is {kind!r}")
        if descriptor.size > DOCUMENT_LIMIT:
            raise InvalidImage(
                f"the config of {reference} has {descriptor.size} bytes, more than the {DOCUMENT_LIMIT} allowed"
            )
        data = descriptor.data
        if data is None:
            with self.open_blob(reference, descriptor) as stream:
                data = b"".join(stream)
        return data, ImageConfig.from_json(data)

    # Blobs: streams, from one source after another.

    def _blob_sources(self, reference: Reference, descriptor: Descriptor) -> list[BlobSource]:
        endpoints = self._settings.endpoints(reference.registry)
        sources = [
            self._registry_source(Subject(reference, endpoint, blob=descriptor.digest.short), descriptor)
            for endpoint in endpoints
            if not self._is_distrusted(endpoint, descriptor.digest)
        ]
        subject = Subject(reference, endpoints[-1], blob=descriptor.digest.short)
        return sources + [self._foreign_source(subject, url) for url in descriptor.urls]

    def _registry_source(self, subject: Subject, descriptor: Descriptor) -> BlobSource:
        def ask(headers: Mapping[str, str], interrupt: Interrupt) -> HttpResponse:
            return self._exchange.ask(subject, "GET", f"blobs/{descriptor.digest}", headers, interrupt)

        return BlobSource(subject, ask)

    def _foreign_source(self, subject: Subject, url: str) -> BlobSource:
        def ask(headers: Mapping[str, str], interrupt: Interrupt) -> HttpResponse:
            return self._exchange.fetch_foreign(subject, url, headers, interrupt)

        return BlobSource(subject, ask, foreign=True)

    def _distrust(self, source: BlobSource, digest: Digest) -> None:
        """Pass over a mirror that sent wrong bytes; the registry itself is always asked again."""
        if source.subject.endpoint.mirror:
            with self._lock:
                self._distrusted.add((source.subject.endpoint, digest))

    def _is_distrusted(self, endpoint: Endpoint, digest: Digest) -> bool:
        with self._lock:
            return (endpoint, digest) in self._distrusted


def _checked_digest(data: bytes, asked: Digest | None, stated: str, subject: Subject) -> Digest:
    """The document's digest: the one asked for, else the one the registry states, else our own; it must match."""
    try:
        wanted = asked or (Digest.parse(stated) if stated else None)
    except InvalidDigest as problem:
        raise CorruptContent(
            f"{subject.endpoint} states an unusable digest for {subject.reference}: {problem}"
        ) from None
    found = Digest.of(data, wanted.algorithm if wanted else "sha256")
    if wanted is not None and found != wanted:
        raise CorruptContent(
            f"{subject.endpoint} sent a manifest of {subject.reference} whose digest is {found.short}, not"
            f" {wanted.short}; pull again, and tell the registry's owner if it persists"
        )
    return found


def _decoded(document: _Document, reference: Reference) -> Manifest | Index:
    try:
        return decode_document(document.data, document.media_type)
    except InvalidImage as problem:
        raise InvalidImage(f"{reference} cannot be used: {problem}") from problem


def _chosen(index: Index, reference: Reference, platform: Platform) -> Descriptor:
    chosen = index.choose(platform)
    if chosen is None:
        offered = ", ".join(index.platforms) or "none that is named"
        raise ImageNotFound(f"{reference} has no image for {platform}; its platforms are: {offered}")
    return chosen


def _described(document: _Document, manifest: Manifest) -> Descriptor:
    return Descriptor(media_type=manifest.media_type, digest=document.digest, size=len(document.data))


def _with_mirrors(problem: NbcontainerError, passed_over: list[str]) -> NbcontainerError:
    """The registry's error, and what its mirrors had said: where there is no Internet, that is the one that matters."""
    if passed_over:
        problem.args = (f"{problem} (before that, its mirror {'; '.join(passed_over)})", *problem.args[1:])
    return problem


def _say_nothing(text: str) -> None:
    """Tell nobody."""
