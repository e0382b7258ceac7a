"""What images say of themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.images.library import unix_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-01-02T03:04:05Z", 1767323045.0),
        ("2026-01-02T03:04:05.5Z", 1767323045.5),
        ("2026-01-02T03:04:05.123456789Z", 1767323045.123456),
        ("2026-01-02T03:04:05.123456789+01:00", 1767319445.123456),
        ("2026-01-02T03:04:05-08:00", 1767351845.0),
        ("2026-01-02T03:04:05", 1767323045.0),
        ("0001-01-01T00:00:00Z", None),
        ("1970-01-01T00:00:00Z", None),
        ("", None),
        ("yesterday", None),
    ],
)
def test_unix_time(text: str, seconds: float | None) -> None:
    """Times of images are read to the microsecond; the zero time and nonsense are none."""
    assert unix_time(text) == pytest.approx(seconds) if seconds else unix_time(text) is None


@given(
    st.text(max_size=40) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{0,20}[Z+-]?[0-9:]{0,6}", fullmatch=True)
)
def test_any_text(text: str) -> None:
    """Any text is a time or none."""
    assert unix_time(text) is None or isinstance(unix_time(text), float)
