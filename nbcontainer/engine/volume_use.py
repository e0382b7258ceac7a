"""The volumes of a container: which it gets, how an empty one is filled from the image, what becomes of them after.

What is asked and what the image's VOLUME names is put together by a pure function. `using` then finds or makes each
volume and holds their names until the container's record is written, which is what keeps anybody from removing them.
`fill` copies what the image has at the target into a volume that is empty and that no running container has: aside,
by a task in the namespace whose ids own the files, and then renamed, so that a volume is filled or it is not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.roots import read_only
from nbcontainer.errors import InvalidImage, NbcontainerError, VolumeNotFound
from nbcontainer.layers.apply import sync_filesystem
from nbcontainer.model import Mount, VolumeMount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from nbcontainer.engine.records import ContainerRecords, Record, Stored
    from nbcontainer.engine.session import Session
    from nbcontainer.model import ContainerId, ContainerSpec, ImageConfig, RunOptions

__all__ = [
    "anonymous_of",
    "container_mounts",
    "fill",
    "found_again",
    "let_go",
    "mounted",
    "used_volumes",
    "using",
    "volume_fields",
    "volume_mounts",
    "wanted_volumes",
]

_FILL = "nbcontainer.engine.inside:fill"
_EMPTY = "empty"
"""A folder of every launcher's stage: overlayfs shows nothing of one layer alone, so that one stands on it."""
_MOST = 256
_MARK = "volumes_mounted"


def wanted_volumes(options: RunOptions, config: ImageConfig) -> tuple[VolumeMount, ...]:
    """Every volume of the store that a container gets: those asked for, and one for each VOLUME of the image.

    Not where something else has been asked for. Raises `InvalidImage` for a VOLUME that cannot be.
    """
    if not options.volumes and not config.volumes:
        return ()
    asked = tuple(volume for volume in options.volumes if isinstance(volume, VolumeMount))
    taken = {each.target for each in (*options.volumes, *options.tmpfs)}
    if len(config.volumes) > _MOST:
        raise InvalidImage(f"the image has {len(config.volumes)} VOLUMEs, more than the {_MOST} that are kept apart")
    own: dict[str, VolumeMount] = {}
    for path in config.volumes:
        target = _image_target(path)
        if target not in taken:
            own[target] = VolumeMount(target=target)
    return (*asked, *own.values())


def _image_target(path: str) -> str:
    target = os.path.normpath(f"/{path.lstrip('/')}") if path.startswith("/") else ""
    if not target or target == "/" or "\0" in path or target.split("/")[1] in {"proc", "sys", "dev"}:
        raise InvalidImage(
            f"the image's VOLUME {path!r} cannot be a folder of its own: it must be an absolute path, not / and not in"
            " /proc, /sys or /dev; build the image without it"
        )
    return target


@contextlib.contextmanager
def using(
    session: Session, wanted: Sequence[VolumeMount], container: ContainerId, *, transient: bool
) -> Iterator[tuple[VolumeMount, ...]]:
    """Find or make volumes, and hold all names while the block writes the record that names them.

    What was made is taken back when the block fails. `transient` volumes without a name go with their container.
    """
    if not wanted:
        yield ()
        return
    made: list[str] = []
    named = []
    with session.volumes.held():
        try:
            for each in wanted:
                volume, new = session.volumes.ensure(
                    each.name,
                    dict(each.labels),
                    container="" if each.name else container,
                    transient=transient and not each.name,
                )
                if new:
                    made.append(volume.name)
                named.append(dataclasses.replace(each, name=volume.name))
            yield tuple(named)
        except BaseException:
            session.volumes.unmake(made)
            raise


def volume_fields(wanted: Sequence[VolumeMount], named: Sequence[VolumeMount]) -> list[dict[str, Any]]:
    """What a record keeps of its volumes; `wanted` tells which of them came without a name."""
    return [
        {
            "name": found.name,
            "target": found.target,
            "read_only": found.read_only,
            "subpath": found.subpath,
            "anonymous": not asked.name,
        }
        for asked, found in zip(wanted, named, strict=True)
    ]


def fill(session: Session, spec: ContainerSpec, named: Sequence[VolumeMount], record: Record) -> None:
    """Copy what the image has at their targets into those volumes that are empty and not in use.

    The record says afterwards that they are about to be mounted: from then on nobody else fills them.
    """
    with contextlib.ExitStack() as held:
        for name in sorted({each.name for each in named}):  # in one order, or two containers would wait for each other
            held.enter_context(session.volumes.filling(name))
        for each in named:
            may = each.copy and not each.subpath and session.volumes.seems_empty(each.name)
            if may and not _is_mounted(session.records, each.name, but=record.id):
                _fill_one(session, spec, each)
        record.update(**{_MARK: 1})


def _is_mounted(records: ContainerRecords, name: str, *, but: ContainerId) -> bool:
    return any(
        stored.locked and stored.id != but and stored.fields.get(_MARK) and name in _names(stored)
        for stored in records.walk()
    )


def _fill_one(session: Session, spec: ContainerSpec, volume: VolumeMount) -> None:
    view = session.runtime.view(read_only(spec.root))
    for step in view:
        if step["op"] == "overlay" and not step["upper"] and len(step["lower"]) == 1:
            step["lower"].append(_EMPTY)
    with session.volumes.copy(volume.name) as aside, contextlib.ExitStack() as undo:
        fds = []
        for path in (session.volumes.folder(volume.name), aside):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
            undo.callback(os.close, fds[-1])
        arguments = {"view": view, "path": volume.target, "owners": not session.id_map.single}
        if _called(session, arguments, fds)["filled"]:
            sync_filesystem(fds[0])
            session.volumes.keep_copy(volume.name)


def _called(session: Session, arguments: dict[str, Any], fds: Sequence[int]) -> dict[str, Any]:
    """Have the task copy; when it is not waited for any more (an interrupt) it is ended, and its end waited for.

    What it still wrote afterwards would come after the copy has been taken away.
    """
    with contextlib.ExitStack() as undo:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        undo.callback(os.close, reader)
        lifeline = undo.enter_context(open(writer, "wb", buffering=0))
        connection = session.runtime.begin(_FILL, arguments, (*fds, reader))
        undo.callback(connection.close)
        try:
            return session.runtime.finish(connection)
        except KeyboardInterrupt:
            lifeline.close()
            with contextlib.suppress(NbcontainerError):
                session.runtime.finish(connection)
            raise


def used_volumes(records: ContainerRecords) -> dict[str, dict[str, str]]:
    """Which containers name each volume: by id, and as messages name them. Those that are left to be swept do not."""
    found: dict[str, dict[str, str]] = {}
    for stored in records.walk():
        if stored.fields.get("volumes") and not stored.abandoned:
            for name in _names(stored):
                found.setdefault(name, {})[stored.id] = str(stored.fields.get("name") or stored.id[:12])
    return found


def _fields_of(stored: Stored) -> list[dict[str, Any]]:
    fields = stored.fields.get("volumes")
    return [each for each in fields if isinstance(each, dict)] if isinstance(fields, list) else []


def _names(stored: Stored) -> list[str]:
    return list(dict.fromkeys(str(each.get("name")) for each in _fields_of(stored)))


def anonymous_of(stored: Stored) -> tuple[str, ...]:
    """The volumes that were made for a container and go with it by ``rm -v``."""
    return tuple(str(each.get("name")) for each in _fields_of(stored) if each.get("anonymous"))


def found_again(session: Session, stored: Stored) -> dict[str, str]:
    """The folder behind each target that is a volume's, now; raise for a volume that is gone or is not ours.

    Found anew by name, because a store may be moved.
    """
    found = {}
    for each in _fields_of(stored):
        name, subpath = str(each.get("name")), str(each.get("subpath") or "")
        try:
            volume = session.volumes.find(name)
        except VolumeNotFound as problem:
            raise VolumeNotFound(
                f"volume {name} of container {stored.id[:12]} is gone; `%container volume create {name}` makes an empty"
                " one of that name"
            ) from problem
        session.volumes.check_ours(volume)
        found[str(each.get("target"))] = os.path.join(session.volumes.data(name), subpath).rstrip("/")
    return found


def volume_mounts(session: Session, stored: Stored) -> tuple[Mount, ...]:
    """The volumes of a container that has ended, as mounts for whoever looks at its files; in order of depth."""
    sources = found_again(session, stored)
    targets = sorted(sources, key=lambda target: target.count("/"))
    return tuple(Mount(kind="bind", source=sources[target], target=target) for target in targets)


def let_go(session: Session, spec: ContainerSpec, named: Sequence[str]) -> None:
    """Remove the volumes that were made for a container which is not there any more."""
    if named and not os.path.lexists(os.path.join(session.records.path(spec.id), "record.json")):
        session.volumes.drop(named)


def mounted(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What a filter ``volume=`` may say of a container: names of volumes, folders of this machine, places inside."""
    shown = [each for each in container_mounts(record) if each["Type"] in {"volume", "bind"}]
    return tuple(str(each[key]) for each in shown for key in ("Name", "Source", "Destination") if each.get(key))


def container_mounts(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a container has mounted, in docker's words (``inspect``)."""
    spec = record.get("spec")
    mounts = spec.get("mounts") if isinstance(spec, dict) else None
    volumes = {each.get("target"): each for each in record.get("volumes") or () if isinstance(each, dict)}
    found = []
    for mount in mounts if isinstance(mounts, list) else ():
        if not isinstance(mount, dict):
            continue
        volume = volumes.get(mount.get("target"))
        kind = "volume" if volume else str(mount.get("kind", ""))
        found.append(
            {
                "Type": kind,
                **({"Name": volume.get("name"), "Driver": "local"} if volume else {}),
                "Source": mount.get("source", ""),
                "Destination": mount.get("target", ""),
                "RW": not mount.get("read_only", False),
            }
        )
    return found
