"""Many containers, many threads, several engines on one store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Tier


def test_fifty_in_a_row(tier: Tier) -> None:
    """Fifty containers one after the other leave nothing (the tier's fixture looks)."""
    for number in range(50):
        assert tier.run("echo", str(number)).stdout == f"{number}\n"


def test_ten_threads_at_once(tier: Tier) -> None:
    """Ten threads of one engine run containers at once, and each gets its own output."""
    tier.driver.begin("many", image=tier.image, argv=["sh", "-c", "echo $HOSTNAME; exit 7"], threads=10, rounds=3)
    results = tier.driver.finish()
    assert [code for code, _ in results] == [7] * 30
    assert len({output for _, output in results}) == 30


def test_ten_threads_meet_no_launcher(tier: Tier) -> None:
    """Threads that all find the launcher missing start one, not ten."""
    with tier.spawn() as driver:
        driver.begin("many", image=tier.image, argv=["echo", "x"], threads=10, rounds=1)
        assert driver.finish() == [(0, "x\n")] * 10


def test_two_engines(tier: Tier) -> None:
    """Two engines on one store run and list at once, and neither sweeps the other's containers."""
    with tier.spawn() as one, tier.spawn() as two:
        one.begin_run(script="echo ready; sleep 1000", name="one")
        one.wait_for_output(b"ready")
        assert two.run("echo", "on").stdout == "on\n"
        assert [each.name for each in two.call("containers")] == ["one"]
        with pytest.raises(Raised, match="is used by a container"):
            two.call("remove_image", tier.image)
        one.interrupt()
        assert one.finish()["reason"] == "interrupted"
        two.call("remove_container", "one")


def test_two_engines_pull_at_once(tier: Tier, registry: InProcessRegistry) -> None:
    """Two engines that pull the same image into one empty store both succeed."""
    root = str(tier.folder("store"))
    with tier.spawn(root=root) as one, tier.spawn(root=root) as two:
        one.begin("pull", image=tier.image)
        two.begin("pull", image=tier.image)
        assert one.finish() == two.finish() == tier.image
        assert one.run("echo", "1").stdout + two.run("echo", "2").stdout == "1\n2\n"


def test_kept_container(tier: Tier) -> None:
    """A named container is kept with its code and its log, by name and by the start of its id, until it is removed."""
    result = tier.run(script="echo out; echo err >&2; exit 4", name="kept")
    (row,) = tier.driver.call("containers", everything=True)
    assert (row.name, row.state, row.exit_code, row.id) == ("kept", "exited", 4, result.id)
    lines = tier.driver.call("logs", result.id[:6])
    assert sorted((line.stream, line.data) for line in lines) == [("stderr", b"err\n"), ("stdout", b"out\n")]
    tier.driver.call("remove_container", "kept")
    assert tier.driver.call("containers", everything=True) == ()


def test_thrown_away_by_choice(tier: Tier) -> None:
    """A name with --rm is thrown away, no name with --no-rm is kept."""
    tier.run("true", name="gone", remove=True)
    result = tier.run("true", remove=False)
    (row,) = tier.driver.call("containers", everything=True)
    assert row.id == result.id
    tier.driver.call("remove_container", result.id)


def test_background_process_does_not_hold_the_cell(tier: Tier) -> None:
    """A cell ends with its command, although a process in the background holds the output open."""
    result = tier.run(script="sleep 1000 & echo done")
    assert result.stdout == "done\n"
    assert result.duration < 5
