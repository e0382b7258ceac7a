"""What a container may use up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux.cgroups import controller_of, machine_hierarchies
from nbcontainer.engine.engine import Engine
from nbcontainer.engine.settings import Settings
from nbcontainer.testing.rootfs import PYTHON
from tests.security.test_attacks import attack_text

if TYPE_CHECKING:
    from pathlib import Path

    from nbcontainer.testing.registry import InProcessRegistry

pytestmark = [pytest.mark.root, pytest.mark.userns, pytest.mark.overlay]


def pids_can_be_limited() -> bool:
    """Whether a pids cgroup can be made here."""
    hierarchy = controller_of(machine_hierarchies(), "pids")
    return hierarchy is not None and any(os.access(place, os.W_OK) for place in hierarchy.places)


@pytest.mark.skipif(not pids_can_be_limited(), reason="needs a pids cgroup that can be written")
def test_fork_bomb(tmp_path: Path, registry: InProcessRegistry) -> None:
    """A container that forks without end meets its limit, the next one starts, and no cgroup stays."""
    with Engine(Settings(root=str(tmp_path / "store"))) as engine:
        engine._connect().runtime._pids_limit = 32
        for _ in range(2):
            result = engine.run(
                registry.reference("tiny"), script=attack_text(("fork_many", "200")), shell=[PYTHON, "-I", "-S"]
            )
            said, count = result.stdout.strip().strip('[]"').rsplit(" ", 1)
            assert said == "refused EAGAIN", result
            assert int(count) < 32
            assert any("32" in note for note in result.notes), result.notes
        for _ in range(6):  # also where a bomb was before: cgroups are used again
            calm = engine.run(registry.reference("tiny"), script="true", check=False)
            assert (calm.exit_code, calm.notes) == (0, ()), calm
