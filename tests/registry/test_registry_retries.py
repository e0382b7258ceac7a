"""When to try again, and when to stop."""

from __future__ import annotations

import datetime as dt

import pytest

from nbcontainer.errors import Denied, RateLimited, RegistryRefused
from nbcontainer.registry import ConnectionFailed, Interrupt, RegistryBusy, RegistrySettings
from nbcontainer.registry.refusals import Complaint, retry_after
from nbcontainer.registry.retries import Patience, is_transient, pause

SETTINGS = RegistrySettings(attempts=4, backoff=1.0, longest_wait=60.0)
BUSY = RegistryBusy("busy", status=503)


def test_what_passes_by_itself():
    """Busy, limited and broken pass; denied, refused and an unknown certificate do not."""
    assert is_transient(BUSY)
    assert is_transient(RateLimited("slow down"))
    assert is_transient(ConnectionFailed("broke", kind="broken", transient=True))
    assert not is_transient(ConnectionFailed("who are you", kind="certificate", transient=False))
    assert not is_transient(RegistryRefused("no", status=400))
    assert not is_transient(Denied("no"))


def test_back_off_doubles_with_jitter():
    """The pause doubles, spread from half to one and a half, and ends with the attempts."""
    assert [pause(BUSY, n, SETTINGS, 0.5) for n in (1, 2, 3, 4)] == [1.0, 2.0, 4.0, None]
    assert (pause(BUSY, 1, SETTINGS, 0.0), pause(BUSY, 1, SETTINGS, 1.0)) == (0.5, 1.5)


def test_retry_after_is_a_least_and_has_a_bound():
    """A server's wish is kept, unless it is longer than anybody waits before a notebook."""
    assert pause(RateLimited("x", retry_after=20.0), 1, SETTINGS, 0.5) == 20.0
    assert pause(RateLimited("x", retry_after=0.0), 1, SETTINGS, 0.5) == 1.0
    assert pause(RateLimited("x", retry_after=3600.0), 1, SETTINGS, 0.5) is None


NOW = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.timezone.utc)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("", None),
        ("-5", None),
        ("soon", None),
        ("1e9", None),
        ("9" * 400, 999999999.0),
    ],
)
def test_retry_after_header(text, seconds):
    """Seconds or a date; nonsense is no wish."""
    assert retry_after(text, NOW) == seconds


def test_patience_tells_and_ends():
    """Each wait is told; the last failure is the error; progress renews."""
    told: list[str] = []
    patience = Patience(RegistrySettings(attempts=2, backoff=0.001), Interrupt("x"), told.append)
    patience.endure(BUSY)
    with pytest.raises(RegistryBusy):
        patience.endure(BUSY)
    patience.renew()
    patience.endure(BUSY)
    assert len(told) == 2
    assert "busy; trying again in" in told[0]
    assert "attempt 2 of 2" in told[0]


@pytest.mark.parametrize(
    ("body", "codes", "text"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no entry"}]}', ("DENIED",), "no entry"),
        (b'{"errors":[{"code":"A"},{"code":"B","message":"b"}]}', ("A", "B"), "A; b"),
        (b'{"errors":[{"message":"get https://x/y?sig=SECRET"}]}', (), "get https://x/y?…"),
        (b"<html>", (), ""),
        (b'{"errors":null}', (), ""),
        (b'{"errors":["x", 1]}', (), ""),
        (b"[" * 100_000, (), ""),
    ],
)
def test_error_bodies(body, codes, text):
    """The registry's words are taken when they have the spec's form, without secrets."""
    complaint = Complaint.decode(body)
    assert complaint.codes == codes
    assert complaint.text == text
