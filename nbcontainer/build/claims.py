"""What an image says of its own layers: the key of the step that made each. Pure.

This is the cache inside of an image (docker's *inline* cache): whoever builds with ``--cache-from`` it takes the layer
of a step with the same key and does not make it. BuildKit keeps such a record in a config's field
``moby.buildkit.cache.v0``, in keys of its own graph that mean nothing here; ours has a field of its own:

    "nbcontainer.cache.v1": {"steps": [{"key": "sha256:…", "layer": 3, "created": "2026-01-01T00:00:00Z"}]}

``layer`` counts the image's layers from 0, so an image can speak for its own layers only. A claim is believed by
those who asked for that image as a cache and by nobody else: it never gets into a store's own cache, and an image
built upon does not hand it on.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidDigest, InvalidImage
from nbcontainer.model import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.build.stage import StageState

__all__ = ["FIELD", "Claim", "claims_in", "with_claims"]

FIELD = "nbcontainer.cache.v1"
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", re.ASCII)
"""As `nbcontainer.build.making` writes it. It goes into the history of what is built, where docker parses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The step named `key` has made the image's layer of that number, at the moment `created`."""

    key: Digest
    layer: int
    created: str


def with_claims(state: StageState) -> StageState:
    """The stage whose config says of each layer made of a Dockerfile by which step."""
    steps = [
        {"key": str(made.key), "layer": number, "created": made.created}
        for number, made in enumerate(state.steps)
        if made is not None
    ]
    return replace(state, document={**state.document, FIELD: {"steps": steps}})


def claims_in(config: bytes, *, layers: int) -> Mapping[Digest, Claim]:
    """The claims in the config of an image of so many layers; none when it has no record.

    Raises `InvalidImage` for a record that is not what its field promises: then nothing of it is believed.
    """
    try:
        document = json.loads(config)
    except (ValueError, RecursionError) as problem:
        raise InvalidImage("its config is no JSON") from problem
    record = document.get(FIELD) if isinstance(document, dict) else None
    if record is None:
        return {}
    try:
        claims = [_claim(step, layers) for step in record["steps"]]
    except (KeyError, TypeError, ValueError, AttributeError, InvalidDigest) as problem:
        raise InvalidImage(f"its record of steps ({FIELD}) cannot be read") from problem
    return {claim.key: claim for claim in claims}


def _claim(step: Mapping[str, Any], layers: int) -> Claim:
    number, created = step["layer"], step["created"]
    if type(number) is not int or not 0 <= number < layers or not _MOMENT.fullmatch(created):
        raise ValueError(step)
    datetime.fromisoformat(created.replace("Z", "+00:00"))
    return Claim(key=Digest.parse(step["key"]), layer=number, created=created)
