"""The island's own refinements of the error tree: what the retry loop must know and people need not.

They are leaves of `nbcontainer.errors` classes, so the layers above catch those.
"""

from __future__ import annotations

from typing import Literal

from nbcontainer.errors import RegistryRefused, RegistryUnreachable, RemoteError

__all__ = ["ConnectionFailed", "FailureKind", "RegistryBusy", "TransferCancelled"]

FailureKind = Literal["dns", "refused", "plain-http", "certificate", "tls", "timeout", "proxy", "address", "broken"]


class ConnectionFailed(RegistryUnreachable):
    """No answer, and why; `transient` says that asking again may help."""

    def __init__(self, message: str, *, kind: FailureKind, transient: bool) -> None:
        super().__init__(message)
        self.kind = kind
        self.transient = transient


class RegistryBusy(RegistryRefused):
    """A status that asks to come back later; `retry_after` is in seconds when it said when."""

    def __init__(
        self, message: str, *, status: int, codes: tuple[str, ...] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(message, status=status, codes=codes)
        self.retry_after = retry_after


class TransferCancelled(RemoteError):
    """Ended by `cancel` or `close`, called from another thread."""
