"""What came of earlier steps: a small file for each key, naming the layer that the step made.

The layer itself lies in the content store and among the snapshots like any other; an entry is a lease on both (see
`nbcontainer.store.gc`), and one whose layer is gone is no entry. Written aside and renamed: two builds at once may
write the same key, and either answer is right.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidDigest
from nbcontainer.model import Descriptor, Digest
from nbcontainer.store import Lease
from nbcontainer.store.faults import storage_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.store import ContentStore

__all__ = ["BuildCache", "MadeLayer"]

_ASIDE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
_LONGEST = 64 << 20
"""Of an entry, in bytes; a word may list every file that a COPY takes of a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeLayer:
    """A layer that a step made: its blob, its diff id, and the chain id of the stage's files with it on top.

    `created` is when that was, as RFC 3339.
    """

    blob: Descriptor
    diff_id: Digest
    chain: Digest
    created: str
    notices: tuple[str, ...] = ()


class BuildCache:
    """All entries of one store. `folder` is where builds keep what they keep."""

    def __init__(self, folder: str, content: ContentStore, snapshots: Snapshotter) -> None:
        self._entries = os.path.join(folder, "cache")
        self._content = content
        self._snapshots = snapshots

    def find(self, key: Digest, *, unpacked: bool = True) -> MadeLayer | None:
        """What the step made, if all of it is still here; without `unpacked`, if its blob is."""
        found = self._load(self._path(key))
        if found is None or not self._content.has(found.blob.digest):
            return None
        if unpacked and not self._snapshots.has(found.chain):
            return None
        with contextlib.suppress(OSError):  # when it was last of use; only a comfort
            os.utime(self._path(key))
        return found

    def keep(self, key: Digest, made: MadeLayer) -> None:
        """Remember what the step made; the layer is stored already."""
        fields = {
            "media_type": made.blob.media_type,
            "digest": str(made.blob.digest),
            "size": made.blob.size,
            "diff_id": str(made.diff_id),
            "chain": str(made.chain),
            "created": made.created,
            "notices": list(made.notices),
        }
        self._write(self._path(key), fields)

    def word(self, key: Digest) -> str | None:
        """A text kept under a key that names no layer: a digest that was costly to find out."""
        fields = self._read(self._path(key, ".word"))
        return fields.get("word") if fields else None

    def keep_word(self, key: Digest, word: str) -> None:
        """Remember such a text."""
        self._write(self._path(key, ".word"), {"word": word})

    def lease(self) -> Lease:
        """What must not be collected."""
        made = [layer for path in self._paths() if (layer := self._load(path)) is not None]
        return Lease(
            blobs=frozenset(layer.blob.digest for layer in made), snapshots=frozenset(layer.chain for layer in made)
        )

    def clear(self, *, unused_since: float | None = None) -> int:
        """Forget every entry, or those that were of no use after a moment; say how many."""
        count = 0
        for path in list(self._paths()):
            with contextlib.suppress(FileNotFoundError):
                if unused_since is None or os.stat(path).st_mtime < unused_since:
                    os.unlink(path)
                    count += path.endswith(".json")
        return count

    def _path(self, key: Digest, suffix: str = ".json") -> str:
        return os.path.join(self._entries, key.hex[:2], key.hex + suffix)

    def _paths(self) -> Iterator[str]:
        for directory, _, names in os.walk(self._entries):
            yield from (os.path.join(directory, name) for name in names if name.endswith((".json", ".word")))

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            with open(path, "rb") as file:
                fields = json.loads(file.read(_LONGEST))
        except (OSError, ValueError, RecursionError):
            return None
        return fields if isinstance(fields, dict) else None

    def _load(self, path: str) -> MadeLayer | None:
        fields = self._read(path) if path.endswith(".json") else None
        if fields is None:
            return None
        try:
            blob = Descriptor(
                media_type=str(fields["media_type"]), digest=Digest.parse(fields["digest"]), size=int(fields["size"])
            )
            return MadeLayer(
                blob=blob,
                diff_id=Digest.parse(fields["diff_id"]),
                chain=Digest.parse(fields["chain"]),
                created=str(fields["created"]),
                notices=tuple(str(each) for each in fields["notices"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, InvalidDigest):
            return None

    def _write(self, path: str, fields: dict[str, Any]) -> None:
        directory = os.path.dirname(path)
        aside = os.path.join(directory, f".{secrets.token_hex(8)}.tmp")
        with storage_faults("remember a build step", path):
            try:
                fd = os.open(aside, _ASIDE, 0o600)
            except FileNotFoundError:
                os.makedirs(directory, mode=0o700, exist_ok=True)
                fd = os.open(aside, _ASIDE, 0o600)
            try:
                with open(fd, "wb") as file:
                    file.write(json.dumps(fields).encode())
                os.rename(aside, path)
            except BaseException:
                os.unlink(aside)
                raise
