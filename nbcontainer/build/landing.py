"""What a build does where a stage's files are: a task of the launcher, with the stage's root as its own root.

`land` decides where copies go and whom they belong to, as the stage sees it; `scan` and `pack` read a stage or an
image that is copied from; `layer` writes what a RUN changed. Standard library only. Functions take JSON and
descriptors and give JSON; a tar goes through a pipe beside it.
"""

from __future__ import annotations

import errno
import os
import posixpath
import stat
import time
from typing import TYPE_CHECKING, Any

from nbcontainer._linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2
from nbcontainer.build.sources import Attributes, FileTree, Selection, Top, digest, write
from nbcontainer.errors import InvalidInput, InvalidOption
from nbcontainer.layers import diff
from nbcontainer.layers.pack import Packer, TarWriter, kept_xattrs
from nbcontainer.runtime.child import accounts, views

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["export", "land", "layer", "make_folder", "pack", "scan", "write_folders", "write_placed"]

_BELOW = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_LINKS = 40


# --- where copies go ------------------------------------------------------------------------------------------------


def land(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:  # noqa: ARG001 - every task has this shape
    """Decide as docker's COPY does. ``tops`` are [name, is a folder] of each source, ``above`` is `FileTree.above`.

    Answers ``places`` (a path below the root, without links, for each), ``folders`` to write before them, each with its
    attributes (of those that are there already, as they are), and the ``owner`` that names came to.
    """
    view = arguments["view"]
    root_fd = views.enter(view) if view is not None else -1
    try:
        owner = _owner(str(arguments["owner"])) if arguments["owner"] else None
        lander = _Lander(root_fd, owner or (0, 0))
        for name, *attributes in arguments.get("above", ()):
            lander.expect(f"{arguments['destination']}/{name}", attributes, owned=owner is None)
        places = [
            lander.place(
                str(arguments["destination"]),
                name,
                is_dir=is_dir,
                directory=bool(arguments["directory"]),
                parents=bool(arguments["parents"]),
            )
            for name, is_dir in arguments["tops"]
        ]
        lander.check(places, arguments["tops"], arguments["entries"])
        return {"places": places, "folders": lander.folders, "owner": owner}
    finally:
        if root_fd >= 0:
            os.close(root_fd)


def _owner(text: str) -> tuple[int, int]:
    """``USER[:GROUP]`` in the stage's own accounts; a user alone brings the group of the same number."""
    user, colon, group = text.partition(":")
    try:
        account = accounts.resolve(text if colon and group else user, may_set_groups=False)
    except accounts.AccountError as problem:
        raise InvalidOption(f"--chown={text}: {problem}") from problem
    return account.uid, account.gid if colon and group else account.uid


class _Lander:
    """One COPY, looking at the stage it goes to; `root_fd` is -1 for a stage without files."""

    def __init__(self, root_fd: int, owner: tuple[int, int]) -> None:
        self._root_fd = root_fd
        self._owner = owner
        self._known: dict[str, None] = {}
        self._expected: dict[str, tuple[int, int, int, int]] = {}
        self.folders: list[dict[str, Any]] = []

    def expect(self, path: str, attributes: Sequence[int], *, owned: bool) -> None:
        """A folder that is copied with its attributes (see `FileTree.above`), when something is placed below it."""
        mode, uid, gid, there = attributes
        uid, gid = (uid, gid) if owned else self._owner
        self._expected[self._real(path)[0]] = (mode, uid, gid, there)

    def place(self, destination: str, name: str, *, is_dir: bool, directory: bool, parents: bool) -> str:
        """Where one source goes; the folders above it are noted."""
        if parents:
            destination, directory = f"{destination}/{name}", False
            name = ""
        real, status = self._real(destination)
        there = status is not None and stat.S_ISDIR(status.st_mode)
        if is_dir:
            if status is not None and not there:
                raise InvalidInput(f"{destination} is a file, and a folder cannot be copied onto it")
            self._note(real)
            return real
        if there or directory:
            if status is not None and not there:
                raise InvalidInput(f"{destination} is a file and not a folder, so nothing can be put into it")
            real = f"{real}/{name}" if real else name
        self._note(posixpath.dirname(real))
        return real

    def check(self, places: Sequence[str], tops: Sequence[Sequence[Any]], entries: Sequence[Sequence[Any]]) -> None:
        """Refuse what would put a file where a folder is, or a folder where something else is."""
        missing: set[str] = set()
        for number, below, is_dir in entries:
            if not below and tops[number][1]:
                continue
            path = f"{places[number]}/{below}".strip("/") if below else places[number]
            folder = posixpath.dirname(path)
            if folder in missing:
                if is_dir:
                    missing.add(path)
                continue
            status = self._status(path)
            if status is None:
                if is_dir:
                    missing.add(path)
            elif stat.S_ISDIR(status.st_mode) != is_dir:
                what = "a folder there" if not is_dir else "something there that is no folder"
                raise InvalidInput(
                    f"/{path} cannot be written: there is {what}, and COPY replaces neither by the other"
                )

    def _note(self, folder: str) -> None:
        """A folder that must be there, and those above it: made, or as they are."""
        parts = folder.split("/") if folder else []
        for count in range(len(parts) + 1):
            path = "/".join(parts[:count])
            if path in self._known:
                continue
            self._known[path] = None
            status = self._status(path)
            expected = self._expected.get(path)
            if status is None:
                if path:
                    mode, uid, gid, _ = expected or (0o755, *self._owner, 0)
                    self.folders.append({"path": path, "mode": mode, "uid": uid, "gid": gid})
            elif path and stat.S_ISDIR(status.st_mode):
                self.folders.append(
                    {
                        "path": path,
                        "mode": stat.S_IMODE(status.st_mode) if expected is None else expected[3],
                        "uid": status.st_uid,
                        "gid": status.st_gid,
                        "mtime": status.st_mtime_ns,
                        "xattrs": self._xattrs(path),
                    }
                )

    def _xattrs(self, path: str) -> dict[str, str]:
        fd = openat2(self._root_fd, path, _FOLDER, resolve=_BELOW)
        try:
            return {name: value.hex() for name, value in kept_xattrs(fd).items()}
        finally:
            os.close(fd)

    def _real(self, path: str) -> tuple[str, os.stat_result | None]:
        """`path` with every link followed, the last one too; what is missing is taken as written."""
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
            if status is not None and stat.S_ISLNK(status.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    raise InvalidInput(f"{path} goes through too many symbolic links in the stage")
                target = self._link(here)
                if target.startswith("/"):
                    done = []
                waiting = [each for each in target.split("/") if each not in {"", "."}] + waiting
                continue
            if status is not None and waiting and not stat.S_ISDIR(status.st_mode):
                raise InvalidInput(f"{path} cannot be written: /{here} is a file in the stage")
            done.append(part)
        real = "/".join(done)
        return real, self._status(real)

    def _status(self, path: str) -> os.stat_result | None:
        if self._root_fd < 0:
            return None
        folder, _, name = path.rpartition("/")
        try:
            fd = openat2(self._root_fd, folder or ".", os.O_PATH | os.O_DIRECTORY, resolve=_BELOW)
            try:
                return os.stat(name or ".", dir_fd=fd, follow_symlinks=False)
            finally:
                os.close(fd)
        except OSError as problem:
            if problem.errno in {errno.ENOENT, errno.ENOTDIR}:
                return None
            raise

    def _link(self, path: str) -> str:
        folder, _, name = path.rpartition("/")
        fd = openat2(self._root_fd, folder or ".", os.O_PATH | os.O_DIRECTORY, resolve=_BELOW)
        try:
            return os.readlink(name, dir_fd=fd)
        finally:
            os.close(fd)


def placed_name(place: str, below: str) -> bytes:
    """The name of an entry in the layer; a name that is a deletion there cannot be a file's."""
    name = f"{place}/{below}".strip("/") if below else place
    if ".wh." in name and any(part.startswith(".wh.") for part in name.split("/")):
        raise InvalidInput(
            f"/{name} cannot be in an image, whose layers say by .wh. that something is deleted; choose another name"
            " or leave it out with a .dockerignore"
        )
    return os.fsencode(name)


def make_folder(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Make the folder ``name`` in the directory ``fds[0]`` for a user of the container; one that is there stays."""
    name = str(arguments["name"])
    try:
        os.mkdir(name, 0o700, dir_fd=fds[0])
    except FileExistsError:
        return {"made": False}
    fd = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fds[0])
    try:
        if arguments["owners"]:
            os.fchown(fd, int(arguments["uid"]), int(arguments["gid"]))
        os.fchmod(fd, int(arguments["mode"]))
    finally:
        os.close(fd)
    return {"made": True}


# --- stages and images as sources -----------------------------------------------------------------------------------


def scan(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:  # noqa: ARG001 - see `land`
    """What a selection finds in a stage: its digest, tops and entries."""
    tree = _tree(arguments)
    selection = Selection.of_fields(arguments["selection"])
    try:
        tops = tree.tops(selection)
        name, entries = digest(tree, tops, selection)
        above = tree.above(tops, selection)
    finally:
        os.close(tree.root_fd)
    found = [[top.path, top.name, top.is_dir] for top in tops]
    return {"digest": name, "tops": found, "entries": entries, "above": above}


def pack(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write the ``tops`` of a stage to the pipe ``fds[0]``, each at its place, after the ``folders``."""
    tree = _tree(arguments)
    selection = Selection.of_fields(arguments["selection"])
    tops = [Top(path=path, name=name, is_dir=is_dir) for path, name, is_dir in arguments["tops"]]
    try:
        writer = TarWriter(fds[0], latest=arguments["latest"])
        write_folders(writer, arguments["folders"])
        write_placed(writer, tree, tops, selection, arguments["places"])
        writer.finish()
    finally:
        os.close(tree.root_fd)
    return {"entries": writer.entries, "bytes": writer.bytes}


def export(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write all files of a stage to the pipe ``fds[0]``, without an entry for the root."""
    root_fd = views.enter(arguments["view"])
    os.close(root_fd)
    packer = Packer(TarWriter(fds[0], latest=arguments["latest"]))
    top = os.open("/", _FOLDER)
    try:
        packer.tree(top, b"", skip_root=True)
        packer.writer.finish()
    finally:
        os.close(top)
    return {"entries": packer.writer.entries, "left_out": packer.left_out}


def _tree(arguments: Mapping[str, Any]) -> FileTree:
    return FileTree(root_fd=views.enter(arguments["view"]), name=str(arguments["name"]), owned=True)


def write_placed(
    writer: TarWriter, tree: FileTree, tops: Sequence[Top], selection: Selection, places: Sequence[str]
) -> str:
    """Write every entry of a tree at its place; a folder that is itself a source is there already.

    Answers the stamp of what was written (`nbcontainer.build.sources.Stamp`).
    """
    placed = {id(top): place for top, place in zip(tops, places, strict=True)}

    def place(top: Top, below: str) -> bytes | None:
        if not below and top.is_dir:
            return None
        return placed_name(placed[id(top)], below)

    return write(writer, tree, tops, selection, place)


def write_folders(writer: TarWriter, folders: Sequence[Mapping[str, Any]]) -> None:
    """Entries for folders as `land` has them."""
    for folder in folders:
        status = Attributes(
            st_mode=stat.S_IFDIR | int(folder["mode"]),
            st_uid=int(folder["uid"]),
            st_gid=int(folder["gid"]),
            st_mtime_ns=int(folder["mtime"]) if "mtime" in folder else time.time_ns(),
        )
        xattrs = {name: bytes.fromhex(value) for name, value in (folder.get("xattrs") or {}).items()}
        writer.entry(placed_name(str(folder["path"]), ""), status, xattrs=xattrs)


# --- what a RUN changed ---------------------------------------------------------------------------------------------


def layer(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write what the layer ``upper`` changes in ``lower`` to the pipe ``fds[0]`` as a layer's tar.

    ``stubs`` are the targets of mounts: what was only made to mount something on is taken away first.
    """
    upper_fd = os.open(arguments["upper"], _FOLDER)
    lower_fd = views.lower_view(arguments["lower"]) if arguments["lower"] else -1
    try:
        for stub in sorted(arguments["stubs"], key=len, reverse=True):
            _take_away(upper_fd, lower_fd, str(stub).strip("/"))
        packer = diff.write_layer(upper_fd, lower_fd, fds[0], latest=arguments["latest"])
    finally:
        os.close(upper_fd)
        if lower_fd >= 0:
            os.close(lower_fd)
    return {"entries": packer.writer.entries, "left_out": packer.left_out, "notices": packer.notices}


def _take_away(upper_fd: int, lower_fd: int, path: str) -> None:
    """Remove `path` and its parents from the upper layer, as far as they are empty and not in the lower one."""
    while path:
        folder, _, name = path.rpartition("/")
        if _look(lower_fd, path) is not None:
            return
        found = _look(upper_fd, path)
        if found is not None:
            try:
                fd = openat2(upper_fd, folder or ".", os.O_RDONLY | os.O_DIRECTORY, resolve=_BELOW)
            except OSError:
                return
            try:
                if stat.S_ISDIR(found.st_mode):
                    os.rmdir(name, dir_fd=fd)
                elif stat.S_ISREG(found.st_mode) and not found.st_size:
                    os.unlink(name, dir_fd=fd)
                else:
                    return
                below = _look(lower_fd, folder or ".")
                if below is not None:
                    os.utime(fd, ns=(below.st_mtime_ns, below.st_mtime_ns))
            except OSError:  # something was left in it
                return
            finally:
                os.close(fd)
        path = folder


def _look(top_fd: int, path: str) -> os.stat_result | None:
    if top_fd < 0:
        return None
    folder, _, name = path.rpartition("/")
    try:
        fd = openat2(top_fd, folder or ".", os.O_PATH | os.O_DIRECTORY, resolve=_BELOW)
    except OSError:
        return None
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    finally:
        os.close(fd)
