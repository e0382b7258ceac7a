"""The failed step that is kept: comes back as it was, is replaced, forgotten, and never read wrongly."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build.failure import FailedStepStore
from nbcontainer.build.request import FailedStep
from nbcontainer.model import Digest, Mount
from nbcontainer.store import Lease

if TYPE_CHECKING:
    from pathlib import Path

STEP = FailedStep(
    text="RUN false",
    line=7,
    stage="app",
    code=3,
    before=Digest.of(b"before"),
    after=Digest.of(b"after"),
    variables=("A=b", "C=\udcff"),
    directory="/work",
    user="me",
    network="none",
    command=("/bin/sh", "-c", "false"),
    mounts=("tmpfs at /x",),
    shown=(
        Mount(kind="tmpfs", target="/x", size=5),
        Mount(kind="overlay", target="/y", lower=("/a", "/b"), read_only=True),
    ),
    moment=1.5,
)


@pytest.fixture
def store(tmp_path: Path) -> FailedStepStore:
    """Lend an empty one."""
    return FailedStepStore(str(tmp_path))


def test_kept(store: FailedStepStore, tmp_path: Path) -> None:
    """A step comes back equal, in another session, too, and nobody else may read it."""
    assert store.get() is None
    store.put(STEP)
    assert store.get() == STEP
    assert FailedStepStore(str(tmp_path)).get() == STEP
    (name,) = os.listdir(tmp_path)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_the_last_one_counts(store: FailedStepStore) -> None:
    """A step replaces the one before; forgetting is safe twice."""
    store.put(STEP)
    store.put(replace(STEP, code=4))
    found = store.get()
    assert found is not None
    assert found.code == 4
    store.forget()
    store.forget()
    assert store.get() is None
    assert store.lease() == Lease()


def test_lease(store: FailedStepStore) -> None:
    """The files before and after are held."""
    store.put(STEP)
    assert store.lease() == Lease(snapshots=frozenset({STEP.before, STEP.after}))


def test_broken(store: FailedStepStore, tmp_path: Path) -> None:
    """What cannot be read, or has another form, is no step."""
    store.put(STEP)
    path = tmp_path / "failed.json"
    whole = path.read_bytes()
    fields = json.loads(whole)
    for data in (
        b"", whole[:-1], whole[: len(whole) // 2], b"[]", b"null", b"5", b"\xff", b"[" * 100_000,
        json.dumps({**fields, "before": "sha256:../x"}).encode(), json.dumps({**fields, "before": 5}).encode(),
        json.dumps({**fields, "more": 1}).encode(), json.dumps({**fields, "shown": [5]}).encode(),
        json.dumps({**fields, "shown": [{"kind": "bind"}]}).encode(), json.dumps({**fields, "variables": 5}).encode(),
    ):  # fmt: skip
        path.write_bytes(data)
        assert store.get() is None, data
        assert store.lease() == Lease()
