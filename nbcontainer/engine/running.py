"""One foreground run: from an image and options to a finished container's result.

`place` decides everything and writes the record (under the store's shared lock, so that no collection takes the image
away between); `carry_out` starts, watches, and says how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import stat
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from nbcontainer.engine.ending import Note, signal_name
from nbcontainer.engine.lifecycle import process_fields
from nbcontainer.engine.roots import saved_root
from nbcontainer.engine.successors import new_container_id
from nbcontainer.errors import (
    ContainerExit,
    ContainerInterrupted,
    ContainerStartError,
    ContainerTimeout,
    InvalidOption,
    NbcontainerError,
)
from nbcontainer.model import RunOptions, RunResult
from nbcontainer.runtime.bundle import bundle
from nbcontainer.runtime.devices import resolved_devices
from nbcontainer.runtime.groups import Verdict
from nbcontainer.runtime.launcher import error_from
from nbcontainer.runtime.limits import binary_size, check_limits
from nbcontainer.runtime.supervisor import supervise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.engine.ending import Told
    from nbcontainer.engine.records import Record
    from nbcontainer.engine.session import Session
    from nbcontainer.engine.successors import Kind
    from nbcontainer.model import BindMount, ContainerId, ContainerSpec, Digest, ImageConfig, Mount
    from nbcontainer.runtime.supervisor import Outcome

__all__ = ["OutputSink", "RunRequest", "Subject", "carry_out", "place"]

OutputSink = Callable[[Literal["stdout", "stderr"], bytes], None]
"""Called in the calling thread with each piece of output as it arrives."""

_TAIL = 64 * 1024
_KEPT = 64 * 1024 * 1024
_TAIL_LINES = 10
_NO_VERDICT = Verdict()
_MADE_WHEN_ASKED = ("limits", "devices", "cap_add", "cap_drop", "seccomp", "no_new_privileges")
_TITLE = 200
_REMAINS = {
    "unanswered": " before it was started; the launcher process does not answer",
    "dying": "; its processes have been killed, but the kernel has not let go of them yet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What was asked, as parsed."""

    image: str
    argv: tuple[str, ...]
    options: RunOptions
    script: bytes | None
    shell: tuple[str, ...]
    stdin: bytes | BinaryIO | None
    output: OutputSink | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What it will run on: `root` gives the mounts for a container whose files lie in a folder."""

    name: str
    config: ImageConfig
    chain: Digest | None
    root: Callable[[str], tuple[Mount, ...]]
    generation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A container that is decided and recorded, and not started."""

    subject: Subject
    spec: ContainerSpec
    record: Record
    started: float
    kind: Kind | None

    def abandon(self) -> None:
        """Take the record away if nobody has carried it out (an interrupt came in between); else do nothing."""
        if self.record.held:
            self.record.close()
            shutil.rmtree(self.record.directory, ignore_errors=True)


def place(session: Session, request: RunRequest, subject: Subject) -> Placed:
    """Decide and record a container; raise `InvalidOption` or `Conflict` before anything is written."""
    started = time.monotonic()
    options = request.options
    check_limits(options.limits, frozenset(os.sched_getaffinity(0)))
    keep = not options.remove if options.remove is not None else bool(options.name)
    kind = None if keep else _kind(request, subject)
    container = (kind and session.successors.take(kind)) or new_container_id()
    spec = _spec(session, request, subject, container, keep=keep)
    fields = {
        "name": options.name,
        "image": subject.name,
        "chain": str(subject.chain or ""),
        "command": list(spec.argv),
        "title": _title(request.script),
        "created": time.time(),
        "keep": keep,
        **({} if subject.chain else {"root": saved_root(spec.root, session.records.path(container))}),
        **_remembered(options, subject.config),
    }
    record = session.records.create(container, fields)
    return Placed(subject=subject, spec=spec, record=record, started=started, kind=kind)


def _spec(
    session: Session, request: RunRequest, subject: Subject, container: ContainerId, *, keep: bool
) -> ContainerSpec:
    options = request.options
    if options.volumes:
        options = dataclasses.replace(options, volumes=resolved_volumes(options, session.settings.root))
    if options.devices:
        options = dataclasses.replace(options, devices=resolved_devices(options.devices))
    directory = session.records.path(container)
    spec = bundle(
        container,
        subject.config,
        options,
        root=tuple(dataclasses.replace(mount, volatile=not keep) for mount in subject.root(directory)),
        argv=request.argv,
        script=request.script,
        shell=request.shell,
        idmapped_binds=session.privileged,
        host_resolv_conf=_resolv_conf() if options.network == "host" else "",
        single_id=session.id_map.single,
    )
    return dataclasses.replace(spec, scratch="" if keep else directory, generation=subject.generation)


def _kind(request: RunRequest, subject: Subject) -> Kind | None:
    """What the next container must have in common with this one to be prepared ahead, or None where none can be.

    Not on the machine's own root, which people change between two cells, and not with volumes, likewise. Not with
    limits or rights of its own either: its cgroups, capabilities and filter are made when it is asked for.
    """
    options = request.options
    if not subject.generation or options.volumes or options.network not in (None, "none"):
        return None
    plain = RunOptions()
    if any(getattr(options, name) != getattr(plain, name) for name in _MADE_WHEN_ASKED):
        return None
    alike = dataclasses.replace(options, environment=(), timeout=None)
    return (subject.name, subject.generation, alike, request.script is not None)


def _announce_successor(session: Session, request: RunRequest, placed: Placed) -> None:
    """Have the launcher prepare, in a calm moment, a container like this one: the next cell wants one, as a rule."""
    if placed.kind is not None:
        container, forgotten = session.successors.promise(placed.kind)
        spec = _spec(session, request, placed.subject, container, keep=False)
        session.runtime.expect((spec,), tuple(session.records.path(each) for each in forgotten))


def _remembered(options: RunOptions, config: ImageConfig) -> dict[str, Any]:
    """What later verbs want to know of the options: how to stop it, what it was limited to."""
    limits = {name: value for name, value in dataclasses.asdict(options.limits).items() if value not in {None, ""}}
    remembered = {
        "limits": limits,
        "stop_signal": options.stop_signal or config.stop_signal,
        "stop_timeout": options.stop_timeout,
    }
    return {name: value for name, value in remembered.items() if value or value == 0}


def _title(script: bytes | None) -> str:
    """The first line of a cell that says something, for `ps`."""
    lines = (script or b"").decode("utf-8", "replace").splitlines()
    telling = (line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return next(telling, "")[:_TITLE]


def carry_out(session: Session, request: RunRequest, placed: Placed, *, grace: float, check: bool) -> RunResult:
    """Start the container, pump its streams until it is over, and say how it went."""
    stdout = _Kept(request.output, "stdout", placed.record)
    stderr = _Kept(request.output, "stderr", placed.record)

    deaths = session.runtime.deaths

    def sink(stream: Literal["stdout", "stderr"], data: bytes) -> None:
        (stdout if stream == "stdout" else stderr).take(data)

    try:
        outcome, verdict = _supervised(session, request, placed, sink, grace)
        result = _result(placed, outcome, stdout.data, stderr.data, limit=request.options.timeout or 0, verdict=verdict)
        # also of what is thrown away: somebody may be waiting for it, with the record open
        placed.record.update(finished=time.time(), exit_code=result.exit_code, reason=result.detail or result.reason)
    finally:
        placed.record.close()
        if not placed.record.kept:
            session.recover(deaths)
    if outcome.failure is not None and outcome.reason == "exited":  # ended by us, it may have failed because of that
        raise _start_error(placed, outcome)
    if check and not result.ok:
        raise _bad_end(result)
    return result


def _supervised(
    session: Session,
    request: RunRequest,
    placed: Placed,
    sink: Callable[[Literal["stdout", "stderr"], bytes], None],
    grace: float,
) -> tuple[Outcome, Verdict]:
    with contextlib.ExitStack() as undo:
        out_read, out_write = _pipe(undo)
        err_read, err_write = _pipe(undo)
        for end in (out_write, err_write):
            session.adopt(end.number)
        given = _input(request.stdin, undo)
        record = placed.record
        try:
            connection = session.runtime.start(placed.spec, (given.reader.number, out_write.number, err_write.number))
        except BaseException:
            shutil.rmtree(record.directory, ignore_errors=True)
            raise
        undo.callback(connection.close)
        for theirs in (given.reader, out_write, err_write):
            theirs.close()
        _announce_successor(session, request, placed)
        outcome = supervise(
            connection,
            stdout=out_read.number,
            stderr=err_read.number,
            stdin=given.writer.release() if given.writer else -1,
            feed=given.feed,
            source=given.source,
            sink=sink,
            on_accepted=lambda pid: record.update(started=time.time(), **process_fields(pid)),
            timeout=request.options.timeout,
            grace=grace,
        )
        return outcome, connection.resources.verdict() if connection.resources else Verdict()


class _End:
    """One end of a pipe, closed once."""

    def __init__(self, number: int) -> None:
        self.number = number

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.release())

    def release(self) -> int:
        number, self.number = self.number, -1
        return number


def _pipe(undo: contextlib.ExitStack) -> tuple[_End, _End]:
    reader, writer = (_End(number) for number in os.pipe2(os.O_CLOEXEC))
    undo.callback(reader.close)
    undo.callback(writer.close)
    return reader, writer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """Where standard input comes from: the container's end, and what is pumped into `writer`, if anything is."""

    reader: _End
    writer: _End | None = None
    feed: bytes = b""
    source: int = -1


def _input(stdin: bytes | BinaryIO | None, undo: contextlib.ExitStack) -> _Input:
    """A file is read by us and goes through a pipe: from a descriptor of it the container could open it for writing."""
    if isinstance(stdin, bytes):
        reader, writer = _pipe(undo)
        return _Input(reader=reader, writer=writer, feed=stdin)
    if stdin is not None and not _can_be_shared(stdin.fileno()):
        reader, writer = _pipe(undo)
        return _Input(reader=reader, writer=writer, source=stdin.fileno())
    source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if stdin is None else os.dup(stdin.fileno())
    end = _End(source)
    undo.callback(end.close)
    return _Input(reader=end)


def _can_be_shared(descriptor: int) -> bool:
    """Whether it leads to no file on a disk: a pipe, a socket, a terminal."""
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)


class _Kept:
    """Passes output on and keeps its end: 64 MiB when nobody else gets it, else 64 KiB."""

    def __init__(self, output: OutputSink | None, stream: Literal["stdout", "stderr"], record: Record) -> None:
        self._output = output
        self._stream: Literal["stdout", "stderr"] = stream
        self._record = record
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._limit = _KEPT if output is None else _TAIL

    def take(self, data: bytes) -> None:
        self._pieces.append(data)
        self._size += len(data)
        self._record.append(self._stream, data)
        while self._size - len(self._pieces[0]) >= self._limit:
            self._size -= len(self._pieces.popleft())
        if self._output is not None:
            self._output(self._stream, data)

    @property
    def data(self) -> bytes:
        return b"".join(self._pieces)[-self._limit :]


def _result(
    placed: Placed,
    outcome: Outcome,
    stdout: bytes,
    stderr: bytes,
    *,
    limit: float = 0,
    verdict: Verdict = _NO_VERDICT,
) -> RunResult:
    code = 125 if outcome.failure is None else outcome.failure.exit_code
    detail = ""
    reason = outcome.reason
    if outcome.status is not None:
        code = os.waitstatus_to_exitcode(outcome.status)
        if code < 0:
            number = -code
            code = 128 + number
            if reason == "exited":
                reason, detail = "signalled", f"killed by {signal_name(number)}"
    elif reason in {"timeout", "interrupted"}:
        code = 137
    if reason == "interrupted":
        ended = f"; every process of the cell has ended ({', '.join(outcome.steps)})"
        detail = f"interrupted{_REMAINS.get(outcome.remains, ended)}"
        code = 130 if code == 137 else code
    elif reason == "timeout":
        ended = "; every process of the container has ended"
        detail = f"time limit of {limit:g} s reached{_REMAINS.get(outcome.remains, ended)}"
    elif reason == "lost":
        detail = "its processes vanished without an exit code: killed from outside, or the machine ran out of memory"
    if told := _told(placed.record, outcome):
        reason, detail = told.reason, told.detail
        code = told.code if outcome.status is None else code
    elif verdict.oom_kills and code != 0 and reason in {"exited", "signalled", "lost"}:
        reason, detail = "oom", _out_of_memory(verdict)
    return RunResult(
        id=placed.record.id,
        image=placed.subject.name,
        argv=placed.spec.argv,
        exit_code=code,
        reason=reason,
        duration=time.monotonic() - placed.started,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
        detail=detail,
        notes=_notes(verdict, code),
    )


def _out_of_memory(verdict: Verdict) -> str:
    limit = "" if verdict.memory_limit is None else f" {binary_size(verdict.memory_limit)}"
    peak = "" if verdict.peak is None else f" (peak {binary_size(verdict.peak)})"
    return f"killed: memory limit{limit} reached{peak}; give it more with --memory"


def _notes(verdict: Verdict, code: int) -> tuple[str, ...]:
    """Limits that were met and are not told by the end itself."""
    notes = []
    if verdict.oom_kills and code == 0:
        kills = "a process was" if verdict.oom_kills == 1 else f"{verdict.oom_kills} processes were"
        limit = "" if verdict.memory_limit is None else f" of {binary_size(verdict.memory_limit)}"
        notes.append(f"{kills} killed at the memory limit{limit} (--memory), and the command went on")
    if verdict.pids_refused:
        most = "" if verdict.pids_limit is None else f" of {verdict.pids_limit} processes and threads"
        notes.append(f"the container met its limit{most} (--pids-limit), so it could not start another")
    return tuple(notes)


def _told(record: Record, outcome: Outcome) -> Told | None:
    """What whoever ended the container from elsewhere has noted, if that is how it ended."""
    note = Note.from_field(record.read("ended_by"))
    if note is None or outcome.failure is not None or outcome.reason not in {"exited", "lost"}:
        return None
    if outcome.status is None:
        return note.told(by_signal=signal.SIGKILL)
    return note.told(by_signal=os.WTERMSIG(outcome.status) if os.WIFSIGNALED(outcome.status) else None)


def _start_error(placed: Placed, outcome: Outcome) -> NbcontainerError:
    assert outcome.failure is not None
    problem = error_from(outcome.failure)
    sentence = f"{placed.subject.name}: {problem}"
    if isinstance(problem, ContainerStartError):
        return ContainerStartError(sentence, exit_code=problem.exit_code)
    return problem


def _bad_end(result: RunResult) -> ContainerExit:
    kinds: dict[str, type[ContainerExit]] = {"timeout": ContainerTimeout, "interrupted": ContainerInterrupted}
    kind = kinds.get(result.reason, ContainerExit)
    tail = "\n".join(result.stderr[-4096:].splitlines()[-_TAIL_LINES:])
    return kind(
        result.exit_code,
        result.argv,
        image=result.image,
        reason="; ".join((result.detail or f"exit code {result.exit_code}", *result.notes)),
        output=result.stdout,
        stderr_tail="" if result.reason in {"interrupted", "stopped"} else tail,
    )


_SOCKETS = ("docker.sock", "podman.sock", "containerd.sock")
_FORBIDDEN_SOURCES = frozenset({"/", "/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/boot"})


def resolved_volumes(options: RunOptions, store: str) -> tuple[BindMount, ...]:
    """The volumes with every link of their sources followed: what is checked here is what is mounted later.

    (Whoever mounts refuses links, so that none can be put in the way between.) Refuses what is not there, and what
    would hand the machine over.
    """
    resolved = []
    for volume in options.volumes:
        try:
            source = os.path.realpath(volume.source)
        except OSError as problem:  # a link that was there a moment ago
            raise InvalidOption(f"volume source {volume.source} changes while it is looked at; refused") from problem
        if not os.path.exists(source):
            raise InvalidOption(
                f"volume source {volume.source} does not exist on this machine; "
                f"make it first (mkdir -p {volume.source})"
            )
        runtime_directory = os.environ.get("JUPYTER_RUNTIME_DIR") or "~/.local/share/jupyter/runtime"
        keys = os.path.realpath(os.path.expanduser(runtime_directory))
        store = os.path.realpath(store)
        if _hands_over(source, [store, keys]):
            raise InvalidOption(
                f"volume source {volume.source} would hand this machine to the container: it is, lies in or holds "
                f"{_what_is_closed(source, store, keys)}"
            )
        resolved.append(dataclasses.replace(volume, source=source))
    return tuple(resolved)


def _what_is_closed(source: str, store: str, keys: str) -> str:
    """The cause and the way out, for the refusal of a volume."""
    if _same_or_below(store, source) and source not in _FORBIDDEN_SOURCES:
        elsewhere = ", or move the store out of it with NBCONTAINER_ROOT" if not _same_or_below(keys, source) else ""
        return f"this package's store ({store}); mount a subfolder that you need{elsewhere}"
    if _same_or_below(keys, source) and source not in _FORBIDDEN_SOURCES:
        return f"the keys of your notebooks ({keys}); mount a subfolder that you need"
    return "system files, this package's store, Jupyter's keys or an engine's socket; mount a folder of your own"


def _hands_over(source: str, closed: Sequence[str]) -> bool:
    """Whether `source` gives away more than files: the machine's own folders, what is `closed`, an engine's socket."""
    if source in _FORBIDDEN_SOURCES or source.startswith(("/proc/", "/sys/")):
        return True
    if os.path.basename(source) in {*_SOCKETS, ".jupyter"}:
        return True
    if any(os.path.exists(os.path.join(source, name)) for name in _SOCKETS):
        return True
    return any(_same_or_below(path, source) or _same_or_below(source, path) for path in closed)


def _same_or_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _resolv_conf() -> str:
    with contextlib.suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        return file.read(64 * 1024)
    return ""
