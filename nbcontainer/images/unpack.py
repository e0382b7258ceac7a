"""From a blob to a snapshot: inflate and hash here, write the files inside the user namespace, both at once.

This process reads the compressed blob (still arriving, perhaps), inflates it with the interpreter lock released and
writes the tar into a pipe; a helper in the namespace, where container root's ids exist, reads the pipe and makes the
files. Nothing counts until the tar's digest is the one that the image's config promised.
"""

from __future__ import annotations

import contextlib
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import Self

from nbcontainer.errors import Conflict, CorruptContent, NbcontainerError
from nbcontainer.layers.apply import sync_filesystem
from nbcontainer.layers.compression import inflate, write_all
from nbcontainer.layers.snapshotter import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from nbcontainer.layers.compression import Inflated
    from nbcontainer.layers.snapshotter import ActiveLayer, Snapshotter
    from nbcontainer.model import Digest

__all__ = ["Helper", "Unpacking", "unpack_layer"]

_WRITEBACK_EVERY = 128 * 1024 * 1024
_APPLY = "nbcontainer.layers.apply:serve"


class Helper(Protocol):
    """Runs functions of this package as container root (see `nbcontainer.runtime.driver.Runtime`)."""

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> Any:
        """Start ``module:function``."""

    def finish(self, connection: Any) -> dict[str, Any]:
        """Wait for it; raise what it raised."""

    def call(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Both."""


def unpack_layer(
    chunks: Iterable[bytes],
    *,
    diff_id: Digest,
    chain: Digest,
    parent: Digest | None,
    snapshots: Snapshotter,
    helper: Helper,
    owners: bool,
    before_commit: Callable[[], None],
) -> None:
    """Apply the blob's `chunks` on `parent` as snapshot `chain`; an existing one is left as it is.

    `before_commit` may still refuse (the blob's own digest). Raises
    `CorruptContent`, `UnsafeLayer`, `InvalidImage` or `StorageError`, and then leaves no snapshot.
    """
    with ExitStack() as undo:
        try:
            active = snapshots.prepare(chain, parent)
        except Conflict:  # another process has unpacked it meanwhile
            return
        unpacking = undo.enter_context(Unpacking.begun(active, snapshots=snapshots, helper=helper, owners=owners))
        inflated: Inflated | None = None
        with unpacking.fed():
            inflated = inflate(chunks, sink=unpacking.write)
        applied = unpacking.applied()
        assert inflated is not None  # else `applied` raised
        if inflated.diff_id != diff_id:
            raise CorruptContent(
                f"a layer inflates to {inflated.diff_id}, but the image's config promises {diff_id}; "
                "the image is damaged where it is kept, ask whoever pushed it"
            )
        before_commit()
        snapshots.commit(active, applied)


class Unpacking:
    """A tar on its way into a snapshot that is being made: `write` it inside of `fed`, then ask what was `applied`."""

    def __init__(
        self, active: ActiveLayer, helper: Helper, call: Any, ends: _Pipe, write: Callable[[bytes], None]
    ) -> None:
        self._active = active
        self._helper = helper
        self._call = call
        self._ends = ends
        self._refusal: BrokenPipeError | None = None
        self.write = write

    @classmethod
    @contextlib.contextmanager
    def begun(cls, active: ActiveLayer, *, snapshots: Snapshotter, helper: Helper, owners: bool) -> Iterator[Unpacking]:
        """Start the helper; a block that raises leaves no snapshot."""
        with ExitStack() as undo:
            undo.push(lambda problem, *_: snapshots.abort(active) if problem else None)
            target = os.open(active.fs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, target)
            lowers = _open_all(active.lowers, undo)
            reader, writer = os.pipe2(os.O_CLOEXEC)
            ends = undo.enter_context(_Pipe(reader, writer))
            arguments = {"owners": owners, "flat": active.flat, "confine": True}
            call = helper.begin(_APPLY, arguments, (reader, target, *lowers))
            undo.push(lambda problem, *_: _await_end(helper, call, ends) if problem else call.close())
            ends.close_reader()
            sink = undo.enter_context(_Sink(writer, target))
            yield cls(active, helper, call, ends, sink)

    @contextlib.contextmanager
    def fed(self) -> Iterator[None]:
        """Write in this block; a helper that gave up ends it, and `applied` has its reason."""
        try:
            yield
        except BrokenPipeError as problem:
            self._refusal = problem
        self._ends.close_writer()

    def applied(self) -> Usage:
        """Wait for the helper: what it made, or what it raised."""
        applied = self._helper.finish(self._call)
        if self._refusal is not None:
            raise NbcontainerError(
                f"layer {self._active.chain.short} stopped being written without a reason; try again"
            ) from self._refusal
        return Usage(bytes=applied["bytes"], entries=applied["entries"])


def _await_end(helper: Helper, call: Any, ends: _Pipe) -> None:
    """Wait until a helper that gets no more has ended: what it still writes would come after the removal."""
    ends.close_writer()
    try:
        with contextlib.suppress(NbcontainerError):
            helper.finish(call)
    finally:
        call.close()


class _Sink:
    """Where the tar goes: the pipe; and now and then a push to what was written to go to disk meanwhile.

    A layer is synced before it counts. Left to the end, the whole of it waits in memory and the sync takes as long as
    all the rest; begun every `_WRITEBACK_EVERY` bytes in a thread of its own, the disk works while the files are
    still made.
    """

    def __init__(self, pipe: int, target: int) -> None:
        self._pipe = pipe
        self._target = target
        self._since = 0
        self._writeback: threading.Thread | None = None

    def __call__(self, data: bytes) -> None:
        write_all(self._pipe, data)
        self._since += len(data)
        if self._since >= _WRITEBACK_EVERY and (self._writeback is None or not self._writeback.is_alive()):
            self._since = 0
            self._writeback = threading.Thread(target=_write_back, args=(self._target,), daemon=True)
            self._writeback.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writeback is not None:
            self._writeback.join()


def _write_back(fd: int) -> None:
    with contextlib.suppress(OSError):  # the sync that counts comes with the commit, and reports
        sync_filesystem(fd)


def _open_all(paths: Iterable[str], undo: ExitStack) -> list[int]:
    fds = []
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        fds.append(fd)
    return fds


class _Pipe:
    """Both ends of a pipe, each closed once, whoever is first."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader = reader
        self._writer = writer

    def close_reader(self) -> None:
        fd, self._reader = self._reader, -1
        if fd >= 0:
            os.close(fd)

    def close_writer(self) -> None:
        fd, self._writer = self._writer, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_reader()
        self.close_writer()
