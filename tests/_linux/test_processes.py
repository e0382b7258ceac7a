"""Processes: what a child begins its life with."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from nbcontainer._linux.processes import on_signals


def ignored() -> set[int]:
    """The signals that this process ignores, as the kernel has it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("SigIgn:"):
            mask = int(line.split()[1], 16)
            return {number for number in range(1, 32) if mask >> (number - 1) & 1}
    return set()


def test_on_signals() -> None:
    """What the interpreter ignores is what it is by default, and only that."""
    before = ignored()
    assert signal.SIGPIPE in before
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        on_signals(signal.SIGPIPE, signal.SIGXFSZ)
        os._exit(0 if ignored() == (before | {signal.SIGHUP}) - {signal.SIGPIPE, signal.SIGXFSZ} else 1)
    assert os.waitpid(child, 0)[1] == 0
