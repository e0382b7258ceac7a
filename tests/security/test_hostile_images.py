"""Images made to lead the set-up astray: links where it mounts, writes or changes directory (runc's and crun's CVEs)."""

from __future__ import annotations

import functools
import os
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import ContainerStartError
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.rootfs import root_layer
from tests.harness.patience import patient
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


HOSTILE_CONFIGS: dict[str, dict[str, object]] = {
    "environment with line ends": {"Env": ["A=1\nLD_PRELOAD=/evil.so\nB=2", "PATH=/bin"]},
    "environment with NUL": {"Env": ["A=1\0LD_PRELOAD=/evil.so"]},
    "environment without names": {"Env": ["=x", "", "novalue", "=", "A=B=C"]},
    "environment of halves": {"Env": ["A=\ud800"]},
    "environment of the loader": {
        "Env": ["LD_PRELOAD=/evil.so", "LD_LIBRARY_PATH=/evil", "PYTHONPATH=/evil", "GCONV_PATH=/evil"]
    },
    "environment without end": {"Env": [f"V{n}={'x' * 1000}" for n in range(3000)]},
    "path through descriptors": {"Env": ["PATH=/proc/self/fd/3:/proc/self/cwd:/proc/1/root/bin:.:/bin"]},
    "directory in another process": {"WorkingDir": "/proc/1/root"},
    "directory in the cwd": {"WorkingDir": "/proc/self/cwd"},
    "directory with NUL": {"WorkingDir": "/a\0b"},
    "directory with dots": {"WorkingDir": "/../../../../../../.."},
    "directory below a file": {"WorkingDir": "/etc/passwd/x"},
    "directory too long": {"WorkingDir": "/" + "x" * 5000},
    "user that is a path": {"User": "../../root"},
    "user with a line end": {"User": "root\nalice"},
    "user with NUL": {"User": "root\0"},
    "user beyond all": {"User": "4294967295:4294967295"},
    "user below zero": {"User": "-1"},
    "user in other digits": {"User": "\u0660"},
    "user of many colons": {"User": "0:0:0:0"},
    "user without end": {"User": "9" * 100_000},
    "entrypoint of nothing": {"Entrypoint": ["", ""], "Cmd": [""]},
    "entrypoint with NUL": {"Entrypoint": ["/bin/sh\0", "-c"]},
    "entrypoint that is a folder": {"Entrypoint": ["/etc"]},
    "entrypoint of the machine": {"Entrypoint": ["/proc/1/exe", "-c", "print(1)"]},
    "entrypoint of a descriptor": {"Entrypoint": ["/proc/self/fd/3"]},
    "entrypoint without end": {"Entrypoint": ["/bin/echo", *["x"] * 100_000]},
    "volumes over everything": {"Volumes": {"/proc": {}, "/": {}, "/dev": {}, "../..": {}, "/proc/self/fd/3": {}}},
    "other fields": {
        "StopSignal": "\x1b[2J",
        "Shell": [""],
        "ExposedPorts": {"99999999/\n": {}},
        "Labels": {"\0": "\x1b]0;x\x07"},
    },
}


@pytest.mark.parametrize("case", HOSTILE_CONFIGS)
def test_hostile_config(tier: Tier, registry: InProcessRegistry, case: str) -> None:
    """A config that nobody would write runs as it says or is refused in a sentence, and leads nowhere outside."""
    name = registry.reference("config", f"c{abs(hash(case))}")
    registry.add_image(
        "config", name.rpartition(":")[2], layers=[base()], compression="none", config=HOSTILE_CONFIGS[case]
    )
    try:
        for script in (b"cat /proc/self/environ; pwd; ls /", None):
            try:
                result = tier.run(image=name, script=script, timeout=20)
            except Raised as raised:
                assert raised.is_ours, (raised.kinds, str(raised))
                assert not raised.is_a(NotImplementedError)
                assert "Error:" not in str(raised), str(raised)
                assert len(str(raised)) < 5000
            else:
                assert result.reason in {"exited", "signalled"}
                assert CANARY not in result.stdout
                assert "\nLD_PRELOAD=" not in result.stdout.replace("A=1\nLD_PRELOAD", "")
    finally:
        tier.driver.call("remove_image", name, force=True)


def passwd_layers() -> dict[str, bytes]:
    """Account files that trap whoever reads them."""
    fifo = tarfile.TarInfo()
    fifo.type = tarfile.FIFOTYPE
    endless = b"alice:" + b"x" * (8 << 20) + b":1:1:::\n"
    numbers = b"1000:x:0:0:::\nalice:x:+0:-0:::\nalice:x: 0:0:::\nalice:x:99999999999:0:::\nalice:x:1_000:0:::\n"
    return {
        "zero": tiny_layer({"etc/passwd": symlink("/dev/zero"), "etc/group": symlink("/dev/zero")}),
        "fifo": tiny_layer({"etc/passwd": fifo, "etc/group": fifo}),
        "folder": tiny_layer({"etc/passwd": None, "etc/group": None}),
        "self": tiny_layer({"etc/passwd": symlink("/proc/self/mem"), "etc/group": symlink("/proc/kmsg")}),
        "first": tiny_layer(
            {"etc/passwd": symlink("/proc/1/root/etc/passwd"), "etc/group": symlink("/proc/1/root/etc/group")}
        ),
        "endless": tiny_layer({"etc/passwd": endless, "etc/group": endless}),
        "numbers": tiny_layer({"etc/passwd": numbers, "etc/group": numbers}),
        "groups": tiny_layer({"etc/group": b"".join(b"g%d:x:%d:alice\n" % (n, n) for n in range(100_000))}),
    }


@pytest.mark.parametrize("case", ["zero", "fifo", "folder", "self", "first", "endless", "numbers", "groups"])
def test_hostile_accounts(tier: Tier, registry: InProcessRegistry, case: str) -> None:
    """Account files that are endless, no files or full of tricks are read with bounds and no guessing (CVE-2024-9676)."""
    name = registry.reference("accounts", case)
    registry.add_image(
        "accounts", case, layers=[root_layer(("sh", "cat", "id")), passwd_layers()[case]], compression="none"
    )
    began = time.monotonic()
    try:
        for user in ("alice", "1000", "alice:staff"):
            try:
                result = tier.run("id", "-u", image=name, user=user, timeout=20)
            except Raised as raised:
                assert raised.is_a(ContainerStartError), (raised.kinds, str(raised))
                assert "Error:" not in str(raised), str(raised)
            else:
                assert result.stdout in {"1000\n", ""} or case == "groups", result
        assert tier.run("id", "-u", image=name).stdout == "0\n"
        assert time.monotonic() - began < patient(20)
    finally:
        tier.driver.call("remove_image", name, force=True)


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
