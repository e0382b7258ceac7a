"""What becomes of a built stage beside the store, and the names it may have."""

from __future__ import annotations

import os
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.outputs import aside, checked_tags, write_folder
from nbcontainer.errors import InvalidInput, InvalidOption, InvalidReference, NbcontainerError, StorageError
from nbcontainer.testing.images import tiny_layer
from tests.build.trees import made

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_tags() -> None:
    """Names are read before anything is built."""
    assert [name.familiar for name in checked_tags(("app", "host:5000/x/y:1"))] == ["app:latest", "host:5000/x/y:1"]
    assert checked_tags(()) == ()


@pytest.mark.parametrize("tag", ["host", "app@sha256:" + "0" * 64, "UPPER", "", "a b", "--x", "a:\x1b[31m", "../x"])
def test_tags_that_cannot_be(tag: str) -> None:
    """The machine's own root, digests and what is no name are refused."""
    with pytest.raises(InvalidReference) as caught:
        checked_tags(("fine", tag))
    assert "\x1b" not in str(caught.value)


# --- a file ---------------------------------------------------------------------------------------------------------


def test_a_file_is_there_when_it_is_whole(tmp_path: Path) -> None:
    """Until the end the name is what it was; afterwards it is the new file, which others may read."""
    path = tmp_path / "out"
    path.write_text("old")
    previous = os.umask(0o022)
    try:
        with aside(str(path)) as file:
            file.write(b"new")
            file.flush()
            assert path.read_text() == "old"
    finally:
        os.umask(previous)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["out"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """A build that fails while it is written leaves no file and no half of one."""

    class Broken(Exception):
        """What went wrong."""

    def attempt() -> None:
        with aside(str(tmp_path / "out")) as file:
            file.write(b"half")
            raise Broken

    with pytest.raises(Broken):
        attempt()
    assert os.listdir(tmp_path) == []


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """A link in the place of the file is replaced; what it leads to stays as it is."""
    outside = made(tmp_path / "outside", {"file": "kept"})
    folder = made(tmp_path / "out", {"result": f"->{outside}/file"})
    with aside(str(folder / "result")) as file:
        file.write(b"new")
    assert (outside / "file").read_text() == "kept"
    assert not (folder / "result").is_symlink()


def test_no_place_for_a_file(tmp_path: Path) -> None:
    """A folder, and a folder that is not there, are told as they were written."""
    with pytest.raises(InvalidInput, match="is a folder; name the file"), aside(str(tmp_path)):
        pass
    with pytest.raises(StorageError, match="nowhere/x cannot be written"), aside(str(tmp_path / "nowhere/x")):
        pass


# --- a folder -------------------------------------------------------------------------------------------------------


def giving(data: bytes) -> Callable[[int], None]:
    """Something that writes this tar."""

    def export(fd: int) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    return export


def link(target: str) -> tarfile.TarInfo:
    """A symbolic link."""
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    return entry


def test_files_in_a_folder(tmp_path: Path) -> None:
    """Files arrive with their contents, belong to whoever builds, and run with nobody else's rights."""
    program = tarfile.TarInfo()
    program.mode, program.uid = 0o6755, 12345
    folder = tmp_path / "deep/out"
    write_folder(str(folder), giving(tiny_layer({"d": None, "d/a": b"x", "run": program, "l": link("/etc/passwd")})))
    assert (folder / "d/a").read_text() == "x"
    assert os.readlink(folder / "l") == "/etc/passwd"
    found = (folder / "run").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o755, os.geteuid())


def test_links_of_an_earlier_output(tmp_path: Path) -> None:
    """Nothing is written through a link that an earlier output, or anybody else, has put into the folder."""
    outside = made(tmp_path / "outside", {"file": "kept"})
    folder = made(tmp_path / "out", {"way": f"->{outside}", "name": f"->{outside}/file"})
    with pytest.raises(NbcontainerError):
        write_folder(str(folder), giving(tiny_layer({"way/file": b"mine"})))
    write_folder(str(folder), giving(tiny_layer({"name": b"mine"})))
    assert (folder / "name").read_text() == "mine"
    assert (outside / "file").read_text() == "kept"
    assert os.listdir(outside) == ["file"]


def test_no_place_for_a_folder(tmp_path: Path) -> None:
    """A file in the place of the folder is told."""
    made(tmp_path / "t", {"file": "x"})
    with pytest.raises(InvalidOption, match="cannot be made"):
        write_folder(str(tmp_path / "t/file"), giving(tiny_layer({})))


def test_what_the_export_raises(tmp_path: Path) -> None:
    """An error of the side that gives the files is raised, and not hidden by that of the side that takes them."""

    def export(_: int) -> None:
        raise InvalidInput("the stage is gone")

    with pytest.raises(NbcontainerError):
        write_folder(str(tmp_path / "out"), export)
