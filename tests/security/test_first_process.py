"""PID 1, which takes on what its command may do: it has no more than that, is closed, and outlives nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import ContainerStartError
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.leaks import lives
from tests.harness.patience import patient
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Driver, Tier

_KILL = 1 << 5
_DEFAULT = 0xA80425FB
"""Docker's fourteen capabilities, as a mask."""

_LEASE = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
program = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(program, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["", "1000", "0:1000"], ids=["root", "user", "group"])
def user(request: pytest.FixtureRequest, tier: Tier) -> str:
    """Lend a user of the container, as ``--user`` takes it."""
    if request.param and not tier.has_users:
        pytest.skip("needs several ids")
    name: str = request.param
    return name


def test_rights(tier: Tier, user: str) -> None:
    """No capability but KILL, the command's filter, no privileges to come, a moment after the command has begun.

    Who has one id has a filter that pretends to give capabilities up, and it is loaded by then: there are the command's.
    """
    result = tier.run("/bin/sh", "-c", "sleep 0.3; cat /proc/1/status", user=user)
    status = dict(line.split(":\t", 1) for line in result.stdout.splitlines())
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    most = (_KILL if tier.has_users else _DEFAULT) if user != "1000" else 0
    for name in ("CapPrm", "CapEff"):
        assert int(status[name], 16) == most
    assert int(status["CapBnd"], 16) == _DEFAULT
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["Uid"].split() == ["1000" if user == "1000" else "0"] * 4


def test_trouble_is_no_failure_to_start(tier: Tier, user: str) -> None:
    """A command that takes PID 1 what it needs ends its container, and cannot have it said that it never began."""
    script = (
        "import os, resource, time\n"
        "print('begun', flush=True)\n"
        "resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0))\n"
        "if os.fork() == 0 and os.fork() == 0: os._exit(0)\n"
        "time.sleep(20)\n"
    )
    result = tier.run(PYTHON, "-I", "-c", script, user=user, timeout=patient(1.5))
    assert result.stdout == "begun\n"
    assert result.reason in {"lost", "timeout"}


@pytest.mark.parametrize("place", ["/proc/1/cwd", "/proc/1/root", "/proc/self/cwd", "/proc/self/root/tmp"])
def test_working_directory_by_way_of_the_first_process(tier: Tier, place: str) -> None:
    """What PID 1 may look at is not what a working directory may lead through."""
    with pytest.raises(Raised, match="working directory") as raised:
        tier.run("true", working_directory=place)
    assert raised.value.is_a(ContainerStartError)


@pytest.fixture
def driver(tier: Tier) -> Iterator[Driver]:
    """Lend an engine that may be killed."""
    with tier.spawn() as driver:
        yield driver


def launcher_of(driver: Driver) -> int:
    """Its launcher's pid."""
    pid: int = driver.look()["launcher"]
    return pid


@pytest.mark.parametrize("when", ["running", "waiting"])
def test_ends_with_its_launcher(driver: Driver, user: str, when: str) -> None:
    """Whatever identity it has taken on: the launcher's death ends it, although the engine stands still."""
    for _ in range(2):
        assert driver.run("true", user=user).ok
    wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool")
    launcher = launcher_of(driver)
    if when == "running":
        driver.begin_run("/bin/sh", "-c", "echo up; sleep 60", user=user)
        driver.wait_for_output(b"up")
    below = driver.processes()
    os.kill(driver.pid, signal.SIGSTOP)
    try:
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: not any(map(lives, below)), what="everything has ended")
    finally:
        os.kill(driver.pid, signal.SIGCONT)
    if when == "running":
        assert driver.finish()["reason"] == "lost"
    assert driver.run("true", user=user).ok


@pytest.fixture
def held(tier: Tier) -> Iterator[Path]:
    """Lend a folder with a program that cannot be executed for a while: somebody has a lease on it (fcntl(2))."""
    folder = tier.folder("held")
    program = folder / "program"
    program.write_text("#!/bin/sh\necho hi\n")
    program.chmod(0o755)
    if tier.user is not None:
        os.chown(program, tier.user.uid, tier.user.gid)
    with subprocess.Popen([sys.executable, "-c", _LEASE, str(program)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        yield folder
        holder.kill()


@pytest.mark.root  # only root can see what a process in a container waits for
@pytest.mark.parametrize("what", ["engine", "launcher", "both", "interrupt"])
def test_ends_although_its_command_cannot_begin(tier: Tier, driver: Driver, held: Path, user: str, what: str) -> None:
    """While the kernel holds up an execve, PID 1 hears nobody."""
    before = set(tier.containers())
    assert driver.run("true", user=user).ok
    launcher = launcher_of(driver)
    driver.begin_run("/held/program", user=user, volumes=[(held, "/held", "rw")])
    wait_until(lambda: any(_is_held(pid) for pid in driver.processes()), what="it waits for the lease")
    below = driver.processes()
    if what in {"engine", "both"}:
        driver.process.kill()
    if what in {"launcher", "both"}:
        os.kill(launcher, signal.SIGKILL)
    if what == "interrupt":
        driver.interrupt()
    if what in {"launcher", "interrupt"}:
        assert driver.finish(within=20)["reason"] == {"launcher": "lost", "interrupt": "interrupted"}[what]
    else:
        driver.process.wait()
        driver.kill()
    wait_until(lambda: not any(map(_is_held, below)), what="it has ended")
    if what != "interrupt":
        wait_until(lambda: not any(map(lives, below)), what="everything has ended")
        with tier.spawn() as another:  # it takes away what the dead have left
            assert another.run("true").ok
            wait_until(lambda: set(tier.containers()) <= before, what="nothing is left in the store")


def _is_held(pid: int) -> bool:
    try:
        return "break_lease" in Path(f"/proc/{pid}/wchan").read_text(encoding="ascii")
    except OSError:
        return False
