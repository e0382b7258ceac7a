"""The stage: a container's private /proc, /sys and /dev, built while nobody waits.

Performed by PID 1 of a container to be, inside its own fresh namespaces, with the current directory on the stage: a
small tmpfs of the launcher that has one empty directory per tree. A request later moves the finished trees into the
new root.
"""

from __future__ import annotations

import contextlib
import os
import stat

from nbcontainer._linux import mounts, processes, syscalls
from nbcontainer.runtime.places import MASKED_IN_PROC, MASKED_IN_SYS, READ_ONLY_IN_PROC

__all__ = ["DIRECTORIES", "build_trees", "is_a_container_root", "mask", "open_network", "show_network"]

DIRECTORIES = ("root", "proc", "sys", "dev", "gen", "empty", "store", "host")

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "ptmx": "pts/ptmx",
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
}
_PROC = 0x9FA0  # PROC_SUPER_MAGIC of statfs(2)
_SAFE = mounts.MS_NOSUID | mounts.MS_NOEXEC | mounts.MS_NODEV
_NULL_DEVICE = os.makedev(1, 3)


def build_trees(*, private_network: bool, new_network: bool, tty_group: bool) -> None:
    """Mount proc, sys, dev and the place for generated files under the current directory."""
    mounts.mount("proc", "proc", "proc", _SAFE)
    if new_network:
        open_network("proc")
    _dev(tty_group=tty_group)
    _restrict_proc()
    _sys(private_network=private_network)
    mounts.mount("tmpfs", "gen", "tmpfs", _SAFE, "mode=755,size=1m")


def show_network() -> None:
    """Make /sys anew: it shows the network namespace in which it was mounted, and this process is in another now."""
    _sys(private_network=True)


def open_network(proc: str) -> None:
    """Loopback up; port 80 and ping need no capability in a network of one's own (as every engine sets it)."""
    processes.bring_loopback_up()
    for name, value in (("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 2147483647")):
        with contextlib.suppress(OSError):  # an older kernel, or gids that are not mapped: only a comfort
            processes.write_text(f"{proc}/sys/net/ipv4/{name}", value)


def _restrict_proc() -> None:
    for name in MASKED_IN_PROC:
        mask(f"proc/{name}", null="dev/null")
    for name in READ_ONLY_IN_PROC:
        try:
            tree = mounts.clone_tree(mounts.AT_FDCWD, f"proc/{name}")
        except FileNotFoundError:
            continue
        _attach(tree, f"proc/{name}", mounts.MOUNT_ATTR_RDONLY)


def _attach(tree: int, target: str, attributes: int) -> None:
    try:
        mounts.set_attributes(tree, attributes)
        target_fd = os.open(target, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            mounts.move_tree(tree, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(tree)


def mask(path: str, *, null: str) -> None:
    """Hide what `path` shows: a directory under an empty read-only tmpfs, a file under the null device.

    The null device is checked to be one: an image could have put something else there (CVE-2025-31133).
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    cover(path, null=null, directory=stat.S_ISDIR(kind))


def cover(path: str, *, null: str, directory: bool) -> None:
    """Mount over `path`, which is known to be a directory or not; a ``/proc/self/fd`` path will do."""
    if directory:
        mounts.mount("tmpfs", path, "tmpfs", _SAFE | mounts.MS_RDONLY, "mode=555,size=0k,nr_inodes=1")
        return
    device = os.stat(null)
    if not stat.S_ISCHR(device.st_mode) or device.st_rdev != _NULL_DEVICE:
        raise OSError(f"{null} is not the null device; refusing to mask {path} with it")
    mounts.mount(null, path, "", mounts.MS_BIND)


def _sys(*, private_network: bool) -> None:
    if private_network:
        mounts.mount("sysfs", "sys", "sysfs", _SAFE | mounts.MS_RDONLY)
    else:  # sysfs belongs to a network namespace; one that is not ours can only be shown, read-only
        tree = mounts.clone_tree(mounts.AT_FDCWD, "/sys", recursive=True)
        try:
            attributes = (
                mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NOEXEC | mounts.MOUNT_ATTR_NODEV
            )
            mounts.set_attributes(tree, attributes, recursive=True)
            target = os.open("sys", os.O_PATH | os.O_CLOEXEC)
            try:
                mounts.move_tree(tree, target)
            finally:
                os.close(target)
        finally:
            os.close(tree)
        mask("sys/fs/cgroup", null="dev/null")
    for name in MASKED_IN_SYS:
        mask(f"sys/{name}", null="dev/null")
    for processor in _throttled_processors():
        mask(f"sys/devices/system/cpu/{processor}/thermal_throttle", null="dev/null")
    if private_network and os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        with contextlib.suppress(OSError):  # outside a cgroup namespace of ours: leave the directory empty
            mounts.mount("cgroup2", "sys/fs/cgroup", "cgroup2", _SAFE | mounts.MS_RDONLY)


def _throttled_processors() -> list[str]:
    """Processors whose heat can be read, a side channel; most machines' virtual ones have none."""
    if not os.path.exists("/sys/devices/system/cpu/cpu0/thermal_throttle"):
        return []
    return [name for name in os.listdir("/sys/devices/system/cpu") if name[:3] == "cpu" and name[3:].isdigit()]


def _dev(*, tty_group: bool) -> None:
    mounts.mount("tmpfs", "dev", "tmpfs", mounts.MS_NOSUID | mounts.MS_STRICTATIME, "mode=755,size=65536k")
    for name in _DEVICES:
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        mounts.mount(f"/dev/{name}", f"dev/{name}", "", mounts.MS_BIND)
    for name, target in _LINKS.items():
        os.symlink(target, f"dev/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"dev/{name}", 0o755)
    group = ",gid=5" if tty_group else ""
    nosuid_noexec = mounts.MS_NOSUID | mounts.MS_NOEXEC
    mounts.mount("devpts", "dev/pts", "devpts", nosuid_noexec, f"newinstance,ptmxmode=0666,mode=0620{group}")
    mounts.mount("shm", "dev/shm", "tmpfs", _SAFE, "mode=1777,size=65536k")
    mounts.mount("mqueue", "dev/mqueue", "mqueue", _SAFE)


def is_a_container_root() -> bool:
    """Whether this process, which has joined a mount namespace and not the process ids, sees a container's files.

    The namespace of a container that is just being built still shows the machine's: there /proc knows us. In a
    container's it does not, because we are none of its processes (proc(5), "/proc/self").
    """
    try:
        fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if syscalls.file_system_type(fd) != _PROC:
            return False
        os.readlink("self", dir_fd=fd)
    except FileNotFoundError:
        return True
    finally:
        os.close(fd)
    return False
