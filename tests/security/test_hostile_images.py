"""Images made to lead the set-up astray: links where it mounts, writes or changes directory (runc's and crun's CVEs)."""

from __future__ import annotations

import functools
import os
import tarfile
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import ContainerStartError
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.rootfs import root_layer
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Tier

PLACES = (
    "proc", "sys", "dev", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/passwd", "etc/group", "tmp", "root", "work",
)  # fmt: skip
TARGETS = {
    "absolute": "{outside}",
    "file": "{outside}/canary",
    "dots": "../../../../../../../../../../{outside}",
    "dangling": "/nonesuch/place",
    "itself": "/{place}",
    "root": "/",
    "descriptor": "/proc/self/fd/3",
    "first": "/proc/1/root",
    "cwd": "/proc/self/cwd",
}
CANARY = "the machine's own canary"


def symlink(target: str) -> tarfile.TarInfo:
    """A symbolic link for a layer."""
    entry = tarfile.TarInfo()
    entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, target, 0o777
    return entry


@pytest.fixture
def outside(tier: Tier) -> Iterator[Path]:
    """Lend a folder of the machine's, full of what no container may see or touch."""
    folder = tier.folder("outside")
    (folder / "canary").write_text(CANARY)
    for name in ("hosts", "hostname", "passwd", "null"):
        (folder / name).write_text(CANARY)
    for path in (folder, *folder.iterdir()):
        path.chmod(0o777)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == before


def attempt(tier: Tier, registry: InProcessRegistry, layer: bytes, outside: Path, **options: object) -> str:
    """Run a cell of an image with `layer` on top: its output, or how the engine refused."""
    name = registry.reference("hostile", f"t{abs(hash(layer))}")
    registry.add_image("hostile", name.rpartition(":")[2], layers=[base(), layer], compression="none")
    look = f"cat {outside}/canary /etc/hosts /etc/passwd ./canary 2>/dev/null; ls -a . / /etc 2>/dev/null; pwd; true"
    try:
        result = tier.run(script=look, image=name, **options)
    except Raised as raised:
        assert raised.is_a(ContainerStartError), (raised.kinds, str(raised))
        assert "Error:" not in str(raised), str(raised)
        return f"refused: {raised}"
    finally:
        tier.driver.call("remove_image", name, force=True)
    assert result.exit_code == 0
    assert CANARY not in result.stdout
    return result.stdout


@functools.cache
def base() -> bytes:
    """The layer below the hostile one."""
    return root_layer(("sh", "cat", "ls"))


@pytest.mark.parametrize("place", PLACES)
def test_links(tier: Tier, registry: InProcessRegistry, outside: Path, place: str) -> None:
    """A link in the place of what the set-up touches leads nowhere outside, whatever it points to."""
    for name, target in TARGETS.items():
        if tier.name != "own" and name not in {"absolute", "dots", "descriptor"}:
            continue  # the same code resolves all of them
        layer = tiny_layer({place: symlink(target.format(outside=outside, place=place))})
        answer = attempt(tier, registry, layer, outside, working_directory="/work" if place == "work" else "")
        if place in {"proc", "sys", "dev"}:
            assert answer.startswith("refused: "), answer
            assert "symbolic link" in answer


@pytest.mark.parametrize("place", ["dev", "proc", "sys", "etc", "etc/hosts", "tmp"])
def test_files_where_folders_belong(tier: Tier, registry: InProcessRegistry, outside: Path, place: str) -> None:
    """A file in the place of a folder, or a folder in the place of a file, is refused or harmless."""
    for content in (b"file", None):
        attempt(tier, registry, tiny_layer({place: content}), outside)


@pytest.mark.parametrize("depth", range(3, 9))
def test_working_directory_of_the_image(tier: Tier, registry: InProcessRegistry, outside: Path, depth: int) -> None:
    """An image whose WORKDIR is a descriptor stays inside (CVE-2024-21626)."""
    registry.add_image(
        "leaky", "latest", layers=[base()], compression="none", config={"WorkingDir": f"/proc/self/fd/{depth}/../../.."}
    )
    try:
        result = tier.run(script=f"pwd; cat ./{outside}/canary; true", image=registry.reference("leaky"), pull="always")
        assert CANARY not in result.stdout
    except Raised as raised:
        assert raised.is_a(ContainerStartError)
        assert "working directory" in str(raised)
    finally:
        tier.driver.call("remove_image", registry.reference("leaky"), force=True)


@pytest.mark.parametrize(
    ("place", "target"),
    [(place, target) for place in ("data", "data/deep") for target in ("{outside}", "../../..{outside}")],
)
def test_volume_target_is_a_link(
    tier: Tier, registry: InProcessRegistry, outside: Path, place: str, target: str
) -> None:
    """A volume on a link of the image lands inside the container (CVE-2021-30465)."""
    folder = tier.folder("volume")
    (folder / "file").write_text("volume")
    layer = tiny_layer({place: symlink(target.format(outside=outside))})
    attempt(tier, registry, layer, outside, volumes=[(folder, f"/{place}", "rw"), (folder, f"/{place}/below", "rw")])
    assert sorted(os.listdir(folder)) in (["below", "file"], ["file"])


def test_owners_outside_of_the_map(tier: Tier, registry: InProcessRegistry) -> None:
    """A file of an owner that the namespace does not have is refused by name, or becomes nobody's; never root's own."""
    entry = tarfile.TarInfo()
    entry.uid = entry.gid = 3_000_000_000
    entry.mode = 0o4755
    registry.add_image("owned", "latest", layers=[base(), tiny_layer({"file": entry})], compression="none")
    name = registry.reference("owned")
    try:
        result = tier.run("ls", "-ln", "/file", image=name)
    except Raised as raised:
        assert raised.is_ours, raised.kinds
        assert "3000000000" in str(raised), str(raised)
    else:
        assert not tier.has_users
        assert result.stdout.split()[2:4] == ["0", "0"]
        tier.driver.call("remove_image", name)
