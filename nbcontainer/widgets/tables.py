"""A pull as a value, and how it is drawn: a table while it runs, one static line when it is over.

Everything here is pure: events go in, a frozen `PullState` and text or HTML come out. Who puts it on a screen, and
how often, is `nbcontainer.widgets.progress`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nbcontainer.engine.tables import escape, printable, size_text
from nbcontainer.errors import InvalidReference
from nbcontainer.model import LayerProgress, Notice, PullFinished, PullStarted, Reference

if TYPE_CHECKING:
    from nbcontainer.model import Digest, Event, LayerState

__all__ = ["LayerLine", "PullState", "advance", "closing_line", "headline", "pull_html", "status_line"]

_KEPT_NOTICES = 3
_DONE: frozenset[LayerState] = frozenset({"ready", "exists"})


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLine:
    """One layer on its way: bytes of the compressed blob, and bytes a second since its download began."""

    digest: Digest
    total: int
    state: LayerState = "waiting"
    done: int = 0
    began: float | None = None
    speed: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PullState:
    """What is known of a pull; `asked` is what was typed, `image` is empty until its manifest is here."""

    asked: str = ""
    image: str = ""
    layers: tuple[LayerLine, ...] = ()
    notices: tuple[str, ...] = ()
    finished: PullFinished | None = None
    failure: str = ""  # how it ended badly: "failed: …", "was interrupted"

    @property
    def over(self) -> bool:
        """True when nothing will change any more."""
        return self.finished is not None or bool(self.failure)

    @property
    def name(self) -> str:
        """The image's name as people type it."""
        return _familiar(self.image or self.asked)


def advance(state: PullState, event: Event, now: float) -> PullState:
    """The state after an event that came at `now` (seconds of any steady clock)."""
    if isinstance(event, PullStarted):
        layers = tuple(LayerLine(digest=layer.digest, total=layer.size) for layer in event.layers)
        return replace(state, image=event.image, layers=layers)
    if isinstance(event, LayerProgress):
        layers = tuple(_moved(layer, event, now) if layer.digest == event.digest else layer for layer in state.layers)
        return replace(state, layers=layers)
    if isinstance(event, PullFinished):
        return replace(state, image=event.image, finished=event)
    if isinstance(event, Notice):
        return replace(state, notices=(*state.notices, event.text)[-_KEPT_NOTICES:])
    return state


def _moved(layer: LayerLine, event: LayerProgress, now: float) -> LayerLine:
    began, speed = layer.began, layer.speed
    if event.state == "downloading":
        if began is None:
            began = now
        elif now > began:
            speed = event.done / (now - began)
    return replace(
        layer, state=event.state, done=event.done, total=event.total or layer.total, began=began, speed=speed
    )


def _familiar(image: str) -> str:
    try:
        return Reference.parse(image).familiar
    except InvalidReference:
        return image


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def headline(state: PullState) -> str:
    """``pulling debian:latest (2 layers, 29.7 MB)``; less before the manifest is here."""
    if not state.image:
        return f"pulling {printable(state.name)}".rstrip()
    size = sum(layer.total for layer in state.layers)
    return f"pulling {printable(state.name)} ({_plural(len(state.layers), 'layer')}, {size_text(size)})"


def status_line(state: PullState) -> str:
    """The whole pull on one line, for a terminal: layers done, bytes, speed."""
    ready = sum(layer.state in _DONE for layer in state.layers)
    total = sum(layer.total for layer in state.layers)
    fetched = sum(_fetched(layer) for layer in state.layers)
    speed = sum(layer.speed for layer in state.layers if layer.state == "downloading")
    pace = f", {size_text(speed)}/s" if speed else ""
    layers = f"{ready}/{_plural(len(state.layers), 'layer')} ready"
    return f"pulling {printable(state.name)}: {layers}, {size_text(fetched)} of {size_text(total)}{pace}"


def _fetched(layer: LayerLine) -> int:
    """Bytes here: `done` counts again from nothing while a layer is unpacked."""
    if layer.state == "downloading":
        return layer.done
    return 0 if layer.state in {"waiting", "failed"} else layer.total


def closing_line(state: PullState) -> str:
    """The one line that stays: ``pulled debian:latest sha256:1234… 29.7 MB in 3.2 s (1 layer)``."""
    name, finished = printable(state.name), state.finished
    if finished is None:
        return f"pull of {name or 'the image'} {printable(state.failure)}"
    layers = _plural(len(state.layers), "layer")
    if not finished.fetched:
        return f"{name} {finished.digest.algorithm}:{finished.digest.short}… is up to date ({layers})"
    size = size_text(finished.size)
    if (fetched := size_text(finished.fetched)) != size:
        size += f" ({fetched} fetched)"
    seconds = f"{finished.seconds:.1f} s" if finished.seconds < 90 else f"{finished.seconds / 60:.1f} min"
    return f"pulled {name} {finished.digest.algorithm}:{finished.digest.short}… {size} in {seconds} ({layers})"


def pull_html(state: PullState) -> str:
    """The table of a running pull; its closing line when it is over. No colours of our own: themes stay readable."""
    if state.over:
        return f"<div>{escape(closing_line(state))}</div>"
    rows = "".join(_layer_row(layer) for layer in state.layers)
    table = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    notices = "".join(f"<div><small>{escape(notice)}</small></div>" for notice in state.notices)
    return f"<div>{escape(headline(state))}</div>{table}{notices}"


def _layer_row(layer: LayerLine) -> str:
    share = layer.total if layer.state in _DONE else layer.done
    cells = (
        f"<code>{escape(layer.digest.short)}</code>",
        f'<progress value="{share}" max="{max(layer.total, 1)}"></progress>',
        escape(amount(layer)),
        escape(layer.state),
    )
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"


def amount(layer: LayerLine) -> str:
    """``12.3 of 29.7 MB, 10 MB/s`` while it comes, its size before and after."""
    if layer.state != "downloading":
        return size_text(layer.total)
    pace = f", {size_text(layer.speed)}/s" if layer.speed else ""
    return f"{size_text(layer.done)} of {size_text(layer.total)}{pace}"
