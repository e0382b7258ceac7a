"""The monitor's life: start the container, answer, start it again as its policy has it, say in its record how it ended.

It begins with a message of whoever asked for the container: where the store is, which container, and the locked
descriptor of its record. The lock is the monitor's from then on, so that everybody sees that somebody answers for the
container, also in the pauses between two lives. It tells whether the first life began; who asked shows that, and may
be gone the next moment.

The main thread carries the container out. A second answers on the control socket (`nbcontainer.engine.control`), a
third runs health checks, where there are any. A monitor that is killed takes its container along: its launcher hears
the end of file, as it would hear that of a notebook.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from types import FrameType
    from typing import BinaryIO

    from nbcontainer.engine.control import Answer
    from nbcontainer.engine.monitor.checks import Checks
    from nbcontainer.engine.monitor.terminal import HeldTerminal
    from nbcontainer.engine.records import Stored
    from nbcontainer.engine.restarting import Attempts
    from nbcontainer.engine.session import Session
    from nbcontainer.model import RunResult
    from nbcontainer.runtime.driver import NativeRuntime

__all__ = ["Handover", "main"]

_MOST = 1 << 20
_EXECUTING = 2.0
_TOLD = "stopped: its monitor was told to end (SIGTERM), as when the machine goes down"
_REMOVE = "nbcontainer.layers.remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """What a monitor is told at first: see `nbcontainer.engine.services`. `path` is where modules are looked for.

    A `fresh` container is one that has not been before.
    """

    root: str
    container: str
    grace: float
    fresh: bool
    path: tuple[str, ...]

    def encode(self) -> bytes:
        """As it travels."""
        return json.dumps({each.name: getattr(self, each.name) for each in fields(self)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Handover:
        """What was sent by `encode`."""
        sent = json.loads(data)
        return cls(**{**sent, "path": tuple(sent["path"])})


def main(fd: int) -> NoReturn:
    """Serve the container that is handed over at the other end of `fd`, to its end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.chdir("/")
    os.umask(0o022)
    asker = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's own signature
    status = 1
    try:
        data, fds, _, _ = socket.recv_fds(asker, _MOST, 1)
        if fds:
            os.set_inheritable(fds[0], False)  # noqa: FBT003 - likewise
            handover = Handover.decode(data)
            sys.path[:] = [*sys.path, *(each for each in handover.path if each not in sys.path)]
            Monitor(handover, fds[0], asker).serve()
            status = 0
    except BaseException:  # noqa: BLE001 - the file that standard error is gets it, and nobody else hears it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Monitor:
    """One container's."""

    def __init__(self, handover: Handover, lock: int, asker: socket.socket) -> None:
        runtime = _started_runtime(handover.root, hosted=not _has_layers(lock))

        from nbcontainer.engine.session import Session
        from nbcontainer.engine.settings import Settings
        from nbcontainer.model import ContainerId

        self._grace = handover.grace
        self._fresh = handover.fresh
        self._lock = lock
        self._asker: socket.socket | None = asker
        self._answering = threading.Lock()
        self._halted = threading.Event()
        self._told_to_end = False
        self._unwanted = False
        self._failure: Exception | None = None
        settings = Settings(root=handover.root, pool_size=0, pool_idle=0, interrupt_grace=handover.grace)
        self._session: Session = Session(settings, runtime=runtime, sweeping=False)
        self._directory = self._session.records.path(ContainerId(handover.container))
        self._checks: Checks | None = None
        self._began = time.monotonic()
        self._input: BinaryIO | HeldTerminal | None = None
        self._input_writer = -1
        self._held: HeldTerminal | None = None

    def serve(self) -> None:
        """All lives of the container."""
        from nbcontainer.engine import control
        from nbcontainer.engine.saved import has_terminal
        from nbcontainer.engine.service import Service

        signal.signal(signal.SIGTERM, self._end)
        stored = self._stored()
        service = Service.of(stored.fields)
        listener = control.listen(self._directory)
        handlers = {"halt": self._halt, "attach": self._attach, "end": self._end_asked}
        thread = threading.Thread(target=control.serve, args=(listener, handlers), name="control", daemon=True)
        try:
            if has_terminal(stored.fields):
                self._hold_terminal()
            elif service.interactive:
                self._open_input()
            thread.start()
            with contextlib.suppress(KeyboardInterrupt):  # see `_end`
                self._live_on(service)
            if self._told_to_end and self._stored().fields.get("finished") is None:  # it was just being started
                self._update(finished=time.time(), exit_code=128 + signal.SIGTERM, reason=_TOLD)
        finally:
            self._session.close()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            self._leave(service)
            self._answer_failure()

    def _live_on(self, service: Any) -> None:
        """One life after the other, as long as the policy has it so."""
        from nbcontainer.engine.restarting import Attempts
        from nbcontainer.errors import NbcontainerError

        attempts = Attempts()
        while True:
            self._began = time.monotonic()
            try:
                following = self._live(service, attempts)
            except NbcontainerError as problem:
                self._update(
                    finished=time.time(),
                    exit_code=getattr(problem, "exit_code", 125),
                    reason=str(problem),
                    restarting=None,
                )
                self._failure = problem
                self._unwanted = self._asker is not None and not self._stored().fields.get("name")
                return
            if following is None:
                return
            if self._halted.wait(following.pause):
                self._update(restarting=None)
                return
            attempts = following

    def _live(self, service: Any, attempts: Attempts) -> Attempts | None:
        """One life, and the attempt at another one that follows it; None when this was the last."""
        from nbcontainer.engine.records import Record
        from nbcontainer.engine.restarting import Ended, next_attempt
        from nbcontainer.engine.running import carry_out, place_again

        following: Attempts | None = None

        def decide(result: RunResult) -> dict[str, Any]:
            """Said of the end in the same breath, so that nobody takes a pause between two lives for the end."""
            nonlocal following
            wanted = self._halted.is_set() or _was_wanted(result, self._stored())
            ended = Ended(exit_code=result.exit_code, lived=time.monotonic() - self._began, wanted=wanted)
            following = next_attempt(service.restart, ended, attempts)
            return {} if following is None else {"restarting": True, "restarts": following.count, "pid": None}

        stored = self._stored()
        record = Record(self._directory, os.dup(self._lock), stored.fields)
        try:
            if service.remove:
                record.update(keep=False)
            request, placed = place_again(
                self._session, stored, timeout=service.timeout, stdin=self._input, output=_not_shown, record=record
            )
            record.update(restarts=attempts.count)
            if service.remove:
                placed = replace(placed, spec=replace(placed.spec, scratch=self._directory))
            request = replace(request, on_running=lambda: self._is_running(service), on_ended=decide)
            carry_out(self._session, request, placed, grace=self._grace, check=False)
            self._answer({"started": True})
        finally:
            if self._checks is not None:
                self._checks.stop()
                self._checks = None
            record.close()
        if self._told_to_end:
            self._update(reason=_TOLD)
        return following

    def _is_running(self, service: Any) -> None:
        """The command is being executed: say so, and begin to look after its health."""
        executed = _was_executed(self._stored().fields.get("pid"))
        if service.check is not None:
            from nbcontainer.engine.monitor.checks import Checks

            self._checks = Checks(self._session, self._stored(), service.check)
            self._checks.start()
        if executed:
            self._answer({"started": True})
        else:  # it failed or is over already, which tells itself in a moment; unless /proc does not show it to us
            later = threading.Timer(_EXECUTING, self._answer, [{"started": True}])
            later.daemon = True
            later.start()

    def _answer(self, message: dict[str, Any]) -> None:
        """Tell who asked, and let go of it; who is gone before the start does not want the container any more."""
        with self._answering:
            asker, self._asker = self._asker, None
        if asker is not None:
            with asker:
                try:
                    asker.send(json.dumps(message).encode())
                except OSError:
                    self._halted.set()
                    self._unwanted = True
                    raise KeyboardInterrupt from None  # `carry_out` takes it for an interrupt, which it is

    def _answer_failure(self) -> None:
        """Tell why it could not be started; everything of it has been put in order by now."""
        problem = self._failure
        if problem is not None:
            code = getattr(problem, "exit_code", 125)
            with contextlib.suppress(KeyboardInterrupt):
                self._answer({"error": type(problem).__name__, "message": str(problem), "exit_code": code})

    def _leave(self, service: Any) -> None:
        """Let go of the record; throw the container, and the volumes made for it, away if that is what was asked."""
        from nbcontainer.engine.volume_use import anonymous_of

        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, "control"))
        if (service.remove or (self._unwanted and self._fresh)) and os.path.isdir(self._directory):
            stored = self._stored()
            self._session.discard(self._directory)
            self._session.volumes.drop(anonymous_of(stored), container=stored.id)
            self._session.close()
        os.close(self._lock)
        self._lock = -1
        if self._input_writer >= 0:
            os.close(self._input_writer)
        if self._input is not None:
            self._input.close()

    # --- the record -------------------------------------------------------------------------------------------------

    def _stored(self) -> Stored:
        """The record as it is now, others may have written it."""
        from nbcontainer.engine.records import Record, Stored

        record = Record(self._directory, self._lock, {})
        return Stored(directory=self._directory, fields=record.reread(), locked=True)

    def _update(self, **fields: Any) -> None:
        from nbcontainer.engine.records import Record

        Record(self._directory, self._lock, {}).update(**fields)

    # --- what others may ask ------------------------------------------------------------------------------------------

    def _halt(self, message: dict[str, Any]) -> Answer:  # noqa: ARG002 - every handler has this shape
        self._halted.set()
        return {"ok": True}, ()

    def _end_asked(self, message: dict[str, Any]) -> Answer:  # noqa: ARG002 - every handler has this shape
        """As by SIGTERM: for who cannot see the container's processes, to end them."""
        os.kill(os.getpid(), signal.SIGTERM)
        return {"ok": True}, ()

    def _attach(self, message: dict[str, Any]) -> Answer:  # noqa: ARG002 - every handler has this shape
        held = self._held
        writer = self._input_writer if held is None else held.master
        answer = {"ok": True, "stdin": writer >= 0, "terminal": held is not None}
        return answer, () if writer < 0 else (writer,)

    def _hold_terminal(self) -> None:
        from nbcontainer.engine.monitor.terminal import HeldTerminal

        self._input = self._held = HeldTerminal()

    def _open_input(self) -> None:
        """Standard input that stays open: who attaches writes into it."""
        reader, self._input_writer = os.pipe2(os.O_CLOEXEC)
        self._session.adopt(reader)
        self._input = open(reader, "rb", buffering=0)  # noqa: SIM115 - closed when all is over

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler has this shape
        """SIGTERM: end the container in good order, as an interrupt ends that of a cell, and then ourselves."""
        self._halted.set()
        if not self._told_to_end:
            self._told_to_end = True
            raise KeyboardInterrupt


def _was_executed(pid: object) -> bool:
    """Whether the command that PID 1 has just made becomes a program, which takes a moment; not when it ends instead.

    Until then it shows the command line of its parent, as what was forked does.
    """
    from nbcontainer._linux.identity import first_child, is_ending

    deadline = time.monotonic() + _EXECUTING
    try:
        first = int(str(pid))
        before = _command_line(first)
        while time.monotonic() < deadline:
            command = first_child(first)
            words = _command_line(command)  # of one that is just being executed it may be empty
            if words not in {b"", before}:
                return True
            if is_ending(command):
                return False
            time.sleep(0.0005)
    except (ValueError, OSError):
        return False
    return True


def _command_line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(4096)


def _has_layers(lock: int) -> bool:
    """Whether the container stands on an image's layers; what does not stands on the machine's own root."""
    said = json.loads(os.pread(lock, _MOST * 16, 0) or b"{}")
    return isinstance(said, dict) and bool(said.get("chain"))


def _started_runtime(root: str, *, hosted: bool) -> NativeRuntime:
    """A runtime for one container, whose launcher starts while we go on loading what we need ourselves."""
    from nbcontainer._linux import idmaps
    from nbcontainer.runtime.driver import NativeRuntime

    id_map = idmaps.id_map_for_host()
    paths: tuple[str, ...] = ()
    if hosted and id_map.method == "privileged":
        from nbcontainer.engine import host_image

        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            paths = host_image.real_file_systems(host_image.mount_points(file.read()))
    runtime = NativeRuntime(root, id_map, pool_size=0, pool_idle=0, host_paths=paths, modules=(_REMOVE,))
    threading.Thread(target=_start, args=(runtime,), name="start", daemon=True).start()
    return runtime


def _start(runtime: NativeRuntime) -> None:
    with contextlib.suppress(Exception):  # the first request meets the same problem, and tells it
        _ = runtime.host_lowers


def _not_shown(stream: str, data: bytes) -> None:
    """Nobody listens: the record keeps it."""


def _was_wanted(result: RunResult, stored: Stored) -> bool:
    """Whether somebody ended it by a verb, or its own limit on time did."""
    from nbcontainer.engine.ending import Note

    if result.reason in {"stopped", "interrupted", "timeout"}:
        return True
    note = Note.from_field(stored.fields.get("ended_by"))
    return note is not None and result.reason == "signalled" and note.signals[-1:] == (result.exit_code - 128,)
