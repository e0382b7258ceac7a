"""The step at which the last build ended, kept until the next build or a prune: files as a lease, the rest as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from typing import Any

from nbcontainer.build.request import FailedStep
from nbcontainer.model import Digest, Mount
from nbcontainer.store import Lease
from nbcontainer.store.faults import storage_faults

__all__ = ["FailedStepStore"]

_LONGEST = 4 << 20


class FailedStepStore:
    """At most one failed step of a store."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "failed.json")

    def put(self, step: FailedStep) -> None:
        """Keep a step instead of the one before."""
        fields = {**dataclasses.asdict(step), "before": str(step.before), "after": str(step.after)}
        folder = os.path.dirname(self._path)
        with (
            storage_faults("keep a failed build step", self._path),
            tempfile.NamedTemporaryFile("w", dir=folder, prefix=".", suffix=".tmp", delete=False) as aside,
        ):
            try:
                json.dump(fields, aside)
                aside.flush()
                os.rename(aside.name, self._path)
            except BaseException:
                os.unlink(aside.name)
                raise

    def get(self) -> FailedStep | None:
        """The step, or None when there is none that can be read."""
        try:
            with open(self._path, "rb") as file:
                fields: dict[str, Any] = json.loads(file.read(_LONGEST))
            return FailedStep(
                **{
                    **fields,
                    "before": Digest.parse(fields["before"]),
                    "after": Digest.parse(fields["after"]),
                    "variables": tuple(fields["variables"]),
                    "command": tuple(fields["command"]),
                    "mounts": tuple(fields["mounts"]),
                    "shown": tuple(Mount(**{**each, "lower": tuple(each["lower"])}) for each in fields["shown"]),
                }
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def forget(self) -> None:
        """Let it go; safe twice."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def lease(self) -> Lease:
        """The files that must stay for it."""
        step = self.get()
        return Lease() if step is None else Lease(snapshots=frozenset({step.before, step.after}))
