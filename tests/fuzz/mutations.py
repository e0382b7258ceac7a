"""Small changes to inputs that are nearly right: how a run without coverage finds its way into a format."""

from __future__ import annotations

from tests.fuzz.choices import Choices

__all__ = ["mutated"]

_BLOCK = 512
_TOKENS = (
    b"0", b"\0", b"\xff", b"..", b"/", b"../outside/canary", b".wh.", b"null", b"[]", b"{}", b'""', b"-1", b"1e999", b"\\ud800",
    b"99999999999999999999", b'"Run"', b":", b"@", b"\n",
)  # fmt: skip


def mutated(data: bytes, decisions: bytes, other: bytes) -> bytes:
    """`data` with bytes flipped, pieces taken out, doubled, or taken from `other`; checksums of tar are put right."""
    choices = Choices(decisions)
    changed = bytearray(data)
    while choices.more():
        at = choices.number(len(changed) + 1)
        action = choices.number(7)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << choices.number(8)
        elif action == 1 and at < len(changed):
            changed[at] = choices.number(256)
        elif action == 2:
            token = choices.pick(_TOKENS)
            changed[at : at + len(token)] = token
        elif action == 3:
            changed[at:at] = choices.pick(_TOKENS)
        elif action == 4:
            del changed[at : at + choices.number(64)]
        elif action == 5:
            start = at - at % _BLOCK
            changed[start:start] = changed[start : start + _BLOCK * (1 + choices.number(3))]
        elif action == 6:
            start = choices.number(len(other) + 1)
            changed[at : at + 64] = other[start : start + 64]
        del changed[1 << 18 :]
    return _checksums_right(changed) if len(changed) >= _BLOCK and len(data) >= _BLOCK else bytes(changed)


def _checksums_right(data: bytearray) -> bytes:
    """Every block that looks like a header of tar gets the checksum it should have."""
    for start in range(0, len(data) - _BLOCK + 1, _BLOCK):
        if data[start + 257 : start + 262] == b"ustar":
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + _BLOCK])
    return bytes(data)
