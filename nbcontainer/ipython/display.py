"""What a magic hands back or raises, where IPython would otherwise show too much."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from nbcontainer.model import RunResult

__all__ = ["Interrupted", "LineResult", "stands_alone"]

_PLAIN = re.compile(r"^\s*%?container\s", re.MULTILINE)
_VALUE_WANTED = re.compile(r"=\s*%container|run_line_magic")


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


def stands_alone(shell: Any) -> bool:
    """Whether, in a terminal's IPython, the line is there for its effect: nobody takes its value.

    Such a value must be None there, because the prompt ``Out[n]:`` is written before the value is asked how it wants
    to be shown. What was typed tells; when in doubt the value is kept, for one empty prompt.
    """
    if getattr(shell, "kernel", None) is not None:
        return False
    result = getattr(shell.displayhook, "exec_result", None)
    typed = str(getattr(getattr(result, "info", None), "raw_cell", "") or "")
    return bool(_PLAIN.search(typed)) and not _VALUE_WANTED.search(typed)


class Interrupted(KeyboardInterrupt):
    """An interrupt outside a container, during a pull for example: one line instead of the engine's traceback."""

    def _render_traceback_(self) -> list[str]:
        """Show one line (IPython calls this when it exists)."""
        return ["KeyboardInterrupt: interrupted"]
