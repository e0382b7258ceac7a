"""A build as text that grows: each step under its own heading, what its command writes, how long it took.

Stages are built at once, and people read one thing after another: one step is in front and shown as it goes, what the
others write waits until it is over. Headings end with ``CACHED`` or the time; when something was written in between,
a line with the step's number does. A pull of a base image is drawn as every pull is.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Literal

from nbcontainer.engine.tables import printable
from nbcontainer.model import (
    BuildWarning,
    LayerProgress,
    Notice,
    PullFinished,
    PullStarted,
    StepFinished,
    StepOutput,
    StepStarted,
)
from nbcontainer.widgets.progress import PullProgress

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from nbcontainer.model import Event
    from nbcontainer.widgets.progress import Picture

__all__ = ["BuildLog", "BuildProgress"]

BuildProgress = Literal["auto", "plain", "tree", "none"]
_LONGEST_HEADING = 160


class BuildLog:
    """The listener of one build, and the block around it. `write` puts text on a stream, `picture` draws a pull."""

    def __init__(
        self,
        write: Callable[[Literal["stdout", "stderr"], bytes], None],
        picture: Callable[[], Picture | None],
        *,
        progress: BuildProgress = "auto",
        heading_stream: Literal["stdout", "stderr"] = "stdout",
    ) -> None:
        self._write = write
        self._picture = picture
        self._progress = progress
        self._stream = heading_stream
        self._front: int | None = None
        self._waiting: dict[int, list[Event]] = {}
        self._open = False
        """Whether the line of a heading is still open."""
        self._label = ""
        self._at_start = True
        self._pulls: dict[str, PullProgress] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        for events in self._waiting.values():
            for event in events:
                self._draw(event)
        self._new_line()
        for pull in self._pulls.values():
            pull.__exit__(type(value) if value else None, value, None)

    def listen(self, event: Event) -> None:
        """Take an event."""
        if self._progress == "none":
            return
        if isinstance(event, (PullStarted, LayerProgress, PullFinished)):
            self._pull(event)
        elif isinstance(event, BuildWarning):
            self._line(f"warning: line {event.line}: {event.text} ({event.check})")
        elif isinstance(event, Notice):
            self._line(f"note: {event.text}")
        elif isinstance(event, (StepStarted, StepOutput, StepFinished)):
            self._step(event)

    def _pull(self, event: PullStarted | LayerProgress | PullFinished) -> None:
        pull = self._pulls.get(event.image)
        if pull is None:
            self._new_line()
            pull = self._pulls[event.image] = PullProgress(self._picture(), event.image)
        pull.listen(event)

    def _step(self, event: StepStarted | StepOutput | StepFinished) -> None:
        if self._front is None:
            self._front = event.step
        if event.step != self._front:
            self._waiting.setdefault(event.step, []).append(event)
            return
        self._draw(event)
        if isinstance(event, StepFinished):
            self._front = None
            self._next()

    def _next(self) -> None:
        """Show what has waited: steps that are over, then the next one that goes on."""
        for step in list(self._waiting):
            events = self._waiting.pop(step)
            for each in events:
                self._draw(each)
            if not isinstance(events[-1], StepFinished):
                self._front = step
                return

    def _draw(self, event: Event) -> None:
        if isinstance(event, StepStarted):
            self._new_line()
            self._label = _label(event)
            self._put(_heading(event))
            self._open, self._at_start = True, False
        elif isinstance(event, StepOutput):
            if self._progress != "tree":
                if self._open:
                    self._new_line()
                self._open = False
                self._write(event.stream, event.data)
                self._at_start = event.data.endswith((b"\n", b"\r"))
        elif isinstance(event, StepFinished):
            ends = {"done": f"{event.seconds:.1f} s", "cached": "CACHED", "failed": "FAILED", "cancelled": "stopped"}
            if self._open:
                self._put(f"  {ends[event.end]}\n")
            else:
                self._new_line()
                self._put(f"{self._label}  {ends[event.end]}\n")
            self._open, self._at_start = False, True

    def _line(self, text: str) -> None:
        self._new_line()
        self._put(f"{printable(text)}\n")

    def _new_line(self) -> None:
        if not self._at_start:
            self._put("\n")
        self._open, self._at_start = False, True

    def _put(self, text: str) -> None:
        self._write(self._stream, text.encode("utf-8", "replace"))


def _label(event: StepStarted) -> str:
    stage = f"{event.stage} " if event.stage else ""
    return printable(f"[{stage}{event.number}/{event.total}]")


def _heading(event: StepStarted) -> str:
    text = f"{_label(event)} {event.text}"
    width = max(40, min(_LONGEST_HEADING, shutil.get_terminal_size((_LONGEST_HEADING, 24)).columns - 12))
    return printable(text if len(text) <= width else f"{text[: width - 1]}…")
