"""What is kept of a command's output."""

from __future__ import annotations

from nbcontainer.engine.attending import Kept


class NoLog:
    """A log that keeps nothing."""

    def append(self, stream: str, data: bytes) -> None:
        """Keep nothing."""


def test_tail_is_kept_when_output_goes_elsewhere() -> None:
    """With a sink, the last 64 KiB are kept, and the sink gets everything; without, everything is kept."""
    told: list[bytes] = []
    live = Kept(lambda _, data: told.append(data), "stdout", NoLog())
    still = Kept(None, "stdout", None)
    everything = b""
    for number in range(3000):
        piece = b"%05d" % number * 20
        everything += piece
        live.take(piece)
        still.take(piece)
    live.take(b"x" * 200_000)
    assert live.data == b"x" * 65536
    assert still.data == everything
    assert b"".join(told) == everything + b"x" * 200_000
