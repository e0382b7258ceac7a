"""Whether a command waits for its input: asked of the kernel, because a pipe does not tell its writer.

``/proc/PID/syscall`` names the system call that a process is in and its arguments (proc(5)). One that is in read(2) on
our pipe waits for us. Of one that polls the file is in its memory, not in its registers; nobody is asked because of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import termios

from nbcontainer._linux.syscalls import MACHINE

__all__ = ["is_read"]

_READS = {"x86_64": (0, 19), "s390x": (3, 145), "ppc64le": (3, 145)}.get(MACHINE, (63, 65))
"""read(2) and readv(2); the last pair is that of the younger architectures (asm-generic/unistd.h)."""
_MOST = 2000


def is_read(pid: int, pipe: int) -> bool:
    """Whether `pid`, or a process below it, waits for something to come through the pipe of which `pipe` is an end."""
    if struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]:
        return False  # there is something, it has only not gone on yet
    name = f"pipe:[{os.fstat(pipe).st_ino}]"
    waiting, seen = [pid], 0
    while waiting and seen < _MOST:
        process = waiting.pop()
        seen += 1
        for task in _tasks(process):
            waiting += _children(process, task)
            if _reads(process, task, name):
                return True
    return False


def _tasks(process: int) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(f"/proc/{process}/task")
    return []


def _children(process: int, task: str) -> list[int]:
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{process}/task/{task}/children", "rb") as file:
        return [int(word) for word in file.read().split()]
    return []


def _reads(process: int, task: str, name: str) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        with open(f"/proc/{process}/task/{task}/syscall", "rb") as file:
            words = file.read(200).split()
        if int(words[0]) in _READS:
            return os.readlink(f"/proc/{process}/fd/{int(words[1], 16)}") == name
    return False
