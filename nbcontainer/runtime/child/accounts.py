"""Users and groups of the container, read from *its* files, which a stranger wrote.

Rules (Docker's ``--user``, and the CVEs behind them): ``name``, ``uid``, ``name:group``, ``uid:gid``; a number is
never looked up as a name (CVE-2026-46680); files are read with a bound and only if they are regular files (a passwd
that links to /dev/zero, a 10 GB line: CVE-2024-9676); supplementary groups apply unless a group was given. No NSS:
that would load the image's libraries.
"""

from __future__ import annotations

import os
import stat

from nbcontainer._linux.values import value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Account", "AccountError", "resolve"]

_FILE_LIMIT = 4 * 1024 * 1024
_MAX_ID = 2**32 - 2


class AccountError(Exception):
    """The user or group asked for does not exist in the image, or cannot be one."""


@value
class Account:
    """Who the command runs as; `groups` is None where setgroups must not be called."""

    uid: int
    gid: int
    home: str
    groups: list[int] | None


def resolve(text: str, root: str = "/", *, may_set_groups: bool = True) -> Account:
    """Read ``USER[:GROUP]`` against ``etc/passwd`` and ``etc/group`` below `root`; raise `AccountError`."""
    user, colon, group = text.partition(":")
    uid, gid, name, home = _user(user or "0", root)
    if colon and group:
        gid = _group(group, root)
        groups = [gid]
    else:
        groups = [gid, *_memberships(name, gid, root)]
    return Account(uid, gid, home, groups if may_set_groups else None)


def _user(text: str, root: str) -> tuple[int, int, str, str]:
    number = _number(text, "user")
    for fields in _records(f"{root}/etc/passwd", 6):
        uid, gid = _small_int(fields[2]), _small_int(fields[3])
        if uid is None or gid is None:
            continue
        if uid == number if number is not None else fields[0] == text:
            return uid, gid, fields[0], fields[5] or "/"
    if number is None:
        raise AccountError(f"user {text!r} is not in the image's /etc/passwd; use a number, or a name that is")
    return number, 0, "", "/root" if number == 0 else "/"


def _group(text: str, root: str) -> int:
    number = _number(text, "group")
    if number is not None:
        return number
    for fields in _records(f"{root}/etc/group", 3):
        gid = _small_int(fields[2])
        if fields[0] == text and gid is not None:
            return gid
    raise AccountError(f"group {text!r} is not in the image's /etc/group; use a number, or a name that is")


def _memberships(name: str, gid: int, root: str) -> list[int]:
    if not name:
        return []
    found = []
    for fields in _records(f"{root}/etc/group", 4):
        number = _small_int(fields[2])
        if number is not None and number != gid and name in fields[3].split(","):
            found.append(number)
    return found[:256]


def _number(text: str, what: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    value = _small_int(text)
    if value is None:
        raise AccountError(f"{what} id {text} is larger than {_MAX_ID}")
    return value


def _small_int(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        return None
    value = int(text)
    return value if value <= _MAX_ID else None


def _records(path: str, width: int) -> Iterator[list[str]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return
        data = bytearray()
        while len(data) < _FILE_LIMIT and (piece := os.read(fd, _FILE_LIMIT - len(data))):
            data += piece
    finally:
        os.close(fd)
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        fields = line.split(":")
        if len(fields) >= width:
            yield fields
