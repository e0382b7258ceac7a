"""A container against whoever joins it with `exec`: it sees, reaches, changes and keeps nothing of the machine's."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import Conflict, ContainerNotFound, ContainerStartError
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.leaks import lives
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.tiers import Driver, Raised, wait_until
from tests.security.test_way_in import CHANGE_WHAT_RUNS, HARMLESS, ITS_HOME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Tier

LURKER = (
    (Path(__file__).parent / "lurker.py").read_text(encoding="utf-8").replace("from __future__ import annotations", "")
)

WAITING = "echo ready; exec sleep 1000"


@contextlib.contextmanager
def hostile(tier: Tier, way: str, script: str, **options: Any) -> Iterator[Driver]:
    """Have a container `work` running; lend the engine that joins it: the one that runs it ("own"), or another."""
    options = {"name": "work", "remove": True, **options}
    with contextlib.ExitStack() as undo:
        driver = undo.enter_context(tier.spawn())
        if way == "own":
            guest = driver
            driver.begin("aside", image=tier.image, script=script, options=options)
            driver.finish()
        else:
            guest = undo.enter_context(tier.spawn())
            driver.begin_run(script=script, **options)
            driver.wait_for_output(b"ready")
        try:
            yield guest
        finally:
            with contextlib.suppress(Raised):
                tier.driver.call("kill", "work")
            if way == "own":
                driver.begin("joined")
            with contextlib.suppress(Raised):
                driver.finish()


def python(script: str) -> str:
    """A cell that the image's Python runs."""
    return f"#!{PYTHON} -IS\n{script}"


def visits(guest: Driver, most: int) -> dict[str, Any]:
    """Join the lurker's container until it has had enough; what it tells."""
    for _ in range(most):
        guest.exec("work", "/bin/true", timeout=5)

    def tells() -> bool:
        return guest.exec("work", "/bin/cat", "/tmp/found", timeout=5).ok

    wait_until(tells, within=20, what="the lurker tells")
    found: dict[str, Any] = json.loads(guest.exec("work", "/bin/cat", "/tmp/found").stdout)
    return found


@OWN_TIER
@pytest.mark.parametrize("way", ["own", "another"])
@pytest.mark.parametrize(
    ("signals", "added"),
    [("none", ()), ("kill", ()), ("stop", ("SYS_PTRACE",)), ("stop", ("SYS_PTRACE", "SYS_ADMIN"))],
    ids=["plain", "kill", "ptrace", "admin"],
)
def test_lurker(exposed: Tier, way: str, signals: str, added: tuple[str, ...]) -> None:
    """Whoever looks at every new process sees none with other rights than its own, and gets into none of the machine's.

    Not even with CAP_SYS_PTRACE, where the interpreter is the person's own file and runs in a user namespace
    (CVE-2016-9962, CVE-2022-1227).
    """
    script = python(LURKER.replace("MOST", "10").replace("SIGNALS", signals))
    with hostile(exposed, way, script, cap_add=added) as guest:
        found = visits(guest, 10)
    assert found["met"] >= 10
    assert found["found"] == []
    assert found["other"] == []


LEASE = """
import ctypes, os, signal, time
with open("/bin/sh", "rb") as file, open("/tmp/held", "wb") as copy:
    copy.write(file.read())
os.chmod("/tmp/held", 0o755)
signal.signal(signal.SIGIO, signal.SIG_IGN)
F_SETLEASE, F_WRLCK = 1024, 1
assert ctypes.CDLL(None).fcntl(os.open("/tmp/held", os.O_RDWR), F_SETLEASE, F_WRLCK) == 0
print("ready", flush=True)
time.sleep(1000)
"""


@OWN_TIER
@pytest.mark.parametrize("way", ["own", "another"])
def test_execve_held(exposed: Tier, way: str) -> None:
    """A command whose program somebody inside has leased waits in its execve, and can be ended there.

    It is a child that shares its joiner's memory, of which nobody has told the porter yet.
    """
    with hostile(exposed, way, python(LEASE)) as guest:
        assert guest.exec("work", "/bin/true").ok
        time.sleep(patient(0.3))
        result = guest.exec("work", "/tmp/held", "-c", "echo hi", timeout=0.5)
        assert (result.reason, result.exit_code) == ("timeout", 137)
        assert result.detail.endswith("the command with all that it started has ended")
        assert guest.exec("work", "/bin/echo", "on").stdout == "on\n"


def porter_of(guest: Driver) -> int:
    """The pid of the process that attends what joins: its children are in the container's mount namespace."""
    for pid in sorted(guest.processes()):
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            theirs = {os.stat(f"/proc/{child}/ns/mnt").st_ino for child in children}
            if len(children) == 2 and len(theirs) == 1 and os.stat(f"/proc/{pid}/ns/mnt").st_ino not in theirs:
                return pid
    raise AssertionError("there is no porter with a door and a joiner")


@pytest.mark.root  # to tell a porter by its children's namespaces
@OWN_TIER
def test_late_porter(exposed: Tier) -> None:
    """A command that has ended by itself leaves behind what it left behind, also when its porter hears of that late."""
    with hostile(exposed, "own", WAITING) as guest:
        for seconds in range(7700, 7705):
            assert guest.exec("work", "/bin/true").ok
            time.sleep(patient(0.2))
            porter = porter_of(guest)
            os.kill(porter, signal.SIGSTOP)
            later = threading.Timer(patient(0.3), os.kill, (porter, signal.SIGCONT))  # a slow end is its to tell
            later.start()
            assert guest.exec("work", "/bin/sh", "-c", f"sleep {seconds} >/dev/null 2>&1 & :").ok
            later.join()
            time.sleep(patient(0.3))
            assert f"sleep {seconds}" in {each.command for each in guest.call("top", "work")}


@pytest.mark.root  # to tell a porter by its children's namespaces
@OWN_TIER
def test_porter_killed_before_it_has_heard(exposed: Tier) -> None:
    """A command ends with its porter, even with one that was hung when it began."""
    with hostile(exposed, "own", WAITING) as guest:
        assert guest.exec("work", "/bin/true").ok
        time.sleep(patient(0.3))
        porter = porter_of(guest)
        os.kill(porter, signal.SIGSTOP)
        guest.begin_exec("work", "/bin/sleep", "7702")
        time.sleep(patient(0.3))
        os.kill(porter, signal.SIGKILL)
        assert guest.finish()["reason"] == "lost"
        wait_until(
            lambda: "sleep 7702" not in {each.command for each in guest.call("top", "work")}, what="the command ends"
        )


MOUNTED = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/tmp/m")
assert libc.mount(b"t", b"/tmp/m", b"tmpfs", 0, None) == 0
print("ready", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.05)
time.sleep(0.5)
with open("/tmp/said", "w") as file:
    print(libc.umount(b"/tmp/m"), file=file)
time.sleep(1000)
"""


@OWN_TIER
def test_no_joiner_sits_in_the_working_directory(exposed: Tier) -> None:
    """What a visit worked in can be unmounted after it, although the next joiner waits already."""
    with hostile(exposed, "own", python(MOUNTED), cap_add=("SYS_ADMIN",)) as guest:
        assert guest.exec("work", "/bin/sh", "-c", "echo >/tmp/go", working_directory="/tmp/m").ok
        wait_until(lambda: guest.exec("work", "/bin/cat", "/tmp/said").stdout != "", what="it has tried")
        assert guest.exec("work", "/bin/cat", "/tmp/said").stdout == "0\n"


@pytest.mark.parametrize("way", ["command", "interpreter"])
def test_interpreter_of_the_visitor(exposed: Tier, way: str) -> None:
    """Who joins another notebook's container with a command that names our program does not get it to change."""
    commands = {
        "command": ("/proc/self/exe", "-S", "-c", CHANGE_WHAT_RUNS, "/proc/self/exe"),
        "interpreter": ("/tmp/s",),
    }
    prepare = f"cat >/tmp/s <<'END'\n#!/proc/self/exe -S\n{CHANGE_WHAT_RUNS}\nEND\nchmod 755 /tmp/s; echo ready; exec sleep 1000"
    ours = exposed.user.python if exposed.user else sys.executable
    before = Path(ours).stat().st_ctime_ns
    for where in ("own", "another"):
        with hostile(exposed, where, prepare) as guest:
            try:
                result = guest.exec(
                    "work", *commands[way], *(["/proc/self/exe"] if way == "interpreter" else []), environment=ITS_HOME
                )
            except Raised as raised:
                assert raised.is_ours, raised.kinds
                continue
            if result.ok:
                assert set(json.loads(result.stdout)[1].values()) <= HARMLESS, result
            else:
                assert "Traceback" not in result.stderr, result
    assert Path(ours).stat().st_ctime_ns == before


def test_pythons_of_two_kinds(tier: Tier, exposed: Tier) -> None:
    """A container that may trace is not joined by a program that would be open to it there; others are."""
    if tier.user is None:
        pytest.skip("root's interpreter is never a container's own")
    with exposed.spawn() as guest:
        with hostile(tier, "another", WAITING):
            assert guest.exec("work", "echo", "in").stdout == "in\n"
        with hostile(tier, "another", WAITING, cap_add=("SYS_PTRACE",)):
            with pytest.raises(Raised, match="may trace processes") as raised:
                guest.exec("work", "true")
            assert raised.value.is_ours
    with hostile(exposed, "own", WAITING, cap_add=("SYS_PTRACE",)), tier.spawn() as guest:
        assert guest.exec("work", "echo", "in").stdout == "in\n"


# --- what joins looks around in a world that a stranger made ---------------------------------------------------------


@pytest.mark.parametrize(
    "lie",
    [
        "ln -sf /dev/zero /etc/passwd; ln -sf /proc/1/environ /etc/group",
        "rm /etc/passwd /etc/group; mkfifo /etc/passwd /etc/group",
        "head -c 8000000 /dev/zero | tr '\\0' a >/etc/passwd; ln -sf passwd /etc/group",
        "rm -rf /etc; ln -s /proc/1/root/etc /etc",
        "ln -sf /proc/1/fd/0 /etc/passwd; ln -sf /proc/1/fd/3 /etc/group",
        "printf 'mallory:x:4294967295:0::/:\nmallory:x:-1:0::/:\n0:x:77:77::/:\n' >/etc/passwd",
    ],
)
def test_account_files(tier: Tier, lie: str) -> None:
    """Account files that are links, pipes, endless or lies do not hold a command up and make it nobody else."""
    with hostile(tier, "another", f"{lie}; {WAITING}") as guest:
        result = guest.exec("work", "/bin/sh", "-c", "id -u; id -g", timeout=15)
        assert result.stdout.split() == ["0", "0"], result
        with pytest.raises(Raised, match="not in the image's") as raised:
            guest.exec("work", "id", user="mallory", timeout=15)
        assert raised.value.is_a(ContainerStartError)


@pytest.mark.parametrize("way", ["own", "another"])
def test_working_directories(tier: Tier, way: str) -> None:
    """A working directory cannot be a descriptor or a folder of whoever joins, nor a loop of links (CVE-2024-21626)."""
    links = "; ".join(f"ln -s /proc/self/fd/{number} /tmp/fd{number}" for number in range(3, 10))
    with hostile(tier, way, f"{links}; ln -s b /tmp/a; ln -s a /tmp/b; {WAITING}") as guest:
        places = [f"/proc/self/fd/{number}" for number in range(3, 12)]
        places += [f"/tmp/fd{number}" for number in range(3, 10)]
        places += ["/tmp/a", "/proc/self/cwd", "/proc/1/cwd", "/proc/1/root", "/proc/self/fd/5/../..", "/proc/1/fd/3"]
        for place in places:
            with pytest.raises(Raised) as raised:
                guest.exec("work", "/bin/pwd", working_directory=place)
            assert raised.value.is_a(ContainerStartError), (place, str(raised.value))


def test_path_of_the_container(tier: Tier) -> None:
    """What is looked up in a $PATH of links, loops and descriptors is a program of the container, or none."""
    folders = "/loop:/proc/self/fd/3:/proc/1/root/bin:/proc/1/cwd:/proc/self/cwd/bin:/dev/fd"
    with hostile(tier, "another", f"ln -s /loop /loop; {WAITING}", environment=(f"PATH={folders}",)) as guest:
        with pytest.raises(Raised, match="not found in \\$PATH") as raised:
            guest.exec("work", "python3")
        assert raised.value.attributes["exit_code"] == 127


@pytest.mark.parametrize("way", ["own", "another"])
@pytest.mark.parametrize(
    "change",
    [
        "mount -t tmpfs none /proc",
        "mount -t tmpfs none /proc; mkdir /proc/self",
        "mount -t tmpfs none /dev",
        "umount -l /dev; rm -rf /dev; ln -s /proc/1/root /dev",
        "mkdir /tmp/new; mount -t tmpfs none /tmp/new; mount --move /tmp/new /",
        "umount -l /dev; umount -l /proc",
        "unshare -m sh -c 'echo ready; exec sleep 1000'",
        "unshare -m sh -c 'mount -t tmpfs none /proc; echo ready; exec sleep 1000'",
    ],
)
def test_mounts_of_the_container(tier: Tier, way: str, change: str) -> None:
    """With CAP_SYS_ADMIN a container mounts over everything that joining looks at: a command of its own, or a refusal."""
    with hostile(tier, way, f"set -e; touch /inside; {change}; {WAITING}", cap_add=("SYS_ADMIN",)) as guest:
        for asked in ({"script": "cat /inside /canary 2>&1; true"}, {"argv": ("/bin/ls", "/")}):
            argv = asked.pop("argv", ())
            try:
                result = guest.exec("work", *argv, timeout=10, **asked)
            except Raised as raised:
                assert raised.is_ours, raised.kinds
                assert "Error:" not in str(raised), str(raised)
            else:
                assert "boot" not in result.stdout, result


@pytest.mark.parametrize("way", ["own", "another"])
@pytest.mark.parametrize("which", ["U", "Um", "Unimu", "p", "T"])
def test_namespaces_of_the_command(tier: Tier, way: str, which: str) -> None:
    """A command that went into namespaces of its own is joined in those or not at all; never with more rights."""
    script = f"unshare -{which} sh -c 'echo ready; exec sleep 1000'"
    if which == "p":
        script = f"unshare -p true; {WAITING}"
    options: dict[str, Any] = {"cap_add": ("SYS_ADMIN",)}
    with hostile(tier, way, script, **options) as guest:
        try:
            result = guest.exec("work", "/bin/sh", "-c", "sed -n '/^Cap[EPB]/p;/^Sec/p' /proc/self/status", timeout=10)
        except Raised as raised:
            assert raised.is_ours, raised.kinds
            assert "Error:" not in str(raised), str(raised)
            return
        rights = dict(line.split(":\t") for line in result.stdout.splitlines())
        assert int(rights["CapEff"], 16) <= 0xA82425FB, result
        assert rights["Seccomp"] == "2"


ZOMBIE = """
import ctypes, os, threading, time
def stay():
    time.sleep(2)
    print("ready", flush=True)
    time.sleep(1000)
threading.Thread(target=stay).start()
ctypes.CDLL(None).syscall(ctypes.c_long(60 if os.uname().machine == "x86_64" else 93), 0)
"""
UNDUMPABLE = """
import ctypes, time
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("way", ["own", "another"])
@pytest.mark.parametrize(("script", "joins"), [(UNDUMPABLE, True), (ZOMBIE, False)], ids=["undumpable", "zombie"])
def test_command_that_hides(tier: Tier, way: str, script: str, joins: bool) -> None:
    """A command that closed itself, or of which only threads are left, does not confuse whoever joins."""
    with hostile(tier, way, python(script)) as guest:
        if joins:
            assert guest.exec("work", "echo", "in").stdout == "in\n"
        else:
            with pytest.raises(Raised) as raised:
                guest.exec("work", "true", timeout=10)
            assert raised.value.is_a(Conflict) or raised.value.is_a(ContainerStartError), raised.value.kinds
            assert "Error:" not in str(raised.value)


# --- the text of a cell -----------------------------------------------------------------------------------------------

PLANT = """
import os, time
print("ready", flush=True)
seen = set()
while True:
    for name in os.listdir("/dev"):
        if name.startswith("cell.") and name not in seen:
            seen.add(name)
            try:
                os.rename(f"/dev/{name}", f"/dev/moved-{len(seen)}")
                os.symlink("/etc/passwd", f"/dev/{name}")
            except OSError:
                pass
"""


def test_links_in_the_place_of_a_script(tier: Tier) -> None:
    """Who exchanges a script for a link changes what the container runs, which is its own; nothing else is removed."""
    with hostile(tier, "another", python(PLANT)) as guest:
        for _ in range(10):
            with contextlib.suppress(Raised):
                guest.exec("work", script="echo on", timeout=5)
        assert "root" in guest.exec("work", "/bin/cat", "/etc/passwd").stdout
        assert tier.driver.run("true").ok


def test_no_room_for_a_script(tier: Tier) -> None:
    """Without room for the text of a cell there is a sentence that says so; commands work still."""
    fill = f"cat /dev/zero >/dev/filling 2>/dev/null; {WAITING}"
    with hostile(tier, "another", fill) as guest:
        with pytest.raises(Raised, match="text cannot be put") as raised:
            guest.exec("work", script="echo on\n" * 10_000)
        assert raised.value.is_a(ContainerStartError)
        left = ("work", "/bin/sh", "-c", "echo /dev/cell*")
        wait_until(lambda: guest.exec(*left).stdout.split() == ["/dev/cell"], what="the text is taken away")


# --- ends, limits, crowds ---------------------------------------------------------------------------------------------


def test_processes_without_number(tier: Tier) -> None:
    """An interrupt ends a command with all that it started, however many processes those are."""
    many = "for i in $(seq 1500); do sleep 4242 & done; echo ready; wait"
    with hostile(tier, "another", WAITING) as guest:
        guest.begin_exec("work", script=many)
        guest.wait_for_output(b"ready", within=60)
        guest.interrupt()
        assert guest.finish()["reason"] == "interrupted"
        left = [each for each in tier.driver.call("top", "work") if each.command == "sleep 4242"]
        assert len(left) == 0


def _finished(guest: Driver) -> None:
    """Wait for the end; on a busy machine both interrupts may have come before the command was asked for."""
    for _ in range(3):
        try:
            guest.finish(within=10)
        except AssertionError:
            guest.interrupt()
        else:
            return
    guest.finish(within=10)


def test_interrupted_while_joining(tier: Tier) -> None:
    """Interrupted at whatever moment, no command stays behind in the container."""
    with hostile(tier, "another", WAITING) as guest:
        assert guest.exec("work", "true").ok
        for number in range(40):
            guest.begin_exec("work", script="sleep 4243")
            time.sleep(number * 0.001)
            guest.interrupt()
            time.sleep(0.001 * (number % 3))
            guest.interrupt()
            try:
                _finished(guest)
            except Raised as raised:
                assert raised.is_ours or raised.is_a(KeyboardInterrupt), raised.kinds
        wait_until(lambda: len(tier.driver.call("top", "work")) == 1, what="no command is left")


@pytest.mark.parametrize("way", ["own", "another"])
def test_killed_under_a_crowd(tier: Tier, way: str) -> None:
    """Fifty commands are joining when their container is killed: each is told so in a sentence, and nothing is left."""
    with hostile(tier, way, WAITING) as guest:
        guest.begin("exec_many", container="work", argv=["/bin/sh", "-c", "sleep 0.02; echo on"], threads=50, rounds=3)
        time.sleep(patient(0.7))
        tier.driver.call("kill", "work")
        results = guest.finish()
    assert len(results) == 150
    for code, text in results:
        assert code in {0, 137, -1}, (code, text)
        assert "Error:" not in text, text
        assert code != -1 or "work" in text, text


def test_no_process_to_spare(tier: Tier) -> None:
    """A container that has all the processes it may have gets no further one, and a sentence says why."""
    bomb = f"(for i in $(seq 40); do sleep 1000 & done) 2>/dev/null; {WAITING}"
    try:
        with hostile(tier, "another", bomb, limits={"pids": 20}) as guest:
            with pytest.raises(Raised, match="limit on processes") as raised:
                guest.exec("work", "true")
            assert raised.value.is_a(ContainerStartError)
    except (Raised, AssertionError):
        if tier.privileged:
            raise
        pytest.skip("an ordinary user has no limits with cgroups v1")


def test_frozen_while_joining(tier: Tier) -> None:
    """A container that is paused while somebody joins: both end, and an interrupt is obeyed."""
    if not tier.privileged:
        pytest.skip("an ordinary user cannot pause with cgroups v1")
    with hostile(tier, "another", WAITING) as guest, tier.spawn() as other:
        assert guest.exec("work", "true").ok
        for number in range(6):
            guest.begin_exec("work", "true", timeout=1.0)
            time.sleep(number * 0.005)
            other.call("pause", "work")
            try:
                guest.finish(within=15)
            except Raised as raised:
                assert raised.is_ours, raised.kinds
            try:
                other.call("unpause", "work")
            except Raised as raised:  # the end of a command that was frozen has let the container go on
                assert str(raised) == "container work is not paused"
        assert guest.exec("work", "echo", "on").stdout == "on\n"
        wait_until(lambda: len(tier.driver.call("top", "work")) == 1, what="no command is left")


# --- a second life ----------------------------------------------------------------------------------------------------


def test_started_twice_at_once(tier: Tier) -> None:
    """Of two notebooks that start a container again at once, one does; the other is told that it runs."""
    tier.run(script="touch /tmp/x; echo x >>/tmp/lives; sleep 0.5", name="kept")
    with tier.spawn() as one, tier.spawn() as two:
        assert one.run("true").ok
        assert two.run("true").ok
        for _ in range(4):
            for each in (one, two):
                each.begin("start", container="kept", restart=False, live=False)
            ended = []
            for each in (one, two):
                try:
                    ended.append(each.finish()["exit_code"])
                except Raised as raised:
                    assert raised.is_a(Conflict), raised.kinds
                    ended.append(str(raised))
            assert ended.count(0) == 1, ended
        tier.driver.call("remove_container", "kept")


def test_started_while_it_is_removed(tier: Tier) -> None:
    """Of a start and a removal at once one wins: no container runs whose files and record are gone."""
    with tier.spawn() as one, tier.spawn() as two:
        assert one.run("true").ok
        for number in range(12):
            tier.run(script="echo on; sleep 0.1; ls /made || touch /made", name="kept")
            one.begin("start", container="kept", restart=False, live=False)
            time.sleep(number * 0.0005)
            began = time.monotonic()
            removed = True
            try:
                two.call("remove_container", "kept")
            except Raised as raised:
                assert raised.is_a(Conflict), raised.kinds
                removed = False
            took = time.monotonic() - began
            try:
                assert one.finish()["stdout_bytes"] == b"on\n/made\n"
            except Raised as raised:
                assert removed
                assert raised.is_a(ContainerNotFound) or raised.is_a(Conflict), (raised.kinds, str(raised))
            else:
                assert not removed or took > 0.1, "it was removed while it ran"
                if not removed:
                    tier.driver.call("remove_container", "kept")


def test_engine_killed_in_a_second_life(tier: Tier) -> None:
    """After a kill -9 of its notebook a container tells the truth, and can be started once more."""
    tier.run(script="echo x >>/lives; cat /lives; [ $(cat /lives | wc -l) != 2 ] || exec sleep 1000", name="kept")
    with tier.spawn() as driver:
        driver.begin("start", container="kept", restart=False, live=True)
        driver.wait_for_output(b"x\nx\n")
        (running,) = [each for each in tier.driver.call("containers", everything=True) if each.name == "kept"]
        assert (running.state, running.exit_code, running.finished) == ("running", None, None)
        for refused in ("diff", "commit"):
            with contextlib.suppress(Raised):
                tier.driver.call(refused, "kept", *(["tiny:kept"] if refused == "commit" else []))
        below = driver.kill()
    wait_until(lambda: not any(map(lives, below)), what="its processes are gone")
    (dead,) = [each for each in tier.driver.call("containers", everything=True) if each.name == "kept"]
    assert (dead.state, dead.exit_code) == ("dead", None)
    with tier.spawn() as driver:
        assert driver.start("kept").stdout == "x\n" * 3
    (ended,) = [each for each in tier.driver.call("containers", everything=True) if each.name == "kept"]
    assert (ended.state, ended.exit_code) == ("exited", 0)
    tier.driver.call("remove_container", "kept")


def test_records_are_closed_to_others(tier: Tier) -> None:
    """What a container was started with, its secrets among it, can be read by its person alone."""
    tier.run(script="true", name="kept", environment=("TOKEN=secret",))
    try:
        (folder,) = [f"{tier.store}/containers/{name}" for name in tier.containers()]
        for name in ("record.json", "cell"):
            status = os.stat(f"{folder}/{name}")
            assert status.st_mode & 0o077 == 0, name
            assert status.st_uid == (tier.user.uid if tier.user else os.geteuid())
        assert "secret" in Path(folder, "record.json").read_text(encoding="utf-8")
    finally:
        tier.driver.call("remove_container", "kept")
