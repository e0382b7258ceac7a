"""Whether a container that runs on behind is well: docker's rules for health checks, as a state that is only data.

A container is *starting* until a check succeeds, or until as many have failed in a row as there are retries; failures
in its start period do not count, and the first success ends that period. The monitor runs the checks
(`nbcontainer.engine.monitor.checks`); here is decided which command, when, and what its end means.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer.model import HealthCheck

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Check",
    "Health",
    "HealthStatus",
    "effective",
    "health_of",
    "pause_before",
    "saved_check",
    "with_result",
]

HealthStatus = Literal["starting", "healthy", "unhealthy"]
_INTERVAL = 30.0
_TIMEOUT = 30.0
_START_INTERVAL = 5.0
_RETRIES = 3
_SHELL = ("/bin/sh", "-c")
_REMEMBERED = 5
MOST_OUTPUT = 4096
"""Bytes of a check's output that are kept, as docker has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A check that is run: its command, and every time in seconds."""

    argv: tuple[str, ...]
    interval: float
    timeout: float
    start_period: float
    start_interval: float
    retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What is known of a container: `failing` checks in a row, the latest results, oldest first."""

    status: HealthStatus = "starting"
    failing: int = 0
    results: tuple[dict[str, Any], ...] = ()

    def as_field(self) -> dict[str, Any]:
        """As a record keeps it."""
        return {"status": self.status, "failing": self.failing, "results": list(self.results)}


def effective(image: HealthCheck | None, asked: HealthCheck, shell: Sequence[str] = ()) -> Check | None:
    """The check of a container: what was asked for over what the image says; None when there is none.

    `shell` is the image's own, for a command that is a line of text.
    """
    test = asked.test or (image.test if image else ())
    merged = {
        field.name: getattr(asked, field.name) or (getattr(image, field.name) if image else 0)
        for field in dataclasses.fields(HealthCheck)
        if field.name != "test"
    }
    check = HealthCheck(test=test, **merged)
    if not check.does_something:
        return None
    argv = test[1:] if test[0] == "CMD" else (*(shell or _SHELL), *test[1:])
    return Check(
        argv=tuple(argv),
        interval=check.interval or _INTERVAL,
        timeout=check.timeout or _TIMEOUT,
        start_period=check.start_period,
        start_interval=check.start_interval or _START_INTERVAL,
        retries=check.retries or _RETRIES,
    )


def saved_check(check: Check | None) -> dict[str, Any] | None:
    """A check as a record keeps it."""
    return None if check is None else dataclasses.asdict(check)


def health_of(field: object) -> Check | None:
    """The check in a record; None when there is none that can be read."""
    if not isinstance(field, dict):
        return None
    try:
        return Check(**{**field, "argv": tuple(str(word) for word in field["argv"])})
    except (KeyError, TypeError):
        return None


def pause_before(check: Check, health: Health, lived: float) -> float:
    """Seconds from the end of one check, or from the start of the container, to the next check."""
    if health.status == "starting" and lived < check.start_period:
        return min(check.start_interval, check.interval)
    return check.interval


def with_result(
    check: Check, health: Health, *, code: int, output: str, began: float, ended: float, lived: float
) -> Health:
    """What a check's end means; `lived` is how long the container had been there when the check began."""
    result = {"start": began, "end": ended, "exit_code": code, "output": output}
    results = (*health.results, result)[-_REMEMBERED:]
    if code == 0:
        return Health(status="healthy", failing=0, results=results)
    if health.status == "starting" and lived < check.start_period:
        return replace(health, results=results)
    failing = health.failing + 1
    status: HealthStatus = "unhealthy" if failing >= check.retries else health.status
    return Health(status=status, failing=failing, results=results)
