"""Id maps of a user namespace: which ids inside are which ids outside.

Source: user_namespaces(7), "User and group ID mappings".
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["IdMap", "IdRange"]


@dataclass(frozen=True, slots=True, order=True)
class IdRange:
    """`length` ids starting at `inside` are those starting at `outside` in the parent namespace."""

    inside: int
    outside: int
    length: int

    def __str__(self) -> str:
        return f"{self.inside} {self.outside} {self.length}"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """The uid and gid maps of a namespace, and how they may be written.

    `privileged`: by us, being root. `helpers`: by newuidmap/newgidmap, from /etc/subuid and /etc/subgid.
    `direct`: by us, being root that may not mount, as in an outer container; container root is ourselves, as a user's.
    `single`: one id only, by ourselves, with setgroups denied: owners cannot be kept apart inside.
    """

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    method: str

    @property
    def single(self) -> bool:
        """True when container root is the only id there is."""
        return self.method == "single"

    @property
    def key(self) -> str:
        """A short name, safe in a path: files written under one map mean nothing under another."""
        return "-".join(f"{r.outside}.{r.length}" for r in (*self.uids, *self.gids))

    def holds_gid(self, gid: int) -> bool:
        """Whether `gid` exists inside the namespace."""
        return any(r.inside <= gid < r.inside + r.length for r in self.gids)
