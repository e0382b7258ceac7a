"""Digests and chain ids."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.errors import InvalidDigest
from nbcontainer.model import Digest, chain_ids


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_of(algorithm: str) -> None:
    """The digest of bytes is written as everywhere, and read back."""
    digest = Digest.of(b"x", algorithm)
    assert str(digest) == f"{algorithm}:{hashlib.new(algorithm, b'x').hexdigest()}"
    assert Digest.parse(str(digest)) == digest
    assert digest.short == digest.hex[:12]


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256", "sha256:", "sha256:abc", "sha256:" + "A" * 64, "sha256:" + "g" * 64, "sha256:" + "a" * 65,
        "md5:" + "a" * 32,
        "sha256:" + "a" * 63 + "\n", "sha256:" + "\u0661" * 64, "sha256:../../x", ":" + "a" * 64, "SHA256:" + "a" * 64,
    ],
)  # fmt: skip
def test_refuse(text: str) -> None:
    """What is not exactly a digest never becomes one, so it never becomes a path."""
    with pytest.raises(InvalidDigest):
        Digest.parse(text)


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """Any text is refused with a bounded message, or is exactly what the digest is written as."""
    said = ""
    try:
        assert str(Digest.parse(text)) == text
    except InvalidDigest as problem:
        said = str(problem)
    assert len(said) < 1000


def test_chain_ids() -> None:
    """Chain ids are those of the specification: the first diff_id, then digests of pairs (OCI config.md)."""
    first, second, third = (Digest.of(bytes([number])) for number in range(3))
    two = Digest.of(f"{first} {second}".encode())
    assert chain_ids([first, second, third]) == (first, two, Digest.of(f"{two} {third}".encode()))
    assert chain_ids([]) == ()
