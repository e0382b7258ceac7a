"""Which volumes a container gets, and what its record tells of them."""

from __future__ import annotations

import pytest

from nbcontainer.engine.volume_use import container_mounts, mounted, volume_fields, wanted_volumes
from nbcontainer.errors import InvalidImage
from nbcontainer.model import BindMount, ImageConfig, Platform, RunOptions, TmpfsMount, VolumeMount


def config(*volumes: str) -> ImageConfig:
    """An image's settings with these VOLUMEs."""
    return ImageConfig(platform=Platform.host(), volumes=volumes)


def test_volumes_of_the_image_and_those_asked_for() -> None:
    """Each VOLUME gets a volume of its own, unless something else was asked for at its place."""
    options = RunOptions(
        volumes=(VolumeMount(name="results", target="/a"), BindMount(source="/tmp", target="/b")),
        tmpfs=(TmpfsMount(target="/c"),),
    )
    wanted = wanted_volumes(options, config("/a", "/b/", "//c", "/d/./e//", "/d/e"))
    assert wanted == (VolumeMount(name="results", target="/a"), VolumeMount(target="/d/e"))
    assert wanted_volumes(RunOptions(), config()) == ()


@pytest.mark.parametrize(
    "path", ["/", "", ".", "data", "../..", "/..", "/a/../..", "/proc", "/sys/x", "/dev/shm", "/a\0"]
)
def test_volumes_that_cannot_be(path: str) -> None:
    """A VOLUME over everything, over what the sandbox owns, or nowhere, is the image's mistake, and is said so."""
    with pytest.raises(InvalidImage, match="VOLUME"):
        wanted_volumes(RunOptions(), config(path))


def test_more_volumes_than_there_can_be() -> None:
    """An image with thousands of VOLUMEs makes no thousands of mounts."""
    with pytest.raises(InvalidImage, match="more than the 256"):
        wanted_volumes(RunOptions(), config(*(f"/v{number}" for number in range(300))))


def test_what_a_record_tells() -> None:
    """A record names its volumes, and ``inspect`` shows them and other mounts in docker's words."""
    asked = (VolumeMount(target="/a"), VolumeMount(name="results", target="/b", read_only=True, subpath="x"))
    named = (VolumeMount(target="/a", name="f" * 64), asked[1])
    fields = volume_fields(asked, named)
    assert [(each["name"], each["anonymous"]) for each in fields] == [("f" * 64, True), ("results", False)]
    record = {
        "volumes": fields,
        "spec": {
            "mounts": [
                {"kind": "bind", "source": "/store/volumes/f/_data", "target": "/a"},
                {"kind": "bind", "source": "/store/volumes/results/_data/x", "target": "/b", "read_only": True},
                {"kind": "bind", "source": "/home/me", "target": "/c"},
                {"kind": "tmpfs", "target": "/d"},
                "damaged",
            ]
        },
    }
    shown = container_mounts(record)
    assert [(each["Type"], each.get("Name", ""), each["Destination"], each["RW"]) for each in shown] == [
        ("volume", "f" * 64, "/a", True),
        ("volume", "results", "/b", False),
        ("bind", "", "/c", True),
        ("tmpfs", "", "/d", True),
    ]
    assert {"results", "/b", "/home/me", "/c"} <= set(mounted(record))
    assert "/d" not in mounted(record)
    assert container_mounts({}) == container_mounts({"spec": None, "volumes": None}) == []
