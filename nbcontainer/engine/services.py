"""Containers that run on behind, from outside: start their monitors, follow their logs, attach to them.

Whoever asks for one places it (as for a run that is waited for), hands the locked record over to a new monitor
(`nbcontainer.engine.monitor`) and waits until that says that the command is being executed, or why it is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, get_args

from nbcontainer._linux.terminals import is_master, set_window_size
from nbcontainer.engine import control
from nbcontainer.engine.logs import LogFollower, last_lines, within
from nbcontainer.engine.monitor.process import Handover
from nbcontainer.errors import Conflict, InvalidOption, NbcontainerError, UnsupportedHost
from nbcontainer.model import ExitReason, RunResult
from nbcontainer.runtime.inputs import FileSource, Source
from nbcontainer.runtime.launcher import child_environment, error_from
from nbcontainer.runtime.protocol import Failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

    from nbcontainer.engine.attending import OutputSink
    from nbcontainer.engine.lifecycle import Lifecycle
    from nbcontainer.engine.records import ContainerRecords, Record, Stored
    from nbcontainer.engine.settings import Settings
    from nbcontainer.engine.views import LogLine

__all__ = ["attach", "begin", "follow"]

_COMPLAINTS = "monitor.err"
_KEPT_VARIABLES = ("HOME", "JUPYTER_RUNTIME_DIR")
"""What the `host` image is made of depends on: where the person's secrets are."""
_CHUNK = 1 << 16
_ECHO = 0.005
_ECHOES = 20


def begin(settings: Settings, record: Record, *, fresh: bool) -> None:
    """Start the monitor of a placed container and wait until its command runs; raise what a run would raise.

    The record is the monitor's when it has been told; until then it stays the caller's to close. A `fresh` container,
    one that has not been before, is thrown away when it cannot be started and has no name, or when the wait is
    interrupted.
    """
    identity = os.path.basename(record.directory)
    handover = Handover(
        root=settings.root,
        container=identity,
        grace=settings.interrupt_grace,
        fresh=fresh,
        path=tuple(os.path.abspath(each) for each in sys.path if each),
    )
    complaints = os.path.join(record.directory, _COMPLAINTS)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs, open(complaints, "ab", opener=_private) as file:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", _program(), str(theirs.fileno()), identity],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        process.wait()  # it forks and is nobody's child
        _hand_over(record, ours, handover)
        answer = _answer(ours)
    if answer is None:
        raise UnsupportedHost(f"container {identity[:12]} was not started: its monitor ended early{_said(complaints)}")
    if "error" in answer:
        failure = Failed(str(answer["error"]), str(answer.get("message", "")), int(answer.get("exit_code", 125)))
        raise error_from(failure)


def _hand_over(record: Record, channel: socket.socket, handover: Handover) -> None:
    with contextlib.suppress(OSError):  # it has ended already, which is told by its silence
        record.hand_over(lambda lock: socket.send_fds(channel, [handover.encode()], [lock]))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _environment() -> dict[str, str]:
    return {**child_environment(), **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}}


def _answer(channel: socket.socket) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        answer = json.loads(channel.recv(_CHUNK) or b"null")
        if isinstance(answer, dict):
            return answer
    return None


def _said(path: str) -> str:
    """The last line of what a monitor complained of, in brackets."""
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read()[-4000:].strip().splitlines()
        return f" ({lines[-1]})" if lines else ""
    return ""


def _program() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "monitor", "__main__.py")


# Following


def follow(
    records: ContainerRecords,
    stored: Stored,
    *,
    tail: int | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[LogLine]:
    """The last `tail` lines of a container's log, and what it writes from now on, until it has ended."""
    with contextlib.closing(LogFollower(stored.directory, since)) as follower, records.watching(stored) as look:
        yield from last_lines(within(follower.read(), since, until), tail)

        def is_over() -> bool:
            return not look().locked or (until is not None and time.time() > until)

        yield from within(follower.follow(is_over), since, until)


def attach(
    records: ContainerRecords,
    lifecycle: Lifecycle,
    stored: Stored,
    *,
    begin: Callable[[], object] | None,
    stdin: BinaryIO | Source | None,
    output: OutputSink,
    pass_signals: bool,
) -> RunResult:
    """Show what a running container writes, and write to it what can be read from `stdin`, until this life ends.

    What is shown begins now, or with the life that `begin` starts.

    With `pass_signals` Ctrl-C goes to the container as SIGINT; else it is raised, and the container goes on.
    """
    name = str(stored.fields.get("name") or stored.id[:12])
    if begin is None and (not stored.locked or stored.ending):
        raise Conflict(f"container {name} is not running; `%container start -a {name}` starts it and attaches")
    if stored.locked and not stored.service:
        raise Conflict(f"container {name} runs in a notebook's cell or a terminal, and its output goes there")
    began = time.monotonic()
    with contextlib.ExitStack() as undo:
        follower = undo.enter_context(contextlib.closing(LogFollower(stored.directory)))
        look = undo.enter_context(records.watching(stored))
        follower.skip()
        if begin is not None:
            begin()
        rest: Callable[[float], None] = time.sleep
        way_in = None if stdin is None else _way_in(stored.directory, look)
        if stdin is not None and way_in is not None:
            answer, fds = way_in
            for fd in fds:
                undo.callback(os.close, fd)
            source = stdin if isinstance(stdin, Source) else FileSource(stdin.fileno())
            terminal = bool(answer.get("terminal"))
            if terminal and source.fileno() >= 0 and not isinstance(stdin, Source):
                raise InvalidOption(
                    f"container {name} has a terminal, and the input here is none to type on it; attach --no-stdin"
                    " shows what it writes"
                )
            if fds:
                undo.callback(source.end)
                _begin(source, fds[0], terminal=terminal)
                rest = _Typing(source, fds[0]).rest
        life = look().fields.get("started")

        def is_over() -> bool:
            now = look()
            return not now.locked or now.fields.get("finished") is not None or now.fields.get("started") != life

        while True:
            try:
                for piece in follower.follow(is_over, rest):
                    output(piece.stream, piece.data)
                break
            except KeyboardInterrupt:
                if not pass_signals:
                    raise
                with contextlib.suppress(NbcontainerError):
                    lifecycle.kill(stored.id, signal.SIGINT)
        last = look()
    summary = last.summary()
    return RunResult(
        id=stored.id,
        image=summary.image,
        argv=summary.command,
        exit_code=125 if summary.exit_code is None else summary.exit_code,
        reason=_reason(summary.reason) if summary.exit_code is not None else "lost",
        duration=time.monotonic() - began,
        detail="" if summary.reason in get_args(ExitReason) else summary.reason,
    )


def _way_in(directory: str, look: Callable[[], Stored]) -> control.Answer | None:
    """What its monitor gives for its input; None when it is over, perhaps since a moment, and nobody reads."""
    try:
        return control.ask(directory, "attach")
    except control.NoMonitor:
        now = look()
        if now.locked and not now.ending:
            raise
        return None


def _reason(text: str) -> ExitReason:
    """A record's reason as a result has it: its own words are the detail of one that was ended."""
    return text if text in get_args(ExitReason) else "stopped" if text else "exited"  # type: ignore[return-value]


def _begin(source: Source, target: int, *, terminal: bool) -> None:
    """Let the input begin; what is shown in a terminal is drawn anew by its program when the size changes."""
    if terminal and (not is_master(target) or os.get_blocking(target)):
        raise Conflict("what its monitor gave for the container's terminal is none; refused")
    size = source.window() if terminal else None
    if size is not None:
        set_window_size(target, size[0] + 1, size[1] + 1)
    source.begin(target if terminal else -1)


class _Typing:
    """Passes on what is typed while there is nothing to show."""

    def __init__(self, source: Source, target: int) -> None:
        self._source = source
        self._target = target
        self._poll = select.poll()
        self._room = select.poll()
        self._room.register(target, select.POLLOUT)
        self._echoes = 0
        self._over = source.fileno() < 0
        if not self._over:
            self._poll.register(source.fileno(), select.POLLIN)

    def rest(self, seconds: float) -> None:
        """Wait, for as long or until something was typed; for moments only after that, as an answer is likely."""
        if self._echoes:
            self._echoes -= 1
            seconds = min(seconds, _ECHO)
        if self._over:
            time.sleep(seconds)
        elif self._poll.poll(seconds * 1000):
            data = self._source.read()
            if data is not None:
                self._over = not data or not self._write(data)
                self._echoes = _ECHOES

    def _write(self, data: bytes) -> bool:
        """Write all of it; False when nobody reads any more."""
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._target, left) :]
            except BlockingIOError:
                self._room.poll()
            except OSError:
                return False
        return True
