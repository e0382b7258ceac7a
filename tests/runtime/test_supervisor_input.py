"""Input of a command while it runs: fed, read from somewhere, or asked for; the other end is a pipe or a terminal."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.runtime.connection import Connection
from nbcontainer.runtime.inputs import Asking, FileSource, Source
from nbcontainer.runtime.protocol import Accepted, Exited, Started, send
from nbcontainer.runtime.reading import is_read
from nbcontainer.runtime.supervisor import supervise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ECHO = "import sys\nfor line in sys.stdin: print('got', line.strip(), flush=True)\nprint('end', flush=True)"


class Command:
    """An ordinary process in the place of a container's command, and whoever reports it."""

    def __init__(self, code: str) -> None:
        self.stdin, self.reader = -1, -1
        reader, self.stdin = os.pipe()
        self.stdout, writer = os.pipe()
        self.process = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=reader, stdout=writer)
        os.close(reader)
        os.close(writer)
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection = Connection(ours)
        self._reporter = threading.Thread(target=self._report)
        self._reporter.start()
        self.output = b""

    def _report(self) -> None:
        pidfd = os.pidfd_open(self.process.pid)
        send(self._theirs, Accepted(self.process.pid), (pidfd,))
        os.close(pidfd)
        send(self._theirs, Started())
        self.process.wait()
        send(self._theirs, Exited(0))

    def supervised(self, **how: Any) -> Any:
        """Attend to it to its end."""
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            return supervise(
                self.connection, stdout=self.stdout, stderr=null, stdin=self.stdin, sink=self._take, timeout=20, **how
            )
        finally:
            os.close(null)

    def _take(self, _: str, data: bytes) -> None:
        self.output += data

    def close(self) -> None:
        """Let go of everything."""
        self.process.kill()
        self._reporter.join()
        self.connection.close()
        self._theirs.close()
        os.close(self.stdout)


@pytest.fixture
def command() -> Iterator[Callable[[str], Command]]:
    """Lend a way to start one."""
    started: list[Command] = []

    def start(code: str) -> Command:
        started.append(Command(code))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_bytes_that_fill_every_buffer(command: Callable[[str], Command]) -> None:
    """Arrive in full, and then there is an end."""
    running = command("import sys; print(len(sys.stdin.buffer.read()), flush=True)")
    assert running.supervised(feed=b"x" * 3_000_000).reason == "exited"
    assert running.output == b"3000000\n"


def test_file_is_read_to_its_end(command: Callable[[str], Command], tmp_path: Path) -> None:
    """However large, and an empty one is an end at once."""
    for size in (0, 1, 1_000_000):
        path = tmp_path / str(size)
        path.write_bytes(b"y" * size)
        running = command("import sys; print(len(sys.stdin.buffer.read()), flush=True)")
        with path.open("rb") as file:
            running.supervised(source=FileSource(file.fileno()))
        assert running.output == b"%d\n" % size


def test_pieces_come_when_they_come(command: Callable[[str], Command]) -> None:
    """Output is not held up by input that is not there yet."""
    reader, writer = os.pipe()
    running = command(ECHO)

    def person() -> None:
        for word in (b"one\n", b"two\n"):
            time.sleep(0.1)
            os.write(writer, word)
        os.close(writer)

    typing = threading.Thread(target=person)
    typing.start()
    outcome = running.supervised(source=FileSource(reader))
    typing.join()
    os.close(reader)
    assert outcome.reason == "exited"
    assert running.output == b"got one\ngot two\nend\n"


def test_command_that_does_not_read(command: Callable[[str], Command]) -> None:
    """Has closed its input, or ends before it comes: no error, and nobody waits for anything."""
    endless = os.open("/dev/zero", os.O_RDONLY)
    running = command("import os, time; os.close(0); time.sleep(0.3); print('over', flush=True)")
    assert running.supervised(source=FileSource(endless)).reason == "exited"
    os.close(endless)
    assert running.output == b"over\n"


def test_somebody_is_asked_when_it_reads(command: Callable[[str], Command]) -> None:
    """Once for each line that it waits for, never while it works, and an empty answer is the end."""
    answers = [b"one\n", b"two\n", b""]
    running = command("import time; time.sleep(0.5)\n" + ECHO)
    asked: list[float] = []

    def ask() -> bytes:
        asked.append(time.monotonic())
        return answers.pop(0)

    began = time.monotonic()
    assert running.supervised(asking=Asking(ask=ask)).reason == "exited"
    assert running.output == b"got one\ngot two\nend\n"
    assert len(asked) == 3
    assert asked[0] - began >= 0.5


def test_interrupted_question_is_not_asked_again(command: Callable[[str], Command]) -> None:
    """It is the interrupt of the command, whatever that reads on its way out."""
    running = command(
        "import sys, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile sys.stdin.readline(): pass"
    )
    asked: list[int] = []

    def ask() -> bytes:
        asked.append(1)
        raise KeyboardInterrupt

    outcome = running.supervised(asking=Asking(ask=ask), grace=0.3)
    assert outcome.reason == "interrupted"
    assert asked == [1]


def test_what_is_reading_and_what_is_not() -> None:
    """A process in read(2) on this very pipe, or a child of it; not one that sleeps, nor while something is there."""
    reader, writer = os.pipe()
    other, elsewhere = os.pipe()
    shell = subprocess.Popen(["/bin/sh", "-c", "sleep 0.5; cat; exec sleep 100"], stdin=reader)
    try:
        assert not is_read(shell.pid, writer), "it sleeps"
        deadline = time.monotonic() + 20
        while not is_read(shell.pid, writer):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not is_read(shell.pid, elsewhere)
        shell.send_signal(signal.SIGSTOP)
        os.write(writer, b"x")
        assert not is_read(shell.pid, writer), "there is something"
    finally:
        shell.send_signal(signal.SIGCONT)
        for fd in (reader, writer, other, elsewhere):
            os.close(fd)
        shell.kill()
        shell.wait()
    reader, writer = os.pipe()
    assert not is_read(shell.pid, writer), "nobody is there"
    os.close(reader)
    os.close(writer)


def test_seam() -> None:
    """A file is a source, somebody to ask is none."""
    assert isinstance(FileSource(0), Source)
    assert not isinstance(Asking(ask=bytes), Source)
    assert not isinstance(sys.stdin, Source)
