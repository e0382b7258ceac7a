"""Verbs on containers that are there already, whichever notebook of this user runs them.

A container belongs to the engine that supervises it: that one holds its record's lock, and nobody else can talk to
its first process. What everybody can do is send signals. The record says which process to send them to, and
`nbcontainer._linux.identity` makes sure that it still is that one. ``SIGKILL`` goes to PID 1, with which the kernel
ends every process of the container; other signals go to the command, which is PID 1's first child. A paused
container is let go on before it is ended: what is frozen cannot be killed (cgroups v1), and cannot tidy up.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import select
import signal
import time
from typing import TYPE_CHECKING, Any

from nbcontainer._linux import identity
from nbcontainer._linux.cgroups import machine_hierarchies
from nbcontainer.engine import control
from nbcontainer.engine.ending import EndingVerb, Note
from nbcontainer.errors import Conflict, ContainerError, ContainerNotFound, InvalidOption, UnsupportedHost
from nbcontainer.runtime import freezer
from nbcontainer.runtime.driver import Process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.engine.records import ContainerRecords, Stored
    from nbcontainer.engine.views import ContainerSummary

__all__ = ["DEFAULT_GRACE", "Lifecycle", "process_fields", "signal_number"]

DEFAULT_GRACE = 10.0
"""Seconds between the stop signal and the end of everything, as docker has it."""
_STARTING = 5.0
_LETTING_GO = 10.0
_BETWEEN_LOOKS = 0.04
"""Less than the shortest pause between two lives of a container."""
_REAL_TIME = re.compile(r"(?:SIG)?RT(MIN|MAX)(?:([+-])(\d+))?", re.ASCII)


def signal_number(text: str) -> int:
    """``TERM``, ``SIGTERM``, ``term``, ``15`` or ``RTMIN+3`` as a number; raise `InvalidOption`."""
    name = text.strip().upper()
    if name.isascii() and name.isdigit() and 1 <= int(name) <= signal.SIGRTMAX:
        return int(name)
    if real_time := _REAL_TIME.fullmatch(name):
        base, sign, offset = real_time.groups()
        first = int(signal.SIGRTMIN if base == "MIN" else signal.SIGRTMAX)
        number = first + int(f"{sign or '+'}{offset or 0}")
        if signal.SIGRTMIN <= number <= signal.SIGRTMAX:
            return number
    known = {each.name: each.value for each in signal.Signals}
    number = known.get(name, known.get(f"SIG{name}", 0))
    if number:
        return number
    close = difflib.get_close_matches(f"SIG{name.removeprefix('SIG')}", known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "; write a name such as TERM, or a number"
    raise InvalidOption(f"there is no signal {text!r}{hint}")


def process_fields(pid: int) -> dict[str, int | str]:
    """What a record must say of a container's first process, so that nobody else is ever taken for it.

    Empty when that has ended already. The caller holds its pidfd.
    """
    try:
        started = identity.start_time(pid)
    except (ProcessLookupError, PermissionError):
        return {}
    return {
        "pid": pid,
        "start_time": started,
        "pid_namespace": identity.own_pid_namespace(),
        "boot_id": identity.boot_id(),
    }


def check_visible(stored: Stored) -> None:
    """Raise `UnsupportedHost` where nobody but its own notebook can see a container's processes."""
    if identity.hides_processes():
        raise UnsupportedHost(
            f"the processes of container {stored.id[:12]} cannot be seen: this machine hides those of others (hidepid"
            " of /proc), so what is done to a running container from elsewhere cannot be; an administrator can let you"
            " see them (gid= of proc(5)), and interrupting its cell ends it"
        )


class _JustEndedError(Conflict):
    """A container was to be ended, and has ended by itself meanwhile."""


class Lifecycle:
    """What can be done to the containers of one store."""

    def __init__(self, records: ContainerRecords) -> None:
        self._records = records

    def kill(self, container: str, number: int) -> ContainerSummary:
        """Send a signal to the command, or with SIGKILL end every process; waits for the end in that case."""
        stored = self._running(container, halting=number == signal.SIGKILL)
        if number == signal.SIGKILL:
            return self.end(stored, verb="kill").summary()
        with self._first_process(stored) as (pid, pidfd):
            self._records.amend(stored, ended_by=Note(verb="kill", signals=(number,)).as_field())
            with contextlib.suppress(ProcessLookupError):
                _to_command(pid, pidfd, number, group=False)
        return stored.summary()

    def stop(self, container: str, grace: float | None = None, *, verb: EndingVerb = "stop") -> ContainerSummary:
        """End a container: its stop signal, a grace, then the end of every process. One that has ended is let be."""
        stored = self._records.find(container)
        if not stored.locked:
            return stored.summary()
        patience = _number(stored.fields.get("stop_timeout"), DEFAULT_GRACE) if grace is None else grace
        note = Note(verb=verb, signals=(_stop_signal(stored),))
        with self._ending(stored, note) as process:
            if process is not None:
                self._stop(stored, process, note, patience)
        return self._released(stored).summary()

    def _stop(self, stored: Stored, process: tuple[int, int], note: Note, patience: float) -> None:
        pid, pidfd = process
        freezer.thaw(pid)
        if patience > 0:
            self._records.amend(stored, ended_by=note.as_field())
            with contextlib.suppress(ProcessLookupError):
                _to_command(pid, pidfd, note.signals[0], group=True)
        if patience <= 0 or not _wait_end(pidfd, patience):
            sent = (*note.signals, int(signal.SIGKILL)) if patience > 0 else (int(signal.SIGKILL),)
            with contextlib.suppress(ContainerNotFound):
                self._records.amend(stored, ended_by=Note(verb=note.verb, signals=sent).as_field())
            identity.send_signal(pidfd, signal.SIGKILL)

    def end(self, stored: Stored, *, verb: EndingVerb) -> Stored:
        """End a running container at once and wait until its notebook has let go of it."""
        note = Note(verb=verb, signals=(int(signal.SIGKILL),))
        with self._ending(stored, note) as process:
            if process is not None:
                pid, pidfd = process
                self._records.amend(stored, ended_by=note.as_field())
                freezer.thaw(pid)
                identity.send_signal(pidfd, signal.SIGKILL)
        return self._released(stored)

    @contextlib.contextmanager
    def _ending(self, stored: Stored, note: Note) -> Iterator[tuple[int, int] | None]:
        """PID 1 of a container that is to be ended for good, as `_first_process` has it; None when nothing runs.

        One that runs behind is in a pause between two lives, perhaps, or ends by itself just now: then it has ended.
        """
        with contextlib.ExitStack() as undo:
            process = None
            if not stored.service:
                process = undo.enter_context(self._first_process(stored))
            elif (now := self._halt(stored, note)) is not None:
                if identity.hides_processes():  # its monitor sees them
                    with contextlib.suppress(control.NoMonitor):  # it is leaving
                        control.ask(stored.directory, "end")
                else:
                    with contextlib.suppress(_JustEndedError):
                        process = undo.enter_context(self._first_process(now))
            yield process

    def wait(self, container: str) -> ContainerSummary:
        """Wait for a container's end; raise `ContainerError` when nobody saw how it ended.

        The end of one life is enough, also when its policy is to start it again.
        """
        stored = self._records.find(container)
        if stored.service and stored.locked:
            released = self._end_of_life(stored)
        else:
            found = self._records.await_release(stored) if stored.locked else stored
            assert found is not None
            released = found
        summary = released.summary()
        if summary.exit_code is None:
            raise ContainerError(f"container {container} has no exit code: {summary.reason or 'it never started'}")
        return summary

    def _end_of_life(self, stored: Stored) -> Stored:
        """The record when the life that is now, or was last, has ended."""
        pause = 0.001
        with self._records.watching(stored) as look:
            now = look()
            life = now.fields.get("restarts")
            while now.locked and now.fields.get("finished") is None and now.fields.get("restarts") == life:
                time.sleep(pause)
                pause = min(pause * 2, _BETWEEN_LOOKS)
                now = look()
            return now

    def rename(self, container: str, name: str) -> ContainerSummary:
        """Give a container, running or not, another name."""
        stored = self._records.find(container)
        self._records.rename(stored, name)
        return self._records.find(name).summary()

    @contextlib.contextmanager
    def command_of(self, container: str) -> Iterator[tuple[Stored, Process]]:
        """The command of a running container: what it takes to join it.

        Raises `Conflict` for a container that does not run, is paused, or does not get ready in time.
        """
        stored = self._running(container)
        with contextlib.ExitStack() as undo:
            try:
                pid, pidfd = undo.enter_context(self._first_process(stored))
            except (ContainerNotFound, _JustEndedError) as problem:  # perhaps thrown away, record and all
                raise Conflict(f"container {container} has just ended") from problem
            known = machine_hierarchies()
            if freezer.is_paused(pid, known):
                raise Conflict(f"container {container} is paused; `%container unpause {container}` lets it go on")
            try:
                command = identity.open_child(pid, pidfd)
            except ProcessLookupError as problem:
                raise Conflict(f"container {container} has just ended by itself") from problem
            try:
                number = identity.pid_of(command)
                _await_root(container, number)
                launcher = identity.parent_of(pid)
                yield stored, Process(pid=number, pidfd=command, first=pid, launcher=launcher, hierarchies=known)
            except ProcessLookupError as problem:
                raise Conflict(f"container {container} has just ended") from problem
            except (Conflict, UnsupportedHost) as problem:
                if identity.has_ended(pidfd):  # whatever was missed of it
                    raise Conflict(f"container {container} has just ended") from problem
                raise
            finally:
                os.close(command)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _running(self, container: str, *, halting: bool = False) -> Stored:
        stored = self._records.find(container)
        if not stored.locked:
            raise Conflict(f"container {container} is not running; `%container ps -a` says how it ended")
        if stored.fields.get("restarting") and not halting:
            raise Conflict(f"container {container} is restarting; wait until it is running, or stop it")
        return stored

    def _halt(self, stored: Stored, note: Note) -> Stored | None:
        """Tell a container's monitor that it must not start it again.

        Answers the container as it is then, with a process that has to be ended; None when nothing of it runs.
        """
        self._records.amend(stored, ended_by=note.as_field())
        deadline = time.monotonic() + _STARTING
        while True:
            with contextlib.suppress(control.NoMonitor):  # it is starting, or leaving
                control.ask(stored.directory, "halt")
                break
            now = self._records.again(stored)
            if now is None or not now.locked:
                return None
            if time.monotonic() > deadline:
                raise Conflict(f"the monitor of container {stored.id[:12]} does not answer; try again")
            time.sleep(0.01)
        now = self._records.again(stored)
        if now is None or not now.locked or now.fields.get("restarting"):
            return None
        return now

    @contextlib.contextmanager
    def _first_process(self, stored: Stored) -> Iterator[tuple[int, int]]:
        """PID 1 of a running container: its pid as we see it, and a verified pidfd."""
        fields = self._with_process(stored)
        pid, started, namespace = (_number(fields.get(name)) for name in ("pid", "start_time", "pid_namespace"))
        if namespace != identity.own_pid_namespace():
            raise UnsupportedHost(
                f"container {stored.id[:12]} runs where its processes cannot be seen from here (another container of "
                "this machine); stop it there"
            )
        try:
            pidfd = identity.open_process(int(pid), int(started))
        except ProcessLookupError as problem:
            check_visible(stored)
            if self._records.await_release(stored, within=_LETTING_GO) is None:
                raise Conflict(
                    f"container {stored.id[:12]} has ended, but its notebook has not noticed; interrupt its cell"
                ) from problem
            raise _JustEndedError(f"container {stored.id[:12]} has just ended by itself") from problem
        try:
            yield int(pid), pidfd
        finally:
            os.close(pidfd)

    def _with_process(self, stored: Stored) -> dict[str, Any]:
        """The record's fields once it names a process: a container has none in the moment before its start."""
        deadline = time.monotonic() + _STARTING
        current: Stored | None = stored
        while current is not None and current.locked:
            if current.fields.get("pid") is not None:
                return current.fields
            check_visible(stored)
            if time.monotonic() > deadline:
                raise Conflict(f"container {stored.id[:12]} has been starting for some time; try again")
            time.sleep(0.01)
            current = self._records.again(stored)
        raise _JustEndedError(f"container {stored.id[:12]} has just ended by itself")

    def _released(self, stored: Stored) -> Stored:
        try:
            released = self._records.await_release(stored, within=_LETTING_GO)
        except ContainerNotFound:  # thrown away, files and all
            return stored
        if released is None:
            raise Conflict(f"container {stored.id[:12]} was ended, but its notebook has not let go of it; try again")
        return released


def _await_root(container: str, pid: int) -> None:
    """Wait until a container's command has its own root: until then, who joins it sees the machine's files."""
    here = os.stat("/")
    deadline = time.monotonic() + _STARTING
    while True:
        try:
            there = os.stat(f"/proc/{pid}/root/")
        except FileNotFoundError as problem:
            raise ProcessLookupError from problem
        except OSError:  # it may close itself to us; whoever joins looks again
            return
        if (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            return
        if time.monotonic() > deadline:
            raise Conflict(f"container {container} has been starting for some time; try again")
        time.sleep(0.005)


def _to_command(pid: int, pidfd: int, number: int, *, group: bool) -> None:
    """Send a signal to the command of the container whose PID 1 this is; one that is just starting has none yet."""
    deadline = time.monotonic() + _STARTING
    while True:
        try:
            command = identity.open_child(pid, pidfd)
            break
        except ProcessLookupError:
            if identity.has_ended(pidfd) or time.monotonic() > deadline:
                raise
        time.sleep(0.002)
    try:
        identity.send_signal(command, number, group=group)
    finally:
        os.close(command)


def _wait_end(pidfd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _stop_signal(stored: Stored) -> int:
    """What the image or the person chose; SIGTERM when that is no signal we know."""
    with contextlib.suppress(InvalidOption):
        return signal_number(str(stored.fields.get("stop_signal") or "TERM"))
    return int(signal.SIGTERM)


def _number(value: object, default: float = 0) -> float:
    return value if isinstance(value, (int, float)) else default
