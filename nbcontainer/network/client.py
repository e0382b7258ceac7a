"""The engine's end of a keeper: find the one that runs, or start one, and ask it.

Nothing is started before a container needs a network. Who connects holds a lock meanwhile, and a keeper leaves
only while it has that lock, so that nobody is left talking to one on its way out.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from nbcontainer import errors
from nbcontainer.errors import UnsupportedHost
from nbcontainer.network import messages
from nbcontainer.network.places import FOLDER, SOCKET, START, Options, at
from nbcontainer.network.plan import store_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["KeeperClient"]

_START_TIMEOUT = 30.0
_ANSWER_TIMEOUT = 60.0
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")


class KeeperClient:
    """One engine's connection to the keeper of its store; safe to use from several threads.

    `user_namespace` opens the one in which the user's containers live, or gives -1 as root; `holds` is told of a
    process that lives in it with the keeper. `started` is called when a keeper had to be started, before the first
    question: containers that run may have had another one.
    """

    def __init__(
        self,
        root: str,
        *,
        user_namespace: Callable[[], int],
        holds: Callable[[int], None] = lambda _: None,
        started: Callable[[], None] = lambda: None,
        idle: float = 20.0,
    ) -> None:
        self._root = root
        self._folder = os.path.join(root, FOLDER)
        self._user_namespace = user_namespace
        self._holds = holds
        self._started = started
        self._idle = idle
        self._lock = threading.RLock()
        self._channel: socket.socket | None = None

    def ask(self, message: messages.Message, fds: Sequence[int] = ()) -> messages.Message:
        """Ask and wait for the answer; raise what it refuses with. Starts a keeper where there is none."""
        with self._lock:
            for _ in range(2):
                channel = self._connected()
                try:
                    messages.send(channel, message, tuple(fds))
                    received = messages.receive(channel)
                except TimeoutError as problem:
                    self._hang_up()
                    raise UnsupportedHost(
                        f"the network keeper of {self._root} does not answer; end it (its pid is in"
                        f" {self._folder}/keeper.lock) and try again"
                    ) from problem
                except OSError:
                    received = None
                except messages.MessageError as problem:
                    self._hang_up()
                    raise UnsupportedHost(f"the network keeper is of another version: {problem}") from problem
                except BaseException:  # an interrupt: the answer to this question must not be taken for the next one's
                    self._hang_up()
                    raise
                if received is not None:
                    return self._accepted(*received)
                self._hang_up()  # it was killed
            raise UnsupportedHost("the network keeper ends as soon as it is asked; see `%container doctor`")

    def _accepted(self, answer: messages.Message, fds: list[int]) -> messages.Message:
        for fd in fds:
            os.close(fd)
        if isinstance(answer, messages.Refused):
            raise errors.class_named(answer.error)(answer.message)
        return answer

    def ask_if_there(self, message: messages.Message) -> messages.Message | None:
        """Ask the keeper that runs; None when there is none."""
        with self._lock:
            if self._channel is None and not self._find():
                return None
            return self.ask(message)

    def close(self) -> None:
        """Let go of the keeper; safe twice."""
        with self._lock:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    # --- finding and starting ---------------------------------------------------------------------------------------

    def _find(self) -> bool:
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            with self._starting(folder):
                self._channel = _connect(folder)
        finally:
            os.close(folder)
        return self._channel is not None

    def _connected(self) -> socket.socket:
        if self._channel is not None:
            return self._channel
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        new = False
        try:
            with self._starting(folder):
                self._channel = _connect(folder)
                if self._channel is None:
                    self._start()
                    new = True
                    self._channel = _connect(folder)
        finally:
            os.close(folder)
        if self._channel is None:
            raise UnsupportedHost("the network keeper started and cannot be reached; see `%container doctor`")
        if new:
            self._started()
        assert self._channel is not None
        return self._channel

    @contextlib.contextmanager
    def _starting(self, folder: int) -> Iterator[None]:
        fd = os.open(START, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _start(self) -> None:
        namespace = self._user_namespace()
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        try:
            options = Options(
                folder=self._folder,
                key=store_key(os.path.realpath(self._root), os.geteuid()),
                ready=theirs,
                userns=namespace,
                idle=self._idle,
            )
            kept = [theirs, *([namespace] if namespace >= 0 else [])]
            program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "keeper.py")
            subprocess.run(
                [sys.executable, "-I", program, options.text()],
                pass_fds=kept,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                timeout=_START_TIMEOUT,
                check=False,
            )
            os.close(theirs)
            theirs = -1
            below = self._hear(ours)
            if below:
                self._holds(below)
        except subprocess.SubprocessError as problem:
            raise UnsupportedHost(f"the network keeper cannot be started: {problem}") from problem
        finally:
            for fd in (ours, theirs, namespace):
                if fd >= 0:
                    os.close(fd)

    @staticmethod
    def _hear(ready: int) -> int:
        """Wait for the keeper's first word; its process below, if any. Raise what it could not do."""
        said = b""
        while piece := os.read(ready, 65536):
            said += piece
        try:
            words = json.loads(said)
        except ValueError as problem:
            raise UnsupportedHost("the network keeper died while it started; see `%container doctor`") from problem
        if "error" in words:
            raise errors.class_named(str(words["error"]), UnsupportedHost)(str(words.get("message")))
        return int(words["below"])


def _connect(folder: int) -> socket.socket | None:
    """A connection to the keeper that listens in this folder, or None where none does."""
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        channel.connect(at(folder, SOCKET))
    except (FileNotFoundError, ConnectionRefusedError):
        channel.close()
        return None
    except BaseException:
        channel.close()
        raise
    channel.settimeout(_ANSWER_TIMEOUT)
    return channel
