"""What the files of a recorded container are made of: which layers lie below, and where it writes.

For an image that follows from its chain. On the machine's own root it depends on what was mounted when the container
was started, so that is kept in its record.
"""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import StorageError, UnsupportedHost
from nbcontainer.model import Digest, Mount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.engine.records import Stored
    from nbcontainer.engine.session import Session

__all__ = ["check_ids", "layers_of", "read_only", "root_of", "saved_root"]

_KEPT = ("kind", "target", "source", "lower", "upper", "work", "read_only", "recursive", "idmapped", "size", "mode")


def saved_root(root: Sequence[Mount], directory: str) -> list[dict[str, Any]]:
    """The mounts of a root for a container's record; what is masked is decided anew each time.

    Writable layers are kept relative to `directory`, so that a store may be moved.
    """
    saved = []
    plain = Mount(kind="bind", target="")
    for mount in root:
        if mount.kind != "mask":
            fields = {name: getattr(mount, name) for name in _KEPT if getattr(mount, name) != getattr(plain, name)}
            fields |= {name: os.path.relpath(fields[name], directory) for name in ("upper", "work") if name in fields}
            saved.append({**fields, "kind": mount.kind})
    return saved


def check_ids(session: Session, stored: Stored) -> None:
    """Raise `UnsupportedHost` for a container whose files have other owners outside than those of ours would."""
    ids = stored.fields.get("ids", session.id_map.key)
    if ids != session.id_map.key:
        raise UnsupportedHost(
            f"the files of container {stored.id[:12]} were written with other user ids ({ids}) than containers have now"
            f" ({session.id_map.key}); go back to whom started it, or give /etc/subuid and /etc/subgid that range again"
        )


def root_of(session: Session, stored: Stored) -> tuple[Mount, ...]:
    """The mounts that make a container's root, as they were when it was started."""
    check_ids(session, stored)
    directory = stored.directory
    chain = stored.fields.get("chain")
    if chain:
        return session.snapshots.mounts(Digest.parse(chain), upper=f"{directory}/upper", work=f"{directory}/work")
    saved = stored.fields.get("root")
    if not isinstance(saved, list):
        raise UnsupportedHost(
            f"container {stored.id[:12]} was started by an older nbcontainer, which did not note what its root was made"
            " of; run it again"
        )
    try:
        mounts = [_loaded(fields, directory) for fields in saved]
    except (TypeError, KeyError) as problem:
        raise StorageError(f"the record of container {stored.id[:12]} is damaged: {problem}") from problem
    return (*mounts, *(mount for mount in session.host_root(directory) if mount.kind == "mask"))


def _loaded(fields: dict[str, Any], directory: str) -> Mount:
    known = {name: value for name, value in fields.items() if name in _KEPT}
    known |= {
        name: os.path.normpath(os.path.join(directory, known[name])) for name in ("upper", "work") if known.get(name)
    }
    return Mount(**{**known, "lower": tuple(known.get("lower", ()))})


def read_only(root: Sequence[Mount]) -> tuple[Mount, ...]:
    """The same root to look at: what was written is the topmost layer of an overlay that nobody can write to."""
    return tuple(_looked_at(mount) if mount.kind == "overlay" else mount for mount in root)


def _looked_at(mount: Mount) -> Mount:
    written = (mount.upper,) if mount.upper and os.path.isdir(mount.upper) else ()
    return dataclasses.replace(mount, lower=(*written, *mount.lower), upper="", work="", read_only=True)


def layers_of(session: Session, stored: Stored) -> tuple[Mount, ...]:
    """The overlays of a container that have been written to."""
    return tuple(mount for mount in root_of(session, stored) if mount.kind == "overlay" and os.path.isdir(mount.upper))
