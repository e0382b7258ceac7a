"""A person shows folders and files of the machine to a container."""

from __future__ import annotations

import os
import shutil
import socket
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidOption
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.tiers import Tier


def give(tier: Tier, path: Path) -> Path:
    """Make a path the acting person's own."""
    if tier.user is not None:
        os.chown(path, tier.user.uid, tier.user.gid)
    return path


def test_folder_both_ways(tier: Tier) -> None:
    """Files made on either side are read on the other, and belong to the person on both."""
    folder = tier.folder("work")
    (folder / "outside").write_text("out\n")
    give(tier, folder / "outside")
    script = "cat /work/outside; echo in > /work/inside; echo more >> /work/outside; stat -c '%u:%g %n' /work/*; mkdir /work/sub"
    result = tier.sh(script, volumes=[(folder, "/work", "rw")])
    assert result.stdout == "out\n0:0 /work/inside\n0:0 /work/outside\n"
    owner = (folder.stat().st_uid, folder.stat().st_gid)
    for name, text in (("inside", "in\n"), ("outside", "out\nmore\n")):
        state = (folder / name).stat()
        assert (state.st_uid, state.st_gid) == owner
        assert (folder / name).read_text() == text
    assert (folder / "sub").stat().st_uid == owner[0]


def test_read_only_folder(tier: Tier) -> None:
    """A read-only volume can be read and in no way changed."""
    folder = tier.folder("work")
    (folder / "file").write_text("text\n")
    give(tier, folder / "file")
    script = "cat /work/file; for try in 'echo x > /work/new' 'echo x >> /work/file' 'rm /work/file' 'chmod 777 /work' 'touch /work'; do sh -c \"$try\" && echo CHANGED; done; true"
    result = tier.run(script=script, volumes=[(folder, "/work", "ro")])
    assert result.stdout == "text\n"
    assert result.stderr.count("Read-only file system") == 5
    assert os.listdir(folder) == ["file"]


def test_single_file(tier: Tier) -> None:
    """One file can be shown over one of the image, or where the image has nothing."""
    folder = tier.folder("work")
    (folder / "file").write_text("mine\n")
    give(tier, folder / "file")
    volumes = [(folder / "file", "/etc/passwd", "ro"), (folder / "file", "/new/place/file", "rw")]
    result = tier.sh("cat /etc/passwd; echo more >> /new/place/file", volumes=volumes)
    assert result.stdout == "mine\n"
    assert (folder / "file").read_text() == "mine\nmore\n"


def test_volume_target_through_link(tier: Tier) -> None:
    """A target below a link of the image stays inside the container's root."""
    folder = tier.folder("work")
    (folder / "file").write_text("mine\n")
    result = tier.sh("cat /bin/../data/file", volumes=[(folder, "/data", "ro")])
    assert result.stdout == "mine\n"


def test_programs_of_volumes(tier: Tier) -> None:
    """Programs in a volume can be run."""
    folder = tier.folder("work")
    (folder / "program").write_text("#!/bin/sh\necho ran $1\n")
    (folder / "program").chmod(0o755)
    assert tier.run("/work/program", "well", volumes=[(folder, "/work", "ro")]).stdout == "ran well\n"


def test_several_users_of_a_volume(tier: Tier) -> None:
    """A user of the container that is not root cannot read what is closed to others outside."""
    if not tier.has_users:
        pytest.skip("needs several ids")
    folder = tier.folder("work")
    (folder / "secret").write_text("secret\n")
    (folder / "secret").chmod(0o600)
    give(tier, folder / "secret")
    result = tier.run("cat", "/work/secret", user="alice", volumes=[(folder, "/work", "rw")])
    assert result.exit_code == 1
    assert "Permission denied" in result.stderr


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("/nonesuch/folder", "/nonesuch/folder does not exist on this machine"),
        ("/", "would hand this machine"),
        ("/proc", "would hand this machine"),
        ("/proc/../proc/", "would hand this machine"),
        ("/sys", "would hand this machine"),
        ("/dev", "would hand this machine"),
        ("/etc", "would hand this machine"),
        ("//", "would hand this machine"),
        ("STORE", "would hand this machine"),
        ("LINK-TO-ROOT", "would hand this machine"),
        ("docker.sock", "would hand this machine"),
        ("LINK-TO-docker.sock", "would hand this machine"),
    ],
)
def test_refused_sources(tier: Tier, source: str, words: str) -> None:
    """A missing source, and one that would hand the machine over, is refused before anything is made."""
    folder = tier.folder("work")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "docker.sock"))
    (folder / "LINK-TO-ROOT").symlink_to("/")
    (folder / "LINK-TO-docker.sock").symlink_to("docker.sock")
    given = tier.store if source == "STORE" else source if source.startswith("/") else str(folder / source)
    with pytest.raises(Raised, match=words) as raised:
        tier.run("true", volumes=[(given, "/work", "ro")])
    assert raised.value.is_a(InvalidOption)


@pytest.mark.parametrize(
    "source",
    [
        "INSIDE-STORE",
        "ABOVE-STORE",
        "ABOVE-SOCKET",
        "/proc/self/root",
        "/proc/1",
        "/sys/kernel",
    ],
)
def test_refused_sources_around(tier: Tier, source: str) -> None:
    """What lies in the store or the kernel's file systems, or holds them, is refused as they are."""
    folder = tier.folder("work")
    (folder / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "run" / "docker.sock"))
    names = {
        "INSIDE-STORE": os.path.join(tier.store, "containers"),
        "ABOVE-STORE": os.path.dirname(tier.store),
        "ABOVE-SOCKET": str(folder / "run"),
    }
    with pytest.raises(Raised, match="would hand this machine"):
        tier.run("true", volumes=[(names.get(source, source), "/work", "ro")])


@pytest.mark.parametrize("target", ["/", "/proc", "/proc/x", "/sys/x", "/dev", "/dev/x", "/a/../proc", "//proc"])
def test_refused_targets(tier: Tier, target: str) -> None:
    """A volume over the root or over what the sandbox owns is refused."""
    with pytest.raises(Raised) as raised:
        tier.run("true", volumes=[(tier.folder("work"), target, "ro")])
    assert raised.value.is_a(InvalidOption)


def test_link_put_in_the_way(tier: Tier) -> None:
    """A source is mounted as it was checked: when a link takes its place in between, the start is refused."""
    folder = tier.folder("way")
    source = folder / "mine"
    source.mkdir()
    shutil.chown(source, os.stat(folder).st_uid, os.stat(folder).st_gid)
    tier.driver.begin("run_swapped", image=tier.image, source=str(source), link="/etc")
    with pytest.raises(Raised, match="symbolic link"):
        tier.driver.finish()
    assert source.is_symlink()


def test_more_than_can_be_handed_over(tier: Tier) -> None:
    """As root each volume is a descriptor, of which a message takes 253; more are refused, also where one waits."""
    folder = tier.folder("many")
    volumes = [(folder, f"/v{number}", "ro") for number in range(255)]
    for _ in range(2):
        if tier.privileged:
            with pytest.raises(Raised, match="volumes or layers at once are more than the 252 there can be"):
                tier.run("true", volumes=volumes)
        else:
            assert tier.run("true", volumes=volumes).ok
        assert tier.run("true", volumes=volumes[:1]).ok
