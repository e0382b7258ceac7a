"""A pull on the screen, in each of its four forms."""

from __future__ import annotations

import contextlib
import io
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.utils.capture import capture_output

from nbcontainer.errors import RegistryUnreachable
from nbcontainer.model import Digest, LayerProgress, Notice, PullFinished, PullStarted
from nbcontainer.testing.engine import pull_events
from nbcontainer.widgets.progress import (
    HtmlDisplay,
    LogDisplay,
    PullProgress,
    TerminalDisplay,
    WidgetDisplay,
    choose_display,
)
from nbcontainer.widgets.tables import PullState, advance, closing_line, pull_html, status_line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbcontainer.model import Event
    from nbcontainer.widgets.progress import Picture


class Recorder:
    """A picture that remembers what it was asked to draw."""

    def __init__(self) -> None:
        self.shown: list[tuple[PullState, Event]] = []
        self.closed: list[str] = []

    def show(self, state: PullState, event: Event) -> None:
        """Remember a drawing."""
        self.shown.append((state, event))

    def close(self, state: PullState) -> None:
        """Remember the end."""
        self.closed.append(closing_line(state))


def play(picture: Picture, events: Iterable[Event], **options: Any) -> None:
    with PullProgress(picture, **options) as listener:
        for event in events:
            listener(event)


def state_after(events: Iterable[Event], seconds: float = 1.0) -> PullState:
    state = PullState()
    for number, event in enumerate(events):
        state = advance(state, event, number * seconds)
    return state


def test_nothing_is_drawn_when_nothing_is_pulled():
    """An image that is here needs no line."""
    recorder = Recorder()
    play(recorder, ())
    assert not recorder.shown
    assert not recorder.closed


def test_drawing_is_throttled_but_what_matters_is_drawn_at_once():
    """Bytes wait for the interval; the start, notices and settled layers do not."""
    recorder = Recorder()
    now = [0.0]
    started, *rest = pull_events(layers=1)
    downloading = rest[0]
    assert isinstance(downloading, LayerProgress)
    with PullProgress(recorder, clock=lambda: now[0]) as listener:
        listener(started)
        for done in range(100):
            now[0] += 0.001
            listener(replace(downloading, done=done))
        assert len(recorder.shown) <= 2
        listener(Notice(text="a mirror answered"))
        listener(replace(downloading, state="ready"))
    assert [type(event).__name__ for _, event in recorder.shown][-2:] == ["Notice", "LayerProgress"]


def test_failure_and_interrupt_leave_one_line():
    """A pull that did not end well says so, once."""
    started = pull_events()[0]
    errors = (RegistryUnreachable("no answer"), KeyboardInterrupt())
    for error, words in zip(errors, ("failed: no answer", "was interrupted"), strict=True):
        recorder = Recorder()
        with contextlib.suppress(type(error)), PullProgress(recorder) as listener:
            listener(started)
            raise error
        assert len(recorder.closed) == 1
        assert words in recorder.closed[0]


def test_failure_before_the_manifest_replaces_what_was_drawn():
    """A registry that never answers leaves no table that waits for ever."""
    recorder = Recorder()
    with contextlib.suppress(RegistryUnreachable), PullProgress(recorder, "debian") as listener:
        listener(Notice(text="trying again"))
        raise RegistryUnreachable("no answer")
    assert recorder.shown[0][0].name == "debian:latest"
    assert recorder.closed == ["pull of debian:latest failed: no answer"]


def test_failure_after_the_pull_is_not_the_pulls():
    """A command that fails later leaves the closing line alone."""
    recorder = Recorder()
    with contextlib.suppress(RuntimeError), PullProgress(recorder) as listener:
        for event in pull_events():
            listener(event)
        raise RuntimeError
    assert len(recorder.closed) == 1
    assert recorder.closed[0].startswith("pulled ")


def test_a_picture_that_breaks_never_breaks_the_pull():
    """It is given up."""

    class Broken(Recorder):
        def show(self, state: PullState, event: Event) -> None:
            super().show(state, event)
            raise OSError("front end gone")

    broken = Broken()
    play(broken, pull_events())
    assert len(broken.shown) == 1


def test_events_of_many_threads_are_drawn_one_at_a_time():
    """Layers report from their own threads."""
    recorder = Recorder()
    events = pull_events(layers=8)
    with PullProgress(recorder, interval=0) as listener:
        listener(events[0])
        threads = [
            threading.Thread(target=lambda part=part: [listener(e) for e in part])
            for part in (events[1:20], events[20:-1])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        listener(events[-1])
    assert recorder.closed
    assert all(layer.state == "ready" for layer in recorder.shown[-1][0].layers)


def test_closing_lines():
    """What was pulled, how much and how long, or that nothing was to be done."""
    finished = state_after(pull_events(layers=1))
    assert (
        closing_line(finished) == f"pulled debian:latest sha256:{Digest.of(b'manifest').short}… 1 MB in 1.5 s (1 layer)"
    )
    assert finished.finished is not None
    partly = replace(finished, finished=replace(finished.finished, size=3_000_000))
    assert "3 MB (1 MB fetched)" in closing_line(partly)
    none = replace(finished, finished=replace(finished.finished, fetched=0))
    assert "is up to date (1 layer)" in closing_line(none)


def test_speed_and_amounts_are_shown_while_downloading():
    """One second for half a megabyte."""
    events = pull_events(layers=1)
    first = events[1]
    assert isinstance(first, LayerProgress)
    state = state_after([events[0], replace(first, done=0), first])
    assert "500 kB of 1 MB, 500 kB/s" in status_line(state)
    assert "500 kB of 1 MB, 500 kB/s" in pull_html(state)
    assert 'value="500000" max="1000000"' in pull_html(state)


def test_html_of_strangers_names_is_escaped():
    """Image names and notices come from outside."""
    state = PullState(image="<b>evil</b>", notices=("<script>\x1b",))
    assert "<b>" not in pull_html(state)
    assert "<script>" not in pull_html(state)
    assert "<b>" not in pull_html(replace(state, failure="<b>"))


def test_log_has_lines_only_for_what_is_settled():
    """Plain lines, no escapes."""
    stream = io.StringIO()
    play(LogDisplay(stream), [*pull_events()[:-1], Notice(text="slow\x1b[2J"), pull_events()[-1]])
    lines = stream.getvalue().splitlines()
    assert lines[0] == "pulling debian:latest (2 layers, 2 MB)"
    assert [line.split()[1] for line in lines[1:3]] == ["ready", "ready"]
    assert lines[3] == "slow\\x1b[2J"
    assert lines[4].startswith("pulled debian:latest")
    assert len(lines) == 5


def test_terminal_rewrites_one_line():
    """The last thing on the screen is the closing line."""
    stream = io.StringIO()
    play(TerminalDisplay(stream), pull_events(), interval=0)
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.split("\r\x1b[K")[-1].startswith("pulled debian:latest")


def test_widgets_are_taken_out_of_the_kernel():
    """No comm is left open."""
    from ipywidgets import Widget

    before = set(_live(Widget))
    with capture_output():
        play(WidgetDisplay(), pull_events(), interval=0)
    assert set(_live(Widget)) <= before


def _live(widget: Any) -> Any:
    import ipywidgets.widgets.widget as module

    instances = getattr(module, "_instances", None)
    return instances if instances is not None else widget.widgets


def test_the_picture_suits_the_place():
    """Chosen once, by kind, notebook and stream."""
    stream = io.StringIO()
    assert choose_display("none", notebook=True, stream=stream) is None
    assert isinstance(choose_display("auto", notebook=False, stream=stream), LogDisplay)
    assert isinstance(choose_display("text", notebook=True, stream=stream), LogDisplay)
    assert type(choose_display("html", notebook=True, stream=stream)) is HtmlDisplay
    assert isinstance(choose_display("auto", notebook=True, stream=stream), HtmlDisplay)


def test_events_after_the_end_are_ignored():
    """A straggling thread cannot bring the table back."""
    recorder = Recorder()
    events = pull_events()
    play(recorder, [*events, events[1]])
    assert len(recorder.closed) == 1
    assert isinstance(events[0], PullStarted)
    assert isinstance(events[-1], PullFinished)
