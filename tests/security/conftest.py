"""Lends the three tiers to the attacks."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.fixtures import person, registry, tier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Driver, Tier

__all__ = ["exposed", "own_interpreter", "person", "registry", "tier"]


@pytest.fixture
def exposed(tier: Tier) -> Iterator[Tier]:
    """Lend the tier with an interpreter that belongs to the acting person, as those of conda, pyenv and uv do."""
    if tier.user is None:
        yield tier
        return
    copy = Path(tier.user.python).with_name(f"python-of-{tier.user.name}")
    shutil.copy(tier.user.python, copy)
    os.chown(copy, tier.user.uid, tier.user.gid)
    theirs = dataclasses.replace(tier, user=dataclasses.replace(tier.user, python=str(copy)))
    theirs.driver = tier.driver
    try:
        yield theirs
    finally:
        copy.unlink()


@pytest.fixture
def own_interpreter(exposed: Tier) -> Iterator[Driver]:
    """Lend an engine with such an interpreter."""
    with exposed.spawn() as driver:
        yield driver
