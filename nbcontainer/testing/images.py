"""Tiny images made in memory: layers as tar bytes, and the documents around them.

For tests of anything that reads images. The same arguments give the same bytes, and so the same digests.

>>> layer = tiny_layer({"etc/greeting": b"hello", "empty": None})
>>> image = build_image([layer], config={"Cmd": ["cat", "/etc/greeting"]})
>>> len(image.manifest.layers)
1
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer.model import Descriptor, Digest, Manifest, Platform
from nbcontainer.model.oci import (
    DOCKER_CONFIG,
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nbcontainer.model import Compression

__all__ = ["BuiltImage", "BuiltIndex", "MediaFamily", "build_image", "build_index", "compress_layer", "tiny_layer"]

MediaFamily = Literal["oci", "docker"]
_LINUX_AMD64 = Platform("linux", "amd64")
_LAYER_TYPES: dict[tuple[MediaFamily, Compression], str] = {
    ("oci", "none"): "application/vnd.oci.image.layer.v1.tar",
    ("oci", "gzip"): "application/vnd.oci.image.layer.v1.tar+gzip",
    ("oci", "zstd"): "application/vnd.oci.image.layer.v1.tar+zstd",
    ("docker", "none"): "application/vnd.docker.image.rootfs.diff.tar",
    ("docker", "gzip"): "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ("docker", "zstd"): "application/vnd.docker.image.rootfs.diff.tar.zstd",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image as a registry would hold it: the manifest's bytes, and the blobs it names."""

    manifest: Manifest
    manifest_bytes: bytes
    blobs: Mapping[Digest, bytes]
    platform: Platform

    @property
    def descriptor(self) -> Descriptor:
        """The manifest's descriptor, as an index would have it."""
        return Descriptor(
            media_type=self.manifest.media_type,
            digest=Digest.of(self.manifest_bytes),
            size=len(self.manifest_bytes),
            platform=self.platform,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltIndex:
    """An index as a registry would hold it."""

    index_bytes: bytes
    media_type: str

    @property
    def descriptor(self) -> Descriptor:
        """The index's descriptor, for an index of indexes."""
        return Descriptor(media_type=self.media_type, digest=Digest.of(self.index_bytes), size=len(self.index_bytes))


def tiny_layer(files: Mapping[str, bytes | tarfile.TarInfo | None]) -> bytes:
    """A tar of `files` in their order, with no times in it.

    Bytes make a file (mode 0644), None a directory (0755), and a `TarInfo` goes in as it is, under the given name:
    links, devices, owners, whatever a test wants to see handled.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                tar.addfile(content)
                continue
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = (tarfile.DIRTYPE, 0o755) if content is None else (tarfile.REGTYPE, 0o644)
            entry.size = len(content or b"")
            tar.addfile(entry, io.BytesIO(content or b""))
    return buffer.getvalue()


def compress_layer(layer: bytes, compression: Compression) -> bytes:
    """The layer as it travels."""
    if compression == "gzip":
        return gzip.compress(layer, 6, mtime=0)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(layer)
    return layer


def build_image(
    layers: Sequence[bytes],
    *,
    media: MediaFamily = "oci",
    compression: Compression = "gzip",
    config: Mapping[str, Any] | None = None,
    platform: Platform = _LINUX_AMD64,
    foreign_urls: Mapping[int, Sequence[str]] | None = None,
    inline_config: bool = False,
) -> BuiltImage:
    """An image of these layer tars, bottom first; `config` is the ``config`` of its config (Cmd, Env, User, …).

    `foreign_urls` gives layers, by number, the ``urls`` of a foreign layer; their blobs are made all the same.
    """
    config_bytes = _encoded(
        {
            "architecture": platform.architecture,
            "os": platform.os,
            **({"variant": platform.variant} if platform.variant else {}),
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
            "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
        }
    )
    sent = [compress_layer(layer, compression) for layer in layers]
    described = [
        replace(_describe(blob, _LAYER_TYPES[media, compression]), urls=tuple((foreign_urls or {}).get(number, ())))
        for number, blob in enumerate(sent)
    ]
    config_type, manifest_type = (OCI_CONFIG, OCI_MANIFEST) if media == "oci" else (DOCKER_CONFIG, DOCKER_MANIFEST)
    config_descriptor = _describe(config_bytes, config_type)
    if inline_config:
        config_descriptor = replace(config_descriptor, data=config_bytes)
    manifest_bytes = _encoded(
        {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": _descriptor_json(config_descriptor),
            "layers": [_descriptor_json(layer) for layer in described],
        }
    )
    return BuiltImage(
        manifest=Manifest.from_json(manifest_bytes, manifest_type),
        manifest_bytes=manifest_bytes,
        blobs={Digest.of(blob): blob for blob in (config_bytes, *sent)},
        platform=platform,
    )


def build_index(members: Sequence[Descriptor], *, media: MediaFamily = "oci") -> BuiltIndex:
    """An index (or Docker manifest list) of `members`."""
    media_type = OCI_INDEX if media == "oci" else DOCKER_INDEX
    manifests = [_descriptor_json(member) for member in members]
    index_bytes = _encoded({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})
    return BuiltIndex(index_bytes=index_bytes, media_type=media_type)


def _describe(blob: bytes, media_type: str) -> Descriptor:
    return Descriptor(media_type=media_type, digest=Digest.of(blob), size=len(blob))


def _encoded(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _descriptor_json(descriptor: Descriptor) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.urls:
        fields["urls"] = list(descriptor.urls)
    if descriptor.data is not None:
        fields["data"] = base64.b64encode(descriptor.data).decode("ascii")
    if platform := descriptor.platform:
        fields["platform"] = {"os": platform.os, "architecture": platform.architecture}
        if platform.variant:
            fields["platform"]["variant"] = platform.variant
    return fields
