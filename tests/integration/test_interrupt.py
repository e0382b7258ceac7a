"""A person presses ■: every process of the cell ends, and the notebook goes on."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import ContainerInterrupted
from nbcontainer.testing.rootfs import PYTHON
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from tests.integration.tiers import Tier

STUBBORN = "trap '' INT TERM HUP; echo ready; while :; do sleep 1; done"
GRANDCHILDREN = f"setsid sh -c '{STUBBORN.replace('echo ready; ', '')}' & setsid nohup sleep 1000 & echo ready; wait"


def test_interrupt_of_an_obedient_command(tier: Tier) -> None:
    """A command that ends at SIGINT ends there, and may clean up."""
    program = "import time\ntry:\n    print('ready', flush=True); time.sleep(60)\nexcept KeyboardInterrupt:\n    print('clean', flush=True)"
    tier.driver.begin_run(script=program, shell=[PYTHON])
    tier.driver.wait_for_output(b"ready")
    tier.driver.interrupt()
    result = tier.driver.finish()
    assert (result["reason"], result["exit_code"]) == ("interrupted", 0)
    assert tier.driver.output["stdout"] == b"ready\nclean\n"
    assert result["detail"] == "interrupted; every process of the cell has ended (SIGINT)"


@pytest.mark.parametrize("script", [STUBBORN, GRANDCHILDREN], ids=["stubborn", "grandchildren"])
def test_interrupt_leaves_nothing(tier: Tier, script: str) -> None:
    """Processes that ignore signals, or left the session, are gone when the run returns."""
    before = tier.driver.processes()
    tier.driver.begin_run(script=script, check=True)
    tier.driver.wait_for_output(b"ready")
    inside = tier.driver.processes() - before
    tier.driver.interrupt()
    with pytest.raises(Raised) as raised:
        tier.driver.finish()
    assert raised.value.is_a(ContainerInterrupted)
    assert "every process of the cell has ended" in str(raised.value)
    assert not {pid for pid in inside if runs_a_cell(pid)}


def runs_a_cell(pid: int) -> bool:
    """Whether a process lives in a container that has been given a cell; a waiting one has none, or an empty one."""
    try:
        return os.path.getsize(f"/proc/{pid}/root/dev/cell") > 0
    except OSError:
        return False


def test_interrupt_climbs_to_sigkill(tier: Tier) -> None:
    """The steps taken are told."""
    tier.driver.begin_run(script=STUBBORN)
    tier.driver.wait_for_output(b"ready")
    tier.driver.interrupt()
    result = tier.driver.finish()
    assert result["detail"].endswith("(SIGINT, SIGTERM, SIGKILL)")
    assert (result["reason"], result["exit_code"]) == ("interrupted", 130)


def test_second_interrupt_is_impatient(tier: Tier) -> None:
    """Pressing again does not wait for the grace."""
    with tier.spawn(interrupt_grace=30.0) as driver:
        driver.begin_run(script="trap 'echo heard' INT; echo ready; while :; do sleep 0.05; done")
        driver.wait_for_output(b"ready")
        driver.interrupt()
        driver.wait_for_output(b"heard")
        driver.interrupt()
        assert driver.finish(within=10)["reason"] == "interrupted"


def test_interrupt_storm(tier: Tier) -> None:
    """However often it is pressed, a run ends as interrupted and the engine goes on."""
    with tier.spawn() as driver:
        driver.begin_run(script=STUBBORN)
        driver.wait_for_output(b"ready")
        for _ in range(20):
            driver.interrupt()
        try:
            assert driver.finish()["reason"] == "interrupted"
        except Raised as raised:  # it was pressed again while the result was on its way
            assert raised.is_a(KeyboardInterrupt), raised.kinds
        assert driver.run("echo", "on").stdout == "on\n"
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the processes at rest")


def test_interrupt_before_the_start(tier: Tier) -> None:
    """An interrupt at any moment of a run, from its request on, ends it and leaves no process."""
    root = str(
        tier.folder("store")
    )  # one of its own: what stays of directories is the matter of tests/engine/test_records
    with tier.spawn(root=root) as driver:
        driver.pull(tier.image)
        assert driver.run("true").ok
        for delay in range(0, 30, 2):
            driver.begin_run("sleep", "60")
            time.sleep(delay * 0.001)
            deadline = time.monotonic() + 20
            while True:
                driver.interrupt()
                try:
                    result = driver.finish(within=0.5)
                except AssertionError:
                    assert time.monotonic() < deadline
                    continue
                except Raised as raised:
                    assert raised.is_a(KeyboardInterrupt), (raised.kinds, raised)
                else:
                    assert result["reason"] == "interrupted"
                break
        assert driver.run("echo", "on").stdout == "on\n"
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the processes at rest")
