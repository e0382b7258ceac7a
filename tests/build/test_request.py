"""A build as it was asked for: frozen, with docker's defaults, and secrets that no text shows."""

from __future__ import annotations

import dataclasses

import pytest

from nbcontainer.build.request import BuildOptions


def test_secrets_are_not_shown() -> None:
    """What a log or a traceback shows of the options has no secret in it."""
    assert "w0rd" not in repr(BuildOptions(secrets={"id": b"w0rd"}))


def test_frozen() -> None:
    """Options do not change while a build goes by them."""
    options = BuildOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.target = "x"  # type: ignore[misc]
    assert (options.network, options.pull, options.no_cache, options.epoch) == ("default", False, False, None)
