"""Process trees, looked at and ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from nbcontainer._linux.trees import descendants, end_tree
from nbcontainer.runtime.child import stage
from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(claim: Callable[[], object]) -> None:
    """Wait until `claim` holds."""
    deadline = time.monotonic() + patient(10)
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def test_tree_and_session_are_ended_and_daemons_are_not(tmp_path: Path) -> None:
    """Children, grandchildren, orphans of the session, those that ignore signals and those that are stopped."""
    script = """
    trap '' TERM INT HUP
    (trap '' TERM; sleep 300; sleep 301) & echo $! >> pids
    (sleep 302 & echo $! >> pids)
    sleep 303 & echo $! >> pids; kill -STOP $!
    setsid sh -c 'echo $$ > daemon; exec sleep 304' &
    while [ ! -s daemon ]; do sleep 0.01; done
    touch ready; while :; do sleep 1; done
    """
    leader = subprocess.Popen(["sh", "-c", script], cwd=tmp_path, start_new_session=True)
    wait_until((tmp_path / "ready").exists)
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    daemon = int((tmp_path / "daemon").read_text())
    assert all(running(pid) for pid in (*pids, daemon))
    assert daemon in descendants(leader.pid)
    os.kill(leader.pid, 0)
    orphan = subprocess.Popen(["sleep", "305"], start_new_session=True)
    try:
        end_tree(leader.pid)
        assert leader.wait(10) == -9
        wait_until(lambda: not any(running(pid) for pid in pids))
        assert running(orphan.pid)
    finally:
        orphan.kill()
        orphan.wait()
    assert not running(daemon), "it was still a child of the tree"


def test_what_keeps_forking_is_ended() -> None:
    """Processes that fork all the time, and leave their parents at once, do not slip through."""
    busy = f"while :; do (sleep {patient(0.2)} & exec sleep {patient(0.1)}) & sleep 0.01; done"
    leader = subprocess.Popen(["sh", "-c", f"{busy} & {busy} & {busy}"], start_new_session=True)
    wait_until(lambda: len(descendants(leader.pid)) > 20)
    end_tree(leader.pid)
    assert leader.wait(10) == -9
    wait_until(lambda: not _left(leader.pid))


def _left(session: int) -> list[int]:
    found = []
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session and running(pid):
                found.append(pid)
    return found


def test_this_root_is_no_container_s() -> None:
    """Where /proc knows us, we are not in a container that we have joined from outside."""
    assert not stage.is_a_container_root()
