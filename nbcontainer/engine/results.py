"""How a command ended, in the words and codes that people get: pure, from what the supervisor and the limits saw."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.engine.ending import signal_name
from nbcontainer.errors import (
    ContainerExit,
    ContainerInterrupted,
    ContainerStartError,
    ContainerTimeout,
    NbcontainerError,
)
from nbcontainer.model import RunResult
from nbcontainer.runtime.groups import Verdict
from nbcontainer.runtime.launcher import error_from
from nbcontainer.runtime.limits import binary_size

if TYPE_CHECKING:
    from nbcontainer.engine.ending import Told
    from nbcontainer.model import ContainerId
    from nbcontainer.runtime.protocol import Failed
    from nbcontainer.runtime.supervisor import Outcome

__all__ = ["Ran", "bad_end", "result_of", "start_error"]

_TAIL_LINES = 10
_NO_VERDICT = Verdict()
_REMAINS = {
    "unanswered": " before it was started; the launcher process does not answer",
    "dying": "; its processes have been killed, but the kernel has not let go of them yet",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What it was that ran, and since when (`time.monotonic`); a command that `joined` a container is not all of it."""

    id: ContainerId
    image: str
    argv: tuple[str, ...]
    started: float
    joined: bool = False


def result_of(
    ran: Ran,
    outcome: Outcome,
    stdout: bytes,
    stderr: bytes,
    *,
    limit: float = 0,
    verdict: Verdict = _NO_VERDICT,
    told: Told | None = None,
) -> RunResult:
    """The result of a command that has ended: docker's code, a reason, and words where the code does not tell it.

    `limit` is the time that it had, `told` what whoever ended it from elsewhere has noted.
    """
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
        ended = f"; {_all_of(ran, 'cell')} has ended ({', '.join(outcome.steps)})"
        detail = f"interrupted{_REMAINS.get(outcome.remains, ended)}"
        code = 130 if code == 137 else code
    elif reason == "timeout":
        ended = f"; {_all_of(ran, 'container')} has ended"
        detail = f"time limit of {limit:g} s reached{_REMAINS.get(outcome.remains, ended)}"
    elif reason == "lost":
        detail = "its processes vanished without an exit code: killed from outside, or the machine ran out of memory"
    if told is not None:
        reason, detail = told.reason, told.detail
        code = told.code if outcome.status is None else code
    elif verdict.oom_kills and code != 0 and reason in {"exited", "signalled", "lost"}:
        reason, detail = "oom", _out_of_memory(verdict)
    return RunResult(
        id=ran.id,
        image=ran.image,
        argv=ran.argv,
        exit_code=code,
        reason=reason,
        duration=time.monotonic() - ran.started,
        stdout_bytes=stdout,
        stderr_bytes=stderr,
        detail=detail,
        notes=_notes(verdict, code),
    )


def _all_of(ran: Ran, what: str) -> str:
    return "the command with all that it started" if ran.joined else f"every process of the {what}"


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


def start_error(name: str, failure: Failed) -> NbcontainerError:
    """What to raise for a command that could not be started in `name`."""
    problem = error_from(failure)
    sentence = f"{name}: {problem}"
    if isinstance(problem, ContainerStartError):
        return ContainerStartError(sentence, exit_code=problem.exit_code)
    return problem


def bad_end(result: RunResult, name: str = "") -> ContainerExit:
    """What to raise for a command that did not end well; `name` is what it ran in, when that is not just the image."""
    kinds: dict[str, type[ContainerExit]] = {"timeout": ContainerTimeout, "interrupted": ContainerInterrupted}
    kind = kinds.get(result.reason, ContainerExit)
    tail = "\n".join(result.stderr[-4096:].splitlines()[-_TAIL_LINES:])
    return kind(
        result.exit_code,
        result.argv,
        image=name or result.image,
        reason="; ".join((result.detail or f"exit code {result.exit_code}", *result.notes)),
        output=result.stdout,
        stderr_tail="" if result.reason in {"interrupted", "stopped"} else tail,
    )
