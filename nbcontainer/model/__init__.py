"""The nouns of the house: frozen values, parsed once at the edge. Standard library only."""

from __future__ import annotations

from nbcontainer.model.container import (
    BindMount,
    ContainerId,
    ContainerSpec,
    Device,
    ExecOptions,
    ExitReason,
    Limits,
    Mount,
    MountKind,
    NetworkMode,
    PullPolicy,
    RunOptions,
    RunResult,
    TmpfsMount,
    Ulimit,
)
from nbcontainer.model.digest import Digest, chain_id, chain_ids
from nbcontainer.model.events import (
    Event,
    LayerProgress,
    LayerState,
    Listener,
    Notice,
    PullFinished,
    PullStarted,
    ignore,
)
from nbcontainer.model.idmap import IdMap, IdRange
from nbcontainer.model.oci import (
    Compression,
    Descriptor,
    HistoryEntry,
    ImageConfig,
    Index,
    Manifest,
    decode_document,
)
from nbcontainer.model.platform import Platform
from nbcontainer.model.reference import Reference

__all__ = [
    "BindMount",
    "Compression",
    "ContainerId",
    "ContainerSpec",
    "Descriptor",
    "Device",
    "Digest",
    "Event",
    "ExecOptions",
    "ExitReason",
    "HistoryEntry",
    "IdMap",
    "IdRange",
    "ImageConfig",
    "Index",
    "LayerProgress",
    "LayerState",
    "Limits",
    "Listener",
    "Manifest",
    "Mount",
    "MountKind",
    "NetworkMode",
    "Notice",
    "Platform",
    "PullFinished",
    "PullPolicy",
    "PullStarted",
    "Reference",
    "RunOptions",
    "RunResult",
    "TmpfsMount",
    "Ulimit",
    "chain_id",
    "chain_ids",
    "decode_document",
    "ignore",
]
