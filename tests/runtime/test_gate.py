"""The gate: a word, a refusal, silence, or somebody who speaks before."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from nbcontainer.runtime.child import gate
from nbcontainer.runtime.child.setup import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def keeper() -> Iterator[Pair]:
    """Lend a gate: the container's end, and the keeper's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def engine() -> Iterator[Pair]:
    """Lend a control socket: the container's end, and the engine's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_link_is_there(keeper: Pair, engine: Pair) -> None:
    """The word lets the command begin, whether or not somebody else may speak."""
    keeper[1].send(gate.GO)
    assert gate.wait(keeper[0], engine[0])
    assert keeper[0].fileno() < 0, "nobody needs it any more"


def test_somebody_speaks_before(keeper: Pair, engine: Pair) -> None:
    """Who speaks elsewhere is heard, and the gate can be waited at again."""
    engine[1].send(b"x")
    assert not gate.wait(keeper[0], engine[0])
    engine[0].recv(1)
    keeper[1].send(gate.GO)
    engine[1].send(b"x")
    assert gate.wait(keeper[0], engine[0]), "with both there, the link counts"


def test_refusal(keeper: Pair, engine: Pair) -> None:
    """What the keeper says instead is the reason."""
    keeper[1].send(b"no address is left")
    with pytest.raises(SetupError, match="no address is left"):
        gate.wait(keeper[0], engine[0])


def test_keeper_has_ended(keeper: Pair, engine: Pair) -> None:
    """A keeper that goes away is told of."""
    keeper[1].close()
    with pytest.raises(SetupError, match="ended before the container's link was made"):
        gate.wait(keeper[0], engine[0])


@pytest.mark.parametrize("heard", [True, False])
def test_silence(keeper: Pair, engine: Pair, heard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever."""
    monkeypatch.setattr(gate, "_PATIENCE", 0.05)
    with pytest.raises(SetupError, match="no link in time"):
        gate.wait(keeper[0], engine[0] if heard else None)
