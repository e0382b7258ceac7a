"""A build as text: one step in front, the others after it."""

from __future__ import annotations

from nbcontainer.model import BuildWarning, Notice, StepFinished, StepOutput, StepStarted
from nbcontainer.testing.engine import pull_events
from nbcontainer.widgets.buildlog import BuildLog


def drawn(*events, progress="plain"):
    """What a listener of these events has written."""
    written: list[bytes] = []
    with BuildLog(lambda _, data: written.append(data), lambda: None, progress=progress) as log:
        for event in events:
            log.listen(event)
    return b"".join(written).decode()


def started(step, text="RUN x", stage=""):
    """The start of a step."""
    return StepStarted(step=step, stage=stage, number=step, total=9, text=text)


def wrote(step, text, stream="stdout"):
    """Output of a step."""
    return StepOutput(step=step, stream=stream, data=text.encode())


def ended(step, end="done", seconds=1.25):
    """The end of a step."""
    return StepFinished(step=step, end=end, seconds=seconds)


def test_headings_output_and_times():
    """A step has a heading; the time is on its line, or with its number below what it wrote."""
    text = drawn(started(1), ended(1, "cached"), started(2), wrote(2, "hi\nthere"), ended(2), started(3), ended(3))
    assert text == "[1/9] RUN x  CACHED\n[2/9] RUN x\nhi\nthere\n[2/9]  1.2 s\n[3/9] RUN x  1.2 s\n"


def test_one_step_in_front():
    """What other stages write waits until the step in front is over."""
    text = drawn(
        started(1, stage="a"),
        wrote(1, "1\n"),
        started(2, stage="b"),
        wrote(2, "2\n"),
        wrote(1, "1 again\n"),
        ended(2),
        started(3, stage="b"),
        ended(1),
        wrote(3, "3\n"),
        ended(3, "failed"),
    )
    assert text == (
        "[a 1/9] RUN x\n1\n1 again\n[a 1/9]  1.2 s\n[b 2/9] RUN x\n2\n[b 2/9]  1.2 s\n"
        "[b 3/9] RUN x\n3\n[b 3/9]  FAILED\n"
    )


def test_what_has_waited_is_shown_at_the_end():
    """When a build ends in the middle, what other steps had written is there."""
    assert drawn(started(1), started(2), wrote(2, "late")) == "[1/9] RUN x\n[2/9] RUN x\nlate\n"


def test_tree_shows_steps_only():
    """With tree what commands write is left out."""
    assert drawn(started(1), wrote(1, "x\n"), ended(1), progress="tree") == "[1/9] RUN x  1.2 s\n"


def test_none_shows_nothing():
    """With none nothing is written at all."""
    assert drawn(started(1), wrote(1, "x\n"), ended(1), Notice(text="n"), progress="none") == ""


def test_sentences_and_strangers():
    """Notices and warnings have lines of their own; nothing in a heading can steer a terminal or fill the screen."""
    text = drawn(
        started(1, text=f"RUN \x1b[31m{'y' * 500}"), Notice(text="n"), BuildWarning(check="C", text="w", line=3)
    )
    heading, note, warning, *rest = text.split("\n")
    assert "\\x1b[31m" in heading
    assert heading.endswith("…")
    assert len(heading) < 200
    assert (note, warning, rest) == ("note: n", "warning: line 3: w (C)", [""])


def test_pulls_are_drawn_by_their_own_picture():
    """A pull of a base image is handed to a picture, made when one begins."""
    shown = []

    class Picture:
        def show(self, state, event):
            shown.append((type(event).__name__, state.image))

        def close(self, state):
            shown.append(("closed", state.image))

    with BuildLog(lambda _, __: None, Picture) as log:
        for event in pull_events():
            log.listen(event)
    assert shown[0][0] == "PullStarted"
    assert shown[-1] == ("closed", shown[0][1])
