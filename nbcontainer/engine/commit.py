"""`commit`: what a container changed becomes a layer, and the layer an image."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.files import call_streaming, task
from nbcontainer.engine.host_image import HOST_IMAGE
from nbcontainer.engine.roots import check_ids, layers_of
from nbcontainer.errors import ImageNotFound, InvalidImage, InvalidInput, InvalidReference, NotFound, StorageError
from nbcontainer.images.changes import changed
from nbcontainer.images.committing import Committer, checked_config, config_of, config_with_layer
from nbcontainer.model import Digest, Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nbcontainer.engine.records import Stored
    from nbcontainer.engine.session import Session
    from nbcontainer.images.image import Image

__all__ = ["commit"]

_PIECE = 1024 * 1024
_UNTAGGED = "localhost/untagged"
"""The name of images that were given none: one for each digest, on a registry that nothing is pulled from."""


def commit(
    session: Session,
    stored: Stored,
    name: str,
    *,
    message: str,
    author: str,
    changes: Sequence[str],
    still: bool,
) -> tuple[Image, int, tuple[str, ...]]:
    """Make the image; give it, the bytes of its new layer's tar, and what the person should know.

    The caller holds the store's lock shared, and has seen to it that the container stands `still` or has not.
    """
    reference = _reference(name)
    base = _base(session, stored)
    old = config_of(base, session.content)
    options = changed(old.get("config") or {}, changes)
    committer = Committer(
        content=session.content,
        refs=session.library.refs,
        snapshots=session.snapshots,
        helper=session.runtime,
        owners=not session.id_map.single,
    )
    packed: dict[str, Any] = {}
    layer = committer.take_layer(lambda sink: packed.update(_write_layer(session, stored, sink)))
    config = config_with_layer(
        old,
        options=options,
        diff_id=layer.diff_id,
        now=time.time(),
        created_by=" ".join(str(word) for word in stored.fields.get("command", ())) or "commit",
        author=author,
        comment=message,
    )
    checked_config(config)
    image = committer.commit(base, layer, config, lambda digest: reference or _untagged(digest))
    return image, layer.unpacked, _notices(session, stored, packed, still=still)


def _reference(name: str) -> Reference | None:
    if not name:
        return None
    if name == HOST_IMAGE:
        raise InvalidReference("'host' is the embedded image, this machine's own root; choose another name")
    reference = Reference.parse(name)
    if reference.digest is not None:
        raise InvalidReference(
            f"{name!r} has a digest, and nobody knows that of an image not made yet; give NAME[:TAG]"
        )
    return reference


def _untagged(digest: Digest) -> Reference:
    return Reference.parse(f"{_UNTAGGED}@{digest}")


def _base(session: Session, stored: Stored) -> Image:
    """The image the container was started from: by its name if that still means it, else by its layers."""
    chain_text = stored.fields.get("chain")
    if not chain_text:
        raise InvalidInput(
            "a container of the host image stands on this machine's own root, which is no image that could be extended;"
            " diff shows what it changed, cp and export take it out"
        )
    check_ids(session, stored)
    chain = Digest.parse(chain_text)
    with contextlib.suppress(ImageNotFound, InvalidReference, StorageError, InvalidImage):
        named = session.library.find(str(stored.fields.get("image", "")))
        if named.chain == chain:
            return named
    for image in session.library.walk():
        if image.chain == chain:
            return image
    raise NotFound(
        f"image {stored.fields.get('image')} of container {stored.id[:12]} is not here any more (or means another one"
        " now), so its layers cannot be built upon; pull it again, or take the files out with export"
    )


def _write_layer(session: Session, stored: Stored, sink: Callable[[bytes], object]) -> dict[str, Any]:
    written = layers_of(session, stored)
    if not written:  # it never wrote, but an image has a layer for every step
        sink(bytes(1024))
        return {}
    (step,) = session.runtime.view(written)

    def take(reader: int) -> None:
        while data := os.read(reader, _PIECE):
            sink(data)

    with task(session) as call:
        return call_streaming(call, "layer", {"upper": step["upper"], "lower": step["lower"]}, take)


def _notices(session: Session, stored: Stored, packed: dict[str, Any], *, still: bool) -> tuple[str, ...]:
    notices = list(packed.get("notices", ()))
    if packed.get("left_out", 0) > len(notices):
        notices.append(f"{packed['left_out'] - len(notices)} more were left out")
    if stored.locked and not still:
        notices.append(
            "the container was running: what it wrote meanwhile may be in the image in part; --pause holds it still"
        )
    if session.id_map.single:
        notices.append("every changed file belongs to root in the image: your account has no subordinate ids")
    return tuple(notices)
