"""What is said to the monitor of a container that runs on behind, and its answers: one message each way.

The monitor listens on a Unix SEQPACKET socket in the container's folder. A message is a JSON object with a `do`; the
answer is one with `ok`, or `error` and a sentence, and may bring descriptors. Both sides look who the other one is
(SO_PEERCRED, unix(7)): the folder is container root's, so a name in it proves nothing.

Known are ``halt`` (do not start it again) and ``attach`` (answers whether standard input is open, and brings its
writing end). What is added later is an entry in the table that the monitor gives to `serve`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any

from nbcontainer.errors import Conflict

__all__ = ["Answer", "Handler", "NoMonitor", "ask", "listen", "serve"]

_NAME = "control"
_MOST = 64 * 1024
_MOST_FDS = 4
_PATIENCE = 5.0

Answer = tuple[dict[str, Any], tuple[int, ...]]
"""What is answered, and descriptors that go with it (they stay whose they are)."""
Handler = Callable[[dict[str, Any]], Answer]


class NoMonitor(Conflict):
    """Nobody answers for the container: its monitor has gone, or is just going."""


def _place(directory: int) -> str:
    """A name of the socket that is short enough for an address, wherever the store is."""
    return f"/proc/self/fd/{directory}/{_NAME}"


def _folder(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _is_ours(channel: socket.socket) -> bool:
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(uid == os.geteuid())


# The monitor's side


def listen(directory: str) -> socket.socket:
    """Listen in a container's folder; what a killed monitor left there is taken away."""
    folder = _folder(directory)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_NAME, dir_fd=folder)
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            channel.bind(_place(folder))
            os.chmod(_place(folder), 0o600)
            channel.listen()
        except BaseException:
            channel.close()
            raise
        return channel
    finally:
        os.close(folder)


def serve(listener: socket.socket, handlers: Mapping[str, Handler]) -> None:
    """Answer until the listener is shut down; nobody can hold it up for longer than a moment."""
    while True:
        try:
            channel, _ = listener.accept()
        except OSError:
            return
        with channel, contextlib.suppress(OSError, ValueError, RecursionError):
            channel.settimeout(_PATIENCE)
            if _is_ours(channel):
                _answer(channel, handlers)


def _answer(channel: socket.socket, handlers: Mapping[str, Handler]) -> None:
    message = json.loads(channel.recv(_MOST) or b"null")
    asked = message.get("do") if isinstance(message, dict) else None
    handler = handlers.get(asked) if isinstance(asked, str) else None
    if handler is None:
        answer: dict[str, Any] = {"error": "this container was started by an older nbcontainer, which cannot do that"}
        fds: tuple[int, ...] = ()
    else:
        answer, fds = handler(message)
    socket.send_fds(channel, [json.dumps(answer).encode()], list(fds))


# Everybody else's side


def ask(directory: str, do: str, **further: Any) -> Answer:
    """Ask the monitor of the container in this folder; descriptors of the answer are the caller's to close.

    Raises `NoMonitor` when nobody answers, `Conflict` with its sentence when it cannot do it.
    """
    try:
        answer, fds = _asked(directory, {"do": do, **further})
    except (OSError, ValueError, RecursionError) as problem:
        raise NoMonitor(f"the monitor of container {os.path.basename(directory)[:12]} does not answer") from problem
    if "error" in answer:
        for fd in fds:
            os.close(fd)
        raise Conflict(str(answer["error"]))
    return answer, fds


def _asked(directory: str, message: dict[str, Any]) -> Answer:
    folder = _folder(directory)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.settimeout(_PATIENCE)
            channel.connect(_place(folder))
            if not _is_ours(channel):
                raise PermissionError("somebody else listens there")
            channel.send(json.dumps(message).encode())
            data, fds, _, _ = socket.recv_fds(channel, _MOST, _MOST_FDS)
    finally:
        os.close(folder)
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's own signature
    answer = json.loads(data or b"null")
    if not isinstance(answer, dict):
        for fd in fds:
            os.close(fd)
        raise ValueError("not an answer")  # noqa: TRY004 - what was read is text
    return answer, tuple(fds)
