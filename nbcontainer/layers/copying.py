"""Copying files and trees with everything that makes them what they are: owner, mode, times, xattrs, hard links, holes.

By descriptor and never through a symlink, like all that touches an image's files. Data is shared with the source
where the file system can (FICLONE on btrfs, xfs, bcachefs), else copied inside the kernel (copy_file_range(2)). Runs
in the user namespace whose ids own the files; `serve` is the entry point there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidImage, InvalidOption, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["copy_children", "copy_file", "copy_tree", "readable_xattrs", "serve"]

FICLONE = 0x40049409
_PIECE = 1024 * 1024 * 1024
_BUFFER = 1024 * 1024
_DEEPEST = 200
_OVERLAY = ("user.overlay.", "trusted.overlay.")
_NO_RANGE = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
_NO_XATTR = frozenset({errno.ENOTSUP, errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENODATA})
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def serve(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Copy what is in the directory ``fds[0]`` into the empty directory ``fds[1]``; ``owners`` keeps owners.

    Returns ``{"entries": count}``.
    """
    if len(fds) != 2:
        raise InvalidOption(f"copying takes two directories, {len(fds)} were given")
    return {"entries": copy_children(fds[0], fds[1], owners=bool(arguments.get("owners", True)))}


def copy_tree(source: str, target: str) -> None:
    """Copy the content and attributes of one directory into another, existing, empty one."""
    source_fd = os.open(source, _DIRECTORY)
    try:
        target_fd = os.open(target, _DIRECTORY)
        try:
            copy_children(source_fd, target_fd, owners=os.geteuid() == 0)
        finally:
            os.close(target_fd)
    finally:
        os.close(source_fd)


def copy_children(source_fd: int, target_fd: int, *, owners: bool) -> int:
    """Copy a directory's content and its own attributes; says how many entries."""
    copier = _Copier(owners=owners)
    copier.directory(source_fd, target_fd)
    return copier.entries


def readable_xattrs(fd: int) -> Iterator[tuple[str, bytes]]:
    """Extended attributes worth copying: not those that overlayfs keeps for itself."""
    try:
        names = os.listxattr(fd)
    except OSError as problem:
        if problem.errno in _NO_XATTR:
            return
        raise
    for name in names:
        if not name.startswith(_OVERLAY):
            with contextlib.suppress(OSError):
                yield name, os.getxattr(fd, name)


def copy_file(source_fd: int, directory_fd: int, name: bytes, *, owners: bool) -> None:
    """Make `name` a copy of an open regular file, with its attributes; `FileExistsError` when it exists."""
    status = os.fstat(source_fd)
    fd = os.open(name, _NEW, 0o600, dir_fd=directory_fd)
    try:
        copy_data(source_fd, fd, status.st_size)
        copy_attributes(source_fd, fd, status, owners=owners)
    finally:
        os.close(fd)


def copy_attributes(source_fd: int, fd: int, status: os.stat_result, *, owners: bool) -> None:
    """Owner, then xattrs (chown drops capabilities), then mode (chown drops setuid), then times."""
    if owners:
        os.fchown(fd, status.st_uid, status.st_gid)
    for key, value in readable_xattrs(source_fd):
        with contextlib.suppress(OSError):
            os.setxattr(fd, key, value)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_mtime_ns, status.st_mtime_ns))


def copy_data(source_fd: int, fd: int, size: int) -> None:
    """Share, or copy in the kernel, or copy by hand; holes stay holes."""
    try:
        fcntl.ioctl(fd, FICLONE, source_fd)
    except OSError:
        pass
    else:
        return
    os.ftruncate(fd, size)
    for start, stop in _extents(source_fd, size):
        _copy_extent(source_fd, fd, start, stop)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as problem:
            if problem.errno == errno.ENXIO:
                return
            if problem.errno != errno.EINVAL:
                raise
            start, position = position, size
        yield start, position


def _copy_extent(source_fd: int, fd: int, position: int, stop: int) -> None:
    while position < stop:
        try:
            count = os.copy_file_range(source_fd, fd, min(stop - position, _PIECE), position, position)
        except OSError as problem:
            if problem.errno not in _NO_RANGE:
                raise
            data = os.pread(source_fd, min(stop - position, _BUFFER), position)
            count = os.pwrite(fd, data, position)
        if not count:
            raise StorageError("a file of the layer store shrank while it was copied; leave the store alone")
        position += count


class _Copier:
    """One copy of a tree; remembers files with several names."""

    def __init__(self, *, owners: bool) -> None:
        self.entries = 0
        self._owners = owners
        self._linked: dict[tuple[int, int], tuple[bytes, ...]] = {}
        self._root = -1

    def directory(self, source_fd: int, target_fd: int, path: tuple[bytes, ...] = ()) -> None:
        if not path:
            self._root = target_fd
        status = os.fstat(source_fd)
        for name in [os.fsencode(name) for name in os.listdir(source_fd)]:
            self.entries += 1
            self._entry(source_fd, target_fd, name, path)
        copy_attributes(source_fd, target_fd, status, owners=self._owners)

    def _entry(self, source_fd: int, target_fd: int, name: bytes, path: tuple[bytes, ...]) -> None:
        status = os.stat(name, dir_fd=source_fd, follow_symlinks=False)
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            self._directory(source_fd, target_fd, name, path)
            return
        first = self._linked.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
        if first is not None:
            self._link(first, target_fd, name)
            return
        if status.st_nlink > 1:
            self._linked[status.st_dev, status.st_ino] = (*path, name)
        if kind == stat.S_IFREG:
            self._file(source_fd, target_fd, name)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)
        elif kind == stat.S_IFIFO:
            os.mkfifo(name, 0o600, dir_fd=target_fd)
        else:
            return  # sockets mean nothing in a copy, devices cannot be made in a user namespace
        if self._owners:
            os.chown(name, status.st_uid, status.st_gid, dir_fd=target_fd, follow_symlinks=False)
        if kind == stat.S_IFIFO:
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=target_fd)
        os.utime(name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=target_fd, follow_symlinks=False)

    def _directory(self, source_fd: int, target_fd: int, name: bytes, path: tuple[bytes, ...]) -> None:
        if len(path) >= _DEEPEST:
            raise InvalidImage(f"the image has directories more than {_DEEPEST} deep; a copying store cannot hold it")
        os.mkdir(name, 0o700, dir_fd=target_fd)
        with _opened(name, _DIRECTORY, source_fd) as source, _opened(name, _DIRECTORY, target_fd) as target:
            self.directory(source, target, (*path, name))

    def _file(self, source_fd: int, target_fd: int, name: bytes) -> None:
        with _opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, source_fd) as source:
            copy_file(source, target_fd, name, owners=self._owners)

    def _link(self, first: tuple[bytes, ...], target_fd: int, name: bytes) -> None:
        with contextlib.ExitStack() as stack:
            fd = self._root
            for part in first[:-1]:
                fd = stack.enter_context(_opened(part, _DIRECTORY, fd))
            os.link(first[-1], name, src_dir_fd=fd, dst_dir_fd=target_fd, follow_symlinks=False)


@contextlib.contextmanager
def _opened(name: bytes, flags: int, directory_fd: int) -> Iterator[int]:
    fd = os.open(name, flags, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)
