"""The system-call filter: equal in effect to Docker's default where that is at hand, compiled once, and kept."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from nbcontainer.runtime.capabilities import DEFAULT_CAPABILITIES
from nbcontainer.runtime.seccomp import Rule, compiled_profile, profile_rules

DOCKERS = Path(__file__).parents[3] / "shared/data/docker-default-seccomp.json"
DEFAULT = frozenset(DEFAULT_CAPABILITIES)
OPERATORS = {
    "SCMP_CMP_EQ": "EQ",
    "SCMP_CMP_LT": "LT",
    "SCMP_CMP_GT": "GT",
    "SCMP_CMP_MASKED_EQ": "MASKED_EQ",
    "SCMP_CMP_NE": "NE",
}


def dockers_rules(capabilities: frozenset[str]) -> set[Rule]:
    """Docker's profile for amd64 with these capabilities, as rules of ours."""
    rules: set[Rule] = set()
    for each in json.loads(DOCKERS.read_text())["syscalls"]:
        if _applies(each.get("includes") or {}, capabilities) and not _excluded(
            each.get("excludes") or {}, capabilities
        ):
            errno = {"SCMP_ACT_ALLOW": None, "SCMP_ACT_ERRNO": each.get("errnoRet", 1)}[each["action"]]
            conditions = tuple(
                (one["index"], OPERATORS[one["op"]], one["value"], one.get("valueTwo", 0))
                for one in each.get("args") or ()
            )
            rules |= {(name, errno, conditions) for name in each["names"]}
    return rules


def _applies(includes: dict[str, Any], capabilities: frozenset[str]) -> bool:
    arches, caps = includes.get("arches"), includes.get("caps") or []
    return (not arches or "amd64" in arches) and all(cap.removeprefix("CAP_") in capabilities for cap in caps)


def _excluded(excludes: dict[str, Any], capabilities: frozenset[str]) -> bool:
    return "amd64" in (excludes.get("arches") or []) or any(
        cap.removeprefix("CAP_") in capabilities for cap in excludes.get("caps") or []
    )


def effect(rules: set[Rule]) -> set[Rule]:
    """Rules by what they do: an unconditional permission makes conditional ones void, and EPERM is the default."""
    always = {name for name, errno, conditions in rules if errno is None and not conditions}
    return {rule for rule in rules if rule[1] != 1 and not (rule[2] and rule[0] in always)}


@pytest.mark.skipif(not DOCKERS.exists(), reason="Docker's profile is not beside this project")
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


def test_compiled_once(tmp_path: Path) -> None:
    """The filter is kept by the hash of its rules and read back; a damaged or unreadable one is made again."""
    first = compiled_profile(str(tmp_path / "cache"), DEFAULT)
    (kept,) = (tmp_path / "cache").iterdir()
    assert first == kept.read_bytes() == compiled_profile(str(tmp_path / "cache"), DEFAULT)
    assert len(first) % 8 == 0
    assert len(first) // 8 <= 4096
    for damage in (b"", b"123"):
        kept.write_bytes(damage)
        assert compiled_profile(str(tmp_path / "cache"), DEFAULT) == first
    assert compiled_profile(str(tmp_path / "cache"), DEFAULT, pretend_owners=True) != first


def test_no_room_to_keep_it(tmp_path: Path) -> None:
    """A cache that cannot be written does not keep containers from starting."""
    (tmp_path / "file").touch()
    assert compiled_profile(str(tmp_path / "file/cache"), DEFAULT)


ARCHITECTURE, NUMBER = 4, 0
X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def decide(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the kernel would answer: classic BPF over a seccomp_data, as seccomp(2) describes it."""
    code = list(struct.iter_unpack("=HBBI", program))
    data = struct.pack(
        "=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), architecture, 0, *(*arguments, *[0] * 6)[:6]
    )
    accumulator = position = 0
    while True:
        operation, when, otherwise, value = code[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        elif operation == 0x05:
            position += value
        elif operation == 0x54:
            accumulator &= value
        else:
            holds = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: bool(accumulator & value),
            }
            position += when if holds[operation] else otherwise


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are of x86_64")
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
        (9999, (), ERRNO | 1),
    ],
)
def test_decisions(tmp_path: Path, number: int, arguments: tuple[int, ...], answer: int) -> None:
    """The compiled filter answers as its rules say."""
    assert decide(compiled_profile(str(tmp_path), DEFAULT), number, *arguments) == answer


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are of x86_64")
def test_other_doors_of_the_kernel(tmp_path: Path) -> None:
    """The 32-bit calls are filtered too, and an architecture that is not known is killed."""
    program = compiled_profile(str(tmp_path), DEFAULT)
    assert decide(program, 3, architecture=I386) == ALLOW  # read
    assert decide(program, 21, architecture=I386) == ERRNO | 1  # mount
    assert decide(program, 310, architecture=I386) == ERRNO | 1  # unshare
    assert decide(program, 359, 38, architecture=I386) == ERRNO | 1  # socket, AF_ALG
    assert decide(program, 0x40000000 | 165) in {ERRNO | 1, KILL, 0}  # x32 mount
    assert decide(program, 0, architecture=0xC00000B7) in {KILL, 0}  # aarch64
