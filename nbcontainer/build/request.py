"""A build as it was asked for, and what came of it: frozen values, in docker's words.

Every door and every engine imports this, also one that never builds; so nothing that builds is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.build.stage import StageState
    from nbcontainer.model import Digest, Mount

__all__ = [
    "BuildNetwork",
    "BuildOptions",
    "BuildOutput",
    "BuiltStage",
    "CacheSource",
    "ContextSource",
    "FailedStep",
]

BuildNetwork = Literal["default", "none", "host", "bridge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSource:
    """What was asked for: a `folder`, an open `archive`, or neither; `files` are put over it, by name."""

    folder: str = ""
    archive: BinaryIO | None = field(default=None, compare=False)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOutput:
    """Where a result goes beside the store: ``local`` a folder, ``tar`` its files, ``oci`` an image archive."""

    kind: Literal["local", "tar", "oci"]
    destination: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSource:
    """An image whose record of steps is believed.

    By name (``registry`` when one that is here does not count), or ``local`` by the path of an OCI layout: a folder, or
    an archive as ``--output type=oci`` writes it.
    """

    kind: Literal["image", "registry", "local"]
    place: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a person may ask of a build; empty means docker's default.

    `dockerfile` is its text, or None to read `dockerfile_name` in the context. `secrets` are values by id, `agents` are
    sockets of ssh agents by id, `hosts` lines for ``/etc/hosts``. `epoch` is SOURCE_DATE_EPOCH in seconds. With
    `inline_cache` the image tells its steps, for the `cache_from` of later builds.
    """

    context: ContextSource = field(default_factory=ContextSource)
    dockerfile: bytes | None = None
    dockerfile_name: str = ""
    tags: tuple[str, ...] = ()
    target: str = ""
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    platform: str = ""
    network: BuildNetwork = "default"
    pull: bool = False
    no_cache: bool = False
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    agents: Mapping[str, str] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    epoch: int | None = None
    outputs: tuple[BuildOutput, ...] = ()
    cache_from: tuple[CacheSource, ...] = ()
    inline_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltStage:
    """The stage that was asked for, built. `cached` of its `steps` were known already."""

    state: StageState
    steps: int
    cached: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedStep:
    """The RUN that ended a build, with what is needed to stand where it stood.

    `before` and `after` are the files it started from and what it made of them, as chain ids. `variables` are what its
    command saw; secrets are not among them.
    """

    text: str
    line: int
    stage: str
    code: int
    before: Digest
    after: Digest
    variables: tuple[str, ...]
    directory: str
    user: str
    network: str
    command: tuple[str, ...]
    mounts: tuple[str, ...] = ()
    shown: tuple[Mount, ...] = ()
    """What was mounted, as far as it can be again."""
    moment: float = 0.0
