"""Messages between engine and keeper: each survives the way, with its descriptors, and nothing else is one."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.model.network import Endpoint, Network, PortMapping
from nbcontainer.network import messages

NETWORK = Network(name="lab", id="5" * 64, subnet="10.9.0.0/24", labels=("a=b",), hosts=("example.org",), created=1.5)
PORT = PortMapping(container_port=80, host_ip="::", host_port=8080)
PLACE = Endpoint(
    network="lab",
    container="c" * 64,
    interface="eth0",
    mac="02:42:0a:09:00:02",
    address="10.9.0.2",
    prefix=24,
    gateway="10.9.0.1",
    names=("web", "www"),
    ports=(PORT,),
)
EVERY = [
    messages.Attach(container="c", network=NETWORK, names=("web",), ports=(PORT,), sockets=(2,), dns=("192.0.2.53",)),
    messages.Attached(endpoint=PLACE),
    messages.Claim(container="c"),
    messages.Detach(container="c", network="lab", over=True),
    messages.Name(container="c", names=("other",)),
    messages.Remove(network="5"),
    messages.Look(),
    messages.Seen(networks=(NETWORK,), endpoints=(PLACE,)),
    messages.Done(),
    messages.Refused(error="Conflict", message="no: it is “in use”"),
]


@pytest.mark.parametrize("message", EVERY, ids=lambda message: type(message).__name__)
def test_message_survives_the_way(message):
    """Equal at the other end, of the right types, with what came along."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull, "rb") as file:
        messages.send(ours, message, (file.fileno(),))
        received = messages.receive(theirs)
        assert received is not None
        assert received[0] == message
        (fd,) = received[1]
        assert os.path.samestat(os.fstat(fd), os.fstat(file.fileno()))
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_end_of_file_is_none():
    """As for every connection."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        assert messages.receive(theirs) is None


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"[]",
        b'["Unknown", {}]',
        b'["Detach", {}]',
        b'["Detach", {"container": 1}]',
        b'["Detach", {"container": "c", "more": 1}]',
        b'["Name", {"container": "c", "names": "web"}]',
        b'["Name", {"container": "c", "names": [1]}]',
        b'["Attached", {"endpoint": {"network": "x"}}]',
        b'["Seen", {"networks": [1], "endpoints": []}]',
    ],
)
def test_other_bytes_are_no_message(data):
    """Unknown kinds and fields, missing ones and wrong types are refused."""
    with pytest.raises(messages.MessageError):
        messages.decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    """Nothing else is ever raised."""
    with contextlib.suppress(messages.MessageError):
        messages.decode(data)
