"""Snapshots as overlayfs lowers: each holds only its own layer, and the kernel merges them at mount time.

Mounted in the user namespace with ``userxattr``, ``index=off``, ``redirect_dir=off``; `apply` writes the whiteouts
and opaque marks that this needs (Linux 5.11).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbcontainer.layers.snapshotter import SnapshotDirectory
from nbcontainer.model import Mount

if TYPE_CHECKING:
    from nbcontainer.model import Digest

__all__ = ["OverlaySnapshotter"]


class OverlaySnapshotter(SnapshotDirectory):
    """The default: nothing is copied, however many containers use an image."""

    def mounts(self, chain: Digest, *, upper: str = "", work: str = "") -> tuple[Mount, ...]:
        """One overlay mount; without `upper` a read-only view."""
        lower = self.lowers(chain)
        return (Mount(kind="overlay", target="/", lower=lower, upper=upper, work=work, read_only=not upper),)
