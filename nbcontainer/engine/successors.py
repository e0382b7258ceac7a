"""Containers that will probably be asked for: ids promised ahead, so that their rooms can be built ahead.

A notebook runs many containers of one kind: the same image, the same options, another command. The launcher can have
the next one's root mounted before anybody asks, if it is known where that root's writable layer lies and what its
host name is; both follow from the container's id. So each run promises an id to the next of its kind. A promise binds
nobody: a room that was not built, or built of something else, is built when it is asked for.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from nbcontainer.model import ContainerId, RunOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Kind", "Successors", "new_container_id"]

Kind = tuple[str, str, RunOptions, bool]
"""Image, generation of its layers, options without what only the command sees, whether a cell's text is run."""

_MOST_KINDS = 8


def new_container_id() -> ContainerId:
    """An id that nobody else has."""
    return ContainerId(secrets.token_hex(32))


class Successors:
    """One promised id for each of the kinds run last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._announcing = threading.Lock()
        self._promised: OrderedDict[Kind, ContainerId] = OrderedDict()

    def take(self, kind: Kind) -> ContainerId | None:
        """The id promised to this kind, from now on the caller's alone."""
        with self._lock:
            return self._promised.pop(kind, None)

    @contextlib.contextmanager
    def promising(self, kind: Kind) -> Iterator[tuple[ContainerId, tuple[ContainerId, ...]]]:
        """Lend the id for the next of this kind, and those that will never be taken now, while the launcher is told.

        Nobody is given the id before that: a room announced after its container was started would be built, and later
        removed, over the files of the running one.
        """
        with self._announcing:
            with self._lock:
                container = self._promised.pop(kind, None) or new_container_id()
                forgotten = []
                while len(self._promised) >= _MOST_KINDS:
                    forgotten.append(self._promised.popitem(last=False)[1])
            try:
                yield container, tuple(forgotten)
            finally:
                with self._lock:
                    self._promised[kind] = container
