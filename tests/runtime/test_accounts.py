"""Users and groups of an image, whose files a stranger wrote."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.runtime.child.accounts import Account, AccountError, resolve

if TYPE_CHECKING:
    from pathlib import Path

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
alice:x:1000:1001:Alice:/home/alice:/bin/sh
1000:x:7:7:a number for a name:/home/evil:/bin/sh
homeless:x:8:8::
nine:x:9:9:nine:/nine:/bin/sh
nine:x:10:10:a second one:/ten:/bin/sh
"""
GROUP = "root:x:0:\nalice:x:1001:\nstaff:x:50:alice,nine\nwheel:x:27:nine,alice\nalices:x:1001:alice\n1001:x:5:\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Lend an image's root."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(PASSWD)
    (tmp_path / "etc/group").write_text(GROUP)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("", Account(0, 0, "/root", [0])),
        ("0", Account(0, 0, "/root", [0])),
        ("root", Account(0, 0, "/root", [0])),
        ("alice", Account(1000, 1001, "/home/alice", [1001, 50, 27])),
        ("1000", Account(1000, 1001, "/home/alice", [1001, 50, 27])),
        ("alice:staff", Account(1000, 50, "/home/alice", [50])),
        ("alice:7", Account(1000, 7, "/home/alice", [7])),
        ("alice:", Account(1000, 1001, "/home/alice", [1001, 50, 27])),
        (":staff", Account(0, 50, "/root", [50])),
        ("0:1001", Account(0, 1001, "/root", [1001])),
        ("4242", Account(4242, 0, "/", [0])),
        ("homeless", Account(8, 8, "/", [8])),
        ("nine", Account(9, 9, "/nine", [9, 50, 27])),
        ("0001000", Account(1000, 1001, "/home/alice", [1001, 50, 27])),
        ("4294967294", Account(4294967294, 0, "/", [0])),
    ],
)
def test_resolve(root: Path, text: str, account: Account) -> None:
    """Names and numbers as docker reads them; a number is never a name, the first entry counts (CVE-2026-46680)."""
    assert resolve(text, str(root)) == account


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("bob", "'bob' is not in the image's /etc/passwd"),
        ("0:bobs", "'bobs' is not in the image's /etc/group"),
        ("-1", "'-1' is not"),
        ("+0", "'+0' is not"),
        ("0x0", "'0x0' is not"),
        ("\u0660", "is not in"),
        ("4294967295", "larger than"),
        ("99999999999999999999", "larger than"),
        ("0:4294967295", "larger than"),
        ("a:b:c", "'a' is not"),
        ("alice:staff:wheel", "'staff:wheel' is not"),
        (" 0", "' 0' is not"),
    ],
)
def test_refuse(root: Path, text: str, words: str) -> None:
    """What is neither is refused, never read as 0 (CVE-2026-30892)."""
    with pytest.raises(AccountError) as raised:
        resolve(text, str(root))
    assert words in str(raised.value)


def test_no_groups_where_they_must_not_be_set(root: Path) -> None:
    """Where setgroups is denied none are asked for."""
    assert resolve("alice", str(root), may_set_groups=False).groups is None


def test_missing_files(tmp_path: Path) -> None:
    """An image without passwd has numbers only."""
    assert resolve("7", str(tmp_path)) == Account(7, 0, "/", [0])
    assert resolve("", str(tmp_path)).home == "/root"
    with pytest.raises(AccountError):
        resolve("root", str(tmp_path))


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "endless", "loop", "dangling", "socket"])
def test_no_file(root: Path, name: str, kind: str) -> None:
    """A passwd that is no file, or a link to something endless, is read as empty, at once (CVE-2024-9676)."""
    path = root / "etc" / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"endless": "/dev/zero", "loop": name, "dangling": "/nonesuch", "socket": "/dev/log"}[kind])
    assert resolve("4242:4343", str(root)) == Account(4242, 4343, "/", [4343])
    with pytest.raises(AccountError):
        resolve("bob:bobs", str(root))


@pytest.mark.parametrize(
    "text",
    ["x" * 10_000_000, "x:" * 5_000_000, "\n" * 10_000_000, "\0" * 10_000_000, "bob:x:" + "9" * 9_000_000 + ":0:::\n"],
    ids=["line", "fields", "lines", "zeros", "number"],
)
def test_huge_files(root: Path, text: str) -> None:
    """Ten megabytes of anything are read up to a bound and mean nothing."""
    (root / "etc/passwd").write_text(text)
    (root / "etc/group").write_text(text)
    with pytest.raises(AccountError):
        resolve("bob", str(root))


@pytest.mark.parametrize(
    "line",
    ["bob", "bob:x:0", "bob:x:-1:0::/:", "bob:x::0::/:", "bob:x:4294967295:0::/:", "bob:x:1e1:0::/:",
     "bob:x:\u0661:0::/:", "bob:x: 1:0::/:",
     "bob:x:99999999999:0::/:", "bob :x:1:1::/:"],
)  # fmt: skip
def test_damaged_lines(root: Path, line: str) -> None:
    """A line that is not an account is none, least of all root's."""
    (root / "etc/passwd").write_text(f"{line}\n{PASSWD}")
    with pytest.raises(AccountError):
        resolve("bob", str(root))
    assert resolve("alice", str(root)).uid == 1000


def test_names_that_are_not_text(root: Path) -> None:
    """Bytes that are not UTF-8 do no harm."""
    (root / "etc/passwd").write_bytes(b"\xff:x:5:5::/\xff:\n" + PASSWD.encode())
    assert resolve("alice", str(root)).uid == 1000
    assert resolve(os.fsdecode(b"\xff"), str(root)).home == os.fsdecode(b"/\xff")


def test_many_groups(root: Path) -> None:
    """The kernel's bound of groups is not exceeded by an image."""
    (root / "etc/group").write_text("".join(f"g{n}:x:{n}:alice\n" for n in range(100_000)))
    groups = resolve("alice", str(root)).groups
    assert groups is not None
    assert len(groups) <= 65536
