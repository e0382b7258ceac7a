"""Who has what waits: a one in an eventfd that two processes hold, and whoever reads it has it (eventfd(2))."""

from __future__ import annotations

import os

__all__ = ["Claim"]


class Claim:
    """One side's end of it; made on one side, and by its number on the other."""

    def __init__(self, fd: int = -1) -> None:
        self.fd = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK) if fd < 0 else fd
        self._ours = False

    def take(self) -> bool:
        """Whether it is ours, from now on for good: false once the other side has taken it."""
        if not self._ours:
            try:
                os.eventfd_read(self.fd)
            except BlockingIOError:
                return False
            self._ours = True
        return True

    def close(self) -> None:
        """Let go of our end."""
        os.close(self.fd)
