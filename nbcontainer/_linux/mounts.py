"""Mounting, by the classic call and by the mount API of Linux 5.2 and later.

Sources: mount(2), umount2(2), pivot_root(2), open_tree(2), move_mount(2), mount_setattr(2), mount_namespaces(7).
"""

from __future__ import annotations

import ctypes
import os

from nbcontainer._linux.syscalls import (
    MACHINE,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    failure,
    openat2,
    syscall,
)

__all__ = [
    "clone_exactly",
    "clone_tree",
    "mount",
    "move_tree",
    "new_overlay",
    "new_tmpfs",
    "pivot_root",
    "set_attributes",
    "unmount",
]

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
MS_STRICTATIME = 0x1000000
MNT_DETACH = 0x2

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_FDCWD = -100

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_FSOPEN_CLOEXEC = 0x1
_FSMOUNT_CLOEXEC = 0x1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

_SYS_open_tree = 428
_SYS_move_mount = 429
_SYS_fsopen = 430
_SYS_fsconfig = 431
_SYS_fsmount = 432
_SYS_mount_setattr = 442
_SYS_pivot_root = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}.get(MACHINE, 41)


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """Mount as mount(2) does; `OSError` names the target."""
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(kind))
    if _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data) if data else None) != 0:
        raise failure(f"mount {kind or 'flags'} on", target)


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """Unmount `target`; lazily unless told otherwise."""
    if _libc.umount2(os.fsencode(target), ctypes.c_int(flags)) != 0:
        raise failure("umount", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace (pivot_root(2); ``.`` on ``.`` stacks the old one below)."""
    syscall("pivot_root", _SYS_pivot_root, os.fsencode(new_root), os.fsencode(put_old), subject=new_root)


def clone_tree(directory: int, path: str = "", *, recursive: bool = False) -> int:
    """A detached copy of the mount at `path`, as a file descriptor (open_tree(2), Linux 5.2).

    It is private: a copy of a shared mount, as systemd makes all of them, is shared with it, and what a container has
    mounted in a volume would be mounted on the machine, too (mount_namespaces(7), "SHARED SUBTREES").
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if recursive else 0) | (AT_EMPTY_PATH if not path else 0)
    tree = syscall("open_tree", _SYS_open_tree, directory, os.fsencode(path), flags, subject=path or directory)
    try:
        set_attributes(tree, 0, recursive=recursive, propagation=MS_PRIVATE)
    except BaseException:
        os.close(tree)
        raise
    return tree


def clone_exactly(path: str, *, recursive: bool) -> int:
    """As `clone_tree`, of the absolute `path` itself: a symbolic link anywhere in it is ELOOP (openat2(2))."""
    source = openat2(AT_FDCWD, path, os.O_PATH, resolve=RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS)
    try:
        return clone_tree(source, recursive=recursive)
    finally:
        os.close(source)


def move_tree(tree: int, target: int) -> None:
    """Attach the mount `tree` (detached, or attached in this namespace) at the directory or file `target`."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    syscall("move_mount", _SYS_move_mount, tree, b"", target, b"", flags, subject=target)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def set_attributes(
    tree: int, attributes: int, *, recursive: bool = False, userns: int = -1, propagation: int = 0
) -> None:
    """Set ``MOUNT_ATTR_`` flags on a mount (mount_setattr(2), Linux 5.12); `userns` goes with ``MOUNT_ATTR_IDMAP``.

    `propagation` is ``MS_PRIVATE``, or 0 for as it is.
    """
    request = _MountAttributes(attributes, 0, propagation, max(userns, 0))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    size = ctypes.sizeof(request)
    syscall("mount_setattr", _SYS_mount_setattr, tree, b"", flags, ctypes.byref(request), size, subject=hex(attributes))


def new_tmpfs(options: tuple[str, ...]) -> int:
    """A detached tmpfs, as a descriptor of its root; `options` are those of tmpfs(5)."""
    context = syscall("fsopen", _SYS_fsopen, b"tmpfs", _FSOPEN_CLOEXEC, subject="tmpfs")
    try:
        for option in options:
            name, _, value = option.partition("=")
            _configure(context, name, value)
        syscall("fsconfig", _SYS_fsconfig, context, _FSCONFIG_CMD_CREATE, 0, 0, 0, subject="tmpfs")
        return syscall("fsmount", _SYS_fsmount, context, _FSMOUNT_CLOEXEC, 0, subject="tmpfs")
    finally:
        os.close(context)


def new_overlay(lower: tuple[str, ...], upper: str, work: str, flags: tuple[str, ...]) -> int:
    """A detached overlay mount built parameter by parameter (fsconfig ``lowerdir+``, Linux 6.5).

    Needed where the layers do not fit the one page that mount(2) takes.
    """
    context = syscall("fsopen", _SYS_fsopen, b"overlay", _FSOPEN_CLOEXEC, subject="overlay")
    try:
        for layer in lower:
            _configure(context, "lowerdir+", layer)
        if upper:
            _configure(context, "upperdir", upper)
            _configure(context, "workdir", work)
        for flag in flags:
            name, equals, value = flag.partition("=")
            if equals:
                _configure(context, name, value)
            else:
                syscall("fsconfig", _SYS_fsconfig, context, _FSCONFIG_SET_FLAG, os.fsencode(name), 0, 0, subject=name)
        syscall("fsconfig", _SYS_fsconfig, context, _FSCONFIG_CMD_CREATE, 0, 0, 0, subject="overlay")
        return syscall("fsmount", _SYS_fsmount, context, _FSMOUNT_CLOEXEC, 0, subject="overlay")
    finally:
        os.close(context)


def _configure(context: int, name: str, value: str) -> None:
    key, text = os.fsencode(name), os.fsencode(value)
    syscall("fsconfig", _SYS_fsconfig, context, _FSCONFIG_SET_STRING, key, text, 0, subject=f"{name}={value}")
