"""The documents of a committed image, and the instructions of ``--change``: pure, so compared as values."""

from __future__ import annotations

from typing import Any

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.images.changes import INSTRUCTIONS, changed
from nbcontainer.images.committing import NewLayer, checked_config, config_with_layer, manifest_with_layer
from nbcontainer.model import Descriptor, Digest, Manifest

_OLD = Digest.of(b"old")
_NEW = Digest.of(b"new")
_BASE: dict[str, Any] = {"Env": ["PATH=/bin", "A=1"], "Cmd": ["sh"], "WorkingDir": "/srv", "Labels": None}
_PORTS = ("80/tcp", "53/udp", "8000/tcp", "8001/tcp", "8002/tcp")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("CMD echo $A", {"Cmd": ["/bin/sh", "-c", "echo $A"]}),
        ('CMD ["echo", "x y"]', {"Cmd": ["echo", "x y"]}),
        ("cmd ['echo']", {"Cmd": ["/bin/sh", "-c", "['echo']"]}),
        ('ENTRYPOINT ["/init"]', {"Entrypoint": ["/init"], "Cmd": None}),
        ("ENV A=$A:2 B='x $A'", {"Env": ["PATH=/bin", "A=1:2", "B=x $A"]}),
        ("ENV A two words", {"Env": ["PATH=/bin", "A=two words"]}),
        (r"ENV B=\$A${A}${NONE}", {"Env": ["PATH=/bin", "A=1", "B=$A1"]}),
        ("EXPOSE 80 53/udp 8000-8002", {"ExposedPorts": {port: {} for port in _PORTS}}),
        ('LABEL a=b "c d"="e f"', {"Labels": {"a": "b", "c d": "e f"}}),
        ("USER 1000:1000", {"User": "1000:1000"}),
        ("WORKDIR sub/../dir", {"WorkingDir": "/srv/dir"}),
        ("WORKDIR /", {"WorkingDir": "/"}),
        ('VOLUME ["/a", "/b c"]', {"Volumes": {"/a": {}, "/b c": {}}}),
        ("VOLUME /a /b", {"Volumes": {"/a": {}, "/b": {}}}),
        ("ONBUILD RUN make", {"OnBuild": ["RUN make"]}),
    ],
)  # fmt: skip
def test_changes(change: str, expected: dict[str, Any]) -> None:
    """Each instruction means what it means in a Dockerfile, and touches nothing else."""
    result = changed(_BASE, [change])
    for name, value in {**_BASE, **expected}.items():
        assert result.get(name) == value, name


def test_changes_add_up() -> None:
    """A later change sees the earlier ones, and the config they start from stays as it was."""
    before = {"Env": ["A=1"]}
    assert changed(before, ["ENV B=$A$A", "ENV C=$B"])["Env"] == ["A=1", "B=11", "C=11"]
    assert before == {"Env": ["A=1"]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("RUN ls", "starts with 'RUN'; it can be one of CMD"),
        ("", "starts with ''"),
        ("ENV", "says nothing after ENV"),
        ("ENV A", "gives A no value"),
        ("ENV A=1 B", "has 'B' where NAME=VALUE"),
        ("ENV A='x", "cannot be split"),
        ("ENV A=${B:-x}", "only \\$NAME and \\${NAME}"),
        ("EXPOSE 0", "not a port"),
        ("EXPOSE 9-2", "not a port"),
        ("USER a b", "has 2 words"),
        ("ONBUILD ONBUILD RUN x", "ONBUILD ONBUILD is not allowed"),
        ("CMD a\nCMD b", "several lines"),
        ('VOLUME [""]', "empty volume"),
    ],
)
def test_changes_that_cannot_be(change: str, sentence: str) -> None:
    """What cannot be read is named with its own text."""
    with pytest.raises(InvalidOption, match=sentence):
        changed(_BASE, [change])


def test_every_instruction_of_docker() -> None:
    """The instructions are those that docker's ``commit --change`` takes."""
    assert set(INSTRUCTIONS) == {
        "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "USER", "VOLUME", "WORKDIR",
    }  # fmt: skip


def test_config_keeps_what_it_does_not_know() -> None:
    """Unknown fields stay, those that describe how the base was made go, the layer and its history are appended."""
    base: dict[str, Any] = {
        "architecture": "arm64",
        "os": "linux",
        "variant": "v8",
        "docker_version": "20",
        "container": "abc",
        "container_config": {"Cmd": ["x"]},
        "config": {"Healthcheck": {"Test": ["NONE"]}},
        "rootfs": {"type": "layers", "diff_ids": [str(_OLD)]},
    }
    config = config_with_layer(
        base, options=base["config"], diff_id=_NEW, now=1_700_000_000.5, created_by="sh -c x", author="Ada"
    )
    assert config["variant"] == "v8"
    assert config["config"] == {"Healthcheck": {"Test": ["NONE"]}}
    assert "container" not in config
    assert "container_config" not in config
    assert config["rootfs"]["diff_ids"] == [str(_OLD), str(_NEW)]
    assert [entry.get("comment", "") for entry in config["history"]] == ["no history was kept of this layer", ""]
    assert config["history"][-1] == {
        "created": "2023-11-14T22:13:20.500000Z", "created_by": "sh -c x", "author": "Ada",
    }  # fmt: skip
    assert all("created" in entry for entry in config["history"])
    assert checked_config(config).diff_ids == (_OLD, _NEW)


def test_manifest_is_of_one_kind() -> None:
    """Layers of a docker image get the media types of the specification they are now in."""
    base = Manifest(
        media_type="application/vnd.docker.distribution.manifest.v2+json",
        config=Descriptor(media_type="application/vnd.docker.container.image.v1+json", digest=_OLD, size=2),
        layers=(
            Descriptor(media_type="application/vnd.docker.image.rootfs.diff.tar.gzip", digest=_OLD, size=7),
            Descriptor(media_type="application/vnd.oci.image.layer.v1.tar+zstd", digest=_OLD, size=8),
        ),
    )
    layer = NewLayer(
        media_type="application/vnd.oci.image.layer.v1.tar+gzip", digest=_NEW, size=9, diff_id=_NEW, unpacked=1024
    )
    manifest = manifest_with_layer(base, layer, _NEW, 100)
    kinds = [each["mediaType"].removeprefix("application/vnd.oci.image.layer.v1.") for each in manifest["layers"]]
    assert kinds == ["tar+gzip", "tar+zstd", "tar+gzip"]
    assert {manifest["mediaType"], manifest["config"]["mediaType"]} == {
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.config.v1+json",
    }
