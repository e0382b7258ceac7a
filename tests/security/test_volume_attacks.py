"""Containers that share a volume try to lead each other, the engine and the machine astray through it."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.model import VolumeMount
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.rootfs import PYTHON, root_layer
from tests.harness.patience import patient
from tests.integration.tiers import Driver, Raised
from tests.security.test_hostile_images import symlink
from tests.security.test_races import SWAP, stop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.harness.users import User
    from tests.integration.tiers import Tier

CANARY = "the machine's own canary"
LEADING_OUT = ("{outside}", "../../../../../../../../../..{outside}", "/proc/self/fd/3", "/proc/1/root{outside}", "/")


@pytest.fixture
def outside(tier: Tier) -> Iterator[Path]:
    """Lend a folder of the machine's that nobody has mounted, and find it as it was; no volume is left."""
    folder = tier.folder("outside")
    (folder / "canary").write_text(CANARY)
    for path in (folder, folder / "canary"):
        path.chmod(0o777)
    yield folder
    assert os.listdir(folder) == ["canary"]
    assert (folder / "canary").read_text() == CANARY
    tier.driver.call("prune_volumes", everything=True)
    assert tier.driver.call("volumes") == ()


def at(target: str, name: str = "shared", **options: Any) -> VolumeMount:
    """A named volume."""
    return VolumeMount(target=target, name=name, **options)


def attack(tier: Tier, **asked: Any) -> str:
    """What a run writes, or how the engine refused it in a sentence."""
    try:
        return str(tier.run(**asked).stdout)
    except Raised as raised:
        assert raised.is_ours, (raised.kinds, str(raised))
        return str(raised)


def begin_swapping(attacker: Driver, swap: str) -> None:
    """Start a container that swaps a place of the volume for a link, and wait until it is at work."""
    script = f"print('ready', flush=True)\n{swap}"
    attacker.begin_run(script=script, shell=[PYTHON, "-I", "-S"], mounts=[at("/shared")], timeout=60)
    attacker.wait_for_output(b"ready")


@pytest.mark.parametrize("way", LEADING_OUT)
def test_subpath_is_a_link(tier: Tier, outside: Path, way: str) -> None:
    """A link that a container left in a volume is not followed when that part of it is mounted (CVE-2021-30465)."""
    target = way.format(outside=outside)
    tier.sh(f"mkdir /keep/deep; ln -s {target} /keep/link; ln -s {target} /keep/deep/link", mounts=[at("/keep")])
    for subpath in ("link", "deep/link", "link/canary", "deep/link/x"):
        with pytest.raises(Raised, match=r"symbolic link in \S+ of volume shared") as raised:
            tier.run("ls", "/data", mounts=[at("/data", subpath=subpath)])
        assert raised.value.is_ours


@pytest.mark.parametrize("way", LEADING_OUT)
def test_subpath_swapped_by_another_container(tier: Tier, outside: Path, way: str) -> None:
    """A part of a volume that another container swaps for a link all the time is that part, or refused."""
    tier.sh("mkdir -p /shared/place /shared/real; echo mine > /shared/place/mine", mounts=[at("/shared")])
    swap = SWAP.replace("{target}", way.format(outside=outside))
    seen: set[str] = set()
    with tier.spawn() as attacker:
        begin_swapping(attacker, swap)
        began = time.monotonic()
        while time.monotonic() - began < patient(1.5):
            look = "cat /data/canary 2>/dev/null; ls -a /data"
            seen.add(attack(tier, script=look, mounts=[at("/data", subpath="place")]))
        stop(attacker)
    assert not any(CANARY in text or "canary" in text or "bin" in text.split() for text in seen), seen
    assert seen <= {".\n..\nmine\n", ".\n..\n"} | {text for text in seen if "volume shared" in text}, seen


@pytest.mark.parametrize("way", LEADING_OUT)
def test_place_in_a_volume_swapped(tier: Tier, outside: Path, way: str) -> None:
    """A volume mounted in another one, whose place there is being swapped for a link, lands inside or nowhere."""
    tier.sh("mkdir /shared/place", mounts=[at("/shared")])
    tier.sh("echo inner > /inner/mine", mounts=[at("/inner", "inner")])
    swap = SWAP.replace("{target}", way.format(outside=outside))
    with tier.spawn() as attacker:
        begin_swapping(attacker, swap)
        look = f"cat {outside}/canary /data/place/canary 2>/dev/null; ls /data/place; true"
        began = time.monotonic()
        while time.monotonic() - began < patient(1.5):
            found = attack(tier, script=look, mounts=[at("/data/place", "inner"), at("/data")])
            assert CANARY not in found
        stop(attacker)


@pytest.mark.usefixtures("outside")
def test_folder_moved_out_of_a_part(tier: Tier) -> None:
    """Whoever stands in a folder that is moved out of the part he was given gets no further up (CVE-2015-2925)."""
    tier.sh("mkdir -p /shared/part/deep; echo secret > /shared/secret", mounts=[at("/shared")])
    with tier.spawn() as prisoner:
        climb = (
            "import os, time\n"
            "os.chdir('/part/deep')\n"
            "print('ready', flush=True)\n"
            "while not os.path.exists('go'): time.sleep(0.02)\n"
            "for path in ('../secret', '../../secret', '..', '../..', '../../../volume.json', '../../..'):\n"
            "    try:\n"
            "        print(path, open(path).read() if path.endswith(('secret', 'json')) else os.listdir(path))\n"
            "    except OSError as problem:\n"
            "        print('closed', problem.errno)\n"
        )
        prisoner.begin_run(script=climb, shell=[PYTHON, "-I", "-S"], mounts=[at("/part", subpath="part")])
        prisoner.wait_for_output(b"ready")
        tier.sh("mv /shared/part/deep /shared/deep; touch /shared/deep/go", mounts=[at("/shared")])
        assert prisoner.finish()["exit_code"] == 0
        told = prisoner.output["stdout"].decode().splitlines()[1:]
    assert told == ["closed 2"] * 6, told


@pytest.mark.usefixtures("outside")
def test_nothing_around_a_volume_is_seen(tier: Tier) -> None:
    """From a volume there is no way up to its record, its lock, or other volumes, by name or by handle."""
    tier.driver.call("create_volume", "neighbour")
    script = """
import os
os.chdir("/keep")
print(sorted(os.listdir("..")) == sorted(os.listdir("/")))
fd = os.open(".", os.O_PATH)
print(os.path.exists(f"/proc/self/fd/{fd}/../volume.json"), os.path.exists(f"/proc/self/fd/{fd}/../../neighbour"))
for what in ("rename", "rmdir"):
    try:
        os.rename("/keep", "/aside") if what == "rename" else os.rmdir("/keep")
    except OSError as problem:
        print(what, problem.strerror)
"""
    result = tier.run(script=script, shell=[PYTHON, "-I", "-S"], mounts=[at("/keep")])
    assert result.stdout.splitlines() == [
        "True",
        "False False",
        "rename Device or resource busy",
        "rmdir Device or resource busy",
    ], result


@pytest.mark.parametrize("way", LEADING_OUT)
def test_place_is_a_link_of_the_image(tier: Tier, registry: InProcessRegistry, outside: Path, way: str) -> None:
    """An image whose place for a volume is a link that leads out fills the volume from inside itself, or not at all."""
    name = registry.reference("leading", f"w{LEADING_OUT.index(way)}")
    layer = tiny_layer({"data": symlink(way.format(outside=outside)), "inside": b"inside"})
    config = {"Env": ["PATH=/bin"], "Volumes": {"/data": {}}}
    layers = [root_layer(), layer]
    registry.add_image("leading", name.rpartition(":")[2], layers=layers, compression="none", config=config)
    for mounts in ([], [at("/data")], [at("/data/below")]):
        found = attack(tier, script="cat /data/canary 2>/dev/null; ls /data; true", image=name, mounts=mounts)
        assert CANARY not in found
    for volume in tier.driver.call("volumes"):
        found = attack(tier, script="cat /keep/canary 2>/dev/null; ls -R /keep", mounts=[at("/keep", volume.name)])
        assert CANARY not in found


def test_links_of_a_volume_lead_nowhere_outside(tier: Tier, outside: Path) -> None:
    """``cp`` out of and into a volume of a container that has ended follows its links inside the container only."""
    script = f"ln -s {outside} /keep/folder; ln -s {outside}/canary /keep/file; ln -s /proc/1/root/etc /keep/etc"
    tier.sh(script, mounts=[at("/keep")], name="work")
    folder = tier.folder("copies")
    (folder / "mine").write_text("mine")
    for path in ("/keep/folder/canary", "/keep/file", "/keep/folder/.", "/keep/etc/shadow"):
        with contextlib.suppress(Raised):
            tier.driver.call("copy_from", "work", path, str(folder / "out"), follow_link=True)
        with contextlib.suppress(Raised):
            tier.driver.call("copy_to", str(folder / "mine"), "work", path)
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert CANARY not in texts
    tier.driver.call("remove_container", "work")


@pytest.mark.usefixtures("outside")
def test_devices_and_programs_in_a_volume(tier: Tier) -> None:
    """A volume carries no device, and a set-user-id program in it raises nobody, in the container or outside."""
    script = (
        "cp /bin/id /keep/id; chmod 6755 /keep/id; mknod /keep/null c 1 3; mknod /keep/disk b 8 0; test -c /keep/null"
        " && echo device; test -b /keep/disk && echo device; grep ' /keep ' /proc/mounts || cat /proc/mounts"
    )
    found = tier.run(script=script, mounts=[at("/keep")]).stdout
    assert "device" not in found.split()
    (line,) = (line for line in found.splitlines() if line.split()[1] == "/keep")
    assert {"nosuid", "nodev"} <= set(line.split()[3].split(","))
    if tier.has_users:
        assert tier.run("/keep/id", "-u", user="alice", mounts=[at("/keep")]).stdout == "1000\n"
    assert tier.run("/keep/id", "-u", mounts=[at("/keep")]).stdout == "0\n"


@pytest.mark.usefixtures("outside")
def test_others_of_the_machine_cannot_enter(tier: Tier, user_with_range: User, user_without_range: User) -> None:
    """What a container leaves in a volume, set-user-id programs too, can be reached by nobody else (CVE-2021-41091)."""
    if tier.user is None and os.geteuid() != 0:
        pytest.skip("acts as another user, which takes root")
    tier.sh("cp /bin/true /keep/program; chmod 6777 /keep/program /keep", mounts=[at("/keep")])
    program = Path(tier.store) / "volumes/shared/_data/program"
    if os.geteuid() == 0:
        assert program.stat().st_mode & stat.S_ISUID
    for user in (user_with_range, user_without_range):
        if tier.user is not None and tier.user.uid == user.uid:
            continue
        done = (
            subprocess.run(
                [str(program)], user=user.uid, group=user.gid, extra_groups=[], check=False, capture_output=True
            )
            if _may_try(program, user)
            else None
        )
        assert done is None, done


def _may_try(program: Path, user: User) -> bool:
    """Whether this user can see the program at all."""
    looking = ["/usr/bin/test", "-e", str(program)]
    done = subprocess.run(looking, user=user.uid, group=user.gid, extra_groups=[], check=False, capture_output=True)
    return done.returncode == 0


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("name", ["../containers", "..", "shared/../../run", "/etc", ".new-x", "shared\0", "sha red"])
def test_names_that_lead_elsewhere(tier: Tier, name: str) -> None:
    """A name that is a path never becomes one."""
    with pytest.raises(Raised) as raised:
        tier.run("true", mounts=[at("/keep", name)])
    assert raised.value.is_a(InvalidOption)


@pytest.mark.usefixtures("outside")
def test_read_only_volume_and_the_right_to_mount(tier: Tier) -> None:
    """A container that could remount a read-only volume writable is refused."""
    with pytest.raises(Raised, match="CAP_SYS_ADMIN and the read-only volume") as raised:
        tier.run("true", cap_add=("SYS_ADMIN",), mounts=[at("/keep", read_only=True)])
    assert raised.value.is_a(InvalidOption)


MOUNTING = """
import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
for place in ("/keep/sub", "/shown/sub"):
    os.makedirs(place, exist_ok=True)
    assert libc.mount(b"t", place.encode(), b"tmpfs", 0, None) == 0, ctypes.get_errno()
print("ready", flush=True)
time.sleep(1000)
"""


def test_mounts_in_a_volume_stay_in_the_container(tier: Tier, outside: Path) -> None:
    """What it has mounted in its folders, or we for it, is mounted nowhere else: their mounts are shared by systemd."""
    before = Path("/proc/self/mountinfo").read_text()
    with tier.spawn() as attacker:
        attacker.begin_run(
            script=MOUNTING,
            shell=[PYTHON, "-I", "-S"],
            cap_add=("SYS_ADMIN",),
            mounts=[at("/keep"), at("/keep/inner", "inner")],
            volumes=[(tier.folder("shown"), "/shown", ""), (outside, "/shown/inner", "")],
        )
        attacker.wait_for_output(b"ready")
        assert Path("/proc/self/mountinfo").read_text() == before
        stop(attacker)
    assert Path("/proc/self/mountinfo").read_text() == before


DEEP = """
import os
os.chdir("/keep")
for _ in range(3000):
    os.mkdir("deeper")
    os.chdir("deeper")
open("file", "w").close()
for name in ("-rf", "a\\nb", "\\x1b[2J", "x" * 255):
    os.mkdir(f"/keep/{name}")
os.chmod("/keep/-rf", 0)
"""


@pytest.mark.usefixtures("outside")
def test_deep_and_strange_folders(tier: Tier) -> None:
    """A volume full of folders nobody can name is counted, listed and removed."""
    assert tier.run(script=DEEP, shell=[PYTHON, "-I", "-S"], mounts=[at("/keep")]).ok
    usage = tier.driver.call("disk_usage")
    (line,) = (line for line in usage.lines if line.kind == "Volumes")
    assert line.count == 1
    tier.driver.call("remove_volume", "shared")
    assert os.listdir(Path(tier.store) / "volumes") == []


def test_swapped_while_it_is_counted_and_removed(tier: Tier, outside: Path) -> None:
    """Sizes are counted and volumes removed while a container swaps folders for links; nothing outside is touched."""
    swap = SWAP.replace("{target}", str(outside))
    with tier.spawn() as attacker:
        tier.sh("mkdir /shared/place", mounts=[at("/shared")])
        begin_swapping(attacker, swap)
        for _ in range(20):
            tier.driver.call("disk_usage")
        _remove_used(tier)
        stop(attacker)


def _remove_used(tier: Tier) -> None:
    """Try to remove it while it is in use."""
    with contextlib.suppress(Raised):
        tier.driver.call("remove_volume", "shared")


@pytest.mark.usefixtures("outside")
def test_makers_and_removers(tier: Tier) -> None:
    """Notebooks that use, remove and prune one volume at once never lose one that a container has."""
    drivers: list[Driver] = []
    with contextlib.ExitStack() as undo:
        drivers += [undo.enter_context(tier.spawn()) for _ in range(2)]
        for _ in range(10):
            for driver in drivers:
                driver.begin_run(
                    script="echo x > /keep/$HOSTNAME && cat /keep/$HOSTNAME", mounts=[at("/keep")], live=False
                )
            for _ in range(3):
                _remove_used(tier)
                tier.driver.call("prune_volumes", everything=True)
            for driver in drivers:
                assert driver.finish()["stdout_bytes"] == b"x\n"
