"""Pseudo-terminals: opening one in a container, and what can be done with its master.

A container's terminal lives in the container's own devpts, so nothing inside ever holds a descriptor of the person's:
what it could do to it (TIOCSTI, new settings, a look at what is typed) it can do to its own only. The launcher has this
module in memory, so it is small; the person's own terminal is in `nbcontainer._linux.consoles`.
Sources: pty(7), ioctl_tty(2), devpts of the kernel's documentation.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from nbcontainer._linux.syscalls import MACHINE, file_system_type

__all__ = ["Pair", "is_master", "open_pair", "set_window_size", "take_control"]

_DEVPTS = 0x1CD1
_MULTIPLEXER = os.makedev(5, 2)
_POWERPC = MACHINE.startswith("ppc")
# asm/ioctl.h: most architectures and powerpc disagree about the bits of the direction
_NONE, _READ, _WRITE = (0x20000000, 0x40000000, 0x80000000) if _POWERPC else (0, 0x80000000, 0x40000000)
_TIOCGPTN = _READ | 0x45430
_TIOCSPTLCK = _WRITE | 0x45431
_TIOCGPTPEER = _NONE | 0x5441
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x80087467 if _POWERPC else 0x5414
_MOST = 0xFFFF


class Pair:
    """Both ends of a new terminal, the caller's to close, and the number of the slave in its devpts."""

    __slots__ = ("master", "number", "slave")

    def __init__(self, master: int, slave: int, number: int) -> None:
        self.master = master
        self.slave = slave
        self.number = number


def open_pair(folder: str) -> Pair:
    """A new terminal of the devpts mounted at `folder`, close-on-exec, nobody's controlling one.

    Not openpty(3): that goes through names which are the image's, and in older C libraries through its accounts.
    """
    master = os.open(f"{folder}/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(master, folder)
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        number = int(struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))[0])
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except BaseException:
        os.close(master)
        raise
    return Pair(master, slave, number)


def _check(master: int, folder: str) -> None:
    if not is_master(master) or file_system_type(master) != _DEVPTS:
        raise OSError(errno.ENOTTY, "not a devpts", folder)


def is_master(fd: int) -> bool:
    """Whether `fd` is the master of a terminal: to be asked before anything is done with what a container sends."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _MULTIPLEXER:
            return False
        fcntl.ioctl(fd, _TIOCGPTN, bytes(4))
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    except OSError:
        return False


def take_control(fd: int) -> None:
    """Make the terminal that of this session, which this process leads and which has none (TIOCSCTTY)."""
    fcntl.ioctl(fd, _TIOCSCTTY, 0)


def set_window_size(fd: int, rows: int, columns: int) -> None:
    """Set them; whoever is in the foreground there is told by SIGWINCH if that is a change."""
    size = struct.pack("4H", min(max(rows, 0), _MOST), min(max(columns, 0), _MOST), 0, 0)
    fcntl.ioctl(fd, _TIOCSWINSZ, size)
