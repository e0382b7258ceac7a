"""Snapshots: unpacked layers, kept under the chain id that names them and everything below.

Words, fixed here: a *chain* is the chain id of a committed snapshot and its only name; its *parent* is the chain
below it; an *active layer* is a directory being filled under a random name, which becomes a snapshot by `commit`. A
*lower* is the directory of a snapshot as overlayfs takes it.

One life::

    active = snapshots.prepare(chain, parent)      # an empty (native: copied) directory, locked for us
    …write the layer into active.fs…               # `apply.serve` in the user namespace, as active.flat says
    snapshots.commit(active, Usage(...))           # sync, rename: now the chain exists
    snapshots.mounts(chain, upper=…, work=…)       # data for whoever mounts

Files inside belong to the ids of a user namespace, so snapshots lie below the key of their id map, and the two
recursive jobs, removing and copying, are callables given by whoever can enter that namespace.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from nbcontainer.errors import Conflict, InvalidDigest, InvalidImage, NbcontainerError, NotFound, StorageError
from nbcontainer.layers.apply import sync_filesystem
from nbcontainer.model import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbcontainer.model import IdMap, Mount

__all__ = ["ActiveLayer", "HeldLock", "SnapshotDirectory", "Snapshotter", "Usage"]

_RECORD = "snapshot.json"
_ACTIVE = "active"
_LONGEST_CHAIN = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a snapshot itself takes, without its parents."""

    bytes: int = 0
    entries: int = 0


class HeldLock:
    """An exclusive flock on a directory."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.release()
            raise

    def names(self, path: str) -> bool:
        """Whether what is locked still is what `path` names: it may have been removed before we had the lock."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.lstat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go; safe twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveLayer:
    """A layer being filled.

    `lowers` are the directories to apply against, topmost first; `flat` means that `fs` already holds them. `lock` is
    held while the layer is active; the kernel drops it when we die, and then `reap` takes the directory away.
    """

    chain: Digest
    parent: Digest | None
    path: str
    lowers: tuple[str, ...]
    flat: bool
    lock: HeldLock = field(compare=False, repr=False)

    @property
    def fs(self) -> str:
        """The directory to fill."""
        return os.path.join(self.path, "fs")


class _Record(NamedTuple):
    """What `snapshot.json` says."""

    parent: Digest | None
    usage: Usage


class Snapshotter(Protocol):
    """The seam. Implementations are safe between processes; every method may raise `StorageError`."""

    def has(self, chain: Digest) -> bool:
        """Whether the snapshot is here, complete."""
        ...

    def generation(self, chain: Digest) -> str:
        """A word that changes when the snapshot is removed and made anew; "" when it is not here."""
        ...

    def prepare(self, chain: Digest, parent: Digest | None) -> ActiveLayer:
        """A locked directory for this layer, to be ended by `commit` or `abort`.

        `Conflict` when the chain is here already: there is nothing to do. `NotFound` when its parent is not.
        """
        ...

    def commit(self, active: ActiveLayer, usage: Usage | None = None, *, sync: bool = True) -> None:
        """The snapshot is here when this returns, whoever made it; what we made twice is discarded.

        `sync` writes the file system to disk first, so that a crash cannot leave a complete name over missing bytes.
        """
        ...

    def abort(self, active: ActiveLayer) -> None:
        """Remove the directory. Safe after a failed commit, and twice."""
        ...

    def lowers(self, chain: Digest) -> tuple[str, ...]:
        """The directories that together are this chain, topmost first; `NotFound` when one is missing."""
        ...

    def parent(self, chain: Digest) -> Digest | None:
        """The chain below; None for a bottom one and for one that is not here."""
        ...

    def mounts(self, chain: Digest, *, upper: str = "", work: str = "") -> tuple[Mount, ...]:
        """How to mount the chain as a root, as data; read-only without an `upper`."""
        ...

    def remove(self, chain: Digest) -> int:
        """Remove the snapshot and say how many bytes its usage was; 0 when it was not here."""
        ...

    def walk(self) -> Iterator[Digest]:
        """Every snapshot here."""
        ...

    def usage(self, chain: Digest) -> Usage:
        """What the snapshot takes, as told to `commit`."""
        ...

    def reap(self) -> int:
        """Remove what killed processes left half made, and say how many directories that were."""
        ...


class SnapshotDirectory:
    """What both implementations share: names, records, the way from active to committed, removal.

    Layout: ``root/snapshots/<id map>/<chain hex>/{fs/,snapshot.json}`` and ``…/active/<random>/``.
    `remove_tree` empties and removes a directory whose files may belong to subordinate ids.
    """

    flat = False

    def __init__(self, root: str, idmap: IdMap, *, remove_tree: Callable[[str], None] = shutil.rmtree) -> None:
        self._directory = os.path.join(os.path.abspath(root), "snapshots", self._kind(idmap))
        self._active = os.path.join(self._directory, _ACTIVE)
        self._owner = _outside_root(idmap)
        self._remove_tree = remove_tree
        self._lowers: dict[Digest, tuple[str, ...]] = {}

    def _kind(self, idmap: IdMap) -> str:
        return idmap.key

    def has(self, chain: Digest) -> bool:
        """Whether its record is there, which is written before the rename."""
        return os.path.isfile(os.path.join(self._path(chain), _RECORD))

    def generation(self, chain: Digest) -> str:
        """The identity of its record, which `commit` writes and nobody changes."""
        try:
            record = os.stat(os.path.join(self._path(chain), _RECORD))
        except FileNotFoundError:
            return ""
        return f"{record.st_ino:x}-{record.st_mtime_ns:x}"

    def prepare(self, chain: Digest, parent: Digest | None) -> ActiveLayer:
        """Make and lock a directory; see `Snapshotter`."""
        if self.has(chain):
            raise Conflict(f"layer {chain.short} is unpacked already; use it as it is")
        lowers = self.lowers(parent) if parent else ()
        with _faults(f"make room for layer {chain.short}", self._active):
            path, lock = self._make_active(chain)
            os.mkdir(os.path.join(path, "fs"), 0o755)
            if self._owner is not None:
                os.chown(os.path.join(path, "fs"), *self._owner)
        active = ActiveLayer(
            chain=chain, parent=parent, path=path, lowers=self._against(lowers), flat=self.flat, lock=lock
        )
        try:
            self._fill(active, lowers)
        except BaseException:
            self.abort(active)
            raise
        return active

    def _make_active(self, chain: Digest) -> tuple[str, HeldLock]:
        while True:
            path = self._aside(chain)
            os.makedirs(self._active, mode=0o700, exist_ok=True)
            os.mkdir(path, 0o700)
            self._open_to_container_root(self._directory, path)
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # somebody reaped it before we had it
                lock = HeldLock(path)
                if lock.names(path):
                    return path, lock
                lock.release()

    def _open_to_container_root(self, *directories: str) -> None:
        """Let container root, who mounts, walk through; nobody else (its group is its own)."""
        if self._owner is not None:
            for path in directories:
                os.chown(path, -1, self._owner[1])
                os.chmod(path, 0o710)  # noqa: S103 - the group is container root's own

    def _aside(self, chain: Digest) -> str:
        return os.path.join(self._active, f"{chain.hex[:12]}-{secrets.token_hex(6)}")

    def _against(self, lowers: tuple[str, ...]) -> tuple[str, ...]:
        return lowers

    def _fill(self, active: ActiveLayer, lowers: tuple[str, ...]) -> None:
        """What must be in the directory before the layer is applied; nothing for an overlay."""

    def commit(self, active: ActiveLayer, usage: Usage | None = None, *, sync: bool = True) -> None:
        """Write the record, sync, rename; see `Snapshotter`."""
        final = self._path(active.chain)
        with _faults(f"keep layer {active.chain.short}", final):
            self._write_record(active, usage or Usage())
            if sync:
                sync_filesystem(active.lock.fd)
            try:
                os.rename(active.path, final)
            except OSError as problem:
                if problem.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                self.abort(active)
                return
            active.lock.release()
            if sync:
                _sync_directory(self._directory)

    def _write_record(self, active: ActiveLayer, usage: Usage) -> None:
        record = {
            "parent": str(active.parent) if active.parent else None,
            "bytes": usage.bytes,
            "entries": usage.entries,
        }
        with open(os.path.join(active.path, _RECORD), "w", encoding="ascii") as file:
            json.dump(record, file)

    def abort(self, active: ActiveLayer) -> None:
        """Remove the directory and let go of the lock; a layer that was committed or aborted is let be."""
        if active.lock.fd < 0:
            return
        with _faults(f"remove the unfinished layer {active.chain.short}", active.path):
            with contextlib.suppress(FileNotFoundError):
                self._remove_tree(active.path)
            active.lock.release()

    def lowers(self, chain: Digest) -> tuple[str, ...]:
        """The ``fs`` directories of the whole chain; read once, since a chain cannot change and goes top first."""
        known = self._lowers.get(chain)
        if known is None or not self.has(chain):
            known = tuple(os.path.join(self._path(each), "fs") for each in self._chain(chain))
            self._lowers[chain] = known
        return known

    def parent(self, chain: Digest) -> Digest | None:
        """What the record says."""
        record = self._record(chain)
        return record.parent if record else None

    def remove(self, chain: Digest) -> int:
        """Rename out of the way, then remove."""
        if not self.has(chain):
            return 0
        freed = self.usage(chain).bytes
        path = self._path(chain)
        doomed = self._aside(chain)
        with _faults(f"remove layer {chain.short}", path):
            os.makedirs(self._active, mode=0o700, exist_ok=True)
            try:
                lock = HeldLock(path)
            except (BlockingIOError, FileNotFoundError):
                return 0  # somebody else is removing it
            try:
                # renamed first: killed half way, it is garbage to reap and not a snapshot with holes
                os.rename(path, doomed)
                self._remove_tree(doomed)
            finally:
                lock.release()
        return freed

    def walk(self) -> Iterator[Digest]:
        """Every committed snapshot under this id map."""
        with _faults("list the layers", self._directory):
            names = os.listdir(self._directory) if os.path.isdir(self._directory) else []
        for name in names:
            with contextlib.suppress(InvalidDigest):
                chain = Digest("sha256", name)
                if self.has(chain):
                    yield chain

    def usage(self, chain: Digest) -> Usage:
        """What the record says."""
        record = self._record(chain)
        if record is None:
            raise _missing(chain)
        return record.usage

    def reap(self) -> int:
        """Remove active layers whose lock nobody holds."""
        names = os.listdir(self._active) if os.path.isdir(self._active) else []
        return sum(self._reap(os.path.join(self._active, name)) for name in names)

    def _reap(self, path: str) -> bool:
        with _faults("remove an unfinished layer", path):
            try:
                lock = HeldLock(path)
            except (FileNotFoundError, BlockingIOError):
                return False
            try:
                if not os.path.exists(path):
                    return False
                self._remove_tree(path)
            finally:
                lock.release()
        return True

    def _path(self, chain: Digest) -> str:
        return os.path.join(self._directory, chain.hex)

    def _chain(self, chain: Digest) -> Iterator[Digest]:
        current: Digest | None = chain
        for _ in range(_LONGEST_CHAIN):
            if current is None:
                return
            if not self.has(current):
                raise _missing(current)
            yield current
            current = self.parent(current)
        raise StorageError(f"the records of layer {chain.short} go round in a circle; remove {self._path(chain)}")

    def _record(self, chain: Digest) -> _Record | None:
        path = os.path.join(self._path(chain), _RECORD)
        with _faults(f"read the record of layer {chain.short}", path):
            try:
                with open(path, encoding="ascii") as file:
                    text = file.read()
            except FileNotFoundError:
                return None
        try:
            fields = json.loads(text)
            parent = None if fields["parent"] is None else Digest.parse(fields["parent"])
            return _Record(parent, Usage(bytes=int(fields["bytes"]), entries=int(fields["entries"])))
        except (ValueError, TypeError, KeyError, AttributeError) as problem:
            raise StorageError(
                f"the record {path} is damaged; remove the directory it lies in and pull the image again"
            ) from problem


def _outside_root(idmap: IdMap) -> tuple[int, int] | None:
    """The ids that root of the namespace has here, when they are not ours and we may give files to them."""
    if os.geteuid() != 0:
        return None
    ids = []
    for ranges in (idmap.uids, idmap.gids):
        outside = [each.outside - each.inside for each in ranges if each.inside <= 0 < each.inside + each.length]
        if not outside:
            raise InvalidImage("the id map has no root; layers cannot be unpacked under it")
        ids.append(outside[0])
    return None if ids == [0, 0] else (ids[0], ids[1])


@contextlib.contextmanager
def _faults(doing: str, path: str) -> Iterator[None]:
    """This island's one translation of the operating system's errors."""
    try:
        yield
    except NbcontainerError:
        raise
    except OSError as problem:
        hint = "make room (%container df) or move the store with NBCONTAINER_ROOT"
        if problem.errno not in {errno.ENOSPC, errno.EDQUOT}:
            hint = "check that disk, or move the store with NBCONTAINER_ROOT"
        raise StorageError(f"cannot {doing} at {path}: {problem.strerror or problem}; {hint}") from problem


def _missing(chain: Digest) -> NotFound:
    return NotFound(f"layer {chain.short} is not unpacked here; pull the image again")


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
