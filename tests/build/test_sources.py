"""The files that COPY takes of a tree: found, named, left out, and what of them counts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.sources import FileTree, Selection, digest
from nbcontainer.dockerfile.ignore import Ignore
from nbcontainer.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Lend a small tree."""
    for name in ("a.txt", "b.txt", "sub/c.txt", "sub/deep/d.py", "logs/x.log", "logs/keep.log"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    top = tmp_path / "tree"
    (top / "link").symlink_to("sub")
    (top / "out").symlink_to("../../../../etc/passwd")
    (top / "loop").symlink_to("loop")
    return top


@pytest.fixture
def tree(folder: Path) -> Iterator[FileTree]:
    """Lend it as a context."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    yield FileTree(root_fd=fd, name="the build context")
    os.close(fd)


def found(tree: FileTree, *sources: str, **more) -> list[str]:
    """The paths that would be copied, below the tops' names."""
    selection = Selection(sources=sources, **more)
    tops = tree.tops(selection)
    return [f"{entry.top.name}|{entry.below}" for entry in tree.entries(tops, selection)]


@pytest.mark.parametrize(
    ("source", "paths"),
    [
        ("a.txt", ["a.txt|"]),
        ("/a.txt", ["a.txt|"]),
        ("../../a.txt", ["a.txt|"]),
        ("*.txt", ["a.txt|", "b.txt|"]),
        ("[ab].t?t", ["a.txt|", "b.txt|"]),
        ("sub", ["sub|", "sub|c.txt", "sub|deep", "sub|deep/d.py"]),
        ("link", ["link|", "link|c.txt", "link|deep", "link|deep/d.py"]),
        ("link/c.txt", ["c.txt|"]),
        ("s*/deep", ["deep|", "deep|d.py"]),
    ],
)
def test_sources(tree: FileTree, source: str, paths: list[str]) -> None:
    """Paths, patterns and links are found as docker finds them; names are those that were typed."""
    assert found(tree, source) == paths


def test_a_link_leads_nowhere_outside(tree: FileTree) -> None:
    """A link out of the context is looked up inside it, where there is nothing; one in a circle is an error."""
    with pytest.raises(NotFound, match="'out' is not in the build context"):
        found(tree, "out")
    with pytest.raises(InvalidInput, match="too many symbolic links"):
        found(tree, "loop")


def test_links_inside_are_copied_as_links(tree: FileTree) -> None:
    """Below a source no link is followed."""
    assert "|link" in found(tree, ".")
    assert not any(path.startswith("|link/") for path in found(tree, "."))


def test_parents(tree: FileTree) -> None:
    """With --parents the folders above stay in the name, from the pivot on."""
    assert found(tree, "sub/deep/d.py", parents=True) == ["sub/deep/d.py|"]
    assert found(tree, "sub/./deep/d.py", parents=True) == ["deep/d.py|"]
    assert found(tree, "**/*.py", parents=True) == ["sub/deep/d.py|"]


def test_ignored(tree: FileTree) -> None:
    """What is ignored is not there, unless a later line brings it back; the folder above it counts then."""
    ignoring = FileTree(root_fd=tree.root_fd, name=tree.name, ignore=Ignore.parse("logs\n!logs/keep.log\nsub/deep\n"))
    paths = found(ignoring, ".")
    assert "|logs/keep.log" in paths
    assert "|logs" in paths
    assert "|logs/x.log" not in paths
    assert "|sub/deep" not in paths
    with pytest.raises(NotFound, match=r"\.dockerignore leaves it out"):
        found(ignoring, "sub/deep")


def test_excludes(tree: FileTree) -> None:
    """--exclude leaves out below a source, and a source that is itself a file by its name."""
    assert found(tree, "sub", excludes=("**/*.py",)) == ["sub|", "sub|c.txt", "sub|deep"]
    assert found(tree, "*.txt", excludes=("b*",)) == ["a.txt|"]


def test_variables_lie_over_the_folder(tree: FileTree) -> None:
    """A variable is a file at the root, before one of the folder's, and is never ignored."""
    over = FileTree(
        root_fd=tree.root_fd, name=tree.name, files={"a.txt": b"new", "var": b"v"}, ignore=Ignore.parse("*")
    )
    selection = Selection(sources=(".",))
    contents = {entry.below: entry.content for entry in over.entries(over.tops(selection), selection)}
    assert contents == {"": None, "a.txt": b"new", "var": b"v"}
    alone = FileTree(root_fd=-1, name="x", files={"var": b"v"})
    assert found(alone, "*") == ["var|"]


def key(tree: FileTree, source: str = ".") -> str:
    """The digest of a source."""
    selection = Selection(sources=(source,))
    return digest(tree, tree.tops(selection), selection)[0]


def test_what_counts(tree: FileTree, folder: Path) -> None:
    """Contents, modes, names and links count; times do not."""
    first = key(tree)
    os.utime(folder / "a.txt", (1, 1))
    assert key(tree) == first
    keys = {first}

    def relink() -> None:
        (folder / "link").unlink()
        (folder / "link").symlink_to("logs")

    changes: list[Callable[[], object]] = [
        lambda: (folder / "a.txt").write_text("other"),
        lambda: (folder / "a.txt").chmod(0o755),
        lambda: (folder / "a.txt").rename(folder / "z.txt"),
        relink,
        (folder / "empty").mkdir,
    ]
    for change in changes:
        change()
        keys.add(key(tree))
    assert len(keys) == 6


def test_contents_do_not_run_into_each_other(tree: FileTree, folder: Path) -> None:
    """Moving bytes from one file to the next gives another digest."""
    (folder / "a.txt").write_text("ab")
    (folder / "b.txt").write_text("c")
    first = key(tree)
    (folder / "a.txt").write_text("a")
    (folder / "b.txt").write_text("bc")
    assert key(tree) != first


def test_an_unreadable_file_is_named(tree: FileTree, folder: Path) -> None:
    """A file that is no file is left out of a folder, and refused as a source."""
    os.mkfifo(folder / "pipe")
    assert "|pipe" in found(tree, ".")
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(folder)
        try:
            server.bind("sock")
        finally:
            os.chdir(here)
    assert "|sock" not in found(tree, ".")
    with pytest.raises(InvalidInput, match="device or a socket"):
        found(tree, "sock")
