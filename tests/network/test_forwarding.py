"""Connections handed on in user space, on loopback: every byte arrives, ends and resets do, nothing is kept."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from nbcontainer.network.forwarding import Datagrams, Streams
from nbcontainer.network.loop import READ, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def opened(family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
    return socket.socket(family, kind)


@contextlib.contextmanager
def looping(prepare: Callable[[Loop], Streams | Datagrams]) -> Iterator[None]:
    """Run a loop in a thread; what `prepare` makes is closed in it at the end."""
    loop = Loop()
    ours, theirs = os.pipe()
    made = prepare(loop)

    def stop(_: int) -> None:
        made.close()
        made.close()
        loop.stop()

    loop.watch(ours, READ, stop)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield
    finally:
        os.write(theirs, b".")
        thread.join(10)
        assert not thread.is_alive()
        loop.close()
        os.close(ours)
        os.close(theirs)


def listening() -> socket.socket:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made


def test_every_byte_arrives_both_ways():
    """Megabytes at once in both directions, and the end of one direction before the other's."""
    data = os.urandom(1 << 20) * 8
    with listening() as server:
        front = listening()

        def answer() -> None:
            channel, _ = server.accept()
            with channel:
                received = b"".join(iter(lambda: channel.recv(1 << 16), b""))
                channel.sendall(received[::-1])

        thread = threading.Thread(target=answer)
        thread.start()
        port = front.getsockname()[1]
        with (
            looping(lambda loop: Streams(loop, front, (server.getsockname(),), opened)),
            socket.create_connection(("127.0.0.1", port), 10) as client,
        ):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            back = b"".join(iter(lambda: client.recv(1 << 16), b""))
        thread.join()
        assert back == data[::-1]


def test_second_target_is_tried():
    """Where nobody listens at the first."""
    with listening() as server, listening() as gone:
        dead = gone.getsockname()
        gone.close()
        front = listening()
        port = front.getsockname()[1]
        with (
            looping(lambda loop: Streams(loop, front, (dead, server.getsockname()), opened)),
            socket.create_connection(("127.0.0.1", port), 10) as client,
        ):
            channel, _ = server.accept()
            with channel:
                channel.sendall(b"here")
                assert client.recv(100) == b"here"


def test_closed_port_resets():
    """As a port at which nobody listens would, if a moment later."""
    with listening() as gone:
        dead = gone.getsockname()
    front = listening()
    port = front.getsockname()[1]
    with (
        looping(lambda loop: Streams(loop, front, (dead,), opened)),
        pytest.raises(ConnectionResetError),
        socket.create_connection(("127.0.0.1", port), 10) as client,
    ):
        client.recv(1)


def test_reset_is_handed_on():
    """A server that breaks off is not one that ends in good order."""
    with listening() as server:
        front = listening()
        port = front.getsockname()[1]
        with (
            looping(lambda loop: Streams(loop, front, (server.getsockname(),), opened)),
            socket.create_connection(("127.0.0.1", port), 10) as client,
        ):
            channel, _ = server.accept()
            channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            channel.close()
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def test_open_connections_end_with_the_port():
    """Nobody is left talking to nobody."""
    with listening() as server:
        front = listening()
        port = front.getsockname()[1]
        with contextlib.ExitStack() as undo:
            with looping(lambda loop: Streams(loop, front, (server.getsockname(),), opened)):
                client = undo.enter_context(socket.create_connection(("127.0.0.1", port), 10))
                channel, _ = server.accept()
                undo.enter_context(channel)
            assert client.recv(1) == b""
            assert channel.recv(1) == b""


def test_peers_of_a_datagram_port_are_told_apart():
    """Each gets what the server answered to it, although all come from one address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        front.bind(("127.0.0.1", 0))
        where = front.getsockname()
        with (
            looping(lambda loop: Datagrams(loop, front, (server.getsockname(),), opened)),
            contextlib.ExitStack() as undo,
        ):
            peers = [undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(3)]
            for number, peer in enumerate(peers):
                peer.settimeout(10)
                peer.sendto(b"%d" % number, where)
            for _ in peers:
                data, sender = server.recvfrom(100)
                server.sendto(b"to " + data, sender)
            assert [peer.recv(100) for peer in peers] == [b"to 0", b"to 1", b"to 2"]
