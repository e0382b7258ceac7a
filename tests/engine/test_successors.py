"""Ids promised to the next container of a kind: one each, taken once, the oldest forgotten."""

from __future__ import annotations

from nbcontainer.engine.successors import Kind, Successors, new_container_id
from nbcontainer.model import RunOptions


def kind(name: str, *, script: bool = False) -> Kind:
    """A kind of container of this image."""
    return (name, "1-2", RunOptions(), script)


def test_promise_is_kept_once() -> None:
    """Who comes first gets the promised id; who comes next gets none."""
    successors = Successors()
    assert successors.take(kind("a")) is None
    promised, forgotten = successors.promise(kind("a"))
    assert forgotten == ()
    assert successors.promise(kind("a")) == (promised, ()), "one promise for each kind at a time"
    assert successors.take(kind("a", script=True)) is None
    assert successors.take(kind("a")) == promised
    assert successors.take(kind("a")) is None


def test_oldest_promises_are_forgotten() -> None:
    """Of many kinds only the last eight are remembered, and it is told which ids nobody will take any more."""
    successors = Successors()
    first, _ = successors.promise(kind("0"))
    second, _ = successors.promise(kind("1"))
    successors.promise(kind("0"))
    told = [successors.promise(kind(str(number)))[1] for number in range(2, 9)]
    assert told == [()] * 6 + [(second,)]
    assert successors.take(kind("0")) == first
    assert successors.take(kind("1")) is None


def test_ids_are_ids() -> None:
    """64 hex digits, never the same."""
    made = {new_container_id() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 64 and int(each, 16) >= 0 for each in made)
