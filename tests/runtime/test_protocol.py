"""Messages between engine and launcher: each survives the way, and nothing else is one."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer._linux.values import fields_of
from nbcontainer.runtime.protocol import (
    Accepted,
    Arrival,
    Configure,
    Done,
    Execute,
    Exited,
    Expect,
    Failed,
    Furnish,
    Mapped,
    ProtocolError,
    Ready,
    Room,
    Run,
    Signal,
    Started,
    Task,
    Unshared,
    decode,
    encode,
    encode_end,
    receive,
    send,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = Room(
    id="1", operations=[{"op": "x", "n": 1, "l": ["a"]}], working_directory="/", user="", hostname="h", network="none",
    filter="default", no_new_privileges=True, capabilities=[1], read_only_root=False, script=True, scratch="",
    generation="2-3", rlimits={},
)  # fmt: skip
RUN = Run(room=ROOM, argv=["sh", "a\udcff"], environment=["A=b"], script="\udcff")
MESSAGES: list[Any] = [
    Configure(store="/s", single_id=True, privileged=False, pool_size=2, pool_idle=300_000, filters={"a": "00"},
              capabilities=[1, 2], modules=[]),
    Unshared(1), Mapped(), Ready(), RUN, Expect([ROOM, ROOM], ["/a"], ["b"]), Expect([], [], []),
    Furnish(ROOM, ahead=True),
    Execute(["a"], ["B=c"], ""), Task("a:b", {"c": [1, None, "é"]}), Accepted(7), Started(), Exited(256),
    Arrival(detached=True),
    Failed("X", "why"), Failed("X", "why", 127), Done({"n": 1}), Signal(2), Signal(9, everything=True),
]  # fmt: skip


@pytest.fixture
def channels() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Lend the two ends of a connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Any, channels: tuple[socket.socket, socket.socket]) -> None:
    """Every message arrives as it was sent, by bytes and by socket."""
    assert decode(encode(message)) == message
    send(channels[0], message)
    assert receive(channels[1]) == (message, [])


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_wrong_fields(message: Any) -> None:
    """A field missing, too many, or of another kind makes no message."""
    name, body = json.loads(encode(message))
    wrong: list[dict[str, Any]] = [{**body, "more": 1}]
    for field, declared in fields_of(type(message)).items():
        others: list[Any] = [None, 1.5, [[]], 3 if declared == "dict[str, Any]" else {"a": 1}]
        wrong += [{**body, field: value} for value in others]
        if declared == "int":
            wrong += [{**body, field: True}, {**body, field: "1"}]
        if declared in {"list[int]", "list[str]"}:
            wrong += [{**body, field: [None]}, {**body, field: "text"}]
        if declared == "list[dict[str, Any]]":
            wrong += [{**body, field: ["x"]}]
    for changed in wrong:
        with pytest.raises(ProtocolError):
            decode(json.dumps([name, changed]).encode())


@pytest.mark.parametrize(
    "message", [RUN, Furnish(ROOM, ahead=False), Expect([ROOM], [], [])], ids=lambda each: type(each).__name__
)
def test_wrong_rooms(message: Any) -> None:
    """A room inside a message is checked like the message."""
    name, body = json.loads(encode(message))
    where = "rooms" if "rooms" in body else "room"
    good = json.loads(encode(RUN))[1]["room"]
    lacking = {key: value for key, value in good.items() if key != "user"}
    broken: tuple[Any, ...] = (
        {**good, "more": 1}, lacking, {**good, "script": 1}, {**good, "operations": ["x"]}, [], None, "x",
    )  # fmt: skip
    for wrong in broken:
        with pytest.raises(ProtocolError):
            decode(json.dumps([name, {**body, where: [wrong] if where == "rooms" else wrong}]).encode())


def test_values_of_dictionaries() -> None:
    """A dictionary declared to hold text holds nothing else."""
    name, body = json.loads(encode(MESSAGES[0]))
    with pytest.raises(ProtocolError):
        decode(json.dumps([name, {**body, "filters": {"a": 1}}]).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"[]", b"{}", b"null", b"[1, 2]", b'["Run"]', b'["Run", []]', b'["Nonesuch", {}]', b'[["Run"], {}]',
        b"[" * 100_000, b'["__class__", {}]', b"\xff\xfe", b'["Ready", {}, 1]', b"[{}, {}]", b'["Ready", null]',
        b'["Exited", {"status": 1e999}]',
    ],
)  # fmt: skip
def test_hostile_bytes(data: bytes) -> None:
    """Bytes that are no message raise `ProtocolError`."""
    with pytest.raises(ProtocolError):
        decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(sorted({type(message).__name__ for message in MESSAGES}))
BODY = st.dictionaries(
    st.sampled_from(sorted({name for message in MESSAGES for name in fields_of(type(message))})), JSON, max_size=6
)


@pytest.mark.parametrize(("status", "refused", "alone"), [(0, 0, True), (256 * 255, 3, False), (9, 12345, True)])
def test_end_without_detours(status: int, refused: int, alone: bool) -> None:
    """The short way writes the same as the long one."""
    assert encode_end(status, refused, alone=alone) == encode(Exited(status, refused, alone))


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(data: bytes) -> None:
    """Any bytes are a message or `ProtocolError`, never another error."""
    with contextlib.suppress(ProtocolError):
        assert decode(encode(decode(data))) is not None


@given(NAMES, BODY)
def test_any_body(name: str, body: dict[str, Any]) -> None:
    """A known name with any body is a message of declared types or `ProtocolError`."""
    try:
        message = decode(json.dumps([name, body]).encode())
    except ProtocolError:
        return
    assert type(message).__name__ == name
    for field, declared in fields_of(type(message)).items():
        if declared in {"int", "str", "bool"}:
            assert type(getattr(message, field)).__name__ == declared


@pytest.mark.parametrize("size", [60_000, 65_000, 70_000, 5_000_000])
def test_large_messages(size: int, channels: tuple[socket.socket, socket.socket]) -> None:
    """A message longer than a datagram arrives whole, with its descriptors in order and no other."""
    with open(os.devnull, "rb") as null, open("/dev/zero", "rb") as zero:
        send(channels[0], Done({"text": "x" * size}), (null.fileno(), zero.fileno()))
        received = receive(channels[1])
    assert received is not None
    message, fds = received
    try:
        assert message == Done({"text": "x" * size})
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == ["/dev/null", "/dev/zero"]
        assert not any(os.get_inheritable(fd) for fd in fds)
    finally:
        for fd in fds:
            os.close(fd)


def test_end_of_file(channels: tuple[socket.socket, socket.socket]) -> None:
    """A closed connection is None, also when something sent was never read."""
    send(channels[1], Ready())
    channels[0].close()
    assert receive(channels[1]) is None


def test_last_words_are_heard(channels: tuple[socket.socket, socket.socket]) -> None:
    """What was said before the end is heard, although the other side closed."""
    send(channels[0], Exited(3))
    channels[0].close()
    assert receive(channels[1]) == (Exited(3), [])
    assert receive(channels[1]) is None


def test_last_words_are_heard_by_one_who_spoke(channels: tuple[socket.socket, socket.socket]) -> None:
    """What was said before the end is heard, although the other side did not read what we had sent."""
    send(channels[1], Signal(2))
    send(channels[0], Exited(3))
    channels[0].close()
    assert receive(channels[1]) == (Exited(3), [])
    assert receive(channels[1]) is None


def test_too_many_descriptors(channels: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """More descriptors than there is room for are refused, and none stays open."""
    monkeypatch.setattr("nbcontainer.runtime.protocol.MOST_FDS", 8)
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull, "rb") as null:
        fds = array.array("i", [null.fileno()] * 200)
        channels[0].sendmsg([encode(Ready())], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    with pytest.raises(ProtocolError):
        receive(channels[1])
    assert len(os.listdir("/proc/self/fd")) == before


def test_datagram_that_does_not_fit(channels: tuple[socket.socket, socket.socket]) -> None:
    """A datagram that is too long is refused."""
    channels[0].send(b" " * 100_000)
    with pytest.raises(ProtocolError, match="did not fit"):
        receive(channels[1])


def test_bad_bytes_close_descriptors(channels: tuple[socket.socket, socket.socket]) -> None:
    """Descriptors that come with something that is no message are closed."""
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull, "rb") as null:
        socket.send_fds(channels[0], [b"nonsense"], [null.fileno()] * 3)
    with pytest.raises(ProtocolError):
        receive(channels[1])
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["pipe", "folder", "huge", "empty", "device"])
def test_hostile_file(kind: str, channels: tuple[socket.socket, socket.socket], tmp_path: Any) -> None:
    """A file said to hold the message, which is a pipe, a folder or endless, is refused without waiting or memory."""
    if kind == "pipe":
        fd, other = os.pipe()
    else:
        other = -1
        paths = {"folder": str(tmp_path), "device": "/dev/zero"}
        fd = os.open(paths[kind], os.O_RDONLY) if kind in paths else os.memfd_create("x")
        if kind == "huge":
            os.truncate(fd, 1 << 40)
    try:
        socket.send_fds(channels[0], [b"\0file"], [fd])
        with pytest.raises(ProtocolError):
            receive(channels[1])
    finally:
        os.close(fd)
        if other >= 0:
            os.close(other)
