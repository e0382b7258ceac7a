"""Trees as tar: what other readers make of it, and what may happen to the tree meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbcontainer.layers.pack import Packer, TarWriter
from nbcontainer.layers.tar import Archive, Stream

if TYPE_CHECKING:
    from pathlib import Path


def packed(top: Path, name: bytes = b"top", **options: bool) -> tuple[bytes, Packer]:
    """The archive of a directory."""
    file = os.memfd_create("archive")
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        packer = Packer(TarWriter(file))
        packer.tree(directory, name, **options)
        packer.writer.finish()
        return os.pread(file, os.fstat(file).st_size, 0), packer
    finally:
        os.close(directory)
        os.close(file)


@settings(max_examples=150, deadline=None)
@given(
    name=st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name and not name.endswith(b"/")),
    link=st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name),
    mtime=st.integers(-(2**62), 2**62),
    uid=st.integers(0, 2**32 - 2),
    mode=st.integers(0, 0o7777),
)
def test_headers_say_what_was_meant(name: bytes, link: bytes, mtime: int, uid: int, mode: int) -> None:
    """Any name, link, time and owner comes back from our reader and from `tarfile`."""
    status = os.stat_result(
        (0o120000 | mode, 1, 1, 1, uid, uid, 0, 0, 0, 0), {"st_mtime_ns": mtime, "st_mtime": mtime // 10**9}
    )
    file = os.memfd_create("archive")
    try:
        writer = TarWriter(file)
        writer.entry(name, _Status(status, mtime), link=link)  # type: ignore[arg-type]
        writer.finish()
        data = os.pread(file, 1 << 16, 0)
        os.lseek(file, 0, os.SEEK_SET)
        (entry,) = Archive(Stream(file))
    finally:
        os.close(file)
    assert (entry.name, entry.link, entry.mtime, entry.uid, entry.gid, entry.mode) == (
        name,
        link,
        mtime,
        uid,
        uid,
        mode,
    )
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        (member,) = archive.getmembers()
    assert os.fsencode(member.name) == name.rstrip(b"/") or b"\xff" in name
    assert member.uid == uid


class _Status:
    """A status with a time as exact as the kernel's: `os.stat_result` cannot be made with one."""

    def __init__(self, status: os.stat_result, mtime: int) -> None:
        self.st_mode = status.st_mode
        self.st_uid = status.st_uid
        self.st_gid = status.st_gid
        self.st_mtime_ns = mtime


def test_tarfile_and_gnu_tar_agree(tmp_path: Path) -> None:
    """Two other readers make of our archive what was there."""
    top = tmp_path / "top"
    (top / "deep" / ("d" * 200)).mkdir(parents=True)
    (top / "deep" / ("d" * 200) / "été").write_bytes(b"1" * 100_000)
    os.link(top / "deep" / ("d" * 200) / "été", top / "zweit")
    os.symlink("x" * 150, top / "link")
    with (top / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"here")
    os.utime(top / "sparse", ns=(1, 1_600_000_000_123_456_789))
    data, packer = packed(top)
    assert packer.left_out == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        assert names == sorted(names[:1]) + names[1:]
        sparse = archive.getmember("top/sparse")
        assert sparse.size == 5 << 20
        extracted = archive.extractfile(sparse)
        assert extracted is not None
        assert extracted.read() == (top / "sparse").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-x", "-C", str(out)], input=data, check=True)
    done = subprocess.run(["diff", "-r", "--no-dereference", top, out / "top"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert (out / "top" / "sparse").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (out / "top" / "zweit").stat().st_nlink == 2


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A link to a folder is a link in the archive, whatever it points to."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    top = tmp_path / "top"
    top.mkdir()
    (top / "way").symlink_to(tmp_path / "secret")
    data, _ = packed(top)
    assert b"secret" not in data.replace(os.fsencode(tmp_path / "secret"), b"")


def test_depth_costs_no_descriptors(tmp_path: Path) -> None:
    """A tree deeper than any number of descriptors is packed as far as paths may be long, and the rest is said."""
    top = tmp_path / "top"
    top.mkdir()
    here = os.getcwd()
    os.chdir(top)
    try:
        for _ in range(3000):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    data, packer = packed(top)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert 2000 < len(archive.getnames()) < 2060
    assert packer.left_out == 1
    assert "its path is too long" in packer.notices[0]
    subprocess.run(["rm", "-rf", str(top)], check=True)


@pytest.mark.parametrize("change", ["grow", "shrink"])
def test_files_that_change_their_size_meanwhile(tmp_path: Path, change: str) -> None:
    """The archive stays one: a file has the size that its header says, cut off or filled up."""
    top = tmp_path / "top"
    top.mkdir()
    (top / "a").write_bytes(b"x" * (8 << 20))
    (top / "b").write_bytes(b"end")
    reader, writer = os.pipe()
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        packer = Packer(TarWriter(writer))

        def pack() -> None:
            packer.tree(directory, b"top")
            packer.writer.finish()
            os.close(writer)

        thread = threading.Thread(target=pack)
        thread.start()
        first = os.read(reader, 4096)  # the pipe is full now, with the header in it
        os.truncate(top / "a", 100_000 if change == "shrink" else 9 << 20)
        with os.fdopen(reader, "rb") as rest:
            data = first + rest.read()
        thread.join()
    finally:
        os.close(directory)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getmember("top/a").size == 8 << 20
        extracted = archive.extractfile("top/b")
        assert extracted is not None
        assert extracted.read() == b"end"
