"""The log of a container: what its streams said, with the time, in files that are let go when there is too much.

``output.jsonl`` has a JSON object on each line, `time`, `stream` and `log`; when it has grown to its limit it becomes
``output.jsonl.1``, that one ``.2``, and the last one is removed. One process writes; any may read meanwhile, and
follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer.engine.views import LogLine
from nbcontainer.errors import InvalidOption
from nbcontainer.model import LogLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "LogFollower",
    "LogWriter",
    "cut",
    "last_lines",
    "limits_of",
    "read_log",
    "read_moment",
    "saved_limits",
    "within",
]

_NAME = "output.jsonl"
_MOST_FILES = 1000
_CHUNK = 1 << 20
_PAUSES = (0.01, 0.1)


def _path(directory: str, number: int = 0) -> str:
    return os.path.join(directory, f"{_NAME}.{number}" if number else _NAME)


def saved_limits(limits: LogLimits) -> dict[str, int]:
    """Limits as a record keeps them."""
    return {"size": limits.size, "files": limits.files}


def limits_of(field: object) -> LogLimits:
    """The limits in a record; the default ones when it has none that can be read."""
    if isinstance(field, dict) and all(type(field.get(name)) is int for name in ("size", "files")):
        return LogLimits(size=max(1, field["size"]), files=min(max(1, field["files"]), _MOST_FILES))
    return LogLimits()


class LogWriter:
    """Writes one container's log."""

    def __init__(self, directory: str, limits: LogLimits) -> None:
        self._directory = directory
        self._limits = limits
        self._fd = -1
        self._size = 0

    def append(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep a piece; raise `OSError` when the disk does not take it."""
        line = {"time": time.time(), "stream": stream, "log": data.decode("utf-8", "surrogateescape")}
        encoded = json.dumps(line).encode() + b"\n"
        if self._fd < 0:
            self._open()
        if self._size and self._size + len(encoded) > self._limits.size:
            self._rotate()
        self._size += os.write(self._fd, encoded)

    def _open(self) -> None:
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(_path(self._directory), flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        self.close()
        for number in range(self._limits.files - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(_path(self._directory, number - 1), _path(self._directory, number))
        if self._limits.files == 1:
            os.unlink(_path(self._directory))
        self._open()

    def close(self) -> None:
        """Let go of the file; safe twice, and the next piece opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _piece(text: bytes) -> LogLine | None:
    """A line of the file; None for one that cannot be read."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        entry: Any = json.loads(text)
        stream: Literal["stdout", "stderr"] = "stderr" if entry["stream"] == "stderr" else "stdout"
        data = str(entry["log"]).encode("utf-8", "surrogateescape")
        return LogLine(time=float(entry["time"]), stream=stream, data=data)
    return None


class LogFollower:
    """Reads a log from its oldest file on, and then what is added, however often the files change their names.

    `since` is a moment before which nothing is wanted, which spares reading files that are older.
    """

    def __init__(self, directory: str, since: float | None = None) -> None:
        self._directory = directory
        self._rest = b""
        self._fd = -1
        self._since = since

    def read(self) -> Iterator[LogLine]:
        """What there is that was not read yet."""
        if self._fd < 0:
            self._fd = self._oldest()
        while self._fd >= 0:
            while data := os.read(self._fd, _CHUNK):
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    if (piece := _piece(line)) is not None:
                        yield piece
            following = self._following()
            if following < 0:
                return
            os.close(self._fd)
            self._fd, self._rest = following, b""

    def skip(self) -> None:
        """Go to where the log ends now."""
        self.close()
        self._rest = b""
        self._fd = _open_log(self._directory)
        if self._fd >= 0:
            os.lseek(self._fd, 0, os.SEEK_END)

    def _oldest(self) -> int:
        number = 0
        while number < _MOST_FILES and self._is_wanted(number + 1):
            number += 1
        while number:
            if (fd := _open_log(self._directory, number)) >= 0:
                return fd
            number -= 1  # let go in this moment
        return _open_log(self._directory)

    def _is_wanted(self, number: int) -> bool:
        try:
            changed = os.stat(_path(self._directory, number), follow_symlinks=False).st_mtime
        except OSError:
            return False
        return self._since is None or changed >= self._since

    def _following(self) -> int:
        """The file after ours, opened; -1 while ours is the one that is written."""
        ours = os.fstat(self._fd)
        for number in range(_MOST_FILES):
            fd = _open_log(self._directory, number)
            if fd < 0:
                return _open_log(self._directory, number - 1) if number else -1  # ours is gone: the oldest there is
            found = os.fstat(fd)
            os.close(fd)
            if (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino):
                return _open_log(self._directory, number - 1) if number else -1
        return -1

    def follow(self, ended: Callable[[], bool], rest: Callable[[float], None] = time.sleep) -> Iterator[LogLine]:
        """What there is and what is added, until `ended` says that nothing more will be; `rest` waits meanwhile."""
        pause = _PAUSES[0]
        while True:
            last = ended()
            some = False
            for piece in self.read():
                some = True
                yield piece
            if last:
                return
            pause = _PAUSES[0] if some else min(pause * 1.5, _PAUSES[1])
            rest(pause)

    def close(self) -> None:
        """Let go of the file; safe twice."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


def _open_log(directory: str, number: int = 0) -> int:
    """A file of the log, or -1 when it is not there."""
    try:
        return os.open(_path(directory, number), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1


def read_log(directory: str, since: float | None = None) -> tuple[LogLine, ...]:
    """All that is kept, in order."""
    follower = LogFollower(directory, since)
    try:
        return tuple(follower.read())
    finally:
        follower.close()


# What is wanted of it


def within(pieces: Iterable[LogLine], since: float | None, until: float | None) -> Iterator[LogLine]:
    """The pieces of a span of time."""
    for piece in pieces:
        if until is not None and piece.time > until:
            return
        if since is None or piece.time >= since:
            yield piece


def cut(pieces: Iterable[LogLine]) -> Iterator[LogLine]:
    """The pieces cut into lines."""
    for piece in pieces:
        for line in re.findall(rb"[^\n]*\n|[^\n]+", piece.data):
            yield LogLine(time=piece.time, stream=piece.stream, data=line)


def last_lines(pieces: Iterable[LogLine], count: int | None) -> list[LogLine]:
    """The pieces cut into lines, the last `count` of them; None for all."""
    lines = list(cut(pieces))
    return lines if count is None else lines[max(0, len(lines) - count) :]


_SPAN = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?", re.ASCII)
_FORMS = ("%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H", "%Y-%m-%d")
_ZONED = re.compile(r"(?P<moment>[^.Zz+]+?)(?P<fraction>\.\d{1,9})?(?P<zone>[Zz]|[+-]\d\d:\d\d)?", re.ASCII)


def read_moment(text: str, now: float | None = None) -> float:
    """Unix seconds of ``10m`` (ago), ``1700000000.5`` or ``2026-01-31T09:30:00Z``, as docker's --since has it.

    A moment without a zone is one of this machine's clocks.
    """
    written = text.strip()
    if re.fullmatch(r"\d{1,12}(?:\.\d{1,9})?", written, re.ASCII):
        return float(written)
    if written and (span := _SPAN.fullmatch(written)):
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in span.groups())
        ago = hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
        return (time.time() if now is None else now) - ago
    if match := _ZONED.fullmatch(written):
        for form in _FORMS:
            with contextlib.suppress(ValueError, OverflowError, OSError):
                return _moment(match["moment"], form, match["zone"] or "") + float(match["fraction"] or 0)
    raise InvalidOption(
        f"{text!r} is no moment; write how long ago (10m, 1h30m), unix seconds, or 2026-01-31T09:30:00Z"
    )


def _moment(text: str, form: str, zone: str) -> float:
    read = datetime.strptime(text, form)  # noqa: DTZ007 - the zone follows
    if not zone:
        return read.timestamp()
    if zone in "Zz":
        return read.replace(tzinfo=timezone.utc).timestamp()
    offset = (int(zone[1:3]) * 60 + int(zone[4:6])) * 60 * (-1 if zone[0] == "-" else 1)
    return read.replace(tzinfo=timezone.utc).timestamp() - offset
