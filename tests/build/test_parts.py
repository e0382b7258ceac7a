"""Archives that ADD unpacks: what is one, what it is called, what of it is written and where."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import tarfile
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import zstandard

from nbcontainer.build.parts import ArchivePart, TreePart, archive_parts
from nbcontainer.build.scratch import Scratch
from nbcontainer.build.sources import FileTree, Selection
from nbcontainer.errors import InvalidInput, NbcontainerError
from nbcontainer.testing.images import tiny_layer
from tests.build.trees import made, tar_of, tree_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLAIN = tiny_layer({"d": None, "d/file": b"data", "other": b"x"})


def member(kind: bytes = tarfile.REGTYPE, link: str = "", **fields: Any) -> tarfile.TarInfo:
    """An entry without data."""
    entry = tarfile.TarInfo()
    entry.type, entry.linkname = kind, link
    for name, value in fields.items():
        setattr(entry, name, value)
    return entry


@contextlib.contextmanager
def part_of(data: bytes, *, mode: str = "") -> Iterator[ArchivePart | None]:
    """What ADD makes of a file with these bytes; None when it is no archive."""
    tree = FileTree(root_fd=-1, name="the tree", files={"packed": data})
    with contextlib.ExitStack() as undo:
        found, others = archive_parts(
            tree,
            tree.tops(Selection(sources=("packed",))),
            mode=mode,
            scratch=Scratch(tempfile.gettempdir()),
            undo=undo,
        )
        assert len(found) + len(others) == 1
        yield found[0] if found else None


def written(data: bytes, place: str = "to", owner: tuple[int, int] | None = None, mode: str = "") -> dict[str, Any]:
    """The members that ADD writes."""
    with part_of(data, mode=mode) as part:
        assert part is not None
        return tar_of(lambda writer: part.write(writer, [place], owner))


@pytest.mark.parametrize(
    "compress",
    [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["plain", "gzip", "bzip2", "xz", "zstd"],
)
def test_archives_by_content(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """An archive is one by its bytes, in a file or a variable, whatever it is called and however it is compressed."""
    data = compress(PLAIN)
    assert list(written(data)) == ["to/d", "to/d/file", "to/other"]
    with contextlib.ExitStack() as undo, tree_of(made(tmp_path / "t", {"notes.txt": data})) as tree:
        (part,), others = archive_parts(
            tree,
            tree.tops(Selection(sources=("notes.txt",))),
            mode="",
            scratch=Scratch(tempfile.gettempdir()),
            undo=undo,
        )
        assert others == []
        assert (part.top.name, part.top.is_dir) == ("", True)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", bytes(512), bytes(10240), b"x" * 512, PLAIN[:511], PLAIN[1:], gzip.compress(b"no tar at all" * 100),
        b"\x1f\x8b", b"\x1f\x8b\x08garbage", b"BZh", b"BZh9garbage", b"\xfd7zXZ\0", b"\xfd7zXZ\0garbage",
        b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfdgarbage", b"PK\x03\x04", gzip.compress(b""),
    ],
)  # fmt: skip
def test_no_archives(data: bytes) -> None:
    """What does not begin like a tar is copied as it is."""
    with part_of(data) as part:
        assert part is None


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_cut_off(compress: Callable[[bytes], bytes]) -> None:
    """An archive that begins as one and ends in the middle is refused, not copied and not half unpacked."""
    whole = compress(tiny_layer({f"f{number}": bytes(number % 251 for number in range(9000)) for number in range(40)}))
    big = compress(tiny_layer({"random": _noise(3_000_000)}))
    for data in (big[: len(big) // 2], big[:-30]):
        with pytest.raises(InvalidInput, match="broken"), part_of(data):
            pass
    with part_of(whole) as part:
        assert part is not None


def _noise(size: int) -> bytes:
    import random

    return random.Random(5).randbytes(size)


def test_a_tar_cut_off() -> None:
    """A plain tar that ends in the middle of a file is an error when it is written."""
    with part_of(tiny_layer({"file": b"x" * 5000})[:2000]) as part:
        assert part is not None
        with pytest.raises(NbcontainerError):
            tar_of(lambda writer: part.write(writer, ["to"], None))


def test_the_digest_is_of_the_tar() -> None:
    """The same tar has one digest however it was compressed, and another tar another."""
    digests = set()
    for data in (PLAIN, gzip.compress(PLAIN), lzma.compress(PLAIN), tiny_layer({"d": None})):
        with part_of(data) as part:
            assert part is not None
            digests.add(part.digest)
    assert len(digests) == 2


def test_entries() -> None:
    """Files, folders, links, pipes, owners, modes and times arrive as they were packed."""
    files = {
        "./a": member(mode=0o4750, uid=7, gid=8, mtime=99),
        "l": member(tarfile.SYMTYPE, "/etc/passwd"),
        "h": member(tarfile.LNKTYPE, "./a"),
        "p": member(tarfile.FIFOTYPE),
        "d/": member(tarfile.DIRTYPE, mode=0o1777),
    }
    found = written(tiny_layer(files))
    assert {name: each.type for name, each in found.items()} == {
        "to/a": b"0",
        "to/l": b"2",
        "to/h": b"1",
        "to/p": b"6",
        "to/d": b"5",
    }
    assert (found["to/a"].mode, found["to/a"].uid, found["to/a"].gid, found["to/a"].mtime) == (0o4750, 7, 8, 99)
    assert (found["to/l"].linkname, found["to/h"].linkname) == ("/etc/passwd", "to/a")
    assert found["to/d"].mode == 0o1777


def test_owner_and_mode() -> None:
    """--chown and --chmod count for what is unpacked."""
    found = written(tiny_layer({"d": None, "d/x": b"x"}), owner=(5, 6), mode="u=rwX,go=")
    assert {(each.uid, each.gid) for each in found.values()} == {(5, 6)}
    assert (found["to/d"].mode, found["to/d/x"].mode) == (0o700, 0o600)


def test_devices_are_left_out() -> None:
    """Device nodes are not written, and what follows them is."""
    files: dict[str, Any] = {"null": member(tarfile.CHRTYPE), "disk": member(tarfile.BLKTYPE), "file": b"x"}
    assert list(written(tiny_layer(files))) == ["to/file"]


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "a/..", "/../x", "./../x"])
def test_names_that_lead_out(name: str) -> None:
    """``..`` in a name, or in what a hard link links to, is refused with the name."""
    with pytest.raises(InvalidInput, match="leads out of it"):
        written(tiny_layer({name: b"x"}))
    with pytest.raises(InvalidInput, match="leads out of it"):
        written(tiny_layer({"x": member(tarfile.LNKTYPE, name)}))


def test_absolute_names() -> None:
    """A name from the root on is one from the place on, for hard links, too."""
    found = written(tiny_layer({"/etc/passwd": b"x", "h": member(tarfile.LNKTYPE, "/etc/passwd")}))
    assert list(found) == ["to/etc/passwd", "to/h"]
    assert found["to/h"].linkname == "to/etc/passwd"


def test_deletions_are_refused() -> None:
    """A name that would delete something of the stage is refused."""
    for name in (".wh.passwd", "d/.wh..wh..opq"):
        with pytest.raises(InvalidInput, match="cannot be in an image"):
            written(tiny_layer({name: b""}))


def sparse(size: int, pieces: list[tuple[int, bytes]]) -> bytes:
    """A tar with a file of `size` bytes that has these pieces and holes between them."""
    numbers = [len(pieces), *(each for offset, data in pieces for each in (offset, len(data)))]
    body = "".join(f"{number}\n" for number in numbers).encode()
    body += bytes(-len(body) % 512) + b"".join(data for _, data in pieces)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("GNUSparseFile.0/holes")
        entry.size = len(body)
        entry.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "holes",
            "GNU.sparse.realsize": str(size),
        }
        tar.addfile(entry, io.BytesIO(body))
        last = tarfile.TarInfo("last")
        last.size = 1
        tar.addfile(last, io.BytesIO(b"l"))
    return buffer.getvalue()


def test_holes_stay_holes() -> None:
    """A sparse file has its data at their places, and what follows it is read from the right place."""
    found = written(sparse(2000, [(0, b"begin"), (1000, b"middle" * 100)]))
    expected = b"begin" + bytes(995) + b"middle" * 100 + bytes(400)
    assert found["to/holes"].pax_headers["data"].encode("latin-1") == expected
    assert found["to/last"].pax_headers["data"] == "l"


@pytest.mark.parametrize("size", [1 << 40, 1 << 62])
def test_a_hole_is_not_written_as_zeros(size: int) -> None:
    """A hole of any size takes no room in the layer."""
    with part_of(sparse(size, [])) as part:
        assert part is not None
        sizes = []
        with contextlib.suppress(tarfile.TarError, MemoryError, OverflowError):
            tar_of(lambda writer: sizes.append((part.write(writer, ["to"], None), writer.bytes)))
    assert sizes == [(True, 1)]


def test_several_sources(tmp_path: Path) -> None:
    """Of several sources the archives are told from the rest, and folders never are one."""
    files: dict[str, Any] = {"a.tar": PLAIN, "b": "plain", "d/c.tar": PLAIN}
    with contextlib.ExitStack() as undo, tree_of(made(tmp_path / "t", files)) as tree:
        found, others = archive_parts(
            tree,
            tree.tops(Selection(sources=("a.tar", "b", "d"))),
            mode="",
            scratch=Scratch(tempfile.gettempdir()),
            undo=undo,
        )
        assert len(found) == 1
        assert [top.name for top in others] == ["b", "d"]
        part = TreePart.of(tree, Selection(sources=("b", "d")), others)
        assert [list(each) for each in part.entries] == [[0, "", False], [1, "", True], [1, "c.tar", False]]
        assert part.tops == tuple(others)


def test_a_changed_tree_says_so(tmp_path: Path) -> None:
    """Writing tells whether what was written is what the digest names."""
    folder = made(tmp_path / "t", {"d/x": "one"})
    answers: list[bool] = []
    with tree_of(folder) as tree:
        part = TreePart.of(tree, Selection(sources=("d",)))
        tar_of(lambda writer: answers.append(part.write(writer, ["to"], (1, 2))))
        (folder / "d/new").write_text("x")
        tar_of(lambda writer: answers.append(part.write(writer, ["to"], None)))
    assert answers == [True, False]
