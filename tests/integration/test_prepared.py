"""A container whose room was built before anybody asked is the same container, and only its own."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import ContainerStartError
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from tests.integration.tiers import Driver, Tier

LOOK = r"""
import json, os, resource, signal, sys
def read(path):
    with open(path) as file:
        return file.read()
status = dict(line.split(":\t", 1) for line in read("/proc/self/status").splitlines())
kept = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "CapInh", "CapPrm", "CapEff", "CapBnd",
        "CapAmb", "SigBlk", "SigIgn", "NSpid", "NSsid", "Umask")
mounts = [line.split(" - ") for line in read("/proc/self/mountinfo").splitlines()]
found = {
    "status": {name: status.get(name) for name in kept},
    "mounts": sorted([left.split()[4], left.split()[5], *right.split()[:1]] for left, right in mounts),
    "fds": sorted(os.listdir("/proc/self/fd")),
    "environment": {name: value for name, value in os.environ.items() if name != "HOSTNAME"},
    "here": os.getcwd(),
    "files": {path: [oct(os.lstat(path).st_mode), os.lstat(path).st_uid] for path in
              ("/", "/dev", "/dev/null", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/proc", "/sys", "/tmp")},
    "hosts": read("/etc/hosts").replace(os.uname().nodename, "HOST"),
    "named": [os.uname().nodename == os.environ["HOSTNAME"] == read("/etc/hostname").strip()],
    "argv": sys.argv,
    "groups": os.getgroups(),
    "session": os.getsid(0) == os.getpid(),
    "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name},
    "processes": sorted(entry for entry in os.listdir("/proc") if entry.isdigit()),
}
print(json.dumps({**found, "id": os.uname().nodename}))
"""


def look(driver: Driver, **options: Any) -> dict[str, Any]:
    """What a process sees of itself and its container."""
    result = driver.run(script=LOOK, shell=(PYTHON,), **options)
    assert result.ok, result
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def promised(tier: Tier) -> set[str]:
    """The rooms of this tier's engines that wait: folders without a record, whose writable layer is there."""
    folder = os.path.join(tier.store, "containers")
    return {
        name
        for name in os.listdir(folder)
        if not os.path.exists(f"{folder}/{name}/record.json") and os.path.exists(f"{folder}/{name}/upper")
    }


def waiting_rooms(driver: Driver) -> list[int]:
    """The first processes that wait in a finished room for what they shall execute: they have loaded its filter.

    Their files cannot be looked at, but by root. What has told the end of its command stays for three milliseconds.
    """
    found = filtered(driver)
    time.sleep(0.01)
    return [pid for pid in filtered(driver) if pid in found]


def filtered(driver: Driver) -> set[int]:
    """The first processes of containers that have a filter and no child."""
    found = set()
    for pid in driver.processes():
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
            if status.startswith("Name:\tpython") and "\nSeccomp:\t2\n" in status and not children:
                found.add(pid)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user": "65534:65534", "working_directory": "/a/b"},
        {"hostname": "box", "read_only": True, "environment": ("A=b",)},
        {"user": "root:12", "entrypoint": ("/bin/false",)},
    ],
    ids=["plain", "user", "hostname", "group"],
)
def test_same_inside(tier: Tier, options: dict[str, Any]) -> None:
    """Identity, capabilities, filters, mounts, files, descriptors: a room built ahead is like one built on request."""
    if "user" in options and not tier.has_users:
        options = {**options, "user": "0:0"}
    with tier.spawn() as driver:
        on_request = look(driver, **options)
        wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
        ahead = look(driver, **options)
        assert ahead.pop("id") != on_request.pop("id") or "hostname" in options
        assert ahead == on_request
        assert on_request["status"]["NoNewPrivs"] == "1"
        assert on_request["named"] == [True]


def test_room_is_used(tier: Tier) -> None:
    """The next run gets the very room that was built; what it writes there is gone for the one after it."""
    time.sleep(0.3)  # the tier's own engine may be about to build a room, too
    before = promised(tier)
    with tier.spawn() as driver:
        driver.run(script="true")
        wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
        wait_until(lambda: len(promised(tier) - before) == 1, what="the first one's folder is removed")
        (room,) = promised(tier) - before
        upper = os.path.join(tier.store, "containers", room, "upper")
        made = os.stat(upper).st_ino
        driver.begin_run(script="echo mine > /root/x; hostname 2>/dev/null; echo $HOSTNAME ready; sleep 1000")
        driver.wait_for_output(b"ready")
        assert driver.output["stdout"].split()[0].decode() == room[:12]
        assert os.stat(upper).st_ino == made
        driver.interrupt()
        driver.finish()
        wait_until(lambda: waiting_rooms(driver), what="the next room is built ahead")
        assert driver.run(script="ls /root/x; echo $HOSTNAME").stdout.strip() not in {"", room[:12]}
        wait_until(lambda: not os.path.exists(upper), what="what the first has written is removed")


def test_other_wishes_get_another_room(tier: Tier) -> None:
    """A room for one kind of cell is not given to another; nothing of the host is lost or gained."""
    with tier.spawn() as driver:
        driver.run(script="true")
        wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
        assert not driver.run(script="touch /root/x", read_only=True).ok
        assert driver.run("cat", stdin=b"given").stdout == "given"
        folder = tier.folder("shown")
        (folder / "a").write_text("b", encoding="utf-8")
        assert driver.run(script="cat /mnt/a", volumes=[(folder, "/mnt", "ro")]).stdout == "b"
        assert driver.run(script="test -e /mnt/a || echo none").stdout == "none\n"


def test_image_made_anew(tier: Tier) -> None:
    """A room over layers that have been removed and pulled again since is not used."""
    root = str(tier.folder("store"))
    with tier.spawn(root=root) as driver:
        assert driver.run(script="cat /etc/passwd | wc -l").ok
        wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
        driver.call("remove_image", tier.image, force=True)
        assert driver.pull(tier.image) == tier.image
        first = driver.run(script="cat /etc/passwd | wc -l; ls / | wc -l")
        assert (first.exit_code, first.stderr) == (0, "")
        assert int(first.stdout.split()[1]) > 3


def test_killed_room(tier: Tier) -> None:
    """A room whose processes were killed is not missed."""
    with tier.spawn() as driver:
        for _ in range(3):
            assert driver.run(script="echo on").stdout == "on\n"
            wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
            for pid in waiting_rooms(driver):
                with contextlib.suppress(ProcessLookupError):  # it went with another of its container
                    os.kill(pid, signal.SIGKILL)
            try:
                assert driver.run(script="echo on").stdout in {"on\n", ""}
            except Raised as raised:  # it was taken before the launcher heard of its death
                assert raised.is_a(ContainerStartError), raised.kinds
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the processes at rest")


def test_offered_room(tier: Tier) -> None:
    """A cell is started in a room that waits without the launcher's help, and still ends with the launcher."""
    with tier.spawn() as driver:
        assert driver.run(script="true").ok
        launcher = driver.look()["launcher"]
        for last in (False, True):
            wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
            time.sleep(0.1)
            os.kill(launcher, signal.SIGSTOP)
            if not last:
                assert driver.run(script="echo on").stdout == "on\n"
                os.kill(launcher, signal.SIGCONT)
        driver.begin_run(script="sleep 60")
        time.sleep(0.3)
        os.kill(launcher, signal.SIGKILL)
        assert driver.finish(within=15)["reason"] == "lost"
        assert driver.run(script="echo on").stdout == "on\n"


def test_nothing_stays(tier: Tier) -> None:
    """An engine that ends takes the rooms with it that nobody asked for."""
    time.sleep(0.3)  # the tier's own engine may be about to build a room, too
    before = promised(tier)
    with tier.spawn() as driver:
        driver.run(script="true")
        driver.run("true")
        wait_until(lambda: len(promised(tier) - before) == 2, what="a room for each kind")
    wait_until(lambda: promised(tier) <= before, what="the rooms are gone")


def test_long_idle(tier: Tier) -> None:
    """When nobody asks for long, nothing waits; the next request is served, and the pool fills again."""
    with tier.spawn(pool_idle=patient(0.5)) as driver:
        driver.run(script="true")
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool")
        wait_until(lambda: len(driver.processes()) == 3, what="launcher, clerk and janitor alone")
        time.sleep(0.2)
        assert len(driver.processes()) == 3
        assert driver.run(script="echo on").stdout == "on\n"
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool again")


def test_container_without_a_room_needs_no_launcher(tier: Tier) -> None:
    """After one that nobody expected, the next such container is built in one that was offered, and leaves nothing."""
    with tier.spawn() as driver:
        assert driver.run("true", hostname="first").ok
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool")
        before = set(tier.containers())
        launcher = driver.look()["launcher"]
        os.kill(launcher, signal.SIGSTOP)
        try:
            said = driver.run(script="echo mine > /root/x; hostname 2>/dev/null; echo $HOSTNAME", hostname="second")
        finally:
            os.kill(launcher, signal.SIGCONT)
        assert set(said.stdout.split()) == {"second"}
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool again")
        wait_until(lambda: set(tier.containers()) <= before, what="what it has written is removed")
        for number in range(5):  # told of each, the launcher offers the next
            assert driver.run(script="ls /root/x; echo $HOSTNAME", hostname=f"h{number}").stdout == f"h{number}\n"
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool in the end")


def test_container_without_a_room_ends_with_its_launcher(tier: Tier) -> None:
    """One that the launcher has not been told of yet, either."""
    with tier.spawn() as driver:
        assert driver.run("true", hostname="first").ok
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool")
        launcher = driver.look()["launcher"]
        os.kill(launcher, signal.SIGSTOP)
        driver.begin_run(script="echo ready; sleep 1000", hostname="second")
        driver.wait_for_output(b"ready")
        os.kill(launcher, signal.SIGKILL)
        assert driver.finish(within=15)["reason"] == "lost"
        assert driver.run("echo", "on").stdout == "on\n"


def test_no_pool(tier: Tier) -> None:
    """With a pool of none, or of one, every container is built when it is asked for."""
    for size in (0, 1):
        with tier.spawn(pool_size=size) as driver:
            for _ in range(3):
                assert driver.run(script="echo on").stdout == "on\n"
                time.sleep(0.06)
            assert not waiting_rooms(driver)
            wait_until(lambda n=size, d=driver: len(d.processes()) == d.at_rest_with(n))  # type: ignore[misc]


@OWN_TIER
@pytest.mark.root
def test_no_further_process(tier: Tier) -> None:
    """Where the person may have no more processes, the container that waits says so, and the engine goes on."""
    with tier.spawn() as driver:
        assert driver.run("true").ok
        wait_until(lambda: waiting_rooms(driver), what="a room is built ahead")
        for pid in waiting_rooms(driver):
            resource.prlimit(pid, resource.RLIMIT_NPROC, (1, 1))
        with pytest.raises(Raised, match="no further process can be made: the limit on processes") as raised:
            driver.run("true")
        assert raised.value.is_a(ContainerStartError)
        assert driver.run("true").ok
