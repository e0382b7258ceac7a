"""The build context: what is read of it, what is left out, and what it cannot be."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import tarfile
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.build import context as contexts
from nbcontainer.build.request import ContextSource
from nbcontainer.build.scratch import Scratch
from nbcontainer.build.sources import Selection
from nbcontainer.errors import InvalidInput, InvalidOption, NbcontainerError, NotFound, StorageError
from nbcontainer.testing.images import tiny_layer
from tests.build.trees import made

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


@contextlib.contextmanager
def opened(source: ContextSource) -> Iterator[contexts.Context]:
    """A context, of which nothing is left when it is closed."""
    with tempfile.TemporaryDirectory() as place:
        try:
            with contexts.opened(source, Scratch(place)) as context:
                yield context
        finally:
            assert os.listdir(place) == []


def read(folder: Path, name: str = "", **files: bytes) -> tuple[bytes, str]:
    """The Dockerfile of a context."""
    with opened(ContextSource(folder=str(folder), files=files)) as context:
        return context.dockerfile(name)


def test_dockerfiles(tmp_path: Path) -> None:
    """A Dockerfile goes by its name, by that of its variable, or in small letters, in a folder below, too."""
    folder = made(tmp_path / "c", {"dockerfile": "small", "sub/Other": "other", "link": "->sub/Other"})
    assert read(folder) == (b"small", "dockerfile")
    (folder / "Dockerfile").write_text("big")
    assert read(folder) == (b"big", "Dockerfile")
    assert read(folder, "sub/Other") == (b"other", "sub/Other")
    assert read(folder, "link") == (b"other", "link")
    assert read(folder, Dockerfile=b"variable") == (b"variable", "Dockerfile")
    with opened(ContextSource(files={"Dockerfile": b"alone"})) as context:
        assert context.dockerfile("") == (b"alone", "Dockerfile")


@pytest.mark.parametrize("name", ["", "nowhere", "sub/nowhere", "file/x"])
def test_no_dockerfile(tmp_path: Path, name: str) -> None:
    """One that is not there is told by the name that was asked for, with what else to do."""
    with pytest.raises(NotFound, match=rf"there is no {name or 'Dockerfile'} in the build context.*-f"):
        read(made(tmp_path / "c", {"file": "x", "sub": None}), name)


@pytest.mark.parametrize(
    "target", ["{outside}/secret", "../outside/secret", "../../../../../../..{outside}/secret", "/proc/self/environ"]
)
def test_links_out_of_the_context(tmp_path: Path, target: str) -> None:
    """A Dockerfile, its folder or a .dockerignore that leads out leads to the same path inside, where nothing is."""
    outside = made(tmp_path / "outside", {"secret": "s", ".dockerignore": "*"})
    path = target.format(outside=outside)
    folder = made(tmp_path / "c", {"Dockerfile": f"->{path}", "sub": f"->{os.path.dirname(path)}", "a": "x"})
    (folder / ".dockerignore").symlink_to(outside / ".dockerignore")
    for name in ("", "Dockerfile", "sub/secret", "sub/environ"):
        with pytest.raises((NotFound, InvalidInput)):
            read(folder, name)
    with opened(ContextSource(folder=str(folder))) as context:
        assert context.ignoring("Dockerfile").tree.tops(Selection(sources=("a",)))


@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore", "Dockerfile.dockerignore"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_no_file(tmp_path: Path, name: str, kind: str) -> None:
    """What is no file in the place of one is refused at once."""
    folder = made(tmp_path / "c", {"Dockerfile": "FROM x"} if "ignore" in name else {})
    if kind == "folder":
        (folder / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to(name)
    with opened(ContextSource(folder=str(folder))) as context, pytest.raises(InvalidInput, match=name):
        context.ignoring(context.dockerfile("")[1])


def test_a_huge_dockerfile(tmp_path: Path) -> None:
    """A file that cannot be a Dockerfile is not read whole."""
    folder = made(tmp_path / "c", {})
    with open(folder / "Dockerfile", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInput, match="is it the right file"):
        read(folder)


def left(folder: Path, dockerfile: str, **files: bytes) -> list[str]:
    """The names of a context without what is left out."""
    with opened(ContextSource(folder=str(folder), files=files)) as context:
        tree = context.ignoring(dockerfile).tree
        return [top.name for top in tree.tops(Selection(sources=("*",)))]


def test_what_is_left_out(tmp_path: Path) -> None:
    """The Dockerfile's own list counts instead of the common one; a variable can be the list."""
    files = {"a": "", "b": "", ".dockerignore": "a\n.*\n*.dockerignore\n", "x.dockerignore": "b\n.*\n*.dockerignore\n"}
    folder = made(tmp_path / "c", files)
    assert left(folder, "Dockerfile") == ["b"]
    assert left(folder, "x") == ["a"]
    assert left(folder, "") == ["b"]
    with opened(ContextSource(folder=str(folder), files={".dockerignore": b"[ab]\nx*\n"})) as context:
        assert [top.name for top in context.ignoring("").tree.tops(Selection(sources=("*",)))] == [".dockerignore"]


def test_dockerignore_in_a_folder(tmp_path: Path) -> None:
    """The list of a Dockerfile in a folder lies beside it; its patterns are from the context's root on."""
    folder = made(tmp_path / "c", {"a": "", "sub/Dockerfile": "", "sub/Dockerfile.dockerignore": "a\n"})
    assert left(folder, "sub/Dockerfile") == ["sub"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b", "../x"])
def test_names_of_variables(name: str) -> None:
    """A variable's name is one part of a path."""
    with pytest.raises(InvalidOption, match="cannot be the name"), opened(ContextSource(files={name: b""})):
        pass


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    """A folder that is not there, or is none, is told as it was written."""
    made(tmp_path / "c", {"file": "x"})
    with pytest.raises(NotFound, match="nowhere does not exist"), opened(ContextSource(folder=f"{tmp_path}/nowhere")):
        pass
    with pytest.raises(InvalidInput, match="is no folder"), opened(ContextSource(folder=f"{tmp_path}/c/file")):
        pass


# --- archives -------------------------------------------------------------------------------------------------------


def unpacked(data: bytes) -> dict[str, str]:
    """Names and contents of a context that is an archive."""
    with opened(ContextSource(archive=io.BytesIO(data))) as context:
        found = {}
        root = f"/proc/self/fd/{context.tree.root_fd}"
        for directory, _, names in os.walk(root):
            for name in names:
                path = os.path.join(directory, name)
                is_link = os.path.islink(path)
                with open(os.devnull if is_link else path, encoding="latin-1") as file:
                    found[os.path.relpath(path, root)] = f"-> {os.readlink(path)}" if is_link else file.read()
        return found


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_archives(compress: Any) -> None:
    """A tar, compressed or not, is a context, and its files go away with it."""
    data = compress(tiny_layer({"Dockerfile": b"FROM x", "d": None, "d/a": b"a"}))
    assert unpacked(data) == {"Dockerfile": "FROM x", "d/a": "a"}


def link(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link for an archive."""
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    "files",
    [
        {"../../../../../../../../../..{outside}/x": b"mine"},
        {"{outside}/x": b"mine"},
        {"out": "{outside}", "out/x": b"mine"},
        {"out": "{outside}/secret", "out/": None},
        {"a": "b", "b": "{outside}", "a/x": b"mine"},
        {"out": ("hard", "{outside}/secret"), "x": b"x"},
        {"out": ("hard", "../../../../../../../..{outside}/secret")},
        {"l": "{outside}", "out": ("hard", "l/secret")},
        {"": "{outside}", "x": b"mine"},
    ],
    ids=str,
)
def test_archives_that_want_out(tmp_path: Path, files: Mapping[str, Any]) -> None:
    """Whatever an archive says, nothing outside its folder is written or read, and its folder goes away."""
    outside = made(tmp_path / "outside", {"secret": "s3cr3t"})
    entries: dict[str, Any] = {}
    for name, content in files.items():
        made_of = content
        if isinstance(content, str):
            made_of = link(content.format(outside=outside))
        elif isinstance(content, tuple):
            made_of = link(content[1].format(outside=outside), tarfile.LNKTYPE)
        entries[name.format(outside=outside)] = made_of
    try:
        found = unpacked(tiny_layer(entries))
    except NbcontainerError:
        found = {}
    assert "s3cr3t" not in found.values()
    assert os.listdir(outside) == ["secret"]
    assert (outside / "secret").read_text() == "s3cr3t"
    assert (outside / "secret").stat().st_nlink == 1


@pytest.mark.parametrize("data", [b"no tar" * 200, tiny_layer({"a": b"x" * 2000})[:1000], gzip.compress(b"x")[:-4]])
def test_no_archive(data: bytes) -> None:
    """What is no tar, or half of one, is refused, and leaves nothing."""
    with pytest.raises(InvalidInput, match="build context"), opened(ContextSource(archive=io.BytesIO(data))):
        pass


def test_no_room_for_an_archive() -> None:
    """A disk that is full while an archive is unpacked is told with the folder, and nothing is left there."""

    class Full(io.BytesIO):
        """Stands for the disk: the first read says what a write would say."""

        def read(self, size: int | None = -1) -> bytes:
            """Fail."""
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), size)

    source = ContextSource(archive=Full())
    with pytest.raises(StorageError, match="No space left on device; make room"), opened(source):
        pass


def test_archive_with_closed_folders() -> None:
    """Folders that an archive closes to everybody go away, too."""
    closed = tarfile.TarInfo()
    closed.type, closed.mode = tarfile.DIRTYPE, 0
    with opened(ContextSource(archive=io.BytesIO(tiny_layer({"d": closed, "d/x": b"x"})))):
        pass
