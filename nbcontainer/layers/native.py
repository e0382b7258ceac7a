"""Snapshots as complete trees, for hosts that refuse overlayfs in a user namespace.

Each snapshot starts as a copy of its parent (shared blocks where the file system can, see `copying`) and each
container as a copy of its image. Slower and larger, but it needs nothing of the kernel.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from nbcontainer.layers.copying import copy_tree as copy_here
from nbcontainer.layers.snapshotter import SnapshotDirectory
from nbcontainer.model import Mount

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.layers.snapshotter import ActiveLayer
    from nbcontainer.model import Digest, IdMap

__all__ = ["NativeSnapshotter"]


class NativeSnapshotter(SnapshotDirectory):
    """Copies; `copy_tree` does it from a directory into an empty one, where the files' owners exist."""

    flat = True

    def __init__(
        self,
        root: str,
        idmap: IdMap,
        *,
        remove_tree: Callable[[str], None] = shutil.rmtree,
        copy_tree: Callable[[str, str], None] = copy_here,
    ) -> None:
        super().__init__(root, idmap, remove_tree=remove_tree)
        self._copy_tree = copy_tree

    def _kind(self, idmap: IdMap) -> str:
        return f"{idmap.key}.native"

    def lowers(self, chain: Digest) -> tuple[str, ...]:
        """One directory, which holds everything."""
        return super().lowers(chain)[:1]

    def _against(self, lowers: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG002 - the copy holds them
        return ()

    def _fill(self, active: ActiveLayer, lowers: tuple[str, ...]) -> None:
        for lower in lowers:
            self._copy_tree(lower, active.fs)

    def mounts(self, chain: Digest, *, upper: str = "", work: str = "") -> tuple[Mount, ...]:  # noqa: ARG002 - overlay's
        """A bind of a copy made now in `upper`, or of the snapshot itself, read-only."""
        (tree,) = self.lowers(chain)
        if not upper:
            return (Mount(kind="bind", target="/", source=tree, read_only=True),)
        if not os.listdir(upper):
            self._copy_tree(tree, upper)
        return (Mount(kind="bind", target="/", source=upper),)
