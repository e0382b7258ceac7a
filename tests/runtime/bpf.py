"""A system-call filter read and answered as the kernel does, to ask it questions without a process."""

from __future__ import annotations

import functools
import struct

__all__ = ["AARCH64", "ALLOW", "ERRNO", "I386", "KILL", "X86_64", "decide"]

X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
"""AUDIT_ARCH of linux/audit.h."""
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x00000000
"""SECCOMP_RET of linux/seccomp.h; KILL is that of the thread, libseccomp's for an architecture it does not know."""


def decide(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> int:
    """What the kernel would answer: classic BPF over a seccomp_data, as seccomp(2) describes it."""
    code = _code(program)
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


@functools.lru_cache(maxsize=8)
def _code(program: bytes) -> list[tuple[int, int, int, int]]:
    return list(struct.iter_unpack("=HBBI", program))
