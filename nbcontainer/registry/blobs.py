"""A blob as a stream that heals and checks itself.

The reader sees one sequence of bytes. Underneath, a connection may break and be made again with ``Range`` from where
it was (RFC 9110, 14.2; believed only after a 206 whose Content-Range says so, else the start is read again, compared
and skipped), and another mirror may take over. One hash runs over exactly the bytes handed out; the last of them are
held back until size and digest agree, so whoever has read to the descriptor's size has verified content.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nbcontainer.errors import BlobNotFound, CorruptContent, Denied, NbcontainerError, RemoteError
from nbcontainer.registry.failures import ConnectionFailed, TransferCancelled
from nbcontainer.registry.refusals import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from nbcontainer.model import Descriptor
    from nbcontainer.registry.interrupts import Interrupt
    from nbcontainer.registry.refusals import Subject
    from nbcontainer.registry.retries import Patience
    from nbcontainer.registry.transport import HttpResponse

__all__ = ["BlobSource", "BlobStream", "Hasher"]

_CHUNK = 256 * 1024
_PROGRESS = 1024 * 1024
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


class Hasher(Protocol):
    """What `hashlib.new` returns."""

    def update(self, data: bytes, /) -> None: ...  # noqa: D102 - as in hashlib
    def hexdigest(self) -> str: ...  # noqa: D102 - as in hashlib
    def copy(self) -> Hasher: ...  # noqa: D102 - as in hashlib


@dataclass(frozen=True, slots=True)
class BlobSource:
    """A place to get the blob from. A `foreign` one is a URL of the manifest, for when no registry has it."""

    subject: Subject
    ask: Callable[[Mapping[str, str], Interrupt], HttpResponse]
    foreign: bool = False


class BlobStream(io.RawIOBase):
    """The bytes of one blob, verified; a raw binary file, an iterator of chunks, and a context manager.

    Nothing is asked before the first read, so `cancel` works from the start. Reading raises `CorruptContent`,
    `BlobNotFound`, `Denied` or a `RemoteError`; after an error the stream is of no more use, and `position` says how
    many good bytes were handed out (`offset` included). One thread reads; any may `cancel`.
    """

    def __init__(
        self,
        descriptor: Descriptor,
        sources: Sequence[BlobSource],
        *,
        patience: Callable[[], Patience],
        interrupt: Interrupt,
        distrust: Callable[[BlobSource], None],
        notice: Callable[[str], None],
        offset: int = 0,
        hasher: Hasher | None = None,
    ) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.position = offset
        self._hasher: Hasher = hasher or hashlib.new(descriptor.digest.algorithm)
        self._sources = list(sources)
        self._new_patience = patience
        self._patience = patience()
        self._interrupt = interrupt
        self._distrust = distrust
        self._notice = notice
        self._response: HttpResponse | None = None
        self._resumable = True
        self._failed_at = offset
        self._leftover = memoryview(b"")
        self._done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """The next chunk, of any length up to 256 KiB."""
        chunk = bytes(self._leftover) or self._pull()
        self._leftover = memoryview(b"")
        if not chunk:
            raise StopIteration
        return chunk

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # typeshed: WriteableBuffer
        """Fill some of `buffer`; 0 at the end."""
        if not self._leftover:
            self._leftover = memoryview(self._pull())
        count = min(len(buffer), len(self._leftover))
        buffer[:count] = self._leftover[:count]
        self._leftover = self._leftover[count:]
        return count

    def cancel(self) -> None:
        """End the transfer from any thread: the reading one gets `TransferCancelled` at once."""
        self._interrupt.trip()

    def close(self) -> None:
        """Close the connection; safe twice, for the reading thread only (others `cancel`)."""
        if not self.closed:
            self._drop()
            self._interrupt.release()
        super().close()

    # From here on: one chunk, and what may go wrong with it.

    def _pull(self) -> bytes:
        """The next chunk handed out, or nothing at the verified end."""
        if self.closed:
            raise ValueError("read of a closed blob stream")
        while not self._done:
            self._interrupt.check()
            if self.position == self.descriptor.size:
                self._verify()
                return b""
            try:
                chunk = self._receive()
            except TransferCancelled:
                raise
            except (RemoteError, BlobNotFound, Denied) as problem:
                self._recover(problem)
                continue
            if len(chunk) > self.descriptor.size - self.position:
                raise self._corrupt(f"sent more than the {self.descriptor.size} bytes")
            self._hasher.update(chunk)
            self.position += len(chunk)
            if self.position == self.descriptor.size:
                self._expect_end()
                self._verify()
            return chunk
        return b""

    def _receive(self) -> bytes:
        if self._response is None:
            self._response = self._open()
        chunk = self._response.read(_CHUNK)
        if not chunk:
            raise ConnectionFailed(
                f"{self._who} sent {self.position} of the {self.descriptor.size} bytes of {self._what}",
                kind="broken",
                transient=True,
            )
        return chunk

    def _expect_end(self) -> None:
        """A body without a length may go on after the last byte; what fails after it no longer matters."""
        try:
            extra = self._response.read(1) if self._response else b""
        except TransferCancelled:
            raise
        except RemoteError:
            extra = b""
        if extra:
            raise self._corrupt(f"sent more than the {self.descriptor.size} bytes")

    def _verify(self) -> None:
        found, wanted = self._hasher.hexdigest(), self.descriptor.digest
        if found != wanted.hex:
            raise self._corrupt(f"sent bytes whose digest is {wanted.algorithm}:{found[:12]}… instead of that")
        self._drop()
        self._done = True

    def _open(self) -> HttpResponse:
        """Ask the present source for the rest, or for all and skip what we have."""
        source = self._sources[0]
        ranged = self.position > 0 and self._resumable
        headers = {"Range": f"bytes={self.position}-"} if ranged else {}
        response = source.ask(headers, self._interrupt)
        try:
            if ranged and response.status in (206, 416) and not self._continues(response):
                # "a 206 … whose range is not what was asked": start over without Range
                response.close()
                self._resumable = False
                return self._open()
            if response.status not in ((200, 206) if ranged else (200,)):
                raise refusal(response, source.subject)  # noqa: TRY301 - closes the response on its way
            self._check_length(response)
            if response.status == 200:
                self._skip(response)
        except BaseException:
            response.close()
            raise
        return response

    def _continues(self, response: HttpResponse) -> bool:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if response.status != 206 or match is None:
            return False
        first, last, total = match.groups()
        whole = total == "*" or int(total) == self.descriptor.size
        return int(first) == self.position and int(last) < self.descriptor.size and whole

    def _check_length(self, response: HttpResponse) -> None:
        """Refuse a body that is announced as too long before any of it is read."""
        stated = response.headers.get("Content-Length", "")
        expected = self.descriptor.size - (self.position if response.status == 206 else 0)
        if stated.isdigit() and int(stated[:19]) > expected:
            raise self._corrupt(f"announced {stated[:19]} bytes where the manifest says {expected}")

    def _skip(self, response: HttpResponse) -> None:
        """Read again what was handed out before, and make sure that it is the same."""
        again, left = hashlib.new(self.descriptor.digest.algorithm), self.position
        while left:
            chunk = response.read(min(left, _CHUNK))
            if not chunk:
                raise ConnectionFailed(f"{self._who} sent less than before", kind="broken", transient=True)
            again.update(chunk)
            left -= len(chunk)
        if self.position and again.hexdigest() != self._hasher.copy().hexdigest():
            raise self._corrupt("sent other bytes than before")

    def _recover(self, problem: NbcontainerError) -> None:
        """Wait and go on, or turn to the next source, or give up with `problem`."""
        self._drop()
        if self.position - self._failed_at >= _PROGRESS:
            self._patience.renew()
        self._failed_at = self.position
        try:
            self._patience.endure(problem)
        except TransferCancelled:
            raise
        except NbcontainerError as final:
            self._next_source(final)

    def _next_source(self, problem: NbcontainerError) -> None:
        following = self._sources[1:]
        if not following or (following[0].foreign and not isinstance(problem, BlobNotFound)):
            raise problem
        self._notice(f"{problem}; asking {'the place its manifest names' if following[0].foreign else 'the next'}")
        self._sources = following
        self._patience = self._new_patience()
        self._resumable = True

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _corrupt(self, what: str) -> CorruptContent:
        """The error for wrong bytes; its source is not asked for this blob again by the same client."""
        self._drop()
        self._distrust(self._sources[0])
        return CorruptContent(
            f"{self._who} {what} for {self._what}; pull again, and tell the registry's owner if it persists"
        )

    @property
    def _who(self) -> str:
        return str(self._sources[0].subject.endpoint)

    @property
    def _what(self) -> str:
        return self._sources[0].subject.thing
