"""Pulling: name -> documents -> layers, fetched in parallel and unpacked in order while they arrive -> name, last.

Threads: a few download blobs into the content store; one inflates the layer whose turn it is, reading what has
arrived so far from the partial file (page cache) and waiting for the rest; the calling thread waits where Ctrl-C
reaches it. Whoever fails first, or the interrupt, stops the others. A killed pull leaves partial blobs, which the
next one resumes.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidImage, NbcontainerError
from nbcontainer.images.image import Image
from nbcontainer.images.unpack import Helper, unpack_layer
from nbcontainer.model import LayerProgress, PullFinished, PullStarted, chain_ids
from nbcontainer.store import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.model import Descriptor, Digest, LayerState, Listener, Platform, Reference
    from nbcontainer.registry import RegistryClient, ResolvedImage
    from nbcontainer.store import ContentStore, Ingest, RefStore

__all__ = ["Puller"]

_log = logging.getLogger(__name__)
_PIECE = 1024 * 1024
_REPORT_EVERY = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Puller:
    """What a pull works with; one object may pull many times."""

    content: ContentStore
    refs: RefStore
    snapshots: Snapshotter
    helper: Helper
    client: RegistryClient
    owners: bool
    parallel: int = 3

    def pull(self, reference: Reference, platform: Platform, listener: Listener) -> Image:
        """Fetch what is missing, unpack it, and give it its name; return the image.

        Raises what the registry client, the layers and the store raise; the name then still means what it meant
        before.
        """
        started = time.monotonic()
        resolved = self.client.resolve(reference, platform)
        layers = self._layers(resolved, listener)
        shown = reference.familiar
        listener(PullStarted(image=shown, layers=resolved.manifest.layers))
        self._put_documents(resolved)
        self._fetch(layers)
        record = ImageRecord(
            reference=reference,
            target=resolved.digest,
            manifest=resolved.manifest_descriptor.digest,
            config=resolved.manifest.config.digest,
            pulled_at=time.time(),
            size=resolved.manifest.size,
        )
        self.refs.put(record)
        listener(
            PullFinished(
                image=shown,
                digest=resolved.digest,
                size=resolved.manifest.size,
                fetched=sum(layer.descriptor.size for layer in layers if not layer.present),
                seconds=time.monotonic() - started,
            )
        )
        return Image(record=record, manifest=resolved.manifest, config=resolved.config)

    def _layers(self, resolved: ResolvedImage, listener: Listener) -> list[_Layer]:
        descriptors, diff_ids = resolved.manifest.layers, resolved.config.diff_ids
        if len(descriptors) != len(diff_ids):
            raise InvalidImage(
                f"{resolved.reference} has {len(descriptors)} layers, but its config lists {len(diff_ids)}; "
                "it cannot be unpacked"
            )
        chains = chain_ids(diff_ids)
        return [
            _Layer(
                reference=resolved.reference,
                descriptor=descriptor,
                diff_id=diff_id,
                chain=chain,
                parent=chains[number - 1] if number else None,
                present=self.snapshots.has(chain),
                listener=listener,
            )
            for number, (descriptor, diff_id, chain) in enumerate(zip(descriptors, diff_ids, chains, strict=True))
        ]

    def _put_documents(self, resolved: ResolvedImage) -> None:
        if resolved.index_bytes is not None:
            self.content.put(resolved.index_bytes)
        self.content.put(resolved.manifest_bytes)
        self.content.put(resolved.config_bytes)

    def _fetch(self, layers: list[_Layer]) -> None:
        missing = [layer for layer in layers if not layer.present]
        for layer in layers:
            layer.report("exists" if layer.present else "waiting", layer.descriptor.size if layer.present else 0)
        if missing:
            self._tidy()
            _Fetch(self, missing).run()

    def _tidy(self) -> None:
        """Take away what a killed pull has half unpacked; what another one is unpacking now is locked."""
        try:
            self.snapshots.reap()
        except NbcontainerError as problem:  # its last writes may still be going on: the next pull tries again
            _log.debug("half unpacked layers were not removed: %s", problem)


class _Layer:
    """One layer on its way: how many bytes have arrived, and who waits for them."""

    def __init__(
        self,
        *,
        reference: Reference,
        descriptor: Descriptor,
        diff_id: Digest,
        chain: Digest,
        parent: Digest | None,
        present: bool,
        listener: Listener,
    ) -> None:
        self.reference = reference
        self.descriptor = descriptor
        self.diff_id = diff_id
        self.chain = chain
        self.parent = parent
        self.present = present
        self._listener = listener
        self._arrived = threading.Condition()
        self._position = 0
        self._fd = -1
        self._failed = False
        self._complete = False
        self._unpacking = False
        self._last_report = 0.0

    def report(self, state: LayerState, done: int) -> None:
        """Tell the listener, now."""
        self._last_report = time.monotonic()
        size = self.descriptor.size
        self._listener(
            LayerProgress(
                image=self.reference.familiar, digest=self.descriptor.digest, state=state, done=done, total=size
            )
        )

    def progress(self, state: LayerState, done: int) -> None:
        """Tell the listener, but not more often than eyes can follow."""
        if time.monotonic() - self._last_report >= _REPORT_EVERY:
            self.report(state, done)

    def open(self, path: str) -> None:
        """The bytes will be, or are, in the file at `path`; it may be renamed later."""
        with self._arrived:
            if self._fd < 0:
                self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def arrive(self, position: int) -> None:
        """The first `position` bytes are there."""
        with self._arrived:
            self._position = position
            self._arrived.notify_all()
        if not self._unpacking:
            self.progress("downloading", position)

    def complete(self) -> None:
        """The whole blob is there, verified."""
        with self._arrived:
            self._position, self._complete = self.descriptor.size, True
            self._arrived.notify_all()
        if not self._unpacking:
            self.report("downloaded", self.descriptor.size)

    def close(self) -> None:
        """Let go of the file; when no thread works on this layer any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fail(self) -> None:
        """No more bytes will come."""
        with self._arrived:
            self._failed = True
            self._arrived.notify_all()

    def wait_verified(self) -> None:
        """Return when the whole blob has been verified; raise when it will not be."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._complete or self._failed)
            if not self._complete:
                raise _StoppedError

    def _wait_beyond(self, position: int) -> int:
        """How many bytes there are after `position`, at least one."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._position > position or self._failed)
            if self._failed:
                raise _StoppedError
            return self._position - position

    def chunks(self) -> Iterator[bytes]:
        """The blob's bytes as they arrive."""
        self._unpacking = True
        position = 0
        while position < self.descriptor.size:
            available = self._wait_beyond(position)
            piece = os.pread(self._fd, min(_PIECE, available), position)
            if not piece:
                raise _StoppedError
            position += len(piece)
            yield piece
            self.progress("unpacking", position)


class _StoppedError(Exception):
    """Another thread failed, or the person interrupted: this one just ends."""


class _Fetch:
    """The threads of one pull."""

    def __init__(self, puller: Puller, layers: list[_Layer]) -> None:
        self._puller = puller
        self._layers = layers
        self._todo: queue.SimpleQueue[_Layer] = queue.SimpleQueue()
        for layer in layers:
            self._todo.put(layer)
        self._finished = threading.Condition()
        self._running = 0
        self._problem: BaseException | None = None
        self._streams: set[object] = set()
        self._stopping = False

    def run(self) -> None:
        """Start the threads, wait for them; raise the first problem."""
        workers = [self._download_all] * min(self._puller.parallel, len(self._layers)) + [self._unpack_all]
        threads = []
        try:
            for work in workers:
                self._running += 1
                thread = threading.Thread(target=self._guard, args=(work,), name="nbcontainer-pull", daemon=True)
                threads.append(thread)
                thread.start()
            with self._finished:
                while self._running:
                    self._finished.wait()
        except BaseException:
            self._stop()
            raise
        finally:
            for thread in threads:
                thread.join()
            for layer in self._layers:
                layer.close()
        if self._problem is not None:
            raise self._problem

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except _StoppedError:
            pass
        except BaseException as problem:  # noqa: BLE001 - carried to the calling thread and raised there
            with self._finished:
                if self._problem is None and not self._stopping:
                    self._problem = problem
            self._stop()
        finally:
            with self._finished:
                self._running -= 1
                self._finished.notify_all()

    def _stop(self) -> None:
        with self._finished:
            self._stopping = True
            streams = list(self._streams)
        for stream in streams:
            stream.cancel()  # type: ignore[attr-defined]  # BlobStream, kept as object to stay lazy
        for layer in self._layers:
            layer.fail()

    def _download_all(self) -> None:
        while not self._stopping:
            try:
                layer = self._todo.get_nowait()
            except queue.Empty:
                return
            self._download(layer)

    def _download(self, layer: _Layer) -> None:
        content, descriptor = self._puller.content, layer.descriptor
        with ExitStack() as undo:
            ingest = undo.enter_context(content.ingest(descriptor.digest, descriptor.size))
            if not ingest.exists:
                if descriptor.data is not None:
                    ingest.restart()
                    ingest.write(descriptor.data)
                else:
                    self._stream(layer, ingest, undo)
                ingest.commit()
            layer.open(content.path(descriptor.digest))
            layer.complete()

    def _stream(self, layer: _Layer, ingest: Ingest, undo: ExitStack) -> None:
        layer.open(ingest.path)
        layer.arrive(ingest.offset)
        stream = undo.enter_context(
            self._puller.client.open_blob(layer.reference, layer.descriptor, offset=ingest.offset, hasher=ingest.hasher)
        )
        with self._finished:
            if self._stopping:
                raise _StoppedError
            self._streams.add(stream)
        try:
            for chunk in stream:
                ingest.write_hashed(chunk)
                layer.arrive(ingest.offset)
        except NbcontainerError:
            if self._stopping:
                raise _StoppedError from None
            raise
        finally:
            with self._finished:
                self._streams.discard(stream)

    def _unpack_all(self) -> None:
        puller = self._puller
        for layer in self._layers:
            unpack_layer(
                layer.chunks(),
                diff_id=layer.diff_id,
                chain=layer.chain,
                parent=layer.parent,
                snapshots=puller.snapshots,
                helper=puller.helper,
                owners=puller.owners,
                before_commit=layer.wait_verified,
            )
            layer.report("ready", layer.descriptor.size)
