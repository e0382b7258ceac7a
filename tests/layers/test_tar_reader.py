"""The dialects of tar, each as its own tools write it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidImage
from nbcontainer.layers.tar import Archive, Stream
from tests.layers.layer_tars import END, header, listing, member, padded, pax, tar, unpack

if TYPE_CHECKING:
    from pathlib import Path


def entries(data: bytes) -> list[tuple[bytes, int, bytes, int, int, int]]:
    """Name, size, link, uid, gid and time of each entry."""
    fd = os.memfd_create("tar")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        stream = Stream(fd)
        found = []
        for entry in Archive(stream):
            stream.skip(entry.data)
            found.append((entry.name, entry.size, entry.link, entry.uid, entry.gid, entry.mtime))
        return found
    finally:
        os.close(fd)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [99, 100, 101, 155, 200, 254])
def test_names_of_every_length(form: int, length: int) -> None:
    """Names around the limits of the header come back whole, links too."""
    name = ("d" * 49 + "/") * 5 + "f" * 50
    name = name[: min(length, 200) if form == tarfile.USTAR_FORMAT else length].rstrip("/")
    target = name[:99] if form == tarfile.USTAR_FORMAT else name
    found = entries(tar(member(name), member("l", tarfile.SYMTYPE, linkname=target), form=form))
    assert [each[0] for each in found] == [name.encode(), b"l"]
    assert found[1][2] == target.encode()


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_large_and_negative_numbers(form: int) -> None:
    """Ids beyond octal and times before 1970 survive, in base 256 or in PAX records."""
    found = entries(tar(member("a", uid=3_000_000_000, gid=2**31, mtime=-5, data=b"x"), form=form))
    assert found == [(b"a", 1, b"", 3_000_000_000, 2**31, -5_000_000_000)]


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        (b"1350244992.023960108", 1350244992023960108),
        (b"12", 12_000_000_000),
        (b"-1.5", -1_500_000_000),
        (b"3.1234567891", 3_123456789),
        (b".5", 500_000_000),
    ],
)
def test_pax_times_are_exact(text: bytes, nanoseconds: int) -> None:
    """Fractions are read as decimals, not through floats."""
    assert entries(pax((b"mtime", text)) + header(b"a") + END)[0][5] == nanoseconds


def test_pax_overrides_and_global_defaults() -> None:
    """A PAX record beats the header, an own record beats a global one, an empty one takes it back."""
    data = (
        pax((b"uid", b"7"), (b"comment", b"x"), kind=b"g")
        + header(b"a")
        + pax((b"uid", b"8"), (b"path", b"renamed"), (b"path", b"again"))
        + header(b"b")
        + pax((b"uid", b""))
        + header(b"c")
    )
    assert [(each[0], each[3]) for each in entries(data + END)] == [(b"a", 7), (b"again", 8), (b"c", 0)]


def test_pax_size_is_the_size() -> None:
    """The size of a PAX record is what is read, whatever the header says, so no entry hides in another's data."""
    inner = header(b"hidden") + bytes(512)
    data = pax((b"size", b"%d" % len(inner))) + header(b"a", size=0) + inner + header(b"b") + END
    assert [each[:2] for each in entries(data)] == [(b"a", 1024), (b"b", 0)]


def test_links_and_directories_have_no_data() -> None:
    """A size on a directory or link means nothing, as for Go's reader."""
    data = header(b"d", b"5", size=4096) + header(b"l", b"1", size=9, link_name=b"x") + header(b"a") + END
    assert [each[:2] for each in entries(data)] == [(b"d", 0), (b"l", 0), (b"a", 0)]


def test_old_dialects_are_read() -> None:
    """V7 (type NUL, trailing slash for directories), signed checksums, numbers in blanks."""
    block = bytearray(header(b"caf\xe9", magic=b""))
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + b" " * 8 + block[156:])
    block[148:156] = b"%06o\0 " % signed
    data = header(b"dir/", b"\0", magic=b"") + bytes(block) + header(b"b", uid=b"    12 \0", mode=b" 644 \0\0\0") + END
    assert [(each[0], each[3]) for each in entries(data)] == [(b"dir/", 0), (b"caf\xe9", 0), (b"b", 10)]


def test_volume_labels_are_passed_over(tmp_path: Path) -> None:
    """A GNU volume label is no file, and said so."""
    applied = unpack(header(b"label", b"V") + header(b"a") + END, tmp_path / "fs")
    assert set(listing(tmp_path / "fs")) == {"a"}
    assert "type 'V'" in applied.warnings[0]


@pytest.mark.parametrize("dialect", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize("pieces", [0, 1, 3, 60])
def test_sparse_files_as_gnu_tar_writes_them(tmp_path: Path, dialect: str, pieces: int) -> None:
    """Every sparse dialect gives the same bytes, with holes where holes were."""
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar: install it")
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        for number in range(pieces):
            file.seek(number * 65536 + 4096)
            file.write(b"%04d" % number * 1024)
        file.truncate(pieces * 65536 + 1_000_000)
    form = ["--format=gnu"] if dialect == "gnu" else ["--format=pax", f"--sparse-version={dialect}"]
    done = subprocess.run(["tar", "-cS", *form, "-C", tmp_path, "sparse"], capture_output=True, check=True)
    unpack(done.stdout, tmp_path / "fs")
    assert (tmp_path / "fs/sparse").read_bytes() == source.read_bytes()
    assert (tmp_path / "fs/sparse").stat().st_blocks <= source.stat().st_blocks


@pytest.mark.parametrize("pairs", [b"1\n0\n9\n", b"2\n8\n4\n0\n4\n", b"1\n-1\n4\n", b"1\n0\n", b"1\n999\n4\n", b"x\n"])
def test_contradictory_sparse_maps_are_refused(pairs: bytes) -> None:
    """A map out of order, out of the file or of another length than the data is forged."""
    keys = ((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"100"))
    with pytest.raises(InvalidImage):
        entries(pax(*keys) + header(b"s", size=516) + padded(pairs) + padded(b"data") + END)


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_gnu_tars_formats_come_out_as_gnu_tar_unpacks_them(tmp_path: Path, form: str) -> None:
    """A tree with links, long names and odd modes equals what GNU tar makes of the same archive."""
    if shutil.which("tar") is None:
        pytest.skip("needs GNU tar: install it")
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/file").write_bytes(os.urandom(100_000))
    os.link(tree / "a/b/file", tree / "hard")
    (tree / "soft").symlink_to("a/b")
    (tree / "empty").touch(mode=0o4711)
    if form not in {"v7", "ustar"}:
        (tree / ("long" * 50)).mkdir()
        (tree / ("long" * 50) / ("name" * 50)).write_text("x")
    done = subprocess.run(["tar", "-c", f"--format={form}", "-C", tree, "."], capture_output=True, check=True)
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-xp", "-C", tmp_path / "gnu"], input=done.stdout, check=True)
    unpack(done.stdout, tmp_path / "fs")
    assert listing(tmp_path / "fs", times=True) == listing(tmp_path / "gnu", times=True)
