"""The terminal of a container that runs on behind: held by its monitor, lent to whoever attaches."""

from __future__ import annotations

import os

__all__ = ["HeldTerminal"]


class HeldTerminal:
    """Input of which nothing is ours: who attaches gets the master and types on it (`nbcontainer.runtime.inputs`).

    The descriptor keeps its number through all lives of the container, because another thread sends it.
    """

    def __init__(self) -> None:
        self.master = -1

    def fileno(self) -> int:
        """Nothing comes from here."""
        return -1

    def read(self) -> bytes | None:
        """See `fileno`."""
        return None

    def window(self) -> tuple[int, int] | None:
        """A size to begin with: some programs cannot do without one."""
        return (24, 80)

    def begin(self, terminal: int) -> None:
        """Hold the terminal of the life that begins."""
        if self.master < 0:
            self.master = os.dup(terminal)
        else:
            os.dup2(terminal, self.master, inheritable=False)

    def end(self) -> None:
        """Keep it: somebody may be just about to send it."""

    def close(self) -> None:
        """Let go of it."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1
