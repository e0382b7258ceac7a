"""The person's own terminal: its size, and its settings while every key of it belongs to somebody else.

Source: termios(3), ioctl_tty(2).
"""

from __future__ import annotations

import fcntl
import struct
import termios
import tty

__all__ = ["Settings", "make_raw", "restore", "saved_settings", "window_size"]

Settings = list[int | list[bytes | int]]


def window_size(fd: int) -> tuple[int, int] | None:
    """Rows and columns, or None where nobody has told (or there is no terminal)."""
    if fd < 0:
        return None
    try:
        rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def saved_settings(fd: int) -> Settings:
    """What `restore` takes."""
    return termios.tcgetattr(fd)


def make_raw(fd: int) -> None:
    """Have every key come as the byte it is, at once, and nothing be done to output (cfmakeraw(3)).

    What was typed ahead stays: it is meant for the command. Nobody is waited for: whoever should take what was written
    may have stopped.
    """
    tty.setraw(fd, termios.TCSANOW)


def restore(fd: int, settings: Settings) -> None:
    """Put settings back."""
    termios.tcsetattr(fd, termios.TCSANOW, settings)
