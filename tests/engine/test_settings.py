"""Settings from the environment."""

from __future__ import annotations

import os

import pytest

from nbcontainer.engine.settings import Settings
from nbcontainer.errors import InvalidOption


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's store is the machine's, a user's lies with the user's data."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert Settings.from_environment({}).root == "/var/lib/nbcontainer"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert Settings.from_environment({}).root == "/data/nbcontainer"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert Settings.from_environment({}).root == os.path.expanduser("~/.local/share/nbcontainer")


def test_everything() -> None:
    """Root, mirrors and insecure registries are read, in each way of writing lists."""
    settings = Settings.from_environment(
        {
            "NBCONTAINER_ROOT": "~/x",
            "NBCONTAINER_MIRRORS": "docker.io=http://127.0.0.1:5000,mirror.example;ghcr.io=other quay.io=q",
            "NBCONTAINER_INSECURE_REGISTRIES": "a:5000, b c",
        }
    )
    assert settings.root == os.path.expanduser("~/x")
    assert dict(settings.mirrors) == {
        "docker.io": ("http://127.0.0.1:5000", "mirror.example"), "ghcr.io": ("other",), "quay.io": ("q",),
    }  # fmt: skip
    assert settings.insecure_registries == ("a:5000", "b", "c")


@pytest.mark.parametrize("text", ["docker.io", "=x", "docker.io=", "docker.io=,"])
def test_damaged_mirrors(text: str) -> None:
    """A mirror that is no pair is refused, naming the variable and showing how."""
    with pytest.raises(InvalidOption, match=r"NBCONTAINER_MIRRORS.*HOST=MIRROR"):
        Settings.from_environment({"NBCONTAINER_MIRRORS": text})
