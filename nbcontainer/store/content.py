"""Blobs named by their digest, on disk as ``blobs/<algorithm>/<hex>``.

A blob comes in through an *ingest*: a partial file that is its own lock, so two kernels never write the same
bytes twice, and that outlives a killed process, so the next one resumes where it stopped. `Ingest.commit` verifies
size and digest, syncs and renames; until then the blob does not exist. (The life of a write is containerd's
``content.Writer``; that success means "it is stored", not "I stored it", is umoci's ``PutBlob``.)

The store's directory is closed to other users (0700): a layer may hold setuid files (CVE-2021-41091).
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, final

from nbcontainer.errors import BlobNotFound, CorruptContent, InvalidDigest
from nbcontainer.model import Digest
from nbcontainer.store.faults import human_size, storage_faults
from nbcontainer.store.locks import open_locked, try_open_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from types import TracebackType

__all__ = ["BlobStore", "ContentStore", "Draft", "Ingest", "Partial"]

_PIECE = 1024 * 1024
_PARTIAL = re.compile(r"(sha256|sha384|sha512|draft)-([0-9a-f]+)", re.ASCII)
_READ_ONLY = 0o444


class BlobStore(Protocol):
    """The seam: what pulls, builds and tests need of a content store. Every method may raise `StorageError`."""

    def put(self, data: bytes) -> Digest:
        """Store small content; it is stored when this returns, whoever did it."""
        ...

    def open(self, digest: Digest) -> BinaryIO:
        """A reader at the start of the blob, closed by the caller; `BlobNotFound` when it is not here."""
        ...

    def read(self, digest: Digest, limit: int) -> bytes:
        """The whole content, verified, when it is at most `limit` bytes; `CorruptContent` otherwise."""
        ...

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here, complete."""
        ...

    def size(self, digest: Digest) -> int:
        """Its bytes; `BlobNotFound` when it is not here."""
        ...

    def delete(self, digest: Digest) -> int:
        """Remove it and say how many bytes that freed; 0 when it was not here."""
        ...

    def walk(self) -> Iterator[Digest]:
        """Every blob here, in no particular order."""
        ...


class Partial(NamedTuple):
    """A kept, unfinished ingest as garbage collection sees it."""

    path: str
    size: int
    modified: float


class ContentStore:
    """The content store on disk below `root`; any number of processes may share it."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._blobs = os.path.join(self.root, "blobs")
        self._ingests = os.path.join(self.root, "ingest")

    def ingest(
        self, digest: Digest, size: int, *, sync: bool = True, waiting: Callable[[], None] | None = None
    ) -> Ingest:
        """A context manager that takes in `size` bytes that must have `digest`.

        Entering waits while another process takes in the same blob (`waiting` is called once if that is long).
        `sync=False` leaves the fsync to the caller, who then must sync before a ref names the blob.
        """
        self._make(self._ingests)
        self._make(os.path.join(self._blobs, digest.algorithm))
        partial = os.path.join(self._ingests, f"{digest.algorithm}-{digest.hex}")
        return Ingest(digest, size, partial=partial, final=self.path(digest), sync=sync, waiting=waiting)

    def draft(self) -> Draft:
        """A context manager for content that is being made, so that its digest is known at the end only."""
        self._make(self._ingests)
        self._make(os.path.join(self._blobs, "sha256"))
        return Draft(self, os.path.join(self._ingests, f"draft-{secrets.token_hex(16)}"))

    def put(self, data: bytes) -> Digest:
        """Store content that is already in memory, such as a manifest."""
        digest = Digest.of(data)
        if not self.has(digest):
            with self.ingest(digest, len(data)) as ingest:
                if not ingest.exists:
                    ingest.restart()
                    ingest.write(data)
                ingest.commit()
        return digest

    def path(self, digest: Digest) -> str:
        """Where the blob lies or would lie; a validated digest cannot name anything else."""
        return os.path.join(self._blobs, digest.algorithm, digest.hex)

    def open(self, digest: Digest) -> BinaryIO:
        """A buffered reader, to be closed by the caller."""
        with storage_faults(f"read blob {digest.short}", self.path(digest)):
            try:
                return open(self.path(digest), "rb")
            except FileNotFoundError as problem:
                raise _missing(digest) from problem

    def read(self, digest: Digest, limit: int) -> bytes:
        """The content, checked against its digest again: disks err, and people edit."""
        with self.open(digest) as blob, storage_faults(f"read blob {digest.short}", self.path(digest)):
            data = blob.read(limit + 1)
        if len(data) > limit:
            raise CorruptContent(f"blob {digest} is larger than the {limit} bytes such a document may have")
        if Digest.of(data, digest.algorithm) != digest:
            raise CorruptContent(
                f"blob {digest} in {self._blobs} was changed on disk; delete that file and pull the image again"
            )
        return data

    def has(self, digest: Digest) -> bool:
        """Whether the blob is here; its name exists only when it is complete."""
        return os.path.isfile(self.path(digest))

    def size(self, digest: Digest) -> int:
        """Bytes of the blob."""
        with storage_faults(f"look at blob {digest.short}", self.path(digest)):
            try:
                return os.stat(self.path(digest)).st_size
            except FileNotFoundError as problem:
                raise _missing(digest) from problem

    def delete(self, digest: Digest) -> int:
        """Remove a blob; 0 when it was not here."""
        with storage_faults(f"delete blob {digest.short}", self.path(digest)):
            try:
                size = os.stat(self.path(digest)).st_size
                os.unlink(self.path(digest))
            except FileNotFoundError:
                return 0
        return size

    def walk(self) -> Iterator[Digest]:
        """Every complete blob; files with other names are not ours and are passed over."""
        for algorithm in _names(self._blobs):
            for name in _names(os.path.join(self._blobs, algorithm)):
                with suppress(InvalidDigest):
                    yield Digest(algorithm, name)

    def partials(self) -> Iterator[Partial]:
        """The unfinished ingests, running ones among them."""
        for name in _names(self._ingests):
            path = os.path.join(self._ingests, name)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            if _PARTIAL.fullmatch(name):
                yield Partial(path, status.st_size, status.st_mtime)

    def discard(self, partial: Partial) -> int | None:
        """Remove an unfinished ingest and say how many bytes that freed; None when somebody is writing it."""
        with storage_faults("remove an unfinished download", partial.path):
            try:
                fd = try_open_locked(partial.path, create=False)
            except FileNotFoundError:
                return None
            if fd is None:
                return None
            try:
                os.unlink(partial.path)
            finally:
                os.close(fd)
        return partial.size

    def _make(self, directory: str) -> None:
        with storage_faults("make the store's directories", directory):
            if not os.path.isdir(self.root):
                os.makedirs(self.root, mode=0o700, exist_ok=True)
            if os.stat(self.root).st_mode & 0o067:  # 0710 is right where container root's group must walk through
                os.chmod(self.root, 0o700)
            os.makedirs(directory, mode=0o700, exist_ok=True)


@final
class Ingest:
    """One blob on its way in; made by `ContentStore.ingest` and used as a context manager.

    `offset` says how many bytes an earlier, killed ingest left: ask the registry for the rest (``Range``), or call
    `restart` when it will not send a range. `exists` is true when another process finished the blob while this one
    waited. Leaving without `commit` keeps the partial file for next time.
    """

    def __init__(
        self,
        digest: Digest,
        size: int,
        *,
        partial: str,
        final: str,
        sync: bool,
        waiting: Callable[[], None] | None,
    ) -> None:
        self.digest = digest
        self.size = size
        self.offset = 0
        self.exists = False
        self._partial = partial
        self._final = final
        self._sync = sync
        self._waiting = waiting
        self._fd = -1
        self._hash = hashlib.new(digest.algorithm)

    def __enter__(self) -> Ingest:
        with self._faults():
            if not self._check_exists():
                self._fd = open_locked(self._partial, waiting=self._waiting)
                try:
                    if self._check_exists():
                        os.unlink(self._partial)
                        self._close()
                    else:
                        self._resume()
                except BaseException:
                    self._close()
                    raise
        return self

    def _check_exists(self) -> bool:
        self.exists = os.path.isfile(self._final)
        if self.exists:
            self.offset = self.size
        return self.exists

    def _resume(self) -> None:
        """Hash again what an earlier ingest left; more than the blob can have is garbage."""
        left = os.fstat(self._fd).st_size
        if left > self.size:
            os.ftruncate(self._fd, 0)
            left = 0
        while self.offset < left:
            piece = os.pread(self._fd, _PIECE, self.offset)
            if not piece:
                break
            self._hash.update(piece)
            self.offset += len(piece)

    def restart(self) -> None:
        """Forget what an earlier ingest left and begin at byte 0."""
        with self._faults():
            os.ftruncate(self._fd, 0)
        self._hash = hashlib.new(self.digest.algorithm)
        self.offset = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; `CorruptContent` as soon as there are more than announced."""
        self._hash.update(data)
        self._write(data)

    def _write(self, data: bytes | bytearray | memoryview) -> None:
        count = len(data)
        if self.offset + count > self.size:
            self.abort(discard=True)
            raise CorruptContent(f"blob {self.digest} should have {self.size} bytes, but more were sent; not stored")
        with self._faults():
            view = memoryview(data)
            while view:
                written = os.pwrite(self._fd, view, self.offset)
                self.offset += written
                view = view[written:]

    @property
    def path(self) -> str:
        """Where the bytes are while they arrive; the file is renamed by `commit`."""
        return self._partial

    @property
    def hasher(self) -> Any:
        """The running hash, for a stream that feeds it itself: then use `write_hashed`."""
        return self._hash

    def write_hashed(self, data: bytes | bytearray | memoryview) -> None:
        """As `write`, for bytes that `hasher` has been fed already: hashing 1 GB twice costs a second."""
        self._write(data)

    def commit(self) -> Digest:
        """Verify, sync, rename; afterwards the blob is here. `CorruptContent` leaves nothing under its name.

        Too few bytes keep the partial file (the rest can follow); a wrong digest throws it away.
        """
        if self.exists:
            return self.digest
        if self.offset != self.size:
            raise CorruptContent(
                f"blob {self.digest} should have {self.size} bytes, but the transfer ended after {self.offset};"
                " try again, it resumes there"
            )
        if self._hash.hexdigest() != self.digest.hex:
            self.abort(discard=True)
            raise CorruptContent(
                f"blob {self.digest} came with other content (sha {self._hash.hexdigest()[:12]}…); not stored,"
                " try again or ask the registry's owner"
            )
        with self._faults():
            if self._sync:
                os.fsync(self._fd)
            os.rename(self._partial, self._final)
            self.exists = True
            os.fchmod(self._fd, _READ_ONLY)  # not before: whoever waits opens the partial file for writing
            if self._sync:
                sync_directory(os.path.dirname(self._final))
        self._close()
        return self.digest

    def abort(self, *, discard: bool = False) -> None:
        """Stop; the partial file stays for a later resume unless `discard`. Safe twice, and after commit."""
        if self._fd >= 0 and discard:
            with self._faults():
                os.unlink(self._partial)
        self._close()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _faults(self) -> AbstractContextManager[None]:
        return storage_faults(f"store blob {self.digest.short} ({human_size(self.size)})", self._final)


@final
class Draft:
    """One blob being made; from `ContentStore.draft`, used as a context manager. Leaving without `commit` discards it.

    Like an ingest it is a file that is its own lock, so what a killed process left is found and removed.
    """

    def __init__(self, store: ContentStore, partial: str) -> None:
        self.size = 0
        self._store = store
        self._partial = partial
        self._fd = -1
        self._hash = hashlib.sha256()

    def __enter__(self) -> Draft:
        with storage_faults("store a new blob", self._partial):
            self._fd = open_locked(self._partial)
        return self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        self._hash.update(data)
        with storage_faults("store a new blob", self._partial):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        self.size += len(data)

    def commit(self) -> Digest:
        """Sync and rename to the digest it turned out to have; it is stored when this returns, whoever did it."""
        digest = Digest("sha256", self._hash.hexdigest())
        final_path = self._store.path(digest)
        with storage_faults(f"store blob {digest.short} ({human_size(self.size)})", final_path):
            os.fchmod(self._fd, _READ_ONLY)
            os.fsync(self._fd)
            os.rename(self._partial, final_path)
            sync_directory(os.path.dirname(final_path))
        self._close()
        return digest

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            with suppress(FileNotFoundError):
                os.unlink(self._partial)
            self._close()


def sync_directory(path: str) -> None:
    """Make the names in a directory durable; file systems that cannot sync a directory are let be."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as problem:
        if problem.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(fd)


def _names(directory: str) -> list[str]:
    with storage_faults("list the store", directory):
        try:
            return os.listdir(directory)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _missing(digest: Digest) -> BlobNotFound:
    return BlobNotFound(f"blob {digest} is not in the store; pull the image again")
