"""What is a terminal's master and what is not, and the size of a window."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux import consoles, terminals

if TYPE_CHECKING:
    from pathlib import Path


def test_only_a_master_is_one(tmp_path: Path) -> None:
    """Nothing else that a container could send: its slave, another device, a file, a socket, a closed number."""
    master, slave = os.openpty()
    path = os.open("/dev/ptmx", os.O_PATH | os.O_CLOEXEC)
    others = [slave, path, os.open("/dev/null", os.O_RDWR), os.open(tmp_path / "x", os.O_CREAT | os.O_RDWR)]
    reader, writer = os.pipe()
    with socket.socket() as channel:
        try:
            assert terminals.is_master(master)
            assert not any(terminals.is_master(fd) for fd in (*others, reader, writer, channel.fileno(), -1))
        finally:
            for fd in (master, *others, reader, writer):
                os.close(fd)
    assert not terminals.is_master(master)


def test_new_terminal() -> None:
    """Both ends are each other's, the number is the slave's, and no child gets them."""
    pair = terminals.open_pair("/dev/pts")
    try:
        assert os.ttyname(pair.slave) == f"/dev/pts/{pair.number}"
        assert terminals.is_master(pair.master)
        assert not os.get_inheritable(pair.master)
        assert not os.get_inheritable(pair.slave)
        os.write(pair.slave, b"x")
        assert os.read(pair.master, 10) == b"x"
    finally:
        os.close(pair.master)
        os.close(pair.slave)


def test_folder_that_is_no_devpts_is_refused(tmp_path: Path) -> None:
    """Whatever is called ptmx there."""
    (tmp_path / "ptmx").write_text("")
    with pytest.raises(OSError, match="not a devpts"):
        terminals.open_pair(str(tmp_path))


def test_size_of_a_window() -> None:
    """Nobody has told, then somebody has; numbers that do not fit are cut; what is no terminal has none."""
    master, slave = os.openpty()
    try:
        assert consoles.window_size(slave) is None
        terminals.set_window_size(master, 24, 80)
        assert consoles.window_size(slave) == (24, 80)
        terminals.set_window_size(master, 1 << 20, 1 << 20)
        assert consoles.window_size(slave) == (65535, 65535)
    finally:
        os.close(master)
        os.close(slave)
    assert consoles.window_size(-1) is None
