"""Links that appear between a look and a step: two containers, or a container and a person, share a folder."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from nbcontainer.testing.rootfs import PYTHON
from tests.harness.patience import patient
from tests.integration.tiers import Driver, Raised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.tiers import Tier

SWAP = """
import os
os.chdir("/shared")
os.makedirs("real", exist_ok=True)
with contextlib_suppress(OSError):
    os.symlink("{target}", "link")
while True:
    for step in (("place", "real"), ("link", "place"), ("place", "link"), ("real", "place")):
        try:
            os.rename(*step)
        except OSError:
            pass
""".replace("with contextlib_suppress(OSError):\n    os", "os")
CANARY = "the machine's own canary"


@pytest.fixture
def outside(tier: Tier) -> Iterator[Path]:
    """Lend a folder of the machine's that nobody has mounted."""
    folder = tier.folder("outside")
    (folder / "canary").write_text(CANARY)
    for path in (folder, folder / "canary"):
        path.chmod(0o777)
    yield folder
    assert os.listdir(folder) == ["canary"]
    assert (folder / "canary").read_text() == CANARY


def stop(attacker: Driver) -> None:
    """End the attacker's container as ■ does."""
    attacker.interrupt()
    with contextlib.suppress(Raised):
        attacker.finish()


@pytest.mark.parametrize(
    "way", ["{outside}", "../../../../../../..{outside}", "/proc/self/fd/3", "/proc/1/root{outside}", "/"]
)
def test_volume_target_swapped_by_another_container(tier: Tier, outside: Path, way: str) -> None:
    """A volume inside a volume whose place another container swaps for a link stays inside (CVE-2021-30465)."""
    shared, inner = tier.folder("shared"), tier.folder("inner")
    shared.chmod(0o777)
    (shared / "place").mkdir(mode=0o777)
    if tier.user is not None:
        os.chown(shared / "place", tier.user.uid, tier.user.gid)
    (inner / "mine").write_text("inner")
    swap = SWAP.replace("{target}", way.format(outside=outside))
    with tier.spawn() as attacker:
        attacker.begin_run(
            script=swap, shell=[PYTHON, "-I", "-S"], volumes=[(shared, "/shared", "rw")], timeout=20, live=False
        )
        look = (
            f"cat {outside}/canary /data/place/canary 2>/dev/null; for each in /data/place/*; do echo $each; done; true"
        )
        began, started = time.monotonic(), 0
        while time.monotonic() - began < patient(1.5) and started < 60:
            volumes = [(shared, "/data", "rw"), (inner, "/data/place", "rw")]
            try:
                result = tier.run(script=look, volumes=volumes)
            except Raised as raised:
                assert raised.is_ours, (raised.kinds, str(raised))
            else:
                assert CANARY not in result.stdout, result
            started += 1
        assert started > 3
        stop(attacker)


def test_working_directory_swapped(tier: Tier, outside: Path) -> None:
    """A working directory that another container swaps for a link leads to a place inside, or is refused."""
    shared = tier.folder("shared")
    shared.chmod(0o777)
    (shared / "place").mkdir(mode=0o777)
    if tier.user is not None:
        os.chown(shared / "place", tier.user.uid, tier.user.gid)
    with tier.spawn() as attacker:
        swap = SWAP.replace("{target}", "/proc/self/fd/5/../../..")
        attacker.begin_run(
            script=swap, shell=[PYTHON, "-I", "-S"], volumes=[(shared, "/shared", "rw")], timeout=20, live=False
        )
        for _ in range(25):
            try:
                script = f"pwd; cat ./{outside}/canary 2>/dev/null; true"
                result = tier.run(script=script, volumes=[(shared, "/data", "rw")], working_directory="/data/place")
            except Raised as raised:
                assert raised.is_ours, (raised.kinds, str(raised))
            else:
                assert CANARY not in result.stdout
        stop(attacker)


def test_source_swapped_by_a_person(tier: Tier, outside: Path) -> None:
    """A volume's source that becomes a link while containers start is never followed out of where it was checked."""
    place = tier.folder("way")
    source, link = place / "mine", place / "link"
    source.mkdir()
    (source / "file").write_text("mine")
    link.symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for step in (("mine", "aside"), ("link", "mine"), ("mine", "link"), ("aside", "mine")):
                with contextlib.suppress(OSError):
                    os.rename(place / step[0], place / step[1])

    swapper = threading.Thread(target=swap)
    swapper.start()
    seen = set()
    try:
        for _ in range(25):
            try:
                result = tier.run(script="ls /data", volumes=[(source, "/data", "ro")])
            except Raised as raised:
                assert raised.is_ours, (raised.kinds, str(raised))
            else:
                # a link that was there when the person asked is the person's own choice, and was resolved then
                seen.add(result.stdout)
    finally:
        stop.set()
        swapper.join()
    assert seen <= {"file\n", "canary\n"}
