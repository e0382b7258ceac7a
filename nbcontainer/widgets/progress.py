"""A pull on the screen: one listener, and four ways to draw chosen once.

Events come from worker threads while the main thread waits inside the engine, so nothing can be left for the main
thread to draw. The thread that brings an event draws it, under a lock, at most every 100 ms, and inside the *context*
of the cell that asked: ipykernel keeps the cell an output belongs to in context variables, so this pins every line
and every display update to the right cell without touching the kernel's internals. No timer thread is left behind.

In a notebook the picture is one display output with a small HTML table. With ipywidgets the table changes in place,
without the output being rendered again; otherwise the output itself is updated. Both carry text/html and text/plain,
and both end by *replacing* the output with one static line, so a saved, exported or shared notebook shows what was
pulled and never a dead widget. In a terminal one line is rewritten; in a log, a line is written only when something
has changed for good.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.util
import logging
import shutil
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from nbcontainer.engine.tables import printable
from nbcontainer.model import LayerProgress, Notice, PullStarted
from nbcontainer.widgets.tables import (
    PullState,
    advance,
    closing_line,
    headline,
    pull_html,
    status_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from nbcontainer.model import Event, Listener

__all__ = ["HtmlDisplay", "LogDisplay", "Picture", "ProgressKind", "PullProgress", "TerminalDisplay", "choose_display"]

ProgressKind = Literal["auto", "widgets", "html", "text", "none"]
_INTERVAL = 0.1
_log = logging.getLogger(__name__)


class Picture(Protocol):
    """A way to draw a pull. Called by one thread at a time, from any thread."""

    def show(self, state: PullState, event: Event) -> None:
        """Draw the state after `event`; the first call puts the picture on the screen."""

    def close(self, state: PullState) -> None:
        """Leave the closing line in its place. Called once, and only after `show`."""


class PullProgress:
    """The listener of one pull, and the block around it: ``with PullProgress(picture) as listener: …``.

    Nothing appears unless something is pulled. When the block ends by an exception before the pull was finished, the
    closing line says so. A picture that cannot be drawn is given up; it never fails the pull.
    """

    def __init__(
        self,
        picture: Picture | None,
        image: str = "",
        *,
        interval: float = _INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._picture = picture
        self._interval = interval
        self._clock = clock
        self._lock = threading.Lock()
        self._context = contextvars.copy_context()
        self._state = PullState(asked=image)
        self._drawn: float | None = None

    def __enter__(self) -> Listener:
        return self.listen

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if value is not None and self._drawn is not None and not self._state.over:
                interrupted = isinstance(value, KeyboardInterrupt)
                reason = "was interrupted" if interrupted else f"failed: {str(value) or type(value).__name__}"
                self._state = replace(self._state, failure=reason)
                self._finish()

    def listen(self, event: Event) -> None:
        """Take an event, from any thread."""
        with self._lock:
            if self._state.over:
                return
            now = self._clock()
            self._state = advance(self._state, event, now)
            if self._state.over:
                self._finish()
            elif self._is_due(event, now):
                self._drawn = now
                self._draw(lambda picture: picture.show(self._state, event))

    def _is_due(self, event: Event, now: float) -> bool:
        if self._drawn is None or isinstance(event, (PullStarted, Notice)):
            return True
        settled = isinstance(event, LayerProgress) and event.state in {"ready", "exists", "failed"}
        return settled or now - self._drawn >= self._interval

    def _finish(self) -> None:
        self._draw(lambda picture: picture.close(self._state))

    def _draw(self, action: Callable[[Picture], None]) -> None:
        if self._picture is None:
            return
        try:
            self._context.run(action, self._picture)
        except Exception:  # noqa: BLE001 - a front end that went away must not fail the pull
            _log.debug("the pull of %s cannot be shown", self._state.image, exc_info=True)
            self._picture = None


def choose_display(kind: ProgressKind, *, notebook: bool, stream: TextIO) -> Picture | None:
    """The picture for this place; None shows nothing.

    ``auto`` takes ipywidgets or HTML in a notebook, and lines on `stream` everywhere else.
    """
    if kind == "none":
        return None
    if kind == "auto":
        kind = _notebook_kind() if notebook else "text"
    if kind == "widgets":
        return WidgetDisplay()
    if kind == "html":
        return HtmlDisplay()
    return TerminalDisplay(stream) if stream.isatty() else LogDisplay(stream)


@functools.cache  # asked before every run, and a look through sys.path takes longer than the rest of the door
def _notebook_kind() -> ProgressKind:
    return "widgets" if importlib.util.find_spec("ipywidgets") else "html"


class HtmlDisplay:
    """One display output, updated with HTML."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, state: PullState, event: Event) -> None:  # noqa: ARG002 - drawn from the state alone
        """Draw the table."""
        self._publish(_bundle(state))

    def close(self, state: PullState) -> None:
        """Replace the table by the closing line."""
        self._publish(_bundle(state))

    def _publish(self, bundle: dict[str, Any]) -> None:
        from IPython.display import display

        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(bundle, raw=True)


def _bundle(state: PullState) -> dict[str, Any]:
    text = closing_line(state) if state.over else headline(state)
    return {"text/html": pull_html(state), "text/plain": text}


class WidgetDisplay(HtmlDisplay):
    """The same output with one ipywidgets view in it while the pull runs.

    One HTML widget and not a box of bars: programs that run notebooks store the state of every widget that ever was.
    """

    def __init__(self) -> None:
        super().__init__()
        self._view: Any = None

    def show(self, state: PullState, event: Event) -> None:  # noqa: ARG002 - drawn from the state alone
        """Put the view into the output, then only change its text."""
        if self._view is not None:
            self._view.value = pull_html(state)
            return
        from ipywidgets import HTML

        self._view = HTML(pull_html(state))
        view = {"version_major": 2, "version_minor": 0, "model_id": self._view.model_id}
        self._publish({"application/vnd.jupyter.widget-view+json": view, **_bundle(state)})

    def close(self, state: PullState) -> None:
        """Replace the view by the closing line, then take it out of the kernel."""
        super().close(state)
        if self._view is not None:
            for part in (self._view.style, self._view.layout, self._view):
                part.close()
            self._view = None


class TerminalDisplay:
    """One line of a terminal, rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, state: PullState, event: Event) -> None:
        """Rewrite the line; a notice gets a line of its own above it."""
        if isinstance(event, Notice):
            self._write(f"\r\x1b[K{printable(event.text)}\n")
        if state.image:
            width = shutil.get_terminal_size().columns - 1
            self._write(f"\r\x1b[K{status_line(state)[:width]}")

    def close(self, state: PullState) -> None:
        """Put the closing line in its place."""
        self._write(f"\r\x1b[K{closing_line(state)}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class LogDisplay:
    """Plain lines, only for what has changed for good: logs are read afterwards."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, state: PullState, event: Event) -> None:
        """Write the headline, notices, and layers that are ready or have failed."""
        if isinstance(event, PullStarted):
            self._write(headline(state))
        elif isinstance(event, Notice):
            self._write(printable(event.text))
        elif isinstance(event, LayerProgress) and event.state in {"ready", "failed"}:
            self._write(f"{event.digest.short} {event.state}")

    def close(self, state: PullState) -> None:
        """Write the closing line."""
        self._write(closing_line(state))

    def _write(self, text: str) -> None:
        with contextlib.suppress(ValueError):  # a stream that was closed in the meantime
            self._stream.write(f"{text}\n")
            self._stream.flush()
