"""``RUN --mount``: what a command gets, what of it counts for the cache, what is refused."""

from __future__ import annotations

import contextlib
import os
import posixpath
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.build.mounts import Mounted, MountMaker, mount_texts
from nbcontainer.build.sources import FileTree
from nbcontainer.dockerfile.mounts import BindRunMount, CacheRunMount, SecretRunMount, SshRunMount, TmpfsRunMount
from nbcontainer.errors import InvalidInput, InvalidOption, NotFound, StorageError
from nbcontainer.model import Mount, MountedFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from nbcontainer.dockerfile.mounts import RunMount


class Bench:
    """The part of a workshop that locks and agents need: a folder, and a socket that leads to another."""

    owners = True

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    @contextlib.contextmanager
    def open_socket_to(self, path: str, *, mode: int, uid: int, gid: int) -> Iterator[str]:
        """Say where it would be."""
        yield f"{path}:{mode:o}:{uid}:{gid}"


class Stop(Exception):
    """What a stopped build raises."""


def making(folder: Path, undo: contextlib.ExitStack, **options: Any) -> MountMaker:
    """Somebody who makes the mounts of a RUN in the WORKDIR /work."""

    def stage(name: str) -> None:
        assert name

    return MountMaker(
        **{
            "workshop": Bench(folder),
            "maker": None,
            "cache": None,
            "context": FileTree(root_fd=-1, name="the build context"),
            "secrets": {},
            "agents": {},
            "source": stage,
            "resolved": lambda path: posixpath.normpath(posixpath.join("/work", path)),
            "check": lambda: None,
            "undo": undo,
            **options,
        }
    )


def mounted(folder: Path, *asked: RunMount, **options: Any) -> Mounted:
    """What a command gets."""
    with contextlib.ExitStack() as undo:
        found = making(folder, undo, **options).mount(asked)
        for make in found.makers:
            make()
        return found


# --- secrets --------------------------------------------------------------------------------------------------------


def test_secrets(tmp_path: Path) -> None:
    """A secret is a file, a variable, or both, with the mode and owner that were asked for."""
    asked = (
        SecretRunMount(id="a", target="/run/secrets/a"),
        SecretRunMount(id="a", env="A"),
        SecretRunMount(id="b", target="below", env="B", mode=0o444, uid=5, gid=6),
    )
    found = mounted(tmp_path, *asked, secrets={"a": b"one", "b": b"two\xff"})
    assert found.files == [
        MountedFile(target="/run/secrets/a", data=b"one", mode=0o400, uid=0, gid=0),
        MountedFile(target="/work/below", data=b"two\xff", mode=0o444, uid=5, gid=6),
    ]
    assert found.variables == {"A": "one", "B": "two\udcff"}
    assert found.mounts == []


def test_a_secret_does_not_count(tmp_path: Path) -> None:
    """No byte of a secret is in the key, nor in what is shown of the mounts; whether there is one has no say either."""
    asked = SecretRunMount(id="a", target="/a", env="A")
    keys = [mounted(tmp_path, asked, secrets=given).key for given in ({"a": b"w0rd"}, {"a": b"other"}, {})]
    assert keys[0] == keys[1] == keys[2]
    assert "w0rd" not in repr(mounted(tmp_path, asked, secrets={"a": b"w0rd"}).files)
    assert mount_texts([asked]) == ("secret at /a",)


def test_secrets_that_are_not_given(tmp_path: Path) -> None:
    """One that is required and not given ends the build with the way to give it; another is just not there."""
    with pytest.raises(NotFound, match="--secret id=a,src=FILE"):
        mounted(tmp_path, SecretRunMount(id="a", target="/a", required=True))
    assert mounted(tmp_path, SecretRunMount(id="a", target="/a", env="A")).files == []


def test_secrets_that_cannot_be(tmp_path: Path) -> None:
    """A secret has bounds, and a variable no NUL; the sentence has nothing of the secret in it."""
    with pytest.raises(InvalidInput, match="has 512001 bytes"):
        mounted(tmp_path, SecretRunMount(id="a", target="/a"), secrets={"a": b"x" * 512_001})
    with pytest.raises(InvalidInput, match="NUL") as caught:
        mounted(tmp_path, SecretRunMount(id="a", env="A"), secrets={"a": b"w0rd\0"})
    assert "w0rd" not in str(caught.value)


# --- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/proc",
        "/proc/sys",
        "/sys",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/null",
        "..",
        "/x/../proc",
        "../proc/1",
        "/./dev//",
    ],
)
def test_targets_of_the_sandbox(tmp_path: Path, target: str) -> None:
    """Nothing is mounted where the sandbox has its own, however the target is written."""
    asked: Sequence[RunMount] = (
        TmpfsRunMount(target=target),
        SecretRunMount(id="a", target=target),
        CacheRunMount(target=target, id="x"),
        BindRunMount(target=target),
    )
    for each in asked:
        with pytest.raises(InvalidInput, match="choose another"):
            mounted(tmp_path, each, secrets={"a": b"x"})


@pytest.mark.parametrize(
    ("target", "place"), [("/dev/shm", "/dev/shm"), ("/process", "/process"), ("a/b", "/work/a/b")]
)
def test_other_targets(tmp_path: Path, target: str, place: str) -> None:
    """Shared memory is the container's to cover; a target without a slash is below the WORKDIR."""
    found = mounted(tmp_path, TmpfsRunMount(target=target, size=4096, readonly=True))
    assert found.mounts == [Mount(kind="tmpfs", target=place, size=4096, mode=0o1777, read_only=True)]


def test_no_such_source(tmp_path: Path) -> None:
    """A stage without files, and a file that is not there, cannot be mounted."""
    with pytest.raises(InvalidInput, match="--mount=from=empty has no files"):
        mounted(tmp_path, BindRunMount(target="/m", from_="empty"))
    with pytest.raises(NotFound, match="'nowhere' is not in the build context"):
        mounted(tmp_path, BindRunMount(target="/m", source="nowhere"))


def test_texts() -> None:
    """What is mounted can be told in a few words."""
    asked = (BindRunMount(target="/a"), CacheRunMount(target="b", id="b"), TmpfsRunMount(target="/c"), SshRunMount())
    assert mount_texts(asked) == ("bind at /a", "cache at b", "tmpfs at /c", "ssh at a place of its own")


# --- agents ---------------------------------------------------------------------------------------------------------


def test_agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent is a socket of its own for the command, told in a variable; the first one counts."""
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind("agent")
        asked = (SshRunMount(), SshRunMount(id="other", target="/s", mode=0o666, uid=1, gid=2))
        found = mounted(tmp_path, *asked, agents={"default": "agent", "other": "agent"})
    assert [(mount.source, mount.target) for mount in found.mounts] == [
        ("agent:600:0:0", "/run/buildkit/ssh_agent.0"),
        ("agent:666:1:2", "/s"),
    ]
    assert found.variables == {"SSH_AUTH_SOCK": "/run/buildkit/ssh_agent.0"}


def test_agents_that_are_not_there(tmp_path: Path) -> None:
    """An agent that is required, is no socket, or is gone is told with its id."""
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotFound, match="--ssh default"):
        mounted(tmp_path, SshRunMount(required=True))
    with pytest.raises(InvalidOption, match="is no socket"):
        mounted(tmp_path, SshRunMount(), agents={"default": str(file)})
    with pytest.raises(NotFound, match="there is no socket"):
        mounted(tmp_path, SshRunMount(), agents={"default": str(tmp_path / "gone")})
    assert mounted(tmp_path, SshRunMount()).mounts == []


# --- caches ---------------------------------------------------------------------------------------------------------


def test_private_caches(tmp_path: Path) -> None:
    """Each of those that use a private cache at once has one of its own, and the first is used again."""
    with contextlib.ExitStack() as undo:
        maker = making(tmp_path, undo)
        assert [maker._locked("c", "private") for _ in range(3)] == ["c", "c-1", "c-2"]
    with contextlib.ExitStack() as undo:
        maker = making(tmp_path, undo)
        assert maker._locked("c", "private") == "c"
        for _ in range(63):
            maker._locked("c", "private")
        with pytest.raises(StorageError, match="64 builds use the same private cache"):
            maker._locked("c", "private")


def test_shared_caches(tmp_path: Path) -> None:
    """Any number may share a cache."""
    with contextlib.ExitStack() as undo:
        maker = making(tmp_path, undo)
        assert [maker._locked("c", "shared") for _ in range(3)] == ["c"] * 3


def test_locked_caches(tmp_path: Path) -> None:
    """A locked cache is waited for until it is free, or until the build is stopped."""
    stopped = threading.Event()

    def check() -> None:
        if stopped.is_set():
            raise Stop

    with contextlib.ExitStack() as undo:
        holder = contextlib.ExitStack()
        making(tmp_path, holder)._locked("c", "locked")
        timer = threading.Timer(0.2, holder.close)
        timer.start()
        began = time.monotonic()
        waiting = making(tmp_path, undo, check=check)
        assert waiting._locked("c", "locked") == "c"
        assert time.monotonic() - began > 0.15
        timer.join()
        other = threading.Timer(0.2, stopped.set)
        other.start()
        with contextlib.ExitStack() as undo_too, pytest.raises(Stop):
            making(tmp_path, undo_too, check=check)._locked("c", "shared")
        other.join()
    assert sorted(os.listdir(tmp_path / "locks")) == ["c"]


def test_what_counts_of_caches(tmp_path: Path) -> None:
    """Id, target and where a cache begins count for the key; who else uses it and the mode do not."""
    keys = {
        repr(making(tmp_path, contextlib.ExitStack()).mount([each]).key)
        for each in (
            CacheRunMount(target="/a", id="x"),
            CacheRunMount(target="/a", id="x", sharing="locked", mode=0o700),
            CacheRunMount(target="/a", id="y"),
            CacheRunMount(target="/b", id="x"),
            CacheRunMount(target="/a", id="x", from_="stage"),
            CacheRunMount(target="/a", id="x", readonly=True),
        )
    }
    assert len(keys) == 5


@pytest.mark.parametrize("identity", ["../../etc", "/", "a/b", "..", "x" * 5000, "a\x00b", "\udcff", ".", "\x1b[31m"])
def test_names_of_caches(tmp_path: Path, identity: str) -> None:
    """A cache's id is no path: its folder is named by a digest of it."""
    made_names: list[str] = []

    class Maker:
        """Notes which folders are to be made."""

        def call(self, function: str, arguments: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
            """Make none."""
            assert function == "make_folder"
            assert len(fds) == 1
            made_names.append(arguments["name"])
            return {"made": True}

    (tmp_path / "mounts").mkdir()
    found = mounted(tmp_path, CacheRunMount(target="/c", id=identity), maker=Maker())
    (name,) = made_names
    assert name.startswith("cache-")
    assert name.removeprefix("cache-").isalnum()
    assert found.mounts[0].source == f"{tmp_path}/mounts/{name}"
