"""``-v`` and ``--mount``: docker's two languages mean the same things here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine.mount_options import read_label, read_mount, read_volume, split_mounts
from nbcontainer.errors import InvalidOption
from nbcontainer.model import BindMount, TmpfsMount, VolumeMount

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("results:/data", VolumeMount(name="results", target="/data")),
        ("results:/data:ro", VolumeMount(name="results", target="/data", read_only=True)),
        ("results:/data:rw,nocopy", VolumeMount(name="results", target="/data", copy=False)),
        ("my.results_2-x://a//b/", VolumeMount(name="my.results_2-x", target="/a/b")),
        ("/data", VolumeMount(target="/data")),
        ("/tmp:/data:ro", BindMount(source="/tmp", target="/data", read_only=True)),
        ("/tmp:/data:rprivate", BindMount(source="/tmp", target="/data")),
    ],
)
def test_short_form(text: str, mount: object) -> None:
    """A name is a volume, a path a folder of the machine, one path alone a new volume."""
    assert read_volume(text) == mount


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("source=results,target=/data", VolumeMount(name="results", target="/data")),
        ("type=volume,src=results,dst=/data,ro", VolumeMount(name="results", target="/data", read_only=True)),
        ("type=volume,destination=/data,readonly=false", VolumeMount(target="/data")),
        (
            "type=volume,src=results,dst=/data,volume-nocopy,volume-subpath=a/b",
            VolumeMount(name="results", target="/data", copy=False, subpath="a/b"),
        ),
        (
            'type=volume,src=results,dst=/data,"volume-label=a=b,c",volume-label=d,volume-driver=local',
            VolumeMount(name="results", target="/data", labels=(("a", "b,c"), ("d", ""))),
        ),
        ("type=bind,src=/tmp,dst=/data,readonly", BindMount(source="/tmp", target="/data", read_only=True)),
        ("type=bind,src=/tmp,dst=/data,bind-propagation=rprivate", BindMount(source="/tmp", target="/data")),
        (
            "type=bind,src=/tmp,dst=/data,ro=true,bind-recursive=readonly,consistency=cached",
            BindMount(source="/tmp", target="/data", read_only=True),
        ),
        (
            "type=bind,src=/no/such,dst=/data,bind-create-src",
            BindMount(source="/no/such", target="/data", make_source=True),
        ),
        ('type=bind,"source=/tmp",target=/a b', BindMount(source="/tmp", target="/a b")),
        ("type=tmpfs,dst=/scratch", TmpfsMount(target="/scratch")),
        (
            "type=tmpfs,dst=/scratch,tmpfs-size=64m,tmpfs-mode=0700,ro",
            TmpfsMount(target="/scratch", size=64 << 20, mode=0o700, read_only=True),
        ),
        ("TYPE=tmpfs,Target=/scratch,tmpfs-mode=41777", TmpfsMount(target="/scratch", mode=0o1777)),
    ],
)
def test_long_form(text: str, mount: object) -> None:
    """Every key of docker's that means something here is read; a value with a comma stands in quotes."""
    assert read_mount(text) == mount


def test_relative_source_of_a_bind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only a folder can be meant, it needs no dot; for ``-v`` a bare name is a volume's."""
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_mount("type=bind,src=set,dst=/x") == BindMount(source=str(tmp_path / "set"), target="/x")
    assert read_volume("./set:/x") == BindMount(source=str(tmp_path / "set"), target="/x")
    assert read_volume("set:/x") == VolumeMount(name="set", target="/x")


def test_put_together() -> None:
    """What both options ask for is one list, memory apart."""
    volume, bind = VolumeMount(target="/a"), BindMount(source="/tmp", target="/b")
    assert split_mounts((volume,), (bind, TmpfsMount(target="/c"))) == ((volume, bind), (TmpfsMount(target="/c"),))


def test_labels() -> None:
    """A label has a name, and what follows the first equal sign is its value."""
    assert read_label("a=b=c") == ("a", "b=c")
    assert read_label("a") == ("a", "")
    for text in ("", "=b", " =b", "a\0=b"):
        with pytest.raises(InvalidOption, match="no name"):
            read_label(text)
