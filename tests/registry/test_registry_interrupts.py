"""The one-way switch."""

from __future__ import annotations

import threading
import time

import pytest

from nbcontainer.registry import Interrupt, TransferCancelled


def test_sleep_ends_on_trip():
    """A back-off does not outlast the wish to stop."""
    interrupt = Interrupt("the pull")
    threading.Timer(0.05, interrupt.trip).start()
    start = time.monotonic()
    with pytest.raises(TransferCancelled, match="the pull was cancelled"):
        interrupt.sleep(30)
    assert time.monotonic() - start < 5


def test_child_follows_parent_only():
    """A parent ends its children, a child only itself; a released child is left alone."""
    parent = Interrupt("parent")
    child, sibling, released = (Interrupt(name, parent) for name in ("child", "sibling", "released"))
    released.release()
    child.trip()
    assert not parent.tripped
    parent.trip()
    assert sibling.tripped
    assert not released.tripped


def test_late_watcher_is_called_at_once():
    """Whoever begins to wait after the trip is not forgotten; who took the callback back is not called."""
    interrupt, called = Interrupt("x"), []
    interrupt.watch(lambda: called.append("early"))
    interrupt.watch(lambda: called.append("taken back"))()
    interrupt.trip()
    interrupt.trip()
    interrupt.watch(lambda: called.append("late"))
    assert called == ["early", "late"]
