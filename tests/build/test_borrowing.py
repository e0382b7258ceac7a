"""Sources of borrowed steps: what is passed over is let go of too."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from nbcontainer.build.borrowing import BorrowedSteps
from nbcontainer.build.claims import FIELD
from nbcontainer.build.request import CacheSource
from nbcontainer.errors import CorruptContent
from nbcontainer.images.lent import LentImage
from nbcontainer.model import Digest, ImageConfig
from nbcontainer.store import ContentStore
from nbcontainer.testing.images import build_image, tiny_layer

if TYPE_CHECKING:
    from pathlib import Path

_KEY = Digest.of(b"key")


def test_a_source_that_turns_out_useless_is_closed(tmp_path: Path) -> None:
    """It is told of once and asked no more, and closed at the end, not before: another stage may still read of it."""
    image = build_image([tiny_layer({"a": b"1"})])
    step = {"key": str(_KEY), "layer": 0, "created": "2026-01-02T03:04:05Z"}
    config = {**json.loads(image.blobs[image.manifest.config.digest]), FIELD: {"steps": [step]}}
    data = json.dumps(config).encode()
    told: list[str] = []
    done: list[str] = []

    def bring(*_: Any) -> None:
        raise CorruptContent("its bytes are others")

    def opened(_: CacheSource) -> LentImage:
        undo = ExitStack()
        undo.callback(done.append, "closed")
        return LentImage(
            manifest=image.manifest,
            config=ImageConfig.from_json(data),
            config_bytes=data,
            content=ContentStore(str(tmp_path)),
            bring=bring,
            undo=undo,
        )

    steps = BorrowedSteps(
        [CacheSource(kind="local", place="p")],
        workshop=None,  # type: ignore[arg-type]  # not asked: no layer comes this far
        open_source=opened,
        check=lambda: None,
        notice=told.append,
    )
    for _ in range(2):
        assert steps.find(_KEY, None, None) is None
    assert told == ["--cache-from p cannot be used, so its steps are made here: its bytes are others"]
    assert done == []
    for _ in range(2):
        steps.close()
    assert done == ["closed"]
