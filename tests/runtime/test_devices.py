"""Which devices may be given to a container, and how they are asked for."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.model import Device
from nbcontainer.runtime.devices import device_nodes, parse_device, resolved_devices

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "source", "target", "access"),
    [
        ("/dev/fuse", "/dev/fuse", "/dev/fuse", "rw"),
        ("/dev/fuse:/dev/other", "/dev/fuse", "/dev/other", "rw"),
        ("/dev/fuse:r", "/dev/fuse", "/dev/fuse", "r"),
        ("/dev/fuse:/dev/fuse:rwm", "/dev/fuse", "/dev/fuse", "rw"),
        ("/dev/fuse:/dev/fuse:w", "/dev/fuse", "/dev/fuse", "w"),
        ("/dev/../dev/fuse", "/dev/fuse", "/dev/fuse", "rw"),
    ],
)
def test_forms(text: str, source: str, target: str, access: str) -> None:
    """Docker's forms; m, which no user namespace can honour, is left out."""
    assert parse_device(text) == Device(source=source, target=target, access=access)


@pytest.mark.parametrize(
    "text",
    ["fuse", "/dev/fuse:dev/x", "/dev/fuse:/dev/x:q", "/dev/fuse:/dev/x:m", "/a:/b:r:w", "/dev/fuse:/proc/x", ""],
)
def test_bad_forms(text: str) -> None:
    """What is no device option is refused."""
    with pytest.raises(InvalidOption, match="device"):
        parse_device(text)


def test_links_are_followed(tmp_path: Path) -> None:
    """What is checked is what will be shown: the node behind a link."""
    (tmp_path / "link").symlink_to("/dev/null")
    asked = Device(source=str(tmp_path / "link"), target="/dev/x")
    assert resolved_devices([asked]) == (Device(source="/dev/null", target="/dev/x"),)


def test_refused_files(tmp_path: Path) -> None:
    """A file is no device, and what is not there is said to be so."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidOption, match=r"not a device.*use -v"):
        resolved_devices([Device(source=str(tmp_path / "file"), target="/dev/x")])
    with pytest.raises(InvalidOption, match="cannot be found"):
        resolved_devices([Device(source=str(tmp_path / "none"), target="/dev/x")])
    with pytest.raises(InvalidOption, match="no device in it"):
        resolved_devices([Device(source=str(tmp_path), target="/dev/x")])


@pytest.mark.root
def test_folders_and_dangerous_devices(tmp_path: Path) -> None:
    """A folder gives its character devices; disks, and the machine's memory and log, are not given."""
    for name, kind, number in (
        ("one", stat.S_IFCHR, os.makedev(1, 5)),
        ("disk", stat.S_IFBLK, os.makedev(8, 0)),
        ("mem", stat.S_IFCHR, os.makedev(1, 1)),
        ("kmsg", stat.S_IFCHR, os.makedev(1, 11)),
    ):
        os.mknod(tmp_path / name, kind | 0o600, number)
    with pytest.raises(InvalidOption, match="is a disk"):
        resolved_devices([Device(source=str(tmp_path / "disk"), target="/dev/x")])
    for name in ("mem", "kmsg"):
        with pytest.raises(InvalidOption, match="own memory or log"):
            resolved_devices([Device(source=str(tmp_path / name), target="/dev/x")])
        os.unlink(tmp_path / name)
    found = resolved_devices([Device(source=str(tmp_path), target="/dev/set", access="r")])
    assert found == (Device(source=str(tmp_path / "one"), target="/dev/set/one", access="r"),)


@pytest.mark.root
def test_nodes() -> None:
    """A node made for a container has the machine's number, and the permissions asked for, for everybody."""
    tree = device_nodes(
        [Device(source="/dev/null", target="/dev/a"), Device(source="/dev/zero", target="/dev/b", access="r")]
    )
    try:
        first, second = (os.stat(name, dir_fd=tree) for name in ("0", "1"))
        assert (first.st_rdev, stat.S_IMODE(first.st_mode), first.st_uid) == (os.makedev(1, 3), 0o666, 0)
        assert (second.st_rdev, stat.S_IMODE(second.st_mode)) == (os.makedev(1, 5), 0o444)
    finally:
        os.close(tree)
