"""Stop, kill, wait and rename from another notebook: the right processes hear it, and the cell tells the truth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import ContainerExit
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from tests.integration.tiers import Driver, Tier

STUBBORN = "trap '' INT TERM HUP; echo ready; while :; do sleep 1; done"
TIDY = "trap 'echo tidied up; exit 0' TERM; echo ready; sleep 1000; sleep 999"
DEAF_CHILD = "setsid sh -c \"trap '' TERM INT HUP; sleep 1000\" & echo ready; wait"


def begin(driver: Driver, script: str, **options: Any) -> None:
    """Start a container and wait until it is at work."""
    driver.begin_run(script=script, **options)
    driver.wait_for_output(b"ready")


def test_stop_lets_a_script_tidy_up(tier: Tier) -> None:
    """The stop signal reaches the script and what it waits for, so its trap runs at once; the cell says who did it."""
    with tier.spawn() as driver:
        begin(driver, TIDY, name="work")
        wait_until(lambda: any(_is_sleep(pid) for pid in driver.processes()), what="the shell waits for its program")
        started = time.monotonic()
        summary = tier.driver.call("stop", "work")
        assert time.monotonic() - started < 5
        assert (summary.state, summary.exit_code) == ("exited", 0)
        result = driver.finish()
        assert driver.output["stdout"] == b"ready\ntidied up\n"
        assert (result["reason"], result["exit_code"]) == ("stopped", 0)
        assert result["detail"] == "stopped by `%container stop` (SIGTERM)"
        (row,) = tier.driver.call("containers", everything=True)
        assert row.reason == result["detail"]
        tier.driver.call("remove_container", "work")


def _is_sleep(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    except OSError:
        return False


@pytest.mark.parametrize("script", [STUBBORN, DEAF_CHILD], ids=["stubborn", "deaf child"])
def test_stop_ends_everything(tier: Tier, script: str) -> None:
    """Whatever ignores the stop signal, or left the process group, is gone after the grace."""
    with tier.spawn() as driver:
        begin(driver, script, name="work", remove=True, check=True)
        tier.driver.call("stop", "work", grace=0.3)
        with pytest.raises(Raised, match="stopped by `%container stop`") as raised:
            driver.finish()
        assert raised.value.is_a(ContainerExit)
        assert raised.value.attributes["returncode"] in {137, 143}
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the processes at rest")
        assert driver.run("echo", "on").stdout == "on\n"
    wait_until(lambda: tier.driver.call("containers", everything=True) == (), what="it is thrown away")


def test_kill(tier: Tier) -> None:
    """A kill ends a throw-away container by its id, stubborn or not."""
    with tier.spawn() as driver:
        begin(driver, STUBBORN)
        (row,) = tier.driver.call("containers")
        assert row.title == "trap '' INT TERM HUP; echo ready; while :; do sleep 1; done"
        tier.driver.call("kill", row.id[:12])
        result = driver.finish()
        assert (result["reason"], result["exit_code"]) == ("stopped", 137)
        assert result["detail"] == "killed by `%container kill`"


@pytest.mark.parametrize("number", [10, 15])
def test_signal(tier: Tier, number: int) -> None:
    """Another signal reaches the command alone: it may answer, or end by it."""
    script = "trap 'echo heard; exec sleep 1000' USR1; echo ready; while :; do sleep 0.05; done"
    with tier.spawn() as driver:
        begin(driver, script, name="work", remove=True)
        tier.driver.call("kill", "work", number=number)
        if number == 10:
            driver.wait_for_output(b"heard")
            tier.driver.call("kill", "work", number=15)
        result = driver.finish()
        assert (result["reason"], result["exit_code"]) == ("signalled", 143)
        assert result["detail"] == "killed by SIGTERM (`%container kill`)"


def test_signal_to_another_user_of_the_container(tier: Tier) -> None:
    """A command that runs as another user of its container can be signalled all the same."""
    with tier.spawn() as driver:
        user = "1234" if tier.has_users else ""
        begin(driver, "echo ready; exec sleep 1000", name="work", remove=True, user=user)
        tier.driver.call("stop", "work")
        assert driver.finish()["detail"] == "stopped by `%container stop` (SIGTERM)"


def test_wait(tier: Tier) -> None:
    """Waiting in one notebook for what runs in another."""
    with tier.spawn() as driver:
        begin(driver, "echo ready; sleep 0.5; exit 7")
        (row,) = tier.driver.call("containers")
        assert tier.driver.call("wait", row.id).exit_code == 7
        assert driver.finish()["exit_code"] == 7


def test_rename_while_running(tier: Tier) -> None:
    """The new name holds, during the run and after it."""
    with tier.spawn() as driver:
        begin(driver, "echo ready; sleep 0.5", name="old")
        assert tier.driver.call("rename", "old", "new").name == "new"
        driver.finish()
        (row,) = tier.driver.call("containers", everything=True)
        assert (row.name, row.state, row.exit_code) == ("new", "exited", 0)
        tier.driver.call("remove_container", "new")


def test_remove_by_force_is_told(tier: Tier) -> None:
    """The cell of a container that is removed by force says that it was."""
    with tier.spawn() as driver:
        begin(driver, STUBBORN, name="work")
        tier.driver.call("remove_container", "work", force=True)
        assert driver.finish()["detail"] == "killed by `%container rm -f`"
        assert tier.driver.call("containers", everything=True) == ()


def test_own_container(tier: Tier) -> None:
    """An engine can stop its own container from another thread, as `--bg` cells will."""
    assert tier.driver.call("containers") == ()
    with pytest.raises(Raised, match="no container 'work'"):
        tier.driver.call("stop", "work")


def test_start_again(tier: Tier) -> None:
    """A kept container runs its cell once more in the files it left, with its options; its log goes on."""
    script = 'echo "$A" >> /root/log; cat /root/log; [ "$(wc -l < /root/log)" = 2 ] && exit 7; true'
    assert tier.run(script=script, name="work", environment=("A=b",), hostname="box").exit_code == 0
    (before,) = tier.driver.call("containers", everything=True)
    result = tier.driver.start("work")
    assert (result.stdout, result.exit_code) == ("b\nb\n", 7)
    (row,) = tier.driver.call("containers", everything=True)
    assert (row.id, row.created, row.exit_code, row.state) == (before.id, before.created, 7, "exited")
    assert row.finished > before.finished
    assert b"".join(line.data for line in tier.driver.call("logs", "work")) == b"b\nb\nb\n"
    assert {change.path for change in tier.driver.call("diff", "work")} >= {"/root/log"}
    tier.driver.call("remove_container", "work")


def test_start_keeps_command_and_volume(tier: Tier) -> None:
    """A command and a volume are there again; a volume whose folder has become a link is refused, and nothing is lost."""
    folder = tier.folder("data")
    asked = {"name": "work", "volumes": [(folder, "/data", "rw")]}
    assert tier.run("/bin/sh", "-c", "echo x >> /data/log; cat /data/log", **asked).stdout == "x\n"
    assert tier.driver.start("work").stdout == "x\nx\n"
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(Raised, match="does not exist"):
        tier.driver.start("work")
    folder.symlink_to(folder.with_name("elsewhere"))
    with pytest.raises(Raised, match="has become a link"):
        tier.driver.start("work")
    (row,) = tier.driver.call("containers", everything=True)
    assert (row.state, row.exit_code) == ("exited", 0)
    tier.driver.call("remove_container", "work")


def test_start_of_what_runs_or_cannot(tier: Tier) -> None:
    """One that runs is refused, in every notebook; one whose command is not there fails and can be tried again."""
    with tier.spawn() as driver:
        begin(driver, STUBBORN, name="work")
        with pytest.raises(Raised, match="running already"):
            tier.driver.start("work")
        with pytest.raises(Raised, match="no container 'gone'"):
            tier.driver.start("gone")
        tier.driver.call("kill", "work")
        driver.finish()
    tier.driver.call("remove_container", "work")
    tier.run("/bin/mv", "/bin/mv", "/bin/move", name="work")
    for _ in range(2):
        with pytest.raises(Raised, match="is not in the image"):
            tier.driver.start("work")
    (row,) = tier.driver.call("containers", everything=True)
    assert row.state == "exited"
    tier.driver.call("remove_container", "work")


def test_restart_from_another_notebook(tier: Tier) -> None:
    """The cell that ran it says why it ended; from then on it runs here."""
    with tier.spawn() as driver:
        begin(
            driver,
            "trap 'exit 5' TERM; [ -e /root/again ] && { echo ready; exit 3; }; touch /root/again; echo ready;"
            " sleep 1000 & wait",
            name="work",
        )
        result = tier.driver.start("work", restart=True)
        assert (result.stdout, result.exit_code) == ("ready\n", 3)
        told = driver.finish()
        assert (told["reason"], told["exit_code"]) == ("stopped", 5)
        assert told["detail"].startswith("stopped by `%container restart` (SIGTERM")
    assert tier.driver.start("work", restart=True).exit_code == 3
    tier.driver.call("remove_container", "work")
    with tier.spawn() as driver:
        begin(driver, STUBBORN)
        (row,) = tier.driver.call("containers")
        with pytest.raises(Raised, match="thrown away when it ends"):
            tier.driver.start(row.id, restart=True)
        tier.driver.call("kill", row.id)
        driver.finish()


def test_start_on_the_host_image(tier: Tier) -> None:
    """The machine's own root is put together anew, under what was written."""
    script = f"cd {tier.home_of_account} && echo hi >> nbc-again && cat nbc-again"
    assert tier.run(image="host", script=script, name="work").stdout == "hi\n"
    assert tier.driver.start("work").stdout == "hi\nhi\n"
    tier.driver.call("remove_container", "work")
