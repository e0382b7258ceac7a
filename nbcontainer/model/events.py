"""What flows upward: the only way lower layers tell people anything.

An event is a frozen value; a listener is a plain callable. Listeners may be called from worker threads (a pull
downloads several layers at once), so a listener that draws must lock or queue for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nbcontainer.model.digest import Digest
    from nbcontainer.model.oci import Descriptor

__all__ = [
    "BuildWarning",
    "Event",
    "LayerProgress",
    "LayerState",
    "Listener",
    "Notice",
    "PullFinished",
    "PullStarted",
    "StepEnd",
    "StepFinished",
    "StepOutput",
    "StepStarted",
    "ignore",
]

LayerState = Literal["waiting", "downloading", "downloaded", "unpacking", "ready", "exists", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The root of all events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """A sentence for the person: a retry, a slow registry, a name that a mirror answered."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PullStarted(Event):
    """The manifest is known: these layers (bottom first) will be shown."""

    image: str
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProgress(Event):
    """One layer moved on; `done` and `total` are bytes of the compressed blob in every state."""

    image: str
    digest: Digest
    state: LayerState
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullFinished(Event):
    """The image is here and ready to run; `seconds` is wall time, `size` compressed bytes."""

    image: str
    digest: Digest
    size: int
    fetched: int
    seconds: float


StepEnd = Literal["done", "cached", "failed", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildWarning(Event):
    """What a check has to say about the lines of a Dockerfile; `check` is BuildKit's name of it."""

    check: str
    text: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event):
    """A step of a build begins: `step` names it in the events that follow, `number` counts in its stage."""

    step: int
    stage: str
    number: int
    total: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutput(Event):
    """What a step's command wrote."""

    step: int
    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(Event):
    """A step is over."""

    step: int
    end: StepEnd
    seconds: float


Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Do nothing with an event: the default listener."""
