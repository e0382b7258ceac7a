"""Containers as the store knows them: one directory each, one record in it, and a lock that tells the truth.

``containers/<id>/record.json`` is locked (flock) by whoever supervises the container, for as long as it runs; a
record that says "running" without a lock belongs to a supervisor that died. So `ps` is right after a kill -9 and
after a reboot. Beside it lie ``upper`` and ``work`` (written inside, so owned by container ids) and, for containers
that are kept or run on behind, their log (`nbcontainer.engine.logs`).
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import shutil
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer._linux import identity
from nbcontainer.engine.logs import LogWriter, limits_of, read_log
from nbcontainer.engine.views import ContainerSummary
from nbcontainer.engine.volume_use import mounted
from nbcontainer.errors import Conflict, ContainerNotFound, InvalidOption, InvalidReference, StorageError
from nbcontainer.model import ContainerId
from nbcontainer.model.network import Endpoint
from nbcontainer.store import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbcontainer.engine.views import ContainerState, LogLine

__all__ = ["ContainerRecords", "Record", "Stored"]

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_RECORD = "record.json"
_SCRIPT = "cell"
_ABANDONED_AFTER = 3600.0
_LISTED = "; `%container ps -a` lists those that are here"
_LONGEST_PAUSE = 0.05
_LONGEST_RECORD = 16 << 20
_BUSY = 0.5
_SETTLING = 10.0
_OF_ONE_RUN = (
    "pid",
    "start_time",
    "pid_namespace",
    "started",
    "finished",
    "exit_code",
    "reason",
    "ended_by",
    "health",
    "restarting",
    "endpoints",
    "ports",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A record as found on disk; `locked` means somebody supervises it now."""

    directory: str
    fields: dict[str, Any]
    locked: bool

    @property
    def id(self) -> ContainerId:
        """The container's full id."""
        return ContainerId(os.path.basename(self.directory))

    @property
    def abandoned(self) -> bool:
        """True for a throw-away container whose supervisor is gone: only its files are left."""
        return not self.locked and not self.fields.get("keep", False)

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Its places in networks, in its latest run; none where the record does not tell."""
        listed = self.fields.get("endpoints")
        found = []
        for fields in listed if isinstance(listed, list) else []:
            with contextlib.suppress(TypeError, ValueError, AttributeError):
                found.append(Endpoint.from_fields(fields))
        return tuple(found)

    def summary(self) -> ContainerSummary:
        """As `ps` shows it."""
        fields = self.fields
        finished, code = fields.get("finished"), fields.get("exit_code")
        state, reason = self._state()
        health = fields.get("health")
        return ContainerSummary(
            id=self.id,
            name=str(fields.get("name", "")),
            image=str(fields.get("image", "")),
            command=tuple(str(word) for word in fields.get("command", ())),
            state=state,
            created=float(fields.get("created", 0.0)),
            finished=finished,
            exit_code=code,
            reason=reason,
            pid=fields.get("pid") if state == "running" else None,
            started=fields.get("started"),
            title=str(fields.get("title", "")),
            labels=fields.get("labels") or {},
            chain=str(fields.get("chain", "")),
            mounted=mounted(fields),
            service=self.service,
            health=str(health.get("status", "")) if isinstance(health, dict) and state == "running" else "",
            ports=tuple(port for each in self.endpoints for port in each.ports) if self.locked else (),
        )

    @property
    def service(self) -> bool:
        """Whether it runs on behind: then it has a monitor instead of a notebook."""
        return isinstance(self.fields.get("service"), dict)

    @property
    def ending(self) -> bool:
        """Whether it has ended, and its monitor is about to leave, or to start it again."""
        fields = self.fields
        return self.service and self.locked and fields.get("finished") is not None and not fields.get("restarting")

    def _state(self) -> tuple[ContainerState, str]:
        """What it is doing, and why it ended."""
        fields = self.fields
        reason = str(fields.get("reason") or "")
        if self.locked and not self.ending:
            return ("restarting" if fields.get("restarting") else "running"), reason
        if fields.get("finished") is not None:
            return "exited", reason
        if self.service and fields.get("started") is None:
            return "created", reason
        if fields.get("boot_id", identity.boot_id()) != identity.boot_id():
            return "dead", "the machine was restarted while it ran"
        return "dead", "lost: its monitor was killed" if self.service else "its notebook ended without saying how"


class Record:
    """The supervisor's hold on its container's record: locked until closed."""

    def __init__(self, directory: str, fd: int, fields: dict[str, Any]) -> None:
        self.directory = directory
        self._fd = fd
        self._fields = fields
        self._log = LogWriter(directory, limits_of(fields.get("log")))

    @property
    def id(self) -> ContainerId:
        """The container's full id."""
        return ContainerId(os.path.basename(self.directory))

    @property
    def kept(self) -> bool:
        """Whether the container stays after it has ended."""
        return bool(self._fields["keep"])

    def update(self, **fields: Any) -> None:
        """Change fields of the record; those that others have changed meanwhile (`amend`) stay as they are."""
        self._fields = _merge(self._fd, self._fields, fields)

    def reread(self) -> dict[str, Any]:
        """All fields as they are now on disk."""
        self._fields = _fields(self._fd) or self._fields
        return dict(self._fields)

    def read(self, name: str) -> Any:
        """A field as it is now on disk, where others may have written it; None when there is none."""
        return (_fields(self._fd) or self._fields).get(name)

    @property
    def fields(self) -> dict[str, Any]:
        """What the record said when it was read or changed last."""
        return dict(self._fields)

    def append(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Keep output of a container that is kept or runs on behind."""
        if self.kept or self._fields.get("service"):
            with contextlib.suppress(OSError):  # a full disk ends the log, not the container
                self._log.append(stream, data)

    def keep_script(self, script: bytes) -> None:
        """Keep the text of the cell, for the next start."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(os.path.join(self.directory, _SCRIPT), flags, 0o600), "wb") as file:
            file.write(script)

    @property
    def held(self) -> bool:
        """Whether the lock is still ours."""
        return self._fd >= 0

    def close(self) -> None:
        """Unlock; safe twice."""
        self._log.close()
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def renew(self) -> None:
        """Forget what the last run left, for the next one."""
        self.update(**dict.fromkeys(_OF_ONE_RUN))

    def hand_over(self, give: Callable[[int], object]) -> None:
        """Have `give` send the locked descriptor to somebody else, whose the record is then.

        The lock is held as long as a copy of it is open. When nobody takes it, which raises `OSError`, it stays ours.
        """
        give(self._fd)
        self.close()


class ContainerRecords:
    """All containers of one store. `owner` is the uid and gid of container root outside, when we are root."""

    def __init__(self, root: str, owner: int | None) -> None:
        self.directory = os.path.join(root, "containers")
        self._owner = owner
        self._names = os.path.join(root, "containers.lock")

    def path(self, container: ContainerId) -> str:
        """Where a container's files lie."""
        return os.path.join(self.directory, container)

    def create(self, container: ContainerId, fields: dict[str, Any]) -> Record:
        """Make the directory and the locked record; raise `Conflict` when the name is taken."""
        name = fields.get("name", "")
        if not name:
            return self._create(container, fields)
        with FileLock(self._names):  # one object is one holder, and threads are several
            self._refuse_taken(name)
            return self._create(container, fields)

    def _refuse_taken(self, name: str, *, by: ContainerId | None = None) -> None:
        """Raise when a container cannot be called `name`; `by` is the one that is asking, if it is here already."""
        if not _NAME.fullmatch(name):
            raise InvalidOption(
                f"container name {name!r} must be letters, digits, '_', '.' and '-', starting with a letter or digit"
            )
        for stored in self.walk():
            if stored.fields.get("name") == name and stored.id != by and not stored.abandoned:
                raise Conflict(
                    f"container name {name!r} is taken by {stored.id[:12]}; remove that one "
                    f"(`%container rm {name}`) or choose another name"
                )

    def _create(self, container: ContainerId, fields: dict[str, Any]) -> Record:
        directory = self.path(container)
        try:
            self._make_directory(directory)
            try:
                fd = self._new_record(directory, fields)
            except BaseException:  # a directory without a record would stay for good
                shutil.rmtree(directory, ignore_errors=True)
                raise
        except OSError as problem:
            raise StorageError(
                f"container {container[:12]} cannot be recorded in {self.directory}: {problem.strerror}; "
                "free some space (`%container df`) or move the store (NBCONTAINER_ROOT)"
            ) from problem
        return Record(directory, fd, fields)

    def _make_directory(self, directory: str) -> None:
        """Make it, unless the container's room was built ahead and it is there.

        The room may be being built this very moment, by container root, who must be able to write into the directory
        whoever made it: so it gets its name when it has its owner. A rename replaces a directory that is still empty.
        """
        if os.path.lexists(directory):
            return
        if self._owner is None:
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
            return
        made = os.path.join(os.path.dirname(directory), f".{os.path.basename(directory)}")
        os.mkdir(made, 0o700)
        try:
            os.chown(made, self._owner, self._owner)
            os.rename(made, directory)
        except BaseException as problem:
            os.rmdir(made)
            if isinstance(problem, OSError) and problem.errno in {errno.ENOTEMPTY, errno.EEXIST}:
                return
            raise

    def _new_record(self, directory: str, fields: dict[str, Any]) -> int:
        path = os.path.join(directory, _RECORD)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.write(fd, json.dumps(fields).encode())
        except BaseException:
            os.close(fd)
            raise
        return fd

    def reopen(self, stored: Stored) -> Record:
        """Take hold of a container that has ended, to start it again; raises as `removing` does."""
        fd = self._lock(stored, fcntl.LOCK_EX)
        try:
            return Record(stored.directory, fd, _merge(fd, stored.fields, dict.fromkeys(_OF_ONE_RUN)))
        except BaseException:
            os.close(fd)
            raise

    @contextlib.contextmanager
    def holding(self, stored: Stored, *, alone: bool) -> Iterator[None]:
        """Hold a container that has ended while its files are worked on, `alone` or with others who only read them.

        Raises as `removing` does.
        """
        fd = self._lock(stored, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            yield
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def removing(self, stored: Stored) -> Iterator[None]:
        """Hold a container that has ended, and nobody can find any more, while its files are removed.

        Raises `Conflict` when somebody has started it again, or works on its files, or `ContainerNotFound`.
        """
        with self.holding(stored, alone=True):
            with contextlib.suppress(FileNotFoundError):  # the lock is ours, but files can be removed without one
                os.unlink(os.path.join(stored.directory, _RECORD))
            yield

    def _lock(self, stored: Stored, kind: int) -> int:
        """Open and lock the record of a container that has ended; the descriptor, which is the lock."""
        fd = self._open(stored)
        try:
            if not _lock_soon(fd, kind):
                raise Conflict(  # noqa: TRY301 - the fd is closed below
                    f"container {stored.id[:12]} is in use, or has just been started again; try again"
                )
            if not os.fstat(fd).st_nlink:
                raise ContainerNotFound(f"container {stored.id[:12]} has just been removed")  # noqa: TRY301 - likewise
        except BaseException:
            os.close(fd)
            raise
        return fd

    def walk(self) -> Iterator[Stored]:
        """Every record, in no order; directories without one are left out (they are being made or removed)."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self.directory):
                stored = self._load(os.path.join(self.directory, name))
                if stored is not None:
                    yield stored

    def _load(self, directory: str) -> Stored | None:
        try:
            fd = os.open(os.path.join(directory, _RECORD), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            locked = not _try_lock(fd)
            fields = _fields(fd)
        finally:
            os.close(fd)
        return None if fields is None else Stored(directory=directory, fields=fields, locked=locked)

    def amend(self, stored: Stored, **fields: Any) -> None:
        """Change fields of a record that somebody else may hold; raise `ContainerNotFound` when it is gone."""
        with self._opened(stored) as fd:
            _merge(fd, stored.fields, fields)

    @contextlib.contextmanager
    def _opened(self, stored: Stored) -> Iterator[int]:
        fd = self._open(stored)
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, stored: Stored) -> int:
        try:
            return os.open(os.path.join(stored.directory, _RECORD), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as problem:
            raise ContainerNotFound(f"container {stored.id[:12]} is gone") from problem

    def await_release(self, stored: Stored, *, within: float | None = None) -> Stored | None:
        """Wait until nobody supervises the container; its record then, or None after `within` seconds.

        Also tells of a throw-away container: its record can be read here for as long as we have it open.
        """
        deadline = None if within is None else time.monotonic() + within
        pause = 0.001
        with self._opened(stored) as fd:
            while not _try_lock(fd):
                if deadline is not None and time.monotonic() >= deadline:
                    return None
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            return Stored(directory=stored.directory, fields=_fields(fd) or stored.fields, locked=False)

    @contextlib.contextmanager
    def watching(self, stored: Stored) -> Iterator[Callable[[], Stored]]:
        """Lend a look at a record that can be taken again and again, also when the container is thrown away."""
        with self._opened(stored) as fd:

            def look() -> Stored:
                fields = _fields(fd) or stored.fields
                locked = not _try_lock(fd)
                if not locked:
                    fcntl.flock(fd, fcntl.LOCK_UN)
                return Stored(directory=stored.directory, fields=fields, locked=locked)

            yield look

    def settled(self, stored: Stored) -> Stored:
        """Wait for the moment in which the monitor of a container that has ended decides what comes next."""
        deadline = time.monotonic() + _SETTLING
        with contextlib.suppress(ContainerNotFound), self.watching(stored) as look:
            while stored.ending and time.monotonic() < deadline:
                time.sleep(0.005)
                stored = look()
        return stored

    def again(self, stored: Stored) -> Stored | None:
        """The record as it is now; None when it is gone."""
        return self._load(stored.directory)

    def rename(self, stored: Stored, name: str) -> None:
        """Give a container another name, running or not; raise `Conflict` when it is taken."""
        with FileLock(self._names):
            self._refuse_taken(name, by=stored.id)
            self.amend(stored, name=name)

    def nameless(self) -> Iterator[str]:
        """Directories that have been without a record for an hour: what a removal cut short left."""
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.directory):
                with contextlib.suppress(OSError):
                    old = entry.stat(follow_symlinks=False).st_mtime < time.time() - _ABANDONED_AFTER
                    if old and not os.path.lexists(os.path.join(entry.path, _RECORD)):
                        yield entry.path

    def find(self, text: str) -> Stored:
        """The container with this name, id or unique id prefix; raise `ContainerNotFound`."""
        every = [stored for stored in self.walk() if not stored.abandoned]
        named = [stored for stored in every if stored.fields.get("name") == text and text]
        matching = named or [stored for stored in every if len(text) >= 2 and stored.id.startswith(text)]
        if len(matching) > 1:
            shown = ", ".join(sorted(stored.id[:12] for stored in matching))
            raise InvalidReference(f"container id {text!r} fits several: {shown}; type more of it")
        if not matching:
            near = difflib.get_close_matches(text, [str(stored.fields.get("name", "")) for stored in every], n=1)
            hint = f"; did you mean {near[0]}?" if near and near[0] else ""
            raise ContainerNotFound(f"no container {text!r}{hint or _LISTED}")
        return matching[0]

    def script(self, stored: Stored) -> bytes | None:
        """The text of the cell that a kept container runs, if it runs one."""
        try:
            with open(os.path.join(stored.directory, _SCRIPT), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def output(self, stored: Stored) -> tuple[LogLine, ...]:
        """What a container wrote, in order."""
        return read_log(stored.directory)


def _try_lock(fd: int, kind: int = fcntl.LOCK_SH) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_soon(fd: int, kind: int) -> bool:
    """Lock a record; those who only look at it hold it for a moment."""
    deadline = time.monotonic() + _BUSY
    while not _try_lock(fd, kind):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _fields(fd: int) -> dict[str, Any] | None:
    """What a record says; None when there is nothing to read in it.

    A look can fall into the middle of a change (it did once in 500, of records that grow). Then writers are waited for.
    """
    found = _parsed(fd)
    if found is None:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)  # a description of its own: so is its lock
        try:
            fcntl.fcntl(again, fcntl.F_OFD_SETLKW, _lock_request(fcntl.F_RDLCK))
            found = _parsed(again)
        finally:
            os.close(again)
    return found


def _parsed(fd: int) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError, RecursionError):
        fields = json.loads(os.pread(fd, _LONGEST_RECORD, 0))
        if isinstance(fields, dict):
            return fields
    return None


def _merge(fd: int, known: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Change fields of a record in place, one writer at a time; return all of them.

    The writers' lock is of another kind than the supervisor's (fcntl(2), "open file description locks"; on a local
    file system the two know nothing of each other), because the supervisor's is held for hours.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _lock_request(fcntl.F_WRLCK))
    try:
        fields = {**(_parsed(fd) or known), **changes}
        data = json.dumps(fields).encode()
        os.pwrite(fd, data.ljust(os.fstat(fd).st_size), 0)
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock_request(fcntl.F_UNLCK))
    return fields


def _lock_request(kind: int) -> bytes:
    """A ``struct flock`` over the whole file: type, whence, start, length, pid."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
