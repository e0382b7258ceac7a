"""Images whose layers are fetched one by one, as somebody finds a use for them: a cache of builds, not a pull.

From the store, from a registry, or from an OCI layout on disk (a folder, or an archive as ``build --output type=oci``
writes it). Only documents are read at first; a layer is taken into the store when it is asked for, checked as any
other, and nothing gets a name.
"""

from __future__ import annotations

import os
import stat
import tarfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Protocol

from nbcontainer._linux.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from nbcontainer.errors import BlobNotFound, CorruptContent, InvalidImage, InvalidInput, NotFound
from nbcontainer.model import Digest, ImageConfig, Manifest
from nbcontainer.model.oci import DOCUMENT_LIMIT, Index, decode_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nbcontainer.images.image import Image
    from nbcontainer.model import Descriptor, Platform, Reference
    from nbcontainer.registry import RegistryClient
    from nbcontainer.store import ContentStore, Ingest

__all__ = ["LentImage", "lent_by_layout", "lent_by_registry", "lent_by_store"]

_PIECE = 1 << 20
_MOST_INDEXES = 2
_BELOW = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True, kw_only=True)
class LentImage:
    """An image, here or elsewhere; whoever opened it closes it."""

    manifest: Manifest
    config: ImageConfig
    config_bytes: bytes
    content: ContentStore
    bring: Callable[[Descriptor, Ingest, Callable[[], None]], None]
    """Writes a layer's bytes, calling the function now and then, which may raise to stop it."""
    undo: ExitStack = field(default_factory=ExitStack)

    def take(self, number: int, check: Callable[[], None]) -> tuple[Descriptor, Digest]:
        """Have a layer in the store: its blob and the diff id that the config promises of it, not yet compared."""
        layer = self.manifest.layers[number]
        if self.content.has(layer.digest) and self.content.size(layer.digest) != layer.size:
            raise CorruptContent(
                f"its manifest says {layer.size} bytes of layer {layer.digest.short}, which has others"
            )
        with self.content.ingest(layer.digest, layer.size) as ingest:
            if not ingest.exists:
                if layer.data is not None:
                    ingest.restart()
                    ingest.write(layer.data)
                else:
                    self.bring(layer, ingest, check)
                ingest.commit()
        return layer, self.config.diff_ids[number]

    def close(self) -> None:
        """Let go of files and connections; from any thread, safe twice."""
        self.undo.close()


def _lent(
    manifest: Manifest,
    config: ImageConfig,
    config_bytes: bytes,
    content: ContentStore,
    bring: Callable[[Descriptor, Ingest, Callable[[], None]], None],
    *,
    undo: ExitStack,
) -> LentImage:
    """The image, which from here on has `undo` to do; when it cannot be used, the caller still has."""
    if len(manifest.layers) != len(config.diff_ids):
        raise InvalidImage(f"it has {len(manifest.layers)} layers, but its config lists {len(config.diff_ids)}")
    return LentImage(
        manifest=manifest,
        config=config,
        config_bytes=config_bytes,
        content=content,
        bring=bring,
        undo=undo.pop_all(),
    )


def lent_by_store(image: Image, content: ContentStore) -> LentImage:
    """An image of the store; its layers are there already, or lost."""

    def bring(layer: Descriptor, ingest: Ingest, check: Callable[[], None]) -> None:  # noqa: ARG001 - one shape for all
        raise BlobNotFound(f"its layer {layer.digest.short} is not in the store any more")

    config_bytes = content.read(image.record.config, DOCUMENT_LIMIT)
    return _lent(image.manifest, image.config, config_bytes, content, bring, undo=ExitStack())


def lent_by_registry(
    reference: Reference, platform: Platform, *, client: RegistryClient, content: ContentStore, undo: ExitStack
) -> LentImage:
    """An image of a registry; it takes over `undo`, which closes the client, unless this raises."""
    resolved = client.resolve(reference, platform)

    def bring(layer: Descriptor, ingest: Ingest, check: Callable[[], None]) -> None:
        with client.open_blob(reference, layer, offset=ingest.offset, hasher=ingest.hasher) as stream:
            for chunk in stream:
                check()
                ingest.write_hashed(chunk)

    return _lent(resolved.manifest, resolved.config, resolved.config_bytes, content, bring, undo=undo)


def lent_by_layout(path: str, platform: Platform, content: ContentStore) -> LentImage:
    """The image for `platform` in an OCI layout; raise `NotFound`, `InvalidInput` or `InvalidImage`."""
    with ExitStack() as undo:
        layout = _opened(path, undo)
        document: Manifest | Index = Index.from_json(layout.read("index.json", DOCUMENT_LIMIT))
        for _ in range(_MOST_INDEXES):
            if isinstance(document, Manifest):
                break
            chosen = document.choose(platform)
            if chosen is None:
                offered = ", ".join(document.platforms) or "none that is named"
                raise NotFound(f"{path} has no image for {platform}; its platforms are: {offered}")
            document = decode_document(_document(layout, chosen.digest), chosen.media_type)
        if not isinstance(document, Manifest):
            raise InvalidImage(f"{path} has an index within an index within an index; refused")

        def bring(layer: Descriptor, ingest: Ingest, check: Callable[[], None]) -> None:
            ingest.restart()
            for piece in layout.pieces(_blob(layer.digest)):
                check()
                ingest.write(piece)

        config_bytes = _document(layout, document.config.digest)
        return _lent(document, ImageConfig.from_json(config_bytes), config_bytes, content, bring, undo=undo)


# --- layouts ----------------------------------------------------------------------------------------------------------


class _Layout(Protocol):
    """The files of an OCI layout, by name; its two kinds differ in where they are found."""

    def _open(self, name: str) -> tuple[BinaryIO, int]:
        """The file it is in, at its begin, and its size; raise `NotFound`."""

    def pieces(self, name: str) -> Iterator[bytes]:
        """A file's bytes; raise `NotFound`."""
        file, left = self._open(name)
        with file:
            while left and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece

    def read(self, name: str, limit: int) -> bytes:
        """A small file, whole."""
        data = b""
        for piece in self.pieces(name):
            data += piece
            if len(data) > limit:
                raise InvalidImage(f"{name} is larger than the {limit} bytes allowed")
        return data


class _Folder(_Layout):
    """A layout as a folder; links in it are followed inside of it only."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    def _open(self, name: str) -> tuple[BinaryIO, int]:
        try:
            fd = openat2(self._fd, name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, resolve=_BELOW)
        except OSError as problem:
            raise NotFound(f"{name} in {self._path} cannot be read: {problem.strerror}") from problem
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise InvalidImage(f"{name} in {self._path} is no file")
        return os.fdopen(fd, "rb"), status.st_size


class _Archive(_Layout):
    """A layout as a tar without compression: where each file begins is looked up once."""

    def __init__(self, fd: int, path: str, places: Mapping[str, tuple[int, int]]) -> None:
        self._fd = fd
        self._path = path
        self._places = places

    def _open(self, name: str) -> tuple[BinaryIO, int]:
        if name not in self._places:
            raise NotFound(f"there is no {name} in {self._path}; it is no OCI archive, or not all of one")
        offset, size = self._places[name]
        file = open(f"/proc/self/fd/{self._fd}", "rb")  # noqa: SIM115 - the caller closes; its own position in the file
        file.seek(offset)
        return file, size


def _opened(path: str, undo: ExitStack) -> _Layout:
    where = os.path.abspath(os.path.expanduser(path))
    try:
        fd = os.open(where, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as problem:
        raise NotFound(f"{path} cannot be read: {problem.strerror}") from problem
    undo.callback(os.close, fd)
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode):
        return _Folder(fd, path)
    if not stat.S_ISREG(mode):
        raise InvalidInput(f"{path} is neither a folder nor a file")
    try:
        with os.fdopen(os.dup(fd), "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            places = {
                os.path.normpath(member.name): (member.offset_data, member.size)
                for member in tar
                if member.isreg() and not member.issparse()
            }
    except (tarfile.TarError, OSError, ValueError, OverflowError) as problem:
        raise InvalidInput(f"{path} is no tar archive that can be read, or a compressed one: {problem}") from problem
    return _Archive(fd, path, places)


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _document(layout: _Layout, digest: Digest) -> bytes:
    data = layout.read(_blob(digest), DOCUMENT_LIMIT)
    if Digest.of(data, digest.algorithm) != digest:
        raise CorruptContent(f"{_blob(digest)} has other content than its name says")
    return data
