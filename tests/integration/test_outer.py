"""Root of an outer container, as docker and podman make it: root's id and file rights, and nothing may be mounted.

It is treated as a user with many ids, whose containers' root it is itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from nbcontainer.model import RunOptions, ServiceOptions, VolumeMount
from tests.integration.fixtures import OWN_TIER
from tests.integration.tiers import Driver, Raised, Tier, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness.leaks import Leaks

pytestmark = [pytest.mark.root, OWN_TIER]

KEPT = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
    *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
"""What docker leaves to root of a container."""


def with_rights(*names: str) -> tuple[str, ...]:
    """A command that keeps these capabilities and executes what follows."""
    return ("setpriv", f"--bounding-set=-all,{','.join(f'+{name}' for name in names)}", "--inh-caps=-all")


@pytest.fixture(params=[()])
def outer(request: pytest.FixtureRequest, tier: Tier, tmp_path: Path, leaks: Leaks) -> Iterator[Tier]:
    """Lend an engine of such a root, with a store of its own; the parameter is a command that hampers it further."""
    made = Tier(
        name="own",
        home=str(tmp_path),
        store=str(tmp_path / "store"),
        image=tier.image,
        prefix=(*with_rights(*KEPT), *request.param),
    )
    made.driver = Driver(made)
    try:
        with leaks.allowing(trees=[lambda: made.driver.pid]):
            yield made
    finally:
        made.driver.close()


FILTER = """
import errno, os, sys
import pyseccomp
chosen = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
chosen.add_rule(pyseccomp.ERRNO(errno.EPERM), "sethostname")
chosen.load()
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_runs_with_many_ids(outer: Tier) -> None:
    """Its containers have users of their own; what they write belongs to this root, or to ids that are nobody's."""
    script = "cat /proc/self/uid_map; echo x > /mine; touch /other; chown 7:8 /other; ls -ln /mine /other; id -u"
    shown = outer.sh(script).stdout.split("\n")
    assert shown[0].split() == ["0", "0", "1"]
    assert [line.split()[2:4] for line in shown[2:4]] == [["0", "0"], ["7", "8"]]
    assert shown[4] == "0"
    assert outer.sh("id -u; id -g", user="1000:100").stdout == "1000\n100\n"


def test_host_image_and_folders(outer: Tier, tmp_path: Path) -> None:
    """The outer container's own files are an image, and what is written into a folder of its is its own."""
    folder = outer.folder("data")
    result = outer.sh(
        "echo changed > /etc/hostname-of-a-test; echo x > /data/x", image="host", volumes=[(folder, "/data", "")]
    )
    assert result.ok
    assert not os.path.exists("/etc/hostname-of-a-test")
    assert (folder / "x").stat().st_uid == 0


def test_verbs(outer: Tier) -> None:
    """Volumes, joining, copying, committing and removing go their usual way."""
    driver = outer.driver
    outer.sh("chown 9 /keep; echo x > /keep/x", name="kept", mounts=[VolumeMount(target="/keep", name="lab")])
    driver.call("commit", "kept", "mine:1")
    assert outer.run("ls", "/keep", image="mine:1").ok
    with outer.spawn() as other:
        other.begin_run(script="echo ready; sleep 1000", name="work")
        other.wait_for_output(b"ready")
        assert driver.exec("work", "echo", "on").stdout == "on\n"
        driver.call("stop", "work", grace=0)
        other.finish()
    for name in ("kept", "work"):
        driver.call("remove_container", name)
    driver.call("remove_volume", "lab")
    driver.call("remove_image", "mine:1")
    wait_until(lambda: outer.containers() == [])


def test_right_to_mount_is_refused(outer: Tier) -> None:
    """Container root has this machine's id 0, which alone may write /proc/sys: the cover over that must stay."""
    with pytest.raises(Raised, match="CAP_SYS_ADMIN cannot be had here"):
        outer.run("true", cap_add=("SYS_ADMIN",))
    script = (
        "echo x > /proc/sys/kernel/core_pattern || mount -o remount,rw /proc/sys || umount /proc/sys || echo closed"
    )
    assert outer.run(script=script, seccomp="unconfined").stdout == "closed\n"


def test_container_of_other_ids(tier: Tier, outer: Tier) -> None:
    """What root of the machine has left in the same store is not taken for its own: the owners would be others."""
    with tier.spawn(root=outer.store) as machine:
        machine.run("touch", "/mine", name="kept")
    for verb, arguments in (("start", ()), ("commit", ("mine:1",)), ("diff", ())):
        with pytest.raises(Raised, match="were written with other user ids"):
            outer.driver.call(verb, "kept", *arguments)
    with tier.spawn(root=outer.store) as machine:
        assert machine.start("kept").ok
        machine.call("remove_container", "kept")


def test_network_of_another_launchers_container(outer: Tier) -> None:
    """Its Python is root's own, so containers are a namespace further down; those of several launchers in the same."""
    options = RunOptions(name="web", service=ServiceOptions(), network="none")
    script = "readlink /proc/self/ns/net; sleep 1000"
    outer.driver.call("launch", outer.image, (), options=options, script=script)
    wait_until(lambda: outer.driver.call("logs", "web") != ())
    (line,) = outer.driver.call("logs", "web")
    with outer.spawn() as other:
        for driver in (outer.driver, other):
            found = driver.run(script="readlink /proc/self/ns/net", network="container:web")
            assert found.stdout_bytes == line.data, found
    outer.driver.call("remove_container", "web", force=True)


def test_launchers_that_start_together(outer: Tier) -> None:
    """Two that begin at once have their containers in the same namespace, too: the second waits until the first has."""
    with outer.spawn() as first, outer.spawn() as second:
        for driver in (first, second):
            driver.begin_run(script="readlink /proc/self/ns/user")
        first.finish()
        second.finish()
        assert first.output["stdout"] == second.output["stdout"] != b""


@pytest.mark.parametrize("outer", [(sys.executable, "-c", FILTER)], indirect=True, ids=["filtered"])
def test_name_of_the_outer_container(outer: Tier) -> None:
    """Podman's filter lets nobody name himself: the name stays that of the outer container, unless one was asked for."""
    assert outer.sh("uname -n; cat /etc/hostname; hostname").stdout.split()[0] == os.uname().nodename
    with pytest.raises(Raised, match="host name mine cannot be had"):
        outer.run("true", hostname="mine")


@pytest.mark.peers("nft", "pasta")
def test_network(outer: Tier) -> None:
    """It has the networks of a user, with its own way out."""
    assert outer.sh("ls /sys/class/net", network="bridge").stdout.split() == ["eth0", "lo"]


@pytest.mark.parametrize("kept", [("setfcap",), ()])
def test_without_rights_over_ids(outer: Tier, kept: tuple[str, ...]) -> None:
    """Where the map cannot be written there is one id; where even that cannot be, doctor says what is missing."""
    bare = (*with_rights("dac_override", *kept), sys.executable, "-m", "nbcontainer")
    environment = {"PATH": os.environ["PATH"], "HOME": outer.home, "NBCONTAINER_ROOT": f"{outer.store}-bare"}

    def said(*words: str) -> str:
        done = subprocess.run([*bare, *words], env=environment, capture_output=True, text=True, check=False)
        return " ".join((done.stdout + done.stderr).split())

    assert (said("run", "--network", "none", "host", "cat", "/proc/self/uid_map") == "0 0 1") is bool(kept)
    assert ("the capability SETFCAP" in said("doctor")) is not bool(kept)
