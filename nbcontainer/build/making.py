"""Layers out of steps: a tar from wherever the step has its files becomes a blob and a snapshot.

The tar is compressed and hashed on its way into the store, and the same bytes are unpacked meanwhile, so what runs here
is what anybody else gets. A step that changed nothing has the empty tar for a layer, which is
known beforehand.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from nbcontainer.build.cache import MadeLayer
from nbcontainer.build.keys import step_key
from nbcontainer.build.landing import write_folders
from nbcontainer.errors import Conflict, InvalidInput, NbcontainerError
from nbcontainer.images.committing import Committer
from nbcontainer.images.unpack import Unpacking, unpack_layer
from nbcontainer.layers.compression import write_all
from nbcontainer.layers.pack import TarWriter
from nbcontainer.model import Descriptor, Digest, Mount, chain_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nbcontainer.build.cache import BuildCache
    from nbcontainer.build.parts import Part
    from nbcontainer.build.sources import Selection
    from nbcontainer.build.workshop import Job, Ran, Workshop
    from nbcontainer.images.committing import NewLayer

__all__ = ["APPLY", "LANDING", "Maker"]

LANDING = "nbcontainer.build.landing"
APPLY = "nbcontainer.layers.apply"
_PIECE = 1 << 20
_BILLION = 1_000_000_000
_EMPTY_TAR = bytes(1024)
_EMPTY_DIFF_ID = Digest.of(_EMPTY_TAR)


class Maker:
    """Makes the layers of one build; with an `epoch` (SOURCE_DATE_EPOCH, in seconds) no time in them is after it."""

    def __init__(self, workshop: Workshop, *, epoch: int | None) -> None:
        self.latest = None if epoch is None else epoch * _BILLION
        self._epoch = epoch
        self._workshop = workshop
        self._empty_blob: Descriptor | None = None
        self._committer = Committer(
            content=workshop.content,
            refs=workshop.refs,
            snapshots=workshop.snapshots,
            helper=workshop.helper,
            owners=workshop.owners,
        )

    # --- the three kinds of steps that have files -------------------------------------------------------------------

    def of_run(self, job: Job, ran: Ran) -> MadeLayer:
        """What a RUN changed."""
        if ran.written is None:
            return self._empty(job.chain)
        answers: dict[str, Any] = {}
        arguments = {**ran.written, "stubs": list(job.stubs), "latest": self.latest}
        made = self._layer(job.chain, lambda sink: answers.update(self.streamed("layer", arguments, sink)))
        return replace(made, notices=tuple(answers.get("notices", ())))

    def of_parts(
        self, parent: Digest | None, parts: Sequence[Part], landed: Mapping[str, Any]
    ) -> tuple[MadeLayer, bool]:
        """Copies from what this process reads; and whether they are what the parts' digests name.

        They are not when somebody has changed a file meanwhile. The layer has the new bytes then, and must not be
        remembered by the digest of the old ones.
        """
        faithful = True

        def produce(fd: int) -> None:
            nonlocal faithful
            writer = TarWriter(fd, latest=self.latest)
            write_folders(writer, landed["folders"])
            places = list(landed["places"])
            for part in parts:
                count = len(part.tops)
                faithful = part.write(writer, places[:count], landed["owner"]) and faithful
                del places[:count]
            writer.finish()

        made = self._layer(parent, lambda sink: _piped(produce, sink))
        return made, faithful

    def of_stage(
        self,
        parent: Digest | None,
        arguments: Mapping[str, Any],
        landed: Mapping[str, Any],
    ) -> MadeLayer:
        """Copies from a stage or an image, which a task reads."""
        asked = {**arguments, "places": landed["places"], "folders": landed["folders"], "latest": self.latest}
        return self._layer(parent, lambda sink: self.streamed("pack", asked, sink))

    def of_folders(self, parent: Digest | None, folders: Sequence[Mapping[str, Any]]) -> MadeLayer:
        """Folders and nothing in them."""

        def produce(fd: int) -> None:
            writer = TarWriter(fd, latest=self.latest)
            write_folders(writer, folders)
            writer.finish()

        return self._layer(parent, lambda sink: _piped(produce, sink))

    def of_bytes(self, parent: Digest | None, produce: Callable[[int], None]) -> MadeLayer:
        """A layer whose tar `produce` writes to a descriptor."""
        return self._layer(parent, lambda sink: _piped(produce, sink))

    def on(self, parent: Digest | None, made: MadeLayer) -> MadeLayer:
        """The same layer on other files."""
        return replace(self._unpacked(parent, made.blob, made.diff_id), created=made.created)

    def nothing(self, parent: Digest | None) -> MadeLayer:
        """A layer with nothing in it."""
        return self._empty(parent)

    def now(self) -> str:
        """The time, as images have it: that of the epoch, when there is one."""
        moment = time.time() if self._epoch is None else self._epoch
        return datetime.fromtimestamp(moment, timezone.utc).isoformat().replace("+00:00", "Z")

    # --- tasks ------------------------------------------------------------------------------------------------------

    def view(self, chain: Digest | None) -> list[dict[str, Any]] | None:
        """How a task mounts the files of a chain to look at; None where there are none."""
        if chain is None:
            return None
        return self._workshop.view(self.mounts(chain))

    def mounts(self, chain: Digest) -> tuple[Mount, ...]:
        """The mounts that show a chain and let nobody write."""
        return self._workshop.snapshots.mounts(chain)

    def call(self, function: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Call a function of `landing` as container root."""
        return self._workshop.helper.call(f"{LANDING}:{function}", arguments, fds)

    def scanned(self, chain: Digest, selection: Selection, name: str, cache: BuildCache) -> dict[str, Any]:
        """What a selection finds in a chain; a chain cannot change, so this is looked for once."""
        key = step_key("scan", chain, selection=selection.fields(), owners=self._workshop.owners, form=2)
        known = cache.word(key)
        if known is not None:
            found: dict[str, Any] = json.loads(known)
            return found
        found = self.call("scan", {"view": self.view(chain), "name": name, "selection": selection.fields()})
        cache.keep_word(key, json.dumps(found))
        return found

    def filled(self, path: str, arguments: Mapping[str, Any]) -> None:
        """Write what the task ``pack`` gives into an existing folder of container root's."""
        target = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        reader, writer = os.pipe2(os.O_CLOEXEC)
        helper = self._workshop.helper
        try:
            try:
                asked = {"owners": self._workshop.owners, "flat": True, "confine": True}
                call = helper.begin(f"{APPLY}:serve", asked, (reader, target))
            finally:
                os.close(reader)
            try:
                try:
                    self.streamed("pack", arguments, lambda piece: write_all(writer, piece))
                finally:
                    os.close(writer)
                helper.finish(call)
            finally:
                call.close()
        finally:
            os.close(target)

    def streamed(self, function: str, arguments: Mapping[str, Any], sink: Callable[[bytes], object]) -> dict[str, Any]:
        """Call one that writes a tar, and pass it on; its own reason is raised when both ends fail."""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        helper = self._workshop.helper
        try:
            try:
                call = helper.begin(f"{LANDING}:{function}", arguments, (writer,))
            finally:
                os.close(writer)
            try:
                for piece in _pieces(reader):
                    sink(piece)
                return helper.finish(call)
            except BaseException:
                os.close(reader)
                reader = -1
                with contextlib.suppress(NbcontainerError):
                    helper.finish(call)
                raise
            finally:
                call.close()
        finally:
            if reader >= 0:
                os.close(reader)

    # --- storing ----------------------------------------------------------------------------------------------------

    def _layer(self, parent: Digest | None, produce: Callable[[Callable[[bytes], object]], object]) -> MadeLayer:
        """Store a tar and unpack it as it comes: the same bytes that the blob has, whose digest names the snapshot."""
        snapshots = self._workshop.snapshots
        active = snapshots.prepare(Digest.of(os.urandom(16)), parent)  # its name is known at the end only
        new: NewLayer | None = None
        with Unpacking.begun(
            active, snapshots=snapshots, helper=self._workshop.helper, owners=self._workshop.owners
        ) as unpacking:
            with unpacking.fed():
                new = self._committer.take_layer(lambda sink: produce(_both(sink, unpacking.write)))
            usage = unpacking.applied()
            assert new is not None  # else `applied` raised
            chain = chain_id(parent, new.diff_id)
            snapshots.commit(replace(active, chain=chain), usage)
        blob = Descriptor(media_type=new.media_type, digest=new.digest, size=new.size)
        return MadeLayer(blob=blob, diff_id=new.diff_id, chain=chain, created=self.now())

    def _unpacked(self, parent: Digest | None, blob: Descriptor, diff_id: Digest) -> MadeLayer:
        chain = chain_id(parent, diff_id)
        unpack_layer(
            self._chunks(blob.digest),
            diff_id=diff_id,
            chain=chain,
            parent=parent,
            snapshots=self._workshop.snapshots,
            helper=self._workshop.helper,
            owners=self._workshop.owners,
            before_commit=lambda: None,
        )
        return MadeLayer(blob=blob, diff_id=diff_id, chain=chain, created=self.now())

    def _empty(self, parent: Digest | None) -> MadeLayer:
        """The layer of a step that changed nothing: its blob is stored once, its snapshot is an empty folder."""
        blob = self._empty_blob
        if blob is None or not self._workshop.content.has(blob.digest):
            new = self._committer.take_layer(lambda sink: sink(_EMPTY_TAR))
            blob = self._empty_blob = Descriptor(media_type=new.media_type, digest=new.digest, size=new.size)
        chain = chain_id(parent, _EMPTY_DIFF_ID)
        snapshots = self._workshop.snapshots
        with contextlib.suppress(Conflict):
            active = snapshots.prepare(chain, parent)
            try:
                snapshots.commit(active, sync=False)
            except BaseException:
                snapshots.abort(active)
                raise
        return MadeLayer(blob=blob, diff_id=_EMPTY_DIFF_ID, chain=chain, created=self.now())

    def _chunks(self, digest: Digest) -> Iterator[bytes]:
        with self._workshop.content.open(digest) as blob:
            while data := blob.read(_PIECE):
                yield data


def _both(one: Callable[[bytes], object], other: Callable[[bytes], object]) -> Callable[[bytes], None]:
    def sink(data: bytes) -> None:
        one(data)
        other(data)

    return sink


def _pieces(reader: int) -> Iterator[bytes]:
    while data := os.read(reader, _PIECE):
        yield data


def _piped(produce: Callable[[int], None], sink: Callable[[bytes], object]) -> None:
    """Have `produce` write to a pipe in a thread, and pass on what comes; what it raised is raised here."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    problems: list[BaseException] = []

    def work() -> None:
        try:
            produce(writer)
        except BrokenPipeError:  # the reader gave up, and says why
            pass
        except OSError as problem:
            where = f"{problem.filename}: " if problem.filename else ""
            problems.append(InvalidInput(f"the files to copy cannot be read: {where}{problem.strerror or problem}"))
        except BaseException as problem:  # noqa: BLE001 - raised again in the thread that asked
            problems.append(problem)
        finally:
            os.close(writer)

    worker = threading.Thread(target=work, name="nbcontainer-pack", daemon=True)
    worker.start()
    try:
        for piece in _pieces(reader):
            sink(piece)
    finally:
        os.close(reader)
        worker.join()
    if problems:
        raise problems[0]
