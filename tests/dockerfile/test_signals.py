"""Signals that STOPSIGNAL may name."""

from __future__ import annotations

import signal

import pytest

from nbcontainer.dockerfile.signals import SIGNALS, is_signal


@pytest.mark.parametrize("text", ["SIGINT", "sigint", "INT", "9", "037", "RTMIN", "SIGRTMIN+15", "rtmax-14"])
def test_signals(text: str) -> None:
    """A name in any case, with SIG or without, or a number."""
    assert is_signal(text)


@pytest.mark.parametrize(
    "text", ["", "0", "00", "SIG", "SIGSIGINT", "SIGFOO", "RTMIN+16", "RTMAX-15", "-9", "9 ", "9" * 20, "\u0663"]
)
def test_no_signals(text: str) -> None:
    """What no kernel has is none."""
    assert not is_signal(text)


def test_as_the_kernel_has_them() -> None:
    """Every signal of this machine is among them."""
    names = {each.name for each in signal.Signals if not each.name.startswith("SIGRT")}
    assert names <= set(SIGNALS)
