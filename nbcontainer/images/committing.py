"""From an image and one layer more to a new image: its documents, stored in an order that a kill cannot hurt.

The layer comes as a tar, is compressed and hashed on its way into the store, and unpacked again from there as a pull
would: what runs here afterwards is what anybody else would get. Documents are OCI's whatever the base's were; fields of
the base's config that nobody here knows (docker's health check, for one) are kept as they are.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidImage, StorageError
from nbcontainer.images.image import Image, load_image
from nbcontainer.images.unpack import unpack_layer
from nbcontainer.layers.compression import Compressor
from nbcontainer.model import Descriptor, ImageConfig, Manifest, chain_id
from nbcontainer.model.oci import DOCUMENT_LIMIT, OCI_CONFIG, OCI_MANIFEST
from nbcontainer.store import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nbcontainer.images.unpack import Helper
    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.model import Digest, Reference
    from nbcontainer.store import ContentStore, RefStore

__all__ = [
    "Committer",
    "NewLayer",
    "checked_config",
    "config_of",
    "config_with_layer",
    "encoded",
    "manifest_of",
    "manifest_with_layer",
]

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_FROM_DOCKER = {
    "application/vnd.docker.image.rootfs.diff.tar": OCI_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{OCI_LAYER}+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": f"{OCI_LAYER}+zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": (
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
    ),
}
_OF_THE_OLD_IMAGE = ("container", "container_config", "id", "parent", "parent_id", "throwaway")
"""Fields of docker's first image format that describe how the base was made, and would be wrong of its child."""
_UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""Optional by the specification, but umoci falls over an entry without a time."""
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLayer:
    """A layer that has been stored: what the manifest says of it, and what the config says."""

    media_type: str
    digest: Digest
    size: int
    diff_id: Digest
    unpacked: int
    """Bytes of its tar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committer:
    """What a commit works with. The caller holds the store's lock shared from first to last."""

    content: ContentStore
    refs: RefStore
    snapshots: Snapshotter
    helper: Helper
    owners: bool

    def take_layer(self, produce: Callable[[Callable[[bytes], object]], object]) -> NewLayer:
        """Store what `produce` writes to the sink it is given, the tar of a layer."""
        with self.content.draft() as draft:
            compressor = Compressor(draft.write)
            produce(compressor.write)
            diff_id = compressor.finish()
            digest = draft.commit()
            return NewLayer(
                media_type=f"{OCI_LAYER}+gzip",
                digest=digest,
                size=draft.size,
                diff_id=diff_id,
                unpacked=compressor.size,
            )

    def commit(
        self, base: Image, layer: NewLayer, config: Mapping[str, Any], name: Callable[[Digest], Reference]
    ) -> Image:
        """Store the documents, unpack the layer, and last of all name the image by `name` of its manifest's digest."""
        chain = chain_id(base.chain, layer.diff_id)
        config_data = encoded(config)
        config_digest = self.content.put(config_data)
        manifest_data = encoded(manifest_with_layer(base.manifest, layer, config_digest, len(config_data)))
        manifest_digest = self.content.put(manifest_data)
        unpack_layer(
            self._chunks(layer.digest),
            diff_id=layer.diff_id,
            chain=chain,
            parent=base.chain,
            snapshots=self.snapshots,
            helper=self.helper,
            owners=self.owners,
            before_commit=lambda: None,
        )
        record = ImageRecord(
            reference=name(manifest_digest),
            target=manifest_digest,
            manifest=manifest_digest,
            config=config_digest,
            pulled_at=time.time(),
            size=len(config_data) + layer.size + sum(each.size for each in base.manifest.layers),
        )
        image = load_image(record, self.content)
        self.refs.put(record)
        return image

    def _chunks(self, digest: Digest) -> Iterator[bytes]:
        with self.content.open(digest) as blob:
            while data := blob.read(_PIECE):
                yield data


def config_of(base: Image, content: ContentStore) -> dict[str, Any]:
    """The base's config as JSON, with every field it has."""
    for layer in base.manifest.layers:
        if not content.has(layer.digest):
            raise StorageError(f"a layer of image {base.name} is not in the store any more; pull the image again")
    fields: dict[str, Any] = json.loads(content.read(base.record.config, DOCUMENT_LIMIT))
    return fields


def config_with_layer(
    base: Mapping[str, Any],
    *,
    options: Mapping[str, Any],
    diff_id: Digest,
    now: float,
    created_by: str,
    author: str = "",
    comment: str = "",
) -> dict[str, Any]:
    """The base's config with one layer more and other run options (OCI image-spec, config.md)."""
    created = datetime.fromtimestamp(now, timezone.utc).isoformat().replace("+00:00", "Z")
    config = {name: value for name, value in base.items() if name not in _OF_THE_OLD_IMAGE}
    config["config"] = dict(options)
    config["created"] = created
    if author:
        config["author"] = author
    diff_ids = list((base.get("rootfs") or {}).get("diff_ids") or [])
    history = _complete(list(base.get("history") or []), len(diff_ids), str(base.get("created") or ""))
    entry = {"created": created, "created_by": created_by, "author": author, "comment": comment}
    config["history"] = [*history, {name: text for name, text in entry.items() if text}]
    config["rootfs"] = {"type": "layers", "diff_ids": [*diff_ids, str(diff_id)]}
    return config


def _complete(history: list[Any], layers: int, created: str) -> list[Any]:
    """A history with one entry a layer: some tools write none, and then ours would be taken for the first one's."""
    described = sum(1 for entry in history if not (isinstance(entry, dict) and entry.get("empty_layer")))
    missing = max(0, layers - described)
    unknown = {"created": created or _UNKNOWN_TIME, "comment": "no history was kept of this layer"}
    return [*history, *([unknown] * missing)]


def manifest_with_layer(base: Manifest, layer: NewLayer, config: Digest, config_size: int) -> dict[str, Any]:
    """An OCI manifest of the base's layers and one more."""
    added = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
    return manifest_of((*base.layers, added), config, config_size)


def manifest_of(layers: Sequence[Descriptor], config: Digest, config_size: int) -> dict[str, Any]:
    """An OCI manifest of layers, bottom first."""
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(config), "size": config_size},
        "layers": [_described(each) for each in layers],
    }


def _described(layer: Descriptor) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "mediaType": _FROM_DOCKER.get(layer.media_type, layer.media_type),
        "digest": str(layer.digest),
        "size": layer.size,
    }
    if layer.urls:
        fields["urls"] = list(layer.urls)
    if layer.annotations:
        fields["annotations"] = dict(layer.annotations)
    return fields


def encoded(document: Mapping[str, Any]) -> bytes:
    """A document as it is stored; `InvalidImage` when it is too large for anybody to read."""
    data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(data) > DOCUMENT_LIMIT:
        raise InvalidImage(
            f"the image's documents would have {len(data)} bytes, more than the {DOCUMENT_LIMIT} allowed"
        )
    return data


def checked_config(config: Mapping[str, Any]) -> ImageConfig:
    """The same as what everybody else will read; `InvalidImage` before anything is stored."""
    return ImageConfig.from_json(encoded(config))
