"""Limits that hold: each asked of a real container, and looked at from inside, or in the kernel's own files.

Where this machine cannot keep one (an ordinary user on cgroups v1), the run is refused in a sentence: that is the other
half of the promise, and tested beside it.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.cgroups import controller_of, machine_hierarchies
from nbcontainer.model import Device, Limits, TmpfsMount, Ulimit
from nbcontainer.runtime.capabilities import CAPABILITIES
from nbcontainer.testing.rootfs import PYTHON
from tests.integration.tiers import Raised, Tier, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
FIXES = ("run as root", "systemd-run --user --scope", "systemctl edit user@.service")
DATA = Path(__file__).parents[3] / "shared/data/docker-default-seccomp.json"


def place(tier: Tier, controller: str) -> str:
    """Where a cgroup with this controller can be made in this tier, or "": the nearest folder that is its own.

    On v2 one that holds processes itself can hand nothing down; pausing there needs no more than a container's cgroup,
    which it has for its limit on processes.
    """
    hierarchy = controller_of(machine_hierarchies(), controller)
    if hierarchy is None:
        return ""
    if hierarchy.version == 1:
        return hierarchy.places[0] if is_own(tier, hierarchy.places[0]) else ""
    needed = "pids" if controller == "freezer" else controller
    for folder in hierarchy.places:
        empty = folder == hierarchy.point or not Path(folder, "cgroup.procs").read_text(encoding="ascii")
        if is_own(tier, folder) and empty and needed in Path(folder, "cgroup.controllers").read_text("ascii").split():
            return folder
    return ""


def is_own(tier: Tier, folder: str) -> bool:
    """Whether the tier's person may make a folder there."""
    return os.access(folder, os.W_OK) if tier.user is None else os.stat(folder).st_uid == tier.user.uid


def keeps(tier: Tier, controller: str) -> bool:
    """Whether a limit of this controller can be kept in this tier."""
    return place(tier, controller) != ""


@contextlib.contextmanager
def refused_elsewhere(tier: Tier, controller: str, option: str) -> Iterator[None]:
    """The block holds where the limit can be kept; elsewhere it is refused by a sentence with option, cause and fix."""
    if keeps(tier, controller):
        yield
        return
    with pytest.raises(Raised) as caught:
        yield
    assert caught.value.is_a(_unsupported())
    assert f"{option} cannot be kept here: " in str(caught.value)
    assert any(fix in str(caught.value) for fix in FIXES)


def _unsupported() -> type[BaseException]:
    from nbcontainer.errors import UnsupportedHost

    return UnsupportedHost


def python(tier: Tier, script: str, **asked: Any) -> Any:
    """Run a Python script inside."""
    return tier.run(script=script, shell=[PYTHON, "-I", "-S"], **asked)


def mine(tier: Tier, controller: str) -> list[str]:
    """This package's cgroups with limits of their own where the tier's are made."""
    folder = place(tier, controller)
    return [f"{folder}/{name}" for name in os.listdir(folder) if re.fullmatch(r"nbcontainer-\d+-[0-9a-f]+", name)]


BOMB = "x = []\nfor n in range(400): x.append(bytearray(1 << 20))\nprint('had it all')"


def test_memory_bomb(tier: Tier) -> None:
    """What takes more than its memory is killed, and the result says by what, how much, and what the peak was."""
    with refused_elsewhere(tier, "memory", "--memory"):
        result = python(tier, BOMB, limits=Limits(memory=64 * MIB, memory_swap=64 * MIB))
        assert (result.reason, result.exit_code, result.ok) == ("oom", 137, False)
        assert result.detail.startswith("killed: memory limit 64 MiB reached (peak 6")
        assert "--memory" in result.detail
        assert "had it all" not in result.stdout
        with pytest.raises(Raised) as caught:
            python(tier, BOMB, limits=Limits(memory=64 * MIB), check=True)
        assert "killed: memory limit 64 MiB reached" in str(caught.value)
        assert mine(tier, "memory") == []


def test_memory_that_is_enough(tier: Tier) -> None:
    """Within the limit nothing happens, and of a child that was killed the result has a note."""
    with refused_elsewhere(tier, "memory", "--memory"):
        assert python(tier, "print(len(bytearray(20 << 20)))", limits=Limits(memory=64 * MIB)).notes == ()
        script = "import os, time\npid = os.fork()\nif not pid:\n    x = bytearray(200 << 20)\nprint(os.wait()[1])"
        result = python(tier, script, limits=Limits(memory=64 * MIB))
        assert result.ok
        assert result.stdout == "9\n"
        (note,) = result.notes
        assert "killed at the memory limit of 64 MiB" in note


def test_fork_bomb(tier: Tier) -> None:
    """A container that starts process after process meets its limit, and the result has a note."""
    script = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        n += 1
except BlockingIOError as problem:
    print(n, problem.errno)
"""
    with refused_elsewhere(tier, "pids", "--pids-limit"):
        result = python(tier, script, limits=Limits(pids=20))
        assert result.stdout == "19 11\n", result
        (note,) = result.notes
        assert "limit of 20 processes" in note
        assert mine(tier, "pids") == []


@pytest.mark.parametrize("end", ["exited", "timeout"])
def test_limit_that_nobody_asked_for(tier: Tier, end: str) -> None:
    """A container that meets the limit on processes that every one has says so, also when it has to be ended."""
    if not keeps(tier, "pids"):
        pytest.skip("no cgroup counts processes here")
    script = f"""
import os, threading, time
threading.stack_size(1 << 16)
wait = threading.Event()
try:
    while True:
        threading.Thread(target=wait.wait, daemon=True).start()
except RuntimeError:
    print(threading.active_count() > 4000, flush=True)
time.sleep(60 if {end == "timeout"} else 0)
os._exit(0)  # thousands of threads would be waited for
"""
    result = python(tier, script, timeout=8 if end == "timeout" else None)
    assert (result.stdout, result.reason) == ("True\n", end), result
    assert result.notes == (
        "the container met its limit of 4096 processes and threads (--pids-limit), so it could not start another",
    )
    assert tier.run("true").notes == ()


def test_processor_time(tier: Tier) -> None:
    """The quota is in the kernel's file while the container runs, and it is throttled by it."""
    script = "import time\nprint('go', flush=True)\nend = time.time() + 1.5\nwhile time.time() < end: pass"
    with refused_elsewhere(tier, "cpu", "--cpus"):
        tier.driver.begin_run(
            script=script, shell=[PYTHON, "-I", "-S"], limits=Limits(cpus=0.2, cpu_shares=300), live=True
        )
        try:
            if keeps(tier, "cpu"):
                tier.driver.wait_for_output(b"go")
                (folder,) = mine(tier, "cpu")
                wait_until(lambda: _times_throttled(folder) > 0, what="the quota is felt")
                texts = {each.name: each.read_text() for each in Path(folder).glob("cpu.[cmws]*")}
        finally:
            tier.driver.finish()
        if "cpu.max" in texts:
            assert texts["cpu.max"] == "20000 100000\n"
            assert texts["cpu.weight"] == "12\n"
        else:
            assert (texts["cpu.cfs_quota_us"], texts["cpu.cfs_period_us"]) == ("20000\n", "100000\n")
            assert texts["cpu.shares"] == "300\n"
        assert mine(tier, "cpu") == []


def _times_throttled(folder: str) -> int:
    lines = Path(folder, "cpu.stat").read_text(encoding="ascii").splitlines()
    return int(dict(line.split() for line in lines)["nr_throttled"])


def test_throttling_counts(tier: Tier) -> None:
    """A container that spins is throttled: it gets a fifth of a processor's time."""
    # not counting how long Python takes to start
    began = "import time\nbegan, end = time.process_time(), time.time() + 1"
    script = f"{began}\nwhile time.time() < end: pass\nprint(time.process_time() - began)"
    with refused_elsewhere(tier, "cpu", "--cpus"):
        assert float(python(tier, script, limits=Limits(cpus=0.2)).stdout) < 0.6


def test_processors(tier: Tier) -> None:
    """Only the processors of the list can be used."""
    last = max(os.sched_getaffinity(0))
    with refused_elsewhere(tier, "cpuset", "--cpuset-cpus"):
        result = python(tier, "import os; print(os.sched_getaffinity(0))", limits=Limits(cpuset_cpus=str(last)))
        assert result.stdout == f"{{{last}}}\n"
        assert mine(tier, "cpuset") == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(memory=1000), "less than 6m"),
        (Limits(cpus=10_000), "outside 0.01 to"),
        (Limits(cpuset_cpus="4000"), "processor 4000"),
    ],
)
def test_limits_that_cannot_be(tier: Tier, limits: Limits, words: str) -> None:
    """A limit that this machine cannot have is refused before anything starts, in every tier."""
    with pytest.raises(Raised, match=words):
        tier.run("true", limits=limits)


def test_ulimits(tier: Tier) -> None:
    """Limits of setrlimit(2) hold inside; a hard limit above our own is refused with the number."""
    result = tier.sh("ulimit -Sn; ulimit -Hn; ulimit -c", ulimits=(Ulimit(name="nofile", soft=100, hard=200),))
    assert result.stdout.split()[:2] == ["100", "200"]
    own = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with pytest.raises(Raised, match=rf"above this process's own \({own}\)"):
        tier.run("true", ulimits=(Ulimit(name="nofile", soft=1, hard=own + 1),))


def test_shared_memory(tier: Tier) -> None:
    """/dev/shm has the size asked for, and 64 MiB without."""
    script = "import os; s = os.statvfs('/dev/shm'); print(s.f_blocks * s.f_frsize >> 20)"
    assert python(tier, script).stdout == "64\n"
    assert python(tier, script, shm_size=3 * MIB).stdout == "3\n"


def test_tmpfs(tier: Tier) -> None:
    """A folder in memory: of its size, everybody's to write in, nothing to run from; or read-only."""
    script = """
import os
line = next(line for line in open("/proc/self/mounts") if " /scratch " in line)
mode, size = os.stat("/scratch").st_mode & 0o7777, os.statvfs("/scratch")
with open("/scratch/run", "w") as file:
    file.write("#!/bin/sh\\n")
os.chmod("/scratch/run", 0o755)
try:
    runs = os.waitpid(os.posix_spawn("/scratch/run", ["run"], {}), 0)[1] == 0
except PermissionError:
    runs = False
print(oct(mode), size.f_blocks * size.f_frsize >> 10, runs, *line.split()[3].split(",")[:4])
"""
    asked = (TmpfsMount(target="/scratch", size=MIB),)
    assert python(tier, script, tmpfs=asked).stdout == "0o1777 1024 False rw nosuid nodev noexec\n"
    assert (
        " True rw nosuid nodev" in python(tier, script, tmpfs=(TmpfsMount(target="/scratch", executable=True),)).stdout
    )
    closed = tier.run(script="touch /scratch/x", tmpfs=(TmpfsMount(target="/scratch", read_only=True),))
    assert "Read-only" in closed.stderr
    with pytest.raises(Raised, match="--shm-size is for that"):
        tier.run("true", tmpfs=(TmpfsMount(target="/dev/shm"),))


def capabilities(tier: Tier, **asked: Any) -> dict[str, set[str]]:
    """The effective and bounding sets inside, by name."""
    lines = dict(line.partition(":\t")[::2] for line in tier.sh("cat /proc/self/status", **asked).stdout.splitlines())
    return {
        kind: {name for name, number in CAPABILITIES.items() if int(lines[kind], 16) >> number & 1}
        for kind in ("CapEff", "CapBnd", "CapInh", "CapAmb")
    }


def test_capabilities(tier: Tier) -> None:
    """What is added and dropped shows in the sets of the command; nothing is ever inheritable or ambient."""
    usual = capabilities(tier)
    assert len(usual["CapEff"]) == 14
    changed = capabilities(tier, cap_add=("NET_ADMIN",), cap_drop=("CHOWN", "MKNOD"))
    for kind in ("CapEff", "CapBnd"):
        assert changed[kind] == (usual[kind] | {"NET_ADMIN"}) - {"CHOWN", "MKNOD"}
    none = capabilities(tier, cap_drop=("ALL",))
    assert none["CapEff"] == none["CapBnd"] == set()
    one = capabilities(tier, cap_drop=("ALL",), cap_add=("KILL",))
    assert one["CapEff"] == one["CapBnd"] == {"KILL"}
    every = capabilities(tier, cap_add=("ALL",), cap_drop=("SYS_BOOT",))
    assert every["CapEff"] == set(CAPABILITIES) - {"SYS_BOOT"}
    assert not any(found[kind] for found in (usual, changed, every) for kind in ("CapInh", "CapAmb"))
    assert capabilities(tier) == usual, "the pool gave a container what another one was given"


def test_filter_follows_capabilities(tier: Tier) -> None:
    """A call that the filter keeps for a capability is open with it, and closed again for the next container."""
    script = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); print(libc.sethostname(b'x', 1))"
    assert python(tier, script).stdout == "-1\n"
    assert python(tier, script, cap_add=("SYS_ADMIN",)).stdout == "0\n"
    assert python(tier, script).stdout == "-1\n"


def test_all_capabilities_stay_inside(tier: Tier) -> None:
    """With every capability a container may mount, and still reaches no cgroup that limits it, nor the machine."""
    script = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir("/m")
assert libc.mount(b"x", b"/m", b"tmpfs", 0, None) == 0 and libc.umount(b"/m") == 0
def write(path, text):
    if os.path.exists(path):
        try:
            with open(path, "w") as file:
                file.write(text)
            print("wrote", path)
        except OSError as problem:
            pass
for kind, data in ((b"cgroup", b"pids"), (b"cgroup", b"memory"), (b"cgroup", b"cpu"), (b"cgroup2", None)):
    if libc.mount(b"x", b"/m", kind, 0, data):
        continue
    print("seen", kind.decode(), (data or b"").decode())
    for name in ("pids.max", "memory.limit_in_bytes", "memory.max", "cpu.cfs_quota_us"):
        write("/m/" + name, "-1" if name.endswith(("bytes", "us")) else "max")
    write("/m/release_agent", "/bin/sh")
    libc.umount(b"/m")
write("/proc/sys/kernel/panic", "5")
write("/proc/sysrq-trigger", "h")
for path in ("/proc/kcore", "/dev/mem"):
    try:
        print(*["read"] * len(open(path, "rb").read(1)))
    except OSError:
        pass
try:
    os.mknod("/disk", 0o60600, os.makedev(8, 0))
    print("made")
except OSError:
    pass
"""
    result = python(
        tier, script, cap_add=("ALL",), limits=Limits(memory=64 * MIB) if keeps(tier, "memory") else Limits()
    )
    words = {line.split()[0] for line in result.stdout.splitlines() if line}
    assert result.ok, result
    assert words <= {"seen", "made"}, result.stdout
    assert not ("made" in words and tier.has_users), "a device node was made in a user namespace"


def test_capability_that_would_uncover(tier: Tier) -> None:
    """SYS_ADMIN may unmount: not where a mount hides keys or keeps a folder read-only."""
    folder = tier.folder("data")
    with pytest.raises(Raised, match=r"CAP_SYS_ADMIN and the read-only volume /data contradict"):
        tier.run("true", cap_add=("SYS_ADMIN",), volumes=[(folder, "/data", "ro")])
    assert tier.run("true", cap_add=("SYS_ADMIN",), volumes=[(folder, "/data", "rw")]).ok
    with pytest.raises(Raised, match=r"CAP_SYS_ADMIN cannot be had on the host image"):
        tier.run("true", image="host", cap_add=("ALL",))


def test_devices(tier: Tier, tmp_path: Path) -> None:
    """A device that the person may open can be opened inside, as far as asked, and its node changed by nobody."""
    result = tier.sh(
        "exec 3<>/dev/mine && echo opened; (chmod 777 /dev/mine) 2>/dev/null || echo kept",
        devices=(Device(source="/dev/full", target="/dev/mine"),),
    )
    assert result.stdout == "opened\nkept\n"
    if tier.privileged:
        closed = tier.run(
            script="cat < /dev/mine > /dev/null; echo x > /dev/mine && echo written",
            devices=(Device(source="/dev/null", target="/dev/mine", access="r"),),
        )
        assert "written" not in closed.stdout
        assert "Permission denied" in closed.stderr
    with pytest.raises(Raised, match="cannot be found here"):
        tier.run("true", devices=(Device(source="/dev/none-such", target="/dev/x"),))
    with pytest.raises(Raised, match="is not a device"):
        tier.run("true", devices=(Device(source="/etc/passwd", target="/dev/x"),))


@pytest.mark.root
def test_device_of_root(tier: Tier) -> None:
    """/dev/fuse is root's alone on many machines: root can give it away, a user gets a sentence."""
    if not os.path.exists("/dev/fuse") or os.stat("/dev/fuse").st_mode & 0o006:
        pytest.skip("needs a /dev/fuse that is closed to users")
    asked = {"devices": (Device(source="/dev/fuse", target="/dev/fuse"),)}
    if tier.privileged:
        assert tier.sh("exec 3<>/dev/fuse && echo opened", **asked).stdout == "opened\n"
    else:
        with pytest.raises(Raised, match=r"/dev/fuse is closed to you.*setfacl"):
            tier.run("true", **asked)


def status(tier: Tier, field: str, **asked: Any) -> str:
    """A field of the command's status."""
    lines = tier.sh("cat /proc/self/status", **asked).stdout.splitlines()
    return dict(line.partition(":\t")[::2] for line in lines)[field]


def test_filter_of_ones_own(tier: Tier) -> None:
    """Unconfined has no filter (but what pretends owners); a profile's rules hold; a bad file is refused."""
    assert status(tier, "Seccomp", seccomp="unconfined") == ("0" if tier.has_users else "2")
    profile = tier.folder("profiles") / "no-mkdir.json"
    profile.write_text(
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO",'
        ' "errnoRet": 95}]}'
    )
    result = tier.run(script="mkdir /tmp/x; id -u", seccomp=str(profile))
    assert result.stdout == "0\n"
    assert "not supported" in result.stderr
    profile.write_text("{}")
    with pytest.raises(Raised, match="has no defaultAction"):
        tier.run("true", seccomp=str(profile))


@pytest.mark.skipif(not DATA.exists(), reason="Docker's profile is not beside this project")
def test_dockers_own_profile(tier: Tier, tmp_path: Path) -> None:
    """Docker's profile as a file works."""
    copy = tier.folder("profiles") / "docker.json"
    copy.write_bytes(DATA.read_bytes())
    assert tier.sh("echo fine", seccomp=str(copy)).stdout == "fine\n"


def test_new_privileges(tier: Tier) -> None:
    """No new privileges can be turned off where there are users to become; the filter and the sets stay."""
    assert status(tier, "NoNewPrivs") == "1"
    if not tier.has_users:
        with pytest.raises(Raised, match="gains nothing here"):
            tier.run("true", no_new_privileges=False)
        return
    assert status(tier, "NoNewPrivs", no_new_privileges=False) == "0"
    assert status(tier, "Seccomp", no_new_privileges=False) == "2"
    assert status(tier, "CapEff", no_new_privileges=False) == status(tier, "CapEff")
    assert int(status(tier, "CapEff", no_new_privileges=False, user="1000"), 16) == 0
