"""Writing a layer's tar into a directory: fast, exact, and unable to leave it.

Runs as root of a user namespace in a helper process that has the standard library and nothing else, reading an
uncompressed tar from a pipe (the process at the other end inflates and hashes). Owners are those of the layer, so a
container starts without any chown. See `tree` for how a path is walked and what whiteouts become, `tar` for what is
read.

The order of calls on a file is part of the result: chown first (it drops setuid bits and capabilities), then xattrs,
then mode, then time. Directories get theirs at the very end, deepest first, when nothing is written into them any
more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidImage, InvalidOption, NbcontainerError, StorageError, UnsafeLayer
from nbcontainer.layers.copying import copy_file
from nbcontainer.layers.tar import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    FILE,
    HARD_LINK,
    SYMLINK,
    Archive,
    Entry,
    Stream,
    TarLimits,
    shown,
)
from nbcontainer.layers.tree import Attributes, Directory, Tree, clean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["AppliedLayer", "ApplyLimits", "apply", "serve", "sync_filesystem"]

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PIPE = 1024 * 1024
_IN_ONE_PIECE = 256 * 1024
_SPECIAL_BITS = 0o7000
_LARGEST_ID = 0xFFFFFFFE
_LATEST = (1 << 53) * 1_000_000_000
_PLACED = frozenset({FILE, DIRECTORY, SYMLINK, HARD_LINK, FIFO})
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."
_WHITEOUTS_OF_NOTHING = frozenset({b".wh.", b".wh..", b".wh..."})
_DROPPED_XATTRS = (b"trusted.overlay.", b"user.overlay.")
_REFUSED_XATTR = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL, errno.ERANGE, errno.E2BIG})
_MOST_WARNINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyLimits:
    """What one layer may at most be: a bomb ends here, and not with the disk or the memory."""

    bytes: int = 256 * 1024**3
    """Bytes written to files, and the apparent size of one sparse file."""
    entries: int = 10_000_000
    xattr: int = 64 * 1024
    """Bytes of the value of one extended attribute (the kernel's XATTR_SIZE_MAX)."""
    tar: TarLimits = field(default_factory=TarLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedLayer:
    """What was written. `skipped_devices` counts device nodes, which a user namespace cannot make."""

    entries: int
    bytes: int
    whiteouts: int = 0
    skipped_devices: int = 0
    skipped_xattrs: int = 0
    warnings: tuple[str, ...] = ()


def apply(
    stream_fd: int,
    target_fd: int,
    *,
    parents: Sequence[int] = (),
    owners: bool = True,
    flat: bool = False,
    confine: bool = False,
    limits: ApplyLimits | None = None,
) -> AppliedLayer:
    """Write the tar read from `stream_fd` into the directory `target_fd`; the stream is read to its end.

    `parents` are descriptors of the lower layers' directories, topmost first. `owners` false leaves every file to the
    caller (a namespace with one id). `flat` is for a target that already holds a copy of its lower layers: whiteouts
    remove. `confine` changes the process's root to the target first, for good: only for a process with nothing
    else to do.

    Raises `UnsafeLayer` for an entry that would leave the target, `InvalidImage` for a tar that cannot be used,
    `StorageError` when the disk cannot take it. The target is then half written: remove it.
    """
    chosen = limits or ApplyLimits()
    with contextlib.suppress(OSError):
        fcntl.fcntl(stream_fd, fcntl.F_SETPIPE_SZ, _PIPE)
    ids = _mapped_ids() if owners else (0, 0)
    if confine:
        _confine(target_fd)
    umask = os.umask(0)
    tree = Tree(target_fd, parents, flat=flat)
    applier = _Applier(Stream(stream_fd), tree, owners=owners, ids=ids, limits=chosen)
    try:
        return applier.run()
    except NbcontainerError:
        raise
    except OSError as problem:
        raise applier.explain(problem) from problem
    finally:
        tree.close()
        os.umask(umask)


def serve(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Apply a layer for the runtime's helper: JSON in, descriptors beside it, JSON out.

    `fds` are the stream, the target, then the lower layers topmost first. `arguments` may hold the switches of
    `apply` (``owners``, ``flat``, ``confine``) and the numbers of `ApplyLimits` (``bytes``, ``entries``,
    ``xattr``). Returns the fields of `AppliedLayer`.
    """
    if len(fds) < 2:
        raise InvalidOption(f"applying a layer takes a stream and a target, {len(fds)} descriptors were given")
    usual = ApplyLimits()
    limits = ApplyLimits(
        bytes=int(arguments.get("bytes", usual.bytes)),
        entries=int(arguments.get("entries", usual.entries)),
        xattr=int(arguments.get("xattr", usual.xattr)),
    )
    applied = apply(
        fds[0],
        fds[1],
        parents=fds[2:],
        owners=bool(arguments.get("owners", True)),
        flat=bool(arguments.get("flat", False)),
        confine=bool(arguments.get("confine", False)),
        limits=limits,
    )
    return asdict(applied)


def sync_filesystem(fd: int) -> None:
    """Write everything of the file system holding `fd` to disk (syncfs(2)): one call for a whole layer."""
    from nbcontainer._linux import syscalls

    if syscalls._libc.syncfs(fd) != 0:  # noqa: SLF001 - the C library's own wrapper
        raise syscalls.failure("syncfs")


class _Applier:
    """One layer on its way to disk."""

    def __init__(self, stream: Stream, tree: Tree, *, owners: bool, ids: tuple[int, int], limits: ApplyLimits) -> None:
        self._stream = stream
        self._tree = tree
        self._owners = owners
        self._ids = ids
        self._limits = limits
        self._entries = 0
        self._bytes = 0
        self._whiteouts = 0
        self._devices = 0
        self._refused_xattrs = 0
        self._warnings: dict[str, None] = {}
        self._current: Entry | None = None
        self._always_chown = False
        self._always_chmod = False

    def run(self) -> AppliedLayer:
        self._probe()
        for entry in Archive(self._stream, self._limits.tar):
            self._current = entry
            self._entries += 1
            if self._entries > self._limits.entries:
                raise InvalidImage(f"the layer has more than {self._limits.entries} entries; refused as a bomb")
            self._place(entry)
        self._current = None
        self._finish()
        self._stream.drain()
        return AppliedLayer(
            entries=self._entries,
            bytes=self._bytes,
            whiteouts=self._whiteouts,
            skipped_devices=self._devices,
            skipped_xattrs=self._refused_xattrs,
            warnings=tuple(self._warnings),
        )

    def _probe(self) -> None:
        """Whether new files get exactly the mode and group we ask for.

        They do not below a directory with a default ACL, with the setgid bit, or on a mount with ``grpid``.
        """
        name, root = b".nbcontainer-probe", self._tree.root.fd
        fd = os.open(name, _NEW, 0o777, dir_fd=root)
        try:
            status = os.fstat(fd)
        finally:
            os.close(fd)
            os.unlink(name, dir_fd=root)
        self._always_chmod = stat.S_IMODE(status.st_mode) != 0o777
        self._always_chown = (status.st_uid, status.st_gid) != (0, 0)

    # Placing entries

    def _place(self, entry: Entry) -> None:
        raw = entry.name
        kind = entry.kind
        if raw.endswith(b"/"):
            raw = raw.rstrip(b"/") or b"/"
        if not raw:
            self._skip(entry, "the layer has an entry without a name, which was left out")
            return
        if _WHITEOUT in raw and raw.rpartition(b"/")[2].startswith(_WHITEOUT):
            self._place_whiteout(entry, raw)
            return
        if kind not in _PLACED:
            self._leave_out(entry)
            return
        node, name = self._tree.split(raw)
        if not name:
            self._place_root(entry)
            return
        if self._tree.flat or not node.brought:
            self._tree.claim(node, name)
        if kind == FILE:
            self._place_file(entry, node, name)
        elif kind == DIRECTORY:
            self._place_directory(entry, node, name, raw)
        elif kind == SYMLINK:
            self._place_symlink(entry, node, name)
        elif kind == HARD_LINK:
            self._place_hard_link(entry, node, name)
        else:
            self._place_fifo(entry, node, name)

    def _leave_out(self, entry: Entry) -> None:
        """Devices, which a user namespace cannot make, and what is not a file at all."""
        if entry.kind in {CHARACTER, BLOCK_DEVICE}:
            clean(entry.name)
            self._devices += 1
        else:
            self._skip(entry, f"the layer has an entry of the tar type {chr(entry.kind)!r}, which was left out")

    def _skip(self, entry: Entry, warning: str) -> None:
        self._warn(warning)
        self._stream.skip(entry.data)

    def _place_root(self, entry: Entry) -> None:
        if entry.kind != DIRECTORY:
            raise UnsafeLayer(
                f"layer entry {shown(entry.name)} would replace the image's root by something else than a directory;"
                " the layer was refused (CVE-2021-29136)"
            )
        self._tree.root.attributes = self._attributes(entry)
        self._set_xattrs(entry, self._tree.root.fd)
        self._stream.skip(entry.data)

    def _place_whiteout(self, entry: Entry, raw: bytes) -> None:
        self._stream.skip(entry.data)
        name = clean(raw)[-1]
        if name in _WHITEOUTS_OF_NOTHING:
            raise UnsafeLayer(f"layer entry {shown(entry.name)} is a whiteout that names nothing; refused")
        if name.startswith(_AUFS) and name != _OPAQUE:
            return
        found = self._tree.split_existing(raw)
        if found is None:
            return
        if name == _OPAQUE:
            self._whiteouts += self._tree.opaque(found[0])
        else:
            self._whiteouts += self._tree.whiteout(found[0], name[len(_WHITEOUT) :])

    def _place_file(self, entry: Entry, node: Directory, name: bytes) -> None:
        size = entry.size
        self._bytes += entry.data
        if self._bytes > self._limits.bytes or size > self._limits.bytes:
            raise InvalidImage(f"the layer unpacks to more than {self._limits.bytes} bytes; refused as a bomb")
        mode = entry.mode
        directory_fd = node.fd if node.fd >= 0 else self._tree.fd(node)
        try:
            fd = os.open(name, _NEW, mode & 0o777, dir_fd=directory_fd)
        except FileExistsError:
            self._tree.clear(node, name)
            fd = os.open(name, _NEW, mode & 0o777, dir_fd=self._tree.fd(node))
        try:
            if entry.sparse is not None:
                self._write_sparse(entry, fd)
            elif size:
                self._write(fd, size)
            if self._owners and (entry.uid or entry.gid or self._always_chown):
                self._chown_fd(entry, fd)
            if entry.xattrs:
                self._set_xattrs(entry, fd)
            if mode & _SPECIAL_BITS or self._always_chmod:
                os.fchmod(fd, mode)
            mtime = entry.mtime if -_LATEST < entry.mtime < _LATEST else _bounded(entry.mtime)
            os.utime(fd, ns=(mtime, mtime))
        finally:
            os.close(fd)

    def _write(self, fd: int, count: int) -> None:
        stream = self._stream
        if count <= _IN_ONE_PIECE:
            view = stream.whole(count)
            if view is not None and os.write(fd, view) == count:
                return
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        while count:
            view = stream.piece(count)
            count -= len(view)
            while view:
                view = view[os.write(fd, view) :]

    def _write_sparse(self, entry: Entry, fd: int) -> None:
        os.ftruncate(fd, entry.size)
        for offset, length in entry.sparse or ():
            os.lseek(fd, offset, os.SEEK_SET)
            if length:
                self._write(fd, length)

    def _place_directory(self, entry: Entry, node: Directory, name: bytes, raw: bytes) -> None:
        self._stream.skip(entry.data)
        child = self._tree.make(node, name, self._attributes(entry))
        child.brought = True
        if self._tree.flat:
            self._drop_xattrs(child)
        if entry.xattrs:
            self._set_xattrs(entry, self._tree.fd(child))
        self._tree.remember(raw, child)

    def _drop_xattrs(self, child: Directory) -> None:
        """A directory over a copied lower one brings its own attributes, and only those."""
        fd = self._tree.fd(child)
        for key in os.listxattr(fd):
            with contextlib.suppress(OSError):
                os.removexattr(fd, key)

    def _place_symlink(self, entry: Entry, node: Directory, name: bytes) -> None:
        if not entry.link:
            raise InvalidImage(f"layer entry {shown(entry.name)} is a symlink to nowhere; the tar is damaged")
        try:
            os.symlink(entry.link, name, dir_fd=self._tree.fd(node))
        except FileExistsError:
            self._tree.clear(node, name)
            os.symlink(entry.link, name, dir_fd=self._tree.fd(node))
        self._tree.forget_links()
        self._set_by_name(entry, node, name)

    def _place_fifo(self, entry: Entry, node: Directory, name: bytes) -> None:
        try:
            os.mkfifo(name, entry.mode & 0o777, dir_fd=self._tree.fd(node))
        except FileExistsError:
            self._tree.clear(node, name)
            os.mkfifo(name, entry.mode & 0o777, dir_fd=self._tree.fd(node))
        self._set_by_name(entry, node, name)
        os.chmod(name, entry.mode, dir_fd=self._tree.fd(node))

    def _set_by_name(self, entry: Entry, node: Directory, name: bytes) -> None:
        """Owner and time of what cannot be opened."""
        fd = self._tree.fd(node)
        if entry.xattrs:
            self._refused_xattrs += len(entry.xattrs)
        if self._owners and (entry.uid or entry.gid or self._always_chown):
            uid, gid = self._checked(entry)
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
        mtime = _bounded(entry.mtime)
        os.utime(name, ns=(mtime, mtime), dir_fd=fd, follow_symlinks=False)

    # Hard links

    def _place_hard_link(self, entry: Entry, node: Directory, name: bytes) -> None:
        source, source_name = self._link_source(entry)
        if (source, source_name) == (node, name):
            return
        source_fd = os.dup(self._tree.fd(source))
        try:
            try:
                _link(source_fd, source_name, self._tree.fd(node), name)
            except FileExistsError:
                self._tree.clear(node, name)
                _link(source_fd, source_name, self._tree.fd(node), name)
        except FileNotFoundError as problem:
            raise _no_link_target(entry) from problem
        finally:
            os.close(source_fd)

    def _link_source(self, entry: Entry) -> tuple[Directory, bytes]:
        """Where the first name of the file is; a file of a lower layer is copied up, as a merged view would."""
        raw = entry.link.rstrip(b"/")
        if not clean(raw):
            raise UnsafeLayer(f"layer entry {shown(entry.name)} is a hard link to the image's root; refused")
        source, source_name = self._tree.split(raw)
        status = self._tree.status(source, source_name)
        if status is None:
            status = self._copy_up(entry, source, source_name)
        if status is None or source_name in source.whiteouts:
            raise _no_link_target(entry)
        if stat.S_ISDIR(status.st_mode):
            raise InvalidImage(f"layer entry {shown(entry.name)} is a hard link to the directory {shown(entry.link)}")
        self._tree.claim(source, source_name)
        return source, source_name

    def _copy_up(self, entry: Entry, node: Directory, name: bytes) -> os.stat_result | None:
        lower = self._tree.lower_entry(node, name)
        if lower is None:
            return None
        status = lower.status
        if stat.S_ISREG(status.st_mode):
            self._bytes += status.st_size
            source_fd = self._tree.open_lower(node, name, lower)
            try:
                copy_file(source_fd, self._tree.fd(node), name, owners=self._owners)
            finally:
                os.close(source_fd)
        elif stat.S_ISLNK(status.st_mode):
            text = self._tree.read_lower_link(node, name, lower)
            fd = self._tree.fd(node)
            os.symlink(text, name, dir_fd=fd)
            if self._owners:
                os.chown(name, status.st_uid, status.st_gid, dir_fd=fd, follow_symlinks=False)
            os.utime(name, ns=(status.st_mtime_ns, status.st_mtime_ns), dir_fd=fd, follow_symlinks=False)
        elif not stat.S_ISDIR(status.st_mode):
            raise InvalidImage(
                f"layer entry {shown(entry.name)} is a hard link to {shown(entry.link)} of a lower layer, which is"
                " not a file"
            )
        return status

    # Attributes

    def _attributes(self, entry: Entry) -> Attributes:
        uid, gid = self._checked(entry) if self._owners else (0, 0)
        return Attributes(entry.mode, uid, gid, _bounded(entry.mtime))

    def _checked(self, entry: Entry) -> tuple[int, int]:
        for what, wanted in (("uid", entry.uid), ("gid", entry.gid)):
            if not 0 <= wanted <= _LARGEST_ID:
                raise InvalidImage(f"layer entry {shown(entry.name)} has the {what} {wanted}, which no file can have")
        return entry.uid, entry.gid

    def _chown_fd(self, entry: Entry, fd: int) -> None:
        uid, gid = self._checked(entry)
        os.fchown(fd, uid, gid)

    def _set_xattrs(self, entry: Entry, fd: int) -> None:
        for key, value in (entry.xattrs or {}).items():
            if key.startswith(_DROPPED_XATTRS):
                self._refused_xattrs += 1
                continue
            if len(value) > self._limits.xattr:
                raise InvalidImage(
                    f"layer entry {shown(entry.name)} has an extended attribute of {len(value)} bytes,"
                    f" more than the {self._limits.xattr} allowed"
                )
            try:
                os.setxattr(fd, key, value)
            except OSError as problem:
                if problem.errno not in _REFUSED_XATTR:
                    raise
                self._refused_xattrs += 1
                self._warn(f"extended attribute {shown(key)} cannot be kept here ({problem.strerror})")

    def _warn(self, text: str) -> None:
        if len(self._warnings) < _MOST_WARNINGS:
            self._warnings[text] = None

    def _finish(self) -> None:
        """Give every directory its attributes, children before their parents."""
        root = self._tree.root
        for node in reversed(list(root.below())):
            if node.parent is None or node.attributes is None:
                continue
            fd, attributes = self._tree.fd(node.parent), node.attributes
            self._current = Entry(node.path(), DIRECTORY, 0, attributes.uid, attributes.gid, 0, 0, b"")
            if self._owners:
                os.chown(node.name, attributes.uid, attributes.gid, dir_fd=fd, follow_symlinks=False)
            os.chmod(node.name, attributes.mode, dir_fd=fd)
            os.utime(node.name, ns=(attributes.mtime, attributes.mtime), dir_fd=fd, follow_symlinks=False)
        self._finish_root(root)

    def _finish_root(self, root: Directory) -> None:
        attributes = root.attributes or self._tree.inherited_root() or Attributes(0o755, 0, 0, 0)
        if self._owners:
            os.fchown(root.fd, attributes.uid, attributes.gid)
        os.fchmod(root.fd, attributes.mode)
        os.utime(root.fd, ns=(attributes.mtime, attributes.mtime))

    # Errors

    def explain(self, problem: OSError) -> NbcontainerError:
        """The sentence for an error of the operating system while the current entry was written."""
        entry = self._current
        name = shown(entry.name) if entry else "the end of the layer"
        if problem.errno in {errno.ENOSPC, errno.EDQUOT}:
            return StorageError(
                f"the disk of the layer store is full ({os.strerror(problem.errno)} at {name}); make room"
                " (%container df shows what the store holds) or move the store with NBCONTAINER_ROOT"
            )
        if problem.errno == errno.EINVAL and entry and self._owners and self._beyond(entry):
            return InvalidImage(self._beyond(entry))
        if problem.errno in {errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOENT, errno.EILSEQ, errno.EMLINK}:
            return InvalidImage(f"layer entry {name} cannot be made: {problem.strerror}")
        return StorageError(f"layer entry {name} cannot be written: {problem.strerror}; check the disk of the store")

    def _beyond(self, entry: Entry) -> str:
        for what, wanted, count in (("uid", entry.uid, self._ids[0]), ("gid", entry.gid, self._ids[1])):
            if wanted >= count:
                return (
                    f"the layer wants {what} {wanted} (for {shown(entry.name)}), but this machine's sub{what} range"
                    f" gives only {count} ids; give this user more of them in /etc/sub{what}"
                )
        return ""


def _link(source_fd: int, source_name: bytes, target_fd: int, name: bytes) -> None:
    os.link(source_name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)


def _no_link_target(entry: Entry) -> InvalidImage:
    return InvalidImage(
        f"layer entry {shown(entry.name)} is a hard link to {shown(entry.link)}, which neither this layer nor one below"
        " has"
    )


def _bounded(mtime: int) -> int:
    return max(-_LATEST, min(mtime, _LATEST))


def _mapped_ids() -> tuple[int, int]:
    """How many uids and gids this namespace has, for a message; read now because /proc may go out of reach."""
    return _mapped("/proc/self/uid_map"), _mapped("/proc/self/gid_map")


def _mapped(path: str) -> int:
    try:
        with open(path, "rb") as file:
            return max((int(line.split()[0]) + int(line.split()[2]) for line in file), default=0)
    except OSError:
        return 0


def _confine(target_fd: int) -> None:
    """Make the target this process's root: even a mistake of ours could not name a file outside by path."""
    os.fchdir(target_fd)
    try:
        os.chroot(".")
    except PermissionError:
        return
    os.chdir("/")
