"""What can go wrong does: each time one clear sentence, and nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import (
    CorruptContent,
    ImageNotFound,
    InvalidImage,
    InvalidReference,
    RegistryUnreachable,
    StorageError,
)
from nbcontainer.model import Digest
from nbcontainer.testing.images import build_image, tiny_layer
from nbcontainer.testing.rootfs import root_layer
from tests.integration.fixtures import OWN_TIER
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Driver, Tier


def refusal(driver: Driver, image: str, kind: type[Exception]) -> str:
    """The one sentence that a pull of `image` ends in."""
    before = driver.call("images")
    with pytest.raises(Raised) as raised:
        driver.pull(image)
    assert raised.value.is_a(kind), (raised.value.kinds, str(raised.value))
    assert driver.call("images") == before
    sentence = str(raised.value)
    assert "Traceback" not in sentence
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def driver(tier: Tier) -> Iterator[Driver]:
    """Lend an engine on an empty store."""
    with tier.spawn(root=str(tier.folder("store")), registry_timeout=2.0) as driver:
        yield driver


def actives(driver: Driver) -> list[str]:
    """Layers half unpacked in the store."""
    root = driver.look()["root"]
    return [name for folder, names, _ in os.walk(f"{root}/snapshots") for name in names if folder.endswith("/active")]


def test_corrupted_blob(driver: Driver, registry: InProcessRegistry) -> None:
    """A layer that is not what its digest says is refused, and the pull succeeds once it is right."""
    image = build_image([root_layer(("sh", "echo")), tiny_layer({"marker": b"corrupted"})])
    registry.add_built("corrupted", "latest", image)
    name = registry.reference("corrupted")
    registry.faults.corrupt.add(image.manifest.layers[1].digest)
    try:
        sentence = refusal(driver, name, CorruptContent)
    finally:
        registry.faults.corrupt.clear()
    assert image.manifest.layers[1].digest.short in sentence
    assert actives(driver) == []
    assert driver.run("echo", "on", image=name).stdout == "on\n"


def test_layer_that_is_not_its_diff_id(driver: Driver, registry: InProcessRegistry) -> None:
    """A layer that inflates to something else than the config promises is refused."""
    right, other = (tiny_layer({"file": text}) for text in (b"right", b"other"))
    image = build_image([right])
    lie = image.manifest_bytes.replace(
        str(image.manifest.layers[0].digest).encode(), str(registry.add_blob(other)).encode()
    ).replace(f'"size": {image.manifest.layers[0].size}'.encode(), f'"size": {len(other)}'.encode())
    registry.add_built("lying", "right", image)
    registry.add_manifest("lying", "latest", lie, image.manifest.media_type)
    assert "promises" in refusal(driver, registry.reference("lying"), CorruptContent)
    assert actives(driver) == []


@pytest.mark.parametrize(
    ("entry", "link"),
    [("../../escape", ""), ("/../escape", ""), ("a/../../escape", "")],
)
def test_hostile_layer(driver: Driver, registry: InProcessRegistry, entry: str, link: str) -> None:
    """A layer that would write outside of its root is refused or kept inside; nothing appears outside."""
    registry.add_image("hostile", "latest", layers=[tiny_layer({entry: b"out"})])
    with contextlib.suppress(Raised):
        driver.pull(registry.reference("hostile"))
    root = driver.look()["root"]
    found = [folder for folder, _, names in os.walk(root) if "escape" in names]
    assert all(folder.endswith("/fs") or "/fs/" in folder for folder in found), found
    assert not os.path.exists(os.path.join(os.path.dirname(root), "escape"))
    driver.call("remove_image", registry.reference("hostile")) if found else None


def test_not_a_tar(driver: Driver, registry: InProcessRegistry) -> None:
    """A layer that is no tar is refused as such."""
    registry.add_image("no-tar", "latest", layers=[b"this is not a tar archive " * 100])
    refusal(driver, registry.reference("no-tar"), InvalidImage)
    assert actives(driver) == []


@OWN_TIER
def test_unknown_image(driver: Driver, registry: InProcessRegistry) -> None:
    """An image, or a tag, that the registry does not have is not found there."""
    assert "nonesuch" in refusal(driver, registry.reference("nonesuch"), ImageNotFound)
    assert "v9" in refusal(driver, registry.reference("tiny", "v9"), ImageNotFound)
    digest = Digest.of(b"nothing")
    assert digest.short in refusal(driver, f"{registry.host}/tiny@{digest}", ImageNotFound)


@OWN_TIER
@pytest.mark.parametrize(
    "name", ["", " ", "UPPER", "a b", "x:y:z", "http://x/y", "../x", "-x", "a" * 300, "x@sha256:12"]
)
def test_impossible_name(driver: Driver, name: str) -> None:
    """A name that cannot be one is refused before anything is asked."""
    refusal(driver, name, InvalidReference)


@OWN_TIER
def test_unreachable_registry(driver: Driver) -> None:
    """A registry that nobody serves is named, with its address."""
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in refusal(driver, f"{address}/x", RegistryUnreachable)


def test_image_of_another_machine(driver: Driver, registry: InProcessRegistry) -> None:
    """A program of another architecture says that it is one."""
    program = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x02\0\xf7\0" + b"\0" * 44
    foreign = tarfile.TarInfo()
    foreign.type, foreign.linkname = tarfile.SYMTYPE, "program"
    registry.add_image("foreign", "latest", layers=[root_layer((), files={"program": program, "link": foreign})])
    with pytest.raises(Raised, match="not a program for this machine") as raised:
        driver.run("/link", image=registry.reference("foreign"))
    assert raised.value.attributes["exit_code"] == 126


@OWN_TIER
def test_image_without_layers(driver: Driver, registry: InProcessRegistry) -> None:
    """An image without layers cannot be run, and says why."""
    registry.add_image("empty", "latest", layers=[])
    with pytest.raises(Raised, match="no layers"):
        driver.run("true", image=registry.reference("empty"))


@OWN_TIER
def test_image_without_command(driver: Driver, registry: InProcessRegistry) -> None:
    """An image that names no command asks for one."""
    registry.add_image("quiet", "latest", layers=[root_layer(("true",))])
    with pytest.raises(Raised, match="names no command"):
        driver.run(image=registry.reference("quiet"))


@OWN_TIER
def test_pull_never(driver: Driver, registry: InProcessRegistry) -> None:
    """An image that is not here is not fetched when that is forbidden."""
    asked = len(registry.requests)
    with pytest.raises(Raised, match="--pull never") as raised:
        driver.run("true", image=registry.reference("tiny"), pull="never")
    assert raised.value.is_a(ImageNotFound)
    assert len(registry.requests) == asked


@pytest.fixture
def small_disk(tier: Tier, tmp_path: Path) -> Iterator[str]:
    """Lend a disk of 12 MB that the acting person owns."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    disk = tier.folder("disk")
    state = disk.stat()
    options = f"size=12m,mode=700,uid={state.st_uid},gid={state.st_gid}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
    try:
        yield str(disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def used(disk: str) -> float:
    """How many megabytes of a file system are taken."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize / 1e6


def test_full_disk(tier: Tier, small_disk: str) -> None:
    """A pull onto a full disk says so, names nothing, and succeeds when there is room."""
    with tier.spawn(root=f"{small_disk}/store") as driver:
        sentence = refusal(driver, tier.image, StorageError)
        assert "is full" in sentence
        assert actives(driver) == []
        subprocess.run(["mount", "-o", "remount,size=300m", small_disk], check=True)
        assert driver.run("echo", "on").stdout == "on\n"


def test_full_disk_while_running(tier: Tier, small_disk: str) -> None:
    """A cell that fills the disk gets the error itself; the engine goes on, and the room is free again."""
    subprocess.run(["mount", "-o", "remount,size=130m", small_disk], check=True)
    with tier.spawn(root=f"{small_disk}/store") as driver:
        driver.pull(tier.image)
        before = used(small_disk)
        result = driver.run(script="head -c 500000000 /dev/zero > /root/big")
        assert result.exit_code != 0
        assert "No space left" in result.stderr
        wait_until(lambda: used(small_disk) < before + 1, what="the room is free again")
        assert driver.run("echo", "on").stdout == "on\n"


def test_store_that_cannot_be_written(tier: Tier) -> None:
    """A store in a place that cannot be is refused with the way to choose another."""
    with tier.spawn(root="/proc/nbcontainer") as driver, pytest.raises(Raised, match="NBCONTAINER_ROOT") as raised:
        driver.call("images")
    assert raised.value.is_a(StorageError)
