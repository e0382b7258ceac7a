"""Programs inside a container try to get out, as its root and as its user, in each tier; every test fails when the attack works."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import ContainerStartError
from nbcontainer.testing.rootfs import PYTHON
from tests.integration.tiers import Raised
from tests.security import attack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Tier

ATTACK = Path(attack.__file__).read_text(encoding="utf-8")
DEFAULT_CAPABILITIES = 0xA80425FB
"""Docker's fourteen, as a mask."""


Strike = Callable[..., "list[str]"]


@pytest.fixture(params=["root", "user"])
def strike(request: pytest.FixtureRequest, tier: Tier) -> Strike:
    """Lend a way to make attacks inside, all in one container, as its root or as a user of it."""
    if request.param == "user" and not tier.has_users:
        pytest.skip("needs several ids")

    def run(*attacks: tuple[str, ...]) -> list[str]:
        return made_in(tier, *attacks, user="alice" if request.param == "user" else "")

    return run


def attack_text(*attacks: tuple[str, ...]) -> str:
    """The text of a cell that makes these attacks and prints their answers as JSON."""
    text = ATTACK.replace("from __future__ import annotations\n", "")
    return f"import sys\nsys.argv = ['attack', {json.dumps(attacks)!r}]\n{text}"


def made_in(tier: Tier, *attacks: tuple[str, ...], **options: object) -> list[str]:
    """The answers to attacks made in one container."""
    result = tier.run(script=attack_text(*attacks), shell=[PYTHON, "-I", "-S"], **options)
    assert result.ok, result
    answers: list[str] = json.loads(result.stdout)
    return answers


def not_refused(attacks: list[tuple[str, ...]], answers: list[str], *also: str) -> dict[tuple[str, ...], str]:
    """The attacks that were not refused, with what they got; `also` are other harmless answers."""
    assert len(attacks) == len(answers)
    return {
        made: got
        for made, got in zip(attacks, answers, strict=True)
        if not got.startswith("refused") and got not in also
    }


def test_first_process_is_closed(strike: Strike) -> None:
    """PID 1, an interpreter of the machine, shows nothing of itself and is no way out (CVE-2019-5736)."""
    names = (
        "exe",
        "root",
        "cwd",
        "environ",
        "mem",
        "maps",
        "auxv",
        "root/etc/passwd",
        "root/proc/1/exe",
        "cwd/etc/passwd",
    )
    more = ("fd/0", "fd/3", "task/1/fd/3", "task/1/root", "task/1/exe", "ns/mnt", "ns/user", "stack", "syscall", "io")
    attacks: list[tuple[str, ...]] = [("open_read", f"/proc/1/{name}") for name in names + more]
    attacks += [
        ("listdir", f"/proc/1/{name}") for name in ("fd", "map_files", "fdinfo", "root", "cwd", "root/", "task/1/fd")
    ]
    assert not_refused(attacks, strike(*attacks)) == {}


def test_first_process_cannot_be_changed(strike: Strike) -> None:
    """Nothing of PID 1 can be written through proc, and no debugger attaches."""
    names = (
        "mem",
        "attr/current",
        "oom_score_adj",
        "coredump_filter",
        "clear_refs",
        "timerslack_ns",
        "uid_map",
        "setgroups",
    )
    attacks: list[tuple[str, ...]] = [("open_write", f"/proc/1/{name}") for name in names]
    attacks += [("trace_first",)]
    assert not_refused(attacks, strike(*attacks)) == {}


def test_first_process_cannot_be_killed(strike: Strike) -> None:
    """No signal from inside ends PID 1, or keeps it from telling how the command ended."""
    answers = strike(*(("kill_first", str(number)) for number in range(65)))
    assert set(answers) <= {"alive", "refused EPERM", "refused EINVAL"}


def test_descriptors(strike: Strike) -> None:
    """The command inherits 0, 1 and 2, and nothing else (CVE-2024-21626)."""
    assert strike(("descriptors",)) == ["0 1 2"]


def test_calls(strike: Strike) -> None:
    """System calls that mount, make namespaces, load code or look into others are refused by the filter."""
    names = sorted(attack.NUMBERS)
    answers = dict(zip(names, strike(*(("call", name) for name in names)), strict=True))
    assert {name: answer for name, answer in answers.items() if answer not in {"refused EPERM", "refused ENOSYS"}} == {}
    assert answers["clone3"] == "refused ENOSYS"  # so that libc falls back to clone


def test_file_handles(strike: Strike) -> None:
    """Files of the disk cannot be opened by handle (shocker)."""
    assert strike(("find_handle",)) == ["refused EPERM"]


def test_sockets(strike: Strike) -> None:
    """AF_ALG and AF_VSOCK sockets cannot be made; ordinary ones can."""
    answers = strike(*(("make_socket", str(family)) for family in (38, 40, 1, 2, 16)))
    assert answers[:2] == ["refused EPERM"] * 2
    assert answers[2:4] == ["allowed"] * 2


@pytest.mark.parametrize("family", ["38", "40"])
def test_ways_around_the_families(strike: Strike, family: str) -> None:
    """Neither a family written as 64 bits nor the 32-bit `socketcall`, which Docker's profile overlooks, makes them."""
    answers = strike(("make_wide_socket", family), ("make_socket_by_interrupt", family), ("make_wide_socket", "2"))
    assert answers[0] == "refused EPERM"
    assert answers[1] in {"refused EPERM", "refused ENOSYS"}
    assert answers[2].startswith("allowed")


def test_kernel_files(strike: Strike) -> None:
    """Files that steer the kernel cannot be written (CVE-2022-0492 and others)."""
    paths = """
        /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sys/vm/drop_caches /proc/sys/fs/binfmt_misc/register
        /proc/sysrq-trigger /proc/irq/default_smp_affinity /sys/kernel/uevent_helper /sys/power/state /sys/class/net/lo/mtu
        /sys/fs/cgroup/release_agent /sys/fs/cgroup/cgroup.procs /dev/mem /dev/kmsg /proc/kcore
        /sys/kernel/mm/transparent_hugepage/enabled /proc/self/uid_map /proc/self/gid_map /proc/sys/net/ipv4/ip_forward
    """.split()
    attacks: list[tuple[str, ...]] = [("open_write", path) for path in paths]
    answers = strike(*attacks)
    # what is masked by the null device may be "written"
    assert set(not_refused(attacks, answers)) <= {("open_write", "/proc/kcore")}


def test_masked_files(strike: Strike) -> None:
    """What proc and sys tell of the machine's memory, keys and heat is hidden."""
    files = ("kcore", "keys", "timer_list", "interrupts", "sched_debug", "latency_stats", "timer_stats")
    attacks: list[tuple[str, ...]] = [("open_read", f"/proc/{name}") for name in files]
    folders = ("/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware", "/sys/devices/virtual/powercap")
    attacks += [("listdir", path) for path in folders]
    assert not_refused(attacks, strike(*attacks), "read b''", "listed []") == {}


def test_device_nodes(strike: Strike) -> None:
    """There are the seven harmless devices, no other, and none can be made that works."""
    nodes = "/dev/full /dev/null /dev/pts/ptmx /dev/random /dev/tty /dev/urandom /dev/zero"
    attacks: list[tuple[str, ...]] = [("make_device", path) for path in ("/tmp/disk", "/dev/disk", "/dev/shm/disk")]
    attacks.append(("device_nodes",))
    assert not_refused(attacks, strike(*attacks)) == {("device_nodes",): nodes}


def test_capabilities(strike: Strike, tier: Tier) -> None:
    """At most the fourteen capabilities, none inheritable or ambient; no new privileges; a filter."""
    fields = dict(word.split("=") for word in strike(("capabilities",))[0].split())
    assert int(fields["CapInh"], 16) == int(fields["CapAmb"], 16) == 0
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(fields[name], 16) & ~DEFAULT_CAPABILITIES == 0, fields
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_capabilities_of_a_user(tier: Tier) -> None:
    """A user of the container has no capability."""
    if not tier.has_users:
        pytest.skip("needs several ids")
    (answer,) = made_in(tier, ("capabilities",), user="alice")
    assert "CapPrm=0000000000000000 CapEff=0000000000000000" in answer


def test_setuid_program(tier: Tier) -> None:
    """A setuid program of the image gives a user nothing."""
    if not tier.has_users:
        pytest.skip("needs several ids")
    folder = tier.folder("work")
    folder.chmod(0o777)
    tier.sh("cp /bin/id /work/id; chmod 4755 /work/id", volumes=[(folder, "/work", "rw")])
    result = tier.run("/work/id", "-u", user="alice", volumes=[(folder, "/work", "rw")])
    assert result.stdout == "1000\n"


def test_terminal(strike: Strike) -> None:
    """There is no terminal to type into (CVE-2017-5226)."""
    assert strike(("push_terminal",)) == ["refused ENXIO"]


@pytest.fixture
def greeters() -> Iterator[tuple[str, str]]:
    """Lend a server on the machine's loopback and one at an abstract address, as `attack.connect` names them."""
    name = f"nbcontainer-greeter-{threading.get_ident()}"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0" + name)
        abstract.listen()
        yield f"port:{tcp.getsockname()[1]}", f"abstract:{name}"


def test_machine_is_out_of_reach(strike: Strike, greeters: tuple[str, str]) -> None:
    """Without a network the machine's loopback and its abstract sockets cannot be reached (CVE-2020-15257)."""
    assert strike(*(("connect", greeter) for greeter in greeters)) == ["refused ECONNREFUSED"] * 2
    addresses = ("169.254.169.254", "10.0.2.2", "192.0.2.1")
    assert strike(*(("connect", f"address:{address}") for address in addresses)) == ["refused ENETUNREACH"] * 3


def test_no_mount_of_the_machine(tier: Tier) -> None:
    """The container's mount table names no place of the machine's: no store in it that could be opened."""
    table = tier.sh("cat /proc/self/mountinfo").stdout
    points = [line.split()[4] for line in table.splitlines()]
    assert len(points) == len(set(points))
    assert all(re.match(r"/$|/proc|/sys|/dev|/etc/(hosts|hostname|resolv\.conf)$", point) for point in points), points


def test_leftovers_of_the_stage(tier: Tier) -> None:
    """Nothing of what the set-up used is left in the root."""
    names = set(tier.sh("ls -A /").stdout.split())
    assert names <= {
        "bin",
        "dev",
        "etc",
        "home",
        "lib",
        "lib64",
        "opt",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr",
        "var",
    }


@pytest.mark.parametrize("number", range(3, 12))
def test_working_directory_in_descriptors(tier: Tier, number: int) -> None:
    """A working directory through /proc/self/fd never lies outside of the container (CVE-2024-21626)."""
    canary = tier.folder("canary")
    (canary / "canary").write_text("the machine's own")
    for place in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/../../..", f"/proc/thread-self/fd/{number}"):
        try:
            result = tier.run(
                script=f"pwd; ls; cat ../../../../../../../..{canary}/canary",
                working_directory=place,
                shell=["/bin/sh"],
            )
        except Raised as raised:
            assert raised.is_a(ContainerStartError), raised.kinds
            assert "working directory" in str(raised)
        else:
            assert "the machine's own" not in result.stdout


@pytest.mark.parametrize(
    ("user", "words"),
    [
        ("4000000000", "outside this machine's range"),
        ("0:4000000000", "outside"),
        ("4294967295", "larger"),
        ("99999999999", "larger"),
    ],
)
def test_ids_outside_of_the_map(tier: Tier, user: str, words: str) -> None:
    """An id that the container does not have is refused with the reason, and never becomes another one."""
    with pytest.raises(Raised, match=words) as raised:
        tier.run("id", user=user)
    assert raised.value.attributes["exit_code"] == 126


def test_command_sees_only_its_own_processes(tier: Tier) -> None:
    """Inside there are PID 1 and the cell."""
    assert tier.sh("for each in /proc/[0-9]*; do echo $each; done").stdout.split() == ["/proc/1", "/proc/2"]


def test_killing_everything_inside(tier: Tier) -> None:
    """A cell that kills all it can reach, itself included, ends with that signal and the engine goes on."""
    result = tier.run(script="sleep 100 & kill -9 -1; kill -9 $$")
    assert result.exit_code == 137
    assert tier.run("echo", "on").stdout == "on\n"


def test_first_process_cannot_be_joined_or_read(strike: Strike) -> None:
    """Neither a pidfd nor its address leads into PID 1's namespaces or memory (CVE-2016-9962, CVE-2022-1227)."""
    flags = ("0x20000", "0x10000000", "0x40000000", "0x20000000", "0x2000000")
    attacks: list[tuple[str, ...]] = [("join_first", str(int(flag, 16))) for flag in flags]
    attacks += [("read_memory_of", "1"), ("open_write", "/proc/1/exe"), ("open_write", "/proc/1/comm")]
    assert not_refused(attacks, strike(*attacks)) == {}


def test_ways_up(strike: Strike, tier: Tier) -> None:
    """Nothing leads above the root: not ``..``, not a process's root, not a second chroot."""
    canary = tier.folder("canary")
    (canary / "canary").touch()
    ways = (
        "/..",
        "/../../..",
        "/proc/self/root",
        "/proc/self/root/..",
        "/proc/self/task/../root/../..",
        "/proc/self/cwd/../../..",
    )
    assert set(strike(*(("above", way) for way in ways))) == {"same"}
    (answer,) = strike(("chroot_out", str(canary / "canary")))
    assert answer in {"refused inside", "refused EPERM"}


def test_switches_of_the_kernel(strike: Strike) -> None:
    """No file of /proc/sys or /sys, and none of /proc that is no process's, can be opened for writing."""
    switches, system, others = strike(
        ("writable_below", "/proc/sys"), ("writable_below", "/sys"), ("writable_in_proc",)
    )
    assert (switches, system) == ("", "")
    # masked by the null device, which takes everything
    masked = {f"/proc/{name}" for name in ("kcore", "keys", "timer_list", "interrupts", "latency_stats", "sched_debug")}
    own = {"/proc/pressure/cpu", "/proc/pressure/memory", "/proc/pressure/io", "/proc/pressure/irq"}
    assert set(others.split()) <= masked | own


def test_network_of_its_own(strike: Strike) -> None:
    """There is a loopback, nothing to be heard on it, and no interface can be made; raw sockets reach nobody."""
    assert strike(("interfaces",)) == ["lo"]
    attacks: list[tuple[str, ...]] = [("make_interface",), ("hear_everything",)]
    assert not_refused(attacks, strike(*attacks)) == {}


def test_mounts_stay(strike: Strike) -> None:
    """What is mounted for the container cannot be moved or removed to see what is below."""
    places = (
        "/proc",
        "/sys",
        "/dev",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/proc/sys",
        "/dev/shm",
        "/dev/pts",
        "/dev/null",
    )
    attacks: list[tuple[str, ...]] = [("move_away", place) for place in places]
    assert not_refused(attacks, strike(*attacks)) == {}


def test_consoles(strike: Strike) -> None:
    """No console of the machine can be opened, and none is typed into (TIOCLINUX)."""
    places = (
        "/dev/console",
        "/dev/tty0",
        "/dev/tty1",
        "/dev/ttyS0",
        "/dev/ptmx",
        "/dev/pts/0",
        "/dev/tty",
        "/dev/vcs",
        "/dev/kmsg",
    )
    attacks: list[tuple[str, ...]] = [("console", place) for place in places]
    assert not_refused(attacks, strike(*attacks)) == {}


def test_memory_shared_with_nobody(tier: Tier) -> None:
    """System V and POSIX queues and segments of the machine are not there."""
    number = ctypes.CDLL(None).shmget(0, 4096, 0o1666)
    assert number >= 0
    try:
        assert len(Path("/proc/sysvipc/shm").read_text().splitlines()) > 1
        seen = tier.sh(
            "cat /proc/sysvipc/shm /proc/sysvipc/sem /proc/sysvipc/msg | wc -l; ls -A /dev/mqueue /dev/shm"
        ).stdout
    finally:
        ctypes.CDLL(None).shmctl(number, 0, None)
    assert seen == "3\n/dev/mqueue:\n\n/dev/shm:\n"


@pytest.mark.root
def test_device_in_a_volume(tier: Tier) -> None:
    """A device node that lies in a mounted folder is not a device inside."""
    folder = tier.folder("devices")
    os.mknod(folder / "zero", 0o020666, os.makedev(1, 5))
    (folder / "zero").chmod(0o666)
    result = tier.run(
        script="head -c 1 /work/zero && echo READ; echo x > /work/zero && echo WRITTEN",
        volumes=[(folder, "/work", "rw")],
    )
    (folder / "zero").unlink()
    assert result.stdout == ""


@pytest.mark.root
def test_setuid_program_in_a_volume(tier: Tier) -> None:
    """A setuid program of the machine's root that lies in a mounted folder gives container root nothing."""
    folder = tier.folder("setuid")
    shutil.copy(shutil.which("id") or "/usr/bin/id", folder / "id")
    (folder / "id").chmod(0o4755)
    result = tier.run("/work/id", "-u", volumes=[(folder, "/work", "ro")])
    assert result.stdout == "0\n"
    if tier.has_users:
        assert tier.run("/work/id", "-u", user="alice", volumes=[(folder, "/work", "ro")]).stdout == "1000\n"
