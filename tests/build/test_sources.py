"""What COPY finds in a tree, what it calls that, and what it writes."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.build.landing import write_placed
from nbcontainer.build.sources import FileTree, Selection, Top, digest, measured
from nbcontainer.errors import InvalidInput, NotFound
from tests.build.trees import made, tar_of, tree_of

if TYPE_CHECKING:
    from pathlib import Path

FILES = {
    "a.txt": "a",
    "b.txt": "b",
    "sub/c.txt": "c",
    "sub/deep/d.txt": "d",
    "sub/deep/e.md": "e",
    ".hidden": "h",
    "we[ird": "w",
    "empty": None,
}


def names(tree: FileTree, *sources: str, **options: object) -> list[str]:
    """The names that sources land by."""
    return [top.name for top in tree.tops(Selection(sources=sources, **options))]  # type: ignore[arg-type]


def below(tree: FileTree, *sources: str, **options: object) -> list[str]:
    """Every entry, as its top and what is below it."""
    selection = Selection(sources=sources, **options)  # type: ignore[arg-type]
    return [f"{each.top.path}:{each.below}" for each in tree.entries(tree.tops(selection), selection)]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (("a.txt",), ["a.txt"]),
        (("./a.txt", "/b.txt"), ["a.txt", "b.txt"]),
        (("*.txt",), ["a.txt", "b.txt"]),
        (("[ab].txt",), ["a.txt", "b.txt"]),
        (("?.txt",), ["a.txt", "b.txt"]),
        (("sub",), ["sub"]),
        (("sub/",), ["sub"]),
        (("sub/*.txt",), ["c.txt"]),
        (("s*/*.txt",), ["c.txt"]),
        (("*/deep",), ["deep"]),
        (("../../a.txt",), ["a.txt"]),
        (("sub/../a.txt",), ["a.txt"]),
        (("we\\[ird",), ["we[ird"]),
        ((".",), [""]),
        (("/",), [""]),
        (("",), [""]),
        (("*",), [".hidden", "a.txt", "b.txt", "empty", "sub", "we[ird"]),
    ],
)
def test_sources(tmp_path: Path, sources: tuple[str, ...], found: list[str]) -> None:
    """Paths and patterns find what docker finds; ``..`` leads to the root at most."""
    with tree_of(made(tmp_path / "t", FILES)) as tree:
        assert names(tree, *sources) == found


@pytest.mark.parametrize(
    "source", ["nowhere", "*.nope", "a.txt/x", "sub/nowhere", "../etc/passwd", "x" * 300, "a.txt/../../b/"]
)
def test_no_source(tmp_path: Path, source: str) -> None:
    """What is not there is told with the name of the tree."""
    with tree_of(made(tmp_path / "t", FILES)) as tree, pytest.raises(NotFound, match="is not in the tree"):
        names(tree, source)


def test_ignored(tmp_path: Path) -> None:
    """What is left out is not there, by name, by pattern or in its folder; the sentence says why."""
    with tree_of(made(tmp_path / "t", FILES), ignore="*.txt\n!b.txt\nsub\n!sub/deep/e.md\n") as tree:
        assert names(tree, "*.*") == [".hidden", "b.txt"]
        assert below(tree, "sub") == ["sub:", "sub:deep", "sub:deep/e.md"]
        with pytest.raises(NotFound, match=r"it is there, but \.dockerignore leaves it out"):
            names(tree, "a.txt")
        with pytest.raises(NotFound, match=r"\.dockerignore leaves it out"):
            names(tree, "sub/c.txt")


def test_an_ignored_folder_with_nothing_kept(tmp_path: Path) -> None:
    """A folder of which everything is left out is no source, nor in a folder that is one."""
    with tree_of(made(tmp_path / "t", FILES), ignore="sub\n") as tree:
        with pytest.raises(NotFound):
            names(tree, "sub")
        assert not [each for each in below(tree, ".") if "sub" in each]


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        (("sub/deep/d.txt",), ["sub/deep/d.txt"]),
        (("sub/./deep/d.txt",), ["deep/d.txt"]),
        (("./sub/deep",), ["sub/deep"]),
        (("**/*.txt",), ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        (("sub/./**/*.txt",), ["c.txt", "deep/d.txt"]),
    ],
)
def test_parents(tmp_path: Path, sources: tuple[str, ...], found: list[str]) -> None:
    """With --parents a name keeps the folders above it, from the pivot on."""
    with tree_of(made(tmp_path / "t", FILES)) as tree:
        assert names(tree, *sources, parents=True) == found


def test_folders_above_a_source(tmp_path: Path) -> None:
    """With --parents the folders in a name are told with their attributes, but for those behind a link."""
    folder = made(tmp_path / "t", {"a/b/f": "x", "c": None, "link": "->a"})
    for name, mode in (("a", 0o711), ("a/b", 0o2750), ("c", 0o1777)):
        (folder / name).chmod(mode)
    mine = [os.getuid(), os.getgid()]
    cases: list[tuple[dict[str, Any], list[list[Any]]]] = [
        ({"sources": ("a/b/f", "a/b")}, [["a", 0o711, 0, 0, 0o711], ["a/b", 0o2750, 0, 0, 0o2750]]),
        ({"sources": ("a/./b/f",)}, [["b", 0o2750, 0, 0, 0o2750]]),
        ({"sources": ("c",), "mode": "700"}, [["c", 0o700, 0, 0, 0o1777]]),
        ({"sources": ("c",), "owner": (7, 8)}, [["c", 0o1777, 7, 8, 0o1777]]),
        ({"sources": ("link/b/f",)}, []),
        ({"sources": ("a/b/f",), "parents": False}, []),
    ]
    with tree_of(folder) as tree, tree_of(folder, owned=True) as owned:
        for fields, above in cases:
            selection = Selection(**{"parents": True, **fields})
            assert tree.above(tree.tops(selection), selection) == above
        selection = Selection(sources=("c",), parents=True)
        assert owned.above(owned.tops(selection), selection) == [["c", 0o1777, *mine, 0o1777]]


def test_excludes(tmp_path: Path) -> None:
    """--exclude leaves out below a source, and a source that is itself so named."""
    with tree_of(made(tmp_path / "t", FILES)) as tree:
        assert below(tree, "sub", excludes=("**/*.txt",)) == ["sub:", "sub:deep", "sub:deep/e.md"]
        assert below(tree, "*.txt", excludes=("b.*",)) == ["a.txt:"]


# --- links ----------------------------------------------------------------------------------------------------------


def test_links_stay_inside(tmp_path: Path) -> None:
    """A source that is a link, or goes through one, is looked for inside the tree, wherever the link leads."""
    outside = made(tmp_path / "outside", {"secret": "s"})
    files = {
        "real/x": "x",
        "absolute": "->/real",
        "relative": "->real",
        "up": "->../../../../real",
        "out": f"->{outside}",
        "out-file": f"->{outside}/secret",
        "loop": "->loop",
        "ping": "->pong",
        "pong": "->ping",
        "kernel": "->/proc/self/root",
    }
    with tree_of(made(tmp_path / "t", files)) as tree:
        for link in ("absolute", "relative", "up"):
            assert below(tree, f"{link}/x") == ["real/x:"]
            assert [(top.path, top.name) for top in tree.tops(Selection(sources=(link,)))] == [("real", link)]
        for source in ("out", "out/secret", "out-file", "out/*", "kernel", f"kernel{outside}/secret"):
            with pytest.raises(NotFound):
                names(tree, source)
        for source in ("loop", "ping/x"):
            with pytest.raises(InvalidInput, match="too many symbolic links"):
                names(tree, source)
        assert "real:x" in below(tree, "*l")


def test_links_to_a_source(tmp_path: Path) -> None:
    """A source may be a link, or lie behind one: what it leads to is copied under the name that was typed."""
    with tree_of(made(tmp_path / "t", {"sub/c.txt": "c", "link": "->sub"})) as tree:
        assert names(tree, "link", "link/c.txt") == ["link", "c.txt"]
        assert below(tree, "link", "link/c.txt") == ["sub:", "sub:c.txt", "sub/c.txt:"]


def test_links_below_a_source_are_copied(tmp_path: Path) -> None:
    """In a folder a link is a link, whatever it points to."""
    with tree_of(made(tmp_path / "t", {"d/link": "->/etc/passwd", "d/dir": "->/etc"})) as tree:
        found = tar_of(lambda writer: write_placed(writer, tree, tree.tops(_all("d")), _all("d"), ["to"]))
    assert {name: member.linkname for name, member in found.items()} == {"to/dir": "/etc", "to/link": "/etc/passwd"}


def test_a_folder_exchanged_for_a_link(tmp_path: Path) -> None:
    """Whoever exchanges a folder for a link between finding and reading gets an error and no file of elsewhere."""
    outside = made(tmp_path / "outside", {"x": "secret"})
    with tree_of(made(tmp_path / "t", {"d/x": "mine", "e/f/x": "mine"})) as tree:
        single = tree.tops(_all("d/x"))
        whole = tree.tops(_all("e"))
        (tmp_path / "t/d").rename(tmp_path / "t/moved")
        (tmp_path / "t/d").symlink_to(outside)
        (tmp_path / "t/e/f").rename(tmp_path / "t/moved-too")
        (tmp_path / "t/e/f").symlink_to(outside)
        with pytest.raises(InvalidInput, match="cannot be read"):
            digest(tree, single, _all("d/x"))
        found = tar_of(lambda writer: write_placed(writer, tree, whole, _all("e"), ["to"]))
    assert "secret" not in [member.pax_headers["data"] for member in found.values()]


def _all(*sources: str) -> Selection:
    return Selection(sources=sources)


# --- variables ------------------------------------------------------------------------------------------------------


def test_variables_lie_over_the_root(tmp_path: Path) -> None:
    """A variable is a file at the root, instead of one that is there, and .dockerignore does not count for it."""
    with tree_of(made(tmp_path / "t", FILES), files={"a.txt": b"new", "z": b"z"}, ignore="a.txt\n") as tree:
        assert names(tree, "?.txt") == ["a.txt", "b.txt"]
        found = tar_of(lambda writer: write_placed(writer, tree, tree.tops(_all(".")), _all("."), [""]))
        assert found["a.txt"].pax_headers["data"] == "new"
        assert found["z"].pax_headers["data"] == "z"
        assert "sub/z" not in found


def test_variables_alone() -> None:
    """A tree may have nothing but variables."""
    tree = FileTree(root_fd=-1, name="the tree", files={"a": b"x", "b": b"y"})
    assert below(tree, ".") == [":", ":a", ":b"]
    assert names(tree, "[ab]") == ["a", "b"]
    with pytest.raises(NotFound):
        names(tree, "c")


# --- naming ---------------------------------------------------------------------------------------------------------


def named(folder: Path, *sources: str, **options: object) -> str:
    """The digest of sources of a folder."""
    with tree_of(folder) as tree:
        selection = Selection(sources=sources or (".",), **options)  # type: ignore[arg-type]
        return digest(tree, tree.tops(selection), selection)[0]


def test_what_counts(tmp_path: Path) -> None:
    """Names, contents, permissions, kinds and links count for a digest; times and owners of a context do not."""
    folder = made(tmp_path / "t", {"f": "x", "d": None, "l": "->f"})
    seen = {named(folder)}

    def changed() -> bool:
        before = len(seen)
        seen.add(named(folder))
        return len(seen) > before

    os.utime(folder / "f", (1, 1))
    os.utime(folder / "d", (1, 1))
    assert not changed()
    (folder / "f").chmod(0o600)
    assert changed()
    (folder / "f").write_text("y")
    assert changed()
    (folder / "f").rename(folder / "g")
    assert changed()
    (folder / "l").unlink()
    (folder / "l").symlink_to("g")
    assert changed()
    (folder / "d").chmod(0o700)
    assert changed()
    (folder / "d").rmdir()
    assert changed()
    os.mkfifo(folder / "pipe")
    assert changed()


def test_no_two_trees_look_alike(tmp_path: Path) -> None:
    """Bytes of one file cannot look like the end of it and the beginning of the next, nor like an attribute."""
    inner = "b\x00100644\x000:0\x00"
    trees: list[dict[str, str | bytes | None]] = [
        {"a": "", "b": ""},
        {"a": "\x000\x00" + inner},
        {"a": "xb"},
        {"a": "x", "b": ""},
        {"a": "", "b": "x"},
        {"ab": ""},
        {"a": None, "b": ""},
        {"a": None, "a/b": ""},
        {"a": "->b"},
        {"a": "b"},
        {"a": "->b", "c": ""},
    ]
    digests = [named(made(tmp_path / f"t{number}", files)) for number, files in enumerate(trees)]
    assert len(set(digests)) == len(trees)


def test_an_attribute_does_not_look_like_a_file(tmp_path: Path) -> None:
    """A file with an attribute is not taken for two files (the length of what follows is in the digest)."""
    one = made(tmp_path / "one", {"a": ""})
    content = "c"
    tail = f"100644\x000:0\x00{content}\x00{len(content)}\x00"
    two = made(tmp_path / "two", {"a": "", f"user.x={len(tail)}": content})
    try:
        os.setxattr(one / "a", "user.x", tail.encode())
    except OSError:
        pytest.skip("the file system for temporary files has no attributes")
    assert named(one) != named(two)
    before = named(one)
    os.setxattr(one / "a", "user.x", b"other")
    assert named(one) != before


def test_the_order_of_sources_counts(tmp_path: Path) -> None:
    """Two sources in another order may overwrite each other the other way, so they are another thing."""
    folder = made(tmp_path / "t", {"a/x": "1", "b/x": "2"})
    assert named(folder, "a", "b") != named(folder, "b", "a")


def test_owners_of_stages_count(tmp_path: Path) -> None:
    """A stage's files keep their owners; a context's are root's, whoever has them here."""
    folder = made(tmp_path / "t", {"a": "x"})
    with tree_of(folder, owned=True) as tree:
        (entry,) = tree.entries(tree.tops(_all("a")), _all("a"))
        assert (entry.status.st_uid, entry.status.st_gid) == (os.getuid(), (folder / "a").stat().st_gid)
    with tree_of(folder) as tree:
        (entry,) = tree.entries(tree.tops(_all("a")), _all("a"))
        assert (entry.status.st_uid, entry.status.st_gid) == (0, 0)


@pytest.mark.parametrize("how", ["content", "longer", "touched", "mode", "replaced", "new", "gone"])
def test_a_change_meanwhile_is_seen(tmp_path: Path, how: str) -> None:
    """What is written after a change of any kind does not have the stamp of what was named."""
    folder = made(tmp_path / "t", {"d/a": "one", "d/b": "two"})
    path = folder / "d/a"
    with tree_of(folder) as tree:
        tops = tree.tops(_all("d"))
        _, _, stamp = measured(tree, tops, _all("d"))
        stamps = []
        tar_of(lambda writer: stamps.append(write_placed(writer, tree, tops, _all("d"), ["x"])))
        assert stamps == [stamp]
        before = path.stat()
        while path.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock of the file system has moved
            if how == "content":
                path.write_text("ONE")
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            elif how == "longer":
                path.write_text("one more")
            elif how == "touched":
                os.utime(path)
            elif how == "mode":
                path.chmod(0o600)
            elif how == "replaced":
                (folder / "other").write_text("ONE")
                (folder / "other").rename(path)
            elif how == "new":
                (folder / "d/c").touch()
                break
            else:
                path.unlink()
                break
        tar_of(lambda writer: stamps.append(write_placed(writer, tree, tops, _all("d"), ["x"])))
    assert stamps[1] != stamp


# --- writing --------------------------------------------------------------------------------------------------------


def test_what_is_written(tmp_path: Path) -> None:
    """Modes, kinds, hard links and contents arrive at their places; a folder that is a source has no entry itself."""
    folder = made(tmp_path / "t", {"d/a": "one", "d/s/b": "two", "d/l": "->a"})
    os.link(folder / "d/a", folder / "d/z")
    (folder / "d/a").chmod(0o4755)
    os.mkfifo(folder / "d/pipe")
    with tree_of(folder) as tree:
        found = tar_of(lambda writer: write_placed(writer, tree, tree.tops(_all("d")), _all("d"), ["to/here"]))
    kinds = {name: member.type for name, member in found.items()}
    assert kinds == {
        "to/here/a": b"0",
        "to/here/l": b"2",
        "to/here/pipe": b"6",
        "to/here/z": b"1",
        "to/here/s": b"5",
        "to/here/s/b": b"0",
    }
    assert found["to/here/a"].mode == 0o4755
    assert found["to/here/z"].linkname == "to/here/a"
    assert {(member.uid, member.gid) for member in found.values()} == {(0, 0)}


def test_owner_and_mode(tmp_path: Path) -> None:
    """--chown and --chmod are for everything copied; a link has no mode of its own."""
    folder = made(tmp_path / "t", {"d/a": "one", "d/s/b": "two", "d/l": "->a"})
    selection = Selection(sources=("d",), owner=(7, 8), mode="u=rwX,go=r")
    with tree_of(folder) as tree:
        found = tar_of(lambda writer: write_placed(writer, tree, tree.tops(selection), selection, ["to"]))
    assert {(member.uid, member.gid) for member in found.values()} == {(7, 8)}
    assert [oct(found[name].mode) for name in ("to/a", "to/s", "to/l")] == ["0o644", "0o744", "0o777"]


def test_sockets_and_devices(tmp_path: Path) -> None:
    """A socket in a folder is left out, and one that is named is refused."""
    folder = made(tmp_path / "t", {"d/a": "one"})
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server, tree_of(folder) as tree:
        here = os.getcwd()
        os.chdir(folder / "d")  # a socket's path may have 107 bytes
        try:
            server.bind("s")
        finally:
            os.chdir(here)
        assert stat.S_ISSOCK((folder / "d/s").stat().st_mode)
        assert below(tree, "d") == ["d:", "d:a"]
        with pytest.raises(InvalidInput, match="device or a socket"):
            digest(tree, [Top(path="d/s", name="s", is_dir=False)], _all("d/s"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("source", ["d", "d/*", "d/x", "f", "[f]"])
def test_what_may_not_be_read(tmp_path: Path, source: str) -> None:
    """A folder or file that the person may not read is told in a sentence with its name."""
    folder = made(tmp_path / "t", {"d/x": "x", "f": "y"})
    (folder / "d").chmod(0)
    (folder / "f").chmod(0)
    try:
        with tree_of(folder) as tree, pytest.raises(InvalidInput, match=r"(d|f).* in the tree cannot be read"):
            digest(tree, tree.tops(_all(source)), _all(source))
    finally:
        (folder / "d").chmod(0o700)


@pytest.mark.parametrize("name", [".wh.a", ".wh..wh..opq", ".wh.", "x/.wh.a/b"])
def test_names_of_deletions(tmp_path: Path, name: str) -> None:
    """A file whose name would be a deletion in a layer is refused, not turned into one."""
    with tree_of(made(tmp_path / "t", {f"d/{name}": "x"})) as tree, pytest.raises(InvalidInput, match="cannot be in"):
        tar_of(lambda writer: write_placed(writer, tree, tree.tops(_all("d")), _all("d"), ["to"]))


def test_selections_travel() -> None:
    """A selection comes back from its fields as it was."""
    for selection in (
        Selection(sources=("a", "b")),
        Selection(sources=("a",), excludes=("x",), parents=True, owner=(1, 2), mode="0600"),
    ):
        assert Selection.of_fields(selection.fields()) == selection
