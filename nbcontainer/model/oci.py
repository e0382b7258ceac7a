"""OCI documents as frozen values: descriptor, manifest, index, image config.

Source: OCI image-spec 1.1 (descriptor.md, manifest.md, image-index.md, config.md) and Docker's schema 2 media types.
Bytes come from strangers: decoding is bounded in size and depth, checks types, and raises `InvalidImage` naming the
document and the field. Nothing above this module sees a raw dict.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nbcontainer.errors import InvalidDigest, InvalidImage
from nbcontainer.model.digest import Digest
from nbcontainer.model.platform import Platform
from nbcontainer.model.service import HealthCheck

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DOCUMENT_LIMIT",
    "INDEX_MEDIA_TYPES",
    "MANIFEST_MEDIA_TYPES",
    "Compression",
    "Descriptor",
    "HistoryEntry",
    "ImageConfig",
    "Index",
    "Manifest",
    "decode_document",
]

DOCUMENT_LIMIT = 4 * 1024 * 1024
"""Largest manifest, index or config in bytes (as registries and containerd have it)."""
_MAX_LAYERS = 1000
_LARGEST_SIZE = 1 << 63
_MAX_INDEX_ENTRIES = 10_000

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_SCHEMA_1 = (
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)
MANIFEST_MEDIA_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_MEDIA_TYPES = (OCI_INDEX, DOCKER_INDEX)

Compression = Literal["none", "gzip", "zstd"]
_T = TypeVar("_T")
_EMPTY: Mapping[str, str] = MappingProxyType({})


def _no_strings() -> Mapping[str, str]:
    return _EMPTY


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """What a document says of a blob: type, digest and size in bytes, before anyone has fetched it."""

    media_type: str
    digest: Digest
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=_no_strings, hash=False)
    urls: tuple[str, ...] = ()
    data: bytes | None = None

    @property
    def is_index(self) -> bool:
        """True for an OCI index or a Docker manifest list."""
        return self.media_type in INDEX_MEDIA_TYPES

    @property
    def declared_compression(self) -> Compression:
        """What the media type claims; readers sniff the bytes and believe those."""
        if self.media_type.endswith(("+zstd", ".zstd")):
            return "zstd"
        if self.media_type.endswith(("+gzip", ".gzip")):
            return "gzip"
        return "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One image: its config and its layers, bottom first."""

    media_type: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=_no_strings, hash=False)

    @classmethod
    def from_json(cls, data: bytes, media_type: str = "") -> Manifest:
        """Decode and check a manifest; `media_type` is what the transport said."""
        document = _Document.read(data, "manifest")
        document.refuse_confusion(media_type, MANIFEST_MEDIA_TYPES)
        layers = document.items("layers", limit=_MAX_LAYERS)
        return cls(
            media_type=document.media_type(media_type, OCI_MANIFEST),
            config=_descriptor(document.child("config")),
            layers=tuple(_descriptor(layer) for layer in layers),
            annotations=document.strings("annotations"),
        )

    @property
    def size(self) -> int:
        """Bytes a registry sends for this image: the config and every layer, as compressed."""
        return self.config.size + sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Several images under one name, usually one a platform."""

    media_type: str
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=_no_strings, hash=False)

    @classmethod
    def from_json(cls, data: bytes, media_type: str = "") -> Index:
        """Decode and check an index or manifest list."""
        document = _Document.read(data, "index")
        document.refuse_confusion(media_type, INDEX_MEDIA_TYPES)
        entries = document.items("manifests", limit=_MAX_INDEX_ENTRIES)
        return cls(
            media_type=document.media_type(media_type, OCI_INDEX),
            manifests=tuple(_descriptor(entry) for entry in entries),
            annotations=document.strings("annotations"),
        )

    def choose(self, platform: Platform) -> Descriptor | None:
        """The entry that suits `platform` best, or None.

        ``unknown/unknown`` entries (build attestations) never match; entries without a platform match last.
        """
        best: tuple[int, int] | None = None
        chosen: Descriptor | None = None
        for position, entry in enumerate(self.manifests):
            rank = _UNSPECIFIED if entry.platform is None else platform.preference(entry.platform)
            if rank is not None and (best is None or (rank, position) < best):
                best, chosen = (rank, position), entry
        return chosen

    @property
    def platforms(self) -> tuple[str, ...]:
        """The platforms on offer, for an error message."""
        named = (str(entry.platform) for entry in self.manifests if entry.platform)
        return tuple(dict.fromkeys(name for name in named if not name.startswith("unknown")))


_UNSPECIFIED = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryEntry:
    """One line of an image's history."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How an image wants to be run, and the diff_ids its layers must have."""

    platform: Platform
    diff_ids: tuple[Digest, ...] = ()
    created: str = ""
    author: str = ""
    user: str = ""
    environment: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    labels: Mapping[str, str] = field(default_factory=_no_strings, hash=False)
    exposed_ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    stop_signal: str = ""
    shell: tuple[str, ...] = ()
    health: HealthCheck | None = None
    history: tuple[HistoryEntry, ...] = ()

    @classmethod
    def from_json(cls, data: bytes) -> ImageConfig:
        """Decode and check an image config."""
        document = _Document.read(data, "image config")
        rootfs = document.child("rootfs")
        options = document.child("config", required=False)
        return cls(
            platform=Platform(
                document.text("os") or "linux", document.text("architecture") or "amd64", document.text("variant")
            ),
            diff_ids=tuple(_digest(text, "rootfs.diff_ids") for text in rootfs.texts("diff_ids")),
            created=document.text("created"),
            author=document.text("author"),
            user=options.text("User"),
            environment=options.texts("Env"),
            entrypoint=options.texts("Entrypoint"),
            command=options.texts("Cmd"),
            working_directory=options.text("WorkingDir"),
            labels=options.strings("Labels"),
            exposed_ports=options.keys("ExposedPorts"),
            volumes=options.keys("Volumes"),
            stop_signal=options.text("StopSignal"),
            shell=options.texts("Shell"),
            health=_health(options),
            history=tuple(
                HistoryEntry(
                    created=entry.text("created"),
                    created_by=entry.text("created_by"),
                    author=entry.text("author"),
                    comment=entry.text("comment"),
                    empty_layer=entry.flag("empty_layer"),
                )
                for entry in document.items("history", limit=10 * _MAX_LAYERS)
            ),
        )


def _health(options: _Document) -> HealthCheck | None:
    """Docker's health check, whose times are nanoseconds; None where the image has none."""
    if not isinstance(options.fields.get("Healthcheck"), dict):
        return None
    stated = options.child("Healthcheck")
    return HealthCheck(
        test=stated.texts("Test"),
        interval=stated.seconds("Interval"),
        timeout=stated.seconds("Timeout"),
        start_period=stated.seconds("StartPeriod"),
        start_interval=stated.seconds("StartInterval"),
        retries=max(0, stated.get("Retries", int, 0)),
    )


def decode_document(data: bytes, media_type: str) -> Manifest | Index:
    """Decode what a registry answered to a manifest request; raise `InvalidImage` for anything else."""
    media_type = media_type.partition(";")[0].strip()
    if media_type in DOCKER_SCHEMA_1:
        raise InvalidImage(
            "the manifest has Docker's schema 1, gone since 2019; push the image again with a current tool"
        )
    document = _Document.read(data, "manifest")
    if document.fields.get("schemaVersion") == 1:
        raise InvalidImage(
            "the manifest has Docker's schema 1, gone since 2019; push the image again with a current tool"
        )
    stated = document.text("mediaType") or media_type
    if stated in INDEX_MEDIA_TYPES or (stated not in MANIFEST_MEDIA_TYPES and "manifests" in document.fields):
        return Index.from_json(data, media_type)
    return Manifest.from_json(data, media_type)


@dataclass(frozen=True, slots=True)
class _Document:
    """A decoded JSON object that knows its own name, so errors can say which field of what is wrong."""

    name: str
    fields: dict[str, Any]

    @classmethod
    def read(cls, data: bytes, name: str) -> _Document:
        if len(data) > DOCUMENT_LIMIT:
            raise InvalidImage(f"the {name} is {len(data)} bytes, more than the {DOCUMENT_LIMIT} allowed")
        try:
            fields = json.loads(data.decode("utf-8", "replace"))
        except (ValueError, RecursionError) as problem:
            raise InvalidImage(f"the {name} is not JSON: {problem}") from problem
        if not isinstance(fields, dict):
            raise InvalidImage(f"the {name} is a JSON {type(fields).__name__}, not an object")
        return cls(name, fields)

    def refuse_confusion(self, transport_type: str, allowed: tuple[str, ...]) -> None:
        """Refuse a document that could be read as two kinds (CVE-2021-41190)."""
        if "manifests" in self.fields and ("layers" in self.fields or "config" in self.fields):
            raise InvalidImage(f"the {self.name} has both layers and manifests; refused as ambiguous")
        stated = self.text("mediaType")
        transport_type = transport_type.partition(";")[0].strip()
        for media_type in (stated, transport_type):
            if media_type.startswith("application/vnd.") and media_type not in allowed:
                raise InvalidImage(f"the {self.name} has media type {media_type!r}, which this engine does not run")
        if stated and transport_type.startswith("application/vnd.") and stated != transport_type:
            raise InvalidImage(f"the {self.name} says it is {stated!r}, but was sent as {transport_type!r}; refused")

    def media_type(self, transport_type: str, default: str) -> str:
        transport_type = transport_type.partition(";")[0].strip()
        return self.text("mediaType") or (transport_type if transport_type.startswith("application/vnd.") else default)

    def get(self, key: str, kind: type[_T], default: _T) -> _T:
        value = self.fields.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise InvalidImage(f"the {self.name} has a {key} that is {type(value).__name__}, not {kind.__name__}")
        return value

    def text(self, key: str) -> str:
        return _unicode(self.get(key, str, ""))

    def flag(self, key: str) -> bool:
        return self.get(key, bool, False)

    def seconds(self, key: str) -> float:
        """A time that is kept as nanoseconds; 0 for one that cannot be."""
        nanoseconds = self.get(key, int, 0)
        return nanoseconds / 1e9 if 0 < nanoseconds < _LARGEST_SIZE else 0.0

    def texts(self, key: str) -> tuple[str, ...]:
        values: list[Any] = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise InvalidImage(f"the {self.name} has a {key} with an entry that is not text")
        return tuple(_unicode(value) for value in values)

    def keys(self, key: str) -> tuple[str, ...]:
        values: dict[str, Any] = self.get(key, dict, {})
        return tuple(_unicode(value) for value in values)

    def strings(self, key: str) -> Mapping[str, str]:
        values: dict[str, Any] = self.get(key, dict, {})
        if not all(isinstance(value, str) for value in values.values()):
            raise InvalidImage(f"the {self.name} has a {key} with a value that is not text")
        return MappingProxyType({_unicode(name): _unicode(value) for name, value in values.items()}) or _EMPTY

    def child(self, key: str, *, required: bool = True) -> _Document:
        if required and not isinstance(self.fields.get(key), dict):
            raise InvalidImage(f"the {self.name} has no {key}")
        return _Document(f"{key} of the {self.name}", self.get(key, dict, {}))

    def items(self, key: str, *, limit: int) -> list[_Document]:
        values: list[Any] = self.get(key, list, [])
        if len(values) > limit:
            raise InvalidImage(f"the {self.name} has {len(values)} {key}, more than the {limit} allowed")
        if not all(isinstance(value, dict) for value in values):
            raise InvalidImage(f"the {self.name} has a {key} with an entry that is not an object")
        return [_Document(f"{key}[{number}] of the {self.name}", value) for number, value in enumerate(values)]


def _unicode(text: str) -> str:
    """`text` with U+FFFD for lone surrogates, which JSON can spell and no screen or file takes; Go reads them so."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _digest(text: str, where: str) -> Digest:
    try:
        return Digest.parse(text)
    except InvalidDigest as problem:
        raise InvalidImage(f"{where}: {problem}") from problem


def _descriptor(document: _Document) -> Descriptor:
    size = document.get("size", int, -1)
    if not 0 <= size < _LARGEST_SIZE:
        raise InvalidImage(f"{document.name} has no usable size")
    platform = None
    if isinstance(document.fields.get("platform"), dict):
        stated = document.child("platform")
        platform = Platform(stated.text("os"), stated.text("architecture"), stated.text("variant"))
    data = None
    if encoded := document.text("data"):
        try:
            data = base64.b64decode(encoded, validate=True)
        except ValueError as problem:  # binascii.Error, and what it says of text that is not ASCII
            raise InvalidImage(f"{document.name} has data that is not base64") from problem
        if len(data) != size or Digest.of(data) != _digest(document.text("digest"), document.name):
            data = None
    return Descriptor(
        media_type=document.text("mediaType"),
        digest=_digest(document.text("digest"), document.name),
        size=size,
        platform=platform,
        annotations=document.strings("annotations"),
        urls=document.texts("urls"),
        data=data,
    )
