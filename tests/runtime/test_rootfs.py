"""The ordered operations that make a root, compared as data."""

from __future__ import annotations

import dataclasses
from typing import Any

from nbcontainer.model import ContainerId, ContainerSpec, Mount
from nbcontainer.runtime.rootfs import Stage, operations

STAGE = Stage(store="/store", host_lowers=("/", "/home"))


def spec(**fields: Any) -> ContainerSpec:
    """A container on two layers."""
    root = Mount(
        kind="overlay",
        target="/",
        lower=("/store/b", "/store/a"),
        upper="/store/c/upper",
        work="/store/c/work",
        volatile=True,
    )
    return ContainerSpec(**{"id": ContainerId("1" * 64), "argv": ("sh",), "root": (root,), "hostname": "box", **fields})


def test_order() -> None:
    """First the image, then our proc, sys and dev over it, files of ours, masks, and the volumes last."""
    masked = (*spec().root, Mount(kind="mask", target="/root/.ssh"))
    steps = operations(
        spec(
            root=masked,
            files=(("/dev/x", "y"),),
            mounts=(Mount(kind="bind", source="/a", target="/b"),),
        ),
        STAGE,
    )
    assert [step["op"] for step in steps] == [
        "overlay",
        *["attach"] * 3,
        *["generated"] * 3,
        "write",
        "mask",
        "bind",
    ]
    assert [step["target"] for step in steps if step["op"] == "attach"] == ["proc", "sys", "dev"]


def test_files_of_ours_in_a_volume() -> None:
    """A writable volume over /etc does not hide the container's name servers; what is put at their place does."""

    def order(*mounts: Mount) -> list[str]:
        steps = operations(spec(mounts=mounts), STAGE)
        return [step["target"] for step in steps if step["op"] in {"generated", "bind"}]

    files = ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
    volume = Mount(kind="bind", source="/store/volumes/v/_data", target="/etc")
    own = Mount(kind="bind", source="/home/me/hosts", target="/etc/hosts")
    assert order(volume) == ["/etc", *files]
    assert order(volume, own) == ["/etc/hosts", "/etc", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"]
    assert order(Mount(kind="bind", source="/home/me/etc", target="/etc")) == [*files, "/etc"]
    assert order(dataclasses.replace(volume, read_only=True)) == [*files, "/etc"]
    assert order(dataclasses.replace(volume, target="/et")) == [*files, "/et"]


def test_layers_are_found_on_the_stage() -> None:
    """Paths of the store are relative to where the launcher has it; the order of layers is kept, topmost first."""
    assert operations(spec(), STAGE)[0] == {
        "op": "overlay", "target": "/", "lower": ["store/b", "store/a"], "upper": "store/c/upper",
        "work": "store/c/work", "volatile": True,
    }  # fmt: skip


def test_locate() -> None:
    """Only what lies below the store is there; a name that begins like it is not."""
    assert STAGE.locate("/store") == "store"
    assert STAGE.locate("/store/x/y") == "store/x/y"
    assert STAGE.locate("/storeroom/x") == "/storeroom/x"
    assert STAGE.locate("/home", idmapped=True) == "host/1"
    assert STAGE.locate("/home") == "/home"
    assert STAGE.locate("/elsewhere", idmapped=True) == "/elsewhere"


def test_binds_made_outside() -> None:
    """A bind with shifted ids takes its descriptor by number, in order; others have none."""
    mounts = (
        Mount(kind="bind", source="/a", target="/a", idmapped=True),
        Mount(kind="bind", source="/b", target="/b"),
        Mount(kind="bind", source="/c", target="/c", idmapped=True, read_only=True, recursive=True),
    )
    steps = [step for step in operations(spec(mounts=mounts), STAGE, outside_mounts=(4, 5)) if step["op"] == "bind"]
    assert [(step["source"], step["fd"], step["read_only"], step["recursive"]) for step in steps] == [
        ("/a", 4, False, False), ("/b", -1, False, False), ("/c", 5, True, True),
    ]  # fmt: skip


def test_generated_files() -> None:
    """Host name, hosts and name servers are ours."""
    steps = operations(spec(extra_hosts=("10.0.0.1\tdb",), resolv_conf="nameserver 9.9.9.9\n"), STAGE)
    files = {step["target"]: step["text"] for step in steps if step["op"] == "generated"}
    assert files["/etc/hostname"] == "box\n"
    assert {"127.0.0.1\tlocalhost", "127.0.1.1\tbox", "10.0.0.1\tdb"} <= set(files["/etc/hosts"].splitlines())
    assert files["/etc/resolv.conf"] == "nameserver 9.9.9.9\n"


def test_folders_of_a_user() -> None:
    """A fresh root with links, folders and masks keeps its order."""
    root = (
        Mount(kind="tmpfs", target="/"),
        Mount(kind="symlink", target="/bin", source="usr/bin"),
        Mount(kind="overlay", target="/usr", lower=("/usr",), upper="/store/u", work="/store/w"),
        Mount(kind="tmpfs", target="/tmp", mode=0o1777, size=10),
        Mount(kind="bind", target="/mnt", source="/mnt", recursive=True, read_only=True),
    )
    steps = operations(spec(root=root), STAGE)[:5]
    assert [step["op"] for step in steps] == ["tmpfs", "symlink", "overlay", "tmpfs", "bind"]
    assert steps[2]["lower"] == ["/usr"]
    assert (steps[3]["mode"], steps[3]["size"]) == (0o1777, 10)
