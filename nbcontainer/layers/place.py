"""Files out of a tar, put where somebody said: `cp`'s receiving end, in a container or in a folder of the user's.

A `Landing` says where: decided from what is there, as docker's `cp` decides (`land`). Each entry's folder is then
opened by the kernel, confined: inside a container below its root, links followed as the container would follow them
(openat2(2), RESOLVE_IN_ROOT); on the machine below the landing folder with no link followed at all. So whoever
exchanges a folder for a link meanwhile (CVE-2018-15664) moves the copy within the container, or stops it.

Standard library only: it runs in the user namespace, too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer._linux.syscalls import (
    RESOLVE_BENEATH,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
)
from nbcontainer.errors import InvalidInput, NbcontainerError, NotFound, StorageError
from nbcontainer.layers.tar import BLOCK_DEVICE, CHARACTER, DIRECTORY, FIFO, FILE, HARD_LINK, SYMLINK, Archive, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nbcontainer.layers.tar import Entry, Stream

__all__ = ["IN_ROOT", "Landing", "Placed", "explain", "land", "locate", "place", "unreadable"]

IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
_HELD = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_PATH | os.O_DIRECTORY
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVER = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
_MOST_TRIES = 100
_MOST_NOTICES = 20
_LARGEST_ID = 0xFFFFFFFE


@dataclass(frozen=True, slots=True, kw_only=True)
class Landing:
    """Where a copy goes: `folder`, and the `name` its top entry gets there; "" puts what is in it into the folder."""

    folder: bytes
    name: bytes


@dataclass(slots=True)
class Placed:
    """What was written."""

    entries: int = 0
    bytes: int = 0
    left_out: int = 0
    notices: tuple[str, ...] = ()


def land(
    target: str,
    *,
    source_name: bytes,
    source_is_directory: bool,
    contents: bool,
    there: os.stat_result | None,
    where: str,
) -> Landing:
    """Decide as docker's `cp` does. `there` is what `target` shows, links followed; `contents` a source ending ``/.``.

    `where` is the target as people wrote it, for the sentence when it cannot be.
    """
    folder, _, name = os.fsencode(target.rstrip("/")).rpartition(b"/")
    folder = folder or (b"/" if target.startswith("/") else b".")
    wants_directory = target.endswith(("/", "/.")) or target == "."
    if there is None:
        if source_is_directory and contents and not name:
            raise NotFound(f"the folder {where} does not exist; make it first")
        if wants_directory and not source_is_directory:
            raise NotFound(f"the folder {where} does not exist; make it first, or leave the / at the end out")
        return Landing(folder=folder, name=name)
    if not stat.S_ISDIR(there.st_mode):
        if source_is_directory:
            raise InvalidInput(f"{where} is a file, and a folder cannot be copied onto it; choose another target")
        if wants_directory:
            raise InvalidInput(f"{where} is a file, not a folder; leave the / at the end out to replace it")
        return Landing(folder=folder, name=name)
    return Landing(folder=os.fsencode(target), name=b"" if source_is_directory and contents else source_name)


def locate(root_fd: int, path: str, *, resolve: int) -> tuple[str, os.stat_result | None]:
    """`path` with the links of its last component followed, and what is there; None when there is nothing.

    Every step is opened by the kernel under `resolve` from `root_fd`; the answer is a path only, to be opened the same
    way again.
    """
    for _ in range(_MOST_LINKS):
        folder, _, name = path.rstrip("/").rpartition("/")
        if name in {"", ".", ".."}:
            return path, _status(root_fd, path, resolve)
        parent = _opened(root_fd, os.fsencode(folder or ("/" if path.startswith("/") else ".")), resolve)
        try:
            try:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                return path, None
            if not stat.S_ISLNK(status.st_mode):
                return path, status
            link = os.readlink(name, dir_fd=parent)
        finally:
            os.close(parent)
        slash = "/" if path.endswith("/") else ""
        path = (
            link if link.startswith("/") else f"{folder}/{link}" if folder or path.startswith("/") else link
        ) + slash
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _status(root_fd: int, path: str, resolve: int) -> os.stat_result | None:
    try:
        fd = _opened(root_fd, os.fsencode(path or "."), resolve)
    except FileNotFoundError:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _opened(root_fd: int, path: bytes, resolve: int) -> int:
    """A folder; a rename elsewhere may disturb a confined walk, which the kernel tells by EAGAIN (openat2(2))."""
    for _ in range(_MOST_TRIES):
        try:
            return openat2(root_fd, path, _FOLDER, resolve=resolve)
        except BlockingIOError:
            continue
    return openat2(root_fd, path, _FOLDER, resolve=resolve)


def place(
    stream: Stream,
    root_fd: int,
    decide: Callable[[bool], Landing],
    *,
    resolve: int,
    owners: bool,
    special: bool,
    renamed: bool,
) -> Placed:
    """Write every entry of the tar below the landing folder, which `resolve` finds from `root_fd`.

    `decide` gives the landing when it is known whether the first entry is a folder. With `renamed` the archive is one
    of ours, and the first component of its names becomes the landing's name. `owners` gives files to the numbers that
    the archive says, `special` keeps set-user-id bits and file capabilities. With a `resolve` of 0 the landing folder
    is found as any path is, and nothing below it goes through a link.
    """
    placer = _Placer(stream, root_fd, decide, resolve=resolve, owners=owners, special=special, renamed=renamed)
    try:
        return placer.run()
    finally:
        placer.close()


class _Placer:
    """One archive on its way to disk."""

    def __init__(
        self,
        stream: Stream,
        root_fd: int,
        decide: Callable[[bool], Landing],
        *,
        resolve: int,
        owners: bool,
        special: bool,
        renamed: bool,
    ) -> None:
        self._stream = stream
        self._root_fd = root_fd
        self._decide = decide
        self._asked = resolve
        self._owners = owners
        self._special = special
        self._renamed = renamed
        self._placed = Placed()
        self._notices: list[str] = []
        self._directories: dict[bytes, tuple[Entry, bool]] = {}
        self._held_path: bytes | None = None
        self._held_fd = -1
        self._base_fd = -1
        self._name = b""
        self._prefix = b""
        self._resolve = 0

    def close(self) -> None:
        """Let go of every descriptor."""
        self._let_go()
        if self._base_fd >= 0:
            os.close(self._base_fd)

    def _land(self, *, directory: bool) -> None:
        landing = self._decide(directory)
        self._name = landing.name
        try:
            if self._asked:
                self._prefix, self._resolve = landing.folder, self._asked
                os.close(_opened(self._root_fd, landing.folder, self._asked))
                self._base_fd = os.dup(self._root_fd)
            else:
                self._base_fd, self._resolve = _opened(self._root_fd, landing.folder, 0), _HELD
        except OSError as problem:
            raise explain(problem, os.fsdecode(landing.folder)) from problem

    def run(self) -> Placed:
        for entry in Archive(self._stream):
            if self._base_fd < 0:
                self._land(directory=entry.kind == DIRECTORY)
            path = self._path(entry.name)
            try:
                self._entry(entry, path)
            except OSError as problem:
                raise explain(problem, os.fsdecode(path or b".")) from problem
        self._finish()
        self._stream.drain()
        self._placed.notices = tuple(self._notices)
        return self._placed

    def _path(self, raw: bytes) -> bytes:
        """Where an entry goes below the landing folder; "" is the folder itself."""
        parts = [part for part in raw.split(b"/") if part not in {b"", b"."}]
        if b".." in parts:
            raise InvalidInput(
                f"the archive has the entry {shown(raw)}, which points out of where it is unpacked; refused"
            )
        if self._renamed and parts:
            parts[:1] = [self._name] if self._name else []
        return b"/".join(parts)

    # Folders

    def _folder(self, path: bytes) -> int:
        """The descriptor of a folder below the landing one, made when the archive did not mention it."""
        if path == self._held_path:
            return self._held_fd
        self._let_go()
        try:
            fd = self._open(path)
        except FileNotFoundError:
            if not path:
                raise
            parent, _, name = path.rpartition(b"/")
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._folder(parent))
            self._let_go()
            fd = self._open(path)
        self._held_path, self._held_fd = path, fd
        return fd

    def _open(self, path: bytes) -> int:
        return _opened(self._base_fd, b"/".join(part for part in (self._prefix, path) if part) or b".", self._resolve)

    def _let_go(self) -> None:
        if self._held_fd >= 0:
            os.close(self._held_fd)
        self._held_path, self._held_fd = None, -1

    # Entries

    def _entry(self, entry: Entry, path: bytes) -> None:
        kind = entry.kind
        if not path:
            if kind != DIRECTORY:
                raise InvalidInput(f"the archive has the entry {shown(entry.name)}, which is no folder; refused")
            self._stream.skip(entry.data)
            return
        folder, _, name = path.rpartition(b"/")
        if kind in {CHARACTER, BLOCK_DEVICE} or kind not in {FILE, DIRECTORY, SYMLINK, HARD_LINK, FIFO}:
            self._leave_out(path, "it is a device" if kind in {CHARACTER, BLOCK_DEVICE} else "it is no file")
            self._stream.skip(entry.data)
            return
        directory_fd = self._folder(folder)
        self._placed.entries += 1
        if kind == DIRECTORY:
            self._stream.skip(entry.data)
            self._directory(entry, directory_fd, name, path)
        elif kind == FILE:
            self._file(entry, directory_fd, name)
        elif kind == SYMLINK:
            self._clear(directory_fd, name, path)
            os.symlink(entry.link, name, dir_fd=directory_fd)
            self._by_name(entry, directory_fd, name)
        elif kind == FIFO:
            self._clear(directory_fd, name, path)
            os.mkfifo(name, entry.mode & 0o777, dir_fd=directory_fd)
            self._by_name(entry, directory_fd, name)
        else:
            self._hard_link(entry, folder, name, path)

    def _leave_out(self, path: bytes, reason: str) -> None:
        self._placed.left_out += 1
        if len(self._notices) < _MOST_NOTICES:
            self._notices.append(f"{os.fsdecode(path)} was left out: {reason}")

    def _directory(self, entry: Entry, directory_fd: int, name: bytes, path: bytes) -> None:
        made = True
        try:
            os.mkdir(name, entry.mode & 0o777 | 0o700, dir_fd=directory_fd)
        except FileExistsError:
            made = False
            if not stat.S_ISDIR(os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode):
                raise InvalidInput(
                    f"{os.fsdecode(path)} is there and is no folder, and a folder cannot be copied onto it"
                ) from None
        self._directories[path] = (entry, made)

    def _file(self, entry: Entry, directory_fd: int, name: bytes) -> None:
        fd = self._new_file(entry, directory_fd, name)
        try:
            if entry.sparse is None:
                self._write(fd, entry.data)
            else:
                os.ftruncate(fd, entry.size)
                for offset, length in entry.sparse:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._write(fd, length)
            self._attributes(entry, fd)
        finally:
            os.close(fd)

    def _new_file(self, entry: Entry, directory_fd: int, name: bytes) -> int:
        mode = entry.mode & 0o700 | 0o600
        try:
            return os.open(name, _NEW, mode, dir_fd=directory_fd)
        except FileExistsError:
            pass
        try:
            self._clear(directory_fd, name, name)
        except OSError as problem:
            if problem.errno != errno.EBUSY:
                raise
            fd = os.open(name, _OVER, dir_fd=directory_fd)  # a file mounted there can be written, not replaced
            if stat.S_ISREG(os.fstat(fd).st_mode):
                return fd
            os.close(fd)
            raise
        return os.open(name, _NEW, mode, dir_fd=directory_fd)

    def _write(self, fd: int, count: int) -> None:
        self._placed.bytes += count
        while count:
            view = self._stream.piece(count)
            count -= len(view)
            while view:
                view = view[os.write(fd, view) :]

    def _clear(self, directory_fd: int, name: bytes, path: bytes) -> None:
        """Take away what is there; a folder stays, because docker's `cp` does not remove trees either."""
        try:
            os.unlink(name, dir_fd=directory_fd)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError) as problem:  # unlink(2): EISDIR, by POSIX EPERM
            status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                raise
            raise InvalidInput(
                f"{os.fsdecode(path)} is a folder there, and what is no folder cannot be copied onto it"
            ) from problem

    def _hard_link(self, entry: Entry, folder: bytes, name: bytes, path: bytes) -> None:
        first = self._path(entry.link)
        if not first:
            raise InvalidInput(f"the archive has the hard link {shown(entry.name)} to its own root; refused")
        if first == path:
            return
        source_folder, _, source_name = first.rpartition(b"/")
        source_fd = os.dup(self._folder(source_folder))
        try:
            directory_fd = self._folder(folder)
            self._clear(directory_fd, name, path)
            os.link(source_name, name, src_dir_fd=source_fd, dst_dir_fd=directory_fd, follow_symlinks=False)
        finally:
            os.close(source_fd)

    # Attributes

    def _attributes(self, entry: Entry, fd: int) -> None:
        """Owner first (chown drops set-user-id bits and capabilities), then xattrs, mode, times."""
        if self._owners:
            self._give(entry, fd)
        for key, value in (entry.xattrs or {}).items():
            if key.startswith(b"user.") or self._special:
                with contextlib.suppress(OSError):  # not every file system has them, and not everybody may set them
                    os.setxattr(fd, key, value)
        os.fchmod(fd, entry.mode & (0o7777 if self._special else 0o1777))
        os.utime(fd, ns=(entry.mtime, entry.mtime))

    def _give(self, entry: Entry, fd: int, name: bytes = b"") -> None:
        uid, gid = _checked(entry)
        try:
            if name:
                os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
            else:
                os.fchown(fd, uid, gid)
        except OSError as problem:
            if problem.errno not in {errno.EPERM, errno.EINVAL}:
                raise
            cause = "only root may give files away" if problem.errno == errno.EPERM else "that id does not exist there"
            raise InvalidInput(
                f"{shown(entry.name)} cannot be given to {uid}:{gid}: {cause}; leave -a out to own the copies"
            ) from problem

    def _by_name(self, entry: Entry, directory_fd: int, name: bytes) -> None:
        """Owner and time of what is not opened."""
        if self._owners:
            self._give(entry, directory_fd, name)
        os.utime(name, ns=(entry.mtime, entry.mtime), dir_fd=directory_fd, follow_symlinks=False)

    def _finish(self) -> None:
        """Give directories their attributes, deepest first, when nothing is written into them any more."""
        for path, (entry, made) in sorted(self._directories.items(), reverse=True):
            folder, _, name = path.rpartition(b"/")
            try:
                fd = os.open(name, _OPEN_DIRECTORY, dir_fd=self._folder(folder))
                try:
                    self._attributes(entry, fd)
                finally:
                    os.close(fd)
            except OSError as problem:
                if made:
                    raise explain(problem, os.fsdecode(path)) from problem


def _checked(entry: Entry) -> tuple[int, int]:
    for wanted in (entry.uid, entry.gid):
        if not 0 <= wanted <= _LARGEST_ID:
            raise InvalidInput(f"the archive gives {shown(entry.name)} to the id {wanted}, which no file can have")
    return entry.uid, entry.gid


_SENTENCES: Mapping[int, tuple[type[NbcontainerError], str]] = {
    errno.ENOENT: (NotFound, "{path} does not exist, or a folder on the way to it does not"),
    errno.ENOTDIR: (InvalidInput, "{path} lies under something that is no folder"),
    errno.EISDIR: (InvalidInput, "{path} is a folder"),
    errno.EACCES: (InvalidInput, "{path} cannot be opened: permission denied"),
    errno.EPERM: (InvalidInput, "{path} cannot be changed: the operation is not permitted there"),
    errno.EROFS: (InvalidInput, "{path} lies on a read-only file system; mount it writable, or choose another place"),
    errno.ELOOP: (InvalidInput, "{path} goes through a symbolic link that leads in circles or where none may be"),
    errno.EXDEV: (InvalidInput, "{path} goes through something that leads out of where it belongs; refused"),
    errno.ENAMETOOLONG: (InvalidInput, "{path} has a name that is too long for the file system"),
    errno.ENOSPC: (StorageError, "there is no space left for {path}; make room there and copy again"),
    errno.EDQUOT: (StorageError, "the quota is used up, and {path} does not fit; make room and copy again"),
    errno.EBUSY: (InvalidInput, "something is mounted at {path}, so it cannot be replaced"),
}


def explain(problem: OSError, path: str) -> NbcontainerError:
    """The sentence for what the operating system refused about `path`."""
    shown_path = shown(os.fsencode(path))
    kind, text = _SENTENCES.get(problem.errno or 0, (StorageError, "{path} cannot be copied: {cause}"))
    return kind(text.format(path=shown_path, cause=problem.strerror or problem))


def unreadable(problem: NbcontainerError) -> InvalidInput:
    """The sentence for an archive that cannot be read: the reader's own, without its talk of layers."""
    cause = str(problem).partition(";")[0]
    for said, meant in (
        ("the layer's tar ", "it "),
        ("the layer's ", "its "),
        ("the layer ", "it "),
        ("layer ", "its "),
    ):
        if cause.startswith(said):
            cause = meant + cause[len(said) :]
            break
    return InvalidInput(f"the tar archive cannot be unpacked: {cause}")
