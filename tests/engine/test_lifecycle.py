"""Signals to containers of other notebooks: sent to the right process or to none, and told truthfully."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux import identity
from nbcontainer.engine.ending import Note
from nbcontainer.engine.lifecycle import Lifecycle, process_fields, signal_number
from nbcontainer.engine.records import ContainerRecords, Record
from nbcontainer.errors import (
    Conflict,
    ContainerError,
    ContainerNotFound,
    InvalidOption,
    InvalidReference,
    UnsupportedHost,
)
from nbcontainer.model import ContainerId

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

INIT = "trap '' TERM; sh -c 'trap : TERM USR1; echo ready; while :; do sleep 1 & wait; done' & wait"
"""A first process with a command below it that hears TERM and goes on."""


@pytest.fixture
def records(tmp_path: Path) -> ContainerRecords:
    """Lend the records of an empty store."""
    (tmp_path / "containers").mkdir()
    return ContainerRecords(str(tmp_path), None)


@pytest.fixture
def lifecycle(records: ContainerRecords, monkeypatch: pytest.MonkeyPatch) -> Lifecycle:
    """Lend what is tested, less patient than usual."""
    monkeypatch.setattr("nbcontainer.engine.lifecycle._LETTING_GO", 0.5)
    monkeypatch.setattr("nbcontainer.engine.lifecycle._STARTING", 0.2)
    return Lifecycle(records)


@pytest.fixture
def innocent() -> Iterator[subprocess.Popen[bytes]]:
    """Lend a process that has nothing to do with containers."""
    with process("sleep", "1000") as stranger:
        yield stranger
        assert stranger.poll() is None


@contextlib.contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its group, ended afterwards."""
    with subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def record(records: ContainerRecords, **fields: Any) -> Record:
    """A running container's record."""
    known = {"name": "work", "image": "x", "command": ["sh"], "created": 1.0, "keep": True}
    return records.create(ContainerId(os.urandom(32).hex()), {**known, **fields})


@contextlib.contextmanager
def container(records: ContainerRecords, **fields: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process tree that looks like a container's, and somebody who supervises it."""
    with process("sh", "-c", INIT) as init:
        assert init.stdout is not None
        init.stdout.readline()
        held = record(records, **process_fields(init.pid), **fields)

        def supervise() -> None:
            status = init.wait()
            held.update(finished=2.0, exit_code=128 - status, ended_as=held.read("ended_by"))
            held.close()

        watcher = threading.Thread(target=supervise)
        watcher.start()
        try:
            yield init
        finally:
            init.kill()
            watcher.join()


def note(records: ContainerRecords) -> Any:
    """What was noted in the record."""
    return records.find("work").fields.get("ended_by")


@pytest.mark.parametrize("verb", ["kill", "stop", "end"])
@pytest.mark.parametrize("wrong", [{"start_time": 1}, {"start_time": "x"}, {"start_time": None}])
def test_recycled_pid_is_not_killed(
    records: ContainerRecords,
    lifecycle: Lifecycle,
    innocent: subprocess.Popen[bytes],
    verb: str,
    wrong: dict[str, Any],
) -> None:
    """A process that has the recorded pid and did not begin when it should have gets no signal."""
    held = record(records, **{**process_fields(innocent.pid), **wrong})
    with pytest.raises(Conflict, match="has ended, but its notebook has not noticed"):
        _do(lifecycle, records, verb)
    held.close()


def _do(lifecycle: Lifecycle, records: ContainerRecords, verb: str) -> object:
    if verb == "kill":
        return lifecycle.kill("work", signal.SIGKILL)
    if verb == "stop":
        return lifecycle.stop("work")
    return lifecycle.end(records.find("work"), verb="rm -f")


@pytest.mark.parametrize("verb", ["kill", "stop", "end"])
def test_other_pid_namespace(
    records: ContainerRecords, lifecycle: Lifecycle, innocent: subprocess.Popen[bytes], verb: str
) -> None:
    """A container of a store that another container of the machine shares: its pids mean nothing here."""
    held = record(records, **{**process_fields(innocent.pid), "pid_namespace": 1})
    with pytest.raises(UnsupportedHost, match="cannot be seen from here"):
        _do(lifecycle, records, verb)
    held.close()


@pytest.mark.parametrize("verb", ["kill", "stop", "end"])
def test_just_starting(records: ContainerRecords, lifecycle: Lifecycle, verb: str) -> None:
    """A container that has no process yet is waited for, and then said to be starting."""
    held = record(records)
    with pytest.raises(Conflict, match="has been starting for some time"):
        _do(lifecycle, records, verb)
    held.close()


def test_ended_meanwhile(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """One that ends while it is looked for has just ended."""
    held = record(records)
    threading.Timer(0.05, held.close).start()
    with pytest.raises(Conflict, match="just ended by itself"):
        lifecycle.kill("work", signal.SIGKILL)


def test_kill_ends_the_first_process(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """SIGKILL goes to PID 1 and is waited for."""
    with container(records):
        summary = lifecycle.kill("work", signal.SIGKILL)
        assert (summary.state, summary.exit_code) == ("exited", 137)
    assert note(records) == {"verb": "kill", "signals": [9]}


def test_other_signals_go_to_the_command(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """PID 1 is not hit, its first child is."""
    with container(records) as init:
        command = identity.first_child(init.pid)
        assert lifecycle.kill("work", signal.SIGINT).state == "running"
        assert lifecycle.kill("work", signal.SIGSTOP).state == "running"
        deadline = time.monotonic() + 5
        while _state(command) != "T":
            assert time.monotonic() < deadline
        assert init.poll() is None
        assert _state(init.pid) != "T"


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_stop_waits_and_then_ends_it(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """After the grace everything is ended; the note says what it took."""
    with container(records):
        started = time.monotonic()
        assert lifecycle.stop("work", 0.3).exit_code == 137
        assert 0.3 <= time.monotonic() - started < 5
    assert note(records) == {"verb": "stop", "signals": [15, 9]}


def test_stop_with_the_container_s_own_signal(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """The recorded stop signal is sent, and no more when it is enough."""
    with container(records, stop_signal="SIGHUP", stop_timeout=30):
        assert lifecycle.stop("work").state == "exited"
    assert note(records) == {"verb": "stop", "signals": [1]}


def test_stop_without_grace(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """``-t 0`` ends it at once."""
    with container(records):
        lifecycle.stop("work", 0)
    assert note(records) == {"verb": "stop", "signals": [9]}


def test_stop_of_an_ended_one(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """Stopping what has ended is no error, killing it is."""
    record(records, exit_code=3, finished=2.0).close()
    assert lifecycle.stop("work").exit_code == 3
    with pytest.raises(Conflict, match="is not running"):
        lifecycle.kill("work", signal.SIGKILL)


def test_supervisor_that_does_not_let_go(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """When the processes are gone and the record stays locked, the sentence says who is to blame."""
    with process("sleep", "1000") as init:
        held = record(records, **process_fields(init.pid))
        with pytest.raises(Conflict, match="has not let go"):
            lifecycle.kill("work", signal.SIGKILL)
        held.close()


def test_wait(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """Waiting ends with the container, and knows its code; also of one that is thrown away, files and all."""
    held = record(records, keep=False, name="")

    def end() -> None:
        os.unlink(os.path.join(held.directory, "record.json"))
        os.rmdir(held.directory)
        held.update(finished=2.0, exit_code=3)
        held.close()

    timer = threading.Timer(0.1, end)
    timer.start()
    assert lifecycle.wait(held.id[:12]).exit_code == 3
    timer.join()


def test_wait_for_what_nobody_saw(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """The code of a container whose notebook was killed is unknown, not 0."""
    record(records).close()
    with pytest.raises(ContainerError, match="its notebook ended without saying how"):
        lifecycle.wait("work")


def test_rename(records: ContainerRecords, lifecycle: Lifecycle) -> None:
    """A running container can be renamed; what its supervisor writes later does not undo that."""
    held = record(records)
    other = record(records, name="other")
    assert lifecycle.rename("work", "analysis").name == "analysis"
    held.update(pid=7)
    held.close()
    assert records.find("analysis").fields["pid"] == 7
    with pytest.raises(ContainerNotFound):
        records.find("work")
    with pytest.raises(Conflict, match="is taken"):
        lifecycle.rename("analysis", "other")
    with pytest.raises(InvalidOption, match="must be letters"):
        lifecycle.rename("analysis", "a b")
    with pytest.raises(InvalidOption, match="must be letters"):
        lifecycle.rename("analysis", "")
    assert lifecycle.rename("analysis", "analysis").name == "analysis"
    other.close()


def test_writers_take_turns(records: ContainerRecords) -> None:
    """Changes by several writers at once are all there in the end."""
    held = record(records)
    stored = records.find("work")

    def write(number: int) -> None:
        for turn in range(20):
            records.amend(stored, **{f"w{number}": turn})

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for turn in range(20):
        held.update(own=turn)
    for writer in writers:
        writer.join()
    held.close()
    fields = records.find("work").fields
    assert [fields[name] for name in ("w0", "w1", "w2", "w3", "own")] == [19] * 5


@pytest.mark.parametrize(
    ("text", "number"),
    [("TERM", 15), ("SIGTERM", 15), ("term", 15), ("9", 9), ("RTMIN+3", signal.SIGRTMIN + 3), ("SIGRTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    """Signals by any of their names."""
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "65", "-9", "TREM", "RTMIN+99", "RTMAX+1", "SIG", "SIG_IGN", "٣"])
def test_no_signals(text: str) -> None:
    """What is no signal is refused, with the nearest one."""
    with pytest.raises(InvalidOption, match="there is no signal"):
        signal_number(text)
    with pytest.raises(InvalidOption, match="did you mean SIGTERM"):
        signal_number("TREM")


@pytest.mark.parametrize(
    ("verb", "signals", "by_signal", "told"),
    [
        ("stop", (15,), 15, ("stopped", 143, "stopped by `%container stop` (SIGTERM)")),
        ("stop", (15,), None, ("stopped", 143, "stopped by `%container stop` (SIGTERM)")),
        ("stop", (15, 9), 9, ("stopped", 137, "stopped by `%container stop` (SIGTERM, SIGKILL)")),
        ("restart", (3,), 3, ("stopped", 131, "stopped by `%container restart` (SIGQUIT)")),
        ("kill", (9,), 9, ("stopped", 137, "killed by `%container kill`")),
        ("rm -f", (9,), 9, ("stopped", 137, "killed by `%container rm -f`")),
        ("kill", (10,), 10, ("signalled", 138, "killed by SIGUSR1 (`%container kill`)")),
        ("kill", (10,), None, None),
        ("kill", (10,), 11, None),
        ("kill", (9,), None, None),
    ],
)
def test_what_is_told(verb: Any, signals: tuple[int, ...], by_signal: int | None, told: Any) -> None:
    """A note is told when the end fits it."""
    found = Note(verb=verb, signals=signals).told(by_signal=by_signal)
    assert (found and (found.reason, found.code, found.detail)) == told


@pytest.mark.parametrize("field", [None, 1, {}, {"verb": "x", "signals": []}, {"verb": "stop", "signals": ["x"]}])
def test_damaged_note(field: object) -> None:
    """A note that cannot be read is none."""
    assert Note.from_field(field) is None


def test_find_needs_something(lifecycle: Lifecycle) -> None:
    """Names that nobody has are not found."""
    for verb in (lifecycle.stop, lifecycle.wait):
        with pytest.raises((ContainerNotFound, InvalidReference)):
            verb("nonesuch")
