"""``build``: a Dockerfile and a context become an image; and what a failed build leaves to look at.

The store's lock is held shared from the first step to the last name, so that no collection takes away a layer that
nothing names yet. What the build cache remembers stays until a prune.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Literal

from nbcontainer.build.cache import BuildCache
from nbcontainer.build.claims import with_claims
from nbcontainer.build.context import opened
from nbcontainer.build.executor import Executor
from nbcontainer.build.failure import FailedStepStore
from nbcontainer.build.making import Maker
from nbcontainer.build.outputs import aside, checked_tags, named_image, write_archive, write_folder
from nbcontainer.build.scratch import Scratch
from nbcontainer.dockerfile.lint import lint
from nbcontainer.dockerfile.parser import parse
from nbcontainer.engine.workshop import EngineWorkshop
from nbcontainer.errors import InvalidInput, NbcontainerError, NotFound
from nbcontainer.images.committing import checked_config
from nbcontainer.model import BuildWarning, ImageConfig, Platform
from nbcontainer.store import Lease

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.build.context import Context
    from nbcontainer.build.request import BuildOptions, BuiltStage, FailedStep
    from nbcontainer.dockerfile.parser import Dockerfile
    from nbcontainer.engine.session import Session
    from nbcontainer.images.image import Image
    from nbcontainer.model import Digest, Listener, Mount

__all__ = ["build", "build_lease", "clear_build_cache", "failed_config", "failed_mounts", "failed_step"]

_TRUE = frozenset({"1", "t", "T", "true", "True", "TRUE"})
"""As Go reads a boolean, which is what docker does with the build argument."""


def _folder(session: Session) -> str:
    return os.path.join(session.settings.root, "build")


def build_lease(session: Session) -> Lease:
    """What the build cache and the failed step need of the store."""
    folder = _folder(session)
    cached = BuildCache(folder, session.content, session.snapshots).lease()
    failed = FailedStepStore(folder).lease()
    return Lease(blobs=cached.blobs, snapshots=cached.snapshots | failed.snapshots)


def build(
    session: Session,
    options: BuildOptions,
    pull: Callable[[str, str, Literal["always", "missing"], Listener], Image],
    listener: Listener,
) -> tuple[Image, BuiltStage]:
    """Build an image and name it; see `Engine.build`. The caller holds the store's lock shared."""
    names = checked_tags(options.tags)
    failures = FailedStepStore(_folder(session))
    failures.forget()
    with contextlib.suppress(NbcontainerError):  # what a killed build has half unpacked; else the next one
        session.snapshots.reap()
    scratch = Scratch(_folder(session))
    scratch.sweep()
    with opened(options.context, scratch) as whole, EngineWorkshop(session, pull) as workshop:
        dockerfile, context = _read(options, whole)
        _warn(dockerfile, context, listener)
        cache = BuildCache(workshop.folder, session.content, session.snapshots)
        maker = Maker(workshop, epoch=options.epoch)
        executor = Executor(
            workshop,
            options,
            context,
            maker=maker,
            cache=cache,
            grace=session.settings.interrupt_grace,
            listener=listener,
        )
        try:
            with contextlib.closing(executor.borrowed):
                built = executor.run(dockerfile)
        finally:
            if executor.failed is not None:
                failures.put(executor.failed)
        state = built.state
        if options.labels:
            state = state.setting(Labels={**(state.options.get("Labels") or {}), **options.labels})
        if options.inline_cache or options.arguments.get("BUILDKIT_INLINE_CACHE") in _TRUE:
            state = with_claims(state)
        checked_config(state.config())
        image = named_image(workshop, state, names)
        for output in options.outputs:
            if output.kind == "oci":
                with aside(output.destination) as file:
                    write_archive(workshop, image, names, file)
            else:
                _export(maker, state.chain, output.kind, output.destination)
        return image, built


def _read(options: BuildOptions, whole: Context) -> tuple[Dockerfile, Context]:
    """The Dockerfile, from wherever it is, and the context without what is to be left out."""
    if options.dockerfile is not None:
        return parse(options.dockerfile), whole.ignoring("")
    name = options.dockerfile_name
    path = os.path.abspath(os.path.expanduser(name)) if name else ""
    folder = os.path.abspath(os.path.expanduser(options.context.folder)) if options.context.folder else ""
    if name and (not folder or not f"{path}/".startswith(f"{folder}/")):
        inside = os.path.join(folder, name) if folder else ""
        if not (inside and os.path.lexists(inside)):  # outside of the context: the person's own file
            return parse(_file(path, name)), _beside(path, whole)
    elif name:
        name = os.path.relpath(path, folder)
        if not os.path.lexists(path) and os.path.lexists(os.path.join(folder, options.dockerfile_name)):
            name = options.dockerfile_name
    text, found = whole.dockerfile(name)
    return parse(text), whole.ignoring(found)


def _file(path: str, name: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as problem:
        raise NotFound(f"the Dockerfile {name} cannot be read: {problem.strerror}") from problem


def _beside(path: str, whole: Context) -> Context:
    """A list of what to leave out may lie beside a Dockerfile outside of the context."""
    with contextlib.suppress(OSError), open(f"{path}.dockerignore", "rb") as file:
        return whole.leaving_out(file.read())
    return whole.ignoring("")


def _warn(dockerfile: Dockerfile, context: Context, listener: Listener) -> None:
    """Tell what the checks have to say; an error when the Dockerfile wants it so."""
    report = lint(dockerfile, ignore=context.tree.ignore)
    for finding in report.findings:
        listener(BuildWarning(check=finding.check, text=finding.message, line=finding.origin.first))
    if report.fatal:
        raise report.findings[0].fatal()


def _export(maker: Maker, chain: Digest | None, kind: str, destination: str) -> None:
    def export(fd: int) -> None:
        with os.fdopen(os.dup(fd), "wb") as file:
            maker.streamed("export", {"view": maker.view(chain), "latest": maker.latest}, file.write)

    if chain is None:
        raise InvalidInput("the stage has no files, so there is nothing to put out")
    if kind == "local":
        write_folder(destination, export)
        return
    with aside(destination) as file:
        maker.streamed("export", {"view": maker.view(chain), "latest": maker.latest}, file.write)


# --- afterwards -----------------------------------------------------------------------------------------------------


def failed_step(session: Session) -> FailedStep:
    """The step at which the last build ended; raise `NotFound` when it did not."""
    step = FailedStepStore(_folder(session)).get()
    if step is None or not session.snapshots.has(step.after):
        raise NotFound(
            "no failed step is kept: the last build of this store did not fail at a RUN, or a prune has removed it"
        )
    return step


def failed_config(step: FailedStep) -> ImageConfig:
    """What a container in the state of a failed step is run with."""
    return ImageConfig(
        platform=Platform.host(),
        environment=step.variables,
        user=step.user,
        working_directory=step.directory,
        command=("/bin/sh",),
    )


def failed_mounts(session: Session, step: FailedStep) -> tuple[Mount, ...]:
    """The mounts of a failed step that are still there to be shown; they all lie in the store."""
    root = f"{session.settings.root}/"
    found = []
    for mount in step.shown:
        places = (mount.source, *mount.lower) if mount.kind in {"bind", "overlay"} else ()
        if all(not place or (place.startswith(root) and os.path.lexists(place)) for place in places):
            found.append(mount)
    return tuple(found)


def clear_build_cache(session: Session, *, unused_for: float | None) -> int:
    """Forget what builds remember: the cache, the failed step, and the folders of cache mounts; say how many steps.

    With `unused_for` seconds only the steps that were of no use for that long. The caller holds the store's lock alone.
    """
    folder = _folder(session)
    since = None if unused_for is None else time.time() - unused_for
    count = BuildCache(folder, session.content, session.snapshots).clear(unused_since=since)
    if unused_for is None:
        FailedStepStore(folder).forget()
        mounts = os.path.join(folder, "mounts")
        for name in os.listdir(mounts):
            with contextlib.suppress(NbcontainerError, OSError):
                session.discard(os.path.join(mounts, name))
        shutil.rmtree(os.path.join(folder, "locks"), ignore_errors=True)
    return count
