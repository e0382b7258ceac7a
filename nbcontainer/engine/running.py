"""One foreground run: from an image and options to a finished container's result.

`place` decides everything and writes the record (under the store's shared lock, so that no collection takes the image
away between); `carry_out` starts, watches, and says how it ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.attending import Heard, Talk, attend, check_input
from nbcontainer.engine.ending import Note
from nbcontainer.engine.lifecycle import process_fields
from nbcontainer.engine.networking import check_networking, resolved_networking
from nbcontainer.engine.results import Ran, bad_end, result_of, start_error
from nbcontainer.engine.roots import check_ids, root_of, saved_root
from nbcontainer.engine.saved import saved_spec, spec_of
from nbcontainer.engine.service import service_fields
from nbcontainer.engine.successors import new_container_id
from nbcontainer.engine.volume_use import anonymous_of, fill, found_again, let_go, using, volume_fields, wanted_volumes
from nbcontainer.engine.volumes import resolved_volumes
from nbcontainer.errors import ImageNotFound, InvalidOption
from nbcontainer.model import BindMount, Digest, ImageConfig, Platform, RunOptions, VolumeMount
from nbcontainer.model.network import NetworkChoice, NetworkOptions
from nbcontainer.runtime.bundle import bundle
from nbcontainer.runtime.devices import resolved_devices
from nbcontainer.runtime.limits import check_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nbcontainer.engine.attending import Input, OutputSink
    from nbcontainer.engine.ending import Told
    from nbcontainer.engine.records import Record, Stored
    from nbcontainer.engine.session import Session
    from nbcontainer.engine.successors import Kind
    from nbcontainer.model import ContainerId, ContainerSpec, Mount, RunResult
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.driver import Window
    from nbcontainer.runtime.supervisor import Outcome

__all__ = ["Placed", "RunRequest", "Subject", "carry_out", "place", "place_again", "resolv_conf"]

_MADE_WHEN_ASKED = ("limits", "devices", "cap_add", "cap_drop", "seccomp", "no_new_privileges")
_TITLE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What was asked, as parsed; `on_running` is called when the command is being executed.

    `on_ended` is told how a command ended that had begun, and answers what more the record shall say of it.
    """

    image: str
    argv: tuple[str, ...]
    options: RunOptions
    script: bytes | None
    shell: tuple[str, ...]
    stdin: Input
    output: OutputSink | None
    on_running: Callable[[], None] = lambda: None
    on_ended: Callable[[RunResult], Mapping[str, Any]] = lambda _: {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What it will run on: `root` gives the mounts for a container whose files lie in a folder.

    `mounts` are shown in it beside the volumes that were asked for.
    """

    name: str
    config: ImageConfig
    chain: Digest | None
    root: Callable[[str], tuple[Mount, ...]]
    generation: str = ""
    mounts: tuple[Mount, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A container that is decided and recorded, and not started.

    `kind` is what the next one must have in common with it to be prepared ahead. One that ran before, and is there
    `again`, stays when it cannot be started.
    """

    subject: Subject
    spec: ContainerSpec
    record: Record
    started: float
    kind: Kind | None = None
    again: bool = False
    volumes: tuple[str, ...] = ()
    """Those that were made for it."""

    def abandon(self, session: Session) -> None:
        """Take the record away if nobody has carried it out (an interrupt came in between).

        With the record, or when it is gone already, the volumes that were made for it.
        """
        if self.record.held:
            self.discard()
            self.record.close()
        let_go(session, self.spec, self.volumes)

    def discard(self) -> None:
        """Take away what was recorded of a container that was not started."""
        if self.again:
            self.record.update(finished=time.time(), reason="it could not be started again")
        else:
            shutil.rmtree(self.record.directory, ignore_errors=True)


def place(session: Session, request: RunRequest, subject: Subject) -> Placed:
    """Decide and record a container; raise `InvalidOption` or `Conflict` before anything is written."""
    started = time.monotonic()
    options = request.options
    check_limits(options.limits, frozenset(os.sched_getaffinity(0)))
    check_input(request.stdin, terminal=options.terminal)
    keep = not options.remove if options.remove is not None else bool(options.name)
    keep = keep or options.service is not None  # its monitor throws it away
    wanted = wanted_volumes(options, subject.config)
    kind = None if keep or wanted else _kind(request, subject)
    container = (kind and session.successors.take(kind)) or new_container_id()
    transient = not keep or options.remove is True
    with using(session, wanted, container, transient=transient) as named:
        spec = _spec(session, request, subject, container, keep=keep, volumes=named)
        fields = _fields_of(session, request, subject, spec, keep=keep)
        if named:
            fields["volumes"] = volume_fields(wanted, named)
        record = session.records.create(container, fields)
    own = tuple(found.name for asked, found in zip(wanted, named, strict=True) if not asked.name)
    placed = Placed(subject=subject, spec=spec, record=record, started=started, kind=kind, volumes=own)
    try:
        if named:
            fill(session, spec, named, record)
        if keep and request.script is not None:
            record.keep_script(request.script)
    except BaseException:
        placed.abandon(session)
        raise
    return placed


def _fields_of(
    session: Session, request: RunRequest, subject: Subject, spec: ContainerSpec, *, keep: bool
) -> dict[str, Any]:
    """What the record of a container says from the beginning."""
    options = request.options
    labels = {**subject.config.labels, **dict(options.labels)}
    return {
        "name": options.name,
        "image": subject.name,
        "chain": str(subject.chain or ""),
        "ids": session.id_map.key,
        "command": list(spec.argv),
        "title": _title(request.script),
        "created": time.time(),
        "keep": keep,
        **({} if subject.chain else {"root": saved_root(spec.root, session.records.path(spec.id))}),
        **({"labels": labels} if labels else {}),
        **_remembered(options, subject.config),
        **service_fields(options, subject.config),
        "spec": saved_spec(spec),
    }


def place_again(
    session: Session,
    stored: Stored,
    *,
    timeout: float | None,
    stdin: Input,
    output: OutputSink | None,
    record: Record | None = None,
) -> tuple[RunRequest, Placed]:
    """Decide the next life of a container that was kept; raise before anything of it is changed.

    `record` is for who has hold of it already.
    """
    started = time.monotonic()
    check_ids(session, stored)
    spec = spec_of(stored)
    check_limits(spec.limits, frozenset(os.sched_getaffinity(0)))
    check_input(stdin, terminal=spec.terminal)
    volumes = found_again(session, stored)
    for mount in spec.mounts:
        if mount.kind == "bind" and mount.target not in volumes:
            _check_again(mount, session.settings.root)
    mounts = tuple(dataclasses.replace(each, source=volumes.get(each.target, each.source)) for each in spec.mounts)
    chain = stored.fields.get("chain")
    if chain and not session.snapshots.has(Digest.parse(chain)):
        raise ImageNotFound(f"the image of container {stored.id[:12]} is gone; its files can be read, not run again")
    script = session.records.script(stored)
    spec = dataclasses.replace(
        spec, root=root_of(session, stored), mounts=mounts, devices=resolved_devices(spec.devices), script=script
    )
    image = str(stored.fields.get("image", ""))
    subject = Subject(name=image, config=ImageConfig(platform=Platform.host()), chain=None, root=lambda _: spec.root)
    request = RunRequest(
        image=image,
        argv=spec.argv,
        options=RunOptions(timeout=timeout),
        script=script,
        shell=(),
        stdin=stdin,
        output=output,
    )
    if record is None:
        record = session.records.reopen(stored)
    else:
        record.renew()
    return request, Placed(
        subject=subject, spec=spec, record=record, started=started, again=True, volumes=anonymous_of(stored)
    )


def _check_again(mount: Mount, store: str) -> None:
    """Refuse a volume that has become another one since the first start."""
    volume = BindMount(source=mount.source, target=mount.target, read_only=mount.read_only)
    (now,) = resolved_volumes((volume,), store)
    if now.source != mount.source:
        raise InvalidOption(
            f"volume source {mount.source} has become a link to {now.source} since the container was made; refused"
        )


def _spec(
    session: Session,
    request: RunRequest,
    subject: Subject,
    container: ContainerId,
    *,
    keep: bool,
    volumes: tuple[VolumeMount, ...] = (),
) -> ContainerSpec:
    """Decide the spec; `volumes` are those of the store, found and named."""
    options = request.options
    if options.volumes or volumes:
        shown = tuple(each for each in options.volumes if isinstance(each, BindMount))
        found = resolved_volumes(shown, session.settings.root)
        options = dataclasses.replace(options, volumes=(*found, *volumes))
    if options.devices:
        options = dataclasses.replace(options, devices=resolved_devices(options.devices))
    if options.networking.publish_all:
        options = dataclasses.replace(options, networking=resolved_networking(options.networking, subject.config))
    check_networking(NetworkChoice.parse(options.network or "none"), options.networking)
    directory = session.records.path(container)
    spec = bundle(
        container,
        subject.config,
        options,
        root=tuple(dataclasses.replace(mount, volatile=not keep) for mount in subject.root(directory)),
        argv=request.argv,
        script=request.script,
        shell=request.shell,
        idmapped_binds=session.privileged,
        volumes=session.volumes.directory,
        host_resolv_conf=resolv_conf() if options.network == "host" else "",
        single_id=session.id_map.single,
        root_is_root=session.id_map.uids[0].outside == 0,
    )
    mounts = (*subject.mounts, *spec.mounts)
    return dataclasses.replace(spec, mounts=mounts, scratch="" if keep else directory, generation=subject.generation)


def _kind(request: RunRequest, subject: Subject) -> Kind | None:
    """What the next container must have in common with this one to be prepared ahead, or None where none can be.

    Not on the machine's own root, which people change between two cells, and not with volumes, likewise. Not with
    limits or rights of its own either: its cgroups, capabilities and filter are made when it is asked for.
    """
    options = request.options
    if not subject.generation or options.volumes or options.network not in (None, "none", "bridge"):
        return None
    if options.networking != NetworkOptions():
        return None
    plain = RunOptions()
    if any(getattr(options, name) != getattr(plain, name) for name in _MADE_WHEN_ASKED):
        return None
    alike = dataclasses.replace(options, environment=(), timeout=None)
    return (subject.name, subject.generation, alike, request.script is not None)


def _announce_successor(session: Session, request: RunRequest, placed: Placed) -> None:
    """Have the launcher prepare, in a calm moment, a container like this one: the next cell wants one, as a rule."""
    if placed.kind is not None:
        with session.successors.promising(placed.kind) as (container, forgotten):
            spec = _spec(session, request, placed.subject, container, keep=False)
            released = tuple(session.records.path(each) for each in forgotten)
            session.networks.forget(forgotten)
            if NetworkChoice.parse(spec.network).is_bridged:
                lease = session.networks.ahead(spec)
                if lease is not None:
                    session.runtime.expect((lease.spec,), released, gates=(lease.gate,))
                    return
            session.runtime.expect((spec,) if spec.network == "none" else (), released)


def _remembered(options: RunOptions, config: ImageConfig) -> dict[str, Any]:
    """What later verbs want to know of the options: how to stop it, what it was limited to."""
    limits = {name: value for name, value in dataclasses.asdict(options.limits).items() if value not in {None, ""}}
    remembered = {
        "limits": limits,
        "stop_signal": options.stop_signal or config.stop_signal,
        "stop_timeout": options.stop_timeout,
    }
    return {name: value for name, value in remembered.items() if value or value == 0}


def _title(script: bytes | None) -> str:
    """The first line of a cell that says something, for `ps`."""
    lines = (script or b"").decode("utf-8", "replace").splitlines()
    telling = (line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return next(telling, "")[:_TITLE]


def carry_out(session: Session, request: RunRequest, placed: Placed, *, grace: float, check: bool) -> RunResult:
    """Start the container, pump its streams until it is over, and say how it went."""
    record, spec = placed.record, placed.spec
    heard = Heard(request.output, record)
    deaths = session.runtime.deaths

    networks = contextlib.ExitStack()

    def start(stdio: tuple[int, int, int], window: Window) -> Connection:
        try:
            named = NetworkChoice.parse(spec.network).is_bridged  # nobody else asks what it is called by now
            name = str(record.read("name") or "") if named else ""
            lease = networks.enter_context(session.networks.lease(spec, name))
            if lease.fields:
                record.update(**lease.fields)
            connection = session.runtime.start(
                lease.spec, stdio, window=window, gate=lease.gate, namespace=lease.namespace
            )
            lease.started()
        except BaseException:
            placed.discard()
            raise
        return connection

    timeout = request.options.timeout
    try:
        outcome, verdict = attend(
            session,
            Talk(stdin=request.stdin, sink=heard.take, timeout=timeout, grace=grace, terminal=spec.terminal),
            start,
            on_started=lambda: _announce_successor(session, request, placed),
            on_running=request.on_running,
            on_accepted=lambda pid: record.update(started=time.time(), **process_fields(pid)),
        )
        ran = Ran(id=record.id, image=placed.subject.name, argv=spec.argv, started=placed.started)
        told = _told(record, outcome)
        result = result_of(
            ran, outcome, heard.stdout.data, heard.stderr.data, limit=timeout or 0, verdict=verdict, told=told
        )
        # ended by us, it may have failed because of that
        unbegun = outcome.failure if outcome.reason == "exited" else None
        more = request.on_ended(result) if unbegun is None else {}
        # also of what is thrown away: somebody may be waiting for it, with the record open
        record.update(finished=time.time(), exit_code=result.exit_code, reason=result.detail or result.reason, **more)
    finally:
        networks.close()
        record.close()
        if not record.kept:
            session.recover(deaths)
            session.volumes.drop(placed.volumes, container=spec.id)
    if unbegun is not None:
        raise start_error(placed.subject.name, unbegun)
    if check and not result.ok:
        raise bad_end(result)
    return result


def _told(record: Record, outcome: Outcome) -> Told | None:
    """What whoever ended the container from elsewhere has noted, if that is how it ended."""
    note = Note.from_field(record.read("ended_by"))
    if note is None or outcome.failure is not None or outcome.reason not in {"exited", "lost"}:
        return None
    if outcome.status is None:
        return note.told(by_signal=signal.SIGKILL)
    return note.told(by_signal=os.WTERMSIG(outcome.status) if os.WIFSIGNALED(outcome.status) else None)


def resolv_conf() -> str:
    """The machine's name servers, for containers in its network; bounded, and "" where there is no such file."""
    with contextlib.suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        return file.read(64 * 1024)
    return ""
