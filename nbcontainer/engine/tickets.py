"""Tickets for terminals: what a notebook's kernel leaves for the notebook's server, which opens them.

The kernel knows what should run and has no way to draw a terminal; the server has terminals, and the page that asks for
one is a stranger's to it. So the kernel writes a ticket, a file that only the same user can read and whose name cannot
be guessed, and shows the page its name. What runs is in the file, never in what the browser sends. A ticket is good for
one terminal and for an hour.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Ticket", "is_ticket", "leave_ticket", "take_ticket", "ticket_folder"]

_NAME = re.compile(r"[0-9a-f]{32}", re.ASCII)
_GOOD_FOR = 3600.0
_MOST = 1 << 20
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """A command, with what it finds around it; `environment` is added to the server's own."""

    argv: tuple[str, ...]
    directory: str
    environment: Mapping[str, str] = field(default_factory=dict)


def ticket_folder(runtime: str) -> str:
    """Where kernels and server of one user meet: in Jupyter's folder `runtime`."""
    return os.path.join(runtime, "nbcontainer")


def leave_ticket(folder: str, ticket: Ticket) -> str:
    """Write a ticket into the folder, made if it is not there, and answer its name. Old ones are taken away."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    _sweep(folder)
    name = secrets.token_hex(16)
    text = {"argv": ticket.argv, "directory": ticket.directory, "environment": dict(ticket.environment)}
    aside = os.path.join(folder, f"{name}.new")
    with open(
        os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w", encoding="ascii"
    ) as file:
        json.dump(text, file)
    os.rename(aside, os.path.join(folder, name + _SUFFIX))
    return name


def is_ticket(folder: str, name: str) -> bool:
    """Whether there is such a ticket to be taken."""
    return bool(_NAME.fullmatch(name)) and _is_fresh(os.path.join(folder, name + _SUFFIX))


def take_ticket(folder: str, name: str) -> Ticket | None:
    """The ticket of that name, which nobody else gets; None when there is none, or when it is not to be trusted."""
    if not is_ticket(folder, name):
        return None
    path = os.path.join(folder, name + _SUFFIX)
    taken = os.path.join(folder, f"{name}.taken")
    try:
        os.rename(path, taken)
    except OSError:
        return None
    try:
        fd = os.open(taken, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(taken)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            return None
        return _read(os.read(fd, _MOST))
    finally:
        os.close(fd)


def _read(data: bytes) -> Ticket | None:
    try:
        text: Any = json.loads(data)
        argv, directory, environment = text["argv"], text["directory"], text["environment"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    words = [*argv, directory, *environment, *environment.values()] if isinstance(environment, dict) else [None]
    if not isinstance(argv, list) or not argv or not all(isinstance(word, str) and "\0" not in word for word in words):
        return None
    return Ticket(argv=tuple(argv), directory=directory, environment=environment)


def _is_fresh(path: str) -> bool:
    try:
        return time.time() - os.lstat(path).st_mtime < _GOOD_FOR
    except OSError:
        return False


def _sweep(folder: str) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if not _is_fresh(path):
            with contextlib.suppress(OSError):
                os.unlink(path)
