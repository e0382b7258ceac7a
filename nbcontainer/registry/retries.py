"""Which failures pass by themselves, and how long to wait for that."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, TypeVar

from nbcontainer.errors import NbcontainerError, RateLimited
from nbcontainer.registry.failures import ConnectionFailed, RegistryBusy

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.registry.interrupts import Interrupt
    from nbcontainer.registry.settings import RegistrySettings

__all__ = ["Patience", "is_transient", "pause"]

_T = TypeVar("_T")
_LONGEST_BACKOFF = 30.0


def is_transient(error: NbcontainerError) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, ConnectionFailed):
        return error.transient
    return isinstance(error, (RegistryBusy, RateLimited))


def pause(error: NbcontainerError, failures: int, settings: RegistrySettings, chance: float) -> float | None:
    """Seconds to wait after the `failures`-th failure in a row; None when it is not worth waiting.

    Doubling back-off, spread by `chance` (0 to 1) so that a class room does not come back in step; a server's
    Retry-After is the least, and beyond `settings.longest_wait` it is not waited for.
    """
    if failures >= settings.attempts or not is_transient(error):
        return None
    wait: float = min(settings.backoff * 2 ** (failures - 1), _LONGEST_BACKOFF) * (0.5 + chance)
    asked = error.retry_after if isinstance(error, (RegistryBusy, RateLimited)) else None
    if asked is None:
        return wait
    return None if asked > settings.longest_wait else max(asked, wait)


class Patience:
    """Counts the failures of one undertaking and waits between them."""

    def __init__(self, settings: RegistrySettings, interrupt: Interrupt, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._interrupt = interrupt
        self._notice = notice
        self._failures = 0

    def renew(self) -> None:
        """Forget the failures so far: there was progress."""
        self._failures = 0

    def endure(self, error: NbcontainerError) -> None:
        """Wait for a better time, or raise `error` when there will be none."""
        self._failures += 1
        wait = pause(error, self._failures, self._settings, random.random())  # noqa: S311 - jitter is no secret
        if wait is None:
            raise error
        attempts = self._settings.attempts
        self._notice(f"{error}; trying again in {wait:.1f} s (attempt {self._failures + 1} of {attempts})")
        self._interrupt.sleep(wait)

    def insist(self, action: Callable[[], _T]) -> _T:
        """Do `action` until it succeeds or is not worth another try."""
        while True:
            try:
                return action()
            except NbcontainerError as problem:
                self.endure(problem)
