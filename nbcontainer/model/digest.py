"""Content digests: ``algorithm:hex``, validated before one ever becomes a path or a request.

Source: OCI image-spec, descriptor.md, section "Digests". Only the registered algorithms are accepted:
an unknown one could not be verified, and what cannot be verified is not stored.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidDigest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Digest", "chain_id", "chain_ids"]

_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A validated content digest; ``str(digest)`` is the usual ``sha256:…`` form."""

    algorithm: str
    hex: str

    def __post_init__(self) -> None:
        length = _HEX_LENGTH.get(self.algorithm)
        if length is None:
            known = ", ".join(_HEX_LENGTH)
            raise InvalidDigest(f"digest algorithm {self.algorithm!r} is not supported; use one of {known}")
        if len(self.hex) != length or not _HEX.fullmatch(self.hex):
            shown = self.hex if len(self.hex) <= 80 else f"{self.hex[:77]}..."
            raise InvalidDigest(f"{self.algorithm} digest {shown!r} is not {length} lower-case hex digits")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<hex>``; raise `InvalidDigest` for anything else."""
        algorithm, colon, hexadecimal = text.partition(":")
        if not colon:
            raise InvalidDigest(f"digest {text[:80]!r} has no algorithm; write it as sha256:<64 hex digits>")
        return cls(algorithm, hexadecimal)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        """The digest of bytes already in memory."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    @property
    def short(self) -> str:
        """The first twelve hex digits, as docker shows ids."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


@functools.lru_cache(maxsize=1024)
def chain_id(parent: Digest | None, diff_id: Digest) -> Digest:
    """The name of a layer applied on `parent` (OCI image-spec config.md, "Layer ChainID").

    Remembered, because a build asks for all of a stage's at each of its steps.
    """
    if parent is None:
        return diff_id
    return Digest.of(f"{parent} {diff_id}".encode())


def chain_ids(diff_ids: Iterable[Digest]) -> tuple[Digest, ...]:
    """The chain id after each layer, bottom first."""
    chain: list[Digest] = []
    for diff_id in diff_ids:
        chain.append(chain_id(chain[-1] if chain else None, diff_id))
    return tuple(chain)
