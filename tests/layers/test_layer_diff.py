"""What a writable layer changed, and the layer made of it: `apply` and `diff` are each other's inverse."""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from nbcontainer.errors import InvalidImage
from nbcontainer.layers.diff import differences, write_layer
from tests.layers.layer_tars import Member, folder, hard, link, listing, member, opened, tar, unpack
from tests.layers.test_layer_property import acceptable

if TYPE_CHECKING:
    from nbcontainer.layers.pack import Packer

pytestmark = pytest.mark.userns

NAMES = st.sampled_from(["a", "b", "c", "é", "x" * 130, "new\nline"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
BELOW = st.one_of(
    st.builds(lambda name, mode: folder(name, mode=mode), PATHS, st.sampled_from([0o755, 0o700])),
    st.builds(lambda name, data: member(name, data=data), PATHS, st.binary(max_size=40)),
    st.builds(link, PATHS, st.sampled_from(["nowhere", "a", "/b"])),
)
ABOVE = st.one_of(
    BELOW,
    st.builds(lambda path, name: member(f"{path}/.wh.{name}"), PATHS, NAMES),
    st.builds(lambda name: member(f".wh.{name}"), NAMES),
    st.builds(lambda path: member(f"{path}/.wh..wh..opq"), PATHS),
)


def layer_of(upper: Path, lower: Path | None = None) -> tuple[bytes, Packer]:
    """The layer's tar, and what was told of it."""
    file = os.memfd_create("layer")
    try:
        with opened(upper, *([lower] if lower else [])) as fds:
            packer = write_layer(fds[0], fds[1] if lower else -1, file)
        return os.pread(file, os.fstat(file).st_size, 0), packer
    finally:
        os.close(file)


def changes_of(upper: Path, lower: Path) -> list[str]:
    """The differences as docker prints them, sorted."""
    with opened(upper, lower) as fds:
        return sorted(f"{each.kind} /{os.fsdecode(each.path)}" for each in differences(fds[0], fds[1]))


Listing = dict[str, tuple[object, ...]]


def merged(lower: Listing, upper: Path) -> Listing:
    """What overlayfs shows of a directory over a listing, done in the plainest way."""
    shown = dict(lower)
    for name, entry in sorted(listing(upper, times=True).items()):
        path = upper / name
        if stat.S_ISCHR(path.lstat().st_mode):
            shown = {each: what for each, what in shown.items() if each != name and not each.startswith(f"{name}/")}
            continue
        opaque = path.is_dir() and not path.is_symlink() and "user.overlay.opaque" in os.listxattr(path)
        is_folder = stat.S_ISDIR(path.lstat().st_mode)
        was_folder = name in shown and shown[name][0] == stat.S_IFDIR
        if opaque or not (is_folder and was_folder):
            shown = {each: what for each, what in shown.items() if not each.startswith(f"{name}/")}
        shown[name] = entry
    return shown


@settings(max_examples=200, deadline=None)
@given(below=st.lists(BELOW, max_size=10), above=st.lists(ABOVE, max_size=10))
def test_layer_made_of_a_layer_gives_the_same_tree(below: list[Member], above: list[Member]) -> None:
    """Apply, write the difference, apply that: the merged trees are equal, and so is the layer the third time."""
    with tempfile.TemporaryDirectory() as directory:
        lower, upper, again = (Path(directory, name) for name in ("lower", "upper", "again"))
        unpack(tar(*acceptable(below)), lower)
        whiteouts = [each for each in above if ".wh." in each[0].name]
        kept = acceptable([each for each in above if ".wh." not in each[0].name])
        usable = [each for each in whiteouts if not _lies_below_a_file(each[0].name, kept)]
        _unpack_or_reject(tar(*usable, *kept), upper, lower)
        data, packer = layer_of(upper, lower)
        unpack(data, again, [lower])
        base = listing(lower, times=True)
        assert merged(base, again) == merged(base, upper)
        assert packer.left_out == 0
        assert layer_of(again, lower)[0] == data


def _unpack_or_reject(layer: bytes, upper: Path, lower: Path) -> None:
    """Unpack a layer, or have another one made when a link that leads to itself is in the way, which is refused."""
    try:
        unpack(layer, upper, [lower])
    except InvalidImage as problem:
        if "symlinks; refused" not in str(problem):
            raise
        reject()


def _lies_below_a_file(name: str, kept: list[Member]) -> bool:
    """Whether a whiteout's folder is something else in the same layer, which is refused."""
    parts = name.split("/")
    ancestors = {"/".join(parts[:count]) for count in range(1, len(parts))}
    return any(info.name in ancestors and info.type != tarfile.DIRTYPE for info, _ in kept)


@settings(max_examples=200, deadline=None)
@given(below=st.lists(BELOW, max_size=10), above=st.lists(ABOVE, max_size=10))
def test_differences_are_those_of_the_trees(below: list[Member], above: list[Member]) -> None:
    """What is said to be added or deleted is what a comparison of the merged trees finds; nothing changed is missed."""
    with tempfile.TemporaryDirectory() as directory:
        lower, upper = Path(directory, "lower"), Path(directory, "upper")
        unpack(tar(*acceptable(below)), lower)
        _unpack_or_reject(tar(*acceptable([each for each in above if ".wh." not in each[0].name])), upper, lower)
        before = listing(lower, times=True)
        after = merged(before, upper)
        found = {line[3:]: line[0] for line in changes_of(upper, lower)}
        assert {name for name, kind in found.items() if kind == "A"} == after.keys() - before.keys()
        gone = before.keys() - after.keys()
        assert {name for name, kind in found.items() if kind == "D"} <= gone
        for name in gone:  # a folder's end, or its turning into a file, says it for what was in it
            assert any(name == each or name.startswith(f"{each}/") for each in found)
        assert {name for name in before.keys() & after.keys() if before[name] != after[name]} <= found.keys()


def test_every_kind(tmp_path: Path) -> None:
    """Files, links, fifos, hard links, whiteouts, opaque folders, odd names and times survive the way through a tar."""
    lower, upper, again = tmp_path / "lower", tmp_path / "upper", tmp_path / "again"
    unpack(tar(folder("d"), member("d/x", data=b"x"), member("gone"), folder("o"), member("o/y")), lower)
    unpack(
        tar(
            member("d/new", data=b"n" * 200_000, mode=0o4755, mtime=1_600_000_000),
            member(".wh.gone"),
            folder("o", mode=0o711),
            member("o/.wh..wh..opq"),
            link("o/l", "../d/x"),
            hard("d/second", "d/new"),
            member("d/fifo", tarfile.FIFOTYPE),
            member("n" * 255, data=b"1"),
            member("d/a=b\n\udcff", data=b"2"),
        ),
        upper,
        [lower],
    )
    os.utime(upper / "d" / "new", ns=(0, -1_500_000_001))
    data, packer = layer_of(upper, lower)
    unpack(data, again, [lower])
    base = listing(lower, times=True)
    assert merged(base, again) == merged(base, upper)
    assert packer.left_out == 0
    assert changes_of(upper, lower) == sorted([
        "C /d", "A /d/a=b\n\udcff", "A /d/fifo", "A /d/new", "A /d/second", "D /gone", f"A /{'n' * 255}",
        "C /o", "A /o/l", "D /o/y",
    ])  # fmt: skip


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    """The order in which files were made, inode numbers and where they lie leave no trace."""
    for place, order in (("one", ("a", "b", "c")), ("two", ("c", "a", "b"))):
        top = tmp_path / place
        top.mkdir()
        for name in order:
            (top / name).write_bytes(name.encode() * 1000)
            os.utime(top / name, (1, 1))
    assert layer_of(tmp_path / "one")[0] == layer_of(tmp_path / "two")[0]


def test_unchanged_folders_are_no_change(tmp_path: Path) -> None:
    """A folder that was copied up and is as it was is neither listed nor in the layer, until something in it is."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    unpack(tar(folder("etc"), folder("etc/apt"), member("etc/apt/list", data=b"1")), lower)
    unpack(tar(folder("etc"), folder("etc/apt")), upper, [lower])
    assert changes_of(upper, lower) == []
    assert layer_of(upper, lower)[0] == bytes(1024)
    (upper / "etc" / "apt" / "list").write_bytes(b"2")
    assert changes_of(upper, lower) == ["C /etc", "C /etc/apt", "C /etc/apt/list"]


def test_what_our_mounts_need_is_no_change(tmp_path: Path) -> None:
    """Empty files and folders that only serve as mount points are left out; anything in them, or of them, is not."""
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    unpack(tar(folder("etc"), link("etc/resolv.conf", "../run/resolv.conf")), lower)
    for name in ("etc", "proc", "sys", "dev"):
        (upper / name).mkdir(parents=True)
    for name in ("hosts", "hostname", "resolv.conf"):
        (upper / "etc" / name).touch()
    assert changes_of(upper, lower) == []
    (upper / "etc" / "hosts").write_text("mine")
    (upper / "proc" / "x").touch()
    assert changes_of(upper, lower) == ["A /etc/hosts", "A /proc", "A /proc/x", "C /etc"]


def test_names_that_a_layer_cannot_hold(tmp_path: Path) -> None:
    """A file called like a whiteout would delete something elsewhere; it is left out and said to be."""
    upper = tmp_path / "upper"
    upper.mkdir()
    for name in (".wh.etc", ".wh..wh..opq", "fine"):
        (upper / name).touch()
    data, packer = layer_of(upper)
    assert unpack(data, tmp_path / "again").whiteouts == 0
    assert listing(tmp_path / "again").keys() == {"fine"}
    assert packer.left_out == 2
    assert ".wh.etc was left out" in packer.notices[1]


def test_holes_are_not_written(tmp_path: Path) -> None:
    """A sparse file takes the room of its data in the layer, and is as sparse when it is applied."""
    upper = tmp_path / "upper"
    upper.mkdir()
    with (upper / "disk").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(100 << 20)
        file.write(b"data" * 1024)
        file.seek((1 << 30) - 5)
        file.write(b"x")
    (upper / "hole").write_bytes(b"")
    os.truncate(upper / "hole", 10 << 20)
    data, _ = layer_of(upper)
    assert len(data) < 100_000
    unpack(data, tmp_path / "again")
    for name in ("disk", "hole"):
        ours, theirs = tmp_path / "again" / name, upper / name
        assert ours.stat().st_size == theirs.stat().st_size
        assert ours.stat().st_blocks <= 64
        with ours.open("rb") as one, theirs.open("rb") as two:
            for place in (0, 100 << 20, ours.stat().st_size - 5):
                one.seek(place)
                two.seek(place)
                assert one.read(5000) == two.read(5000)


def test_extended_attributes(tmp_path: Path) -> None:
    """A file's own attributes are kept, overlayfs's notes are not."""
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    os.setxattr(upper / "d", "user.origin", b"here\0\xff")
    os.setxattr(upper / "d", "user.overlay.impure", b"y")
    unpack(layer_of(upper)[0], tmp_path / "again")
    assert os.listxattr(tmp_path / "again" / "d") == ["user.origin"]
    assert os.getxattr(tmp_path / "again" / "d", "user.origin") == b"here\0\xff"


@pytest.mark.root
def test_capabilities_and_devices(tmp_path: Path) -> None:
    """File capabilities are kept (ping needs them); devices and sockets are left out and said to be."""
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "ping").write_bytes(b"#!")
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(upper / "ping", "security.capability", capability)
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(upper / "socket", stat.S_IFSOCK | 0o666)
    data, packer = layer_of(upper)
    unpack(data, tmp_path / "again")
    assert os.getxattr(tmp_path / "again" / "ping", "security.capability") == capability
    assert packer.notices == ["null was left out: it is a device", "socket was left out: it is a socket"]
    assert listing(tmp_path / "again").keys() == {"ping"}
