"""The tree a layer is written into, and the merged view it is written against.

A layer is a *difference*: its entries name paths of the merged view (this layer over all lower ones), but only what
the layer itself holds is written. So each directory of the layer is a node that knows its descriptor, the lower
layers in which the same directory can be seen, and the attributes it will get at the end.

How it is confined: a path is walked one component at a time from the root's descriptor, with ``O_NOFOLLOW``, and no
component that holds ``/`` or is ``..`` ever reaches the kernel. Symlinks are followed by us, as the merged view
would: absolute ones start at the root, ``..`` stops there. Lower layers are read with openat2 and
``RESOLVE_BENEATH``. So a layer can lead a walk in circles (bounded), but not out.

Overlayfs facts (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"): a whiteout is a
character device 0/0; a directory with ``user.overlay.opaque=y`` hides what lies under it; a whiteout inside a
directory that is not merged with a lower one is *shown* by readdir, so none may stay there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from nbcontainer._linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from nbcontainer.errors import InvalidImage, UnsafeLayer
from nbcontainer.layers.copying import readable_xattrs
from nbcontainer.layers.remove import remove_entry
from nbcontainer.layers.tar import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Attributes", "Directory", "LowerEntry", "Tree"]

OPAQUE = "user.overlay.opaque"
_OPAQUE_NAMES = (OPAQUE, "trusted.overlay.opaque")
_MOST_OPEN = 200
_MOST_CACHED = 50_000
_MOST_LINKS = 40
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOWER_RESOLVE = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS


class Attributes(NamedTuple):
    """What a directory gets once nothing more is written into it."""

    mode: int
    uid: int
    gid: int
    mtime: int


class Directory:
    """One directory of the layer. `lower` lists the lower layers (topmost first) that show through it."""

    __slots__ = ("attributes", "brought", "children", "fd", "lower", "name", "own", "parent", "whiteouts")

    def __init__(self, name: bytes, parent: Directory | None, lower: tuple[int, ...] | None) -> None:
        self.name = name
        self.parent = parent
        self.lower = lower
        """None until somebody asks."""
        self.fd = -1
        self.children: dict[bytes, Directory] = {}
        self.whiteouts: set[bytes] = set()
        self.attributes: Attributes | None = None
        self.brought = False
        """Whether the layer has an entry for it or in it; if not, only whiteouts implied it."""
        self.own: set[bytes] | None = None
        """Names this layer brought; kept only when the target already held the lower layers."""

    def path(self) -> bytes:
        """Where it is below the root, for messages and for looking into lower layers."""
        parts = []
        node: Directory = self
        while node.parent is not None:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts)) or b"."

    def below(self) -> Iterator[Directory]:
        """This directory and every one below it, parents first."""
        pending = [self]
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())


class LowerEntry(NamedTuple):
    """Something a lower layer shows: which layer, and what."""

    layer: int
    status: os.stat_result


class Tree:
    """The directories of the layer being written.

    `flat` says that the target already holds a copy of the lower layers, so that whiteouts remove at once instead of
    being recorded. `parents` are descriptors of the lower layers, topmost first; they stay the caller's.
    """

    def __init__(self, target_fd: int, parents: Sequence[int], *, flat: bool) -> None:
        self.flat = flat
        self._parents = tuple(parents)
        self.root = Directory(b"", None, tuple(range(len(self._parents))))
        self.root.fd = os.dup(target_fd)
        if flat:
            self.root.own = set()
        self._open: list[Directory] = []
        self._cache: dict[bytes, Directory] = {b"": self.root}
        self._through_links = False

    def close(self) -> None:
        """Close every descriptor."""
        self._close_most()
        if self.root.fd >= 0:
            os.close(self.root.fd)
            self.root.fd = -1

    # Finding directories

    def split(self, raw: bytes) -> tuple[Directory, bytes]:
        """The directory an entry's path lies in, made where it is only implied, and the last component.

        The last component of the root itself is empty.
        """
        head, _, name = raw.rpartition(b"/")
        node = self._cache.get(head)
        if node is not None and name not in {b"", b".", b".."}:
            return node, name
        parts = clean(raw)
        if not parts:
            return self.root, b""
        return self._find(parts[:-1], raw), parts[-1]

    def split_existing(self, raw: bytes) -> tuple[Directory, bytes] | None:
        """As `split`, but None where the merged view has no such directory: for whiteouts, which bring nothing."""
        parts = clean(raw)
        if not parts:
            return None
        node = self._cache.get(b"/".join(parts[:-1])) or self.walk(parts[:-1], raw, make=False)
        return None if node is None else (node, parts[-1])

    def _find(self, parts: list[bytes], raw: bytes) -> Directory:
        key = b"/".join(parts)
        node = self._cache.get(key)
        if node is None:
            node = self.walk(parts, raw)
            assert node is not None
            self.remember(key, node)
        head = raw.rpartition(b"/")[0]
        if head != key:
            self.remember(head, node)
        return node

    def remember(self, path: bytes, node: Directory) -> None:
        """Find `node` faster when an entry spells its directory as `path`."""
        if len(self._cache) >= _MOST_CACHED:
            self.forget()
        self._cache[path] = node

    def forget(self) -> None:
        """A directory or symlink went away: any spelling may now mean something else."""
        self._cache = {b"": self.root}
        self._through_links = False

    def forget_links(self) -> None:
        """Something new took a name: a spelling that went through a lower symlink may now mean something else."""
        if self._through_links:
            self.forget()

    def walk(self, parts: list[bytes], raw: bytes, *, make: bool = True) -> Directory | None:
        """Follow `parts` from the root through the merged view, making directories that this layer lacks.

        Where the merged view lacks one too, it is made as well, or the answer is None without `make`.
        """
        pending = parts[::-1]
        node, links = self.root, 0
        while pending:
            part = pending.pop()
            if part in {b"", b"."}:
                continue
            if part == b"..":
                node = node.parent or node
                continue
            child = node.children.get(part)
            step = child if child is not None else self._enter(node, part)
            if step is None:
                if not make:
                    return None
                step = self._make_implied(node, part, raw)
            if isinstance(step, Directory):
                node = step
                continue
            links += 1
            self._through_links = True
            if links > _MOST_LINKS:
                raise InvalidImage(f"layer entry {shown(raw)} lies behind more than {_MOST_LINKS} symlinks; refused")
            node = self.root if step.startswith(b"/") else node
            pending.extend(step.split(b"/")[::-1])
        return node

    def _enter(self, node: Directory, name: bytes) -> Directory | bytes | None:
        """One step of a walk onto something that is not yet a node: a directory, the text of a symlink, or None."""
        status = self.status(node, name)
        if status is None:
            lower = self.lower_entry(node, name)
            return None if lower is None else self._enter_lower(node, name, lower)
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=self.fd(node))
        if stat.S_ISDIR(status.st_mode):  # only in a flat target: our own directories are nodes
            child = self._adopt(node, name)
            child.attributes = attributes_of(status)
            return child
        return None

    def _enter_lower(self, node: Directory, name: bytes, lower: LowerEntry) -> Directory | bytes | None:
        """The implied directory gets what the lower one has, as a copy-up would."""
        mode = lower.status.st_mode
        if stat.S_ISDIR(mode):
            child = self.make(node, name, attributes_of(lower.status))
            self._copy_xattrs(lower, child)
            return child
        return self.read_lower_link(node, name, lower) if stat.S_ISLNK(mode) else None

    def _make_implied(self, node: Directory, name: bytes, raw: bytes) -> Directory:
        """A directory nobody mentioned; `InvalidImage` when the merged view has something else there."""
        lower = self.lower_entry(node, name)
        if name not in node.whiteouts and (lower is not None or self.status(node, name) is not None):
            raise _not_a_directory(node, name, raw)
        return self.make(node, name, Attributes(0o755, 0, 0, 0))

    def _copy_xattrs(self, lower: LowerEntry, child: Directory) -> None:
        with self._lower_directory(lower.layer, child) as fd:
            for key, value in readable_xattrs(fd):
                with contextlib.suppress(OSError):
                    os.setxattr(self.fd(child), key, value)

    def fd(self, node: Directory) -> int:
        """The directory's descriptor, opened again (with its parents) when it had to be closed.

        Valid until the next call for another directory, which may close this one: to use two at once, dup the first.
        """
        if node.fd >= 0:
            return node.fd
        missing = self._closed_chain(node)
        if len(self._open) + len(missing) > _MOST_OPEN:
            self._close_most()
            missing = self._closed_chain(node)
        above = missing[-1].parent
        assert above is not None
        fd, passing = above.fd, -1
        for child in reversed(missing):
            fd = os.open(child.name, _OPEN_DIRECTORY, dir_fd=fd)
            if passing >= 0:
                os.close(passing)
            if child is node or len(self._open) < _MOST_OPEN:
                child.fd, passing = fd, -1
                self._open.append(child)
            else:
                passing = fd
        return fd

    @staticmethod
    def _closed_chain(node: Directory) -> list[Directory]:
        """The directory and those above it that have no descriptor now, deepest first."""
        missing = []
        while node.fd < 0:
            missing.append(node)
            assert node.parent is not None
            node = node.parent
        return missing

    def _close_most(self) -> None:
        for node in self._open:
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
        self._open.clear()

    def status(self, node: Directory, name: bytes) -> os.stat_result | None:
        """What the target holds under that name, never following it."""
        try:
            return os.stat(name, dir_fd=self.fd(node), follow_symlinks=False)
        except FileNotFoundError:
            return None

    # Changing directories

    def make(self, node: Directory, name: bytes, attributes: Attributes) -> Directory:
        """The directory `name` of this layer, new or merged with the one it has already."""
        child = node.children.get(name)
        if child is None:
            child = self._make(node, name)
        child.attributes = attributes
        return child

    def _make(self, node: Directory, name: bytes) -> Directory:
        try:
            os.mkdir(name, 0o700, dir_fd=self.fd(node))
        except FileExistsError:
            status = self.status(node, name)
            if self.flat and status is not None and stat.S_ISDIR(status.st_mode):
                return self._adopt(node, name)
            self.clear(node, name)
            os.mkdir(name, 0o700, dir_fd=self.fd(node))
            child = self._adopt(node, name)
            if self.lower_of(child):
                self.hide(child)
            return child
        self.forget_links()
        return self._adopt(node, name)

    def _adopt(self, node: Directory, name: bytes) -> Directory:
        child = Directory(name, node, () if node.lower == () else None)
        if self.flat:
            child.own = set()
        node.children[name] = child
        return child

    def claim(self, node: Directory, name: bytes) -> None:
        """Note that this layer brought `name`, and so the directories leading there: whiteouts must not remove them."""
        while not node.brought or (node.own is not None and name not in node.own):
            node.brought = True
            if node.own is not None:
                node.own.add(name)
            if node.parent is None:
                return
            node, name = node.parent, node.name

    def clear(self, node: Directory, name: bytes) -> None:
        """Remove what this layer has under that name, whatever it is, so that something else can take the place."""
        child = node.children.pop(name, None)
        if child is not None:
            self._bury(child)
        status = self.status(node, name)
        if status is not None and (stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            self.forget()
        remove_entry(self.fd(node), name)
        node.whiteouts.discard(name)

    def _bury(self, child: Directory) -> None:
        for dead in child.below():
            if dead.fd >= 0:
                os.close(dead.fd)
                dead.fd = -1
        self._open = [node for node in self._open if node.fd >= 0]
        self.forget()

    def hide(self, child: Directory) -> None:
        """Make a directory of this layer opaque: nothing of the lower layers shows through it any more.

        Whiteouts in it have nothing left to hide, nor have directories that only whiteouts implied.
        """
        os.setxattr(self.fd(child), OPAQUE, b"y")
        pending = [child]
        while pending:
            node = pending.pop()
            node.lower = ()
            for name in node.whiteouts:
                os.unlink(name, dir_fd=self.fd(node))
            node.whiteouts.clear()
            for name, inner in list(node.children.items()):
                if inner.brought:
                    pending.append(inner)
                else:
                    self.clear(node, name)

    # Whiteouts

    def whiteout(self, node: Directory, name: bytes) -> bool:
        """Hide `name` of the lower layers; false when they show none. What this layer brought itself stays."""
        if self.flat:
            return self._remove_lower(node, name)
        if name in node.whiteouts:
            return True
        child = node.children.get(name)
        if self.lower_entry(node, name) is None:
            return False
        if child is not None and not child.brought:
            self.clear(node, name)
            child = None
        if child is not None:
            self.hide(child)
        elif self.status(node, name) is None:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=self.fd(node))
            node.whiteouts.add(name)
            self.forget_links()
        return True

    def opaque(self, node: Directory) -> bool:
        """Hide everything that lower layers have in this directory, whenever this layer says so."""
        if self.flat:
            names = os.listdir(self.fd(node))
            return sum(self._remove_lower(node, os.fsencode(name)) for name in names) > 0
        if not self.lower_of(node):
            return False
        if node.parent is not None:
            self.hide(node)
            return True
        # the root of an overlay always merges, so each name is hidden by itself
        return sum(self.whiteout(node, name) for name in self._lower_names(node)) > 0

    def _remove_lower(self, node: Directory, name: bytes) -> bool:
        """Flat target: remove `name`, but keep what this layer brought, and the directories that lead there."""
        status = self.status(node, name)
        if status is None:
            return False
        if node.own is None or name not in node.own:
            self.clear(node, name)
            return True
        child = node.children.get(name)
        if child is not None and stat.S_ISDIR(status.st_mode):
            for inner in os.listdir(self.fd(child)):
                self._remove_lower(child, os.fsencode(inner))
        return True

    # Lower layers

    def lower_of(self, node: Directory) -> tuple[int, ...]:
        """The lower layers whose directory of that path shows through, topmost first."""
        if node.lower is None:
            assert node.parent is not None
            node.lower = tuple(self._visible(node, self.lower_of(node.parent)))
        return node.lower

    def _visible(self, node: Directory, layers: tuple[int, ...]) -> Iterator[int]:
        assert node.parent is not None
        for layer in layers:
            with self._lower_directory(layer, node.parent) as fd:
                status = _status_at(fd, node.name)
                if status is None:
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    return
                yield layer
                if _is_opaque(fd, node.name):
                    return

    def lower_entry(self, node: Directory, name: bytes) -> LowerEntry | None:
        """What the lower layers, merged, show as `name` in this directory."""
        for layer in self.lower_of(node):
            with self._lower_directory(layer, node) as fd:
                status = _status_at(fd, name)
            if status is not None:
                return None if is_whiteout(status) else LowerEntry(layer, status)
        return None

    def _lower_names(self, node: Directory) -> set[bytes]:
        names: set[bytes] = set()
        for layer in self.lower_of(node):
            with self._lower_directory(layer, node) as fd:
                names.update(os.fsencode(name) for name in os.listdir(fd))
        return names

    def inherited_root(self) -> Attributes | None:
        """What the root has in the layer below, which a layer without an entry for it leaves as it was."""
        if self.flat:
            return None
        return attributes_of(os.fstat(self._parents[0])) if self._parents else None

    def open_lower(self, node: Directory, name: bytes, lower: LowerEntry) -> int:
        """A descriptor for reading a regular file of a lower layer; the caller's to close."""
        with self._lower_directory(lower.layer, node) as fd:
            return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)

    def read_lower_link(self, node: Directory, name: bytes, lower: LowerEntry) -> bytes:
        """The text of a symlink of a lower layer."""
        with self._lower_directory(lower.layer, node) as fd:
            return os.readlink(name, dir_fd=fd)

    @contextlib.contextmanager
    def _lower_directory(self, layer: int, node: Directory) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY
        fd = openat2(self._parents[layer], node.path(), flags, resolve=_LOWER_RESOLVE)
        try:
            yield fd
        finally:
            os.close(fd)


def attributes_of(status: os.stat_result) -> Attributes:
    """What a directory has on disk."""
    return Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)


def clean(raw: bytes) -> list[bytes]:
    """The components of an entry's path below the root; `UnsafeLayer` when ``..`` would leave it."""
    parts: list[bytes] = []
    for part in raw.split(b"/"):
        if part in {b"", b"."}:
            continue
        if part == b"..":
            if not parts:
                raise UnsafeLayer(
                    f"layer entry {shown(raw)} points outside the image's root; the layer was refused, do not trust"
                    " this image"
                )
            parts.pop()
        else:
            parts.append(part)
    return parts


def is_whiteout(status: os.stat_result) -> bool:
    """Whether an overlay layer's file says "removed here"."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _status_at(fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _is_opaque(fd: int, name: bytes) -> bool:
    directory = os.open(name, _OPEN_DIRECTORY, dir_fd=fd)
    try:
        return any(_xattr(directory, key) == b"y" for key in _OPAQUE_NAMES)
    finally:
        os.close(directory)


def _xattr(fd: int, key: str) -> bytes:
    try:
        return os.getxattr(fd, key)
    except OSError as problem:
        if problem.errno in {errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES}:
            return b""
        raise


def _not_a_directory(node: Directory, name: bytes, raw: bytes) -> InvalidImage:
    place = b"/".join(part for part in (node.path(), name) if part != b".")
    return InvalidImage(f"layer entry {shown(raw)} lies under {shown(place)}, which is not a directory")
