"""What a build needs of the engine, as a protocol: base images, containers for RUN, and the parts of the store.

The engine implements it (`nbcontainer.engine.workshop`); nothing here knows of sessions or records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from nbcontainer.build.request import CacheSource
    from nbcontainer.images.image import Image
    from nbcontainer.images.lent import LentImage
    from nbcontainer.images.unpack import Helper
    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.model import Digest, ExitReason, Listener, Mount, MountedFile, Platform
    from nbcontainer.registry import Interrupt
    from nbcontainer.store import ContentStore, RefStore

__all__ = ["Job", "Ran", "Workshop"]

Output = Literal["stdout", "stderr"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One RUN, decided: on which files it starts, and everything its command finds around it.

    `chain` are the files; None for a stage that has none. `stubs` are where things are mounted.
    """

    title: str
    chain: Digest | None
    argv: tuple[str, ...]
    environment: tuple[str, ...]
    directory: str
    user: str
    network: str
    hosts: tuple[str, ...] = ()
    script: bytes | None = None
    mounts: tuple[Mount, ...] = ()
    files: tuple[MountedFile, ...] = ()

    @property
    def stubs(self) -> tuple[str, ...]:
        """The targets of everything that is mounted into the stage's root."""
        return (*(mount.target for mount in self.mounts), *(file.target for file in self.files))


class Ran(Protocol):
    """A RUN that has ended; what it wrote is there until the context ends."""

    @property
    def exit_code(self) -> int:
        """The command's code, or docker's for what was not its own end."""

    @property
    def reason(self) -> ExitReason:
        """How it ended."""

    @property
    def detail(self) -> str:
        """A sentence about an end that was not an exit, or ""."""

    @property
    def written(self) -> dict[str, Any] | None:
        """``upper`` and ``lower`` as tasks find them; None when nothing was written."""


class Workshop(Protocol):
    """The engine, as a build sees it."""

    @property
    def content(self) -> ContentStore:
        """The blobs."""

    @property
    def refs(self) -> RefStore:
        """The names of images."""

    @property
    def snapshots(self) -> Snapshotter:
        """The unpacked layers."""

    @property
    def helper(self) -> Helper:
        """Runs functions of `nbcontainer.build.landing` and of `nbcontainer.layers.apply` as container root."""

    @property
    def owners(self) -> bool:
        """Whether files can belong to more than one id."""

    @property
    def no_bridge(self) -> str:
        """Why a RUN cannot have the network ``bridge``, as a sentence without its end; "" when it can."""

    @property
    def folder(self) -> str:
        """Where builds keep what they keep: a folder of the store that container root may walk through."""

    def image(self, name: str, platform: str, *, fresh: bool, listener: Listener) -> Image:
        """An image to build upon, unpacked; `fresh` asks the registry even when it is here."""

    def lent(
        self, source: CacheSource, platform: Platform, *, fresh: bool, interrupt: Interrupt, listener: Listener
    ) -> LentImage:
        """An image that steps may be borrowed of; with `fresh` the registry is asked even when it is here."""

    def run(self, job: Job, output: Callable[[Output, bytes], None]) -> AbstractContextManager[Ran]:
        """Run a job to its end. Raises `ContainerStartError` when it cannot be started."""

    def view(self, root: Sequence[Mount]) -> list[dict[str, Any]]:
        """The steps by which a task mounts files (see `nbcontainer.runtime.child.views`)."""

    def open_socket_to(self, path: str, *, mode: int, uid: int, gid: int) -> AbstractContextManager[str]:
        """A socket of a container's user that leads to the socket `path` of the person's, for the length of a block."""

    def discard(self, path: str) -> None:
        """Remove a folder below `folder`, whoever owns its files."""

    def stop(self, number: int) -> None:
        """Send a signal to every job that runs; SIGKILL ends all of it."""
