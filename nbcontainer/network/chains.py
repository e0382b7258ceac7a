"""What other tables of this machine's packet filter say of packets that are passed on: read, never changed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass

from nbcontainer.network.programs import found

__all__ = ["ForwardChain", "forward_chains", "read_chains"]

_PATIENCE = 20.0
_OURS = "nbcontainer-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardChain:
    """A chain that sees what is passed on; with `drops` it passes nothing on that no rule of its own accepts."""

    table: str
    name: str
    drops: bool


def read_chains(listing: str) -> tuple[ForwardChain, ...]:
    """The chains of others among those that ``nft list chains`` lists."""
    table = chain = ""
    chains = []
    for line in listing.splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"] and len(words) > 1:
            chain = words[1]
        elif "hook" in words[:-1] and words[words.index("hook") + 1] == "forward" and _OURS not in table:
            drops = "policy" in words[:-1] and words[words.index("policy") + 1].startswith("drop")
            chains.append(ForwardChain(table=table, name=chain, drops=drops))
    return tuple(chains)


def forward_chains() -> tuple[ForwardChain, ...] | None:
    """Those of this machine; None where they cannot be read. Takes root."""
    program = found("nft")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "list", "chains"], capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return None if done.returncode else read_chains(done.stdout)
