"""Ids promised to the next container of a kind: one each, taken once, the oldest forgotten."""

from __future__ import annotations

import contextlib
import threading
import time

from nbcontainer.engine.successors import Kind, Successors, new_container_id
from nbcontainer.model import ContainerId, RunOptions


def kind(name: str, *, script: bool = False) -> Kind:
    """A kind of container of this image."""
    return (name, "1-2", RunOptions(), script)


def promise(successors: Successors, wanted: Kind) -> tuple[ContainerId, tuple[ContainerId, ...]]:
    """Make a promise that nobody hinders."""
    with successors.promising(wanted) as made:
        return made


def test_promise_is_kept_once() -> None:
    """Who comes first gets the promised id; who comes next gets none."""
    successors = Successors()
    assert successors.take(kind("a")) is None
    promised, forgotten = promise(successors, kind("a"))
    assert forgotten == ()
    assert promise(successors, kind("a")) == (promised, ()), "one promise for each kind at a time"
    assert successors.take(kind("a", script=True)) is None
    assert successors.take(kind("a")) == promised
    assert successors.take(kind("a")) is None


def test_not_taken_before_it_is_announced() -> None:
    """While the launcher is being told of an id, nobody gets it, the second time neither; an interrupt loses none."""
    successors = Successors()
    with contextlib.suppress(KeyboardInterrupt), successors.promising(kind("a")) as (promised, _):
        assert successors.take(kind("a")) is None
        raise KeyboardInterrupt
    with successors.promising(kind("a")) as (again, _):
        assert again == promised
        assert successors.take(kind("a")) is None
    assert successors.take(kind("a")) == promised


def test_announced_one_after_the_other() -> None:
    """Threads that announce the same kind at once announce one id, which is then promised to one of them."""
    successors = Successors()
    announced: list[ContainerId] = []
    together = threading.Barrier(8)

    def announce() -> None:
        together.wait()
        with successors.promising(kind("a")) as (container, _):
            time.sleep(0.001)
            announced.append(container)

    threads = [threading.Thread(target=announce) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(announced) == 8
    assert {successors.take(kind("a"))} == set(announced)
    assert successors.take(kind("a")) is None


def test_oldest_promises_are_forgotten() -> None:
    """Of many kinds only the last eight are remembered, and it is told which ids nobody will take any more."""
    successors = Successors()
    first, _ = promise(successors, kind("0"))
    second, _ = promise(successors, kind("1"))
    promise(successors, kind("0"))
    told = [promise(successors, kind(str(number)))[1] for number in range(2, 9)]
    assert told == [()] * 6 + [(second,)]
    assert successors.take(kind("0")) == first
    assert successors.take(kind("1")) is None


def test_ids_are_ids() -> None:
    """64 hex digits, never the same."""
    made = {new_container_id() for _ in range(100)}
    assert len(made) == 100
    assert all(len(each) == 64 and int(each, 16) >= 0 for each in made)
