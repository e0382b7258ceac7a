r"""The engine: the one facade that composes registry, store, layers and runtime.

>>> with Engine() as engine:                                    # doctest: +SKIP
...     engine.run("debian", ["echo", "hi"]).stdout
'hi\\n'

Nothing is started before it is needed: listing images starts no launcher, running a local image opens no connection.
One engine may be used from several threads; several engines, in several processes, may share one store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform as host_platform
import signal
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from nbcontainer.engine import files, host_image, resources
from nbcontainer.engine.attending import Input, OutputSink
from nbcontainer.engine.command_line import nearest
from nbcontainer.engine.commit import commit
from nbcontainer.engine.disk import disk_usage, tree_size
from nbcontainer.engine.executing import ExecRequest, execute
from nbcontainer.engine.filters import Filter, created_before, has_labels
from nbcontainer.engine.lifecycle import Lifecycle
from nbcontainer.engine.logs import last_lines, read_log, within
from nbcontainer.engine.networking import new_network
from nbcontainer.engine.records import Stored
from nbcontainer.engine.results import bad_end
from nbcontainer.engine.running import Placed, RunRequest, Subject, carry_out, place, place_again
from nbcontainer.engine.service import plain_service
from nbcontainer.engine.session import Session
from nbcontainer.engine.settings import Settings
from nbcontainer.engine.views import (
    BuiltImage,
    Change,
    CommittedImage,
    ContainerDetail,
    ContainerProcess,
    ContainerSummary,
    ContainerUsage,
    CopyResult,
    DiskUsage,
    HistoryLine,
    ImageDetail,
    ImageSummary,
    Info,
    LogLine,
    NetworkSummary,
    Pruned,
    RemovedImage,
    Version,
    VolumeSummary,
)
from nbcontainer.engine.volume_use import anonymous_of
from nbcontainer.errors import (
    Conflict,
    ContainerNotFound,
    Denied,
    ImageNotFound,
    InvalidInput,
    InvalidOption,
    InvalidReference,
    NotFound,
    RegistryUnreachable,
    UnsupportedHost,
    VolumeNotFound,
)
from nbcontainer.images.library import unix_time
from nbcontainer.model import (
    Digest,
    ExecOptions,
    Limits,
    Listener,
    Platform,
    PullPolicy,
    Reference,
    RunOptions,
    RunResult,
    ServiceOptions,
    ignore,
)
from nbcontainer.model.network import Endpoint, NetworkOptions, PortMapping
from nbcontainer.store import lock_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from nbcontainer.build.request import BuildOptions, FailedStep
    from nbcontainer.engine.doctor import DoctorReport
    from nbcontainer.engine.door import FailedState
    from nbcontainer.engine.networking import Networks
    from nbcontainer.engine.records import ContainerRecords, Record
    from nbcontainer.images.image import Image
    from nbcontainer.images.library import Library
    from nbcontainer.runtime.inputs import Source
    from nbcontainer.store import Volume

__all__ = ["Engine", "OutputSink"]

_NO_SUCH_IMAGE = (Denied, ImageNotFound, RegistryUnreachable)
"""How registries, and machines without one, answer to the name of an image that is none."""
_REMOVAL_PATIENCE = 2.0
"""Seconds a removal waits for builds and pulls to end before it takes only names away."""


class Engine:
    """Images and containers of one store."""

    def __init__(self, settings: Settings | None = None) -> None:
        chosen = settings or Settings.from_environment()
        self.settings = dataclasses.replace(chosen, root=os.path.abspath(os.path.expanduser(chosen.root)))
        self._lock = threading.RLock()
        self._session: Session | None = None

    # --- images -----------------------------------------------------------------------------------------------------

    def pull(
        self, image: str, *, platform: str = "", policy: PullPolicy = "always", listener: Listener = ignore
    ) -> ImageSummary:
        """Fetch an image from its registry and unpack it, or find that it is here; `platform` as in ``linux/arm64``.

        Raises `ImageNotFound`, `Denied`, a `RemoteError`, `CorruptContent`, `InvalidImage` or `StorageError`.
        """
        if image == host_image.HOST_IMAGE:
            return self._host_summary()
        return self._summary(self._pulled(image, platform, policy, listener))

    def images(self) -> tuple[ImageSummary, ...]:
        """Every named image of the store, and the embedded ``host``."""
        used = self._chains_in_use()
        return (self._host_summary(), *(self._summary(image, used) for image in self._library.walk()))

    def inspect_image(self, image: str) -> ImageDetail:
        """Everything known of a local image."""
        if image == host_image.HOST_IMAGE:
            config = host_image.host_config(os.environ, "/")
            return ImageDetail(summary=self._host_summary(), references=(image,), config=config, layers=())
        found = self._local(image)
        names = [record.reference.familiar for record in self._library.refs.list() if record.id == found.record.id]
        return ImageDetail(
            summary=self._summary(found),
            references=tuple(names),
            config=found.config,
            layers=found.manifest.layers,
        )

    def inspect(self, name: str) -> ImageDetail | ContainerDetail | VolumeSummary:
        """A container, an image or a volume, whichever `name` is; in this order, as in docker."""
        try:
            stored = self._records.find(name)
        except (ContainerNotFound, InvalidReference):
            pass
        else:
            return ContainerDetail(summary=stored.summary(), record=dict(stored.fields))
        try:
            return self.inspect_image(name)
        except NotFound as problem:
            with contextlib.suppress(VolumeNotFound):
                return self.inspect_volume(name)
            raise NotFound(
                f"no container, image or volume {name!r} here; `%container ps -a`, `%container images` and"
                " `%container volume ls` list what there is"
            ) from problem

    def history(self, image: str) -> tuple[HistoryLine, ...]:
        """How an image came to be, newest first."""
        if image == host_image.HOST_IMAGE:
            raise InvalidInput("the host image is this machine's own root; it has no layers and no history")
        found = self._local(image)
        layers = iter(found.manifest.layers)
        lines = []
        for entry in found.config.history:
            layer = None if entry.empty_layer else next(layers, None)
            lines.append(
                HistoryLine(entry=entry, layer=layer.digest if layer else None, size=layer.size if layer else 0)
            )
        return tuple(reversed(lines))

    def tag(self, image: str, name: str) -> ImageSummary:
        """Give a local image another name; what that name meant before keeps its content until `rmi`."""
        reference = Reference.parse(name)
        if reference.digest is not None:
            raise InvalidReference(f"{name!r} has a digest; a new name is NAME[:TAG]")
        if host_image.HOST_IMAGE in (name, image):
            raise InvalidReference(
                "'host' is the embedded image, this machine's own root; it cannot be tagged or replaced"
            )
        with lock_store(self.settings.root, shared=True):
            found = self._local(image)
            record = dataclasses.replace(found.record, reference=reference)
            self._library.refs.put(record)
        return self._summary(dataclasses.replace(found, record=record))

    def remove_image(self, image: str, *, force: bool = False) -> RemovedImage:
        """Take a name away; with the last one go the content and the layers that nothing else needs.

        An image id takes all its names away, if `force` or there is only one. Raises `Conflict` when a container uses
        it. A build or pull may go on for minutes and nothing can be collected meanwhile: then only the names go.
        """
        from nbcontainer.engine import building

        if image == host_image.HOST_IMAGE:
            raise InvalidInput("the host image is this machine's own root; there is nothing to remove")
        session = self._connect()
        lock = lock_store(self.settings.root, shared=False, timeout=_REMOVAL_PATIENCE)
        try:
            lock.acquire()
        except Conflict:
            with lock_store(self.settings.root, shared=True):
                removal = self._library.untag(image, force=force, used=self._chains_in_use())
            return RemovedImage(untagged=removal.untagged, deleted=(), freed=0, deferred=bool(removal.deleted))
        try:
            lease = building.build_lease(session)
            removal = self._library.remove(image, force=force, used=self._chains_in_use(), lease=lease)
        finally:
            lock.release()
        return RemovedImage(untagged=removal.untagged, deleted=removal.deleted, freed=removal.freed)

    # --- containers -------------------------------------------------------------------------------------------------

    def run(
        self,
        image: str,
        argv: Sequence[str] = (),
        *,
        options: RunOptions | None = None,
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        stdin: Input = None,
        output: OutputSink | None = None,
        listener: Listener = ignore,
        check: bool = False,
        failed: FailedState = "",
    ) -> RunResult:
        """Run a command, or the text of a cell, in a fresh container of `image` and wait for its end.

        `argv` replaces the image's command; `script` is run by its ``#!`` line, by `shell` or by ``/bin/sh``. `stdin`
        is fed to it: bytes, an open file that it reads itself, a `Source` or `Asking` (`nbcontainer.runtime.inputs`).
        Where the options give it a terminal, that can only be a `Source`, typed on it. With `output` the result keeps
        only the last 64 KiB of each stream. Ctrl-C ends every process of the container. With `check` a bad end raises
        `ContainerExit` (or its children `ContainerTimeout`, `ContainerInterrupted`); a container that cannot start
        always raises `ContainerStartError`. With `failed` it runs where the failed step of the last build stood, before
        or after it, and `image` says nothing.
        """
        request = _request(image, argv, options or RunOptions(), script, shell, stdin=stdin, output=output)
        session = self._connect()
        request, placed = self._placed(session, request, listener, failed)
        return self._carried_out(session, request, placed, check=check)

    def _placed(
        self, session: Session, request: RunRequest, listener: Listener, failed: FailedState
    ) -> tuple[RunRequest, Placed]:
        options = request.options
        with lock_store(self.settings.root, shared=True):
            subject = self._failed_subject(failed) if failed else self._subject(request.image, options, listener)
            if failed and options.network is None:
                request = dataclasses.replace(
                    request, options=dataclasses.replace(options, network=self.failed_step().network)
                )
            request = self._with_network(session, request)
            return request, place(session, request, subject)

    @staticmethod
    def _with_network(session: Session, request: RunRequest) -> RunRequest:
        """The request with the default network where none was asked for."""
        if request.options.network:
            return request
        options = dataclasses.replace(request.options, network=session.networks.default)
        return dataclasses.replace(request, options=options)

    def _carried_out(self, session: Session, request: RunRequest, placed: Placed, *, check: bool) -> RunResult:
        try:
            return carry_out(session, request, placed, grace=self.settings.interrupt_grace, check=check)
        except BaseException:
            placed.abandon(session)
            raise

    def start(
        self,
        container: str,
        *,
        timeout: float | None = None,
        stdin: Input = None,
        output: OutputSink | None = None,
        check: bool = False,
    ) -> RunResult:
        """Run a kept container that has ended once more, in the files it left, and wait for its end.

        Command, script, options and environment are those of its first start; volumes and devices are checked anew.
        The rest is as for `run`. Raises `Conflict` when it runs already.
        """
        session = self._connect()
        with lock_store(self.settings.root, shared=True):
            stored = self._records.find(container)
            if stored.locked:
                raise Conflict(
                    f"container {container} is running already; `%container restart {container}` ends it first"
                )
            if stored.service:
                raise Conflict(f"container {container} runs on behind; start_behind or attach(start=True) start it so")
            request, placed = place_again(session, stored, timeout=timeout, stdin=stdin, output=output)
        return self._carried_out(session, request, placed, check=check)

    def restart(
        self,
        container: str,
        *,
        grace: float | None = None,
        timeout: float | None = None,
        stdin: Input = None,
        output: OutputSink | None = None,
        check: bool = False,
    ) -> RunResult:
        """End a kept container if it runs, in whichever notebook, as `stop` does; then `start` it here."""
        stored = self._records.find(container)
        if not stored.fields.get("keep"):
            raise Conflict(f"container {container} is thrown away when it ends; give it a --name to start it again")
        if stored.service:
            raise Conflict(f"container {container} runs on behind; restart_behind starts it so again")
        self._lifecycle.stop(stored.id, grace, verb="restart")
        return self.start(stored.id, timeout=timeout, stdin=stdin, output=output, check=check)

    # --- containers that run on behind ------------------------------------------------------------------------------

    def launch(
        self,
        image: str,
        argv: Sequence[str] = (),
        *,
        options: RunOptions | None = None,
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        listener: Listener = ignore,
        failed: FailedState = "",
    ) -> ContainerSummary:
        """Start a container that runs on behind, as `options.service` has it, and return when its command runs.

        It has a monitor process of its own and lives on when this process ends. What it writes goes to its log. The
        rest is as for `run`; it stays when it has ended, unless `options.remove`.
        """
        session = self._connect()
        request = _request(image, argv, _behind(options), script, shell)
        placed = self._placed(session, request, listener, failed)[1]
        try:
            self._begin(session, placed.record, fresh=True)
        except BaseException:
            placed.abandon(session)
            raise
        stored = Stored(directory=placed.record.directory, fields=placed.record.fields, locked=False)
        return (session.records.again(stored) or stored).summary()  # it may be over already, and thrown away

    def create(
        self,
        image: str,
        argv: Sequence[str] = (),
        *,
        options: RunOptions | None = None,
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        listener: Listener = ignore,
    ) -> ContainerSummary:
        """Make a container that `start_behind` can start; the rest is as for `launch`."""
        session = self._connect()
        placed = self._placed(session, _request(image, argv, _behind(options), script, shell), listener, "")[1]
        placed.record.close()
        return self._records.find(placed.record.id).summary()

    def _begin(self, session: Session, record: Record, *, fresh: bool) -> None:
        from nbcontainer.engine import services

        services.begin(session.settings, record, fresh=fresh)

    def is_service(self, container: str) -> bool:
        """Whether a container runs on behind, or did when it ran."""
        return self._records.find(container).service

    def start_behind(self, container: str) -> ContainerSummary:
        """Start a kept container once more, on behind; nothing is done to one that runs so already."""
        session = self._connect()
        with lock_store(self.settings.root, shared=True):
            stored = self._records.settled(self._records.find(container))
            if stored.locked and stored.service:
                return stored.summary()
            if stored.locked:
                raise Conflict(f"container {container} is running in a notebook or a terminal; stop it first")
            record = session.records.reopen(stored)
            if not stored.service:
                record.update(**plain_service())
        try:
            self._begin(session, record, fresh=False)
        finally:
            record.close()
        return (session.records.again(stored) or stored).summary()

    def restart_behind(self, container: str, *, grace: float | None = None) -> ContainerSummary:
        """End a kept container if it runs, in whichever notebook, as `stop` does, and start it on behind."""
        stored = self._records.find(container)
        self._lifecycle.stop(stored.id, grace, verb="restart")
        return self.start_behind(stored.id)

    def attach(
        self,
        container: str,
        *,
        start: bool = False,
        stdin: BinaryIO | Source | None = None,
        output: OutputSink,
        pass_signals: bool = False,
        check: bool = False,
    ) -> RunResult:
        """Show what a container that runs on behind writes from now on, until it ends; with `start`, start it first.

        What can be read from `stdin` is passed to it if it was started with its input open; one with a terminal takes a
        `Source` only (`nbcontainer.runtime.inputs`), typed on that. With `pass_signals` Ctrl-C
        goes to the container; else it ends this call alone. With `check` a bad end raises `ContainerExit`.
        """
        from nbcontainer.engine import services

        stored = self._records.find(container)
        result = services.attach(
            self._records,
            self._lifecycle,
            stored,
            begin=(lambda: self.start_behind(stored.id)) if start else None,
            stdin=stdin,
            output=output,
            pass_signals=pass_signals,
        )
        if check and not result.ok:
            raise bad_end(result, f"container {container}")
        return result

    def follow_logs(
        self, container: str, *, tail: int | None = None, since: float | None = None, until: float | None = None
    ) -> Iterator[LogLine]:
        """The last `tail` lines of a container's log, and what it writes from now on, until it has ended.

        `since` and `until` are unix seconds.
        """
        from nbcontainer.engine import services

        stored = self._with_log(container)
        return services.follow(self._records, stored, tail=tail, since=since, until=until)

    def _with_log(self, container: str) -> Stored:
        stored = self._records.find(container)
        if not stored.fields.get("keep") and not stored.service:
            raise InvalidInput(
                f"container {stored.id[:12]} is thrown away when it ends, so no log is kept; give it a --name"
            )
        return stored

    # --- commands beside, and what is known ---------------------------------------------------------------------------

    def exec(
        self,
        container: str,
        argv: Sequence[str] = (),
        *,
        options: ExecOptions | None = None,
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        stdin: Input = None,
        output: OutputSink | None = None,
        check: bool = False,
    ) -> RunResult:
        """Run a command, or a script, in a running container of any notebook of this user, and wait for its end.

        It has the container's user, environment, rights and limits unless `options` say otherwise; `script`, `shell`,
        `stdin`, `output` and `check` are those of `run`. Ctrl-C ends the command and what it started. Raises `Conflict`
        when the container does not run or is paused, `ContainerStartError` when the command cannot be started.
        """
        request = ExecRequest(
            container=container,
            argv=tuple(argv),
            options=options or ExecOptions(),
            script=_script(script, argv),
            shell=tuple(shell),
            stdin=stdin,
            output=output,
        )
        return execute(self._connect(), self._lifecycle, request, grace=self.settings.interrupt_grace, check=check)

    def containers(self, *, everything: bool = False) -> tuple[ContainerSummary, ...]:
        """Running containers, or with `everything` also those that have ended; newest first."""
        summaries = [stored.summary() for stored in self._records.walk() if not stored.abandoned]
        still = resources.paused([each.pid for each in summaries if each.pid is not None])
        summaries = [dataclasses.replace(each, paused=each.pid in still) for each in summaries]
        chosen = [each for each in summaries if everything or each.state in {"running", "restarting"}]
        return tuple(sorted(chosen, key=lambda each: -each.created))

    def logs(
        self, container: str, *, tail: int | None = None, since: float | None = None, until: float | None = None
    ) -> tuple[LogLine, ...]:
        """What a container wrote, in order: one that is kept, or runs on behind.

        As pieces that came at once, or with `tail` as its last lines. `since` and `until` are unix seconds.
        """
        stored = self._with_log(container)
        pieces = within(read_log(stored.directory, since), since, until)
        return tuple(pieces) if tail is None else tuple(last_lines(pieces, tail))

    def kill(self, container: str, *, number: int = signal.SIGKILL) -> ContainerSummary:
        """Send a signal to the command of a running container, of whichever notebook; SIGKILL ends all of it.

        Raises `Conflict` when it is not running. Returns at once, after SIGKILL when the container is over.
        """
        return self._lifecycle.kill(container, number)

    def stop(self, container: str, *, grace: float | None = None) -> ContainerSummary:
        """End a container: its stop signal to the command's process group, after `grace` seconds the end of everything.

        The stop signal is the image's, or SIGTERM; the grace is ten seconds. One that has ended already is let be.
        """
        return self._lifecycle.stop(container, grace)

    def wait(self, container: str) -> ContainerSummary:
        """Wait for the end of a container; its `exit_code` is there then.

        Raises `ContainerError` when nobody saw it end.
        """
        return self._lifecycle.wait(container)

    def rename(self, container: str, name: str) -> ContainerSummary:
        """Give a container another name; raise `Conflict` when it is taken."""
        summary = self._lifecycle.rename(container, name)
        self._networks.renamed(self._records.find(name))
        return summary

    def remove_container(self, container: str, *, force: bool = False, volumes: bool = False) -> ContainerSummary:
        """Remove a container that has ended; with `force` end a running one first.

        With `volumes` those that were made for it go, too, where no other container names them.
        """
        stored = self._records.settled(self._records.find(container))
        if stored.locked:
            if not force:
                raise Conflict(
                    f"container {container} is running; end it with `%container stop {container}`, or remove it with -f"
                )
            stored = self._lifecycle.end(stored, verb="rm -f")
        session = self._connect()
        with contextlib.suppress(ContainerNotFound), self._records.removing(stored):  # else somebody was quicker
            session.discard(stored.directory)
        if volumes:
            session.volumes.drop(anonymous_of(stored))
        return stored.summary()

    def prune_containers(self, filters: Sequence[Filter] = ()) -> Pruned:
        """Remove every container that has ended and that `filters` (``until``, ``label``) do not leave out.

        Volumes stay, those without a name among them.
        """
        session = self._connect()
        removed, freed = [], 0
        for stored in self._records.walk():
            row = stored.summary()
            old = all(row.created < created_before(each) for each in filters if each.name == "until")
            if stored.locked or stored.abandoned or not old or not has_labels(row.labels, filters):
                continue
            size = tree_size(stored.directory)
            with contextlib.suppress(ContainerNotFound, Conflict), self._records.removing(stored):
                session.discard(stored.directory)
                removed.append(row.name or row.id[:12])
                freed += size
        return Pruned(names=tuple(removed), freed=freed)

    # --- volumes ----------------------------------------------------------------------------------------------------

    def create_volume(self, name: str = "", labels: Mapping[str, str] | None = None) -> VolumeSummary:
        """Make a volume, or find that it is there; without a name it gets one that nobody has."""
        volume, _ = self._connect().volumes.create(name, labels)
        return self._volume_summary(volume)

    def volumes(self) -> tuple[VolumeSummary, ...]:
        """Every volume of the store, by name."""
        store = self._connect().volumes
        users = store.all_users()
        return tuple(self._volume_summary(volume, users.get(volume.name, ())) for volume in store.walk())

    def inspect_volume(self, name: str) -> VolumeSummary:
        """One volume; raise `VolumeNotFound`."""
        return self._volume_summary(self._connect().volumes.find(name))

    def remove_volume(self, name: str) -> VolumeSummary:
        """Remove a volume with all that is in it.

        Raises `Conflict` naming the containers that use it, running or not, or `VolumeNotFound`.
        """
        return self._volume_summary(self._connect().volumes.remove(name))

    def prune_volumes(self, *, everything: bool = False, filters: Sequence[Filter] = ()) -> Pruned:
        """Remove the volumes without a name that no container uses any more; with `everything` the named ones, too."""
        store = self._connect().volumes
        removed, freed, used = [], 0, store.all_users()
        for volume in store.walk():
            if not (everything or volume.anonymous) or not has_labels(volume.labels, filters):
                continue
            if volume.name in used:
                continue
            size = tree_size(store.folder(volume.name))
            with contextlib.suppress(Conflict, VolumeNotFound, UnsupportedHost):
                removed.append(store.remove(volume.name).name)
                freed += size
        return Pruned(names=tuple(removed), freed=freed)

    def _volume_summary(self, volume: Volume, users: Sequence[str] | None = None) -> VolumeSummary:
        store = self._connect().volumes
        return VolumeSummary(
            name=volume.name,
            created=volume.created,
            mountpoint=store.data(volume.name),
            labels=volume.labels,
            anonymous=volume.anonymous,
            used_by=tuple(store.users(volume.name) if users is None else users),
            ids=volume.ids,
            usable=store.is_ours(volume),
        )

    # --- networks ---------------------------------------------------------------------------------------------------

    def networks(self) -> tuple[NetworkSummary, ...]:
        """Every network, the default one first, and who is in it."""
        return self._networks.walk()

    def inspect_network(self, network: str) -> NetworkSummary:
        """One network, by name or id; raise `NotFound`."""
        return self._networks.inspect(network)

    def create_network(
        self,
        name: str,
        *,
        subnets: Sequence[str] = (),
        gateways: Sequence[str] = (),
        internal: bool = False,
        mtu: int = 0,
        labels: Sequence[str] = (),
    ) -> NetworkSummary:
        """Make a network; without `subnets` (one of IPv4, one of IPv6 at most) it gets some that are free.

        An `internal` one leads nowhere outside. Raises `Conflict` when the name is taken.
        """
        network = new_network(name, subnets, gateways, internal=internal, mtu=mtu, labels=labels)
        return NetworkSummary(network=self._networks.create(network))

    def remove_network(self, network: str) -> NetworkSummary:
        """Forget a network; raise `Conflict` while a container is in it."""
        return NetworkSummary(network=self._networks.remove(network))

    def prune_networks(self) -> tuple[NetworkSummary, ...]:
        """Forget the networks that no container is in; return them."""
        return tuple(NetworkSummary(network=each) for each in self._networks.prune())

    def connect_network(self, network: str, container: str, options: NetworkOptions | None = None) -> Endpoint:
        """Give a running container a place in a further network; of `options` addresses and aliases count."""
        return self._networks.connect(network, container, options or NetworkOptions())

    def disconnect_network(self, network: str, container: str) -> None:
        """Take a running container out of a network."""
        self._networks.disconnect(network, container)

    def ports(self, container: str) -> tuple[PortMapping, ...]:
        """The published ports of a running container; raise `Conflict` for one that does not run."""
        summary = self._records.find(container).summary()
        if summary.state != "running":
            raise Conflict(f"container {container} is not running, so it has no ports")
        return summary.ports

    # --- files of containers ----------------------------------------------------------------------------------------

    def copy_from(
        self,
        container: str,
        path: str,
        target: str | BinaryIO,
        *,
        archive: bool = False,
        follow_link: bool = False,
    ) -> CopyResult:
        """Copy a file or folder out of a container, running or ended: to a path, or as a tar to an open file.

        The rules are those of ``docker cp``: a folder is copied into an existing `target`, what is in it when `path`
        ends with ``/.``; the copies belong to the caller unless `archive` keeps owners (and set-user-id bits), which
        takes root; a link is copied as a link unless `follow_link`. Relative paths start at the container's root.
        Raises `NotFound`, `InvalidInput`, `Conflict` or `StorageError`.
        """
        source = files.ContainerPath.parse(path)
        stored = self._records.find(container)
        return files.copy_from(self._connect(), stored, source, target, archive=archive, follow_link=follow_link)

    def copy_to(
        self,
        source: str | BinaryIO,
        container: str,
        path: str,
        *,
        archive: bool = False,
        follow_link: bool = False,
    ) -> CopyResult:
        """Copy a file or folder of this machine, or what is in an open tar file, into a container, running or ended.

        As `copy_from`, the other way round: the copies belong to the container's root unless `archive` keeps the
        numbers of their owners. A tar (plain, gzip or zstd) is unpacked into `path`, an existing folder.
        """
        target = files.ContainerPath.parse(path)
        stored = self._records.find(container)
        return files.copy_to(self._connect(), stored, source, target, archive=archive, follow_link=follow_link)

    def diff(self, container: str) -> tuple[Change, ...]:
        """What a container, running or ended, has added, changed and deleted, by path."""
        return files.changes(self._connect(), self._records.find(container))

    def export(self, container: str, target: str | BinaryIO) -> CopyResult:
        """Write all files of a container, image and changes in one, as a tar: to a path, or to an open file.

        Volumes, ``/proc``, ``/sys`` and ``/dev`` are not among them. A file given by path appears when it is complete.
        """
        return files.export(self._connect(), self._records.find(container), target)

    def commit(
        self,
        container: str,
        name: str = "",
        *,
        message: str = "",
        author: str = "",
        changes: Sequence[str] = (),
        pause: bool = False,
    ) -> CommittedImage:
        """Make an image of what a container has changed, on top of the image it was started from.

        `changes` are Dockerfile instructions (CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER, VOLUME, WORKDIR);
        the rest of the image's settings stay, and nothing of how the container was run is written into it. Without
        `name` the image can be used by its id. With `pause` a running container stands still meanwhile, where it can.
        """
        session = self._connect()
        with lock_store(self.settings.root, shared=True), contextlib.ExitStack() as undo:
            stored = self._records.find(container)
            if pause and stored.locked:
                undo.enter_context(resources.held_still(stored))
            image, size, notices = commit(
                session, stored, name, message=message, author=author, changes=changes, still=pause
            )
        return CommittedImage(
            image=self._summary(image), layer=image.manifest.layers[-1].digest, size=size, notices=notices
        )

    # --- builds -----------------------------------------------------------------------------------------------------

    def build(self, options: BuildOptions, *, listener: Listener = ignore) -> BuiltImage:
        """Build an image of a Dockerfile and give it its names.

        Steps that were made before are not made again. Events of each step go to `listener`, in the calling thread.
        Raises `DockerfileError` with the line, `BuildFailed` when a RUN fails (then `failed_step` has its state), or
        what a pull raises; there is no image then.
        """
        from nbcontainer.engine import building

        began = time.monotonic()
        session = self._connect()

        def pull(name: str, platform: str, policy: PullPolicy, heard: Listener) -> Image:
            return self._pulled(name, platform, policy, heard)

        with lock_store(self.settings.root, shared=True):
            image, built = building.build(session, options, pull, listener)
        return BuiltImage(
            image=self._summary(image),
            names=tuple(Reference.parse(tag).familiar for tag in options.tags),
            layers=len(image.manifest.layers),
            steps=built.steps,
            cached=built.cached,
            seconds=time.monotonic() - began,
            notices=built.notices,
        )

    def failed_step(self) -> FailedStep:
        """The RUN at which the last build of this store ended; raise `NotFound` when there is none."""
        from nbcontainer.engine import building

        return building.failed_step(self._connect())

    def clear_build_cache(self, *, unused_for: float | None = None) -> tuple[int, int]:
        """Forget the steps that builds remember, all or those of no use for some seconds; (steps, bytes freed)."""
        from nbcontainer.engine import building

        session = self._connect()
        with lock_store(self.settings.root, shared=False):
            count = building.clear_build_cache(session, unused_for=unused_for)
            freed = self._library.collect(self._chains_in_use(), building.build_lease(session)).freed
        return count, freed

    # --- what containers use ------------------------------------------------------------------------------------------

    def stats(self, containers: Sequence[str] = ()) -> tuple[ContainerUsage, ...]:
        """What running containers use, of every notebook of this user; all of them, or those named."""
        if containers:
            return resources.usage([self._records.find(name) for name in containers])
        return resources.usage(
            [each for each in self._records.walk() if each.locked and each.fields.get("pid") is not None]
        )

    def top(self, container: str) -> tuple[ContainerProcess, ...]:
        """The processes of a running container, without its PID 1."""
        return resources.processes(self._records.find(container), self._connect().id_map)

    def pause(self, container: str) -> ContainerSummary:
        """Stop every process of a running container where it is, until `unpause`.

        Raises `UnsupportedHost` where no freezer can be used, `Conflict` when it is paused already.
        """
        stored = self._records.find(container)
        resources.pause(stored)
        return dataclasses.replace(stored.summary(), paused=True)

    def unpause(self, container: str) -> ContainerSummary:
        """Let a paused container go on."""
        stored = self._records.find(container)
        resources.unpause(stored)
        return stored.summary()

    def update(self, container: str, limits: Limits) -> ContainerSummary:
        """Hold a running container to other limits; what is None in `limits` stays as it is.

        Raises `UnsupportedHost` for a limit that cannot be kept, with the cause and the fix.
        """
        stored = self._records.find(container)
        resources.change(stored, limits, frozenset(os.sched_getaffinity(0)))
        return stored.summary()

    # --- the engine itself ------------------------------------------------------------------------------------------

    def disk_usage(self) -> DiskUsage:
        """What the store holds."""
        return disk_usage(
            self.settings.root,
            self._library,
            tuple(self._records.walk()),
            self._chains_in_use(),
            self._connect().volumes,
        )

    @property
    def default_network(self) -> str:
        """The network of a container for which none is asked: ``bridge`` where that can be, else ``none``."""
        return self._connect().networks.default

    def info(self) -> Info:
        """The state of things in a few lines."""
        containers = self.containers(everything=True)
        running = sum(1 for each in containers if each.state == "running")
        id_map = self._connect().id_map
        return Info(
            items=(
                ("store", self.settings.root),
                ("images", str(len(self._library.refs.list()))),
                ("containers", f"{len(containers)} ({running} running)"),
                ("volumes", str(sum(1 for _ in self._connect().volumes.walk()))),
                ("driver", "native"),
                ("tier", self._connect().tier),
                ("ids", f"{sum(each.length for each in id_map.uids)} per container"),
                ("default network", self._connect().networks.default),
                ("platform", str(Platform.host())),
                ("kernel", host_platform.release()),
            )
        )

    def version(self) -> Version:
        """Versions of this package and what it stands on."""
        from importlib import metadata

        def installed(name: str) -> str:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return "not installed"

        names = (
            "nbcontainer",
            "ipykernel",
            "ipywidgets",
            "requests",
            "traitlets",
            "pyroute2",
            "isal",
            "zstandard",
            "pyseccomp",
        )
        return Version(
            items=(
                *((name, installed(name)) for name in names),
                ("python", host_platform.python_version()),
                ("kernel", host_platform.release()),
            )
        )

    def doctor(self) -> DoctorReport:
        """Try what containers need on this machine, and say what is missing and how to get it."""
        from nbcontainer.engine.doctor import examine

        return examine(self.settings.root)

    def close(self) -> None:
        """End every container of this engine and its launcher; safe twice."""
        with self._lock:
            if self._session is not None:
                self._session.close(for_good=True)
                self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _connect(self) -> Session:
        with self._lock:
            if self._session is None:
                self._session = Session(self.settings)
            return self._session

    @property
    def _library(self) -> Library:
        return self._connect().library

    @property
    def _records(self) -> ContainerRecords:
        return self._connect().records

    @property
    def _networks(self) -> Networks:
        return self._connect().networks

    @property
    def _lifecycle(self) -> Lifecycle:
        return Lifecycle(self._records)

    def _local(self, image: str) -> Image:
        return self._library.find(image)

    def _pulled(self, image: str, platform: str, policy: PullPolicy, listener: Listener) -> Image:
        """The image as `policy` wants it: from here, from the registry, or whichever has it."""
        wanted = Platform.parse(platform) if platform else Platform.host()
        here: Image | None = None
        if policy != "always":
            with contextlib.suppress(ImageNotFound):
                here = self._local(image)
            if here is not None and platform and wanted.preference(here.config.platform) is None:
                here = None
            if here is not None:
                return here
        reference = Reference.parse(image)
        if policy == "never":
            raise ImageNotFound(
                f"image {reference.familiar!r} is not here, and --pull never forbids fetching it; "
                "`%container pull` it first"
            )
        try:
            with lock_store(self.settings.root, shared=True), self._connect().puller(listener) as puller:
                return puller.pull(reference, wanted, listener)
        except _NO_SUCH_IMAGE as problem:
            hint = nearest(image, self._names_here())
            if not hint:
                raise
            kind = next(each for each in _NO_SUCH_IMAGE if isinstance(problem, each))
            raise kind(f"{problem}{hint}") from problem

    def _names_here(self) -> Iterator[str]:
        """What images that are here can be called, with their tags and, for the latest ones, without."""
        yield host_image.HOST_IMAGE
        for record in self._library.refs.list():
            name = record.reference.familiar
            yield name
            yield name.removesuffix(":latest")

    def _subject(self, image: str, options: RunOptions, listener: Listener) -> Subject:
        """What a container of `image` is made of; pulls it when it has to."""
        session = self._connect()
        if image == host_image.HOST_IMAGE:
            config = host_image.host_config(os.environ, _current_folder())
            return Subject(name=image, config=config, chain=None, root=session.host_root)
        found = self._pulled(image, options.platform, options.pull, listener)
        chain = found.chain
        if chain is None:
            raise InvalidInput(f"image {found.name} has no layers, so there is nothing to run in it")
        if not session.snapshots.has(chain):
            found = self._pulled(image, options.platform, "always", listener)
        return Subject(
            name=found.name,
            config=found.config,
            chain=chain,
            root=lambda folder: session.snapshots.mounts(chain, upper=f"{folder}/upper", work=f"{folder}/work"),
            generation=session.snapshots.generation(chain),
        )

    def _failed_subject(self, state: FailedState) -> Subject:
        from nbcontainer.engine import building

        session = self._connect()
        step = building.failed_step(session)
        chain = step.before if state == "before" else step.after
        return Subject(
            name=f"failed step ({state})",
            config=building.failed_config(step),
            chain=chain,
            root=lambda folder: session.snapshots.mounts(chain, upper=f"{folder}/upper", work=f"{folder}/work"),
            mounts=building.failed_mounts(session, step),
        )

    def _summary(self, image: Image, used: frozenset[Digest] | None = None) -> ImageSummary:
        chains = self._chains_in_use() if used is None else used
        return ImageSummary(
            reference=image.name,
            id=image.record.id,
            digest=image.record.target,
            platform=str(image.config.platform),
            created=unix_time(image.config.created),
            pulled=image.record.pulled_at,
            size=self._library.unpacked_size(image),
            compressed_size=image.manifest.size,
            in_use=image.chain in chains,
            labels=dict(image.config.labels),
        )

    def _chains_in_use(self) -> frozenset[Digest]:
        texts = {str(stored.fields.get("chain", "")) for stored in self._records.walk() if not stored.abandoned}
        return frozenset(Digest.parse(text) for text in texts if text)

    def _host_summary(self) -> ImageSummary:
        return ImageSummary(
            reference=host_image.HOST_IMAGE,
            id=None,
            digest=None,
            platform=str(Platform.host()),
            created=None,
            pulled=None,
            size=0,
            compressed_size=0,
        )


def _request(
    image: str,
    argv: Sequence[str],
    options: RunOptions,
    script: str | bytes | None,
    shell: Sequence[str],
    *,
    stdin: Input = None,
    output: OutputSink | None = None,
) -> RunRequest:
    return RunRequest(
        image=image,
        argv=tuple(argv),
        options=options,
        script=_script(script, argv),
        shell=tuple(shell),
        stdin=stdin,
        output=output,
    )


def _script(script: str | bytes | None, argv: Sequence[str]) -> bytes | None:
    """The text of a script as it is run; raise `InvalidOption` when there is a command as well."""
    if script is not None and argv:
        raise InvalidOption("give either a command or a script to run, not both")
    return script.encode("utf-8", "surrogateescape") if isinstance(script, str) else script


def _behind(options: RunOptions | None) -> RunOptions:
    """The options of a container that runs on behind, as it comes where nothing was asked of that."""
    options = options or RunOptions()
    return dataclasses.replace(options, service=options.service or ServiceOptions())


def _current_folder() -> str:
    """The notebook's; ``/`` when it has been removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"
