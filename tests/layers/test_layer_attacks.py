"""Layers that want out, or want too much: each class of attack, failing."""

from __future__ import annotations

import errno
import os
import resource
import tarfile
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidImage, StorageError, UnsafeLayer
from nbcontainer.layers import apply as apply_module
from nbcontainer.layers.apply import ApplyLimits
from nbcontainer.layers.tar import TarLimits
from tests.layers.layer_tars import (
    END,
    folder,
    hard,
    header,
    is_whiteout,
    link,
    listing,
    member,
    padded,
    pax,
    tar,
    unpack,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory beside the target that must never change."""
    secret = tmp_path / "outside"
    secret.mkdir()
    (secret / "kept").write_text("untouched")
    return secret


def untouched(outside: Path) -> bool:
    return listing(outside).keys() == {"kept"} and (outside / "kept").read_text() == "untouched"


@pytest.mark.parametrize(
    "name",
    ["../outside/x", "/../outside/x", "a/../../outside/x", "./../outside/x", "a/b/../../../outside/x", ".."],
)
def test_dots_do_not_lead_out(tmp_path: Path, outside: Path, name: str) -> None:
    """``..`` above the root is refused, naming the entry."""
    with pytest.raises(UnsafeLayer, match="outside"):
        unpack(tar(folder("a"), member(name, data=b"x")), tmp_path / "fs")
    assert untouched(outside)


@pytest.mark.parametrize("kind", [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_dots_do_not_lead_out_for_any_kind(tmp_path: Path, outside: Path, kind: bytes) -> None:
    """Directories, symlinks, fifos and devices are refused likewise."""
    with pytest.raises(UnsafeLayer):
        unpack(tar(member("../outside/x", kind, linkname="y")), tmp_path / "fs")
    assert untouched(outside)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_dots_do_not_lead_out_in_long_names(tmp_path: Path, outside: Path, form: int) -> None:
    """Names that come in extended headers are walked as carefully."""
    name = "a/" * 80 + "../" * 81 + "outside/x"
    with pytest.raises(UnsafeLayer):
        unpack(tar(member(name, data=b"x"), form=form), tmp_path / "fs")
    assert untouched(outside)


@pytest.mark.parametrize("way", ["absolute", "relative", "chained"])
def test_symlinks_lead_nowhere_but_inside(tmp_path: Path, outside: Path, way: str) -> None:
    """Writing through a symlink that points out lands inside the root, as in the container."""
    targets = {"absolute": str(outside), "relative": "../outside", "chained": "two"}
    data = tar(
        link("two", str(outside)),
        link("one", targets[way]),
        member("one/pwned", data=b"x"),
        folder("one/dir"),
        link("one/link", "pwned"),
    )
    unpack(data, tmp_path / "fs")
    assert untouched(outside)
    assert any(name.endswith("outside/pwned") for name in listing(tmp_path / "fs"))


def test_an_entry_never_follows_the_link_it_replaces(tmp_path: Path, outside: Path) -> None:
    """A file, directory or fifo named like a symlink replaces the link, and not what it points to."""
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        data = tar(link("x", str(outside / "kept")), member("x", kind, mode=0o777))
        unpack(data, tmp_path / f"fs{kind.decode()}")
        assert not (tmp_path / f"fs{kind.decode()}" / "x").is_symlink()
    assert untouched(outside)
    assert (outside / "kept").stat().st_mode & 0o777 != 0o777


def test_directories_get_attributes_without_following_links(tmp_path: Path, outside: Path) -> None:
    """A directory that became a symlink later does not pass its attributes on to the target."""
    before = outside.stat()
    unpack(tar(folder("d", mode=0o777), link("d", str(outside))), tmp_path / "fs")
    after = outside.stat()
    assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)


def test_symlinks_of_lower_layers_lead_nowhere_but_inside(tmp_path: Path, outside: Path) -> None:
    """A lower layer's symlink is followed in the merged view only."""
    unpack(tar(link("var", str(outside)), link("up", "../../outside")), tmp_path / "low")
    unpack(tar(member("var/pwned"), member("up/pwned"), member("up/.wh.kept")), tmp_path / "top", [tmp_path / "low"])
    assert untouched(outside)
    assert (tmp_path / "top/outside/pwned").is_file()


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside/kept", "sneak/kept"])
def test_hard_links_do_not_reach_out(tmp_path: Path, outside: Path, name: str) -> None:
    """A hard link can only name what the merged view holds."""
    (tmp_path / "etc").mkdir()
    with pytest.raises(InvalidImage):
        unpack(tar(link("sneak", str(outside)), hard("x", name)), tmp_path / "fs")
    assert (outside / "kept").stat().st_nlink == 1


def test_hard_links_to_symlinks_link_the_symlink(tmp_path: Path, outside: Path) -> None:
    """A hard link to a symlink does not follow it, so writing its name does not write its target."""
    data = tar(link("s", str(outside / "kept")), hard("h", "s"), member("h", data=b"pwned"))
    unpack(data, tmp_path / "fs")
    assert untouched(outside)


@pytest.mark.parametrize("name", [".wh.", "d/.wh.", ".wh..", "d/.wh..", ".wh...", "d/.wh...", "../outside/.wh.kept"])
def test_whiteouts_cannot_name_directories_above(tmp_path: Path, outside: Path, name: str) -> None:
    """A whiteout of nothing, ``.`` or ``..``, or above the root, is refused."""
    unpack(tar(folder("d"), member("d/a")), tmp_path / "low")
    with pytest.raises(UnsafeLayer):
        unpack(tar(folder("d"), member(name)), tmp_path / "top", [tmp_path / "low"])
    with pytest.raises(UnsafeLayer):
        unpack(tar(folder("d"), member(name)), tmp_path / "flat", flat=True)
    assert untouched(outside)


def test_flat_whiteouts_through_links_stay_inside(tmp_path: Path, outside: Path) -> None:
    """Where whiteouts remove at once, a symlinked directory still cannot be used to remove outside."""
    data = tar(link("d", str(outside)), member("d/.wh.kept"), member("d/.wh..wh..opq"), member(".wh.d"))
    unpack(data, tmp_path / "fs", flat=True)
    assert untouched(outside)


def test_loops_of_links_end(tmp_path: Path) -> None:
    """A circle of symlinks, in this layer or below, is an error and not a hang."""
    circle = tar(link("a", "b"), link("b", "a"))
    unpack(circle, tmp_path / "low")
    with pytest.raises(InvalidImage, match="symlinks"):
        unpack(tar(link("a", "b"), link("b", "a"), member("a/x")), tmp_path / "fs")
    with pytest.raises(InvalidImage, match="symlinks"):
        unpack(tar(member("a/x")), tmp_path / "top", [tmp_path / "low"])


def test_a_tar_cannot_plant_whiteouts_or_opaque_marks(tmp_path: Path) -> None:
    """A 0/0 device or an overlay attribute in the tar does not hide a lower file."""
    unpack(tar(folder("d"), member("d/a")), tmp_path / "low")
    marks = {"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.overlay.whiteout": ""}
    data = tar(
        folder("d", pax_headers=marks), member("d/a", tarfile.CHRTYPE, devmajor=0, devminor=0), form=tarfile.PAX_FORMAT
    )
    unpack(data, tmp_path / "top", [tmp_path / "low"])
    assert not os.listxattr(tmp_path / "top/d")
    assert not os.listdir(tmp_path / "top/d")
    assert not any(is_whiteout(path) for path in (tmp_path / "top").rglob("*"))


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    """The total of written bytes is bounded, and so is the apparent size of a sparse file."""
    limits = ApplyLimits(bytes=1000)
    with pytest.raises(InvalidImage, match="bomb"):
        unpack(tar(member("a", data=b"x" * 600), member("b", data=b"x" * 600)), tmp_path / "fs", limits=limits)
    huge = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9000000000000000"))
    with pytest.raises(InvalidImage, match="bomb"):
        unpack(huge + header(b"s", size=512) + padded(b"0\n") + END, tmp_path / "fs2")


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    """A million empty files end at the bound."""
    data = tar(*(member(f"f{number}") for number in range(50)))
    with pytest.raises(InvalidImage, match="more than 20 entries"):
        unpack(data, tmp_path / "fs", limits=ApplyLimits(entries=20))


def test_huge_headers_are_refused_before_they_are_read(tmp_path: Path) -> None:
    """A PAX header or long name that claims gigabytes costs no memory."""
    for kind in b"xgLK":
        claim = header(b"big", bytes([kind]), size=5 * 1024**3)
        with pytest.raises(InvalidImage, match="extended header"):
            unpack(claim + END, tmp_path / "fs")


def test_global_keys_are_bounded(tmp_path: Path) -> None:
    """Endless global headers cannot fill the memory."""
    data = b"".join(pax((b"key%d" % number, b"x"), kind=b"g") for number in range(30))
    with pytest.raises(InvalidImage, match="global"):
        unpack(data + END, tmp_path / "fs", limits=ApplyLimits(tar=TarLimits(global_keys=20)))


def test_long_names_are_refused(tmp_path: Path) -> None:
    """A path beyond PATH_MAX or a component beyond NAME_MAX is an error naming the entry."""
    with pytest.raises(InvalidImage, match="longer than"):
        unpack(tar(member("a/" * 3000 + "b")), tmp_path / "fs")
    with pytest.raises(InvalidImage, match="cannot be made"):
        unpack(tar(member("n" * 300)), tmp_path / "fs2")


@pytest.mark.parametrize("field", [b"\xff" * 8, b"-000001\0", b"1_0\0\0\0\0\0", b"0000009\0"])
def test_forged_numbers_are_refused(tmp_path: Path, field: bytes) -> None:
    """Negative, signed, underscored or non-octal ids are no ids."""
    with pytest.raises(InvalidImage):
        unpack(header(b"a", b"5", uid=field) + END, tmp_path / "fs", owners=True)


@pytest.mark.parametrize("field", [b"00000000009\0", b"0000000_010\0", b"-0000000001\0", b"0x000000010\0"])
def test_sizes_that_are_no_octal_numbers_are_refused(tmp_path: Path, field: bytes) -> None:
    """What Python's ``int`` would take or choke on is neither taken nor choked on."""
    with pytest.raises(InvalidImage):
        unpack(forged_size(field) + END, tmp_path / "fs")


def test_a_checksum_that_is_no_number_is_refused(tmp_path: Path) -> None:
    """Nines where octal digits should be are a wrong checksum."""
    block = bytearray(header(b"a"))
    block[148:156] = b"999999\0 "
    with pytest.raises(InvalidImage, match="checksum"):
        unpack(bytes(block) + END, tmp_path / "fs")


def test_negative_sizes_are_refused(tmp_path: Path) -> None:
    """A negative size cannot turn the reader back."""
    with pytest.raises(InvalidImage, match="negative"):
        unpack(forged_size(b"\xff" * 12) + END, tmp_path / "fs")


def forged_size(field: bytes) -> bytes:
    """A header whose size field holds these bytes."""
    block = bytearray(header(b"a"))
    block[124:136] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("cut", [100, 512 + 10, 1024 + 100])
def test_a_cut_off_tar_is_refused(tmp_path: Path, cut: int) -> None:
    """A stream that ends inside a header, a body or padding is an error."""
    data = tar(member("a", data=b"x" * 700))
    with pytest.raises(InvalidImage, match="middle of an entry"):
        unpack(data[:cut], tmp_path / "fs")


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    """Garbage fails at its checksum."""
    with pytest.raises(InvalidImage, match="checksum"):
        unpack(b"<html>not a layer</html>" * 100, tmp_path / "fs")


@pytest.mark.parametrize(
    "body",
    [b"0 a=b\n", b"7 ab\n", b"999 a=b\n", b"x a=b\n", b"-6 a=b\n", b"6 a=bX", b"5 =b\n"],
)
def test_malformed_pax_records_are_refused(tmp_path: Path, body: bytes) -> None:
    """A record that lies about its length neither loops nor reads past the end."""
    with pytest.raises(InvalidImage):
        unpack(header(b"p", b"x", len(body)) + padded(body) + header(b"a") + END, tmp_path / "fs")


def test_names_with_nul_are_refused(tmp_path: Path) -> None:
    """A PAX path with a NUL, which C would cut short, is no path."""
    with pytest.raises(InvalidImage, match="NUL"):
        unpack(pax((b"path", b"etc/passwd\0x")) + header(b"a") + END, tmp_path / "fs")
    with pytest.raises(InvalidImage, match="NUL"):
        unpack(pax((b"linkpath", b"a\0b")) + header(b"a", b"2") + END, tmp_path / "fs")


def test_unknown_types_are_refused(tmp_path: Path) -> None:
    """A type nobody knows is an error and not a guess."""
    with pytest.raises(InvalidImage, match="unknown tar type"):
        unpack(header(b"a", b"Z") + END, tmp_path / "fs")


def test_huge_attributes_are_refused(tmp_path: Path) -> None:
    """The value of an extended attribute is bounded by what the kernel takes."""
    data = pax((b"SCHILY.xattr.user.big", b"x" * 70_000)) + header(b"a") + END
    with pytest.raises(InvalidImage, match="extended attribute"):
        unpack(data, tmp_path / "fs")


def test_messages_never_carry_control_characters(tmp_path: Path) -> None:
    """An entry named with escape codes or HTML is shown quoted and short."""
    with pytest.raises(UnsafeLayer) as caught:
        unpack(header(b"../\x1b[31m\n" + b"<b>" * 20, size=0) + END, tmp_path / "fs")
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_full_disk_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC becomes a `StorageError` that says what to do."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    data = tar(member("a", data=b"x"))
    stream = tmp_path / "layer"
    stream.write_bytes(data)
    (tmp_path / "fs").mkdir()
    fds = [os.open(stream, os.O_RDONLY), os.open(tmp_path / "fs", os.O_RDONLY)]
    try:
        with pytest.raises(StorageError, match=r"disk.*full.*%container df.*NBCONTAINER_ROOT"):
            apply_module.apply(fds[0], fds[1], owners=False)
    finally:
        for fd in fds:
            os.close(fd)


def test_a_bomb_costs_no_memory(tmp_path: Path) -> None:
    """A sparse gigabyte and ten thousand entries are applied in bounded memory."""
    sparse = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"%d" % 1024**3))
    data = sparse + header(b"s", size=512) + padded(b"0\n")
    data += b"".join(header(b"f%d" % number) for number in range(10_000)) + END
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unpack(data, tmp_path / "fs")
    assert (tmp_path / "fs/s").stat().st_blocks < 100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000
