"""What honest tars become on disk."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidImage, UnsafeLayer
from nbcontainer.layers import apply as apply_module
from tests.layers.layer_tars import (
    END,
    MTIME,
    OWNERS,
    folder,
    hard,
    header,
    link,
    listing,
    member,
    opened,
    padded,
    pax,
    tar,
    unpack,
)

if TYPE_CHECKING:
    from pathlib import Path

NS = 1_000_000_000


def test_files_get_content_mode_and_time(tmp_path: Path) -> None:
    """A file has the bytes, the mode and the time its header says, and so has a directory written into later."""
    data = tar(folder("etc", mode=0o750), member("etc/passwd", data=b"root", mode=0o600), link("etc/alias", "passwd"))
    applied = unpack(data, tmp_path / "fs")
    found = listing(tmp_path / "fs", times=True)
    assert (applied.entries, applied.bytes) == (3, 4)
    assert found["etc/passwd"][:3] == (stat.S_IFREG, 0o600, b"root")
    assert found["etc"][1] == 0o750
    assert found["etc/alias"][2] == b"passwd"
    assert {each[-1] for each in found.values()} == {MTIME * NS}


def test_names_may_be_absolute_dotted_or_doubled(tmp_path: Path) -> None:
    """``/a``, ``./b``, ``c//d`` and ``e/./f`` all lie below the root."""
    names = ["/a", "./b", "c//d", "e/./f", "g/../h"]
    unpack(tar(*(member(name, data=b"x") for name in names)), tmp_path / "fs")
    assert {name for name, entry in listing(tmp_path / "fs").items() if entry[0] == stat.S_IFREG} == {
        "a",
        "b",
        "c/d",
        "e/f",
        "h",
    }


def test_the_root_entry_sets_attributes_of_the_root(tmp_path: Path) -> None:
    """``./`` changes mode and time of the root directory."""
    unpack(tar(folder("./", mode=0o711)), tmp_path / "fs")
    status = (tmp_path / "fs").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o711, MTIME)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_the_root_stays_a_directory(tmp_path: Path, kind: bytes) -> None:
    """No entry may turn the root into something else (CVE-2021-29136)."""
    with pytest.raises(UnsafeLayer):
        unpack(tar(member(".", kind, linkname="etc")), tmp_path / "fs")
    assert (tmp_path / "fs").is_dir()


def test_an_empty_layer_is_a_layer(tmp_path: Path) -> None:
    """No entries, or no bytes at all, make an empty directory."""
    assert unpack(tar(), tmp_path / "a").entries == 0
    assert unpack(b"", tmp_path / "b").entries == 0


def test_the_last_of_duplicates_wins(tmp_path: Path) -> None:
    """A later entry replaces an earlier one of any kind, a whole directory too."""
    data = tar(
        member("a", data=b"1"),
        member("a", data=b"2"),
        folder("b"),
        member("b/inner", data=b"x"),
        member("b", data=b"file"),
        member("c", data=b"x"),
        folder("c"),
        member("c/inner", data=b"y"),
        folder("d", mode=0o700),
        member("d/kept"),
        folder("d", mode=0o711),
    )
    unpack(data, tmp_path / "fs")
    found = listing(tmp_path / "fs")
    assert found["a"][2] == b"2"
    assert found["b"][2] == b"file"
    assert "b/inner" not in found
    assert found["c/inner"][2] == b"y"
    assert found["d"][1] == 0o711
    assert "d/kept" in found


def test_a_directory_replaced_and_remade_is_found_again(tmp_path: Path) -> None:
    """Directory, file, directory: entries after each change land in what is there now."""
    data = tar(
        folder("a/b"),
        member("a/b/old"),
        member("a", data=b"file"),
        folder("a"),
        folder("a/b"),
        member("a/b/new"),
    )
    unpack(data, tmp_path / "fs")
    assert set(listing(tmp_path / "fs")) == {"a", "a/b", "a/b/new"}


def test_replacing_a_symlinked_directory_is_noticed(tmp_path: Path) -> None:
    """After a symlink is replaced, the same path means the new directory, not the old target."""
    data = tar(
        folder("one"),
        folder("two"),
        link("via", "one"),
        member("via/a"),
        link("via", "two"),
        member("via/b"),
        folder("via"),
        member("via/c"),
    )
    unpack(data, tmp_path / "fs")
    assert set(listing(tmp_path / "fs")) == {"one", "one/a", "two", "two/b", "via", "via/c"}


def test_parents_that_are_only_implied_are_made(tmp_path: Path) -> None:
    """An entry without its parents brings them, with plain attributes that do not depend on the clock."""
    unpack(tar(member("a/b/c", data=b"x")), tmp_path / "fs")
    found = listing(tmp_path / "fs", times=True)
    assert (found["a"][1], found["a"][-1]) == (0o755, 0)
    assert found["a/b/c"][2] == b"x"


def test_an_entry_under_a_file_is_refused(tmp_path: Path) -> None:
    """A path that goes through a file cannot be made, and the message names both."""
    with pytest.raises(InvalidImage, match=r"'a/b' lies under 'a', which is not a directory"):
        unpack(tar(member("a"), member("a/b")), tmp_path / "fs")


def test_hard_links_share_one_file(tmp_path: Path) -> None:
    """A hard link is the same file; to itself it is nothing; it replaces what was there."""
    data = tar(member("a", data=b"x"), hard("b", "a"), hard("a", "./a"), member("c", data=b"y"), hard("c", "/a"))
    unpack(data, tmp_path / "fs")
    inodes = {(tmp_path / "fs" / name).stat().st_ino for name in "abc"}
    assert len(inodes) == 1
    assert (tmp_path / "fs/a").stat().st_nlink == 3


def test_a_hard_link_to_nothing_is_refused(tmp_path: Path) -> None:
    """A link to a file that neither this layer nor a lower one has is an error naming both."""
    with pytest.raises(InvalidImage, match=r"'b' is a hard link to 'a'"):
        unpack(tar(hard("b", "a")), tmp_path / "fs")
    with pytest.raises(InvalidImage, match="directory"):
        unpack(tar(folder("d"), hard("b", "d")), tmp_path / "fs2")


def test_names_need_not_be_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 stay as they are."""
    unpack(header(b"caf\xe9/", b"5") + header(b"caf\xe9/\xff\xfe", size=1) + padded(b"x") + END, tmp_path / "fs")
    assert os.listdir(os.fsencode(tmp_path / "fs")) == [b"caf\xe9"]
    assert os.listdir(os.fsencode(tmp_path / "fs") + b"/caf\xe9") == [b"\xff\xfe"]


def test_fifos_are_made_and_devices_counted(tmp_path: Path) -> None:
    """A fifo is made with its mode; device nodes are left out, so none can pose as a whiteout."""
    data = tar(
        member("pipe", tarfile.FIFOTYPE, mode=0o622),
        member("null", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("gone", tarfile.CHRTYPE, devmajor=0, devminor=0),
        member("disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
    )
    applied = unpack(data, tmp_path / "fs")
    assert applied.skipped_devices == 3
    assert listing(tmp_path / "fs") == {"pipe": (stat.S_IFIFO, 0o622)}


def test_special_bits_survive_the_change_of_owner(tmp_path: Path) -> None:
    """Setuid, setgid and sticky bits are set after the owner, which would drop them."""
    uid = 12 if OWNERS else 0
    data = tar(
        member("su", data=b"x", mode=0o4755, uid=uid),
        folder("tmp", mode=0o1777),
        folder("mail", mode=0o2775, gid=uid),
        member("mail/box", mode=0o660),
    )
    unpack(data, tmp_path / "fs")
    found = listing(tmp_path / "fs", times=True)
    assert (found["su"][1], found["tmp"][1], found["mail"][1]) == (0o4755, 0o1777, 0o2775)
    if OWNERS:
        assert found["su"][-3:-1] == (12, 0)
        assert found["mail/box"][-3:-1] == (0, 0)


def test_modes_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    """The umask of the caller neither shows in modes nor is changed."""
    before = os.umask(0o077)
    try:
        unpack(tar(member("a", mode=0o666), folder("d", mode=0o777)), tmp_path / "fs")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert {entry[1] for entry in listing(tmp_path / "fs").values()} == {0o666, 0o777}


@pytest.mark.skipif(not OWNERS, reason="needs root: only root may give files away")
def test_a_setgid_target_does_not_leak_its_group(tmp_path: Path) -> None:
    """Below a setgid directory new files would inherit its group; the layer's owner wins."""
    target = tmp_path / "fs"
    target.mkdir()
    os.chown(target, 0, 7)
    target.chmod(0o2755)
    unpack(tar(member("a"), folder("d"), member("d/b"), link("l", "a")), target)
    assert {entry[-2] for entry in listing(target, times=True).values()} == {0}


def test_a_directory_nobody_may_read_can_be_filled(tmp_path: Path) -> None:
    """Modes of directories come last, so a directory with mode 000 still gets its content."""
    unpack(tar(folder("d", mode=0), member("d/a", data=b"x")), tmp_path / "fs")
    assert stat.S_IMODE((tmp_path / "fs/d").stat().st_mode) == 0
    (tmp_path / "fs/d").chmod(0o700)
    assert (tmp_path / "fs/d/a").read_bytes() == b"x"


def test_extended_attributes_are_kept_and_overlay_ones_dropped(tmp_path: Path) -> None:
    """``user.*`` is kept on files and directories; what overlayfs would believe is not."""
    headers = {
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.user.overlay.opaque": "y",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
    }
    data = tar(member("a", pax_headers=headers), folder("d", pax_headers=headers), form=tarfile.PAX_FORMAT)
    applied = unpack(data, tmp_path / "fs")
    for name in "ad":
        assert os.listxattr(tmp_path / "fs" / name) == ["user.note"]
        assert os.getxattr(tmp_path / "fs" / name, "user.note") == b"hello"
    assert applied.skipped_xattrs == 4


@pytest.mark.skipif(not OWNERS, reason="needs root: file capabilities are root's to give")
def test_file_capabilities_survive_the_change_of_owner(tmp_path: Path) -> None:
    """``security.capability`` (ping needs it) is set after chown, which drops it."""
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    blob = pax((b"SCHILY.xattr.security.capability", value)) + header(b"ping", uid=b"0000005\0", size=1) + padded(b"x")
    unpack(blob + END, tmp_path / "fs")
    assert os.getxattr(tmp_path / "fs/ping", "security.capability") == value


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    """Bytes after the end of the archive are drained, so that the writer can hash all of them."""
    data = tar(member("a", data=b"x" * 3_000_000)) + b"trailing" * 300_000
    (tmp_path / "layer").write_bytes(data)
    (tmp_path / "fs").mkdir()
    with (
        subprocess.Popen(["cat", str(tmp_path / "layer")], stdout=subprocess.PIPE) as cat,
        opened(tmp_path / "fs") as fds,
    ):
        assert cat.stdout is not None
        apply_module.apply(cat.stdout.fileno(), fds[0], owners=OWNERS)
        assert cat.stdout.read() == b""
    assert cat.returncode == 0
    assert (tmp_path / "fs/a").stat().st_size == 3_000_000


def test_entries_after_the_end_are_not_read(tmp_path: Path) -> None:
    """A second archive after the first is trailing garbage, as for Go's reader."""
    unpack(tar(member("a")) + tar(member("b")), tmp_path / "fs")
    assert set(listing(tmp_path / "fs")) == {"a"}


def test_thousands_of_directories_need_few_descriptors(tmp_path: Path) -> None:
    """More directories than descriptors, nested deeper than are kept open, come out right."""
    deep = "/".join("d" for _ in range(600))
    wide = [member(f"w{number}/x/y", data=b"1") for number in range(700)]
    again = [member(f"w{number}/x/z", data=b"2") for number in range(0, 700, 7)]
    hards = [hard(f"w{number}/link", f"w{699 - number}/x/y") for number in range(0, 300, 3)]
    data = tar(member(f"{deep}/leaf", data=b"x"), *wide, *again, *hards, member(f"{deep}/leaf2", data=b"y"))
    before = len(os.listdir("/proc/self/fd"))
    unpack(data, tmp_path / "fs")
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "fs" / deep / "leaf2").read_bytes() == b"y"
    assert (tmp_path / "fs/w0/link").samefile(tmp_path / "fs/w699/x/y")


def test_the_helper_needs_only_the_standard_library(tmp_path: Path) -> None:
    """`serve` works in ``python -I -S`` with only this package on the path, from a pipe, confined when it may be."""
    (tmp_path / "fs").mkdir()
    (tmp_path / "layer.tar").write_bytes(tar(folder("d"), member("d/a", data=b"x"), link("l", "d/a")))
    package = os.path.dirname(os.path.dirname(os.path.dirname(apply_module.__file__)))
    code = f"""if True:
        import os, sys
        sys.path.insert(0, {package!r})
        from nbcontainer.layers.apply import serve
        target = os.open({str(tmp_path / "fs")!r}, os.O_RDONLY | os.O_DIRECTORY)
        print(serve({{"owners": False, "confine": True}}, [0, target]))
        print([name for name in sys.modules if name.split(".")[0] in ("isal", "zstandard", "requests", "IPython")])
    """
    with (tmp_path / "layer.tar").open("rb") as stream:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], stdin=stream, capture_output=True, text=True, check=False
        )
    assert done.stderr == ""
    assert "'entries': 3" in done.stdout
    assert done.stdout.endswith("[]\n")
    assert (tmp_path / "fs/d/a").read_bytes() == b"x"


@pytest.mark.userns
def test_an_owner_beyond_the_map_is_explained(tmp_path: Path) -> None:
    """In a namespace with one id, a layer that wants another one says which and why not."""
    (tmp_path / "fs").mkdir()
    (tmp_path / "layer.tar").write_bytes(tar(member("a", uid=200_000)))
    package = os.path.dirname(os.path.dirname(os.path.dirname(apply_module.__file__)))
    code = f"""if True:
        import os, sys
        sys.path.insert(0, {package!r})
        from nbcontainer.layers.apply import serve
        from nbcontainer.errors import InvalidImage
        target = os.open({str(tmp_path / "fs")!r}, os.O_RDONLY | os.O_DIRECTORY)
        try:
            serve({{}}, [0, target])
        except InvalidImage as problem:
            print(problem)
    """
    with (tmp_path / "layer.tar").open("rb") as stream:
        done = subprocess.run(
            ["unshare", "-Ur", sys.executable, "-I", "-S", "-c", code],
            stdin=stream,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "wants uid 200000" in done.stdout, done.stderr
    assert "gives only 1 ids" in done.stdout
