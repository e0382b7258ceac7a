"""The person's terminal while a command has it: keys on their way, settings that come back, signals that are lent."""

from __future__ import annotations

import os
import signal
import termios
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux import consoles, terminals
from nbcontainer.errors import InvalidOption
from nbcontainer.runtime.console import DETACH_KEYS, Console, DetachKeys, read_detach_keys, say_to

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """Lend both ends of a terminal: the person's hands and eyes, and what they sit at."""
    person, seat = os.openpty()
    yield person, seat
    for fd in (person, seat):
        os.close(fd)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("CTRL-A", b"\x01"),
        ("a,b,c", b"abc"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\x00\x1b\x1c\x1d\x1e\x1f"),
    ],
)
def test_keys_are_written_as_docker_does(text: str, keys: bytes) -> None:
    """Characters and ctrl- with a letter, separated by commas."""
    assert read_detach_keys(text) == keys


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-1", "ab", "a,,b", "ü", "\x10"])
def test_other_keys_are_refused(text: str) -> None:
    """The message has what was typed and an example."""
    with pytest.raises(InvalidOption, match="ctrl-p,ctrl-q"):
        read_detach_keys(text)


@pytest.mark.parametrize(
    ("pieces", "passed", "found"),
    [
        ([b"hello"], b"hello", False),
        ([b"\x10\x11"], b"", True),
        ([b"\x10", b"\x11"], b"", True),
        ([b"a\x10\x11b"], b"a", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10", b"\x10", b"\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
        ([b"a" * 100_000 + b"\x10", b"\x10\x10"], b"a" * 100_000 + b"\x10\x10", False),
    ],
)
def test_sequence_is_found_in_pieces(pieces: list[bytes], passed: bytes, found: bool) -> None:
    """However it is cut; what only begins like it goes on once that is known."""
    keys = DetachKeys()
    taken = [keys.take(piece) for piece in pieces]
    assert b"".join(data for data, _ in taken) == passed
    assert any(detached for _, detached in taken) is found


def test_longer_sequence_with_a_beginning_of_itself() -> None:
    """A sequence that starts anew in its own middle is found, too."""
    keys = DetachKeys(b"aab")
    assert keys.take(b"aaab") == (b"a", True)
    assert keys.take(b"aa") == (b"", False)
    assert keys.take(b"aa") == (b"aa", False)
    assert keys.take(b"b") == (b"", True)


def test_terminal_is_raw_in_between(pair: tuple[int, int]) -> None:
    """Keys come as they are typed, and the settings and handlers of before come back, however often it ends."""
    person, seat = pair
    before = termios.tcgetattr(seat)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)]
    inside, slave = os.openpty()
    console = Console(keys=seat, screen=seat)
    try:
        terminals.set_window_size(person, 30, 100)
        assert console.window() == (30, 100)
        console.begin(inside)
        assert consoles.window_size(slave) == (30, 100)
        os.write(person, b"\x03\x04\x1a")
        assert console.read() == b"\x03\x04\x1a"
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
        assert left.value.code == 143
    finally:
        console.end()
        console.end()
        os.close(inside)
        os.close(slave)
    assert termios.tcgetattr(seat) == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)] == handlers


def test_command_without_a_terminal_leaves_it_as_it_is(pair: tuple[int, int]) -> None:
    """Then lines are read from it as from any file, the keys that detach among them."""
    person, seat = pair
    before = termios.tcgetattr(seat)
    console = Console(keys=seat, screen=seat, detach=b"xy", on_detach=lambda: pytest.fail("nothing to leave"))
    console.begin(-1)
    assert termios.tcgetattr(seat) == before
    os.write(person, b"axyb\n")
    assert console.read() == b"axyb\n"
    console.end()


def test_keys_that_detach_are_told(pair: tuple[int, int]) -> None:
    """And go nowhere."""
    person, seat = pair
    told: list[str] = []
    inside, slave = os.openpty()
    console = Console(keys=seat, screen=seat, on_detach=lambda: told.append("leave"))
    try:
        console.begin(inside)
        os.write(person, b"ls" + DETACH_KEYS)
        assert console.read() == b"ls"
        os.write(person, DETACH_KEYS)
        assert console.read() is None
        assert told == ["leave", "leave"]
    finally:
        console.end()
        os.close(inside)
        os.close(slave)


def test_hung_up_terminal_is_the_end() -> None:
    """Its keys are over, which no key of a raw terminal says."""
    person, seat = os.openpty()
    inside, slave = os.openpty()
    console = Console(keys=seat, screen=seat)
    try:
        console.begin(inside)
        os.close(person)
        with pytest.raises(SystemExit):
            console.read()
    finally:
        console.end()
        for fd in (seat, inside, slave):
            os.close(fd)


def test_ignored_signals_stay_ignored(pair: tuple[int, int]) -> None:
    """Whoever was started by nohup ignores SIGHUP."""
    _, seat = pair
    inside, slave = os.openpty()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    console = Console(keys=seat, screen=seat)
    try:
        console.begin(inside)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        console.end()
        signal.signal(signal.SIGHUP, before)
        os.close(inside)
        os.close(slave)


def test_line_between_what_is_shown(pair: tuple[int, int]) -> None:
    """It begins and ends at the margin, also where nothing does that by itself; a closed screen is no matter."""
    person, seat = pair
    consoles.make_raw(seat)
    say_to(seat, "text")
    assert os.read(person, 100) == b"\r\ntext\r\n"
    say_to(-1, "text")
