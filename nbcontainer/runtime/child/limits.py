"""What limits ask of the child's side: entering cgroups, setrlimit, privileges really given up, thawing.

The numbers were decided and the cgroups made by the engine; here they are entered and set.
"""

from __future__ import annotations

import contextlib
import os
import resource

from nbcontainer._linux import mounts, processes, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbcontainer.runtime.protocol import Room

__all__ = ["check_identity", "enter_cgroups", "set_rlimits", "thaw"]

_READ_ONLY = mounts.MS_NOSUID | mounts.MS_NOEXEC | mounts.MS_NODEV | mounts.MS_RDONLY


def enter_cgroups(room: Room, fds: list[int]) -> None:
    """Before the root is built: enter the cgroups whose entrances came with the room.

    A new cgroup namespace follows, so that what is above the leaf just entered cannot be mounted (with CAP_SYS_ADMIN)
    and rewritten.
    """
    if room.cgroups:
        for entrance in fds[len(fds) - room.cgroups :]:
            os.write(entrance, b"0")
        syscalls.unshare(processes.CLONE_NEWCGROUP)
        if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
            with contextlib.suppress(OSError):  # where it could not be mounted before either
                mounts.mount("cgroup2", "sys/fs/cgroup", "cgroup2", _READ_ONLY)


def set_rlimits(room: Room) -> None:
    """The limits of setrlimit(2), as late as can be: what follows must be able to do with them."""
    for number, (soft, hard) in room.rlimits.items():
        try:
            resource.setrlimit(int(number), (soft, hard))
        except (OSError, ValueError) as problem:
            raise OSError(f"resource limit {number} cannot be set to {soft}:{hard}: {problem}") from problem


def check_identity(room: Room, uid: int) -> None:
    """Raise unless identity and capabilities have really changed: a filter of one's own may have answered for them."""
    with open("/proc/self/status", "rb") as file:
        fields = dict(line.partition(b":")[::2] for line in file)
    wanted = sum(1 << number for number in room.capabilities) if uid == 0 else 0
    if int(fields[b"CapEff"], 16) & ~wanted or fields[b"Uid"].split() != [b"%d" % uid] * 4:
        raise PermissionError("the system-call filter keeps this process from giving up its privileges")


def thaw(freezer: str, pids: Iterable[int]) -> None:
    """Let paused containers go on, by their PID 1s: their end waits for processes that wait for nothing but this."""
    for pid in pids if freezer else ():
        with contextlib.suppress(OSError):
            processes.write_text(f"{freezer}{pid}/freezer.state", "THAWED")
