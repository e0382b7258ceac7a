"""Device nodes for containers whose ids own none of the machine's.

As root, a container's ids belong to nobody, so the machine's own nodes (root's, mode 0600) would be closed to it. For
it we make nodes of the same number, on a small file system of our own that belongs to the machine: container root
can open them as far as their mode says, and cannot change the mode. As a user the machine's nodes are shown as they
are. Sources: mknod(2), user_namespaces(7), kernel documentation devices.txt.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from nbcontainer._linux import mounts
from nbcontainer.errors import InvalidOption, UnsupportedHost
from nbcontainer.model import Device

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["device_nodes", "parse_device", "resolved_devices"]

_MEMORY = 1
"""The major number of /dev/mem, /dev/kmem and /dev/port, and of harmless ones."""
_DANGEROUS_MEMORY = frozenset({1, 2, 4, 11})


def parse_device(text: str) -> Device:
    """``HOST[:CONTAINER[:rwm]]`` as docker has it; ``m`` is understood and means nothing in a user namespace."""
    parts = text.split(":")
    if len(parts) == 2 and parts[1] and set(parts[1]) <= set("rwm"):
        parts = [parts[0], parts[0], parts[1]]
    source = parts[0]
    target = parts[1] if len(parts) > 1 and parts[1] else source
    access = parts[2] if len(parts) > 2 else "rwm"
    if len(parts) > 3 or not source.startswith("/") or not target.startswith("/") or not access:
        raise InvalidOption(f"device {text!r} is not HOST[:CONTAINER[:rwm]]; write for example /dev/fuse")
    if not set(access) <= set("rwm") or not set(access) & set("rw"):
        raise InvalidOption(f"device {text!r} has the permissions {access!r}; they are r, w or both")
    target = os.path.normpath(target)
    if target == "/" or target.startswith(("//", "/proc/", "/sys/")):
        raise InvalidOption(f"device {text!r}: the container side {target!r} must be a path below /dev or the like")
    return Device(source=os.path.normpath(source), target=target, access=access.replace("m", ""))


def resolved_devices(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Devices with every link followed and folders spread out; raise `InvalidOption` for what cannot be given."""
    found: list[Device] = []
    for device in devices:
        source = os.path.realpath(device.source)
        try:
            mode = os.stat(source).st_mode
        except OSError as problem:
            raise InvalidOption(f"device {device.source} cannot be found here ({problem.strerror})") from problem
        if stat.S_ISDIR(mode):
            names = sorted(entry.name for entry in os.scandir(source) if _is_character(entry.path))
            found += [_checked(f"{source}/{name}", f"{device.target}/{name}", device.access) for name in names]
            if not names:
                raise InvalidOption(f"device folder {device.source} has no device in it")
        else:
            found.append(_checked(source, device.target, device.access))
    return tuple(found)


def _is_character(path: str) -> bool:
    return stat.S_ISCHR(os.lstat(path).st_mode)


def _checked(source: str, target: str, access: str) -> Device:
    status = os.stat(source)
    if stat.S_ISBLK(status.st_mode):
        raise InvalidOption(
            f"device {source} is a disk: whoever may write its blocks owns this machine; show a folder of it by -v"
        )
    if not stat.S_ISCHR(status.st_mode):
        raise InvalidOption(f"{source} is not a device; to show a file or folder use -v {source}:{target}")
    if os.major(status.st_rdev) == _MEMORY and os.minor(status.st_rdev) in _DANGEROUS_MEMORY:
        raise InvalidOption(f"device {source} is this machine's own memory or log; it is not given to containers")
    wanted = (os.R_OK if "r" in access else 0) | (os.W_OK if "w" in access else 0)
    if not os.access(source, wanted):
        raise InvalidOption(
            f"device {source} is closed to you ({stat.filemode(status.st_mode)}), so you cannot give it to a container;"
            f" let an administrator open it to you (setfacl -m u:NAME:{access} {source})"
        )
    return Device(source=source, target=target, access=access)


def device_nodes(devices: Sequence[Device]) -> int:
    """A detached file system with a node for each device, named by its number; root only. The caller's to close.

    The nodes are the machine's and open to everybody as far as was asked, which no one inside can change.
    """
    tree = mounts.new_tmpfs(("size=64k", "mode=755"))
    try:
        for number, device in enumerate(devices):
            status = os.stat(device.source)
            mode = (0o444 if "r" in device.access else 0) | (0o222 if "w" in device.access else 0)
            os.mknod(str(number), stat.S_IFCHR | 0o600, status.st_rdev, dir_fd=tree)
            os.chmod(str(number), mode, dir_fd=tree)
    except OSError as problem:
        os.close(tree)
        raise UnsupportedHost(
            f"device nodes cannot be made here ({problem.strerror}); a container around this one may lack CAP_MKNOD"
        ) from problem
    except BaseException:
        os.close(tree)
        raise
    return tree
