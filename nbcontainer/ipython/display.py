"""What a magic hands back or raises, where IPython would otherwise show too much."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from nbcontainer.model import RunResult

__all__ = ["Interrupted", "LineResult"]


class LineResult(RunResult):
    """The result of ``%container run``: complete when assigned, silent when it is a cell's last value.

    The output has been shown already, and a magic cannot tell ``r = %container run …`` from the plain line.
    """

    __slots__ = ()

    @classmethod
    def of(cls, result: RunResult) -> LineResult:
        """The same result, silent."""
        values: dict[str, Any] = {field.name: getattr(result, field.name) for field in fields(RunResult)}
        return cls(**values)

    def _ipython_display_(self) -> None:
        """Show nothing."""


class Interrupted(KeyboardInterrupt):
    """An interrupt outside a container, during a pull for example: one line instead of the engine's traceback."""

    def _render_traceback_(self) -> list[str]:
        """Show one line (IPython calls this when it exists)."""
        return ["KeyboardInterrupt: interrupted"]
