"""Times of health checks, as Go reads them."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("30s", 30_000_000_000),
        ("1m30s", 90_000_000_000),
        ("1h2m3s4ms5us6ns", 3723004005006),
        ("1.5s", 1_500_000_000),
        ("1.s", 1_000_000_000),
        (".5s", 500_000_000),
        ("1µs", 1000),
        ("1μs", 1000),
        ("0.3ns", 0),
        ("", None),
        ("+", None),
        ("30", None),
        ("-1s", None),
        ("s", None),
        (".s", None),
        ("1x", None),
        ("1s ", None),
        ("1 s", None),
        ("999999999h", None),
        ("9" * 40 + "s", None),
    ],
)
def test_parse_duration(text: str, nanoseconds: int | None) -> None:
    """Numbers with units add up, and what is none, negative or too long is no time."""
    assert parse_duration(text) == nanoseconds
