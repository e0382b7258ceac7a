"""How a run's end is told."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any, cast

import pytest

from nbcontainer.engine.running import Placed, Subject, _bad_end, _Kept, _result, resolved_volumes
from nbcontainer.errors import ContainerExit, ContainerInterrupted, ContainerTimeout, InvalidOption
from nbcontainer.model import BindMount, ContainerId, ContainerSpec, ImageConfig, Platform, RunOptions
from nbcontainer.runtime.protocol import Failed
from nbcontainer.runtime.supervisor import Outcome

if TYPE_CHECKING:
    from pathlib import Path

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


def placed(ended_by: object = None) -> Placed:
    """A container that was decided."""
    subject = Subject(
        name="tiny:latest", config=ImageConfig(platform=Platform("linux", "amd64")), chain=None, root=lambda _: ()
    )
    spec = ContainerSpec(id=ID, argv=("sh", "x"), root=())
    return Placed(subject=subject, spec=spec, record=cast("Record", NoRecord(ended_by)), started=0.0, kind=None)


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
    result = _result(placed(), Outcome(**{"failure": None, **outcome}), b"o", b"e")
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
    result = _result(placed(), outcome, b"", b"", limit=3)
    assert result.detail.startswith(detail)
    assert "every process" not in result.detail


def test_end_from_elsewhere_is_told() -> None:
    """What is noted in the record becomes the reason, unless the person or the time limit ended it."""
    noted = placed(ended_by={"verb": "stop", "signals": [15, 9]})
    lost = _result(noted, Outcome(status=None, failure=None, reason="lost"), b"", b"")
    assert (lost.reason, lost.exit_code) == ("stopped", 137)
    assert lost.detail == "stopped by `%container stop` (SIGTERM, SIGKILL)"
    assert not lost.ok
    itself = _result(noted, Outcome(status=0, failure=None, reason="exited"), b"", b"")
    assert (itself.reason, itself.exit_code, itself.ok) == ("stopped", 0, False)
    pressed = _result(noted, Outcome(status=2, failure=None, reason="interrupted", steps=("SIGINT",)), b"", b"")
    assert pressed.reason == "interrupted"


def test_start_failure_while_interrupted() -> None:
    """A container that failed because it was being ended is an interrupted one."""
    failed = Failed("ContainerStartError", "a prepared container had died")
    result = _result(placed(), Outcome(status=None, failure=failed, reason="interrupted"), b"", b"")
    assert (result.exit_code, result.reason) == (130, "interrupted")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [("exited", ContainerExit), ("timeout", ContainerTimeout), ("interrupted", ContainerInterrupted)],
)
def test_bad_end(reason: Any, kind: type[ContainerExit]) -> None:
    """Each end has its exception, with the image, and the last lines of standard error unless the person ended it."""
    stderr = "".join(f"line {number}\n" for number in range(50)).encode()
    problem = _bad_end(_result(placed(), Outcome(status=256, failure=None, reason=reason), b"out", stderr))
    assert type(problem) is kind
    assert str(problem).startswith("tiny:latest: ")
    assert problem.stdout == "out"
    assert ("line 49" in str(problem)) == (reason != "interrupted")
    assert "line 39" not in str(problem)
    assert isinstance(problem, KeyboardInterrupt) == (reason == "interrupted")


def test_tail_is_kept_when_output_goes_elsewhere() -> None:
    """With a sink, the last 64 KiB are kept, and the sink gets everything; without, everything is kept."""
    told: list[bytes] = []
    live = _Kept(lambda _, data: told.append(data), "stdout", cast("Record", NoRecord()))
    still = _Kept(None, "stdout", cast("Record", NoRecord()))
    everything = b""
    for number in range(3000):
        piece = b"%05d" % number * 20
        everything += piece
        live.take(piece)
        still.take(piece)
    live.take(b"x" * 200_000)
    assert live.data == b"x" * 65536
    assert still.data == everything
    assert b"".join(told) == everything + b"x" * 200_000


@pytest.mark.parametrize("where", ["below", "same", "above", "link"])
def test_store_is_no_volume(tmp_path: Path, where: str) -> None:
    """The store, what lies in it and what holds it cannot be shown to a container."""
    store = tmp_path / "store"
    (store / "containers").mkdir(parents=True)
    (tmp_path / "link").symlink_to(store / "containers")
    source = {"below": store / "containers", "same": store, "above": tmp_path, "link": tmp_path / "link"}[where]
    with pytest.raises(InvalidOption, match="hand this machine"):
        resolved_volumes(RunOptions(volumes=(BindMount(source=str(source), target="/x"),)), str(store))


def test_home_folder_as_a_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home folder with the store in it is refused with the ways out, and free once the store lies elsewhere."""
    (tmp_path / "home/share/store").mkdir(parents=True)
    (tmp_path / "home/runtime").mkdir()
    options = RunOptions(volumes=(BindMount(source=str(tmp_path / "home"), target="/x"),))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    with pytest.raises(InvalidOption, match=r"store \(.*share/store\); mount a subfolder .* NBCONTAINER_ROOT"):
        resolved_volumes(options, str(tmp_path / "home/share/store"))
    resolved_volumes(options, str(tmp_path / "elsewhere"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "home/runtime"))
    with pytest.raises(InvalidOption, match=r"mount a subfolder that you need$"):
        resolved_volumes(options, str(tmp_path / "home/share/store"))
    with pytest.raises(InvalidOption, match="keys of your notebooks"):
        resolved_volumes(options, str(tmp_path / "elsewhere"))


def test_neighbour_of_the_store_is_a_volume(tmp_path: Path) -> None:
    """A folder whose name begins like the store's is free."""
    (tmp_path / "storeroom").mkdir()
    (tmp_path / "store").mkdir()
    volume = BindMount(source=str(tmp_path / "storeroom"), target="/x")
    resolved_volumes(RunOptions(volumes=(volume,)), str(tmp_path / "store"))


def test_home_of_the_notebook_s_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder with the kernels' connection files is no volume."""
    (tmp_path / "runtime").mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    with pytest.raises(InvalidOption):
        resolved_volumes(
            RunOptions(volumes=(BindMount(source=os.fspath(tmp_path / "runtime"), target="/x"),)), "/store"
        )
