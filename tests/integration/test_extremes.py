"""Much of something: layers, volumes, depth, output, arguments."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import NbcontainerError
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.rootfs import PYTHON, root_layer
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Tier


def test_many_layers(tier: Tier, registry: InProcessRegistry) -> None:
    """An image of as many layers as docker makes is pulled and run."""
    count = 126
    layers = [root_layer(("sh", "ls", "cat")), *(tiny_layer({f"layers/{n}": b"%d\n" % n}) for n in range(count))]
    registry.add_image("layers", "latest", layers=layers, compression="none")
    name = registry.reference("layers", "latest")
    with tier.spawn(root=str(tier.folder("store"))) as driver:
        result = driver.run(script="cd layers; ls; cat 0; cat [1-9]*", image=name)
        assert len(result.stdout.split()) == 2 * count


def test_many_volumes(tier: Tier) -> None:
    """More volumes than anybody has are mounted, or refused in a sentence, and the launcher lives on."""
    folder = tier.folder("work")
    (folder / "file").write_text("x\n")
    volumes = [(folder, f"/v/{number}", "ro") for number in range(100)]
    with tier.spawn() as driver:
        assert driver.run("true").ok
        launcher = driver.look()["launcher"]
        try:
            assert driver.run(script="cat /v/*/file", volumes=volumes).stdout == "x\n" * 100
        except Raised as raised:
            assert raised.is_a(NbcontainerError), raised.kinds
        assert driver.look()["launcher"] == launcher
        assert launcher in driver.processes()


def test_volume_after_the_launcher_died(tier: Tier) -> None:
    """A volume is mounted also by a launcher that had to be started anew."""
    folder = tier.folder("work")
    (folder / "file").write_text("x\n")
    with tier.spawn(root=str(tier.folder("store"))) as driver:
        driver.pull(tier.image)
        assert driver.run("true").ok
        launcher = driver.look()["launcher"]
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: launcher_is_over(launcher), what="the launcher is over")
        assert driver.run("cat", "/work/file", volumes=[(folder, "/work", "ro")]).stdout == "x\n"
    if tier.privileged:
        with tier.spawn() as driver:  # sweeps the cgroup
            assert driver.run("true").ok


def launcher_is_over(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


DEEP = """
import os
for _ in range(3000):
    os.mkdir("d")
    os.chdir("d")
os.mkdir("closed")
open("closed/file", "w").close()
os.chmod("closed", 0)
print("done")
"""


def test_deep_folders_are_removed(tier: Tier) -> None:
    """What a container made thousands of folders deep goes with it (the tier's fixture looks)."""
    result = tier.run(script=DEEP, shell=[PYTHON, "-I", "-S"], working_directory="/root")
    assert result.stdout == "done\n"
    wait_until(lambda: result.id not in tier.containers(), what="its directory is gone")


def test_closed_folders_are_removed(tier: Tier) -> None:
    """Folders and files that their owner closed to everybody go with the container."""
    script = "mkdir -p a/b/c; echo x > a/b/c/file; chmod 0 a/b/c/file a/b/c a/b a; : > '-rf'; mkdir '*'"
    result = tier.run(script=script, working_directory="/root")
    assert result.ok
    wait_until(lambda: result.id not in tier.containers(), what="its directory is gone")


def test_long_argument(tier: Tier) -> None:
    """An argument as long as the kernel takes arrives, a longer one is refused in a sentence."""
    assert tier.run("echo", "x" * 130_000).stdout == "x" * 130_000 + "\n"
    with pytest.raises(Raised, match="Argument list too long") as raised:
        tier.run("echo", "x" * 140_000)
    assert raised.value.attributes["exit_code"] == 126


def test_log_on_a_full_disk(tier: Tier) -> None:
    """A kept container whose log does not fit any more ends in a sentence, or goes on without it."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    disk = tier.folder("disk")
    state = disk.stat()
    options = f"size=150m,mode=700,uid={state.st_uid},gid={state.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
    try:
        with tier.spawn(root=f"{disk}/store") as driver:
            try:
                result = driver.run(script="head -c 200000000 /dev/zero > /root/big; seq 100000", name="full")
            except Raised as raised:
                assert raised.is_ours, (raised.kinds, str(raised))
            else:
                assert result.stdout.endswith("100000\n")
            driver.call("remove_container", "full")
            assert driver.run("echo", "on").stdout == "on\n"
    finally:
        subprocess.run(["umount", str(disk)], check=True)
