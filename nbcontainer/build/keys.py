"""The name of a step: everything that has a say in what it makes, and nothing else. Pure.

In a key are the files that a step starts from (their chain id, so what was rebuilt to the same bytes counts as the
same), what it does as expanded, its environment, and the contents that it copies. Not in it: times, host names,
display, where files lay, secrets, proxies that were not declared, and the order in which options were typed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nbcontainer.model import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["step_key"]

_VERSION = 1
"""Raised when the same step would come out differently than before."""


def step_key(kind: str, parent: Digest | None, **parts: Any) -> Digest:
    """The key of a step of `kind` on the files `parent`; `parts` are plain values."""
    document: Mapping[str, Any] = {"version": _VERSION, "kind": kind, "parent": str(parent or ""), **parts}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return Digest.of(text.encode("ascii"))
