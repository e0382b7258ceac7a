"""What the engine and its launcher say to each other: a closed set of messages over SEQPACKET sockets.

One connection lives as long as the launcher (`Configure`, `Unshared`, `Mapped`, `Ready`, then `Run`, `Visit`, `Expect`
and `Task`). A container's *room* is everything about it that is known before its command: the launcher has the process
that will become the command `Furnish` it, ahead of the request or with it, and then `Execute`. A room built ahead is an
`Offer`: then the engine says `Execute` itself, and tells the launcher with what it expects next.
Every container and every task has a control socket of its own, sent along with its request, so answers need no
dispatcher: `Accepted`, `Started`, `Exited`, `Failed`, `Done` come back there, `Signal` goes there, and either side's
death is an end of file.

A message is JSON with its type's name; one too long for a datagram travels in a memfd. Bytes from the child's side
are untrusted input: decoding checks the name and the fields and raises `ProtocolError`.
"""

from __future__ import annotations

import array
import json
import os
import socket

from nbcontainer._linux.values import fields_of, value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = [
    "BUILD_HOST_NAME",
    "MOST_FDS",
    "Accepted",
    "Arrival",
    "Configure",
    "Done",
    "Execute",
    "Exited",
    "Expect",
    "Failed",
    "Furnish",
    "Invitation",
    "Lend",
    "Mapped",
    "Message",
    "Offer",
    "ProtocolError",
    "Ready",
    "Room",
    "Run",
    "Signal",
    "Started",
    "Taken",
    "Task",
    "Unshared",
    "Visit",
    "decode",
    "encode",
    "encode_end",
    "receive",
    "send",
]

BUILD_HOST_NAME = "build"
"""The same in every build: what a command finds around it should not differ from one to the next."""
_INLINE = 64 * 1024
_MAX_MESSAGE = 64 * 1024 * 1024
MOST_FDS = 253  # SCM_MAX_FD of unix(7): unpacking sends one for each layer below
_IN_FILE = b"\0file"


class ProtocolError(Exception):
    """The other side sent something that is not a message."""


@value
class Configure:
    """Engine to launcher, first: how containers are made here. fds: the user namespace to join, if there is one.

    `pool_idle` is in milliseconds, `pool_network` is that of containers kept ready at first; `filters` travel as hex by
    name. `modules` are what tasks will need: imported at once, because inside the namespace container root may not be
    allowed to read the interpreter's own files (root's home is closed to it).
    """

    store: str
    single_id: bool
    privileged: bool
    pool_size: int
    pool_idle: int
    filters: dict[str, str]
    capabilities: list[int]
    modules: list[str]
    cgroup: str = ""
    pids_limit: int = 0
    freezer: str = ""
    pool_network: str = "none"


@value
class Unshared:
    """Launcher to engine: my user namespace exists; write its id maps."""

    pid: int


@value
class Mapped:
    """Engine to launcher: the maps are written; fds: host root clones and the store clone, when root."""


@value
class Ready:
    """Launcher to engine: requests may come."""


@value
class Room:
    """What a command finds around it (not a message, but part of some).

    Two rooms that are equal can stand for each other. `generation` changes when the layers below are made anew under
    the same path; with `script` there is a place for a cell's text; `scratch` is removed when the container is over.
    `program` is a system-call filter of its own, as hex, when `filter` is ``custom`` (a profile of the person's) or
    ``adapted`` (the default one for other capabilities); ``unconfined`` has none.
    `rlimits` are soft and hard limits by the number of the resource. With `cgroups`, as many entrances of cgroups come
    as descriptors after the mounts; with `joins` the network namespace to enter follows, with `gated` the gate at which
    the command waits for its link (see `nbcontainer.runtime.child.gate`). With `terminal` the standard streams are a
    terminal of the container's.
    """

    id: str
    operations: list[dict[str, Any]]
    working_directory: str
    user: str
    hostname: str
    network: str
    filter: str
    no_new_privileges: bool
    capabilities: list[int]
    read_only_root: bool
    script: bool
    scratch: str
    generation: str
    rlimits: dict[str, list[int]]
    program: str = ""
    cgroups: int = 0
    terminal: bool = False
    joins: bool = False
    gated: bool = False


@value
class Run:
    """Engine to launcher: start this container. fds: control, stdin, stdout, stderr, then those of its room.

    `rows` and `columns` are the size of its terminal, if the room has one and somebody has told.
    """

    room: Room
    argv: list[str]
    environment: list[str]
    script: str
    rows: int = 0
    columns: int = 0


@value
class Expect:
    """Engine to launcher: these rooms are likely to be asked for next; nobody will ask for the `released` folders.

    Those of the ids in `taken` were offered, and have their command now. fds: the gates of rooms that are gated, in
    order.
    """

    rooms: list[Room]
    released: list[str]
    taken: list[str]


@value
class Lend:
    """Engine to launcher: rooms whose network has this name are in the namespace that comes along, all of them.

    Without a descriptor it is over: none will be asked for. fd: the network namespace.
    """

    name: str


@value
class Offer:
    """Launcher to engine, unasked, on their own connection: the room of this id waits, and `pid` is its PID 1.

    fds: a claim, its pidfd, its socket. Whoever reads the claim, an eventfd of 1 that the launcher has as well, has the
    room: the engine to start a command in it, the launcher to let it go.
    With a `network` no room is there yet: whoever has it may have any built that has this network. Its id is its own.
    """

    id: str
    pid: int
    network: str = ""


@value
class Taken:
    """Engine to launcher: the container that was offered without a room, by this id, has one with this `scratch`."""

    id: str
    scratch: str


@value
class Invitation:
    """Porter to engine, unasked, on the launcher's connection: a joiner waits for the same `Visit` as the last one.

    `id` is the container's. fds: a claim (see `Offer`), the joiner's pidfd, and its socket, which takes the visit with
    control, stdin, stdout and stderr.
    """

    id: str


@value
class Furnish:
    """Launcher, or the engine, to a container-to-be: build this room.

    fds: mounts made outside, then entrances of cgroups.

    One that is built `ahead` of any request and cannot be is silent: its process ends.
    """

    room: Room
    ahead: bool


@value
class Execute:
    """The same to the same: become this, in the room you have. fds: control, stdin, stdout, stderr."""

    argv: list[str]
    environment: list[str]
    script: str
    rows: int = 0
    columns: int = 0

    @staticmethod
    def of(request: Run | Visit) -> Execute:
        """What is left of a request when its room is there."""
        return Execute(request.argv, request.environment, request.script, request.rows, request.columns)


@value
class Task:
    """Engine to launcher: call ``module:function`` inside the user namespace. fds: control, then its own."""

    target: str
    arguments: dict[str, Any]


@value
class Visit:
    """Engine to launcher: have this command join a container that runs already.

    fds: control, stdin, stdout, stderr, a pidfd of a process of the container, then entrances of its cgroups, of which
    `places` are the names. Of `room` only identity, rights and directory count: the root is there. `script` is put at
    `script_path`, if that is named, and taken away afterwards. A `detached` one goes on when nobody listens any more.
    """

    room: Room
    argv: list[str]
    environment: list[str]
    script: str
    script_path: str
    places: str
    detached: bool
    rows: int = 0
    columns: int = 0


@value
class Arrival:
    """Joiner to porter: somebody has come to me. fds: the control socket."""

    detached: bool


@value
class Accepted:
    """Launcher to engine, joiner to door: there is a process; fd: its pidfd. `pid` is as the engine sees it."""

    pid: int


@value
class Started:
    """Container to engine: the root is in place and the command is being executed; fd: the terminal's master."""


@value
class Exited:
    """Container to engine: the command ended with this wait status.

    `refused` is how often the limit on processes that every container has was met meanwhile. `alone` is whether no
    other process of it was left.
    """

    status: int
    refused: int = 0
    alone: bool = False


@value
class Failed:
    """Container or task to engine: it could not be done. `error` names a class of `nbcontainer.errors`."""

    error: str
    message: str
    exit_code: int = 125


@value
class Done:
    """Task to engine: the function returned this."""

    result: dict[str, Any]


@value
class Signal:
    """Engine to container: send this signal to the command's process group, or with `everything` end all at once."""

    number: int
    everything: bool = False


Message = (
    Configure
    | Unshared
    | Mapped
    | Ready
    | Run
    | Expect
    | Lend
    | Offer
    | Taken
    | Invitation
    | Furnish
    | Execute
    | Task
    | Visit
    | Arrival
    | Accepted
    | Started
    | Exited
    | Failed
    | Done
    | Signal
)


class _Registry:
    kinds: ClassVar[dict[str, type[Any]]] = {kind.__name__: kind for kind in Message.__args__}
    names: ClassVar[dict[type[Any], tuple[str, ...]]] = {
        kind: tuple(fields_of(kind)) for kind in (*kinds.values(), Room)
    }
    types: ClassVar[dict[type[Any], dict[str, str]]] = {kind: fields_of(kind) for kind in names}


def encode(message: Message) -> bytes:
    """One message as bytes. Text that is not UTF-8 (surrogate escapes of os.fsdecode) survives as JSON escapes."""
    return json.dumps([type(message).__name__, _plain(message)], default=_plain).encode()


def encode_end(status: int, refused: int, *, alone: bool) -> bytes:
    """`encode` of an `Exited`, in a tenth of the steps: somebody waits for nothing else."""
    answer = "true" if alone else "false"
    return f'["Exited", {{"status": {status}, "refused": {refused}, "alone": {answer}}}]'.encode()


def _plain(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in _Registry.names[type(value)]}


def decode(data: bytes) -> Message:
    """Bytes as one message; raise `ProtocolError` for anything else."""
    try:
        name, body = json.loads(data)
        message: Message = _made(_Registry.kinds[name], body)
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        raise ProtocolError(f"not a message: {data[:80]!r}") from problem
    return message


def _made(kind: type[Any], body: Any) -> Any:
    if not isinstance(body, dict):
        raise ProtocolError(f"{kind.__name__} is not an object")
    declared = _Registry.types[kind]
    return kind(**{name: _value(body[name], declared[name], f"{kind.__name__}.{name}") for name in body})


def _value(value: object, declared: str, where: str) -> object:
    if declared == "Room":
        return _made(Room, value)
    if declared == "list[Room]" and isinstance(value, list):
        return [_made(Room, entry) for entry in value]
    if not _fits(value, declared):
        raise ProtocolError(f"{where} is not {declared}")
    return value


_SIMPLE = {"str": str, "int": int, "bool": bool}


def _fits(value: object, declared: str) -> bool:
    simple = _SIMPLE.get(declared)
    if simple is not None:
        return type(value) is simple
    if declared.startswith("list["):
        inner = declared[5:-1]
        return isinstance(value, list) and all(_fits(entry, inner) for entry in value)
    if declared.startswith("dict[str, "):
        inner = declared[10:-1]
        return isinstance(value, dict) and all(_fits(entry, inner) for entry in value.values())
    return declared == "Any"


def send(channel: socket.socket, message: Message, fds: tuple[int, ...] = (), *, wait: bool = True) -> None:
    """Send one message and copies of `fds` in one datagram; without `wait` raise `BlockingIOError` when it is full."""
    data, flags = encode(message), 0 if wait else socket.MSG_DONTWAIT
    if len(data) <= _INLINE:
        _send(channel, data, fds, flags)
        return
    file = os.memfd_create("nbcontainer-message", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        _send(channel, _IN_FILE, (file, *fds), flags)
    finally:
        os.close(file)


def _send(channel: socket.socket, data: bytes, fds: tuple[int, ...], flags: int) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL | flags)


def receive(channel: socket.socket, *, wait: bool = True) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (close-on-exec, the caller's to close), or None at end of file.

    Without `wait` raise `BlockingIOError` when there is none.
    """
    patience = 0 if wait else socket.MSG_DONTWAIT
    limits = (_INLINE + 16, socket.CMSG_SPACE(MOST_FDS * 4), socket.MSG_CMSG_CLOEXEC | patience)
    try:
        data, ancillary, flags, _ = channel.recvmsg(*limits)
    except ConnectionResetError:  # it ended without reading all we sent; said once, before its own last words
        data, ancillary, flags, _ = channel.recvmsg(*limits)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    received = list(fds)
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ProtocolError("a message did not fit")
        if not data and not received:
            return None
        if data == _IN_FILE and received:
            data = _read_file(received.pop(0))
        return decode(data), received
    except ProtocolError:
        for fd in received:
            os.close(fd)
        raise


def _read_file(fd: int) -> bytes:
    try:
        size = os.fstat(fd).st_size
        if size > _MAX_MESSAGE:
            raise ProtocolError(f"a message of {size} bytes is too long")
        return os.pread(fd, size, 0)
    except OSError as problem:
        raise ProtocolError(f"a message is in something that is no file: {problem}") from problem
    finally:
        os.close(fd)
