"""The verbs about what containers use: what they ask the engine, and how the answer looks."""

from __future__ import annotations

import dataclasses

import pytest

from nbcontainer.engine.resource_verbs import process_table, usage_table
from nbcontainer.engine.verbs import dispatch
from nbcontainer.errors import ContainerNotFound, InvalidOption
from nbcontainer.model import Limits
from nbcontainer.testing.engine import RecordingEngine
from tests.engine.test_verbs import FakeSession


@pytest.fixture
def session() -> FakeSession:
    """Lend a session whose engine has a running container."""
    return FakeSession(RecordingEngine(kept=[RecordingEngine.container(state="running")]))


def test_stats(session: FakeSession) -> None:
    """Docker's columns, in units of limits; numbers for programs."""
    table = dispatch(session, ["stats", "work"])
    assert session.engine.last("stats") == {"containers": ("work",)}
    heading, line = str(table).splitlines()
    assert heading.split("   ")[0] == "CONTAINER ID"
    for word in ("c0ffee", "12.5", "100 MiB / 256 MiB", "3 / 4096", "1 MB / 0 B"):
        assert word in line
    assert usage_table([session.engine.usage]).records()[0]["cpu_%"] == 12.5
    free = dataclasses.replace(session.engine.usage, memory_limit=None, pids_limit=None, read=None, written=None)
    assert "100 MiB / no limit" in str(usage_table([free]))
    assert str(usage_table([])) == "no running containers"
    assert "<table>" in usage_table([free])._repr_html_()


def test_top(session: FakeSession) -> None:
    """Users and times as people read them; what comes from the container cannot draw on the screen."""
    table = dispatch(session, ["top", "work"])
    assert "4711   4710   root   S       01:02:03    2 MiB   sleep infinity" in str(table)
    (row,) = session.engine.top("work")
    strange = dataclasses.replace(row, user=None, command="a\x1b[31mb<script>")
    text = str(process_table([strange, dataclasses.replace(row, user=1000)]))
    assert "\x1b" not in text
    assert " 1000 " in text
    assert "<script>" not in process_table([strange])._repr_html_()


@pytest.mark.parametrize("verb", ["pause", "unpause"])
def test_pause(session: FakeSession, verb: str) -> None:
    """Each container named is asked about, and named in the answer."""
    assert str(dispatch(session, [verb, "work", "work"])) == "work\nwork"
    assert session.engine.last(verb) == {"container": "work"}
    with pytest.raises(ContainerNotFound):
        dispatch(session, [verb, "other"])


def test_update(session: FakeSession) -> None:
    """The options of limits are run's own; what is not named is None."""
    line = ["update", "-m", "1g", "--memory-swap", "-1", "--cpus", "1.5", "-c", "0", "--pids-limit", "0", "work"]
    assert str(dispatch(session, line)) == "work"
    assert session.engine.last("update")["limits"] == Limits(memory=1 << 30, memory_swap=-1, cpus=1.5, pids=-1)
    with pytest.raises(InvalidOption, match="--ulimit"):
        dispatch(session, ["update", "--ulimit", "nofile=3", "work"])
