"""A recorded process is found again, and a stranger with its number is not taken for it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux import identity
from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@contextlib.contextmanager
def process(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, ended afterwards."""
    with subprocess.Popen(argv or ("sleep", "1000"), start_new_session=True) as started:
        try:
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)


def wait_until(claim: Callable[[], object]) -> None:
    """Wait a little for `claim`."""
    deadline = time.monotonic() + patient(10)
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_recorded_process_is_found() -> None:
    """Pid and start time name one process; its pidfd tells of its end."""
    with process() as victim:
        pidfd = identity.open_process(victim.pid, identity.start_time(victim.pid))
        try:
            assert not identity.has_ended(pidfd)
            assert identity.send_signal(pidfd, signal.SIGKILL)
            assert victim.wait(10) == -signal.SIGKILL
            assert identity.has_ended(pidfd)
            assert not identity.send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1])
def test_impossible_pid(pid: int) -> None:
    """What is no process is said not to be there."""
    with pytest.raises(ProcessLookupError):
        identity.open_process(pid, 1)


def test_other_start_time() -> None:
    """The same number with another start time is somebody else, and no descriptor is left."""
    with process() as stranger, pytest.raises(ProcessLookupError):
        identity.open_process(stranger.pid, identity.start_time(stranger.pid) - 1)


def test_ended_but_not_collected() -> None:
    """A zombie has the right number and start time, and is over all the same."""
    with process("true") as ended:
        started = identity.start_time(ended.pid)
        wait_until(lambda: b") Z " in Path(f"/proc/{ended.pid}/stat").read_bytes())
        with pytest.raises(ProcessLookupError):
            identity.open_process(ended.pid, started)


@pytest.mark.root
@pytest.mark.skipif(not os.access(_LAST_PID, os.W_OK), reason="pids cannot be chosen here (ns_last_pid)")
def test_recycled_pid() -> None:
    """A stranger who was given the very pid of a recorded process is not that process."""
    for _ in range(200):
        with process() as recorded:
            pid, started = recorded.pid, identity.start_time(recorded.pid)
        time.sleep(0.02)  # a clock tick of stat(5) is 10 ms
        with contextlib.suppress(OSError):
            _LAST_PID.write_text(str(pid - 1), encoding="ascii")
        with process() as stranger:
            if stranger.pid != pid:
                continue  # somebody else was quicker
            with pytest.raises(ProcessLookupError):
                identity.open_process(pid, started)
            assert stranger.poll() is None
            return
    pytest.fail("the pid was never given again")


def test_first_child_is_found() -> None:
    """The oldest child, with and without the kernel's list of children."""
    with process("sh", "-c", "sleep 1000 & echo; sleep 999") as parent:
        wait_until(lambda: len(identity._children_by_looking(parent.pid)) == 2)
        first = identity.first_child(parent.pid)
        assert identity._children_by_looking(parent.pid)[0] == first
        wait_until(lambda: Path(f"/proc/{first}/cmdline").read_bytes() == b"sleep\x001000\x00")
        parent_pidfd = identity.open_process(parent.pid, identity.start_time(parent.pid))
        child = identity.open_child(parent.pid, parent_pidfd)
        try:
            assert f"Pid:\t{first}\n" in Path(f"/proc/self/fdinfo/{child}").read_text()
        finally:
            os.close(child)
            os.close(parent_pidfd)


def test_no_child() -> None:
    """A process without children, and one that is gone, have no first child."""
    with process() as lonely:
        pidfd = identity.open_process(lonely.pid, identity.start_time(lonely.pid))
        with pytest.raises(ProcessLookupError):
            identity.open_child(lonely.pid, pidfd)
        lonely.kill()
        lonely.wait()
        with pytest.raises(ProcessLookupError):
            identity.open_child(lonely.pid, pidfd)
        os.close(pidfd)


@pytest.mark.parametrize("group", [True, False])
def test_signal_reaches_the_group(group: bool) -> None:
    """The leader's whole group hears a signal when asked, otherwise the leader alone."""
    with process("sh", "-c", "trap : TERM; sleep 1000; sleep 998") as leader:
        wait_until(lambda: identity._children_by_looking(leader.pid))
        child = identity.first_child(leader.pid)
        wait_until(lambda: Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"sleep"))
        pidfd = identity.open_process(leader.pid, identity.start_time(leader.pid))
        try:
            identity.send_signal(pidfd, signal.SIGTERM, group=group)
            if group:
                wait_until(lambda: identity.first_child(leader.pid) != child)
            else:
                time.sleep(0.1)
                assert identity.first_child(leader.pid) == child
        finally:
            os.close(pidfd)


def test_old_kernel_signals_the_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel does not know of groups behind pidfds (before 6.9), the leader still gets the signal."""
    asked: list[int] = []
    send = signal.pidfd_send_signal

    def old(pidfd: int, number: int, siginfo: None, flags: int) -> None:
        asked.append(flags)
        if flags:
            raise OSError(22, "Invalid argument")
        send(pidfd, number, siginfo, flags)

    monkeypatch.setattr(signal, "pidfd_send_signal", old)
    with process() as leader:
        pidfd = identity.open_process(leader.pid, identity.start_time(leader.pid))
        try:
            assert identity.send_signal(pidfd, signal.SIGTERM, group=True)
        finally:
            os.close(pidfd)
        assert leader.wait(10) == -signal.SIGTERM
    assert asked == [4, 0]
