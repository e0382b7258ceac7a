"""The head of a system-call filter: what libseccomp cannot say, as classic BPF that runs before its program.

Calls younger than the installed libseccomp are decided by their number. Calls younger than the whole profile answer
ENOSYS rather than EPERM, as runc's stub does for Docker: a C library that tries a new call first falls back on ENOSYS
and gives up on EPERM. For these only instructions are used that the kernel can evaluate ahead of time, so that its
bitmap of calls that are always allowed (seccomp_cache_prepare in kernel/seccomp.c, since Linux 5.11) still holds.

And two ways around the rule for ``socket`` are closed, which Docker's profile leaves open. libseccomp compares
arguments as 64 bits, but the kernel takes the family as an int: 0x100000026 is larger than every family, and is AF_ALG.
The 32-bit ``socketcall`` has its arguments in memory, where no filter sees them, so it may not make sockets at all; C
libraries have used the direct calls since Linux 4.3.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Table", "head"]

_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM, _ENOSYS = 1, 38

# seccomp_data of seccomp(2): where its fields lie
_NUMBER, _ARCHITECTURE = 0, 4
_FIRST_ARGUMENT = 16 if sys.byteorder == "little" else 20
"""Its low half, which is all that an int has."""

# classic BPF, linux/bpf_common.h
_LOAD, _RETURN, _JUMP = 0x20, 0x06, 0x05
_IF_EQUAL, _IF_GREATER, _IF_AT_LEAST = 0x15, 0x25, 0x35

_X32_BIT = 0x40000000
_SYS_SOCKET = 1
"""The first argument of socketcall(2) that makes a socket (linux/net.h)."""

_Instruction = tuple[int, int, int, int]
"""Code, how many to skip when true, how many when false, value."""
_END = -1
"""The value of a jump to the end of the head, until it is known where that is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One way to call the kernel. `architecture` is its AUDIT_ARCH; x32 shares that of x86_64 and has a bit of its own.

    `answers` are calls decided here (None: allowed, else the errno); `newest` is the highest number of the profile;
    `socket` and `socketcall` are the numbers of those calls, where there are any.
    """

    architecture: int
    answers: Mapping[int, int | None]
    newest: int
    x32: bool = False
    socket: int = -1
    socketcall: int = -1


def head(tables: Sequence[Table], families: Sequence[int] = ()) -> bytes:
    """The head for these tables; no socket is made of `families`.

    What it does not decide falls through to the program that follows.
    """
    program: list[_Instruction] = [(_LOAD, 0, 0, _ARCHITECTURE)]
    for architecture in dict.fromkeys(table.architecture for table in tables):
        body = _for_architecture([table for table in tables if table.architecture == architecture], families)
        program += [(_IF_EQUAL, 1, 0, architecture), (_JUMP, 0, 0, len(body)), *body]
    ended = (
        (code, when, otherwise, len(program) - position - 1 if value == _END else value)
        for position, (code, when, otherwise, value) in enumerate(program)
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in ended)


def _for_architecture(tables: Sequence[Table], families: Sequence[int]) -> list[_Instruction]:
    load: _Instruction = (_LOAD, 0, 0, _NUMBER)
    usual = [each for table in tables if not table.x32 for each in _for_table(table, families)]
    x32 = [each for table in tables if table.x32 for each in _for_table(table, families)]
    if not x32:
        return [load, *usual]
    return [load, (_IF_AT_LEAST, 0, 1, _X32_BIT), (_JUMP, 0, 0, len(usual)), *usual, *x32]


def _for_table(table: Table, families: Sequence[int]) -> list[_Instruction]:
    """One table, the number being loaded; common calls leave after the first comparison."""
    code: list[_Instruction] = []
    for number, refused in ((table.socket, families), (table.socketcall, (_SYS_SOCKET,) if families else ())):
        if number >= 0 and refused:
            check = [each for value in refused for each in _answer(_IF_EQUAL, value, _ERRNO | _EPERM)]
            code += [(_IF_EQUAL, 0, len(check) + 2, number), (_LOAD, 0, 0, _FIRST_ARGUMENT), *check]
            code += [(_JUMP, 0, 0, _END)]
    code += [(_IF_AT_LEAST, 1, 0, min((*table.answers, table.newest + 1))), (_JUMP, 0, 0, _END)]
    for number, errno in sorted(table.answers.items()):
        code += _answer(_IF_EQUAL, number, _ALLOW if errno is None else _ERRNO | errno)
    return [*code, *_answer(_IF_GREATER, table.newest, _ERRNO | _ENOSYS), (_JUMP, 0, 0, _END)]


def _answer(comparison: int, value: int, action: int) -> list[_Instruction]:
    return [(comparison, 0, 1, value), (_RETURN, 0, 0, action)]
