"""Containers that run on behind: they outlive who asked, end when they should, and what is said of them is true."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.identity import parent_of
from nbcontainer.model import HealthCheck, LogLimits, RestartPolicy, RunOptions, ServiceOptions
from tests.harness.leaks import deserted_cgroups, lives, processes_below
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER, TWO_TIERS
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.engine.views import ContainerSummary
    from tests.integration.tiers import Driver, Tier

SERVE = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05 & wait; done"
STUBBORN = "trap '' TERM INT; echo ready; while :; do sleep 0.05; done"


def launch(driver: Driver, tier: Tier, script: str | None, *argv: str, **asked: Any) -> ContainerSummary:
    """Start a container on behind; what is not an option of a run is one of a service."""
    service = {name: asked.pop(name) for name in ("restart", "health", "log", "interactive") if name in asked}
    image = asked.pop("image", tier.image)
    options = RunOptions(service=ServiceOptions(**service), **asked)
    launched: ContainerSummary = driver.call("launch", image, argv, options=options, script=script)
    return launched


def state(tier: Tier, name: str) -> ContainerSummary:
    """What `ps -a` says of one."""
    rows: list[ContainerSummary] = tier.driver.call("containers", everything=True)
    (row,) = [each for each in rows if name in {each.name, each.id}]
    return row


def record(tier: Tier, name: str) -> dict[str, Any]:
    """What its record says."""
    fields: dict[str, Any] = tier.driver.call("inspect", name).record
    return fields


def log(tier: Tier, name: str) -> bytes:
    """All it wrote."""
    return b"".join(line.data for line in tier.driver.call("logs", name))


def inside(tier: Tier, name: str, *argv: str) -> str:
    """What a command beside it writes; asked by an engine that goes again, and its way in with it."""
    with tier.spawn() as driver:
        return driver.exec(name, *argv).stdout


def monitor_of(summary: ContainerSummary) -> int:
    """The pid of its monitor: its launcher's parent."""
    assert summary.pid is not None
    return parent_of(parent_of(summary.pid))


@contextlib.contextmanager
def removed(tier: Tier, *names: str) -> Iterator[None]:
    """Remove these containers at the end, whatever became of them."""
    try:
        yield
    finally:
        for name in names:
            with contextlib.suppress(Raised):
                tier.driver.call("remove_container", name, force=True)


def test_it_outlives_who_asked(tier: Tier) -> None:
    """The engine that started it ends in order, or is killed; it goes on, and another notebook sees and ends it."""
    with removed(tier, "web"):
        with tier.spawn() as driver:
            launched = launch(driver, tier, SERVE, name="web")
            assert (launched.state, launched.name, launched.service) == ("running", "web", True)
        with tier.spawn() as driver:
            assert driver.exec("web", "/bin/sh", "-c", "echo in; cat /proc/1/comm").stdout.startswith("in\n")
            driver.kill()
        assert state(tier, "web").pid == launched.pid
        assert inside(tier, "web", "echo", "on") == "on\n"
        ended = tier.driver.call("stop", "web")
        assert (ended.state, ended.exit_code) == ("exited", 0)
        assert ended.reason == "stopped by `%container stop` (SIGTERM)"
        assert log(tier, "web") == b"ready\nbye\n"


def test_its_monitor_is_nobodys_child(tier: Tier) -> None:
    """It leads a session of its own, has no descriptor of who asked, and none of the secrets in its environment."""
    with removed(tier, "web"):
        launched = launch(tier.driver, tier, SERVE, name="web")
        pid = monitor_of(launched)
        assert pid not in processes_below(tier.driver.pid)
        assert os.getsid(pid) == pid
        fields = Path(f"/proc/{pid}/environ").read_bytes()
        for secret in (b"t0ken-of-the-server", b"key-to-the-kingdom"):
            assert secret not in fields
        targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1)}
        assert targets == {"/dev/null"}
        assert os.readlink(f"/proc/{pid}/fd/2").endswith("/monitor.err")
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_an_interrupt_of_the_notebook_does_not_reach_it(tier: Tier) -> None:
    """Neither the interrupt of a process group, nor a hang-up, nor that of its own monitor."""
    with removed(tier, "web"):
        launched = launch(tier.driver, tier, SERVE, name="web")
        tier.driver.interrupt()
        os.killpg(os.getpgid(tier.driver.pid), signal.SIGINT)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(monitor_of(launched), number)
        time.sleep(0.3)
        assert state(tier, "web").pid == launched.pid
        tier.driver.call("kill", "web")


def test_it_is_kept_or_thrown_away(tier: Tier) -> None:
    """Unlike one that is waited for, it stays without a name; --rm throws it away, log and all."""
    kept = launch(tier.driver, tier, None, "echo", "hi")
    wait_until(lambda: state(tier, kept.id).state == "exited")
    assert log(tier, kept.id) == b"hi\n"
    tier.driver.call("remove_container", kept.id)
    gone = launch(tier.driver, tier, "echo hi; sleep 0.2", remove=True)
    assert log(tier, gone.id) in {b"", b"hi\n"}
    assert tier.driver.call("wait", gone.id).exit_code == 0
    wait_until(lambda: gone.id not in os.listdir(Path(tier.store, "containers")), what="its folder is gone")


def test_failures_to_start_are_told_as_those_of_a_run(tier: Tier) -> None:
    """The same sentence, code and class; nothing stays of it, or what a name was given to."""
    for asked in ({}, {"name": "bad"}):
        with pytest.raises(Raised, match=r"tiny.*: command '/nonesuch' is not in the image") as raised:
            launch(tier.driver, tier, None, "/nonesuch", **asked)
        with pytest.raises(Raised) as expected:
            tier.driver.run("/nonesuch")
        assert (raised.value.kinds, str(raised.value)) == (expected.value.kinds, str(expected.value))
        assert raised.value.attributes == expected.value.attributes
    row = state(tier, "bad")
    assert (row.state, row.exit_code) == ("exited", 127)
    tier.driver.call("remove_container", "bad")
    assert tier.driver.call("containers", everything=True) == ()
    with pytest.raises(Raised, match="--rm and --restart always exclude"):
        launch(tier.driver, tier, SERVE, remove=True, restart=RestartPolicy(name="always"))


def test_restart_on_failure(tier: Tier) -> None:
    """It is started again in the files it left, as often as was said; then its last end stays."""
    script = "echo x >> /root/lives; cat /root/lives | wc -l; exit 3"
    with removed(tier, "work"):
        launch(tier.driver, tier, script, name="work", restart=RestartPolicy(name="on-failure", most=2))
        wait_until(lambda: state(tier, "work").state == "exited", within=20)
        row = state(tier, "work")
        assert (row.exit_code, record(tier, "work")["restarts"]) == (3, 2)
        assert log(tier, "work").split() == [b"1", b"2", b"3"]


def test_a_pause_is_never_taken_for_the_end(tier: Tier) -> None:
    """However closely one looks: between two lives the record says that it is restarted, from the first moment on."""
    with removed(tier, "work"):
        policy = RestartPolicy(name="on-failure", most=3)
        launched = launch(tier.driver, tier, "exit 3", name="work", restart=policy)
        path = Path(tier.store, "containers", launched.id, "record.json")
        seen = set()
        fields: dict[str, Any] = {}
        deadline = time.monotonic() + patient(20)
        while (fields.get("restarts"), _over(fields)) != (3, True) or fields["restarting"]:
            assert time.monotonic() < deadline
            with contextlib.suppress(ValueError):  # it was being written
                fields = json.loads(path.read_text(encoding="utf-8"))
                seen.add((fields.get("restarts"), _over(fields), bool(fields.get("restarting"))))
        pauses = {each for each in seen if each[2]}
        assert pauses == {(1, True, True), (2, True, True), (3, True, True)}
        assert {each for each in seen if each[1]} - pauses == {(3, True, False)}


def _over(fields: dict[str, Any]) -> bool:
    return fields.get("finished") is not None


def test_a_good_end_is_no_failure(tier: Tier) -> None:
    """on-failure leaves it alone, always does not; a stop in the pause between two lives holds."""
    with removed(tier, "once", "again"):
        launch(tier.driver, tier, "exit 0", name="once", restart=RestartPolicy(name="on-failure"))
        launch(tier.driver, tier, "exit 0", name="again", restart=RestartPolicy(name="always"))
        wait_until(lambda: state(tier, "once").state == "exited")
        assert record(tier, "once")["restarts"] == 0
        wait_until(lambda: record(tier, "again").get("restarts", 0) >= 3, within=20)
        wait_until(lambda: state(tier, "again").state == "restarting")
        with pytest.raises(Raised, match="is restarting"):
            tier.driver.exec("again", "true")
        assert tier.driver.call("stop", "again").state == "exited"
        count = record(tier, "again")["restarts"]
        time.sleep(0.5)
        assert (state(tier, "again").state, record(tier, "again")["restarts"]) == ("exited", count)


@pytest.mark.parametrize("verb", ["stop", "kill", "signal"])
def test_who_ends_it_means_it(tier: Tier, verb: str) -> None:
    """Whatever the policy, what a person ended is not started again; what somebody else killed is."""
    with removed(tier, "web"):
        launched = launch(
            tier.driver, tier, "echo ready; exec sleep 1000", name="web", restart=RestartPolicy(name="always")
        )
        assert launched.pid is not None
        os.kill(launched.pid, signal.SIGKILL)
        wait_until(lambda: state(tier, "web").pid not in {None, launched.pid}, what="it is started again")
        assert record(tier, "web")["restarts"] == 1
        if verb == "signal":
            tier.driver.call("kill", "web", number=15)
        else:
            tier.driver.call(verb, "web")
        wait_until(lambda: state(tier, "web").state == "exited")
        time.sleep(0.3)
        assert state(tier, "web").state == "exited"


def test_start_and_restart(tier: Tier) -> None:
    """Start begins it again on behind and is nothing for one that runs; restart ends it first; the files stay."""
    script = f"echo life >> /root/lives; {SERVE}"
    with removed(tier, "web"):
        first = launch(tier.driver, tier, script, name="web")
        wait_until(lambda: log(tier, "web") == b"ready\n")
        assert tier.driver.call("start_behind", "web").pid == first.pid
        second = tier.driver.call("restart_behind", "web", grace=2)
        assert second.pid not in {None, first.pid}
        wait_until(lambda: log(tier, "web") == b"ready\nbye\nready\n")
        tier.driver.call("stop", "web")
        third = tier.driver.call("start_behind", "web")
        assert (third.state, third.id) == ("running", first.id)
        wait_until(lambda: log(tier, "web").count(b"ready") == 3)
        assert inside(tier, "web", "wc", "-l", "/root/lives").split()[0] == "3"


def test_one_that_was_waited_for_can_go_on_behind(tier: Tier) -> None:
    """A named container of a cell, started with -d."""
    with removed(tier, "work"):
        assert tier.run(script="echo once; [ -e /root/x ] && exec sleep 1000; touch /root/x", name="work").ok
        assert tier.driver.call("start_behind", "work").state == "running"
        wait_until(lambda: log(tier, "work") == b"once\nonce\n")


def test_create(tier: Tier) -> None:
    """It is there, and nothing runs; start does; a wait before that says that it never ran."""
    with removed(tier, "later", "gone"):
        options = RunOptions(name="later", service=ServiceOptions())
        assert tier.driver.call("create", tier.image, (), options=options, script=SERVE).state == "created"
        assert tier.driver.call("containers") == ()
        assert (state(tier, "later").state, state(tier, "later").pid) == ("created", None)
        with pytest.raises(Raised, match="has no exit code"):
            tier.driver.call("wait", "later")
        assert tier.driver.call("start_behind", "later").state == "running"
        options = RunOptions(name="gone", remove=True)
        tier.driver.call("create", tier.image, ("echo", "x"), options=options)
        with tier.spawn() as other:  # its sweep lets it be
            other.call("containers")
        tier.driver.call("start_behind", "gone")
        wait_until(lambda: [each.name for each in tier.driver.call("containers", everything=True)] == ["later"])


def test_wait_and_rename_and_remove(tier: Tier) -> None:
    """As for any container: the code is told, the name is new, and one that runs is removed by force alone."""
    with removed(tier, "old", "new"):
        launch(tier.driver, tier, "echo ready; sleep 0.3; exit 7", name="old")
        assert tier.driver.call("wait", "old").exit_code == 7
        assert tier.driver.call("start_behind", "old").state == "running"
        assert tier.driver.call("rename", "old", "new").name == "new"
        assert tier.driver.call("wait", "new").exit_code == 7
        assert log(tier, "new") == b"ready\nready\n"
        launch(tier.driver, tier, STUBBORN, name="old")
        with pytest.raises(Raised, match="old is running"):
            tier.driver.call("remove_container", "old")
        tier.driver.call("remove_container", "old", force=True)
        assert [each.name for each in tier.driver.call("containers", everything=True)] == ["new"]


def test_wait_for_one_of_many_lives(tier: Tier) -> None:
    """The end of a life is an end, also when another follows."""
    with removed(tier, "work"):
        launch(tier.driver, tier, "sleep 0.3; exit 9", name="work", restart=RestartPolicy(name="always"))
        assert tier.driver.call("wait", "work").exit_code == 9
        tier.driver.call("stop", "work")


def test_logs_are_followed_to_the_end(tier: Tier) -> None:
    """What was there, what comes, and then it ends with the container; also of one that is thrown away."""
    for asked in ({"name": "work"}, {"remove": True}):
        with removed(tier, "work"), tier.spawn() as driver:
            launched = launch(tier.driver, tier, "echo one; sleep 0.4; echo two >&2; sleep 0.4; printf three", **asked)
            driver.begin("follow", container=launched.id)
            driver.wait_for_output(b"one")
            assert driver.finish() >= 1
            assert driver.output == {"stdout": b"one\nthree", "stderr": b"two\n"}
    assert tier.driver.call("containers", everything=True) == ()


def test_following_is_interrupted(tier: Tier) -> None:
    """Ctrl-C ends the showing; the container goes on. A tail is of what was there."""
    with removed(tier, "web"), tier.spawn() as driver:
        launch(tier.driver, tier, f"echo a; echo b; {SERVE}", name="web")
        wait_until(lambda: b"ready" in log(tier, "web"))
        driver.begin("follow", container="web", tail=2)
        driver.wait_for_output(b"ready")
        driver.interrupt()
        with pytest.raises(Raised) as raised:
            driver.finish()
        assert raised.value.is_a(KeyboardInterrupt)
        assert driver.output["stdout"] == b"b\nready\n"
        assert state(tier, "web").state == "running"


def test_the_log_is_bounded(tier: Tier) -> None:
    """As many files of as many bytes as was said; the latest is there."""
    with removed(tier, "chatty"):
        script = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i; done"
        launched = launch(tier.driver, tier, script, name="chatty", log=LogLimits(size=2000, files=2))
        wait_until(lambda: state(tier, "chatty").state == "exited", within=20)
        folder = Path(tier.store, "containers", launched.id)
        sizes = {path.name: path.stat().st_size for path in folder.glob("output.jsonl*")}
        assert set(sizes) <= {"output.jsonl", "output.jsonl.1"}
        assert log(tier, "chatty").endswith(b"line 400\n")


def test_attach(tier: Tier) -> None:
    """Output from now on, input where it was left open, and the code at the end."""
    with removed(tier, "talk"), tier.spawn() as driver:
        launch(
            tier.driver,
            tier,
            None,
            "/bin/sh",
            "-c",
            "echo ready; read line; echo got $line; exit 5",
            name="talk",
            interactive=True,
        )
        wait_until(lambda: log(tier, "talk") == b"ready\n")
        driver.begin("attach", container="talk", typed=b"a line\n")
        result = driver.finish()
        assert result["exit_code"] == 5
        assert driver.output["stdout"] == b"got a line\n"
        wait_until(lambda: state(tier, "talk").state == "exited")
        driver.begin("attach", container="talk")
        with pytest.raises(Raised, match="talk is not running"):
            driver.finish()


def test_attach_and_interrupt(tier: Tier) -> None:
    """In a terminal Ctrl-C is the container's; in a notebook it ends the showing alone."""
    with removed(tier, "web"), tier.spawn() as driver:
        launch(
            tier.driver,
            tier,
            "trap 'echo hit; exit 4' INT; echo ready; while :; do echo on; sleep 0.05; done",
            name="web",
        )
        driver.begin("attach", container="web")
        driver.wait_for_output(b"on")
        driver.interrupt()
        with pytest.raises(Raised) as raised:
            driver.finish()
        assert raised.value.is_a(KeyboardInterrupt)
        assert state(tier, "web").state == "running"
        driver.begin("attach", container="web", pass_signals=True)
        driver.wait_for_output(b"on")
        driver.interrupt()
        assert driver.finish()["exit_code"] == 4
        assert driver.output["stdout"].endswith(b"hit\n")


def test_start_and_attach(tier: Tier) -> None:
    """All output of the new life is shown, none of the last."""
    with removed(tier, "work"), tier.spawn() as driver:
        launched = launch(tier.driver, tier, "date +%N; echo end", name="work")
        wait_until(lambda: state(tier, launched.id).state == "exited")
        before = log(tier, "work")
        driver.begin("attach", container="work", start=True)
        assert driver.finish()["exit_code"] == 0
        assert driver.output["stdout"].endswith(b"end\n")
        assert before not in driver.output["stdout"]
        assert log(tier, "work") == before + driver.output["stdout"]
        options = RunOptions(remove=True, service=ServiceOptions(interactive=True))
        brief = tier.driver.call("create", tier.image, ("echo", "brief"), options=options)
        driver.begin("attach", container=brief.id, start=True, typed=b"x\n")
        assert driver.finish()["exit_code"] == 0
        assert driver.output["stdout"] == b"brief\n"


def test_health(tier: Tier) -> None:
    """starting, healthy, unhealthy, and healthy again, as its command says; each life begins anew."""
    check = HealthCheck(test=("CMD-SHELL", "cat /root/well"), interval=0.1, timeout=10, retries=2)
    with removed(tier, "web"):
        launch(tier.driver, tier, SERVE, name="web", health=check)
        assert state(tier, "web").health == "starting"
        wait_until(lambda: state(tier, "web").health == "unhealthy", within=20)
        assert "/root/well" in record(tier, "web")["health"]["results"][-1]["output"]
        inside(tier, "web", "/bin/sh", "-c", "echo fine > /root/well")
        wait_until(lambda: state(tier, "web").health == "healthy", within=20)
        assert record(tier, "web")["health"]["results"][-1]["output"] == "fine\n"
        inside(tier, "web", "rm", "/root/well")
        wait_until(lambda: state(tier, "web").health == "unhealthy", within=20)
        tier.driver.call("stop", "web")
        assert state(tier, "web").health == ""
        assert tier.driver.call("start_behind", "web").health in {"starting", ""}


@OWN_TIER
def test_a_check_that_hangs(tier: Tier) -> None:
    """It is ended after its time, and that is a failure; one that cannot be run is one too."""
    with removed(tier, "slow", "none"):
        hanging = HealthCheck(test=("CMD", "sleep", "1000"), interval=0.1, timeout=0.2, retries=1)
        missing = HealthCheck(test=("CMD", "/nonesuch"), interval=0.1, retries=1)
        launch(tier.driver, tier, SERVE, name="slow", health=hanging)
        launch(tier.driver, tier, SERVE, name="none", health=missing)
        for name, code, words in (("slow", -1, "longer than 0.2 s"), ("none", 126, "/nonesuch")):
            wait_until(lambda name=name: state(tier, name).health == "unhealthy", within=20)  # type: ignore[misc]
            result = record(tier, name)["health"]["results"][-1]
            assert result["exit_code"] == code
            assert words in result["output"]


@OWN_TIER
def test_limits_and_stop_signal_hold_behind(tier: Tier) -> None:
    """A time limit ends it for good; its stop signal and grace are those it was given."""
    with removed(tier, "timed", "usr"):
        launch(tier.driver, tier, STUBBORN, name="timed", timeout=0.5, restart=RestartPolicy(name="always"))
        wait_until(lambda: state(tier, "timed").state == "exited")
        assert "time limit of 0.5 s" in state(tier, "timed").reason
        launch(
            tier.driver,
            tier,
            "trap 'echo usr; exit 3' USR1; echo ready; while :; do sleep 0.05; done",
            name="usr",
            stop_signal="USR1",
        )
        wait_until(lambda: log(tier, "usr") == b"ready\n")
        assert tier.driver.call("stop", "usr").exit_code == 3


def test_on_the_host_image(tier: Tier) -> None:
    """The machine's own root, put together by the monitor."""
    with removed(tier, "mine"):
        launch(tier.driver, tier, "echo hi > /tmp/x; cat /tmp/x; exec sleep 1000", name="mine", image="host")
        wait_until(lambda: log(tier, "mine") == b"hi\n")


# --- somebody is killed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["no", "always"])
def test_killed_monitor(tier: Tier, policy: Any) -> None:
    """The container ends with it, ps says so at once, the next engine tidies up, and it can be started again."""
    known = deserted_cgroups()
    with removed(tier, "web"):
        launched = launch(tier.driver, tier, STUBBORN, name="web", restart=RestartPolicy(name=policy))
        monitor = monitor_of(launched)
        below = processes_below(monitor)
        os.kill(monitor, signal.SIGKILL)
        wait_until(lambda: state(tier, "web").state == "dead")
        assert state(tier, "web").reason == "lost: its monitor was killed"
        wait_until(lambda: not any(map(lives, below)), what="every process is gone")
        with pytest.raises(Raised, match="has no exit code: lost"):
            tier.driver.call("wait", "web")
        assert tier.driver.call("stop", "web").state == "dead"
        assert tier.driver.call("start_behind", "web").state == "running"
    with tier.spawn() as other:  # its launcher sweeps
        assert other.run("true").ok
    wait_until(lambda: deserted_cgroups() <= known, what="no cgroup is left")


def test_killed_monitor_of_a_throw_away(tier: Tier) -> None:
    """Nothing is listed, and nothing stays."""
    launched = launch(tier.driver, tier, STUBBORN, remove=True)
    os.kill(monitor_of(launched), signal.SIGKILL)
    wait_until(lambda: tier.driver.call("containers", everything=True) == ())
    with tier.spawn() as other:
        other.call("containers")
    wait_until(lambda: launched.id not in os.listdir(Path(tier.store, "containers")), what="its folder is gone")
    with tier.spawn() as other:
        assert other.run("true").ok


@pytest.mark.parametrize("victim", ["launcher", "first"])
def test_killed_launcher_and_first_process(tier: Tier, victim: str) -> None:
    """The monitor says that it was lost, and starts it again if that is the policy."""
    known = deserted_cgroups()
    with removed(tier, "plain", "again"):
        for name, policy in (("plain", RestartPolicy()), ("again", RestartPolicy(name="on-failure"))):
            launched = launch(tier.driver, tier, STUBBORN, name=name, restart=policy)
            assert launched.pid is not None
            os.kill(parent_of(launched.pid) if victim == "launcher" else launched.pid, signal.SIGKILL)
        wait_until(lambda: state(tier, "plain").state == "exited")
        row = state(tier, "plain")
        assert row.exit_code == 125
        assert "vanished without an exit code" in row.reason
        wait_until(lambda: state(tier, "again").pid not in {None, launched.pid}, what="it is started again")
        assert inside(tier, "again", "echo", "on") == "on\n"
    with tier.spawn() as other:
        assert other.run("true").ok
    wait_until(lambda: deserted_cgroups() <= known, what="no cgroup is left")


def test_ended_monitor(tier: Tier) -> None:
    """SIGTERM, as when the machine goes down, ends container and monitor in good order; it is not started again."""
    with removed(tier, "web"):
        script = "trap 'echo tidy; exit 0' INT TERM; echo ready; while :; do sleep 0.05; done"
        launched = launch(tier.driver, tier, script, name="web", restart=RestartPolicy(name="always"))
        monitor = monitor_of(launched)
        wait_until(lambda: b"ready" in log(tier, "web"))
        os.kill(monitor, signal.SIGTERM)
        wait_until(lambda: state(tier, "web").state == "exited")
        wait_until(lambda: not any(map(lives, {monitor})))
        assert state(tier, "web").reason.startswith("stopped: its monitor was told to end (SIGTERM)")
        assert log(tier, "web") == b"ready\ntidy\n"


def test_after_a_restart_of_the_machine(tier: Tier) -> None:
    """A record of another boot says what happened, whoever has its pids now."""
    with removed(tier, "web"):
        launched = launch(tier.driver, tier, STUBBORN, name="web")
        os.kill(monitor_of(launched), signal.SIGKILL)
        wait_until(lambda: state(tier, "web").state == "dead")
        path = Path(tier.store, "containers", launched.id, "record.json")
        text = path.read_text()
        path.write_text(text.replace(record(tier, "web")["boot_id"], "00000000-0000-4000-8000-000000000000"))
        row = state(tier, "web")
        assert (row.state, row.reason, row.pid) == ("dead", "the machine was restarted while it ran", None)
        assert tier.driver.call("start_behind", "web").state == "running"


@pytest.mark.parametrize("patience", [0.02, 0.15])
@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_an_asker_that_leaves(tier: Tier, how: str, patience: float) -> None:
    """One that is killed, or interrupted, while the container starts leaves one that runs or has ended, or none."""
    with tier.spawn() as driver:
        driver.call("containers")
        options = RunOptions(name="half", service=ServiceOptions())
        driver.begin("call", method="launch", arguments=(tier.image, ()), options={"options": options, "script": SERVE})
        time.sleep(patience)
        if how == "killed":
            driver.kill()
        else:
            driver.interrupt()
            with contextlib.suppress(Raised):
                driver.finish()
    time.sleep(1.5)  # a monitor that was on its way has arrived
    for row in tier.driver.call("containers", everything=True):
        assert row.state in {"running", "created", "exited"}
        assert how == "killed" or row.state != "created"
        tier.driver.call("remove_container", row.id, force=True)


@TWO_TIERS
def test_no_stranger_is_answered(tier: Tier) -> None:
    """The control socket is its owner's alone."""
    with removed(tier, "web"):
        launched = launch(tier.driver, tier, SERVE, name="web")
        path = Path(tier.store, "containers", launched.id, "control")
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_uid == Path(f"/proc/{monitor_of(launched)}").stat().st_uid
