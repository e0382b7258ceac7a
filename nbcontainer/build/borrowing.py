"""Steps that images of elsewhere say they have made (``--cache-from``), taken over one by one.

A source is opened when the first step is not known here, so a build that finds everything made asks nobody. What a
source says is a claim (see `nbcontainer.build.claims`): its layer is fetched, compared with its digest and its diff id,
and put on the files that this build has. That the layer is what the step makes cannot be checked; whoever names a
source believes it. So nothing of it is remembered in the store's own cache, and the next build without the option makes
the step.

A source that is not there or cannot be used is told of and passed over: the build goes on without.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.build.cache import MadeLayer
from nbcontainer.build.claims import claims_in
from nbcontainer.errors import CorruptContent, NbcontainerError, StorageError
from nbcontainer.layers.compression import inflate
from nbcontainer.model import Descriptor, chain_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nbcontainer.build.claims import Claim
    from nbcontainer.build.request import CacheSource
    from nbcontainer.build.workshop import Workshop
    from nbcontainer.images.lent import LentImage
    from nbcontainer.model import Digest

__all__ = ["BorrowedSteps"]

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A source that can be asked."""

    source: CacheSource
    image: LentImage
    claims: Mapping[Digest, Claim]


class BorrowedSteps:
    """The sources of one build; safe to share between its threads, and closed when they have ended.

    `check` raises when the build is stopped; `notice` is given sentences for the person.
    """

    def __init__(
        self,
        sources: Sequence[CacheSource],
        *,
        workshop: Workshop,
        open_source: Callable[[CacheSource], LentImage],
        check: Callable[[], None],
        notice: Callable[[str], None],
    ) -> None:
        self._waiting = list(sources)
        self._workshop = workshop
        self._open_source = open_source
        self._check = check
        self._notice = notice
        self._opened: list[_Open] = []
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    def find(
        self, key: Digest, parent: Digest | None, place: Callable[[MadeLayer], MadeLayer] | None
    ) -> MadeLayer | None:
        """The layer that a source says a step has made on `parent`, unpacked by `place`; None when nobody has it."""
        for source in self._sources():
            claim = source.claims.get(key)
            if claim is None:
                continue
            try:
                made = self._taken(source.image, claim, parent)
                # what is unpacked is compared on the way, unless it is there already
                if place is None or self._workshop.snapshots.has(made.chain):
                    self._compare(made)
                return made if place is None else place(made)
            except StorageError:  # this store's own trouble
                raise
            except NbcontainerError as problem:
                self._check()
                self._passed_over(source.source, problem)
                with self._lock:
                    self._opened = [each for each in self._opened if each is not source]
        return None

    def _taken(self, image: LentImage, claim: Claim, parent: Digest | None) -> MadeLayer:
        layer, diff_id = image.take(claim.layer, self._check)
        return MadeLayer(
            blob=Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size),
            diff_id=diff_id,
            chain=chain_id(parent, diff_id),
            created=claim.created,
        )

    def _compare(self, made: MadeLayer) -> None:
        with self._workshop.content.open(made.blob.digest) as blob:
            found = inflate(iter(lambda: blob.read(_PIECE), b""), sink=lambda _: self._check()).diff_id
        if found != made.diff_id:
            raise CorruptContent(
                f"its layer {made.blob.digest.short} inflates to {found.short}, not to {made.diff_id.short}"
            )

    def _sources(self) -> list[_Open]:
        with self._lock:
            while self._waiting:
                source = self._waiting[0]
                try:
                    image = self._open_source(source)
                except NbcontainerError as problem:
                    self._check()
                    self._passed_over(source, problem)
                else:
                    self._keep(source, image)
                del self._waiting[0]
            return list(self._opened)

    def _keep(self, source: CacheSource, image: LentImage) -> None:
        try:
            claims = claims_in(image.config_bytes, layers=len(image.manifest.layers))
        except NbcontainerError as problem:
            image.close()
            self._passed_over(source, problem)
            return
        if not claims:
            image.close()
            self._notice(
                f"--cache-from {source.place} is of no use: it has no record of the steps that made it (--cache-to"
                " type=inline writes one; docker's own records cannot be used here)"
            )
            return
        self._undo.callback(image.close)  # also when it is passed over by then: another thread may still read it
        self._opened.append(_Open(source=source, image=image, claims=claims))

    def _passed_over(self, source: CacheSource, problem: NbcontainerError) -> None:
        self._notice(f"--cache-from {source.place} cannot be used, so its steps are made here: {problem.message}")

    def close(self) -> None:
        """Let go of the sources; safe twice."""
        self._undo.close()
