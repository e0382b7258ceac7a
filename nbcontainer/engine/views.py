"""What the engine answers: frozen values for people and programs. Drawing them is the doors' business."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbcontainer.model import Descriptor, Digest, HistoryEntry, ImageConfig
    from nbcontainer.model.network import Endpoint, Network, PortMapping

__all__ = [
    "BuiltImage",
    "Change",
    "CommittedImage",
    "ContainerDetail",
    "ContainerProcess",
    "ContainerState",
    "ContainerSummary",
    "ContainerUsage",
    "CopyResult",
    "DiskUsage",
    "DiskUsageLine",
    "HistoryLine",
    "ImageDetail",
    "ImageSummary",
    "Info",
    "LogLine",
    "NetworkSummary",
    "Pruned",
    "RemovedImage",
    "Version",
    "VolumeSummary",
]

ContainerState = Literal["created", "running", "restarting", "exited", "dead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSummary:
    """One line of ``images``: `created` and `pulled` are unix seconds, `size` is bytes on disk when unpacked."""

    reference: str
    id: Digest | None
    digest: Digest | None
    platform: str
    created: float | None
    pulled: float | None
    size: int
    compressed_size: int
    in_use: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDetail:
    """``inspect IMAGE``: everything known of it."""

    summary: ImageSummary
    references: tuple[str, ...]
    config: ImageConfig
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryLine:
    """One line of ``history``, newest first; `size` is the compressed layer in bytes, 0 for an empty one."""

    entry: HistoryEntry
    layer: Digest | None
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovedImage:
    """What ``rmi`` did: names taken away, and images, layers and bytes that went with the last name.

    With `deferred` the layers stay until the next removal, because somebody adds some at the moment.
    """

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    freed: int
    deferred: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSummary:
    """One line of ``ps``: times are unix seconds; `exit_code` is None while it runs or when nobody saw it end.

    `started` is its latest start; `title` is the first line of a cell's text, "" for a command. `chain` is the chain id
    of its image, `mounted` the names of its volumes, the folders of this machine that it sees, and where. A `service`
    runs on behind; `health` is what its checks say, "" when there are none.
    """

    id: str
    name: str
    image: str
    command: tuple[str, ...]
    state: ContainerState
    created: float
    finished: float | None = None
    exit_code: int | None = None
    reason: str = ""
    pid: int | None = None
    started: float | None = None
    title: str = ""
    paused: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    chain: str = ""
    mounted: tuple[str, ...] = ()
    service: bool = False
    health: str = ""
    ports: tuple[PortMapping, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSummary:
    """A network, and the places of running containers in it. Its subnet is "" for as long as it has had none."""

    network: Network
    endpoints: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUsage:
    """One line of ``stats``: `cpu` in percent of one processor, sizes in bytes, None for no limit or nothing known."""

    id: str
    name: str
    image: str
    cpu: float
    memory: int
    memory_limit: int | None
    pids: int
    pids_limit: int | None
    read: int | None
    written: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerProcess:
    """One line of ``top``: pids are the machine's, `user` is the container's (None: not one of its), times seconds."""

    pid: int
    parent: int
    user: int | None
    state: str
    seconds: float
    memory: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerDetail:
    """``inspect CONTAINER``: the summary and the record as kept."""

    summary: ContainerSummary
    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSummary:
    """One line of ``volume ls``: `created` in unix seconds, `used_by` the containers that name it, running or not.

    An `anonymous` one was made for a container without a name of its own. `usable` is False for one whose owners would
    be other people now (its `ids` are not those of containers here).
    """

    name: str
    created: float
    mountpoint: str
    labels: Mapping[str, str] = field(default_factory=dict)
    anonymous: bool = False
    used_by: tuple[str, ...] = ()
    ids: str = ""
    usable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What a prune removed, by name or id, and the bytes that freed, as far as they could be seen."""

    names: tuple[str, ...]
    freed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A piece of a container's output as it was written: `time` in unix seconds."""

    time: float
    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsageLine:
    """One kind of thing in the store; `size` and `reclaimable` in bytes."""

    kind: str
    count: int
    active: int
    size: int
    reclaimable: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskUsage:
    """``df``: what the store holds, and what its file system has left, in bytes."""

    root: str
    lines: tuple[DiskUsageLine, ...]
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """``info``, and the status that plain ``%container`` shows: ordered name/value pairs."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """``version``: ordered name/version pairs of this package and what it stands on."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One line of ``diff``: a path that was added (A), changed (C) or deleted (D)."""

    kind: Literal["A", "C", "D"]
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What ``cp`` or ``export`` moved: entries, bytes of files, and a sentence for what had to be left out."""

    entries: int
    bytes: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedImage:
    """What ``commit`` made: the image, the size of its new layer's tar in bytes, and sentences worth reading."""

    image: ImageSummary
    layer: Digest
    size: int
    notices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """What ``build`` made: the image and its names, and how many of its steps were known already."""

    image: ImageSummary
    names: tuple[str, ...]
    layers: int
    steps: int
    cached: int
    seconds: float
    notices: tuple[str, ...] = ()
