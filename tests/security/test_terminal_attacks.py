"""A container with a terminal, hostile: it has its own, cannot reach the person's, and cannot make ours grow."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import time
from typing import TYPE_CHECKING

import pytest

from nbcontainer.runtime.connection import Connection
from nbcontainer.runtime.protocol import Accepted, Exited, Started, encode, send
from nbcontainer.runtime.supervisor import supervise
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.test_terminals import at_terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Tier

INJECT = r"""
import errno, fcntl, os, struct
print("devices", sorted(os.listdir("/dev/pts")))
print("held", sorted({os.readlink(f"/proc/self/fd/{fd}") for fd in range(200) if os.path.lexists(f"/proc/self/fd/{fd}")}))
others = []
for fd in (*range(0, 200), *([os.open("/dev/tty", os.O_RDWR)] if os.isatty(0) else [])):
    for letter in b"touch /tmp/injected\n":
        try:
            fcntl.ioctl(fd, 0x5412, bytes([letter]))
        except OSError as problem:
            others.append(problem.errno)
            break
for name in ("/dev/tty1", "/dev/ttyS0", "/dev/console", "/dev/vcs", "/dev/pts/1"):
    try:
        os.close(os.open(name, os.O_RDWR | os.O_NOCTTY))
        print("opened", name)
    except OSError as problem:
        pass
"""


@pytest.mark.parametrize("options", ["-it", "-i", "-t"])
def test_nothing_reaches_the_terminal_of_the_person(tier: Tier, options: str) -> None:
    """Whatever it was given, no descriptor, name or ioctl leads to what the person sits at (TIOCSTI)."""
    with at_terminal(tier, "run", options, tier.image, PYTHON, "-c", INJECT) as screen:
        assert screen.code() == 0, screen.shown
        assert screen.waiting == 0
        assert screen.is_as_before
        has_one = "t" in options
        assert b"devices ['0', 'ptmx']" in screen.shown if has_one else b"devices ['ptmx']" in screen.shown
        assert screen.shown.count(b"opened") == has_one, screen.shown
        held = screen.shown.partition(b"held ")[2].splitlines()[0]
        leads = [word for word in held.decode().split("'") if word.startswith("/") and "python" not in word]
        assert set(leads) <= ({"/dev/pts/0"} if has_one else {"/dev/null"}), held


@OWN_TIER
def test_flood_is_held_by_nobody(tier: Tier) -> None:
    """What a terminal shows without end is let go of beyond the limit, and does not put off the end that was asked for."""
    began = time.monotonic()
    result = tier.run("sh", "-c", "cat /dev/zero", terminal=True, timeout=1)
    assert result.reason == "timeout"
    assert time.monotonic() - began < patient(20)
    assert 1 << 20 < len(result.stdout_bytes) <= 64 << 20


@pytest.fixture
def channel() -> Iterator[tuple[Connection, socket.socket]]:
    """Lend a connection, and the end of it at which a container could say what it likes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection = Connection(ours)
    yield connection, theirs
    connection.close()
    theirs.close()


@pytest.mark.parametrize("kind", ["nothing", "slave", "pipe", "file", "null", "two masters"])
def test_what_is_no_master_is_refused(channel: tuple[Connection, socket.socket], kind: str) -> None:
    """A descriptor that is something else is closed, not read or written, and the run fails with a sentence."""
    connection, theirs = channel
    master, slave = os.openpty()
    reader, writer = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    file = os.memfd_create("file")
    sent = {"slave": [slave], "pipe": [reader], "file": [file], "null": [null], "two masters": [master, master]}
    socket.send_fds(theirs, [encode(Started())], sent.get(kind, []))
    send(theirs, Exited(0))
    before = len(os.listdir("/proc/self/fd"))
    try:
        outcome = supervise(connection, terminal=True, sink=lambda *_: pytest.fail("nothing to show"))
    finally:
        for fd in (master, slave, reader, writer, null, file):
            os.close(fd)
    assert outcome.failure is not None
    assert "none; refused" in outcome.failure.message
    assert connection.terminal == -1
    assert before - len(os.listdir("/proc/self/fd")) == 6


def test_second_master_is_not_taken(channel: tuple[Connection, socket.socket]) -> None:
    """Nor one that comes with another message."""
    connection, theirs = channel
    first, first_slave = os.openpty()
    second, second_slave = os.openpty()
    try:
        socket.send_fds(theirs, [encode(Accepted(1))], [second, second])
        socket.send_fds(theirs, [encode(Started())], [first])
        socket.send_fds(theirs, [encode(Started())], [second])
        for _ in range(3):
            connection.receive_any()
        assert os.ttyname(first_slave) == f"/dev/pts/{_number(connection.terminal)}"
        assert connection.pidfd == -1
    finally:
        for fd in (first, first_slave, second, second_slave):
            os.close(fd)


def _number(master: int) -> int:
    number = array.array("I", [0])
    fcntl.ioctl(master, 0x80045430, number)
    return number[0]
