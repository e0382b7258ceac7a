"""What is kept between sessions: verified blobs, the names that point at them, and the locks that kernels share.

Nothing half-made has its final name here: bytes are written aside, verified, synced and renamed; a name moves last.
So a process killed at any instant leaves a store that the next one can use as it is.
"""

from __future__ import annotations

from nbcontainer.store.content import BlobStore, ContentStore, Draft, Ingest
from nbcontainer.store.gc import Lease, Reachable, Swept, mark, sweep
from nbcontainer.store.locks import FileLock, lock_store
from nbcontainer.store.refs import ImageRecord, RefStore
from nbcontainer.store.volumes import VOLUME_NAME, Volume, VolumeStore

__all__ = [
    "VOLUME_NAME",
    "BlobStore",
    "ContentStore",
    "Draft",
    "FileLock",
    "ImageRecord",
    "Ingest",
    "Lease",
    "Reachable",
    "RefStore",
    "Swept",
    "Volume",
    "VolumeStore",
    "lock_store",
    "mark",
    "sweep",
]
