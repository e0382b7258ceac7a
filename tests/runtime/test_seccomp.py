"""The system-call filter: equal in effect to Docker's default where that is stated, compiled once, and kept."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from pathlib import Path

import pyseccomp
import pytest

from nbcontainer.errors import UnsupportedHost
from nbcontainer.runtime import newcalls, profile
from nbcontainer.runtime.capabilities import DEFAULT_CAPABILITIES
from nbcontainer.runtime.seccomp import Rule, compiled_profile, profile_rules
from tests.runtime.bpf import AARCH64, ALLOW, ERRNO, I386, KILL, X86_64, decide

FACTS = json.loads((Path(__file__).parent / "facts/docker-seccomp.json").read_text(encoding="utf-8"))["rules"]
DEFAULT = frozenset(DEFAULT_CAPABILITIES)
EPERM, ENOSYS = 1, 38
X32 = 0x40000000


def dockers_rules(capabilities: frozenset[str], machine: str = "amd64") -> set[Rule]:
    """Docker's profile for a machine with these capabilities, as rules of ours."""
    return {
        (name, fact.get("errno"), tuple(tuple(each) for each in fact.get("if", ())))
        for fact in FACTS
        if machine in fact.get("on", [machine])
        and machine not in fact.get("not on", ())
        and capabilities.issuperset(fact.get("with", ()))
        and capabilities.isdisjoint(fact.get("without", ()))
        for name in fact["calls"]
    }


def effect(rules: set[Rule]) -> set[Rule]:
    """Rules by what they do: an unconditional permission makes conditional ones void, and EPERM is the default."""
    always = {name for name, errno, conditions in rules if errno is None and not conditions}
    return {rule for rule in rules if rule[1] != 1 and not (rule[2] and rule[0] in always)}


@pytest.mark.parametrize(
    "more", [(), ("SYS_ADMIN",), ("SYS_PTRACE", "SYSLOG"), ("BPF", "PERFMON", "SYS_TIME", "SYS_NICE")]
)
def test_equal_to_dockers(more: tuple[str, ...]) -> None:
    """For amd64 and any capabilities the rules are Docker's in effect."""
    capabilities = DEFAULT | set(more)
    ours, theirs = effect(set(profile_rules(capabilities, "x86_64"))), effect(dockers_rules(capabilities))
    assert ours - theirs == set()
    assert theirs - ours == set()


def allowed(capabilities: frozenset[str] = DEFAULT, **options: bool) -> set[str]:
    """Names that some rule allows."""
    return {name for name, errno, _ in profile_rules(capabilities, "x86_64", **options) if errno is None}


DOORS = """
    mount umount2 pivot_root unshare setns fsopen open_tree move_mount mount_setattr bpf perf_event_open userfaultfd
    keyctl add_key request_key io_uring_setup io_uring_enter io_uring_register open_by_handle_at init_module
    finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff iopl ioperm acct quotactl syslog
    settimeofday clock_settime sethostname setdomainname lookup_dcookie kcmp pidfd_getfd process_madvise vhangup
    nfsservctl uselib
"""


def test_closed_doors() -> None:
    """Calls that have let containers out are in no rule of the default."""
    assert not allowed() & set(DOORS.split())


def test_pretended_owners() -> None:
    """With a single id, changing owners and making devices succeed and do nothing; fifos and files are made."""
    rules = profile_rules(DEFAULT, "x86_64", pretend_owners=True)
    for name in ("chown", "fchownat", "setgroups", "setuid", "setresgid", "capset"):
        assert [rule for rule in rules if rule[0] == name] == [(name, 0, ())]
    kinds = {(errno, conditions[0][3]) for name, errno, conditions in rules if name == "mknodat"}
    assert kinds == {(None, 0), (None, 0o10000), (None, 0o100000), (None, 0o140000), (0, 0o20000), (0, 0o60000)}


def test_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter is kept by the hash of its rules and read back without libseccomp; others have files of their own."""
    first = compiled_profile(str(tmp_path / "cache"), DEFAULT)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_bytes().endswith(first)
    assert len(first) % 8 == 0
    assert len(first) // 8 <= 4096
    assert compiled_profile(str(tmp_path / "cache"), DEFAULT, pretend_owners=True) != first
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pyseccomp", None)
        assert compiled_profile(str(tmp_path / "cache"), DEFAULT) == first
        with pytest.raises(UnsupportedHost, match="libseccomp is missing"):
            compiled_profile(str(tmp_path / "elsewhere"), DEFAULT)


ALLOW_EVERYTHING = struct.pack("=HBBI", 0x06, 0, 0, ALLOW)


@pytest.mark.parametrize(
    "damage", ["empty", "short", "cut", "zeros", "bit", "longer", "other", "open", "folder", "link"]
)
def test_damaged_cache(tmp_path: Path, damage: str) -> None:
    """A kept filter that is not what was written, by a crash or by a hand, is noticed and made again."""
    cache = tmp_path / "cache"
    first = compiled_profile(str(cache), DEFAULT)
    (kept,) = cache.iterdir()
    text = kept.read_bytes()
    if damage == "other":  # a wider profile under this one's name
        compiled_profile(str(tmp_path / "wide"), DEFAULT | {"SYS_ADMIN"})
        (wide,) = (tmp_path / "wide").iterdir()
        kept.write_bytes(wide.read_bytes())
    elif damage == "folder":
        kept.unlink()
        kept.mkdir()
    elif damage == "link":
        kept.unlink()
        kept.symlink_to("/dev/zero")
    else:
        flipped = bytes([*text[:-5], text[-5] ^ 1, *text[-4:]])
        sealed = hashlib.sha256(ALLOW_EVERYTHING).digest() + ALLOW_EVERYTHING
        damaged = {"empty": b"", "short": b"123", "cut": text[:-8], "zeros": bytes(len(text)), "bit": flipped}
        kept.write_bytes({**damaged, "longer": text + bytes(8), "open": sealed}[damage])
    assert compiled_profile(str(cache), DEFAULT) == first
    if damage != "folder":
        assert kept.read_bytes() == text
    assert len(list(cache.iterdir())) == 1


def test_no_room_to_keep_it(tmp_path: Path) -> None:
    """A cache that cannot be written does not keep containers from starting."""
    (tmp_path / "file").touch()
    assert compiled_profile(str(tmp_path / "file/cache"), DEFAULT)


ON_X86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are of x86_64")


@ON_X86_64
@pytest.mark.parametrize(
    ("number", "arguments", "answer"),
    [
        (0, (), ALLOW),  # read
        (165, (), ERRNO | 1),  # mount
        (56, (17,), ALLOW),  # clone, as fork
        (56, (0x10000000,), ERRNO | 1),  # clone, new user namespace
        (56, (0x00020000,), ERRNO | 1),  # clone, new mount namespace
        (56, (0x100000000 | 0x10000000,), ERRNO | 1),  # clone, upper half set
        (435, (), ERRNO | 38),  # clone3
        (272, (), ERRNO | 1),  # unshare
        (41, (2,), ALLOW),  # socket, AF_INET
        (41, (1,), ALLOW),  # socket, AF_UNIX
        (41, (38,), ERRNO | 1),  # socket, AF_ALG
        (41, (39,), ALLOW),
        (41, (40,), ERRNO | 1),  # socket, AF_VSOCK
        (41, (41,), ALLOW),
        (135, (0,), ALLOW),  # personality
        (135, (0x0400000,), ERRNO | 1),  # personality, ADDR_NO_RANDOMIZE and others
        (135, (0xFFFFFFFF,), ALLOW),
        (425, (), ERRNO | 1),  # io_uring_setup
        (101, (), ALLOW),  # ptrace
        (335, (), ALLOW),  # uretprobe
        (452, (), ALLOW),  # fchmodat2
        (462, (), ALLOW),  # mseal
        (459, (), ERRNO | 1),  # lsm_get_self_attr, which wants SYS_ADMIN
        (466, (), ALLOW),  # removexattrat, the newest of the profile
        (467, (), ERRNO | 38),
        (600, (), ERRNO | 38),
        (0xFFFFFFFF, (), ERRNO | 38),
        (0x40000000 | 466, (), ALLOW),
        (0x40000000 | 41, (2,), ALLOW),  # x32 socket
        (0x40000000 | 41, (38,), ERRNO | 1),
        (0x40000000 | 600, (), ERRNO | 38),
    ],
)
def test_decisions(tmp_path: Path, number: int, arguments: tuple[int, ...], answer: int) -> None:
    """The compiled filter answers as its rules say."""
    assert decide(compiled_profile(str(tmp_path), DEFAULT), number, *arguments) == answer


@ON_X86_64
def test_other_doors_of_the_kernel(tmp_path: Path) -> None:
    """The 32-bit calls are filtered too, and an architecture that is not known is killed."""
    program = compiled_profile(str(tmp_path), DEFAULT)
    assert decide(program, 3, architecture=I386) == ALLOW  # read
    assert decide(program, 21, architecture=I386) == ERRNO | 1  # mount
    assert decide(program, 310, architecture=I386) == ERRNO | 1  # unshare
    assert decide(program, 452, architecture=I386) == ALLOW  # fchmodat2
    assert decide(program, 435, architecture=I386) == ERRNO | 38  # clone3
    assert decide(program, 467, architecture=I386) == ERRNO | 38
    assert decide(program, X32 | 165) == ERRNO | 1  # x32 mount
    assert decide(program, 0, architecture=AARCH64) == KILL


@ON_X86_64
@pytest.mark.parametrize("family", [38, 40])
def test_ways_around_the_families(tmp_path: Path, family: int) -> None:
    """AF_ALG and AF_VSOCK are refused as the kernel reads them: an int, and by whatever call."""
    program = compiled_profile(str(tmp_path), DEFAULT)
    for upper in (0, 1 << 32, 0xFFFFFFFF << 32, 1 << 63):
        for number in (41, X32 | 41):
            assert decide(program, number, upper | family) == ERRNO | 1
            assert decide(program, number, upper | 2) == ALLOW
    assert decide(program, 359, family, architecture=I386) == ERRNO | 1
    assert decide(program, 359, 2, architecture=I386) == ALLOW
    assert decide(program, 102, 1, architecture=I386) == ERRNO | 1  # socketcall, SYS_SOCKET
    assert {decide(program, 102, call, architecture=I386) for call in (0, *range(2, 21))} == {ALLOW}


TABLES = {"x86_64": (X86_64, 0, "X86_64"), "i386": (I386, 0, "X86"), "x32": (X86_64, X32, "X32")}
SAMPLES = (0, 1, 2, 8, 37, 39, 41, 17, 0x20000, 0x20008, 0x10000000, 0x7E020000, 0xFFFFFFFF, (1 << 64) - 1)
HOLDS = {
    "EQ": lambda given, value, _: given == value,
    "LT": lambda given, value, _: given < value,
    "GT": lambda given, value, _: given > value,
    "MASKED_EQ": lambda given, mask, value: given & mask == value,
}


@ON_X86_64
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("more", [(), ("SYS_ADMIN", "SYS_NICE", "DAC_READ_SEARCH", "SYS_PTRACE")])
def test_every_call_as_docker_answers_it(tmp_path: Path, table: str, more: tuple[str, ...]) -> None:
    """Call by call, with the arguments that rules look at: the compiled filter answers what Docker's profile says.

    Where Docker's depends on the age of its libseccomp, a new one is meant.
    """
    architecture, bit, _ = TABLES[table]
    width = (1 << 64) - 1 if table == "x86_64" else (1 << 32) - 1  # as libseccomp compares them
    capabilities = DEFAULT | set(more)
    program = compiled_profile(str(tmp_path), capabilities)
    rules = by_number(dockers_rules(capabilities), table)
    differing = {
        (number - bit, first): got
        for number in range(bit, bit + 700)
        for first in {each & width for each in SAMPLES}
        if (got := decide(program, number, first, architecture=architecture)) != said(rules, number, first)
    }
    assert differing == ({(102, 1): ERRNO | EPERM} if table == "i386" else {})  # socketcall: see the test above


DIRECT = {
    "recvmmsg": 337, "sendmmsg": 345, "socket": 359, "socketpair": 360, "bind": 361, "connect": 362, "listen": 363,
    "accept4": 364, "getsockopt": 365, "setsockopt": 366, "getsockname": 367, "getpeername": 368, "sendto": 369,
    "sendmsg": 370, "recvfrom": 371, "recvmsg": 372, "shutdown": 373, "semget": 393, "semctl": 394, "shmget": 395,
    "shmctl": 396, "shmat": 397, "shmdt": 398, "msgget": 399, "msgsnd": 400, "msgrcv": 401, "msgctl": 402,
}  # fmt: skip
"""Calls of i386 that libseccomp shows as parts of `socketcall` and `ipc`, and allows both ways."""


def by_number(rules: set[Rule], table: str) -> dict[int, list[Rule]]:
    """Rules by the number of their call; those that this libseccomp does not know by the numbers of ours."""
    _, bit, name = TABLES[table]
    own = {"x86_64": {"uretprobe": 335}, "i386": DIRECT}.get(table, {})
    found: dict[int, list[Rule]] = {}
    for rule in rules:
        number = pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, name), rule[0])
        if number == -1 or rule[0] in own:
            number = bit | (profile.NUMBERS | own).get(rule[0], 0)
        if number > bit or rule[0] in {"read", "restart_syscall"}:
            found.setdefault(number, []).append(rule)
    return found


def said(rules: dict[int, list[Rule]], number: int, first: int) -> int:
    """What Docker's rules answer to a call with this first argument, the others being zero."""
    if number > max(rules):
        return ERRNO | ENOSYS
    for _, errno, conditions in rules.get(number, ()):
        if all(HOLDS[operator](0 if at else first, a, b) for at, operator, a, b in conditions):
            return ALLOW if errno is None else ERRNO | int(errno)
    return ERRNO | EPERM


def test_a_libseccomp_of_another_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the filter answers does not depend on which newer calls libseccomp has heard of."""
    if os.uname().machine not in {"x86_64", "aarch64"}:
        pytest.skip("filters of other machines have no head")
    architecture = X86_64 if os.uname().machine == "x86_64" else AARCH64
    known = compiled_profile(str(tmp_path / "as-it-is"), DEFAULT)
    resolve = pyseccomp.resolve_syscall

    def older(which: int, name: str) -> int:
        return -1 if name in profile.NUMBERS or name == "uretprobe" else int(resolve(which, name))

    monkeypatch.setattr(pyseccomp, "resolve_syscall", older)
    aged = compiled_profile(str(tmp_path / "older"), DEFAULT)
    assert aged != known
    for number in (*range(600), 1 << 31):
        assert decide(aged, number, architecture=architecture) == decide(known, number, architecture=architecture), (
            number
        )


def test_head_alone() -> None:
    """A head answers what its tables say and lets everything else through to what follows."""
    tables = [
        newcalls.Table(architecture=X86_64, answers={10: None, 12: 7}, newest=12),
        newcalls.Table(architecture=X86_64, answers={}, newest=X32 | 3, x32=True),
        newcalls.Table(architecture=I386, answers={11: None}, newest=20, socket=5, socketcall=6),
    ]
    program = newcalls.head(tables, (40,)) + struct.pack("=HBBI", 0x06, 0, 0, 0x1234)
    through = 0x1234
    assert [decide(program, n) for n in (0, 9, 10, 11, 12, 13)] == [
        through,
        through,
        ALLOW,
        through,
        ERRNO | 7,
        ERRNO | ENOSYS,
    ]
    assert [decide(program, X32 | n) for n in (0, 3, 4)] == [through, through, ERRNO | ENOSYS]
    i386 = [decide(program, n, 1, architecture=I386) for n in (5, 6, 10, 11, 20, 21)]
    assert i386 == [through, ERRNO | EPERM, through, ALLOW, through, ERRNO | ENOSYS]
    assert decide(program, 5, 40, architecture=I386) == ERRNO | EPERM
    assert decide(program, 6, 40, architecture=I386) == through
    assert decide(program, 10, architecture=AARCH64) == through
