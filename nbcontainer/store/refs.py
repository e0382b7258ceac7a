"""Names of images: one small JSON file a name, written last and by rename.

A record is what `pull`, `build` and `tag` leave: which content the name means on this machine. Layout below
``refs/``: ``<host>/<repository…>/_tags/<tag>.json`` and ``…/_digests/<algorithm>-<hex>.json`` for images pulled by
digest. A component of a repository cannot start with ``_``, so no name can collide with these folders.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from nbcontainer.errors import ImageNotFound, InvalidDigest, InvalidReference, StorageError
from nbcontainer.model import Digest, Notice, Reference, ignore
from nbcontainer.store.content import sync_directory
from nbcontainer.store.faults import storage_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.model import Listener

__all__ = ["ImageRecord", "RefStore"]

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{4,64})", re.ASCII)
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """What a name means here.

    `target` is the digest the registry gave for the name (an index or a manifest), `manifest` the one chosen for this
    platform, `config` its config, which is also the image's id. `pulled_at` is in Unix seconds, `size` in
    compressed bytes.
    """

    reference: Reference
    target: Digest
    manifest: Digest
    config: Digest
    pulled_at: float
    size: int

    @property
    def id(self) -> Digest:
        """The image id as docker shows it: the digest of the config."""
        return self.config

    def to_json(self) -> bytes:
        """The record as it lies on disk."""
        fields = {
            "reference": str(self.reference),
            "target": str(self.target),
            "manifest": str(self.manifest),
            "config": str(self.config),
            "pulled_at": self.pulled_at,
            "size": self.size,
        }
        return json.dumps(fields, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> ImageRecord:
        """Read a record back; `ValueError` for anything that is not one."""
        fields: Any = json.loads(data)
        try:
            return cls(
                reference=Reference.parse(fields["reference"]),
                target=Digest.parse(fields["target"]),
                manifest=Digest.parse(fields["manifest"]),
                config=Digest.parse(fields["config"]),
                pulled_at=float(fields["pulled_at"]),
                size=int(fields["size"]),
            )
        except (KeyError, TypeError, AttributeError, InvalidReference, InvalidDigest) as problem:
            raise ValueError(f"{type(problem).__name__}: {problem}") from problem


class RefStore:
    """The names below ``root/refs``; every change is one rename, so readers need no lock."""

    def __init__(self, root: str) -> None:
        self._refs = os.path.join(os.path.abspath(root), "refs")
        self._known: dict[str, tuple[tuple[int, int, int], ImageRecord]] = {}

    def put(self, record: ImageRecord) -> None:
        """Make the name mean `record`, durably, replacing what it meant before."""
        path = self._path(record.reference)
        directory = os.path.dirname(path)
        with storage_faults(f"record image {record.reference.familiar}", path):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=directory, prefix=".", suffix=".tmp", delete=False) as aside:
                try:
                    aside.write(record.to_json())
                    aside.flush()
                    os.fsync(aside.fileno())
                    os.rename(aside.name, path)
                except BaseException:
                    os.unlink(aside.name)
                    raise
            sync_directory(directory)

    def get(self, reference: Reference) -> ImageRecord | None:
        """What the name means here, or None; `StorageError` naming the file when it cannot be read."""
        return self._load(self._path(reference))

    def delete(self, reference: Reference) -> bool:
        """Forget the name; false when it was not here. The content goes at the next collection."""
        path = self._path(reference)
        with storage_faults(f"untag image {reference.familiar}", path):
            try:
                os.unlink(path)
            except FileNotFoundError:
                return False
        self._prune(os.path.dirname(path))
        return True

    def list(self, listener: Listener = ignore) -> tuple[ImageRecord, ...]:
        """Every record, by name; one that cannot be read is told to `listener` and left out."""
        records = []
        for path in self._files():
            try:
                record = self._load(path)
            except StorageError as problem:
                listener(Notice(text=str(problem)))
                continue
            if record is not None:
                records.append(record)
        return tuple(sorted(records, key=lambda record: str(record.reference)))

    def find(self, text: str) -> tuple[ImageRecord, ...]:
        """What a person means by a name or an image id (at least four hex digits of it), never empty.

        A name gives one record, an id every name of that image. Raises `ImageNotFound`, or `InvalidReference`
        listing the candidates when an id prefix fits several images.
        """
        named = self._by_name(text)
        if named is not None:
            return (named,)
        match = _ID.fullmatch(text)
        found = self._by_id(match[1]) if match else ()
        if not found:
            raise ImageNotFound(f"no image {text!r} here; %container images lists them, %container pull fetches one")
        ids = {record.id for record in found}
        if len(ids) > 1:
            candidates = ", ".join(sorted(f"{record.id.short} ({record.reference.familiar})" for record in found))
            raise InvalidReference(f"image id {text!r} fits {len(ids)} images: {candidates}; type more digits")
        return found

    def _by_name(self, text: str) -> ImageRecord | None:
        try:
            return self.get(Reference.parse(text))
        except InvalidReference:
            if _ID.fullmatch(text):
                return None
            raise

    def _by_id(self, prefix: str) -> tuple[ImageRecord, ...]:
        return tuple(record for record in self.list() if record.id.hex.startswith(prefix))

    def _path(self, reference: Reference) -> str:
        digest = reference.digest
        leaf = ("_digests", f"{digest.algorithm}-{digest.hex}") if digest else ("_tags", reference.tag)
        host = quote(reference.registry, safe="")
        return os.path.join(self._refs, host, *reference.repository.split("/"), leaf[0], leaf[1] + _SUFFIX)

    def _load(self, path: str) -> ImageRecord | None:
        """A record, parsed again only when its file is another one (each change is a rename of a new file)."""
        with storage_faults("read an image record", path):
            try:
                found = os.stat(path)
                file_is = (found.st_dev, found.st_ino, found.st_mtime_ns)
                known = self._known.get(path)
                if known is not None and known[0] == file_is:
                    return known[1]
                with open(path, "rb") as file:
                    data = file.read()
            except FileNotFoundError:
                return None
        try:
            record = ImageRecord.from_json(data)
        except ValueError as problem:
            raise StorageError(
                f"image record {path} is damaged ({problem}); delete that file and pull the image again"
            ) from problem
        self._known[path] = (file_is, record)
        return record

    def _files(self) -> Iterator[str]:
        for directory, _, names in os.walk(self._refs):
            if os.path.basename(directory) in {"_tags", "_digests"}:
                yield from (os.path.join(directory, name) for name in names if name.endswith(_SUFFIX))

    def _prune(self, directory: str) -> None:
        """Remove folders that became empty, up to ``refs``; one in use stays."""
        while directory != self._refs:
            try:
                os.rmdir(directory)
            except OSError:
                return
            directory = os.path.dirname(directory)
