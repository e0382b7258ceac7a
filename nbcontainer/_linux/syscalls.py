"""System calls that Python does not offer (or offers only from 3.12 on): one small function each.

Every function raises `OSError` naming the call and what it was about. Numbers of calls added since Linux 5.1 are the
same on every architecture (asm-generic/unistd.h); older ones are looked up by machine.
"""

from __future__ import annotations

import ctypes
import os

__all__ = [
    "RESOLVE_BENEATH",
    "RESOLVE_IN_ROOT",
    "RESOLVE_NO_MAGICLINKS",
    "RESOLVE_NO_SYMLINKS",
    "close_all_but",
    "close_range",
    "file_system_type",
    "openat2",
    "prctl",
    "set_child_subreaper",
    "sethostname",
    "setns",
    "syscall",
    "unshare",
]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_syscall = _libc.syscall
_prctl = _libc.prctl

SYS_openat2 = 437
SYS_close_range = 436

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

MACHINE = os.uname().machine


def failure(call: str, subject: object = "") -> OSError:
    """The `OSError` for the errno that the last call left, naming call and subject."""
    code = ctypes.get_errno()
    about = f" {subject}" if subject != "" else ""
    return OSError(code, f"{call}{about}: {os.strerror(code)}")


def syscall(call: str, number: int, *arguments: object, subject: object = "") -> int:
    """Make a raw system call; ints go as longs, bytes as pointers."""
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise failure(call, subject)
    return result


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW_SIZE = ctypes.c_long(ctypes.sizeof(_OpenHow))
_OPENAT2 = ctypes.c_long(SYS_openat2)


def openat2(directory: int, path: str | bytes, flags: int, *, mode: int = 0, resolve: int = 0) -> int:
    """Open `path` below the directory fd, with the kernel confining the walk (openat2(2), Linux 5.6).

    The descriptor is close-on-exec. `resolve` is a union of the ``RESOLVE_`` flags.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    name = path if isinstance(path, bytes) else os.fsencode(path)
    fd: int = _syscall(_OPENAT2, ctypes.c_long(directory), name, ctypes.byref(how), _HOW_SIZE)
    if fd < 0:
        raise failure("openat2", os.fsdecode(name))
    return fd


def unshare(flags: int) -> None:
    """Move this process into new namespaces (unshare(2))."""
    if _libc.unshare(ctypes.c_int(flags)) != 0:
        raise failure("unshare", hex(flags))


def setns(fd: int, flags: int) -> None:
    """Join the namespace(s) that `fd` names (setns(2))."""
    if _libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)) != 0:
        raise failure("setns", hex(flags))


def prctl(option: int, *arguments: int) -> int:
    """Call prctl(2) with up to four integer arguments."""
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = _prctl(ctypes.c_int(option), *padded)
    if result < 0:
        raise failure("prctl", option)
    return result


_PR_SET_CHILD_SUBREAPER = 36


def set_child_subreaper() -> None:
    """Make this process the parent of its descendants' orphans (prctl(2), PR_SET_CHILD_SUBREAPER).

    Not across pid namespaces: in each, its own first process comes before.
    """
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """Close every descriptor from `first` to `last` (close_range(2), Linux 5.9)."""
    syscall("close_range", SYS_close_range, first, last, 0)


def close_all_but(*kept: int) -> None:
    """Close every descriptor but the standard ones and `kept`."""
    previous = 2
    for fd in sorted(kept):
        if fd > previous + 1:
            close_range(previous + 1, fd - 1)
        previous = fd
    close_range(previous + 1)


def sethostname(name: str) -> None:
    """Set the host name of this UTS namespace (sethostname(2); `socket.sethostname` would import sockets)."""
    encoded = os.fsencode(name)
    if _libc.sethostname(ctypes.c_char_p(encoded), ctypes.c_size_t(len(encoded))) != 0:
        raise failure("sethostname", name)


class _FileSystem(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_long), ("rest", ctypes.c_long * 31))


def file_system_type(fd: int) -> int:
    """The magic number of the file system that holds `fd` (fstatfs(2), ``f_type``)."""
    found = _FileSystem()
    if _libc.fstatfs(ctypes.c_int(fd), ctypes.byref(found)) != 0:
        raise failure("fstatfs", fd)
    return int(found.kind) & 0xFFFFFFFF
