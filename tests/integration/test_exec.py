"""Commands that join running containers: the same world inside, from any notebook, and nothing left of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.identity import parent_of
from nbcontainer.errors import Conflict, ContainerExit, ContainerStartError, InvalidOption
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.leaks import lives
from tests.integration.test_prepared import LOOK
from tests.integration.tiers import Driver, Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Tier

STUBBORN = "trap '' INT TERM HUP; echo ready; while :; do sleep 1; done"


@contextlib.contextmanager
def working(tier: Tier, script: str = "echo ready; exec sleep 1000", **options: Any) -> Iterator[Driver]:
    """Lend an engine in whose container `work` something runs; it is ended afterwards."""
    with tier.spawn() as driver:
        driver.begin_run(script=script, **{"name": "work", "remove": True, **options})
        driver.wait_for_output(b"ready")
        yield driver
        with contextlib.suppress(Raised):
            tier.driver.call("kill", "work")
        driver.finish()


@pytest.fixture
def guest(tier: Tier) -> Iterator[Driver]:
    """Lend another engine, which joins what `working` runs; its helpers leave with it."""
    with tier.spawn() as driver:
        yield driver


@pytest.fixture(params=["own", "another"])
def visited(request: pytest.FixtureRequest, tier: Tier) -> Any:
    """Lend a way to have a container `work` running, in the engine that joins it too or in another one's."""

    @contextlib.contextmanager
    def begin(script: str = "echo ready; exec sleep 1000", **options: Any) -> Iterator[Driver]:
        if request.param == "another":
            with working(tier, script, **options), tier.spawn() as guest:
                yield guest
            return
        with tier.spawn() as driver:
            driver.begin("aside", image=tier.image, script=script, options={"name": "work", "remove": True, **options})
            driver.finish()
            yield driver
            with contextlib.suppress(Raised):
                tier.driver.call("kill", "work")
            driver.begin("joined")
            driver.finish()

    return begin


_INTERNAL_SIGNALS = 0b11 << 31
"""Numbers 32 and 33 are the C library's own; what it spawns ignores them until its own C library wants them."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "65534:65534", "working_directory": "/tmp"},
        {"hostname": "box", "read_only": True, "environment": ("A=b",)},
    ],
    ids=["plain", "user", "hostname"],
)
def test_same_inside(tier: Tier, visited: Any, options: dict[str, Any]) -> None:
    """Identity, capabilities, filters, mounts, files, descriptors: what joins finds what the container's own command does."""
    if "user" in options and not tier.has_users:
        options = {**options, "user": "0:0"}
    result = tier.run(script=LOOK, shell=(PYTHON,), **options)
    own = json.loads(result.stdout)
    with visited(**options) as driver:
        joined = json.loads(driver.exec("work", script=LOOK, shell=(PYTHON,)).stdout)
    for found in (own, joined):
        assert found.pop("id")
        (script,) = found.pop("argv")
        assert script.startswith("/dev/cell")
        inside = found["status"].pop("NSpid").split(), found["status"].pop("NSsid").split()
        assert inside[0][-1] == inside[1][-1], "it leads a session of its own"
        found["status"]["SigIgn"] = int(found["status"]["SigIgn"], 16) & ~_INTERNAL_SIGNALS
        found.pop("processes")
    assert joined == own


def test_joiner_made_ahead_is_the_same(tier: Tier, visited: Any) -> None:
    """What was made ready after one visit is for the next one what a fresh one is; other wishes get a fresh one."""
    look = ("work", PYTHON, "-c", LOOK)
    with visited() as driver:
        fresh = json.loads(driver.exec(*look).stdout)
        time.sleep(0.3)
        ahead = json.loads(driver.exec(*look).stdout)
        for found in (fresh, ahead):
            for name in ("NSpid", "NSsid"):
                found["status"].pop(name)
            found["status"]["SigIgn"] = int(found["status"]["SigIgn"], 16) & ~_INTERNAL_SIGNALS
            found.pop("processes")
        assert ahead == fresh
        time.sleep(0.3)
        if tier.has_users:
            assert driver.exec("work", "/bin/sh", "-c", "id -u", user="alice").stdout == "1000\n"
        assert driver.exec("work", "/bin/sh", "-c", "echo $A", environment=("A=b",)).stdout == "b\n"
        time.sleep(0.3)
        driver.exec("work", "/bin/sh", "-c", "sed -i s,:/root:,:/tmp:, /etc/passwd")
        time.sleep(0.3)
        assert driver.exec("work", "/bin/sh", "-c", "echo $HOME").stdout == "/tmp\n"


def test_is_one_of_the_container_s_processes(visited: Any) -> None:
    """It sees the container's processes and they see it; the container's PID 1 is still not its parent's business."""
    with visited(
        "echo ready; while [ ! -e /tmp/seen ]; do sleep 0.05; done; for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; done; sleep 1000"
    ) as driver:
        result = driver.exec(
            "work",
            "/bin/sh",
            "-c",
            "tr '\\0' ' ' </proc/2/cmdline; echo; sed -n /PPid/p /proc/self/status; touch /tmp/seen",
        )
        command, parent = result.stdout.splitlines()
        assert command.startswith("/bin/sh /dev/cell")
        assert int(parent.split()[1]) > 1
        assert driver.exec("work", "/bin/sh", "-c", "sed -n /PPid/p /proc/$$/status").stdout.split() == ["PPid:", "0"]


def test_output_input_and_code(visited: Any) -> None:
    """Streams apart, bytes as they are, input to its end, the command's own code."""
    with visited() as driver:
        result = driver.exec("work", "/bin/sh", "-c", "cat; printf 'e\\377' >&2; exit 7", stdin=b"a\0b" * 100_000)
        assert result.stdout_bytes == b"a\0b" * 100_000
        assert (result.stderr_bytes, result.exit_code, result.reason) == (b"e\xff", 7, "exited")
        assert driver.exec("work", "/bin/sh", "-c", "kill -SEGV $$").detail == "killed by SIGSEGV"
        with pytest.raises(Raised, match="container work: exit code 3") as raised:
            driver.exec("work", "/bin/sh", "-c", "exit 3", check=True)
        assert raised.value.is_a(ContainerExit)


def test_options(tier: Tier, visited: Any) -> None:
    """Environment is added to the container's, the directory and the user are the command's own."""
    with visited(environment=("A=1", "B=2"), working_directory="/tmp") as driver:
        shown = driver.exec("work", "/bin/sh", "-c", 'echo "$A$B$C$HOME"; pwd; id -u', environment=("B=3", "C=4"))
        assert shown.stdout.split() == ["134/root", "/tmp", "0"]
        if tier.has_users:
            other = driver.exec(
                "work", "/bin/sh", "-c", "id -un; echo $HOME; pwd", user="alice", working_directory="/home/alice"
            )
            assert other.stdout.split() == ["alice", "/home/alice", "/home/alice"]
        for refused in (
            {"working_directory": "/nowhere"},
            {"working_directory": "/proc/self/fd/0"},
            {"user": "nobody-here"},
        ):
            with pytest.raises(Raised) as raised:
                driver.exec("work", "true", **refused)
            assert raised.value.is_a(ContainerStartError), refused
            assert raised.value.attributes["exit_code"] in {125, 126}
        with pytest.raises(Raised, match="must be absolute") as raised:
            driver.exec("work", "true", working_directory="tmp")
        assert raised.value.is_a(InvalidOption)


@pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("/etc/passwd", 126), ("/no/such", 127)])
def test_command_that_cannot_be(visited: Any, command: str, code: int) -> None:
    """Docker's codes, a sentence with the container's name, and the container goes on."""
    with visited() as driver:
        with pytest.raises(Raised, match=f"container work: command '{command}'") as raised:
            driver.exec("work", command)
        assert raised.value.attributes["exit_code"] == code
        assert driver.exec("work", "echo", "on").stdout == "on\n"


def test_a_script_leaves_no_file(visited: Any) -> None:
    """A cell's text is there while it runs, with its own interpreter, and gone afterwards."""
    with visited() as driver:
        result = driver.exec(
            "work", script=f"#!{PYTHON}\nimport sys; print(sys.argv[0], len(open(sys.argv[0]).read()))\n"
        )
        path, size = result.stdout.split()
        assert path.startswith("/dev/cell.")
        assert int(size) > 20
        assert driver.exec("work", "/bin/sh", "-c", "echo /dev/cell*").stdout == "/dev/cell\n"


@pytest.fixture(params=["fresh", "ahead"])
def join(request: pytest.FixtureRequest) -> Any:
    """Lend a way to begin a script in `work`: in a joiner made for it, or in one that was made ahead and spawns it."""

    def begin(guest: Driver, script: str) -> None:
        if request.param == "ahead":
            assert guest.exec("work", "true").ok
            time.sleep(0.3)
            guest.begin_exec("work", "/bin/sh", "-c", script)
        else:
            guest.begin_exec("work", script=script)

    return begin


@pytest.mark.parametrize(
    "script", [STUBBORN, "sleep 1000 & (sleep 1001 &); trap '' INT TERM; echo ready; sleep 1002; sleep 1003"]
)
def test_interrupt_ends_the_command_and_not_the_container(tier: Tier, guest: Driver, join: Any, script: str) -> None:
    """■ ends it with what it started, stubborn or orphaned; a daemon that it made, and the container, go on."""
    with working(tier, "echo ready; exec sleep 999") as driver:
        below = driver.processes()
        join(guest, f"setsid sleep 1234 >/dev/null 2>&1 & {script}")
        guest.wait_for_output(b"ready")
        guest.interrupt()
        result = guest.finish()
        assert (result["reason"], result["exit_code"]) == ("interrupted", 130)
        assert result["detail"].startswith("interrupted; the command with all that it started has ended")
        left = guest.exec(
            "work", "/bin/sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done"
        ).stdout
        assert "sleep 999" in left
        assert not {"sleep 1000", "sleep 1001", "sleep 1002", "sleep 1"} & set(map(str.strip, left.splitlines()))
        assert below <= driver.processes()


def test_timeout(visited: Any) -> None:
    """The time limit is the command's."""
    with visited() as driver:
        result = driver.exec("work", "sleep", "1000", timeout=0.2)
        assert (result.reason, result.exit_code) == ("timeout", 137)
        assert driver.exec("work", "echo", "on").stdout == "on\n"


def test_end_of_the_container_ends_the_command(tier: Tier, guest: Driver, join: Any) -> None:
    """Who sits in a container that ends is told that it did."""
    with working(tier) as driver:
        join(guest, "echo ready; sleep 1000")
        guest.wait_for_output(b"ready")
        with tier.spawn() as third:
            third.call("kill", "work")
        result = guest.finish()
        assert (result["reason"], result["exit_code"]) == ("stopped", 137)
        assert result["detail"] == "container work ended, and this command with it"
        assert driver.finish()["reason"] == "stopped"
        driver.begin_run(script="echo ready; sleep 1000", name="work", remove=True)  # for the end of the block
        driver.wait_for_output(b"ready")


@pytest.mark.parametrize("detached", [False, True])
def test_death_of_the_visitor(tier: Tier, join: Any, detached: bool) -> None:
    """A notebook that is killed takes along what it runs in another's container, unless that was let go."""
    with working(tier) as driver:
        with tier.spawn() as visitor:
            if detached:
                result = visitor.exec("work", "sleep", "4711", detached=True)
                assert (result.ok, result.stdout_bytes) == (True, b"")
            else:
                join(visitor, "exec sleep 4711")
                wait_until(lambda: _runs(tier, "sleep 4711"), what="it has joined")
            visitor.kill()
        if detached:
            time.sleep(0.3)
            assert _runs(tier, "sleep 4711")
        else:
            wait_until(lambda: not _runs(tier, "sleep 4711"), what="it is gone")
        assert driver.process.poll() is None


def _runs(tier: Tier, command: str) -> bool:
    """Whether such a process is in the container."""
    return any(process.command == command for process in tier.driver.call("top", "work"))


def test_paused_and_ended_containers_are_refused(tier: Tier, guest: Driver) -> None:
    """A sentence that says what is the matter, and no waiting."""
    with pytest.raises(Raised, match="no container 'work'"):
        tier.driver.exec("work", "true")
    tier.run("true", name="kept")
    with pytest.raises(Raised, match="container kept is not running") as raised:
        tier.driver.exec("kept", "true")
    assert raised.value.is_a(Conflict)
    tier.driver.call("remove_container", "kept")
    with working(tier):
        try:
            tier.driver.call("pause", "work")
        except Raised:  # an ordinary user with cgroups v1
            assert not tier.privileged
            return
        with pytest.raises(Raised, match="is paused; `%container unpause work`"):
            guest.exec("work", "true")
        tier.driver.call("unpause", "work")
        assert guest.exec("work", "true").ok
        with pytest.raises(Raised, match="no command to run"):
            guest.exec("work")


def test_limits_are_the_container_s(tier: Tier, visited: Any) -> None:
    """What joins is counted with the container, killed for memory with its limit, and cannot lift it."""
    try:
        context = visited(limits={"memory": 64 << 20, "pids": 20})
        driver = context.__enter__()
    except (Raised, AssertionError):
        if tier.privileged:
            raise
        pytest.skip("an ordinary user has no limits with cgroups v1")
    try:
        eater = driver.exec("work", PYTHON, "-c", "x = b'x' * (200 << 20)")
        assert (eater.reason, eater.exit_code) == ("oom", 137)
        assert "memory limit 64.0 MiB" in eater.detail or "memory limit 64 MiB" in eater.detail
        forks = driver.exec("work", script="for i in $(seq 40); do sleep 2 & done; wait")
        assert any("--pids-limit" in note for note in forks.notes), forks
    finally:
        context.__exit__(None, None, None)


def test_nothing_is_left(tier: Tier) -> None:
    """After visits there is no process, descriptor or thread more than before; a helper leaves with its engine."""
    with working(tier) as driver:
        with tier.spawn() as visitor:
            for _ in range(3):
                assert visitor.exec("work", "true").ok
            before = visitor.look()
            processes = len(visitor.processes())
            for _ in range(20):
                assert visitor.exec("work", "true").ok
            assert len(visitor.look()["fds"]) == len(before["fds"])
            wait_until(lambda: len(visitor.processes()) <= processes, what="the attendants are gone")
            below = visitor.processes()
        wait_until(lambda: not any(map(lives, below)), what="its helpers are gone")
        assert len(tier.driver.call("top", "work")) == 1
        assert driver.process.poll() is None
    wait_until(lambda: len(tier.driver.processes()) == tier.driver.at_rest, what="the processes at rest")


def test_many_at_once(tier: Tier, guest: Driver) -> None:
    """Visits of several threads do not disturb each other."""
    with working(tier):
        guest.begin("exec_many", container="work", argv=["/bin/sh", "-c", "echo $$"], threads=8, rounds=5)
        results = guest.finish()
        assert len(results) == 40
        assert [each for each in results if each[0] or not each[1].strip().isdigit()] == []


@pytest.mark.root
def test_container_in_waiting_is_no_way_to_the_machine(tier: Tier) -> None:
    """What joined the process of a container that is not built yet would see the machine's files; it is refused.

    The kernel refuses where those processes are closed to the launcher, too; where they are not, we do.
    """
    assert tier.run("true").ok
    wait_until(lambda: len(tier.driver.processes()) == tier.driver.at_rest, what="a full pool")
    time.sleep(0.2)  # what is built ahead is built
    said = []
    for pid in tier.driver.processes():
        try:
            inside = os.readlink(f"/proc/{pid}/ns/pid") != os.readlink(f"/proc/{tier.driver.pid}/ns/pid")
            waiting = inside and os.stat(f"/proc/{pid}/root/").st_ino == os.stat("/").st_ino
        except OSError:
            continue
        if waiting:
            tier.driver.begin("visit_waiting", pid=pid)
            said.append(tier.driver.finish())
    assert said
    assert all("just starting" in each or "cannot be entered" in each for each in said), said


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_death_of_who_attends(tier: Tier, guest: Driver, join: Any) -> None:
    """A command does not go on when the process that attends it is killed."""
    with working(tier):
        join(guest, "echo ready; exec sleep 4712")
        guest.wait_for_output(b"ready")
        time.sleep(0.1)  # a joiner may be its parent for a moment
        (command,) = [pid for pid in guest.processes() if _command_line(pid) == b"sleep\0004712\0"]
        os.kill(parent_of(command), signal.SIGKILL)
        assert guest.finish()["reason"] == "lost"
        wait_until(lambda: not _runs(tier, "sleep 4712"), what="it is gone")
        assert guest.exec("work", "echo", "on").stdout == "on\n"


def test_kill_of_the_command_alone(tier: Tier, guest: Driver, join: Any) -> None:
    """A command that is killed from outside is reported as that, and the container lives."""
    with working(tier):
        join(guest, "echo ready; exec sleep 1000")
        guest.wait_for_output(b"ready")
        with tier.spawn() as other:
            assert other.exec(
                "work",
                "/bin/sh",
                "-c",
                "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline) in 'sleep 1000 '*) [ $(cut -d' ' -f4 $p/stat) = 0 ] && kill -9 ${p#/proc/};; esac; done; true",
            ).ok
        result = guest.finish()
        assert (result["reason"], result["exit_code"]) == ("signalled", 128 + signal.SIGKILL)
