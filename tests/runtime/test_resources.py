"""What the limits did, as whoever supervises a container hears it."""

from __future__ import annotations

from nbcontainer.runtime.groups import Verdict
from nbcontainer.runtime.resources import Resources


def test_the_limit_that_every_container_has() -> None:
    """What PID 1 counted of the limit that nobody asked for is told, with that limit; nothing met is nothing told."""
    resources = Resources(None, (), pids_limit=4096)
    assert resources.verdict() == Verdict()
    assert resources.verdict(3) == Verdict(pids_refused=3, pids_limit=4096)


def test_a_look_where_nothing_counts() -> None:
    """Where no hierarchy is known the last look before the end finds nothing, and fails nothing."""
    resources = Resources(None, (), pids_limit=4096)
    resources.look(1)
    assert resources.verdict() == Verdict()
