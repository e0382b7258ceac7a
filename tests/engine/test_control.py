"""What is said to a monitor: one message, one answer, descriptors with it, and nobody else's ears."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.engine import control
from nbcontainer.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[str]:
    """Lend a folder, far below the longest address of a socket, in which somebody answers."""
    folder = tmp_path / ("x" * 100) / ("y" * 100)
    folder.mkdir(parents=True)
    reader, writer = os.pipe()
    handlers: dict[str, control.Handler] = {
        "echo": lambda message: ({"ok": True, "said": message.get("what")}, ()),
        "lend": lambda _: ({"ok": True}, (writer,)),
        "refuse": lambda _: ({"error": "not today"}, (writer,)),
    }
    listener = control.listen(str(folder))
    thread = threading.Thread(target=control.serve, args=(listener, handlers))
    thread.start()
    yield str(folder)
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    listener.close()
    assert not thread.is_alive()
    for fd in (reader, writer):
        os.close(fd)


def test_ask_and_answer(folder: str) -> None:
    """Words go there and come back; the socket is its owner's."""
    assert control.ask(folder, "echo", what="é") == ({"ok": True, "said": "é"}, ())
    assert os.stat(os.path.join(folder, "control")).st_mode & 0o777 == 0o600


def test_descriptors_are_lent(folder: str) -> None:
    """They come along, and are not inherited by others."""
    _, (fd,) = control.ask(folder, "lend")
    assert not os.get_inheritable(fd)
    os.write(fd, b"x")
    os.close(fd)


@pytest.mark.parametrize(("what", "words"), [("refuse", "not today"), ("dance", "older nbcontainer")])
def test_what_cannot_be_done(folder: str, what: str, words: str) -> None:
    """The monitor's own sentence; descriptors that came with it are closed."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Conflict, match=words):
        control.ask(folder, what)
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/fd")) > before:  # the one who answers is a thread of ours, and lets go in a moment
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("sent", [b"", b"x", b"[]", b"\xff", b'{"do": []}', b'{"do": "halt"', b"[" * 60000])
def test_nonsense_does_not_end_it(folder: str, sent: bytes) -> None:
    """Whoever talks nonsense, or leaves at once, gets an error or nothing; the next one is answered."""
    place = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel, contextlib.suppress(OSError):
        channel.connect(f"/proc/self/fd/{place}/control")
        channel.send(sent)
    os.close(place)
    assert control.ask(folder, "echo")[0]["ok"]


def test_nobody_answers(tmp_path: Path) -> None:
    """No socket, one that a killed monitor left, or one that says nothing sensible."""
    with pytest.raises(control.NoMonitor, match="does not answer"):
        control.ask(str(tmp_path), "echo")
    control.listen(str(tmp_path)).close()
    with pytest.raises(control.NoMonitor):
        control.ask(str(tmp_path), "echo")
    listener = control.listen(str(tmp_path))  # over what was left
    handlers: Any = {"list": lambda _: ([], ())}
    thread = threading.Thread(target=control.serve, args=(listener, handlers))
    thread.start()
    with pytest.raises(control.NoMonitor):
        control.ask(str(tmp_path), "list")
    listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    listener.close()


def test_a_stranger_is_not_answered(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither side talks to another user."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(control.NoMonitor):
        control.ask(folder, "echo")
