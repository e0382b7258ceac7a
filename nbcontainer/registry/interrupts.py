"""Stopping a transfer from another thread, wherever it waits.

A thread deep in `recv` does not notice a flag, and closing its file descriptor does not wake it: the socket has to be
shut down. So whoever starts to wait leaves a callback here that ends the wait, and `trip` calls them all.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from nbcontainer.registry.failures import TransferCancelled

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Interrupt"]


class Interrupt:
    """A one-way switch: once tripped, every wait under it ends with `TransferCancelled`.

    A child trips with its parent (the client's), never the other way round; `release` lets go of the parent.
    """

    def __init__(self, subject: str, parent: Interrupt | None = None) -> None:
        self._subject = subject
        self._tripped = threading.Event()
        self._lock = threading.RLock()
        self._callbacks: dict[object, Callable[[], None]] = {}
        self.release = parent.watch(self.trip) if parent else _nothing

    @property
    def tripped(self) -> bool:
        """True once somebody asked to stop."""
        return self._tripped.is_set()

    def trip(self) -> None:
        """Stop everything under this switch; safe from any thread, and twice."""
        with self._lock:
            self._tripped.set()
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have `callback` called on `trip` (at once when that has been); returns how to take it back."""
        ticket = object()
        with self._lock:
            late = self._tripped.is_set()
            if not late:
                self._callbacks[ticket] = callback
        if late:
            callback()

        def unwatch() -> None:
            with self._lock:
                self._callbacks.pop(ticket, None)

        return unwatch

    def check(self) -> None:
        """Raise `TransferCancelled` once tripped."""
        if self._tripped.is_set():
            raise TransferCancelled(f"{self._subject} was cancelled")

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until `trip`."""
        self._tripped.wait(seconds)
        self.check()


def _nothing() -> None:
    """Release nothing: a switch without a parent."""
