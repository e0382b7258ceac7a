"""Times of HEALTHCHECK flags, as Go's time.ParseDuration reads them: ``1m30s``, ``0.5h``, ``250ms``."""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["parse_duration"]

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,  # the Greek letter beside the micro sign: Go takes both
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"([0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = (1 << 63) - 1


def parse_duration(text: str) -> int | None:
    """Nanoseconds; None when the text is no duration, is negative, or does not fit 63 bits.

    >>> parse_duration("1m30s")
    90000000000
    """
    text = text.removeprefix("+")
    if text == "0":
        return 0
    total, at = Fraction(0), 0
    while match := _PART.match(text, at):
        number = match[1] + "0" if match[1].endswith(".") else match[1]
        total += Fraction(number) * _UNITS[match[2]]
        at = match.end()
    return int(total) if 0 < at == len(text) and total <= _LONGEST else None
