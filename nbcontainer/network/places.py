"""Where keeper and engine meet: a folder of the store, its locks and its socket, and what a keeper is told."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["FOLDER", "LOCK", "LOG", "SOCKET", "START", "Options", "at"]

FOLDER = "network"
SOCKET = "keeper.sock"
LOCK = "keeper.lock"
"""Held by the keeper for as long as it lives."""
LOG = "keeper.log"
"""What went wrong in the latest keeper, for whoever looks into it."""
START = "start.lock"
"""Held by who is about to talk to the keeper, until it is connected, and by a keeper that is about to leave."""


def at(folder: int, name: str) -> str:
    """A path to a socket in an open folder: the folder's own may be longer than a socket's address can be (unix(7))."""
    return f"/proc/self/fd/{folder}/{name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a keeper is started with; `ready` and `userns` are descriptors, -1 for none.

    It leaves `idle` seconds after the last container has, `alone` seconds when there is no engine either.
    """

    folder: str
    key: str
    ready: int
    userns: int = -1
    idle: float = 20.0
    alone: float = 1.0

    def text(self) -> str:
        """As an argument."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Options:
        """What `text` wrote."""
        return cls(**json.loads(text))
