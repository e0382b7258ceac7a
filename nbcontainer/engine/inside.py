"""What the verbs that move files do where the files are: in a task of the launcher, or in a running container.

Standard library only, like all that runs in a user namespace; everything is imported before it is entered. Each
function takes JSON and descriptors and gives JSON; a tar goes through a pipe beside it. Paths are bytes of a stranger's
file system, carried as text by `os.fsdecode`.
"""

from __future__ import annotations

import fcntl
import os
import select
import stat
from typing import TYPE_CHECKING, Any

from nbcontainer._linux.syscalls import openat2
from nbcontainer.errors import InvalidImage, InvalidInput, InvalidOption, NotFound
from nbcontainer.layers import diff
from nbcontainer.layers.copying import copy_children
from nbcontainer.layers.pack import Packer, TarWriter, is_made_by_kernel
from nbcontainer.layers.place import IN_ROOT, Landing, Placed, explain, land, locate, place, unreadable
from nbcontainer.layers.tar import Stream
from nbcontainer.runtime.child import views

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["changes", "end_with", "export", "fill", "layer", "pack", "pack_path", "placed_fields", "unpack"]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def pack(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write what is at ``path`` to the pipe ``fds[0]`` as tar; ``name`` is what its top is called there."""
    root_fd = views.enter(arguments["view"])
    packer = pack_path(
        fds[0],
        root_fd,
        str(arguments["path"]),
        name=os.fsencode(arguments["name"]),
        follow=bool(arguments["follow"]),
        directory=bool(arguments["directory"]),
        resolve=IN_ROOT,
    )
    return _packed(packer)


def pack_path(
    out_fd: int, root_fd: int, path: str, *, name: bytes, follow: bool, directory: bool, resolve: int
) -> Packer:
    """The same for any root. `follow` a link at the end of the path; `directory`: it must be one."""
    packer = Packer(TarWriter(out_fd))
    try:
        found, status = locate(root_fd, path, resolve=resolve) if follow or directory else (path, None)
        parent, _, last = found.rstrip("/").rpartition("/")
        parent_fd = _parent(root_fd, parent or ("/" if found.startswith("/") else "."), resolve)
        try:
            status = _look(parent_fd, last, status)
            if is_made_by_kernel(parent_fd):
                raise InvalidInput(f"{path} is made up by the kernel when it is read; read it inside the container")
            _add(packer, parent_fd, last, name, status, path=path, directory=directory)
        finally:
            os.close(parent_fd)
        packer.writer.finish()
    except BrokenPipeError:  # whoever reads has a reason to give
        raise
    except OSError as problem:
        where = problem.filename if isinstance(problem.filename, str) else path
        raise explain(problem, where) from problem
    return packer


def _parent(root_fd: int, path: str, resolve: int) -> int:
    return openat2(root_fd, path, os.O_PATH | os.O_DIRECTORY, resolve=resolve)


def _look(parent_fd: int, name: str, found: os.stat_result | None) -> os.stat_result:
    if name in {"", ".", ".."}:
        return found or os.fstat(parent_fd)
    return os.stat(name, dir_fd=parent_fd, follow_symlinks=False)


def _add(
    packer: Packer, parent_fd: int, last: str, name: bytes, status: os.stat_result, *, path: str, directory: bool
) -> None:
    if stat.S_ISDIR(status.st_mode):
        top = os.open(last or ".", _FOLDER | os.O_NOFOLLOW, dir_fd=parent_fd)
        try:
            packer.tree(top, name)
        finally:
            os.close(top)
        return
    if directory:
        raise InvalidInput(f"{path} is a file, not a folder; leave the / at the end out")
    packer.add(parent_fd, os.fsencode(last), name, status)
    if packer.left_out:
        kind = "a socket" if stat.S_ISSOCK(status.st_mode) else "a device"
        raise InvalidInput(f"{path} is {kind}, which cannot be copied")
    if not packer.writer.entries:
        raise NotFound(f"{path} went away while it was copied")


def _packed(packer: Packer) -> dict[str, Any]:
    return {
        "entries": packer.writer.entries,
        "bytes": packer.writer.bytes,
        "left_out": packer.left_out,
        "notices": packer.notices,
    }


def unpack(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Place the tar read from ``fds[0]`` at ``path``: one of ours under ``name``, or with no ``name`` anybody's."""
    root_fd = views.enter(arguments["view"])
    path, where, name = str(arguments["path"]), str(arguments["where"]), arguments["name"]

    def decide(source_is_directory: bool) -> Landing:  # noqa: FBT001 - the one fact that `place` has to give
        try:
            found, there = locate(root_fd, path, resolve=IN_ROOT)
        except OSError as problem:
            raise explain(problem, where) from problem
        if name is None:
            if there is None or not stat.S_ISDIR(there.st_mode):
                raise NotFound(f"{where} is no folder; a tar archive is unpacked into one that exists")
            return Landing(folder=os.fsencode(found), name=b"")
        return land(
            found,
            source_name=os.fsencode(name),
            source_is_directory=source_is_directory,
            contents=bool(arguments["contents"]),
            there=there,
            where=where,
        )

    try:
        placed = place(
            Stream(fds[0]),
            root_fd,
            decide,
            resolve=IN_ROOT,
            owners=bool(arguments["owners"]),
            special=True,
            renamed=name is not None,
        )
    except InvalidImage as problem:
        raise unreadable(problem) from problem
    if not placed.entries and name is None:
        decide(True)  # noqa: FBT003 - an empty archive: say all the same when there is no such folder
    return placed_fields(placed)


def placed_fields(placed: Placed) -> dict[str, Any]:
    """What was placed, as JSON."""
    return {
        "entries": placed.entries,
        "bytes": placed.bytes,
        "left_out": placed.left_out,
        "notices": list(placed.notices),
    }


def export(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write the whole root to the pipe ``fds[0]`` as tar, without an entry for the root itself."""
    views.enter(arguments["view"])
    packer = Packer(TarWriter(fds[0]))
    top = os.open("/", _FOLDER)
    try:
        packer.tree(top, b"", skip_root=True)
        packer.writer.finish()
    finally:
        os.close(top)
    return _packed(packer)


def fill(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Copy the folder ``path`` of a root into ``fds[1]``, for the volume whose folder is ``fds[0]`` if it is empty.

    Answers whether there was anything to copy. What is copied has the image's owners, modes, attributes and links;
    ``path`` is found as whoever mounts the volume finds it, so that no link of the image leads out of it. It is given
    up when the other end of the pipe ``fds[2]`` is closed: the person does not want to wait any more.
    """
    end_with(fds[2])
    data = os.open("_data", _FOLDER | os.O_NOFOLLOW, dir_fd=fds[0])
    try:
        if os.listdir(data):
            return {"filled": False}
    finally:
        os.close(data)
    path = str(arguments["path"])
    root_fd = views.enter(arguments["view"])
    try:
        source = openat2(root_fd, path.strip("/"), _FOLDER, resolve=IN_ROOT)
    except NotADirectoryError as problem:
        raise InvalidOption(
            f"{path} is a file in the image, and a volume is a folder; choose another place"
        ) from problem
    except OSError:  # nothing there; or nothing that could be mounted on, which whoever mounts will say
        return {"filled": False}
    try:
        if is_made_by_kernel(source):
            return {"filled": False}
        copy_children(source, fds[1], owners=bool(arguments["owners"]))
    except OSError as problem:
        raise explain(problem, path) from problem
    finally:
        os.close(source)
    return {"filled": True}


def end_with(pipe: int) -> None:
    """Have the kernel end this process when nobody can write to `pipe` any more (fcntl(2), SIGIO)."""
    fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if poll.poll(0):  # it was closed before
        os._exit(1)


def changes(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write each difference to the pipe ``fds[0]``: its letter, its path, a NUL."""
    count = 0
    held = bytearray()
    for part in arguments["layers"]:
        prefix = os.fsencode(part["target"].rstrip("/")) + b"/"
        upper_fd = os.open(part["upper"], _FOLDER)
        lower_fd = views.lower_view(part["lower"])
        try:
            for difference in diff.differences(upper_fd, lower_fd):
                held += difference.kind.encode() + prefix + difference.path + b"\0"
                count += 1
                if len(held) > 1 << 16:
                    _write(fds[0], held)
        finally:
            os.close(upper_fd)
            os.close(lower_fd)
    _write(fds[0], held)
    return {"count": count}


def _write(fd: int, held: bytearray) -> None:
    view = memoryview(bytes(held))
    held.clear()
    while view:
        view = view[os.write(fd, view) :]


def layer(arguments: Mapping[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Write what the layer ``upper`` changes in ``lower`` to the pipe ``fds[0]``, as the tar of an image's layer."""
    upper_fd = os.open(arguments["upper"], _FOLDER)
    lower_fd = views.lower_view(arguments["lower"])
    try:
        return _packed(diff.write_layer(upper_fd, lower_fd, fds[0]))
    finally:
        os.close(upper_fd)
        os.close(lower_fd)
