"""Platforms: which image runs here."""

from __future__ import annotations

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.model import Platform


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linux/amd64", "linux/amd64"), ("amd64", "linux/amd64"), ("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"),
        ("linux/arm/v6", "linux/arm/v6"), ("armhf", "linux/arm/v7"), (" Linux/ARM64 ", "linux/arm64"),
        ("s390x", "linux/s390x"),
        ("linux/arm64/v8", "linux/arm64/v8"),
    ],
)  # fmt: skip
def test_parse(text: str, expected: str) -> None:
    """Names of machines and of Go both work."""
    assert str(Platform.parse(text)) == expected


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/../x", "linux amd64", "linux//amd64"])
def test_refuse(text: str) -> None:
    """What is no platform is refused."""
    with pytest.raises(InvalidOption):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("here", "offered", "preference"),
    [
        ("linux/amd64", "linux/amd64", 0), ("linux/amd64", "linux/arm64", None), ("linux/amd64", "windows/amd64", None),
        ("linux/arm64", "linux/arm64/v8", 0), ("linux/arm/v7", "linux/arm/v7", 0), ("linux/arm/v7", "linux/arm/v6", 1),
        ("linux/arm/v7", "linux/arm/v5", 2), ("linux/arm/v6", "linux/arm/v7", None),
        ("linux/amd64", "linux/amd64/v1", 0),
        ("linux/amd64", "linux/amd64/v3", None), ("linux/amd64/v3", "linux/amd64/v2", 1),
        ("linux/amd64", "unknown/unknown", None),
    ],
)  # fmt: skip
def test_preference(here: str, offered: str, preference: int | None) -> None:
    """The exact variant is best, older ones run too, newer ones and other machines do not."""
    assert Platform.parse(here).preference(Platform.parse(offered)) == preference


def test_host() -> None:
    """This machine runs what is made for it."""
    assert Platform.host().preference(Platform.host()) == 0
