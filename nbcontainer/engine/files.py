"""Moving files into and out of containers: `cp`, `diff`, `export`.

The bytes are a tar in a pipe. At its far end is a process that has the container's root as its own: for a container
that has ended a task of the launcher, which mounts that root; for a running one a helper that joins it, whichever
notebook it belongs to, so that volumes and what is only in memory are copied, too. At the near end it is us: a file of
the machine is opened by the person's own rights, and nothing below it is reached through a link.

What only reads the store (`diff`, `export`) needs no running process: all containers of a person write with the same
ids, and a writable layer may be looked at while it is in use.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from nbcontainer._linux.mounts import AT_FDCWD
from nbcontainer.engine import inside
from nbcontainer.engine.resources import running_pid
from nbcontainer.engine.roots import layers_of, read_only, root_of
from nbcontainer.engine.views import Change, CopyResult
from nbcontainer.engine.volume_use import volume_mounts
from nbcontainer.errors import (
    Conflict,
    CorruptContent,
    InvalidImage,
    InvalidInput,
    InvalidOption,
    NbcontainerError,
    NotFound,
)
from nbcontainer.layers.compression import decompress, write_all
from nbcontainer.layers.place import explain, land, locate, place, unreadable
from nbcontainer.layers.tar import Stream
from nbcontainer.runtime.joining import Joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from typing_extensions import Self

    from nbcontainer.engine.records import Stored
    from nbcontainer.engine.session import Session
    from nbcontainer.layers.place import Landing

__all__ = ["ContainerPath", "call_streaming", "changes", "copy_from", "copy_to", "export", "task"]

_MODULE = "nbcontainer.engine.inside"
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPath:
    """A path of a container as `cp` takes it.

    `path` is absolute and has no ``..``; `directory` says that it must be a folder (it ended with a slash), `contents`
    that what is in it is meant (it ended with ``/.``).
    """

    path: str
    directory: bool
    contents: bool

    @classmethod
    def parse(cls, text: str) -> ContainerPath:
        """Read what stands after ``CONTAINER:``; relative paths start at the container's root, as in docker."""
        if "\0" in text:
            raise InvalidOption("a path in a container cannot have a NUL byte")
        path = posixpath.normpath(f"/{text}")
        path = f"/{path.lstrip('/')}"
        contents = path == "/" or text.endswith("/.") or text in {"", "."}
        return cls(path=path, directory=contents or text.endswith("/"), contents=contents)

    @property
    def name(self) -> str:
        """What a copy of it is called."""
        return posixpath.basename(self.path) or "root"

    def __str__(self) -> str:
        return self.path + ("/." if self.contents and self.path != "/" else "/" if self.directory else "")


class _Call(Protocol):
    """One function of `nbcontainer.engine.inside`, called where the container's files are."""

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Start it."""

    def finish(self) -> dict[str, Any]:
        """Its result, or its error raised."""


class _TaskCall:
    """Called in a task of our launcher."""

    def __init__(self, session: Session) -> None:
        self._runtime = session.runtime
        self._connection: Any = None

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
        self._connection = self._runtime.begin(target, arguments, fds)

    def finish(self) -> dict[str, Any]:
        connection, self._connection = self._connection, None
        try:
            return self._runtime.finish(connection)
        finally:
            connection.close()

    def abandon(self) -> None:
        """Wait for the end of a task whose pipe has been closed: what it still writes would come after our lock."""
        if self._connection is not None:
            with contextlib.suppress(NbcontainerError):
                self.finish()


@contextlib.contextmanager
def task(session: Session) -> Iterator[_TaskCall]:
    """A way to call one function of `inside` in a task of the launcher; its end is waited for."""
    call = _TaskCall(session)
    try:
        yield call
    finally:
        call.abandon()


@contextlib.contextmanager
def _entered(
    session: Session, stored: Stored, *, write: bool, volumes: bool = True
) -> Iterator[tuple[_Call, list[dict[str, Any]]]]:
    """A way to call functions at the container's root, and the mounts that the call has to make first.

    A container that has ended is locked meanwhile, shared to read, alone to write, and may have its `volumes`
    mounted. On the machine's own root it is always locked alone and mounted as it was: overlayfs refuses a writable
    layer as one of several lower ones when it lies in another of them (ELOOP, "overlapping lowerdir path").
    """
    alone = write or not stored.fields.get("chain")
    if stored.locked:
        if stored.fields.get("finished") is not None:
            raise Conflict(f"another copy into container {stored.id[:12]} is under way; try again when it is done")
        pid = running_pid(stored)
        with Joined(pid, (_MODULE,)) as joined:
            again = session.records.find(stored.id)
            if not again.locked or again.fields.get("pid") != pid:
                raise Conflict(f"container {stored.id[:12]} has just ended; try again")
            yield joined, []
        return
    with session.records.holding(stored, alone=alone):
        root = root_of(session, stored)
        with task(session) as call:
            view = session.runtime.view(root if alone else read_only(root))
            shown = session.runtime.view(volume_mounts(session, stored)) if volumes else []
            yield call, [*view, *({**step, "only_where_there": True} for step in shown)]


class _Pipe:
    """Both ends, each closed once."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)

    def close_reader(self) -> None:
        fd, self.reader = self.reader, -1
        if fd >= 0:
            os.close(fd)

    def close_writer(self) -> None:
        fd, self.writer = self.writer, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_reader()
        self.close_writer()


def call_streaming(
    call: _Call, target: str, arguments: Mapping[str, Any], take: Callable[[int], None]
) -> dict[str, Any]:
    """Call a function of `inside` that writes to a pipe, while `take` reads the other end; give its result.

    When both fail it is the writer's reason that is raised: the reader has only seen it stop.
    """
    with _Pipe() as pipe:
        call.begin(f"{_MODULE}:{target}", arguments, (pipe.writer,))
        pipe.close_writer()
        try:
            take(pipe.reader)
        except InvalidImage as problem:
            pipe.close_reader()
            call.finish()
            raise unreadable(problem) from problem
        pipe.close_reader()
        return call.finish()


# --- out of a container ---------------------------------------------------------------------------------------------


def copy_from(
    session: Session,
    stored: Stored,
    source: ContainerPath,
    target: str | BinaryIO,
    *,
    archive: bool,
    follow_link: bool,
) -> CopyResult:
    """Copy out of a container to a path, or as a tar to an open file; see `Engine.copy_from`."""
    arguments = {
        "path": source.path,
        "name": source.name if isinstance(target, str) or not source.contents else ".",
        "follow": follow_link,
        "directory": source.directory,
    }
    results: list[dict[str, Any]] = []

    def take(reader: int) -> None:
        if isinstance(target, str):
            results.append(_place_here(reader, source, target, archive=archive))
        else:
            _pour(reader, target)

    with _entered(session, stored, write=False) as (call, view):
        packed = call_streaming(call, "pack", {**arguments, "view": view}, take)
    return _result(results[0] if results else packed, packed if results else {})


def _place_here(reader: int, source: ContainerPath, target: str, *, archive: bool) -> dict[str, Any]:
    def decide(source_is_directory: bool) -> Landing:  # noqa: FBT001 - the one fact that `place` has to give
        try:
            found, there = locate(AT_FDCWD, target, resolve=0)
        except OSError as problem:
            raise explain(problem, target) from problem
        return land(
            found,
            source_name=os.fsencode(source.name),
            source_is_directory=source_is_directory,
            contents=source.contents,
            there=there,
            where=target,
        )

    placed = place(Stream(reader), AT_FDCWD, decide, resolve=0, owners=archive, special=archive, renamed=True)
    return inside.placed_fields(placed)


def _pour(reader: int, target: BinaryIO) -> None:
    while data := os.read(reader, _PIECE):
        target.write(data)
    target.flush()


def export(session: Session, stored: Stored, target: str | BinaryIO) -> CopyResult:
    """Write a container's whole root as a tar; see `Engine.export`."""
    with _output(target) as file, _looked_at(session, stored) as (call, view):
        return _result(call_streaming(call, "export", {"view": view}, lambda fd: _pour(fd, file)))


@contextlib.contextmanager
def _looked_at(session: Session, stored: Stored) -> Iterator[tuple[_Call, list[dict[str, Any]]]]:
    """As `_entered`, but of a running container only what lies in the store."""
    if not stored.locked:
        with _entered(session, stored, write=False, volumes=False) as entered:
            yield entered
        return
    if not stored.fields.get("chain"):
        raise Conflict(
            "a running container of the host image cannot be exported as a whole; wait for its end, or take what you"
            " need with cp"
        )
    with task(session) as call:
        yield call, session.runtime.view(read_only(root_of(session, stored)))


@contextlib.contextmanager
def _output(target: str | BinaryIO) -> Iterator[BinaryIO]:
    """An open file; one given by path has its name only when it is complete."""
    if not isinstance(target, str):
        yield target
        return
    path = os.path.expanduser(target)
    aside = f"{path}.part-{os.getpid()}"
    try:
        if os.path.isdir(path):
            raise InvalidInput(f"{target} is a folder; name the file to write")
        with open(aside, "wb") as file:
            try:
                yield file
                os.rename(aside, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(aside)
                raise
    except OSError as problem:
        if isinstance(problem, NbcontainerError):
            raise
        raise explain(problem, target) from problem


# --- into a container -----------------------------------------------------------------------------------------------


def copy_to(
    session: Session,
    stored: Stored,
    source: str | BinaryIO,
    target: ContainerPath,
    *,
    archive: bool,
    follow_link: bool,
) -> CopyResult:
    """Copy a file or folder of the machine, or what is in an open tar file, into a container; see `Engine.copy_to`."""
    if isinstance(source, str) and not os.path.lexists(source.rstrip("/") or "/"):
        raise NotFound(f"{source} does not exist on this machine")
    contents = isinstance(source, str) and (source in {".", "/"} or source.endswith("/."))
    name = os.path.basename(os.path.abspath(source)) or "root" if isinstance(source, str) else None
    arguments = {
        "path": target.path + ("/" if target.directory and target.path != "/" else ""),
        "where": str(target),
        "name": name,
        "contents": contents,
        "owners": archive,
    }
    packed: dict[str, Any] = {}
    with _entered(session, stored, write=True) as (call, view), _Pipe() as pipe:
        call.begin(f"{_MODULE}:unpack", {**arguments, "view": view}, (pipe.reader,))
        pipe.close_reader()
        try:
            if isinstance(source, str):
                packed = _pack_here(pipe.writer, source, str(name), contents=contents, follow=follow_link)
            else:
                for piece in decompress(iter(lambda: source.read(_PIECE), b"")):
                    write_all(pipe.writer, piece)
        except BrokenPipeError:  # the other end gave up: it says why
            pass
        except (CorruptContent, InvalidImage) as problem:
            pipe.close_writer()
            raise unreadable(problem) from problem
        except BaseException:
            pipe.close_writer()
            raise
        pipe.close_writer()
        return _result(call.finish(), packed)


def _pack_here(writer: int, source: str, name: str, *, contents: bool, follow: bool) -> dict[str, Any]:
    directory = contents or source.endswith("/")
    packer = inside.pack_path(
        writer, AT_FDCWD, source, name=os.fsencode(name), follow=follow, directory=directory, resolve=0
    )
    return {"notices": packer.notices, "left_out": packer.left_out}


def _result(main: Mapping[str, Any], further: Mapping[str, Any] | None = None) -> CopyResult:
    notices = [*main.get("notices", ()), *(further or {}).get("notices", ())]
    left_out = int(main.get("left_out", 0)) + int((further or {}).get("left_out", 0))
    if left_out > len(notices):
        notices.append(f"{left_out - len(notices)} more were left out")
    return CopyResult(entries=int(main["entries"]), bytes=int(main["bytes"]), notices=tuple(notices))


# --- what has changed -----------------------------------------------------------------------------------------------


def changes(session: Session, stored: Stored) -> tuple[Change, ...]:
    """What a container added, changed and deleted, in the order of its paths; see `Engine.diff`."""
    runtime = session.runtime
    parts = []
    for mount in layers_of(session, stored):
        (step,) = runtime.view((mount,))
        parts.append({"target": mount.target, "upper": step["upper"], "lower": step["lower"]})
    pieces: list[bytes] = []
    if not parts:
        return ()
    with task(session) as call:
        call_streaming(
            call, "changes", {"layers": parts}, lambda fd: pieces.extend(iter(lambda: os.read(fd, _PIECE), b""))
        )
    found = sorted(b"".join(pieces).split(b"\0")[:-1], key=lambda each: each[1:].split(b"/"))
    kinds: dict[bytes, Any] = {b"A": "A", b"C": "C", b"D": "D"}
    return tuple(Change(kind=kinds[each[:1]], path=os.fsdecode(each[1:])) for each in found)
