"""Containers that use up what there is: they are refused in the end, and everybody else goes on."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer import Engine, RunOptions, Settings
from nbcontainer._linux import mounts
from nbcontainer.errors import NbcontainerError
from nbcontainer.testing.rootfs import PYTHON
from tests.security.test_attacks import attack_text, made_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Tier


def test_descriptors(tier: Tier) -> None:
    """A container that opens all it can meets its own limit; the next one starts."""
    (answer,) = made_in(tier, ("exhaust_descriptors",))
    assert answer.startswith("refused EMFILE"), answer
    assert tier.run("echo", "on").stdout == "on\n"


def test_watches(tier: Tier) -> None:
    """One that makes all the inotify instances it can leaves the acting person half of them."""
    most = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())
    with tier.spawn() as driver:
        driver.begin_run(
            script=attack_text(("exhaust_watches",)) + "\nimport time; time.sleep(2)", shell=[PYTHON, "-I", "-S"]
        )
        deadline = time.monotonic() + 20
        answers = driver.finish().get("stdout_bytes", b"").decode()
        assert time.monotonic() < deadline
    words = answers.strip().strip('[]"').split()
    assert words[:2] == ["refused", "EMFILE"], answers
    assert int(words[2]) <= most // 2


def test_memory_until_the_timeout(tier: Tier) -> None:
    """A cell that takes memory without end is over at its timeout, and the memory is free again."""
    before = available()
    greedy = "held = []\nwhile True:\n    held.append(bytearray(1 << 20))\n    import time; time.sleep(0.002)"
    result = tier.run(script=greedy, shell=[PYTHON, "-I", "-S"], timeout=0.7)
    assert result.reason == "timeout"
    assert result.duration < 10
    assert available() > before - (300 << 20)


def available() -> int:
    """Bytes of memory that the machine could give."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def test_output_in_one_line(tier: Tier) -> None:
    """A hundred megabytes without a line end arrive; of what nobody streams away the last 64 MiB are kept."""
    script = "import os\nblock = b'x' * (1 << 20)\nfor _ in range(100):\n    left = block\n    while left:\n        left = left[os.write(1, left):]\nos.write(1, b'END')"
    before = resident(tier.driver.pid)
    result = tier.run(script=script, shell=[PYTHON, "-I", "-S"], timeout=60)
    assert result.ok
    assert result.stdout_bytes.endswith(b"xEND")
    assert len(result.stdout_bytes) == 64 << 20
    assert resident(tier.driver.pid) - before < 700 << 20


def resident(pid: int) -> int:
    """Bytes that a process has in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("where", ["stdout", "stderr"])
def test_output_without_end(tier: Tier, where: str) -> None:
    """Output that never ends is over at the timeout, and was read meanwhile without being hoarded."""
    script = f"while :; do echo yesyesyesyesyesyesyesyesyesyesyesyesyesyesyes; done >/dev/{where}"
    result = tier.run(script=script, timeout=1)
    assert (result.reason, result.exit_code) == ("timeout", 137)
    assert result.duration < 10
    text = result.stdout_bytes if where == "stdout" else result.stderr_bytes
    assert 1000 < len(text) <= 64 << 20


def test_processes_that_ignore_every_signal(tier: Tier) -> None:
    """A swarm that forks, ignores signals and leaves its session is gone with the cell."""
    script = "trap '' INT TERM HUP QUIT; for n in 1 2 3 4 5 6 7 8; do setsid nohup sh -c 'while :; do sleep 100 & done & sleep 100' & done; sleep 100"
    result = tier.run(script=f"ulimit -u 300 2>/dev/null; {script}", timeout=1)
    assert result.reason == "timeout"
    assert tier.run("echo", "on").stdout == "on\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Lend a folder on a file system of 128 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounts.mount("tmpfs", str(folder), "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "size=128m,mode=755")
    try:
        yield folder
    finally:
        mounts.unmount(str(folder), mounts.MNT_DETACH)


FILL = "dd if=/dev/zero of=/big bs=1M 2>&1 | tail -n 1; cat /dev/zero > /more; echo after; ls -l /big | wc -l"


@pytest.mark.root
@pytest.mark.userns
@pytest.mark.overlay
def test_full_disk(small_disk: Path, registry: InProcessRegistry) -> None:
    """A cell that fills the store's disk is told so; what it wrote goes with it, and the next one has room."""
    with Engine(Settings(root=str(small_disk / "store"))) as engine:
        image = engine.pull(registry.reference("tiny")).reference
        free = os.statvfs(small_disk).f_bavail
        for _ in range(2):
            result = engine.run(image, script=FILL.encode())
            assert result.stderr.count("No space left on device") >= 1
            assert "after\n1\n" in result.stdout
            wait_for(lambda: os.statvfs(small_disk).f_bavail > free * 0.8)


@pytest.mark.root
@pytest.mark.userns
@pytest.mark.overlay
def test_full_disk_before_the_start(small_disk: Path, registry: InProcessRegistry) -> None:
    """On a disk that is already full a start or a pull fails in a sentence of ours, and works when there is room."""
    with Engine(Settings(root=str(small_disk / "store"))) as engine:
        image = engine.pull(registry.reference("tiny")).reference
        filler = small_disk / "filler"
        fill(filler)
        for attempt in (
            lambda: engine.run(image, ["true"]),
            lambda: engine.run(image, ["true"], options=RunOptions(name="kept")),
        ):
            with contextlib.suppress(NbcontainerError):
                attempt()
        filler.unlink()
        assert engine.run(image, ["echo", "on"]).stdout == "on\n"


def fill(path: Path) -> None:
    """Take every byte that is left, then every byte of the last pages."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def wait_for(claim: object, within: float = 20) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + within
    while not claim():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_names_without_end(tier: Tier) -> None:
    """A million files and folders of one cell do not outlive it (the tier's fixture looks), nor hold the next one up."""
    script = "import os\nfor n in range(3000):\n    os.makedirs(f'/many/{n % 50}/{n}')\n    os.symlink('x' * 200, f'/many/link{n}')\n"
    assert tier.run(script=script, shell=[PYTHON, "-I", "-S"]).ok
    assert tier.run("echo", "on").stdout == "on\n"
