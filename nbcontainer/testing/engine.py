"""A recording engine: answers what it was told to, remembers what it was asked.

For tests of everything above the engine: it has `Engine`'s public methods with the same signatures (a test compares
them), needs no kernel feature, no store and no network, and starts no process.
"""
# ruff: noqa: D102 - the methods are the engine's own, documented there

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from nbcontainer.build.request import FailedStep
from nbcontainer.engine.doctor import DoctorReport, Tier
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
    DiskUsageLine,
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
from nbcontainer.errors import (
    ContainerExit,
    ContainerInterrupted,
    ContainerNotFound,
    ContainerTimeout,
    ImageNotFound,
    NbcontainerError,
    VolumeNotFound,
)
from nbcontainer.model import (
    ContainerId,
    Descriptor,
    Digest,
    Event,
    ExecOptions,
    ExitReason,
    HistoryEntry,
    ImageConfig,
    LayerProgress,
    Limits,
    Listener,
    Platform,
    PullFinished,
    PullPolicy,
    PullStarted,
    Reference,
    RunOptions,
    RunResult,
    ignore,
)
from nbcontainer.model.network import Endpoint, Network, NetworkOptions, PortMapping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from nbcontainer.build.request import BuildOptions
    from nbcontainer.engine.attending import Input, OutputSink
    from nbcontainer.engine.door import FailedState
    from nbcontainer.engine.filters import Filter
    from nbcontainer.runtime.inputs import Source

__all__ = ["Call", "RecordingEngine", "Script", "pull_events"]

_ID = ContainerId("c0ffee" + "0" * 58)
_MOMENT = 1_700_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a method: its name and its arguments by name."""

    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """How the next run goes: its pieces of output in order, then its end."""

    output: tuple[tuple[Literal["stdout", "stderr"], bytes], ...] = ()
    exit_code: int = 0
    reason: ExitReason = "exited"
    detail: str = ""
    error: BaseException | None = None


def pull_events(image: str = "docker.io/library/debian:latest", *, layers: int = 2) -> tuple[Event, ...]:
    """The events of an ordinary pull, each layer of 1 MB downloaded in two steps."""
    descriptors = tuple(
        Descriptor(
            media_type="application/vnd.oci.image.layer.v1.tar+gzip",
            digest=Digest.of(f"layer {number}".encode()),
            size=1_000_000,
        )
        for number in range(layers)
    )
    events: list[Event] = [PullStarted(image=image, layers=descriptors)]
    for layer in descriptors:
        for state, done in (
            ("downloading", 500_000),
            ("downloaded", 1_000_000),
            ("unpacking", 0),
            ("ready", 1_000_000),
        ):
            events.append(
                LayerProgress(image=image, digest=layer.digest, state=state, done=done, total=layer.size)  # type: ignore[arg-type]
            )
    size = sum(layer.size for layer in descriptors)
    events.append(PullFinished(image=image, digest=Digest.of(b"manifest"), size=size, fetched=size, seconds=1.5))
    return tuple(events)


_BRIDGE = Network(name="bridge", id="bridge", subnet="10.192.0.0/24", gateway="10.192.0.1")


@dataclass
class RecordingEngine:
    """The fake: set its fields, use it as an `Engine`, read `calls`.

    `scripts` are taken one a run (an empty list means: nothing is written, code 0); `events` are told to the listener
    of every pull and run; `failure` is raised by whatever method it is set for, ``following`` when a log has been shown
    and is followed. `record` is every container's, `written` its log. With `busy` somebody builds, so that removals
    take only names.
    """

    settings: Settings = field(default_factory=lambda: Settings(root="/nowhere"))
    known: list[ImageSummary] = field(default_factory=list)
    kept: list[ContainerSummary] = field(default_factory=list)
    scripts: list[Script] = field(default_factory=list)
    events: tuple[Event, ...] = ()
    busy: bool = False
    failure: dict[str, BaseException] = field(default_factory=dict)
    copied: CopyResult = field(default_factory=lambda: CopyResult(entries=1, bytes=2000))
    written: tuple[LogLine, ...] = (
        LogLine(time=_MOMENT, stream="stdout", data=b"one\ntwo\n"),
        LogLine(time=_MOMENT + 1, stream="stderr", data=b"three\n"),
    )
    record: dict[str, Any] = field(default_factory=lambda: {"version": 1})
    changes: tuple[Change, ...] = (Change(kind="A", path="/root/new"),)
    usage: ContainerUsage = field(
        default_factory=lambda: ContainerUsage(
            id=_ID,
            name="work",
            image="debian:latest",
            cpu=12.5,
            memory=100 << 20,
            memory_limit=256 << 20,
            pids=3,
            pids_limit=4096,
            read=1_000_000,
            written=0,
        )
    )
    step: FailedStep = field(
        default_factory=lambda: FailedStep(
            text="RUN make test",
            line=3,
            stage="stage 1",
            code=2,
            before=Digest.of(b"before"),
            after=Digest.of(b"after"),
            variables=("PATH=/bin",),
            directory="/src",
            user="",
            network="host",
            command=("/bin/sh", "-c", "make test"),
            mounts=("cache at /cache",),
        )
    )
    filled: list[VolumeSummary] = field(default_factory=list)
    made_networks: list[Network] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    closed: bool = False

    @staticmethod
    def image(reference: str = "docker.io/library/debian:latest", *, size: int = 117_000_000) -> ImageSummary:
        """An image summary to put into `known`."""
        return ImageSummary(
            reference=reference,
            id=Digest.of(reference.encode()),
            digest=Digest.of(b"manifest of " + reference.encode()),
            platform="linux/amd64",
            created=_MOMENT,
            pulled=_MOMENT,
            size=size,
            compressed_size=size // 3,
        )

    @staticmethod
    def container(name: str = "work", **changes: Any) -> ContainerSummary:
        """A container summary to put into `kept`."""
        summary = ContainerSummary(
            id=_ID, name=name, image="debian:latest", command=("sh",), state="exited", created=_MOMENT, exit_code=0
        )
        return replace(summary, **changes)

    @staticmethod
    def volume(name: str = "results", **changes: Any) -> VolumeSummary:
        """A volume's summary to put into `filled`."""
        summary = VolumeSummary(name=name, created=_MOMENT, mountpoint=f"/nowhere/volumes/{name}/_data")
        return replace(summary, **changes)

    def last(self, method: str) -> dict[str, Any]:
        """The arguments of the latest call of a method."""
        return next(call.arguments for call in reversed(self.calls) if call.method == method)

    def _record(self, method: str, **arguments: Any) -> None:
        self.calls.append(Call(method=method, arguments=arguments))
        if method in self.failure:
            raise self.failure[method]

    def _find(self, image: str) -> ImageSummary:
        wanted = str(Reference.parse(image))
        for summary in self.known:
            if wanted == summary.reference:
                return summary
        raise ImageNotFound(f"there is no image {image!r} here; pull it first")

    def pull(
        self, image: str, *, platform: str = "", policy: PullPolicy = "always", listener: Listener = ignore
    ) -> ImageSummary:
        self._record("pull", image=image, platform=platform, policy=policy)
        for event in self.events:
            listener(event)
        return self.image(str(Reference.parse(image)))

    def images(self) -> tuple[ImageSummary, ...]:
        self._record("images")
        return tuple(self.known)

    def inspect_image(self, image: str) -> ImageDetail:
        self._record("inspect_image", image=image)
        return self._detail(image)

    def _detail(self, image: str) -> ImageDetail:
        summary = self._find(image)
        config = ImageConfig(platform=Platform("linux", "amd64"), command=("bash",), environment=("PATH=/bin",))
        return ImageDetail(summary=summary, references=(summary.reference,), config=config, layers=())

    def inspect(self, name: str) -> ImageDetail | ContainerDetail | VolumeSummary:
        self._record("inspect", name=name)
        for volume in self.filled:
            if name == volume.name:
                return volume
        for summary in self.kept:
            if name in {summary.name, summary.id}:
                return ContainerDetail(summary=summary, record=self.record)
        return self._detail(name)

    def history(self, image: str) -> tuple[HistoryLine, ...]:
        self._record("history", image=image)
        self._find(image)
        entry = HistoryEntry(created="2026-01-01T00:00:00Z", created_by="/bin/sh -c #(nop) CMD [bash]")
        return (HistoryLine(entry=entry, layer=None, size=0),)

    def tag(self, image: str, name: str) -> ImageSummary:
        self._record("tag", image=image, name=name)
        return replace(self._find(image), reference=str(Reference.parse(name)))

    def remove_image(self, image: str, *, force: bool = False) -> RemovedImage:
        self._record("remove_image", image=image, force=force)
        summary = self._find(image)
        deleted = () if summary.id is None else (summary.id,)
        if self.busy:
            return RemovedImage(untagged=(summary.reference,), deleted=(), freed=0, deferred=True)
        return RemovedImage(untagged=(summary.reference,), deleted=deleted, freed=summary.size)

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
        self._record(
            "run",
            image=image,
            argv=tuple(argv),
            options=options or RunOptions(),
            script=script,
            shell=tuple(shell),
            stdin=stdin,
            check=check,
            **({"failed": failed} if failed else {}),
        )
        for event in self.events:
            listener(event)
        return self._played(image, tuple(argv), output, check=check)

    def _played(self, image: str, argv: tuple[str, ...], output: OutputSink | None, *, check: bool) -> RunResult:
        plan = self.scripts.pop(0) if self.scripts else Script()
        kept: dict[str, bytes] = {"stdout": b"", "stderr": b""}
        for stream, data in plan.output:
            kept[stream] += data
            if output is not None:
                output(stream, data)
        if plan.error is not None:
            raise plan.error
        result = RunResult(
            id=_ID,
            image=image,
            argv=argv,
            exit_code=plan.exit_code,
            reason=plan.reason,
            duration=0.01,
            stdout_bytes=kept["stdout"],
            stderr_bytes=kept["stderr"],
            detail=plan.detail,
        )
        if check and not result.ok:
            raise _failure(result)
        return result

    def containers(self, *, everything: bool = False) -> tuple[ContainerSummary, ...]:
        self._record("containers", everything=everything)
        return tuple(summary for summary in self.kept if everything or summary.state == "running")

    @property
    def default_network(self) -> str:
        return "none"

    def networks(self) -> tuple[NetworkSummary, ...]:
        self._record("networks")
        return (NetworkSummary(network=_BRIDGE), *(NetworkSummary(network=each) for each in self.made_networks))

    def inspect_network(self, network: str) -> NetworkSummary:
        self._record("inspect_network", network=network)
        return NetworkSummary(network=replace(_BRIDGE, name=network), endpoints=(self.endpoint(network),))

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
        asked = {"subnets": subnets, "gateways": gateways, "internal": internal, "mtu": mtu, "labels": labels}
        self._record("create_network", name=name, **asked)
        return NetworkSummary(network=Network(name=name, id="5" * 64))

    def remove_network(self, network: str) -> NetworkSummary:
        self._record("remove_network", network=network)
        return NetworkSummary(network=Network(name=network, id="5" * 64))

    def prune_networks(self) -> tuple[NetworkSummary, ...]:
        self._record("prune_networks")
        return tuple(NetworkSummary(network=each) for each in self.made_networks)

    def connect_network(self, network: str, container: str, options: NetworkOptions | None = None) -> Endpoint:
        self._record("connect_network", network=network, container=container, options=options)
        return self.endpoint(network)

    def disconnect_network(self, network: str, container: str) -> None:
        self._record("disconnect_network", network=network, container=container)

    def ports(self, container: str) -> tuple[PortMapping, ...]:
        self._record("ports", container=container)
        return self._kept(container).ports

    @staticmethod
    def endpoint(network: str = "bridge") -> Endpoint:
        """A place in a network, as `connect_network` answers it."""
        return Endpoint(
            network=network,
            container=_ID,
            interface="eth0",
            mac="02:42:0a:c0:00:02",
            address="10.192.0.2",
            prefix=24,
            gateway="10.192.0.1",
            names=("work",),
        )

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
        self._record(
            "launch",
            image=image,
            argv=tuple(argv),
            options=options or RunOptions(),
            script=script,
            shell=tuple(shell),
            **({"failed": failed} if failed else {}),
        )
        for event in self.events:
            listener(event)
        return self._behind(image, options)

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
        self._record(
            "create", image=image, argv=tuple(argv), options=options or RunOptions(), script=script, shell=tuple(shell)
        )
        for event in self.events:
            listener(event)
        return replace(self._behind(image, options), state="created")

    def _behind(self, image: str, options: RunOptions | None) -> ContainerSummary:
        summary = self.container(options.name if options else "", image=image, state="running", service=True)
        self.kept.append(summary)
        return summary

    def is_service(self, container: str) -> bool:
        self._record("is_service", container=container)
        return self._kept(container).service

    def start_behind(self, container: str) -> ContainerSummary:
        self._record("start_behind", container=container)
        return self._kept(container)

    def restart_behind(self, container: str, *, grace: float | None = None) -> ContainerSummary:
        self._record("restart_behind", container=container, grace=grace)
        return self._kept(container)

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
        self._record("attach", container=container, start=start, stdin=stdin, pass_signals=pass_signals, check=check)
        kept = self._kept(container)
        return self._played(kept.image, kept.command, output, check=check)

    def logs(
        self, container: str, *, tail: int | None = None, since: float | None = None, until: float | None = None
    ) -> tuple[LogLine, ...]:
        self._record("logs", container=container, tail=tail, since=since, until=until)
        return self.written

    def follow_logs(
        self, container: str, *, tail: int | None = None, since: float | None = None, until: float | None = None
    ) -> Iterator[LogLine]:
        self._record("follow_logs", container=container, tail=tail, since=since, until=until)
        yield from self.written
        if "following" in self.failure:
            raise self.failure["following"]

    def _kept(self, container: str) -> ContainerSummary:
        for summary in self.kept:
            if container == summary.name:
                return summary
        raise ContainerNotFound(f"there is no container {container!r}")

    def start(
        self,
        container: str,
        *,
        timeout: float | None = None,
        stdin: Input = None,
        output: OutputSink | None = None,
        check: bool = False,
    ) -> RunResult:
        self._record("start", container=container, timeout=timeout, stdin=stdin, check=check)
        kept = self._kept(container)
        return self._played(kept.image, kept.command, output, check=check)

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
        self._record("restart", container=container, grace=grace, timeout=timeout, stdin=stdin, check=check)
        kept = self._kept(container)
        return self._played(kept.image, kept.command, output, check=check)

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
        self._record(
            "exec",
            container=container,
            argv=tuple(argv),
            options=options or ExecOptions(),
            script=script,
            shell=tuple(shell),
            stdin=stdin,
            check=check,
        )
        return self._played(self._kept(container).image, tuple(argv), output, check=check)

    def kill(self, container: str, *, number: int = signal.SIGKILL) -> ContainerSummary:
        self._record("kill", container=container, number=number)
        return self._kept(container)

    def stop(self, container: str, *, grace: float | None = None) -> ContainerSummary:
        self._record("stop", container=container, grace=grace)
        return self._kept(container)

    def wait(self, container: str) -> ContainerSummary:
        self._record("wait", container=container)
        return self._kept(container)

    def rename(self, container: str, name: str) -> ContainerSummary:
        self._record("rename", container=container, name=name)
        return replace(self._kept(container), name=name)

    def remove_container(self, container: str, *, force: bool = False, volumes: bool = False) -> ContainerSummary:
        self._record("remove_container", container=container, force=force, volumes=volumes)
        return self._kept(container)

    def prune_containers(self, filters: Sequence[Filter] = ()) -> Pruned:
        self._record("prune_containers", filters=tuple(filters))
        return Pruned(names=tuple(each.name for each in self.kept if each.state == "exited"), freed=2_000_000)

    def create_volume(self, name: str = "", labels: Mapping[str, str] | None = None) -> VolumeSummary:
        self._record("create_volume", name=name, labels=labels)
        return self.volume(name or "0" * 64, labels=labels or {})

    def volumes(self) -> tuple[VolumeSummary, ...]:
        self._record("volumes")
        return tuple(self.filled)

    def inspect_volume(self, name: str) -> VolumeSummary:
        self._record("inspect_volume", name=name)
        return self._filled(name)

    def remove_volume(self, name: str) -> VolumeSummary:
        self._record("remove_volume", name=name)
        return self._filled(name)

    def prune_volumes(self, *, everything: bool = False, filters: Sequence[Filter] = ()) -> Pruned:
        self._record("prune_volumes", everything=everything, filters=tuple(filters))
        return Pruned(names=tuple(each.name for each in self.filled if not each.used_by), freed=2_000_000)

    def _filled(self, name: str) -> VolumeSummary:
        for volume in self.filled:
            if volume.name == name:
                return volume
        raise VolumeNotFound(f"no volume {name!r}")

    def build(self, options: BuildOptions, *, listener: Listener = ignore) -> BuiltImage:
        self._record("build", options=options)
        for event in self.events:
            listener(event)
        names = tuple(Reference.parse(tag).familiar for tag in options.tags)
        image = self.image(str(Reference.parse(options.tags[0] if options.tags else "localhost/untagged")))
        return BuiltImage(image=image, names=names, layers=2, steps=3, cached=1, seconds=1.5)

    def failed_step(self) -> FailedStep:
        self._record("failed_step")
        return self.step

    def clear_build_cache(self, *, unused_for: float | None = None) -> tuple[int, int]:
        self._record("clear_build_cache", unused_for=unused_for)
        return 3, 2_000_000

    def stats(self, containers: Sequence[str] = ()) -> tuple[ContainerUsage, ...]:
        self._record("stats", containers=tuple(containers))
        return (self.usage,)

    def top(self, container: str) -> tuple[ContainerProcess, ...]:
        self._record("top", container=container)
        return (
            ContainerProcess(
                pid=4711, parent=4710, user=0, state="S", seconds=3723.5, memory=2 << 20, command="sleep infinity"
            ),
        )

    def pause(self, container: str) -> ContainerSummary:
        self._record("pause", container=container)
        return replace(self._kept(container), paused=True)

    def unpause(self, container: str) -> ContainerSummary:
        self._record("unpause", container=container)
        return self._kept(container)

    def update(self, container: str, limits: Limits) -> ContainerSummary:
        self._record("update", container=container, limits=limits)
        return self._kept(container)

    def copy_from(
        self,
        container: str,
        path: str,
        target: str | BinaryIO,
        *,
        archive: bool = False,
        follow_link: bool = False,
    ) -> CopyResult:
        self._record(
            "copy_from", container=container, path=path, target=target, archive=archive, follow_link=follow_link
        )
        return self.copied

    def copy_to(
        self,
        source: str | BinaryIO,
        container: str,
        path: str,
        *,
        archive: bool = False,
        follow_link: bool = False,
    ) -> CopyResult:
        self._record("copy_to", source=source, container=container, path=path, archive=archive, follow_link=follow_link)
        return self.copied

    def diff(self, container: str) -> tuple[Change, ...]:
        self._record("diff", container=container)
        return self.changes

    def export(self, container: str, target: str | BinaryIO) -> CopyResult:
        self._record("export", container=container, target=target)
        return self.copied

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
        self._record(
            "commit",
            container=container,
            name=name,
            message=message,
            author=author,
            changes=tuple(changes),
            pause=pause,
        )
        image = self.image(str(Reference.parse(name or "untagged")))
        return CommittedImage(image=image, layer=Digest.of(b"layer"), size=1024, notices=self.copied.notices)

    def disk_usage(self) -> DiskUsage:
        self._record("disk_usage")
        line = DiskUsageLine(kind="Images", count=2, active=1, size=117_000_000, reclaimable=17_000_000)
        return DiskUsage(root="/nowhere", lines=(line,), free=5_000_000_000, total=10_000_000_000)

    def info(self) -> Info:
        self._record("info")
        return Info(items=(("root", "/nowhere"), ("runtime", "recording")))

    def version(self) -> Version:
        self._record("version")
        return Version(items=(("nbcontainer", "0"),))

    def doctor(self) -> DoctorReport:
        self._record("doctor")
        tier = Tier(name="recording", limits="nothing runs here")
        return DoctorReport(features=(), tier=tier, versions=(("nbcontainer", "0"),), store_root="/nowhere")

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _failure(result: RunResult) -> NbcontainerError:
    kinds = {"timeout": ContainerTimeout, "interrupted": ContainerInterrupted}
    kind = kinds.get(result.reason, ContainerExit)
    return kind(
        result.exit_code, result.argv, image=result.image, reason=result.detail, stderr_tail=result.stderr[-2000:]
    )
