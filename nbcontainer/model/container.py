"""Containers as values: what is asked (`RunOptions`), what will be done (`ContainerSpec`), what came (`RunResult`).

A `ContainerSpec` is complete: any driver can execute it without asking the image, the host or the person again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NewType

if TYPE_CHECKING:
    from nbcontainer.model.service import ServiceOptions

from nbcontainer.model.network import NetworkOptions

__all__ = [
    "BindMount",
    "ContainerId",
    "ContainerSpec",
    "Device",
    "ExecOptions",
    "ExitReason",
    "Limits",
    "Mount",
    "MountKind",
    "MountedFile",
    "NetworkMode",
    "PullPolicy",
    "RunOptions",
    "RunResult",
    "TmpfsMount",
    "Ulimit",
    "VolumeMount",
]

ContainerId = NewType("ContainerId", str)
"""64 lower-case hex digits; the first twelve are shown and are the default host name."""

NetworkMode = str
"""What follows ``--network``, as checked by `nbcontainer.model.network.NetworkChoice`."""

PullPolicy = Literal["missing", "always", "never"]
ExitReason = Literal["exited", "signalled", "timeout", "interrupted", "stopped", "oom", "lost"]
MountKind = Literal["bind", "overlay", "tmpfs", "mask", "symlink"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BindMount:
    """A folder or file of the host shown inside, as typed after ``-v``; with `make_source` a missing folder is made."""

    source: str
    target: str
    read_only: bool = False
    make_source: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    """A volume of the store shown inside; without a `name` a new one is made, which is the container's own.

    With `copy` an empty volume is filled with what the image has at `target` when it is first used. `subpath` is a
    folder of the volume to show instead of all of it. `labels` are for a volume that has to be made.
    """

    target: str
    name: str = ""
    read_only: bool = False
    copy: bool = True
    subpath: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One mount as data: emitted by a snapshotter or by the bundle, performed by whoever sets the container up.

    `target` is absolute inside the container. `source` is a path of the host (bind) or what a symlink points to.
    `lower` lists overlay layers, topmost first, with `upper` and `work` empty for a read-only view. `idmapped` asks
    for a clone whose ids are shifted into the container's user namespace, which only root can make. `volatile` skips
    syncs: right for what is thrown away. A `mask` hides what is at `target`, if anything is. `executable` is whether
    programs of a tmpfs may be run.
    """

    kind: MountKind
    target: str
    source: str = ""
    lower: tuple[str, ...] = ()
    upper: str = ""
    work: str = ""
    read_only: bool = False
    recursive: bool = False
    idmapped: bool = False
    volatile: bool = False
    size: int = 0
    mode: int = 0o755
    executable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedFile:
    """A small file that is only in memory and shown at `target`: a secret. It is in no layer and on no disk."""

    target: str
    data: bytes = field(repr=False)
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TmpfsMount:
    """A memory file system as asked by ``--tmpfs``: `size` in bytes, 0 for half of the machine's memory."""

    target: str
    size: int = 0
    mode: int = 0o1777
    read_only: bool = False
    executable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device node of the host shown inside, as typed after ``--device``; `access` is ``r``, ``w`` or both."""

    source: str
    target: str
    access: str = "rw"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ulimit:
    """One limit of setrlimit(2) by docker's name for it; -1 is unlimited."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resource limits kept by cgroups; None is not asked for, sizes are bytes.

    `memory_swap` is memory and swap together, -1 for as much swap as there is; None means twice `memory`, as docker
    has it. `cpus` is processors' worth of time, `cpu_shares` a weight (1024 is usual), `cpuset_cpus` a list such as
    ``0-2,4``. `pids` is processes and threads, -1 for any number; None leaves the runtime's own limit.
    """

    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str = ""
    pids: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Everything a driver needs to run one container.

    `scratch`, a directory of the store, is removed when every process of the container is gone. `generation` changes
    when the layers below are made anew under the same path.
    """

    id: ContainerId
    argv: tuple[str, ...]
    root: tuple[Mount, ...]
    environment: tuple[str, ...] = ()
    working_directory: str = "/"
    user: str = ""
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    network: NetworkMode = "none"
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = True
    seccomp: str = "default"
    read_only_root: bool = False
    limits: Limits = field(default_factory=Limits)
    script: bytes | None = None
    files: tuple[tuple[str, str], ...] = ()
    mounted_files: tuple[MountedFile, ...] = ()
    extra_hosts: tuple[str, ...] = ()
    resolv_conf: str = ""
    networking: NetworkOptions = field(default_factory=NetworkOptions)
    addresses: tuple[str, ...] = ()
    scratch: str = ""
    generation: str = ""
    ulimits: tuple[Ulimit, ...] = ()
    shm_size: int = 0
    devices: tuple[Device, ...] = ()
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a person may ask of a run, in docker's words; None or empty means the image's or the engine's default.

    `seccomp` is a profile's path or ``unconfined``; sizes are bytes, times are seconds. With a `terminal` the command's
    standard streams are one, and what it writes to either output comes as one. With `service` it runs on behind.
    """

    name: str = ""
    remove: bool | None = None
    environment: tuple[str, ...] = ()
    volumes: tuple[BindMount | VolumeMount, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    working_directory: str = ""
    user: str = ""
    hostname: str = ""
    entrypoint: tuple[str, ...] | None = None
    network: NetworkMode | None = None
    networking: NetworkOptions = field(default_factory=NetworkOptions)
    read_only: bool = False
    pull: PullPolicy = "missing"
    platform: str = ""
    timeout: float | None = None
    limits: Limits = field(default_factory=Limits)
    ulimits: tuple[Ulimit, ...] = ()
    shm_size: int = 0
    tmpfs: tuple[TmpfsMount, ...] = ()
    devices: tuple[Device, ...] = ()
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str = ""
    no_new_privileges: bool = True
    stop_signal: str = ""
    stop_timeout: float | None = None
    terminal: bool = False
    service: ServiceOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecOptions:
    """What a person may ask of a command in a running container; empty means as the container has it.

    `environment` is added to the container's own, `timeout` is in seconds. A `detached` command is not waited for and
    writes to nobody; with a `terminal`, standard streams are one, as for `RunOptions`.
    """

    environment: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    timeout: float | None = None
    detached: bool = False
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What a finished container left: output as bytes kept (or empty when it was streamed away), code, reason.

    `exit_code` is the command's own, or 128 + n when signal n ended it. `duration` is wall time in seconds
    from request to exit. `notes` are sentences about limits that were met on the way, whatever the end.
    """

    id: ContainerId
    image: str
    argv: tuple[str, ...]
    exit_code: int
    reason: ExitReason
    duration: float
    stdout_bytes: bytes = b""
    stderr_bytes: bytes = b""
    detail: str = ""
    notes: tuple[str, ...] = ()

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 become U+FFFD."""
        return self.stderr_bytes.decode(errors="replace")

    @property
    def ok(self) -> bool:
        """True when the command ended by itself with code 0."""
        return self.reason == "exited" and self.exit_code == 0
