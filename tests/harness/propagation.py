"""Mounts that are shared, as systemd has all of them: what somebody mounts on one appears on its copies elsewhere.

A machine without systemd has private ones, where it would not be noticed that a mount of a container reaches out.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from nbcontainer._linux import mounts, processes, syscalls

__all__ = ["share_mounts"]

_MS_SHARED = 1 << 20


def share_mounts() -> None:
    """Take, as root, a mount namespace of our own in which every mount is shared, where the root is not already."""
    if os.geteuid() != 0 or _is_shared("/"):
        return
    with contextlib.suppress(OSError):  # root of a container, which may not
        syscalls.unshare(processes.CLONE_NEWNS)
        mounts.mount("", "/", "", mounts.MS_REC | _MS_SHARED)


def _is_shared(path: str) -> bool:
    for line in reversed(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()):
        words = line.partition(" - ")[0].split()
        if words[4] == path:
            return any(word.startswith("shared:") for word in words[6:])
    return False
