"""The pipe between who makes a layer's tar and who stores it: errors of either end arrive, nobody waits for ever."""

from __future__ import annotations

import os
import threading

import pytest

from nbcontainer.build.making import _EMPTY_DIFF_ID, _piped
from nbcontainer.errors import InvalidInput
from nbcontainer.model import Digest


class Full(Exception):
    """What a sink may raise."""


def test_what_is_written_arrives() -> None:
    """All bytes arrive in order, more than a pipe holds, too."""
    data = os.urandom(3_000_000)

    def produce(fd: int) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    found = bytearray()
    _piped(produce, found.extend)
    assert bytes(found) == data


def test_what_the_producer_raises() -> None:
    """An error of the producer is raised in the thread that asked; one of the system names the file."""

    def broken(_: int) -> None:
        raise InvalidInput("no such thing")

    def unreadable(_: int) -> None:
        raise PermissionError(13, "Permission denied", "sub/file")

    with pytest.raises(InvalidInput, match="no such thing"):
        _piped(broken, bytearray().extend)
    with pytest.raises(InvalidInput, match="the files to copy cannot be read: sub/file: Permission denied"):
        _piped(unreadable, bytearray().extend)


def test_what_the_sink_raises() -> None:
    """When nothing can be stored the producer ends, too, and what the sink said is what is raised."""
    before = threading.active_count()

    def produce(fd: int) -> None:
        while True:
            os.write(fd, bytes(100_000))

    def sink(_: bytes) -> None:
        raise Full

    with pytest.raises(Full):
        _piped(produce, sink)
    assert threading.active_count() == before


def test_the_empty_layer() -> None:
    """The diff id of a layer with nothing in it is that of an empty tar, which every builder knows."""
    known = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    assert Digest.parse(known) == _EMPTY_DIFF_ID
