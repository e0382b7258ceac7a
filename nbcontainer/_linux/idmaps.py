"""The id map of containers: chosen from /etc/subuid and /etc/subgid, believed only when it can be written.

`choose_id_map` is pure; `id_map_for_host` reads this machine and, for an ordinary user, has newuidmap and newgidmap
write the map for a real child. Sources: user_namespaces(7), subuid(5), newuidmap(1).
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys

from nbcontainer._linux.processes import write_text
from nbcontainer.model.idmap import IdMap, IdRange

__all__ = [
    "CONTAINER_IDS",
    "choose_id_map",
    "entries",
    "id_map_for_host",
    "map_refusal",
    "overlap",
    "own_entries",
    "single_id_map",
    "small_text",
    "user_name_of",
    "wanted_id_map",
    "write_map",
]

CONTAINER_IDS = 65536
"""Ids given to a container of root's: all that images use, `nobody` (65534) included."""

_FIXED_TOP = 0x70000000
"""One past systemd's range for container ids, 0x80000..0x6FFFFFFF (systemd.io/UIDS-GIDS): taken from the top, because
useradd hands out subordinate ids from the bottom."""

_OF_ROOT = 1 << 21 | 1 << 19  # CAP_SYS_ADMIN, CAP_SYS_PTRACE of capabilities(7)
_EVERY_ID = "0 0 4294967295"
"""The uid_map of the initial user namespace (user_namespaces(7))."""


def choose_id_map(
    uid: int,
    gid: int,
    user_name: str,
    subuid_text: str,
    subgid_text: str,
    *,
    helpers_available: bool,
    may_mount: bool = True,
    uid_map_text: str = _EVERY_ID,
    gid_map_text: str = _EVERY_ID,
) -> IdMap:
    """Choose the id map of our containers from facts alone.

    Root gets 65536 ids that belong to nobody: the entry of `nbcontainer` or `root` in /etc/subuid and /etc/subgid,
    else a fixed block that overlaps no entry; root that `may_mount` nothing, which is root of an outer container, is
    container root itself and gets them from 1 on. A user gets itself as container root, and its subordinate ids from 1
    on. Without a range, or helpers that may write it, there is one id. `uid_map_text` and `gid_map_text` are our own
    namespace's maps (/proc/self/uid_map): inside a container most ids do not exist and cannot be given away.
    """
    here = _mapped(uid_map_text), _mapped(gid_map_text)
    if uid == 0:
        block = _root_block(subuid_text, subgid_text, here)
        if block is not None:
            uid_start, gid_start, length = block
            if not may_mount:
                return IdMap(
                    uids=(IdRange(0, uid, 1), IdRange(1, uid_start, length)),
                    gids=(IdRange(0, gid, 1), IdRange(1, gid_start, length)),
                    method="direct",
                )
            return IdMap(
                uids=(IdRange(0, uid_start, length),), gids=(IdRange(0, gid_start, length),), method="privileged"
            )
    elif helpers_available:
        uids = _user_ranges(own_entries(subuid_text, user_name, uid), uid, here[0])
        gids = _user_ranges(own_entries(subgid_text, user_name, uid), gid, here[1])
        if uids and gids:
            return IdMap(uids=(IdRange(0, uid, 1), *uids), gids=(IdRange(0, gid, 1), *gids), method="helpers")
    return single_id_map(uid, gid)


_Block = tuple[int, int]
"""First id and count."""


def entries(text: str) -> list[tuple[str, int, int]]:
    """Read (owner, first, count) from subuid(5) text; lines that say nothing usable are skipped, as newuidmap does."""
    found = []
    for line in text.splitlines():
        owner, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        # isascii: int() would also take other scripts' digits
        if owner and not owner.startswith("#") and f"{first}{count}".isascii() and first.isdigit() and count.isdigit():
            entry = (owner, int(first), int(count))
            if entry[2] > 0 and entry[1] + entry[2] <= 0xFFFFFFFF:
                found.append(entry)
    return found


def own_entries(text: str, user_name: str, uid: int) -> list[_Block]:
    """Return the ranges of one user, whose lines may go by name or by number (subgid(5) names the *user* as well)."""
    return [(first, count) for owner, first, count in entries(text) if owner in (user_name, str(uid))]


def _mapped(text: str) -> list[_Block]:
    """Return the ids that exist in a namespace, from the text of its map."""
    rows = (line.split() for line in text.splitlines())
    return [(int(row[0]), int(row[2])) for row in rows if len(row) == 3]


def overlap(first: _Block, second: _Block) -> bool:
    return first[0] < second[0] + second[1] and second[0] < first[0] + first[1]


def _exists(block: _Block, here: list[_Block]) -> bool:
    return any(start <= block[0] and block[0] + block[1] <= start + count for start, count in here)


def _root_block(
    subuid_text: str, subgid_text: str, here: tuple[list[_Block], list[_Block]]
) -> tuple[int, int, int] | None:
    """Return (first uid, first gid, length) for containers of root's, or None when there is one id only."""

    def usable(block: _Block, ids: list[_Block]) -> bool:
        # below 65536 live the machine's own users: container root must be none of them
        return block[1] >= CONTAINER_IDS and block[0] >= CONTAINER_IDS and _exists((block[0], CONTAINER_IDS), ids)

    for name in ("nbcontainer", "root"):
        uids = [b for b in own_entries(subuid_text, name, 0 if name == "root" else -1) if usable(b, here[0])]
        gids = [b for b in own_entries(subgid_text, name, 0 if name == "root" else -1) if usable(b, here[1])]
        if uids and gids:
            return uids[0][0], gids[0][0], CONTAINER_IDS
    taken = [(first, count) for _, first, count in (*entries(subuid_text), *entries(subgid_text))]
    for start in range(_FIXED_TOP - CONTAINER_IDS, 0x80000 - 1, -CONTAINER_IDS):
        block = (start, CONTAINER_IDS)
        if not _exists(block, here[0]) or not _exists(block, here[1]):
            break
        if not any(overlap(block, other) for other in taken):
            return start, start, CONTAINER_IDS
    # root of a namespace that holds few ids (a rootless container): all of them but our own 0
    spare = [max((start + count - max(start, 1) for start, count in ids if start <= 1), default=0) for ids in here]
    length = min(*spare, CONTAINER_IDS)
    return (1, 1, length) if length > 1 else None


_MOST_RANGES = 4
"""More ranges than anyone has; they are part of a directory name (`IdMap.key`), which has 255 bytes."""


def _user_ranges(blocks: list[_Block], own_id: int, here: list[_Block]) -> tuple[IdRange, ...]:
    """Lay a user's blocks one after the other from inside id 1 on: one block if it is large enough, else several.

    The kernel refuses maps whose ranges overlap: the same block listed by name and by number, or one with our own id.
    """
    usable = [b for b in blocks if _exists(b, here) and not overlap(b, (own_id, 1)) and not overlap(b, (0, 1))]
    large = [b for b in usable if b[1] >= CONTAINER_IDS]
    chosen: list[IdRange] = []
    inside = 1
    for first, count in large[:1] or usable:
        if len(chosen) < _MOST_RANGES and not any(overlap((first, count), (r.outside, r.length)) for r in chosen):
            chosen.append(IdRange(inside, first, count))
            inside += count
    return tuple(chosen)


def id_map_for_host() -> IdMap:
    """Choose the id map of this process's containers; ask once and keep it (files on disk depend on it).

    A user's range is only believed after newuidmap and newgidmap have written it for a real child (about 25 ms): the
    programs are there but powerless under no_new_privs, on a nosuid mount, or with a group that is not the primary
    one. The same for root of an outer container, which may have been started without the capabilities for it.
    """
    chosen = wanted_id_map()
    if chosen.method in {"helpers", "direct"} and map_refusal(chosen):
        return single_id_map(os.geteuid(), os.getegid())
    return chosen


def wanted_id_map() -> IdMap:
    """Choose from the files alone, before anybody tried."""
    uid = os.geteuid()
    return choose_id_map(
        uid,
        os.getegid(),
        user_name_of(uid),
        small_text("/etc/subuid"),
        small_text("/etc/subgid"),
        helpers_available=_helpers_found(),
        may_mount=_may_mount(),
        uid_map_text=small_text("/proc/self/uid_map") or _EVERY_ID,
        gid_map_text=small_text("/proc/self/gid_map") or _EVERY_ID,
    )


def single_id_map(uid: int, gid: int) -> IdMap:
    return IdMap(uids=(IdRange(0, uid, 1),), gids=(IdRange(0, gid, 1),), method="single")


def user_name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a number without a passwd entry, as in OpenShift pods
        return ""


def small_text(path: str) -> str:
    """Return a small system file as text, or nothing when it is missing or not for us."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


def _may_mount() -> bool:
    """Whether we may, and may look at processes with other ids: docker and podman take both rights from their root."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", small_text("/proc/self/status"), re.MULTILINE)
    return found is None or int(found[1], 16) & _OF_ROOT == _OF_ROOT


def _helpers_found() -> bool:
    return shutil.which("newuidmap") is not None and shutil.which("newgidmap") is not None


_NAMESPACE_HOLDER = (
    "import ctypes,os,sys\n"
    "libc=ctypes.CDLL(None,use_errno=True)\n"
    "if libc.unshare(0x10000000): sys.exit('unshare: '+os.strerror(ctypes.get_errno()))\n"
    "os.write(1,b'.')\n"
    "os.read(0,1)\n"
)
"""A child in a new user namespace (CLONE_NEWUSER) that waits to be mapped and ends with its standard input."""


def map_refusal(id_map: IdMap) -> str:
    """Return why this map cannot be written for a real child, or "" when it can."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _NAMESPACE_HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            if holder.stdout.read(1) != b".":
                return holder.stderr.read().decode(errors="replace").strip() or "no user namespace could be made"
            return write_map(holder.pid, id_map)
        finally:
            holder.kill()


def write_map(pid: int, id_map: IdMap) -> str:
    """Write the maps of `pid`'s new user namespace, or have them written; return "" or why that was refused."""
    if id_map.method == "helpers":
        return _write_with_helpers(pid, id_map)
    try:
        if id_map.single:
            write_text(f"/proc/{pid}/setgroups", "deny")  # else the gid map is refused (user_namespaces(7))
        for name, ranges in (("uid_map", id_map.uids), ("gid_map", id_map.gids)):
            write_text(f"/proc/{pid}/{name}", "".join(f"{each}\n" for each in ranges))
    except OSError as problem:
        return str(problem)
    return ""


def _write_with_helpers(pid: int, id_map: IdMap) -> str:
    for program, ranges in (("newuidmap", id_map.uids), ("newgidmap", id_map.gids)):
        words = [word for each in ranges for word in str(each).split()]
        try:
            done = subprocess.run(
                [program, str(pid), *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as problem:
            return f"{program}: {problem}"
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            return said[-1] if said else f"{program} ended with code {done.returncode}"
    return ""
