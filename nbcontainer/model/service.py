"""Containers that run on behind, as values: when to start them again, how to ask whether they are well, what to keep.

The words and the defaults are docker's. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["HealthCheck", "LogLimits", "RestartName", "RestartPolicy", "ServiceOptions"]

RestartName = Literal["no", "on-failure", "always", "unless-stopped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a container that has ended is started again; `most` bounds the retries of ``on-failure``, 0 for no bound."""

    name: RestartName = "no"
    most: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.most}" if self.most else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """A command that says whether a container is well.

    `test` is the command as an image's config has it: ``CMD`` or ``CMD-SHELL`` and its words, ``NONE`` for no check,
    or empty where only times were asked for. A time of 0 and 0 retries mean docker's defaults.
    """

    test: tuple[str, ...] = ()
    interval: float = 0.0
    timeout: float = 0.0
    start_period: float = 0.0
    start_interval: float = 0.0
    retries: int = 0

    @property
    def does_something(self) -> bool:
        """Whether there is a command to run."""
        return len(self.test) > 1 and self.test[0] in {"CMD", "CMD-SHELL"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """How much output is kept: `files` files of `size` bytes each, of which the oldest is let go."""

    size: int = 10 << 20
    files: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """What a container that runs on behind was asked to be.

    `health` says what differs from the image's own check. With `interactive` its standard input stays open for those
    who attach.
    """

    restart: RestartPolicy = field(default_factory=RestartPolicy)
    health: HealthCheck = field(default_factory=HealthCheck)
    log: LogLimits = field(default_factory=LogLimits)
    interactive: bool = False
