"""``df``: what the store holds, and what would come free."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

from nbcontainer._linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from nbcontainer.engine.views import DiskUsage, DiskUsageLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.engine.records import Stored
    from nbcontainer.images.library import Library
    from nbcontainer.model import Digest
    from nbcontainer.store import VolumeStore

__all__ = ["disk_usage", "tree_size"]

_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS


def disk_usage(
    root: str, library: Library, containers: Sequence[Stored], used: frozenset[Digest], volumes: VolumeStore
) -> DiskUsage:
    """Sizes in bytes; layers shared by several images count once."""
    images = tuple(library.walk())
    in_use = [image for image in images if image.chain in used]
    named = {chain for image in images for chain in _chains(library, image.chain)}
    needed = {chain for top in used for chain in _chains(library, top)}
    every = tuple(library.snapshots.walk())
    sizes = {chain: library.snapshots.usage(chain).bytes for chain in every}
    blobs = tuple(library.content.walk())
    blob_size = sum(library.content.size(digest) for digest in blobs)
    running = [stored for stored in containers if stored.locked]
    ended = [stored for stored in containers if not stored.locked]
    ended_size = sum(tree_size(stored.directory) for stored in ended)
    kept = tuple(volumes.walk())
    volume_sizes = {each.name: tree_size(volumes.folder(each.name)) for each in kept}
    used_by = volumes.all_users()
    mounted = {each.name for each in kept if each.name in used_by}
    usage = shutil.disk_usage(root)
    return DiskUsage(
        root=root,
        lines=(
            DiskUsageLine(
                kind="Images",
                count=len({image.record.id for image in images}),
                active=len({image.record.id for image in in_use}),
                size=sum(sizes[chain] for chain in named if chain in sizes),
                reclaimable=sum(sizes[chain] for chain in named if chain in sizes and chain not in needed),
            ),
            DiskUsageLine(
                kind="Downloads",
                count=len(blobs),
                active=len(blobs),
                size=blob_size,
                reclaimable=0,
            ),
            DiskUsageLine(
                kind="Loose layers",
                count=sum(1 for chain in every if chain not in named),
                active=sum(1 for chain in every if chain not in named and chain in needed),
                size=sum(size for chain, size in sizes.items() if chain not in named),
                reclaimable=sum(size for chain, size in sizes.items() if chain not in named and chain not in needed),
            ),
            DiskUsageLine(
                kind="Containers",
                count=len(containers),
                active=len(running),
                size=ended_size + sum(tree_size(stored.directory) for stored in running),
                reclaimable=ended_size,
            ),
            DiskUsageLine(
                kind="Volumes",
                count=len(kept),
                active=len(mounted),
                size=sum(volume_sizes.values()),
                reclaimable=sum(size for name, size in volume_sizes.items() if name not in mounted),
            ),
        ),
        free=usage.free,
        total=usage.total,
    )


def _chains(library: Library, top: Digest | None) -> list[Digest]:
    chains = []
    while top is not None:
        chains.append(top)
        top = library.snapshots.parent(top)
    return chains


def tree_size(path: str) -> int:
    """Bytes allocated below `path`, as far as we may look.

    A container may be changing what is there: each folder is opened from the top and through no link, one at a time.
    """
    total = 0
    try:
        top = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        waiting = ["."]
        while waiting:
            folder = waiting.pop()
            with contextlib.suppress(OSError):  # closed to us, gone by now, or too deep to be named
                total += _folder_size(top, folder, waiting)
    finally:
        os.close(top)
    return total


def _folder_size(top: int, folder: str, waiting: list[str]) -> int:
    """Bytes of what lies in one folder; the folders in it are added to `waiting`."""
    size = 0
    fd = openat2(top, folder, os.O_RDONLY | os.O_DIRECTORY, resolve=_BENEATH)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{folder}/{entry.name}")
    finally:
        os.close(fd)
    return size
