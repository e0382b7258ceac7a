"""The images that are here: finding, describing, removing."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import Conflict, InvalidImage, NotFound, StorageError
from nbcontainer.images.image import Image, load_image
from nbcontainer.store import Lease, mark, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.model import Digest
    from nbcontainer.store import ContentStore, ImageRecord, RefStore, Swept

__all__ = ["Library", "Removal", "unix_time"]

_NOTHING = Lease()


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a removal did: names taken away, images that went with their last name, bytes freed."""

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    freed: int


class Library:
    """Local images over content store, names and snapshots."""

    def __init__(self, content: ContentStore, refs: RefStore, snapshots: Snapshotter) -> None:
        self.content = content
        self.refs = refs
        self.snapshots = snapshots
        self._loaded: dict[tuple[Digest, Digest], Image] = {}

    def find(self, text: str) -> Image:
        """The image that a name or an id means; raise `ImageNotFound` or `InvalidReference`."""
        return self._load(self.refs.find(text)[0])

    def _load(self, record: ImageRecord) -> Image:
        """The documents of a record, read once: they are named by their digests, so they cannot change."""
        key = (record.manifest, record.config)
        known = self._loaded.get(key)
        if known is None:
            known = self._loaded[key] = load_image(record, self.content)
        return known if known.record == record else dataclasses.replace(known, record=record)

    def walk(self) -> Iterator[Image]:
        """Every image that can be read, a name at a time."""
        for record in self.refs.list():
            with contextlib.suppress(StorageError, InvalidImage):
                yield self._load(record)

    def unpacked_size(self, image: Image) -> int:
        """Bytes its layers take on disk, shared ones included."""
        total = 0
        chain = image.chain
        while chain is not None:
            try:
                total += self.snapshots.usage(chain).bytes
            except NotFound:
                return total
            chain = self.snapshots.parent(chain)
        return total

    def remove(self, text: str, *, force: bool, used: frozenset[Digest], lease: Lease = _NOTHING) -> Removal:
        """Take names away and collect what nothing needs; the caller holds the store's lock alone.

        `used` are the chain ids that containers stand on, `lease` is what else is needed. A name is removed by itself;
        an id removes all its names, several only with `force`. Raises `Conflict` when a container still needs what the
        last name would take along.
        """
        removal = self.untag(text, force=force, used=used)
        swept = self.collect(used, lease)
        return dataclasses.replace(removal, freed=swept.freed)

    def untag(self, text: str, *, force: bool, used: frozenset[Digest]) -> Removal:
        """Take names away and nothing else, under the same conditions; a shared lock is enough for that."""
        records = self.refs.find(text)
        names = tuple(record.reference.familiar for record in records)
        if len(names) > 1 and not force:
            raise Conflict(
                f"image {text} has several names: {', '.join(names)}; remove one of them by name, or all with -f"
            )
        image = self._load(records[0])
        others = [record for record in self.refs.list() if record.id == image.record.id and record not in records]
        if not others and image.chain in used and not force:
            raise Conflict(
                f"image {text} is used by a container; remove that first (`%container ps -a`), or its name with -f"
            )
        for record in records:
            self.refs.delete(record.reference)
        return Removal(untagged=names, deleted=() if others else (image.record.id,), freed=0)

    def collect(self, used: frozenset[Digest], lease: Lease = _NOTHING) -> Swept:
        """Remove content and snapshots that nobody needs; the caller holds the store's lock alone."""
        leases = [Lease(snapshots=used), lease]
        reachable = mark(self.refs.list(), leases, blobs=self.content, parent=self.snapshots.parent)
        if reachable.damaged:
            shown = ", ".join(record.reference.familiar for record in reachable.damaged)
            raise StorageError(
                f"nothing was collected, because these images are damaged in the store: {shown}; "
                "pull or remove them first"
            )
        self.snapshots.reap()
        return sweep(
            self.content,
            reachable,
            snapshots=tuple(self.snapshots.walk()),
            parent=self.snapshots.parent,
            remove_snapshot=self.snapshots.remove,
        )


def unix_time(text: str) -> float | None:
    """RFC 3339 (OCI config.md, "created") as unix seconds; None for the zero time and for anything else."""
    with contextlib.suppress(ValueError):
        trimmed = text.replace("Z", "+00:00")
        head, dot, rest = trimmed.partition(".")
        if dot:
            digits = rest.rstrip("+-:0123456789")
            zone = rest[len(rest) - 6 :] if len(rest) > 6 and rest[-6] in "+-" else ""
            fraction = rest[: len(rest) - len(zone)][:6].ljust(6, "0")
            trimmed = f"{head}.{fraction}{zone}" if not digits else trimmed
        moment = dt.datetime.fromisoformat(trimmed)
        if moment.year > 1970:
            return moment.replace(tzinfo=moment.tzinfo or dt.timezone.utc).timestamp()
    return None
