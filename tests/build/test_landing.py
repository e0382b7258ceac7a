"""Where copies go in a stage, decided as docker's COPY does; without a mount, on a folder as the stage's root."""

from __future__ import annotations

import os
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.landing import _Lander, _take_away, land, make_folder, placed_name, write_folders
from nbcontainer.errors import InvalidInput
from tests.build.trees import made, tar_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from nbcontainer.layers.pack import TarWriter

STAGE = {
    "etc/passwd": "root:x:0:0::/:/bin/sh\n",
    "real/below/x": "x",
    "alias": "->/real",
    "relative": "->real/below",
    "up": "->../../../../real",
    "dangling": "->/made/later",
    "loop": "->loop",
    "alias-file": "->/etc/passwd",
}


@contextmanager
def lander(folder: Path) -> Iterator[_Lander]:
    """Somebody who decides for a COPY into this root."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _Lander(fd, (1, 2))
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("destination", "name", "kind", "place"),
    [
        ("/new", "a", "file", "new"),
        ("/new/", "a", "file/", "new/a"),
        ("/new/deep/b", "a", "file", "new/deep/b"),
        ("/real", "a", "file", "real/a"),
        ("/real/below/x", "a", "file", "real/below/x"),
        ("/", "a", "file/", "a"),
        ("/", "d", "folder/", ""),
        ("/real", "d", "folder", "real"),
        ("/new", "d", "folder", "new"),
        ("/alias", "a", "file", "real/a"),
        ("/alias/z", "a", "file", "real/z"),
        ("/alias/below", "a", "file", "real/below/a"),
        ("/relative", "a", "file", "real/below/a"),
        ("/up/z", "a", "file", "real/z"),
        ("/dangling", "a", "file", "made/later"),
        ("/dangling", "d", "folder", "made/later"),
        ("/dangling/", "a", "file/", "made/later/a"),
        ("/alias-file", "a", "file", "etc/passwd"),
        ("/../../etc/new", "a", "file", "etc/new"),
        ("/alias/../etc/new", "a", "file", "etc/new"),
        ("/relative/../z", "a", "file", "real/z"),
        ("/nowhere/../z", "a", "file", "z"),
    ],
)
def test_places(tmp_path: Path, destination: str, name: str, kind: str, place: str) -> None:
    """A place is a path without links below the root, whatever the destination goes through."""
    with lander(made(tmp_path / "stage", STAGE)) as decides:
        is_dir, directory = kind.startswith("folder"), kind.endswith("/")
        found = decides.place(destination, name, is_dir=is_dir, directory=directory, parents=False)
    assert found == place


def test_links_that_lead_out(tmp_path: Path) -> None:
    """A link to a path of the machine is that path in the stage, and what lies there is not looked at."""
    outside = made(tmp_path / "outside", {"here": None})
    stage = made(tmp_path / "stage", {"out": f"->{outside}", "self": "->/proc/self/root", "cwd": "->/proc/self/cwd"})
    with lander(stage) as decides:
        assert decides.place("/out/here", "a", is_dir=False, directory=False, parents=False) == f"{outside}/here"[1:]
        for link, target in (("self", "proc/self/root"), ("cwd", "proc/self/cwd")):
            assert decides.place(f"/{link}/x", "a", is_dir=False, directory=False, parents=False) == f"{target}/x"
        made_of = [each["path"] for each in decides.folders if "mtime" not in each]
    assert str(outside)[1:] in made_of


def test_folders_that_are_copied(tmp_path: Path) -> None:
    """With --parents a new folder is made as its source is, and one that is there gets its mode."""
    stage = made(tmp_path / "stage", STAGE)
    with lander(stage) as decides:
        decides.expect("/alias/x", (0o2711, 5, 6, 0o711), owned=True)
        decides.expect("/alias", (0o2700, 5, 6, 0o700), owned=True)
        decides.expect("/new", (0o770, 5, 6, 0o777), owned=False)
        decides.expect("/unused", (0, 0, 0, 0), owned=True)
        decides.place("/alias/", "x/y", is_dir=False, directory=True, parents=True)
        decides.place("/new", "z", is_dir=True, directory=True, parents=True)
        folders = {each["path"]: (each["mode"], each["uid"], each["gid"]) for each in decides.folders}
    assert folders == {
        "real": (0o700, os.getuid(), os.getgid()),
        "real/x": (0o2711, 5, 6),
        "new": (0o770, 1, 2),
        "new/z": (0o755, 1, 2),
    }


@pytest.mark.parametrize(
    ("destination", "is_dir", "directory", "sentence"),
    [
        ("/etc/passwd", True, False, "a folder cannot be copied onto it"),
        ("/etc/passwd/", False, True, "nothing can be put into it"),
        ("/etc/passwd/x", False, False, "/etc/passwd is a file in the stage"),
        ("/alias-file/x", False, False, "/etc/passwd is a file in the stage"),
        ("/loop/x", False, False, "too many symbolic links"),
    ],
)
def test_no_place(tmp_path: Path, destination: str, is_dir: bool, directory: bool, sentence: str) -> None:
    """What is in the way is told."""
    with lander(made(tmp_path / "stage", STAGE)) as decides, pytest.raises(InvalidInput, match=sentence):
        decides.place(destination, "a", is_dir=is_dir, directory=directory, parents=False)


def test_folders_on_the_way(tmp_path: Path) -> None:
    """Folders that are there stay as they are; new ones belong to whom the copies do; each is noted once."""
    stage = made(tmp_path / "stage", STAGE)
    (stage / "real").chmod(0o1750)
    with lander(stage) as decides:
        decides.place("/alias/new/x", "a", is_dir=False, directory=False, parents=False)
        decides.place("/real/new/y", "a", is_dir=False, directory=False, parents=False)
        folders = {each["path"]: each for each in decides.folders}
        assert len(folders) == len(decides.folders)
    assert list(folders) == ["real", "real/new"]
    assert (folders["real"]["mode"], folders["real"]["uid"]) == (0o1750, os.getuid())
    assert (folders["real/new"]["mode"], folders["real/new"]["uid"], folders["real/new"]["gid"]) == (0o755, 1, 2)


def test_parents(tmp_path: Path) -> None:
    """With --parents the names of sources are paths below the destination."""
    with lander(made(tmp_path / "stage", STAGE)) as decides:
        assert decides.place("/real", "x/y", is_dir=False, directory=True, parents=True) == "real/x/y"
        assert decides.place("/real", "x/z", is_dir=True, directory=True, parents=True) == "real/x/z"
        assert [each["path"] for each in decides.folders] == ["real", "real/x", "real/x/z"]


@pytest.mark.parametrize(
    ("below", "is_dir", "sentence"),
    [
        ("below", False, "there is a folder there"),
        ("below/x", True, "something there that is no folder"),
        ("below/x", False, ""),
        ("below", True, ""),
        ("new", False, ""),
        ("new", True, ""),
    ],
)
def test_nothing_replaces_another_kind(tmp_path: Path, below: str, is_dir: bool, sentence: str) -> None:
    """A file never replaces a folder, nor a folder a file."""
    with lander(made(tmp_path / "stage", STAGE)) as decides:
        entries = [[0, "", True], [0, below, is_dir]]
        if not sentence:
            decides.check(["real"], [["d", True]], entries)
            return
        with pytest.raises(InvalidInput, match=sentence):
            decides.check(["real"], [["d", True]], entries)


def test_a_stage_without_files() -> None:
    """In an empty stage every folder is made."""
    asked = {
        "view": None,
        "owner": "",
        "destination": "/a/b/",
        "directory": True,
        "parents": False,
        "tops": [["x", False], ["d", True]],
        "entries": [[0, "", False], [1, "", True]],
    }
    answer = land(asked, ())
    assert answer["places"] == ["a/b/x", "a/b"]
    assert [each["path"] for each in answer["folders"]] == ["a", "a/b"]
    assert answer["owner"] is None


def test_written_folders() -> None:
    """Noted folders become entries with all that they had."""
    folders = [
        {"path": "a/b", "mode": 0o1777, "uid": 3, "gid": 4, "mtime": 5_000_000_000, "xattrs": {"user.x": "7879"}}
    ]

    def produce(writer: TarWriter) -> None:
        write_folders(writer, folders)

    (member,) = tar_of(produce).values()
    assert (member.name, member.type, member.mode, member.uid, member.gid, member.mtime) == (
        "a/b",
        tarfile.DIRTYPE,
        0o1777,
        3,
        4,
        5,
    )


@pytest.mark.parametrize(
    ("place", "below", "name"),
    [("", "x", b"x"), ("a", "", b"a"), ("a/b", "c/d", b"a/b/c/d"), ("a", "\udcff", b"a/\xff"), (".whx", "", b".whx")],
)
def test_placed_names(place: str, below: str, name: bytes) -> None:
    """The name of an entry is its place and what is below it, in the bytes that it had."""
    assert placed_name(place, below) == name


@pytest.mark.parametrize(("place", "below"), [(".wh.x", ""), ("a/.wh..wh..opq", ""), ("a", "b/.wh.c"), ("a/.wh.", "b")])
def test_deletions_are_no_names(place: str, below: str) -> None:
    """A name that says in a layer that something is deleted is refused."""
    with pytest.raises(InvalidInput, match="choose another name"):
        placed_name(place, below)


# --- what was only made to mount on ---------------------------------------------------------------------------------


@contextmanager
def opened(*folders: Path) -> Iterator[list[int]]:
    """Descriptors of folders."""
    fds = [os.open(each, os.O_RDONLY | os.O_DIRECTORY) for each in folders]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def test_targets_are_taken_away(tmp_path: Path) -> None:
    """An empty file or folder that was made to mount on goes, and the empty folders that were made for it."""
    upper = made(tmp_path / "upper", {"a/b/c": None, "d/e": "", "f/g": None, "f/kept": "x", "h/i": None})
    lower = made(tmp_path / "lower", {"h/i": None, "f": None})
    with opened(upper, lower) as (upper_fd, lower_fd):
        for path in ("a/b/c", "d/e", "f/g", "h/i", "nowhere/x"):
            _take_away(upper_fd, lower_fd, path)
    assert sorted(os.listdir(upper)) == ["f", "h"]
    assert os.listdir(upper / "f") == ["kept"]
    assert (upper / "h/i").is_dir()


def test_what_a_command_left_there_stays(tmp_path: Path) -> None:
    """A target that is not empty any more, or is something else by now, is the command's own."""
    upper = made(tmp_path / "upper", {"file": "written", "folder/x": "", "link": "->folder"})
    with opened(upper) as (upper_fd,):
        for path in ("file", "folder", "link"):
            _take_away(upper_fd, -1, path)
    assert sorted(os.listdir(upper)) == ["file", "folder", "link"]


def test_nothing_is_taken_away_through_a_link(tmp_path: Path) -> None:
    """CVE-2024-23652: a link that the command left on the way to a target protects what it leads to."""
    outside = made(tmp_path / "outside", {"folder": None, "file": ""})
    upper = made(tmp_path / "upper", {"way": f"->{outside}", "up": "->../outside", "in/way": f"->{outside}"})
    with opened(upper) as (upper_fd,):
        for way in ("way", "up", "in/way"):
            for name in ("folder", "file", "folder/deeper"):
                _take_away(upper_fd, -1, f"{way}/{name}")
    assert sorted(os.listdir(outside)) == ["file", "folder"]


# --- folders of caches ----------------------------------------------------------------------------------------------


def test_folders_are_made_once(tmp_path: Path) -> None:
    """A new folder gets its mode; one that is there keeps what it has."""
    with opened(tmp_path) as (fd,):
        asked = {"name": "cache", "mode": 0o2775, "uid": 0, "gid": 0, "owners": False}
        assert make_folder(asked, [fd]) == {"made": True}
        assert (tmp_path / "cache").stat().st_mode & 0o7777 == 0o2775
        assert make_folder({**asked, "mode": 0o700}, [fd]) == {"made": False}
        assert (tmp_path / "cache").stat().st_mode & 0o7777 == 0o2775


def test_a_link_is_no_folder(tmp_path: Path) -> None:
    """A link in the place of a folder to make is not followed."""
    outside = made(tmp_path / "outside", {})
    before = outside.stat()
    (tmp_path / "cache").symlink_to(outside)
    with opened(tmp_path) as (fd,):
        make_folder({"name": "cache", "mode": 0o777, "uid": 0, "gid": 0, "owners": False}, [fd])
    assert outside.stat().st_mode == before.st_mode
