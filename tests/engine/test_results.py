"""How a run's end is told."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from nbcontainer.engine.results import Ran, bad_end, result_of
from nbcontainer.engine.running import _told
from nbcontainer.errors import ContainerExit, ContainerInterrupted, ContainerTimeout
from nbcontainer.model import ContainerId, RunResult
from nbcontainer.runtime.protocol import Failed
from nbcontainer.runtime.supervisor import Outcome

if TYPE_CHECKING:
    from nbcontainer.engine.records import Record

ID = ContainerId("a" * 64)


class NoRecord:
    """A record that keeps nothing."""

    id = ID

    def __init__(self, ended_by: object = None) -> None:
        self._ended_by = ended_by

    def read(self, name: str) -> object:
        """Tell what others wrote."""
        return self._ended_by if name == "ended_by" else None

    def append(self, stream: str, data: bytes) -> None:
        """Keep nothing."""


RAN = Ran(id=ID, image="tiny:latest", argv=("sh", "x"), started=0.0)


def result_for(
    outcome: Outcome, stderr: bytes = b"e", *, ended_by: object = None, limit: float = 0, joined: bool = False
) -> RunResult:
    """What is told of an end; `ended_by` is a note in the container's record."""
    told = _told(cast("Record", NoRecord(ended_by)), outcome)
    return result_of(replace(RAN, joined=joined), outcome, b"out", stderr, limit=limit, told=told)


@pytest.mark.parametrize(
    ("outcome", "code", "reason", "words"),
    [
        ({"status": 0, "reason": "exited"}, 0, "exited", ""),
        ({"status": 3 << 8, "reason": "exited"}, 3, "exited", ""),
        ({"status": int(signal.SIGSEGV), "reason": "exited"}, 139, "signalled", "killed by SIGSEGV"),
        ({"status": int(signal.SIGSEGV) | 0x80, "reason": "exited"}, 139, "signalled", "killed by SIGSEGV"),
        ({"status": 40, "reason": "exited"}, 168, "signalled", "killed by signal 40"),
        ({"status": None, "reason": "lost"}, 125, "lost", "vanished"),
        ({"status": None, "reason": "timeout", "steps": ("SIGKILL",)}, 137, "timeout", "time limit"),
        ({"status": 0, "reason": "interrupted", "steps": ("SIGINT",)}, 0, "interrupted", "(SIGINT)"),
        (
            {"status": None, "reason": "interrupted", "steps": ("SIGINT", "SIGTERM", "SIGKILL")},
            130,
            "interrupted",
            "SIGKILL",
        ),
        ({"status": 2, "reason": "interrupted", "steps": ("SIGINT",)}, 130, "interrupted", "SIGINT"),
    ],
)
def test_result(outcome: dict[str, Any], code: int, reason: str, words: str) -> None:
    """Codes as docker gives them, and a reason in words where the code does not tell it."""
    result = result_for(Outcome(**{"failure": None, **outcome}))
    assert (result.exit_code, result.reason) == (code, reason)
    assert words in result.detail
    assert result.ok == (code == 0 and reason == "exited")


@pytest.mark.parametrize(
    ("reason", "remains", "detail"),
    [
        ("interrupted", "unanswered", "interrupted before it was started; the launcher process does not answer"),
        ("interrupted", "dying", "interrupted; its processes have been killed, but the kernel has not let go of"),
        ("timeout", "unanswered", "time limit of 3 s reached before it was started"),
    ],
)
def test_what_could_not_be_ended_is_not_said_to_be(reason: Any, remains: Any, detail: str) -> None:
    """When an end is not seen, nothing is promised."""
    outcome = Outcome(status=None, failure=None, reason=reason, steps=("SIGKILL",), remains=remains)
    result = result_for(outcome, limit=3)
    assert result.detail.startswith(detail)
    assert "every process" not in result.detail


def test_end_from_elsewhere_is_told() -> None:
    """What is noted in the record becomes the reason, unless the person or the time limit ended it."""
    noted = {"verb": "stop", "signals": [15, 9]}
    lost = result_for(Outcome(status=None, failure=None, reason="lost"), ended_by=noted)
    assert (lost.reason, lost.exit_code) == ("stopped", 137)
    assert lost.detail == "stopped by `%container stop` (SIGTERM, SIGKILL)"
    assert not lost.ok
    itself = result_for(Outcome(status=0, failure=None, reason="exited"), ended_by=noted)
    assert (itself.reason, itself.exit_code, itself.ok) == ("stopped", 0, False)
    pressed = result_for(Outcome(status=2, failure=None, reason="interrupted", steps=("SIGINT",)), ended_by=noted)
    assert pressed.reason == "interrupted"


def test_start_failure_while_interrupted() -> None:
    """A container that failed because it was being ended is an interrupted one."""
    failed = Failed("ContainerStartError", "a prepared container had died")
    result = result_for(Outcome(status=None, failure=failed, reason="interrupted"))
    assert (result.exit_code, result.reason) == (130, "interrupted")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("exited", ContainerExit), ("timeout", ContainerTimeout), ("interrupted", ContainerInterrupted)],
)
def test_bad_end(reason: Any, kind: type[ContainerExit]) -> None:
    """Each end has its exception, with the image, and the last lines of standard error unless the person ended it."""
    stderr = "".join(f"line {number}\n" for number in range(50)).encode()
    problem = bad_end(result_for(Outcome(status=256, failure=None, reason=reason), stderr))
    assert type(problem) is kind
    assert str(problem).startswith("tiny:latest: ")
    assert problem.stdout == "out"
    assert ("line 49" in str(problem)) == (reason != "interrupted")
    assert "line 39" not in str(problem)
    assert isinstance(problem, KeyboardInterrupt) == (reason == "interrupted")


def test_joined_command_is_not_the_container() -> None:
    """Of a command that joined a container it is not said that the container's processes have ended."""
    late = result_for(Outcome(status=9, failure=None, reason="timeout", steps=("SIGKILL",)), limit=3, joined=True)
    assert late.detail == "time limit of 3 s reached; the command with all that it started has ended"
    pressed = result_for(Outcome(status=2, failure=None, reason="interrupted", steps=("SIGINT",)), joined=True)
    assert pressed.detail == "interrupted; the command with all that it started has ended (SIGINT)"
