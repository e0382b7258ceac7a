"""From image and options to a spec: docker's rules of precedence, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.model import (
    BindMount,
    ContainerId,
    ContainerSpec,
    ImageConfig,
    Limits,
    Mount,
    Platform,
    RunOptions,
    TmpfsMount,
    VolumeMount,
)
from nbcontainer.runtime.bundle import bundle, interpreter
from nbcontainer.runtime.capabilities import DEFAULT_CAPABILITIES

ID = ContainerId("0123456789ab" + "c" * 52)
ROOT = (Mount(kind="overlay", target="/", lower=("/layer",), upper="/upper", work="/work"),)


def spec(config: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **more: Any) -> ContainerSpec:
    """Bundle an image with this config."""
    image = ImageConfig(platform=Platform("linux", "amd64"), **{"command": ("cmd",), **(config or {})})
    return bundle(ID, image, RunOptions(**(options or {})), root=ROOT, **more)


@pytest.mark.parametrize(
    ("entrypoint", "command", "asked", "argv", "expected"),
    [
        ((), ("a", "b"), None, (), ("a", "b")),
        (("e",), ("a",), None, (), ("e", "a")),
        (("e",), (), None, (), ("e",)),
        (("e",), ("a",), None, ("x", "y"), ("e", "x", "y")),
        ((), ("a",), None, ("x",), ("x",)),
        (("e",), ("a",), ("f",), (), ("f",)),
        (("e",), ("a",), ("f", "g"), ("x",), ("f", "g", "x")),
        (("e",), ("a",), (), ("x",), ("x",)),
    ],
)
def test_command_line(
    entrypoint: tuple[str, ...],
    command: tuple[str, ...],
    asked: tuple[str, ...] | None,
    argv: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    """COMMAND replaces CMD; --entrypoint replaces ENTRYPOINT and drops CMD."""
    made = spec({"entrypoint": entrypoint, "command": command}, {"entrypoint": asked}, argv=argv)
    assert made.argv == expected


@pytest.mark.parametrize(("config", "options"), [({"command": ()}, {}), ({"entrypoint": ("e",)}, {"entrypoint": ()})])
def test_no_command(config: dict[str, Any], options: dict[str, Any]) -> None:
    """Nothing to run is an error that says what to add."""
    with pytest.raises(InvalidOption, match="names no command"):
        spec(config, options)


def test_nul_in_command() -> None:
    """No command line can carry a NUL."""
    with pytest.raises(InvalidOption, match="NUL"):
        spec(argv=("a\0b",))


@pytest.mark.parametrize(
    ("script", "shell", "expected"),
    [
        (b"echo", (), ("/bin/sh",)),
        (b"", (), ("/bin/sh",)),
        (b"echo", ("python3", "-u"), ("python3", "-u")),
        (b"#!/usr/bin/env python3\nprint()", (), ("/usr/bin/env", "python3")),
        (b"#! /bin/bash -eu  x\n", (), ("/bin/bash", "-eu  x")),
        (b"#!/bin/bash\r\n", (), ("/bin/bash",)),
        (b"#!/bin/bash", ("python3",), ("python3",)),
        (b"\n#!/bin/bash", (), ("/bin/sh",)),
        (b"#!/bin/\xff\n", (), ("/bin/\udcff",)),
    ],
)
def test_interpreter(script: bytes, shell: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """A cell is run by the shell asked for, its #! line (with one argument at most, as the kernel does), or /bin/sh."""
    assert interpreter(script, shell) == expected
    made = spec({"entrypoint": ("e",)}, script=script, shell=shell)
    assert made.argv == (*expected, "/dev/cell")
    assert made.script == script


def test_empty_interpreter() -> None:
    """A #! line without an interpreter is refused."""
    with pytest.raises(InvalidOption, match="names no interpreter"):
        interpreter(b"#!  \n", ())


@pytest.mark.parametrize(
    ("image", "asked", "expected"),
    [
        ((), (), ()),
        (("A=1", "B=2"), ("A=3",), ("A=3", "B=2")),
        (("A=1",), ("A=",), ("A=",)),
        (("A=1",), ("B=x=y z\n",), ("A=1", "B=x=y z\n")),
        (("A",), ("B",), ()),
    ],
)
def test_environment(image: tuple[str, ...], asked: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Ours is over the image's; a name without a value adds nothing."""
    assert spec({"environment": image}, {"environment": asked}).environment == expected


@pytest.mark.parametrize("entry", ["=x", "", "A=b\0c"])
def test_impossible_environment(entry: str) -> None:
    """An entry that no environment can hold is refused."""
    with pytest.raises(InvalidOption, match="NAME=VALUE"):
        spec(options={"environment": (entry,)})


@pytest.mark.parametrize(
    ("image", "asked", "expected"),
    [("", "", "/"), ("/w", "", "/w"), ("w", "", "/w"), ("/w", "/x", "/x"), ("", "/x/../y", "/x/../y")],
)
def test_working_directory(image: str, asked: str, expected: str) -> None:
    """The directory asked for, else the image's (made absolute), else the root."""
    assert spec({"working_directory": image}, {"working_directory": asked}).working_directory == expected


def test_relative_working_directory() -> None:
    """A relative directory is refused with how to write it."""
    with pytest.raises(InvalidOption, match="write /x"):
        spec(options={"working_directory": "x"})


@pytest.mark.parametrize(("image", "asked", "expected"), [("", "", ""), ("a", "", "a"), ("a", "0:1", "0:1")])
def test_user(image: str, asked: str, expected: str) -> None:
    """The user asked for, else the image's."""
    assert spec({"user": image}, {"user": asked}).user == expected


@pytest.mark.parametrize("name", ["a", "A-b.c", "a" * 64, "9"])
def test_hostname(name: str) -> None:
    """Names of hosts are taken as they are; the default is the start of the id."""
    assert spec(options={"hostname": name}).hostname == name
    assert spec().hostname == "0123456789ab"


@pytest.mark.parametrize("name", ["-a", "a-", "a" * 65, "a b", "a\nb", "ü", "a/b", "a_b"])
def test_impossible_hostname(name: str) -> None:
    """What is no host name never reaches /etc/hosts."""
    with pytest.raises(InvalidOption, match="host name"):
        spec(options={"hostname": name})


def test_volumes() -> None:
    """Volumes become recursive binds in order, with their ids shifted when root asks for it."""
    volumes = (BindMount(source="/a", target="/x/"), BindMount(source="/b", target="y", read_only=True))
    made = spec(options={"volumes": volumes}, idmapped_binds=True).mounts
    assert [(m.kind, m.source, m.target, m.read_only, m.recursive, m.idmapped) for m in made] == [
        ("bind", "/a", "/x", False, True, True),
        ("bind", "/b", "/y", True, True, True),
    ]


@pytest.mark.parametrize(
    "target", ["", "/", "//", "/proc", "/proc/", "//sys//x", "/dev/shm", "/a/../b", "/..", "/a/.."]
)
def test_impossible_volume_target(target: str) -> None:
    """A volume cannot replace the root or what the sandbox owns, by no spelling."""
    with pytest.raises(InvalidOption):
        spec(options={"volumes": (BindMount(source="/a", target=target),)})


@pytest.mark.parametrize("target", ["/process", "/system", "/device", "/a/proc", "/x/dev/y"])
def test_volume_target_that_looks_reserved(target: str) -> None:
    """Names that only begin like reserved ones are free."""
    assert spec(options={"volumes": (BindMount(source="/a", target=target),)}).mounts[0].target == target


def test_volumes_of_the_store() -> None:
    """A volume is a plain bind of its files, or of a folder of them, whose owners are container ids already."""
    volumes = (
        VolumeMount(name="results", target="/x", read_only=True),
        VolumeMount(name="results", target="/y", subpath="./a//b/"),
    )
    made = spec(options={"volumes": volumes}, volumes="/store/volumes", idmapped_binds=True).mounts
    assert [(m.kind, m.source, m.target, m.read_only, m.recursive, m.idmapped) for m in made] == [
        ("bind", "/store/volumes/results/_data", "/x", True, False, False),
        ("bind", "/store/volumes/results/_data/a/b", "/y", False, False, False),
    ]


@pytest.mark.parametrize("subpath", ["..", "/a", "a/../b", "a/..", "a\0b"])
def test_part_of_a_volume_that_is_none(subpath: str) -> None:
    """A part of a volume is a path below it."""
    with pytest.raises(InvalidOption, match="must be a path below it"):
        spec(options={"volumes": (VolumeMount(name="results", target="/x", subpath=subpath),)})


def test_order_of_mounts() -> None:
    """A folder comes before what lies in it, whatever is mounted there and whatever the order it was typed in."""
    volumes = (
        BindMount(source="/a", target="/x/y/z"),
        VolumeMount(name="v1", target="/x"),
        VolumeMount(name="v2", target="/w"),
    )
    made = spec(options={"volumes": volumes, "tmpfs": (TmpfsMount(target="/x/y"),)}).mounts
    assert [mount.target for mount in made] == ["/x", "/w", "/x/y", "/x/y/z"]


def test_one_place_twice() -> None:
    """Two mounts of one place, by whatever spelling, contradict each other."""
    volumes = (BindMount(source="/a", target="/x/"), VolumeMount(name="v1", target="/x"))
    with pytest.raises(InvalidOption, match="/x is named by two mounts"):
        spec(options={"volumes": volumes})


def test_read_only_volume_and_the_right_to_mount() -> None:
    """Who may mount could make a read-only volume writable."""
    volumes = (VolumeMount(name="v1", target="/x", read_only=True),)
    with pytest.raises(InvalidOption, match="CAP_SYS_ADMIN and the read-only volume /x"):
        spec(options={"volumes": volumes, "cap_add": ("SYS_ADMIN",)})


def test_network() -> None:
    """There is no network and no name server by default; with the machine's come its name servers."""
    assert spec(host_resolv_conf="nameserver 1.1.1.1\n").resolv_conf.startswith("#")
    made = spec(options={"network": "host"}, host_resolv_conf="nameserver 1.1.1.1\n")
    assert (made.network, made.resolv_conf) == ("host", "nameserver 1.1.1.1\n")


def test_safe_by_default() -> None:
    """Nothing asked for gives the sandbox: no network, fourteen capabilities, no new privileges, the default filter."""
    made = spec()
    assert (made.network, made.capabilities, made.no_new_privileges, made.seccomp) == (
        "none", DEFAULT_CAPABILITIES, True, "default",
    )  # fmt: skip
    assert made.limits == Limits()  # the limit on processes is the runtime's own


def test_single_id() -> None:
    """Where there is one id, apt is told not to switch to its own user."""
    made = spec(single_id=True)
    assert "APT_CONFIG=/dev/apt.conf" in made.environment
    assert made.files == (("/dev/apt.conf", 'APT::Sandbox::User "root";\n'),)
    assert spec().files == ()
