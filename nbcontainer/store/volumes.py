"""Volumes: folders that outlive containers, each ``volumes/<name>`` with ``volume.json`` and the files in ``_data``.

Only ``_data`` is ever shown to a container, so nothing inside can reach, rename or replace what is around it. Its
files belong to ids that exist in one id map only; the volume says which, and is refused to containers that have
another one, in which every owner would be wrong.

A volume is made under another name and renamed, and renamed before it is removed: under its own name it is complete.
``volumes.lock`` is held by whoever makes or removes one, and from the choice of a volume for a container to the
record that names it: so nobody removes what somebody is about to use.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import Conflict, InvalidOption, NbcontainerError, StorageError, UnsupportedHost, VolumeNotFound
from nbcontainer.store.faults import storage_faults
from nbcontainer.store.locks import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["VOLUME_NAME", "Volume", "VolumeStore"]

VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{1,127}", re.ASCII)
"""Docker's form of a name: two characters at least, so that a drive's letter is none."""

_DATA = "_data"
_COPY = ".copy"
_RECORD = "volume.json"
_FILLING = "fill.lock"
_NEW = ".new-"
_GONE = ".gone-"
_LONGEST_RECORD = 1 << 20
_ANONYMOUS = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume:
    """A volume as its record tells: `created` in unix seconds, `ids` the key of the id map that its owners are of.

    An `anonymous` one was made for `container`; when it is `transient` it goes with it.
    """

    name: str
    created: float
    ids: str
    labels: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    container: str = ""
    transient: bool = False


class VolumeStore:
    """The volumes of one store.

    `ids` is the key of our id map; `owner` is container root's id outside when we are the machine's root, who can
    remove what belongs to any id. `users` tells which containers name a volume, by id and as people call them;
    `discard` removes a folder whoever owns what is in it.
    """

    def __init__(
        self,
        root: str,
        *,
        ids: str,
        owner: int | None,
        users: Callable[[], Mapping[str, Mapping[str, str]]],
        discard: Callable[[str], None],
    ) -> None:
        self.directory = os.path.join(root, "volumes")
        self._containers = os.path.join(root, "containers")
        self._lock = os.path.join(root, "volumes.lock")
        self._ids = ids
        self._owner = owner
        self._users = users
        self._discard = discard

    # --- looking ----------------------------------------------------------------------------------------------------

    def folder(self, name: str) -> str:
        """Where a volume and what is known of it lie."""
        return os.path.join(self.directory, name)

    def data(self, name: str) -> str:
        """The folder that containers see."""
        return os.path.join(self.directory, name, _DATA)

    def walk(self) -> Iterator[Volume]:
        """Every volume, by name."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self.directory)):
                volume = self._load(name)
                if volume is not None:
                    yield volume

    def find(self, name: str) -> Volume:
        """The volume of this name, or the anonymous one whose name begins so; raise `VolumeNotFound`."""
        volume = self._load(name)
        if volume is not None:
            return volume
        names = [each.name for each in self.walk()]
        matching = [each for each in names if _ANONYMOUS.fullmatch(each) and len(name) >= 4 and each.startswith(name)]
        if len(matching) == 1 and (volume := self._load(matching[0])) is not None:
            return volume
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean {close[0]}?" if close else "; `%container volume ls` lists those that are here"
        raise VolumeNotFound(f"no volume {name!r}{hint}")

    def users(self, name: str, *, but: str = "") -> Sequence[str]:
        """The containers that name this volume, running or not; the one with the id `but` does not count."""
        return sorted(shown for container, shown in self._users().get(name, {}).items() if container != but)

    def all_users(self) -> Mapping[str, Sequence[str]]:
        """The same of every volume that a container names, by one look at all records."""
        return {name: sorted(containers.values()) for name, containers in self._users().items()}

    def is_ours(self, volume: Volume) -> bool:
        """Whether its owners mean the same here as where it was made."""
        return volume.ids == self._ids

    def check_ours(self, volume: Volume) -> None:
        """Raise `UnsupportedHost` for a volume whose owners would be other people here."""
        if not self.is_ours(volume):
            raise UnsupportedHost(
                f"volume {volume.name} was written with other user ids ({volume.ids}) than containers have now"
                f" ({self._ids}), so the owners of its files would be wrong: the ids of root, or the range in"
                " /etc/subuid and /etc/subgid, have changed since; use it as it was, or copy what is in"
                f" {self.data(volume.name)} to a new volume with `%container cp`"
            )

    # --- making and removing ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold all names: nobody else makes or removes a volume meanwhile."""
        with FileLock(self._lock):
            yield

    def create(self, name: str = "", labels: Mapping[str, str] | None = None) -> tuple[Volume, bool]:
        """Make a volume, or find it: and say whether it was made. Labels are only for one that is made."""
        with self.held():
            return self.ensure(name, labels)

    def ensure(
        self,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        *,
        container: str = "",
        transient: bool = False,
    ) -> tuple[Volume, bool]:
        """As `create`, while the names are `held`. Without a name a new one is made, for `container` if that is given.

        Raises `UnsupportedHost` for one of another id map.
        """
        if name:
            _check_name(name)
            known = self._load(name)
            if known is not None:
                self.check_ours(known)
                return known, False
            if os.path.lexists(self.folder(name)):
                raise StorageError(
                    f"volume {name} is damaged: {self.folder(name)}/{_RECORD} cannot be read; look what is in"
                    f" {self.data(name)}, and move that folder away"
                )
        volume = Volume(
            name=name or secrets.token_hex(32),
            created=time.time(),
            ids=self._ids,
            labels=dict(labels or {}),
            anonymous=not name,
            container=container,
            transient=transient,
        )
        with storage_faults(f"make volume {volume.name}", self.directory):
            self._make(volume)
        return volume, True

    def remove(self, name: str, *, container: str = "") -> Volume:
        """Remove a volume and what is in it; raise `VolumeNotFound`, or `Conflict` naming who uses it.

        That `container`, which is over and about to go, uses it is no reason.
        """
        with self.held():
            volume = self.find(name)
            used = self.users(volume.name, but=container)
            if used:
                containers = "containers" if len(used) > 1 else "container"
                raise Conflict(
                    f"volume {volume.name} is in use by {containers} {', '.join(used)}; "
                    f"remove {'them' if len(used) > 1 else 'it'} first (`%container rm`)"
                )
            self._check_removable(volume)
            aside = self._put_aside(volume.name)
        self._discard(aside)
        return volume

    def drop(self, names: Sequence[str], *, container: str = "") -> None:
        """Remove those of `names` that are there and that nobody uses, but for `container` (see `remove`)."""
        for name in names:
            with contextlib.suppress(Conflict, VolumeNotFound, UnsupportedHost):
                self.remove(name, container=container)

    def unmake(self, names: Sequence[str]) -> None:
        """Take back volumes that were made and not used, while the names are still `held`."""
        for name in names:
            with contextlib.suppress(OSError, NbcontainerError):  # what is left is swept
                self._discard(self._put_aside(name))

    def sweep(self) -> None:
        """Remove what a killed process left: volumes half made or half removed, and those of containers thrown away."""
        if not any(self._leftover(name) for name in self._names()):
            return
        with self.held():
            aside, used = [], self._users()
            for name in self._names():
                if name.startswith((_NEW, _GONE)):
                    aside.append(self.folder(name))
                elif self._leftover(name) and name not in used:
                    with contextlib.suppress(OSError):
                        aside.append(self._put_aside(name))
        for path in aside:
            with contextlib.suppress(OSError, NbcontainerError):  # nobody asked for it, and the next one tries again
                self._discard(path)

    # --- filling ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def filling(self, name: str) -> Iterator[None]:
        """Hold one volume while it is decided whether it is filled, and filled."""
        self.find(name)
        with FileLock(os.path.join(self.folder(name), _FILLING)):
            yield

    def seems_empty(self, name: str) -> bool:
        """Whether nothing is seen in it; a container may have closed it to us, then a task has to look."""
        try:
            with os.scandir(self.data(name)) as entries:
                return next(entries, None) is None
        except PermissionError:
            return True

    @contextlib.contextmanager
    def copy(self, name: str) -> Iterator[str]:
        """Lend a folder to be filled; it becomes the volume's files when `keep_copy` is called, else it goes away.

        While the volume is held by `filling`.
        """
        aside = os.path.join(self.folder(name), _COPY)
        if os.path.lexists(aside):  # somebody was killed while filling
            self._discard(aside)
        with storage_faults(f"fill volume {name}", self.directory):
            self._make_data(aside)
        try:
            yield aside
        finally:
            if os.path.lexists(aside):
                self._discard(aside)

    def keep_copy(self, name: str) -> bool:
        """Make the copy the volume's files, at one stroke (rename(2)); False when something is in it by now."""
        try:
            os.rename(os.path.join(self.folder(name), _COPY), self.data(name))
        except OSError:
            return False
        return True

    # --- inside -----------------------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.directory)
        return []

    def _leftover(self, name: str) -> bool:
        """Whether an entry was left behind: the name is a step's on the way, or its container is not there any more."""
        if name.startswith((_NEW, _GONE)):
            return True
        volume = self._load(name) if _ANONYMOUS.fullmatch(name) else None
        if volume is None or not volume.transient:
            return False
        return not os.path.lexists(os.path.join(self._containers, volume.container, "record.json"))

    def _load(self, name: str) -> Volume | None:
        if not VOLUME_NAME.fullmatch(name):
            return None
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(os.path.join(self.folder(name), _RECORD), flags), "rb") as file:
                fields = json.loads(file.read(_LONGEST_RECORD))
            return _volume(name, fields)
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return None

    def _make(self, volume: Volume) -> None:
        os.makedirs(self.directory, mode=0o700, exist_ok=True)
        made = self.folder(f"{_NEW}{secrets.token_hex(8)}")
        os.mkdir(made, 0o700)
        try:
            if self._owner is not None:
                os.chown(made, 0, self._owner)
                os.chmod(made, 0o710)  # noqa: S103 - the group is container root's own: it must walk through
            self._make_data(os.path.join(made, _DATA))
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            with open(os.open(os.path.join(made, _RECORD), flags, 0o600), "w", encoding="utf-8") as file:
                json.dump(_fields(volume), file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(made, self.folder(volume.name))
        except BaseException:
            with contextlib.suppress(OSError, NbcontainerError):
                self._discard(made)
            raise

    def _make_data(self, path: str) -> None:
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)  # noqa: S103 - as a folder of an image is; the store around it is closed
        if self._owner is not None:
            os.chown(path, self._owner, self._owner)

    def _put_aside(self, name: str) -> str:
        aside = self.folder(f"{_GONE}{secrets.token_hex(8)}")
        with storage_faults(f"remove volume {name}", self.directory):
            os.rename(self.folder(name), aside)
        return aside

    def _check_removable(self, volume: Volume) -> None:
        """Raise for files of ids that we can do nothing to; root that has containers of other ids can always."""
        if self._owner is None and not self.is_ours(volume):
            raise UnsupportedHost(
                f"volume {volume.name} cannot be removed: its files were written with other user ids ({volume.ids})"
                f" than containers have now ({self._ids}); give /etc/subuid and /etc/subgid that range again, or have"
                f" an administrator remove {self.folder(volume.name)}"
            )


def _check_name(name: str) -> None:
    if not VOLUME_NAME.fullmatch(name):
        raise InvalidOption(
            f"volume name {name!r} must be 2 to 128 letters, digits, '_', '.' and '-', starting with a letter or"
            " digit; for a folder of this machine write its path, as in ./data:/data"
        )


def _fields(volume: Volume) -> dict[str, Any]:
    return {
        "created": volume.created,
        "ids": volume.ids,
        "labels": dict(volume.labels),
        "anonymous": volume.anonymous,
        "container": volume.container,
        "transient": volume.transient,
    }


def _volume(name: str, fields: Any) -> Volume:
    labels = fields.get("labels") or {}
    return Volume(
        name=name,
        created=float(fields["created"]),
        ids=str(fields["ids"]),
        labels={str(key): str(value) for key, value in labels.items()},
        anonymous=bool(fields.get("anonymous")),
        container=str(fields.get("container") or ""),
        transient=bool(fields.get("transient")),
    )
