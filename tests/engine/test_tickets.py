"""Tickets for terminals: for one use, for an hour, for the same user, and only those that a kernel has written."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine.tickets import Ticket, is_ticket, leave_ticket, take_ticket

if TYPE_CHECKING:
    from pathlib import Path

TICKET = Ticket(argv=("python", "-m", "nbcontainer", "run"), directory="/here", environment={"A": "b ü"})


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Lend a place that is not there yet."""
    return str(tmp_path / "runtime" / "nbcontainer")


def test_ticket_is_taken_once(folder: str) -> None:
    """What was left is what comes, one of several takers has it, and nothing stays behind."""
    name = leave_ticket(folder, TICKET)
    assert is_ticket(folder, name)
    taken: list[Ticket | None] = []
    takers = [threading.Thread(target=lambda: taken.append(take_ticket(folder, name))) for _ in range(8)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join()
    assert [each for each in taken if each is not None] == [TICKET]
    assert not is_ticket(folder, name)
    assert os.listdir(folder) == []


def test_ticket_is_the_users_own(folder: str) -> None:
    """Nobody else can read it, or find it by going through the folder."""
    name = leave_ticket(folder, TICKET)
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.stat(f"{folder}/{name}.json").st_mode & 0o777 == 0o600


def test_old_ticket_is_none(folder: str) -> None:
    """After an hour it is not good any more, and the next one takes it away."""
    name = leave_ticket(folder, TICKET)
    os.utime(f"{folder}/{name}.json", (1, 1))
    assert not is_ticket(folder, name)
    assert take_ticket(folder, name) is None
    other = leave_ticket(folder, TICKET)
    assert os.listdir(folder) == [f"{other}.json"]


@pytest.mark.parametrize("name", ["", "x", "../" + "0" * 29, "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "\n", "0" * 32])
def test_names_that_no_ticket_has(folder: str, name: str) -> None:
    """Are not looked for outside the folder."""
    os.makedirs(folder)
    assert not is_ticket(folder, name)
    assert take_ticket(folder, name) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 100_000,
        '{"argv": []}',
        json.dumps({"argv": [], "directory": "/", "environment": {}}),
        json.dumps({"argv": "ls", "directory": "/", "environment": {}}),
        json.dumps({"argv": ["ls", 1], "directory": "/", "environment": {}}),
        json.dumps({"argv": ["a\0b"], "directory": "/", "environment": {}}),
        json.dumps({"argv": ["ls"], "directory": None, "environment": {}}),
        json.dumps({"argv": ["ls"], "directory": "/", "environment": {"A": 1}}),
        json.dumps({"argv": ["ls"], "directory": "/", "environment": ["A"]}),
    ],
)
def test_damaged_ticket_is_none(folder: str, text: str) -> None:
    """It is taken away nevertheless."""
    name = leave_ticket(folder, TICKET)
    with open(f"{folder}/{name}.json", "w", encoding="utf-8") as file:
        file.write(text)
    assert take_ticket(folder, name) is None
    assert os.listdir(folder) == []


def test_ticket_of_somebody_else_is_none(folder: str, tmp_path: Path) -> None:
    """One that others can read or write, a link, a pipe, a folder: no kernel has left it."""
    name = leave_ticket(folder, TICKET)
    os.chmod(f"{folder}/{name}.json", 0o640)
    assert take_ticket(folder, name) is None
    name = leave_ticket(folder, TICKET)
    os.rename(f"{folder}/{name}.json", tmp_path / "real")
    os.symlink(tmp_path / "real", f"{folder}/{name}.json")
    assert take_ticket(folder, name) is None
    os.mkfifo(f"{folder}/{name}.json", 0o600)
    assert take_ticket(folder, name) is None
    os.mkdir(f"{folder}/{name}.json", 0o700)
    assert take_ticket(folder, name) is None
