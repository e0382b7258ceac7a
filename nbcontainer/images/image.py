"""An image that is here: its record, and its documents read when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import BlobNotFound, StorageError
from nbcontainer.model import Digest, ImageConfig, Manifest, chain_ids
from nbcontainer.model.oci import DOCUMENT_LIMIT

if TYPE_CHECKING:
    from nbcontainer.store import ContentStore, ImageRecord

__all__ = ["Image", "load_image"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A local image: what its name means, how it wants to run, and the chain id of its whole root."""

    record: ImageRecord
    manifest: Manifest
    config: ImageConfig

    @property
    def name(self) -> str:
        """As people type it."""
        return self.record.reference.familiar

    @property
    def chain(self) -> Digest | None:
        """The chain id of the topmost layer; None for an image without layers."""
        chains = chain_ids(self.config.diff_ids)
        return chains[-1] if chains else None


def load_image(record: ImageRecord, content: ContentStore) -> Image:
    """Read and check the documents of `record`; raise `StorageError` when the store has lost them."""
    try:
        manifest = Manifest.from_json(content.read(record.manifest, DOCUMENT_LIMIT))
        config = ImageConfig.from_json(content.read(record.config, DOCUMENT_LIMIT))
    except BlobNotFound as problem:
        raise StorageError(
            f"image {record.reference.familiar} is incomplete in the store ({problem}); pull it again"
        ) from problem
    return Image(record=record, manifest=manifest, config=config)
