"""The files that COPY and ADD take: found in a tree, named by their contents, written as a layer's tar.

A *tree* is where sources are looked for: the build context (a folder of the person's, with variables put over it), a
stage, an image. Its root is a descriptor; the kernel confines every step to it, links are followed as they would be
inside, and below a source none is followed at all. A *top* is one source as found; an *entry* is a file or folder at or
below a top.

The same code works in this process, with the person's rights, on a context, and in a task as container root on a stage.
So it has the standard library and bedrock only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nbcontainer._linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from nbcontainer.dockerfile.globs import Glob, has_wildcards
from nbcontainer.dockerfile.ignore import Ignore
from nbcontainer.dockerfile.modes import Chmod
from nbcontainer.errors import InvalidInput, NotFound
from nbcontainer.layers.pack import is_made_by_kernel, kept_xattrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from nbcontainer.dockerfile.ignore import Verdict
    from nbcontainer.layers.pack import TarWriter

__all__ = ["Attributes", "Entry", "FileTree", "Selection", "Stamp", "Top", "digest", "measured", "write"]

_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_LINKS = 40
_PIECE = 1 << 20
_COPIED = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """What a copy is written with: the fields of stat(2) that a tar has (`nbcontainer.layers.pack.Status`)."""

    st_mode: int
    st_uid: int = 0
    st_gid: int = 0
    st_size: int = 0
    st_blocks: int = 0
    st_mtime_ns: int = 0
    st_nlink: int = 1
    st_dev: int = 0
    st_ino: int = 0
    st_ctime_ns: int = 0

    @classmethod
    def of(cls, status: os.stat_result, *, owned: bool = True) -> Attributes:
        """Those of a file; without `owned` as one of root's."""
        return cls(
            st_mode=status.st_mode,
            st_uid=status.st_uid if owned else 0,
            st_gid=status.st_gid if owned else 0,
            st_size=status.st_size,
            st_blocks=status.st_blocks,
            st_mtime_ns=status.st_mtime_ns,
            st_nlink=status.st_nlink,
            st_dev=status.st_dev,
            st_ino=status.st_ino,
            st_ctime_ns=status.st_ctime_ns,
        )

    @property
    def is_dir(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.st_mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a COPY or ADD takes of a tree, as plain values.

    `sources` are paths or patterns, `excludes` patterns of what to leave out. `parents` keeps the folders above a
    source. `owner` and `mode` are what copies get; None leaves what the tree says.
    """

    sources: tuple[str, ...]
    excludes: tuple[str, ...] = ()
    parents: bool = False
    owner: tuple[int, int] | None = None
    mode: str = ""

    def attributes(self, status: Attributes) -> Attributes:
        """What a copy of a file with this `status` is written with."""
        if self.owner is None and not self.mode:  # by far the most, and there may be many
            return status
        owner = self.owner or (status.st_uid, status.st_gid)
        mode = status.st_mode
        if self.mode and not stat.S_ISLNK(mode):
            mode = stat.S_IFMT(mode) | Chmod.parse(self.mode).apply(mode, is_dir=status.is_dir)
        return replace(status, st_mode=mode, st_uid=owner[0], st_gid=owner[1])

    def fields(self) -> dict[str, Any]:
        """As JSON, for a task."""
        return {
            "sources": list(self.sources),
            "excludes": list(self.excludes),
            "parents": self.parents,
            "owner": self.owner,
            "mode": self.mode,
        }

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Selection:
        """Read `fields` back."""
        owner = fields["owner"]
        return cls(
            sources=tuple(fields["sources"]),
            excludes=tuple(fields["excludes"]),
            parents=bool(fields["parents"]),
            owner=None if owner is None else (int(owner[0]), int(owner[1])),
            mode=str(fields["mode"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """A source that was found: its real `path` below the tree's root, and the `name` it lands by in a folder.

    With --parents the name has the folders above it.
    """

    path: str
    name: str
    is_dir: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file or folder to copy: its `top`, and where `below` that ("" for the top itself).

    `directory_fd` (valid until the next entry) and `leaf` open it; a variable of the notebook has `content` instead.
    """

    top: Top
    below: str
    status: Attributes
    directory_fd: int = -1
    leaf: str = ""
    content: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTree:
    """A tree to copy from. `root_fd` is its root, or -1 for one that has only `files`, which lie over its root.

    `ignore` leaves paths out as .dockerignore does. With `owned` files keep their owners; a build context's belong to
    root whoever owns them here. `name` is for sentences.
    """

    root_fd: int
    name: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    ignore: Ignore = field(default_factory=Ignore)
    owned: bool = False

    def tops(self, selection: Selection) -> tuple[Top, ...]:
        """Every source of a selection; raise `NotFound` for one that is not there."""
        found: list[Top] = []
        for source in selection.sources:
            matched = self._matches(source, selection)
            if not matched:
                raise NotFound(self._missing(source))
            found += matched
        return tuple(found)

    def _missing(self, source: str) -> str:
        hint = "; check the path, which starts at its root"
        whole = replace(self, ignore=Ignore())
        if self.ignore and whole._matches(source, Selection(sources=())):  # noqa: SLF001 - our own
            hint = "; it is there, but .dockerignore leaves it out"
        return f"{source!r} is not in {self.name}{hint}"

    def _matches(self, source: str, selection: Selection) -> list[Top]:
        kept, pivot = _pivot(source) if selection.parents else (_clean(source), 0)
        paths = self._globbed(kept, deep=selection.parents) if has_wildcards(kept) else [_plain(kept)]
        excludes = Ignore(selection.excludes)
        found = []
        for path in paths:
            top = self._top(path, pivot if selection.parents else path.count("/"))
            # a file that is itself a source is matched by its name
            if top is not None and (top.is_dir or not excludes.ignores(path.rpartition("/")[2])):
                found.append(top)
        return found

    def _top(self, path: str, skipped: int) -> Top | None:
        """The source at `path`; the first `skipped` parts of it are no part of the name it lands by."""
        real = self._real(path)
        status = None if real is None else self._status(real)
        if real is None or status is None:
            return None
        top = Top(path=real, name="/".join(path.split("/")[skipped:]), is_dir=status.is_dir)
        if real and real not in self.files and self.ignore.ignores(real) and not self._has_kept(top):
            return None
        return top

    def _has_kept(self, top: Top) -> bool:
        """Whether an ignored folder has something in it that is not."""
        return top.is_dir and any(entry.below for entry in self.entries([top], Selection(sources=())))

    def above(self, tops: Sequence[Top], selection: Selection) -> list[list[Any]]:
        """With --parents: the folders in the names of `tops`, each with what it is made with and the mode it has here.

        That is [name, mode, uid, gid, mode of one that is there already]: BuildKit copies them, as it copies a folder.
        """
        found: dict[str, list[Any]] = {}
        for top in tops if selection.parents else ():
            if not top.path.endswith(top.name):  # it lies behind a link, and its folders here are others
                continue
            start, parts = top.path[: len(top.path) - len(top.name)], top.name.split("/")
            for count in range(1, len(parts) + top.is_dir):
                name = "/".join(parts[:count])
                status = self._status(start + name) if name and name not in found else None
                if status is not None and status.is_dir:
                    owner = (status.st_uid, status.st_gid) if self.owned else (0, 0)
                    chosen = selection.attributes(replace(status, st_uid=owner[0], st_gid=owner[1]))
                    modes = stat.S_IMODE(chosen.st_mode), stat.S_IMODE(status.st_mode)
                    found[name] = [name, modes[0], chosen.st_uid, chosen.st_gid, modes[1]]
        return list(found.values())

    # --- finding ----------------------------------------------------------------------------------------------------

    def _real(self, path: str) -> str | None:
        """`path` with every link followed inside the root; None when it is not there."""
        done: list[str] = []
        waiting = [part for part in path.split("/") if part not in {"", "."}]
        links = 0
        while waiting:
            part = waiting.pop(0)
            if part == "..":
                del done[-1:]
                continue
            here = "/".join([*done, part])
            status = self._status(here)
            if status is None:
                return None
            if not stat.S_ISLNK(status.st_mode):
                done.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise InvalidInput(f"{path!r} in {self.name} goes through too many symbolic links")
            target = self._link(here)
            if target.startswith("/"):
                done = []
            waiting = [each for each in target.split("/") if each not in {"", "."}] + waiting
        return "/".join(done)

    def _status(self, path: str) -> Attributes | None:
        """What is at a path that has no link on its way."""
        if path in self.files:
            return _variable(self.files[path])
        if self.root_fd < 0:
            return None if path else Attributes(st_mode=stat.S_IFDIR | 0o755)
        if not path:
            return Attributes.of(os.fstat(self.root_fd))
        folder, _, name = path.rpartition("/")
        try:
            fd = self._open(folder)
            try:
                return Attributes.of(os.stat(name, dir_fd=fd, follow_symlinks=False))
            finally:
                os.close(fd)
        except OSError as problem:
            if problem.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
                return None
            raise self._unreadable(problem, path) from problem

    def _link(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        fd = self._open(folder)
        try:
            return os.readlink(name, dir_fd=fd)
        finally:
            os.close(fd)

    def _open(self, folder: str) -> int:
        return openat2(self.root_fd, folder or ".", _FOLDER, resolve=_BELOW)

    def _unreadable(self, problem: OSError, path: str) -> InvalidInput:
        return InvalidInput(f"{path or '/'} in {self.name} cannot be read: {problem.strerror}")

    def _names(self, folder: str) -> list[str]:
        names = set(self.files) if not folder else set()
        if self.root_fd >= 0:
            try:
                fd = self._open(folder)
            except OSError as problem:
                raise self._unreadable(problem, folder) from problem
            try:
                names |= set(os.listdir(fd))
            finally:
                os.close(fd)
        return sorted(names)

    def _globbed(self, pattern: str, *, deep: bool) -> list[str]:
        """Every path that matches, part by part; ``**`` is any number of folders where `deep`."""
        found = [""]
        parts = pattern.split("/")
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            found = [each for path in found for each in self._part(path, part, deep=deep, last=last)]
        return sorted(dict.fromkeys(found))

    def _part(self, path: str, part: str, *, deep: bool, last: bool) -> Iterator[str]:
        if deep and part == "**":
            if not last:
                yield path
            pending = [path]
            while pending:
                folder = pending.pop()
                for name in self._children(folder):
                    below = _joined(folder, name)
                    status = self._status(below)
                    if status is None:
                        continue
                    if status.is_dir:
                        pending.append(below)
                    if last or status.is_dir:
                        yield below
            return
        if not has_wildcards(part):
            below = _joined(path, _plain(part))
            if self._real(below) is not None:
                yield below
            return
        glob = Glob(part)
        for name in self._children(path):
            if glob.match(name):
                yield _joined(path, name)

    def _children(self, path: str) -> list[str]:
        real = self._real(path)
        status = None if real is None else self._status(real)
        return self._names(real) if real is not None and status is not None and status.is_dir else []

    # --- walking ----------------------------------------------------------------------------------------------------

    def entries(self, tops: Sequence[Top], selection: Selection) -> Iterator[Entry]:
        """Everything at and below `tops`: a folder before what is in it, names in order."""
        excludes = Ignore(selection.excludes)
        for top in tops:
            try:
                yield from self._folder(top, excludes) if top.is_dir else self._single(top)
            except OSError as problem:  # somebody changes the tree meanwhile, or it may not be read
                raise self._unreadable(problem, top.path) from problem

    def _single(self, top: Top) -> Iterator[Entry]:
        content = self.files.get(top.path)
        if content is not None:
            yield Entry(top=top, below="", status=_variable(content), content=content)
            return
        folder, _, name = top.path.rpartition("/")
        fd = self._open(folder)
        try:
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_IFMT(status.st_mode) not in _COPIED:
                raise InvalidInput(f"{top.path} in {self.name} is a device or a socket, which cannot be copied")
            yield Entry(top=top, below="", status=self._owned(status), directory_fd=fd, leaf=name)
        finally:
            os.close(fd)

    def _owned(self, status: os.stat_result) -> Attributes:
        return Attributes.of(status, owned=self.owned)

    def _folder(self, top: Top, excludes: Ignore) -> Iterator[Entry]:
        """A folder and what is in it. One that is left out counts only for what it has that is not."""
        held: list[Entry] = []
        ignored = self.ignore.top
        for name in top.path.split("/") if top.path else ():
            ignored = self.ignore.entry(ignored, name)
        pending = [("", ignored, excludes.top)]
        while pending:
            below, ignored, excluded = pending.pop()
            path = _joined(top.path, below)
            try:
                fd = self._open(path) if self.root_fd >= 0 else -1
            except OSError as problem:
                if below and problem.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}:
                    continue
                raise self._unreadable(problem, path) from problem
            try:
                status = self._owned(os.fstat(fd)) if fd >= 0 else Attributes(st_mode=stat.S_IFDIR | 0o755)
                own = Entry(top=top, below=below, status=status, directory_fd=fd, leaf=".")
                held = [each for each in held if not each.below or below.startswith(f"{each.below}/")]
                if below and (ignored.ignored or excluded.ignored):
                    held.append(own)
                else:
                    yield from self._released(held)
                    held = []
                    yield own
                if fd >= 0 and is_made_by_kernel(fd):
                    continue
                folders: list[tuple[str, Verdict, Verdict]] = []
                for entry in self._in_folder(top, below, fd, (ignored, excluded, excludes), folders):
                    yield from self._released(held)
                    held = []
                    yield entry
                pending += reversed(folders)
            finally:
                if fd >= 0:
                    os.close(fd)

    def _released(self, held: Sequence[Entry]) -> Iterator[Entry]:
        """Folders that turned out to be wanted; their descriptors are opened anew."""
        for each in held:
            fd = self._open(_joined(each.top.path, each.below))
            try:
                yield replace(each, directory_fd=fd)
            finally:
                os.close(fd)

    def _in_folder(
        self,
        top: Top,
        below: str,
        fd: int,
        rules: tuple[Verdict, Verdict, Ignore],
        folders: list[tuple[str, Verdict, Verdict]],
    ) -> Iterator[Entry]:
        """What is in one folder and is no folder itself; those are put into `folders` where they count."""
        ignored, excluded, excludes = rules
        at_root = not top.path and not below
        names = set(os.listdir(fd)) if fd >= 0 else set()
        for name in sorted(names | set(self.files)) if at_root else sorted(names):
            inner = f"{below}/{name}" if below else name
            refused = excludes.entry(excluded, name) if excludes else excluded
            if at_root and name in self.files:
                if not refused.ignored:
                    content = self.files[name]
                    yield Entry(top=top, below=inner, status=_variable(content), content=content)
                continue
            verdict = self.ignore.entry(ignored, name) if self.ignore else ignored
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFDIR:
                if not verdict.skippable and not refused.skippable:
                    folders.append((inner, verdict, refused))
            elif kind in _COPIED and not verdict.ignored and not refused.ignored:
                yield Entry(top=top, below=inner, status=self._owned(status), directory_fd=fd, leaf=name)


def _variable(content: bytes) -> Attributes:
    return Attributes(st_mode=stat.S_IFREG | 0o644, st_size=len(content))


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _clean(source: str) -> str:
    """A source as the reference has it: ``..`` cannot lead out, a slash at either end means nothing."""
    parts: list[str] = []
    for part in source.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _pivot(source: str) -> tuple[str, int]:
    """With --parents: the clean path, and how many parts of it stand before ``/./``."""
    before, found, after = source.partition("/./")
    if not found:
        return _clean(source), 0
    return _clean(f"{before}/{after}"), len([part for part in _clean(before).split("/") if part])


def _plain(path: str) -> str:
    """A path without a pattern in it: a backslash makes the next character ordinary."""
    return re.sub(r"\\(.)", r"\1", path)


# --- naming and writing ---------------------------------------------------------------------------------------------


def digest(tree: FileTree, tops: Sequence[Top], selection: Selection) -> tuple[str, list[list[Any]]]:
    """A name for what would be copied, and each entry as [top, below, is a folder].

    It counts paths, types, permissions, owners, links, contents and extended attributes, and no times.
    """
    name, listed, _ = measured(tree, tops, selection)
    return name, listed


def measured(tree: FileTree, tops: Sequence[Top], selection: Selection) -> tuple[str, list[list[Any]], str]:
    """What `digest` answers, and the stamp of what was read, to compare with that of what is written later."""
    total = hashlib.sha256()
    stamp = Stamp()
    listed: list[list[Any]] = []
    numbers = {id(top): number for number, top in enumerate(tops)}
    for top in tops:
        total.update(b"top\0" + os.fsencode(top.name) + (b"/" if top.is_dir else b"") + b"\0")
    for entry in tree.entries(tops, selection):
        listed.append([numbers[id(entry.top)], entry.below, entry.status.is_dir])
        status = entry.status
        head = f"{entry.below}\0{status.st_mode:o}\0{status.st_uid}:{status.st_gid}\0"
        total.update(head.encode("utf-8", "surrogateescape"))
        stamp.add(entry.below, status)
        _add_content(total, entry, tree)
    return total.hexdigest(), listed, stamp.text


class Stamp:
    """Which files were read, and as of when: the same twice when nobody has changed one of them in between.

    A key names contents that are read once more to be copied; whoever edits a file meanwhile must not have the new
    bytes remembered under the name of the old ones. The time of the last change (stat(2), st_ctime) cannot be set back.
    """

    def __init__(self) -> None:
        self._total = hashlib.sha256()

    def add(self, below: str, status: Attributes) -> None:
        """Count an entry: before it is read for its digest, after it is read to be written."""
        text = f"{below}\0{status.st_mode}.{status.st_size}.{status.st_dev}.{status.st_ino}.{status.st_ctime_ns}\0"
        self._total.update(text.encode("utf-8", "surrogateescape"))

    @property
    def text(self) -> str:
        """As far as was counted."""
        return self._total.hexdigest()


def _add_content(total: Any, entry: Entry, tree: FileTree) -> None:
    if entry.content is not None:
        total.update(b"%d\0" % len(entry.content))
        total.update(entry.content + b"0\0")
        return
    kind = stat.S_IFMT(entry.status.st_mode)
    if kind == stat.S_IFLNK:
        total.update(os.fsencode(os.readlink(entry.leaf, dir_fd=entry.directory_fd)) + b"\0")
        return
    if kind == stat.S_IFDIR:
        _add_xattrs(total, entry.directory_fd)
        return
    if kind != stat.S_IFREG:
        return
    fd = _opened(entry, tree)
    try:
        # a length, or a digest of its own: bytes of a file must not be able to look like the next entry
        piece = os.read(fd, _PIECE)
        if len(piece) < _PIECE and len(piece) >= entry.status.st_size:
            total.update(b"%d\0" % len(piece))
            total.update(piece)
        else:
            content = hashlib.sha256()
            while piece:
                content.update(piece)
                piece = os.read(fd, _PIECE)
            total.update(b"sha256\0" + content.digest())
        _add_xattrs(total, fd)
    finally:
        os.close(fd)


def _add_xattrs(total: Any, fd: int) -> None:
    found = kept_xattrs(fd) if fd >= 0 else {}
    total.update(b"%d\0" % len(found))
    for name, value in found.items():
        total.update(b"%s\0%d\0%s" % (os.fsencode(name), len(value), value))


def _opened(entry: Entry, tree: FileTree) -> int:
    try:
        return os.open(entry.leaf, _FILE, dir_fd=entry.directory_fd)
    except OSError as problem:
        path = _joined(entry.top.path, entry.below)
        raise InvalidInput(
            f"{path} in {tree.name} cannot be read: {problem.strerror}; change its mode, or leave it out with a"
            " .dockerignore"
        ) from problem


def write(
    writer: TarWriter,
    tree: FileTree,
    tops: Sequence[Top],
    selection: Selection,
    place: Callable[[Top, str], bytes | None],
) -> str:
    """Write every entry where `place` puts it (None: its folder is there already), with what the selection changes.

    Answers the stamp of what was written.
    """
    stamp = Stamp()
    first: dict[tuple[int, int], bytes] = {}
    for entry in tree.entries(tops, selection):
        name = place(entry.top, entry.below)
        if name is None:
            stamp.add(entry.below, entry.status)
            continue
        status = selection.attributes(entry.status)
        if entry.content is not None:
            writer.entry(name, status, size=len(entry.content))
            writer.content(entry.content)
            writer.pad(len(entry.content))
            stamp.add(entry.below, entry.status)
            continue
        key = (status.st_dev, status.st_ino)
        several = status.st_nlink > 1 and not status.is_dir
        if several and key in first:
            writer.entry(name, status, link=first[key], hard=True)
            stamp.add(entry.below, entry.status)
            continue
        stamp.add(entry.below, _write_entry(writer, tree, entry, name, status))
        if several:
            first[key] = name
    return stamp.text


def _write_entry(writer: TarWriter, tree: FileTree, entry: Entry, name: bytes, status: Attributes) -> Attributes:
    """Write one entry, and give what it was when it had been read."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFDIR:
        xattrs = kept_xattrs(entry.directory_fd) if entry.directory_fd >= 0 else {}
        writer.entry(name, status, xattrs=xattrs)
    elif kind == stat.S_IFLNK:
        writer.entry(name, status, link=os.fsencode(os.readlink(entry.leaf, dir_fd=entry.directory_fd)))
    elif kind == stat.S_IFREG:
        fd = _opened(entry, tree)
        try:
            now = os.fstat(fd)
            if stat.S_ISREG(now.st_mode):  # it may have been exchanged since
                if (now.st_size, now.st_blocks) != (status.st_size, status.st_blocks):
                    status = replace(status, st_size=now.st_size, st_blocks=now.st_blocks)
                writer.file(name, fd, status)
            return Attributes.of(os.fstat(fd))
        finally:
            os.close(fd)
    else:
        writer.entry(name, status)
    return entry.status
