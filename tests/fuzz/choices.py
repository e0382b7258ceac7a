"""Random bytes read as decisions, so that whatever makes bytes (hypothesis, atheris, a random loop) makes structure.

A shorter string of bytes makes a smaller structure: when they are used up every decision is the first one, and lists
end. That is what lets hypothesis shrink a failure to something one can read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Choices"]

_T = TypeVar("_T")


class Choices:
    """Decisions out of `data`, in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        """A number from 0 to `below` - 1."""
        width = 1 if below <= 256 else 2 if below <= 65536 else 8
        return int.from_bytes(self.blob(width).ljust(width, b"\0"), "little") % below

    def blob(self, most: int) -> bytes:
        """Up to `most` bytes as they come."""
        taken = self._data[self._at : self._at + most]
        self._at += most
        return taken

    def pick(self, options: Sequence[_T]) -> _T:
        """One of these."""
        return options[self.number(len(options))]

    def rarely(self) -> bool:
        """One time in thirty-two."""
        return self.number(32) == 31

    def more(self) -> bool:
        """Whether a list goes on; it ends where the bytes do."""
        return self._at < len(self._data) and self.number(16) != 0
