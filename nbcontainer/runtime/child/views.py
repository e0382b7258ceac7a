"""A container's files seen by a task: the root of one that has ended, or what lies below its writable layer.

The task takes a mount namespace of its own first, so what it mounts goes with it, and then makes the container's root
its own: no path it is given can name a file of the machine, whatever links the container left (CVE-2018-15664).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from nbcontainer._linux import processes, syscalls
from nbcontainer.errors import UnsupportedHost
from nbcontainer.runtime.child import setup

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["enter", "lower_view"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def enter(operations: Sequence[dict[str, Any]]) -> int:
    """Mount the root that `operations` describe, move there for good, and give a descriptor of it.

    Without operations we are there already, as a process that joined a running container is.
    """
    if operations:
        syscalls.unshare(processes.CLONE_NEWNS)
        try:
            root = setup.perform(operations, [])
        except setup.SetupError as problem:
            raise UnsupportedHost(f"the container's files cannot be shown: {problem}") from problem
        setup.enter_root(root)
        os.close(root)
    os.umask(0)
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def lower_view(layers: Sequence[str]) -> int:
    """A descriptor of the merged, read-only view of `layers`, topmost first."""
    if len(layers) == 1:
        return os.open(layers[0], _FOLDER)
    syscalls.unshare(processes.CLONE_NEWNS)
    step = {"op": "overlay", "target": "/", "lower": list(layers), "upper": "", "work": "", "volatile": False}
    try:
        root = setup.perform([step], [])
    except setup.SetupError as problem:
        raise UnsupportedHost(f"the layers below the container cannot be shown: {problem}") from problem
    try:
        return syscalls.openat2(root, ".", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(root)
