"""Fixtures of the tests that run real containers; `conftest` here and in ``tests/security`` lends them.

`tier` is each of the three kinds of isolation in turn (`tests.integration.tiers`), with its store and engine made
once; after each test it must be quiet.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.testing.registry import InProcessRegistry
from nbcontainer.testing.rootfs import python_layer, root_layer
from tests.integration.tiers import Driver, Tier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.leaks import Leaks
    from tests.harness.users import User

__all__ = ["OWN_TIER", "TWO_TIERS", "debian", "person", "registry", "tier"]

OWN_TIER = pytest.mark.parametrize(
    "person", [pytest.param("own", marks=[pytest.mark.userns, pytest.mark.overlay])], indirect=True
)
"""For stories in which the tier makes no difference."""

TWO_TIERS = pytest.mark.parametrize(
    "person",
    [
        pytest.param("own", marks=[pytest.mark.userns, pytest.mark.overlay]),
        pytest.param("single", marks=[pytest.mark.subids, pytest.mark.overlay]),
    ],
    indirect=True,
)
"""For long stories: the one with everything and the one with the least; what is between them has the short ones."""


@pytest.fixture(scope="session")
def registry() -> Iterator[InProcessRegistry]:
    """Lend a registry that has ``tiny``: a shell, coreutils and a Python."""
    with InProcessRegistry() as registry:
        config = {"Env": ["PATH=/bin:/usr/bin", "FROM_IMAGE=yes", "OVERRIDDEN=image"], "Cmd": ["/bin/sh"]}
        registry.add_image("tiny", "latest", layers=[root_layer(), python_layer()], compression="none", config=config)
        yield registry


@pytest.fixture(scope="session")
def debian(registry: InProcessRegistry, debian_root: Path) -> str:
    """Lend the name of a Debian image in the registry."""
    layers = [debian_root.read_bytes()]
    registry.add_image("debian", "bookworm", layers=layers, compression="none", config={"Cmd": ["bash"]})
    return registry.reference("debian", "bookworm")


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("own", marks=[pytest.mark.userns, pytest.mark.overlay]),
        pytest.param("range", marks=[pytest.mark.subids, pytest.mark.overlay]),
        pytest.param("single", marks=[pytest.mark.subids, pytest.mark.overlay]),
    ],
)
def person(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    registry: InProcessRegistry,
    leaks: Leaks,
) -> Iterator[Tier]:
    """Lend a tier whose engine has run a container."""
    user: User | None = None
    if request.param != "own":
        user = request.getfixturevalue("user_with_range" if request.param == "range" else "user_without_range")
    home = user.home if user else str(tmp_path_factory.mktemp("home"))
    tier = Tier(
        name=request.param,
        home=home,
        store=os.path.join(home, f".local/share/nbcontainer-{registry.host.rpartition(':')[2]}"),
        image=registry.reference("tiny"),
        user=user,
    )
    tier.driver = Driver(tier)
    try:
        assert tier.run("true").ok
        with leaks.allowing(trees=[lambda: tier.driver.pid]):
            yield tier
    finally:
        tier.driver.close()


@pytest.fixture
def tier(person: Tier) -> Iterator[Tier]:
    """Lend a tier, and fail the test that leaves something behind in it; the next one need not suffer from it."""
    if not person.driver.usable:
        person.renew()
    before = person.look()
    if before["launcher"] is None:  # the test before has closed the engine
        assert person.run("true").ok
        before = person.look()
    yield person
    if not person.driver.usable:  # the test has failed, and has said why
        person.renew()
        return
    left = person.quiet(before=before)
    if left:
        pytest.fail(f"left behind: {left}", pytrace=False)
