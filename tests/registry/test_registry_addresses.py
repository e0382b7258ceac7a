"""Origins, networks, and what may be shown of a URL."""

from __future__ import annotations

import socket

import pytest

from nbcontainer.errors import RemoteError
from nbcontainer.registry.addresses import Origin, is_loopback_name, reaches_of, redact, redact_text, split_host


def test_origin_fills_in_ports_and_lowers_case():
    """Two spellings of one origin are equal."""
    assert Origin.of("https://Example.COM/x") == Origin.of("https://example.com:443/y?z")
    assert Origin.of("http://example.com") != Origin.of("https://example.com")
    assert Origin.of("http://[::1]:5000/").authority == "[::1]:5000"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "//example.com/",
        "https:///nohost",
        "https://user:secret@example.com/",
        "https://good.example\\@evil.example/",
        "https://example.com:99999/",
        "https://exam ple.com/",
        "https://example.com/\r\nX: y",
        "file:///etc/passwd",
    ],
)
def test_ambiguous_or_foreign_urls_are_refused(url):
    """What two parsers could read in two ways is no origin, and the error shows no secret."""
    with pytest.raises(RemoteError) as caught:
        Origin.of(url)
    assert "secret" not in str(caught.value)


def test_loopback_names():
    """Loopback by spelling: what docker takes as insecure."""
    assert all(is_loopback_name(name) for name in ("localhost", "127.0.0.1", "127.9.9.9", "::1"))
    assert not any(is_loopback_name(name) for name in ("example.com", "10.0.0.1", "localhost.example"))


@pytest.mark.parametrize(
    ("address", "reach"),
    [
        ("127.0.0.1", "loopback"),
        ("0.0.0.0", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("169.254.169.254", "link-local"),
        ("fe80::1", "link-local"),
        ("10.1.2.3", "private"),
        ("192.168.0.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("93.184.216.34", "public"),
    ],
)
def test_reach_of_addresses(monkeypatch, address, reach):
    """Each address is in one network; a name is in those of all its addresses."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (address, 0)), (0, 0, 0, "", ("8.8.8.8", 0))]
    )
    assert reaches_of("x.example") == {reach, "public"}


def test_reach_of_an_unknown_name(monkeypatch):
    """A name that does not resolve is nowhere."""

    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert reaches_of("x.example") == frozenset()


def test_redact_drops_user_query_and_fragment():
    """Passwords and signatures do not survive, the place does."""
    shown = redact("https://alice:pw@cdn.example/blob?X-Amz-Signature=abc#frag")
    assert shown == "https://cdn.example/blob?…"


def test_redact_text_of_a_stranger():
    """A registry's sentence loses signatures, tokens, control codes, line ends, and any length."""
    text = "see https://u:p@x.example/a?sig=SECRET\x1b[31m\nBearer abcdefghijklmnop " + "x" * 1000
    shown = redact_text(text)
    assert "SECRET" not in shown
    assert "abcdefgh" not in shown
    assert "u:p" not in shown
    assert "\x1b" not in shown
    assert "\n" not in shown
    assert len(shown) == 300


def test_split_host():
    """Ports and brackets come off."""
    assert [split_host(host) for host in ("a.b:5000", "a.b", "[::1]:5000")] == ["a.b", "a.b", "::1"]
