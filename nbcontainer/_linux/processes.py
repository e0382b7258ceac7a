"""Processes: cloning into namespaces, capabilities, keyrings, filters.

Sources: clone(2), pidfd_open(2), capabilities(7), prctl(2), seccomp(2), keyctl(2), session-keyring(7).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct

from nbcontainer._linux.syscalls import MACHINE, failure, prctl, setns, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "bring_loopback_up",
    "clone_into",
    "clone_sibling",
    "die_with_parent",
    "drop_bounding_set",
    "enter_user_namespace",
    "forbid_new_privileges",
    "hide_from_tracers",
    "load_filter",
    "new_session_keyring",
    "on_signals",
    "pidfd_open",
    "read_text",
    "set_capabilities",
]

CLONE_NEWTIME = 0x00000080
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_INTO_CGROUP = 0x200000000

_PIECE = 1 << 14
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SYS_clone3 = 435
_SYS_clone = {"x86_64": 56, "aarch64": 220, "riscv64": 220, "ppc64le": 120, "s390x": 120}.get(MACHINE, 220)
_SYS_pidfd_open = 434
_SYS_keyctl = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280}.get(MACHINE, 219)
_SYS_capset = {"x86_64": 126, "aarch64": 91, "riscv64": 91, "ppc64le": 184, "s390x": 185}.get(MACHINE, 91)

# PyDLL: the interpreter lock is held across the call, so the child of a clone wakes up owning it.
_held = ctypes.PyDLL(None, use_errno=True)
_held.syscall.restype = ctypes.c_long


def clone_into(flags: int, cgroup: int = -1) -> tuple[int, int]:
    """Fork into new namespaces; return (pid, pidfd) in the parent and (0, -1) in the child (clone3, Linux 5.3).

    With a descriptor of a `cgroup` of v2 also into that (Linux 5.7). With CLONE_PARENT among the `flags` it is a child
    of our parent. Only for a single-threaded process: the interpreter's fork hooks do not run.
    """
    pidfd = ctypes.c_int(-1)
    signalled = 0 if flags & CLONE_PARENT else int(signal.SIGCHLD)
    flags |= CLONE_PIDFD | (CLONE_INTO_CGROUP if cgroup >= 0 else 0)
    words = (flags, ctypes.addressof(pidfd), 0, 0, signalled, 0, 0, 0, 0, 0, max(cgroup, 0))
    arguments = (ctypes.c_uint64 * len(words))(*words)
    size = ctypes.c_long(ctypes.sizeof(arguments))
    pid: int = _held.syscall(ctypes.c_long(_SYS_clone3), ctypes.byref(arguments), size)
    if pid < 0:
        raise failure("clone3", hex(flags))
    return pid, pidfd.value if pid else -1


def clone_sibling() -> tuple[int, int]:
    """Fork a child of this process's *parent*; return (pid, pidfd) here and (0, -1) in the child (clone(2), Linux 5.2).

    The way into a pid namespace without staying behind as a parent in it: what setns(2) has chosen holds for children.
    The older call, because it is the one that container filters allow. Only for a single-threaded process.
    """
    pidfd = ctypes.c_int(-1)
    flags, stack, at = CLONE_PARENT | CLONE_PIDFD | int(signal.SIGCHLD), 0, ctypes.addressof(pidfd)
    words = (stack, flags, at, 0, 0) if MACHINE == "s390x" else (flags, stack, at, 0, 0)
    pid: int = _held.syscall(ctypes.c_long(_SYS_clone), *(ctypes.c_long(word) for word in words))
    if pid < 0:
        raise failure("clone", "CLONE_PARENT")
    return pid, pidfd.value if pid else -1


def pidfd_open(pid: int) -> int:
    """A descriptor of a process, readable when it has ended (pidfd_open(2), Linux 5.3)."""
    return syscall("pidfd_open", _SYS_pidfd_open, pid, 0, subject=pid)


def die_with_parent() -> None:
    """Be killed when the parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def on_signals(*numbers: int, action: Callable[[int, Any], object] | int = _signal.SIG_DFL) -> None:
    """Have these signals do this, or what they do by default (signal(2)).

    Not by `signal.signal`, which looks everything up in enumerations: fifty pages that a fork's child would copy.
    """
    for number in numbers:
        _signal.signal(number, action)


def enter_user_namespace(namespace: int, *, further: int = 0) -> None:
    """Join a user namespace, by a descriptor of it or of a process, and be root there (setns(2)).

    With a process (a pidfd, Linux 5.8) also its namespaces of the kinds `further`. Raises `OSError`.
    """
    setns(namespace, CLONE_NEWUSER | further)
    with contextlib.suppress(PermissionError):  # one id: setgroups is denied, and there is no group to lose
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def hide_from_tracers() -> None:
    """Close this process's /proc entries and memory to others in the container (PR_SET_DUMPABLE 0).

    Also what keeps ``/proc/1/exe`` from naming the host's interpreter to container root (CVE-2019-5736).
    """
    prctl(_PR_SET_DUMPABLE, 0)


def forbid_new_privileges() -> None:
    """Make setuid bits and file capabilities powerless from here on (PR_SET_NO_NEW_PRIVS)."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def new_session_keyring() -> None:
    """Leave the inherited session keyring behind; ENOSYS means the kernel has none to leak."""
    try:
        syscall("keyctl", _SYS_keyctl, _KEYCTL_JOIN_SESSION_KEYRING, 0)
    except OSError as problem:
        if problem.errno != errno.ENOSYS:
            raise


def drop_bounding_set(keep: frozenset[int], last: int) -> None:
    """Take every capability from 0 to `last` that is not in `keep` out of the bounding set."""
    for number in range(last + 1):
        if number not in keep:
            prctl(_PR_CAPBSET_DROP, number)


def set_capabilities(permitted: frozenset[int]) -> None:
    """Make `permitted` the permitted and effective set; inheritable becomes empty (and ambient with it)."""
    mask = sum(1 << number for number in permitted)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = struct.pack("=Ii", 0x20080522, 0)
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    syscall("capset", _SYS_capset, header, data)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def load_filter(program: bytes) -> None:
    """Install a seccomp filter given as classic BPF; needs no_new_privs or CAP_SYS_ADMIN (seccomp(2))."""
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_program = _FilterProgram(len(program) // 8, ctypes.addressof(instructions))
    prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(filter_program))


_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41


def bring_loopback_up() -> None:
    """Set ``lo`` of this network namespace up (netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP_RUNNING))


def last_capability() -> int:
    """The highest capability number this kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", "rb") as file:
        return int(file.read())


def read_text(path: str) -> str:
    """The text of a kernel file, without the text layer of `open`, which takes two fifths of the time.

    Raises `OSError` as open(2) and read(2).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    data = b""
    try:
        while piece := os.read(fd, _PIECE):
            data += piece
    finally:
        os.close(fd)
    return data.decode(errors="surrogateescape")


def write_text(path: str, text: str) -> None:
    """Write a small kernel file in one call, without creating it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
