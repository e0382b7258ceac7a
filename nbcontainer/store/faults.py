"""The one place where this island turns the operating system's errors into sentences."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbcontainer.errors import NbcontainerError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["human_size", "storage_faults"]

_ELSEWHERE = "or move the store with NBCONTAINER_ROOT"


def human_size(count: float) -> str:
    """Bytes for people, in binary units: ``1536`` is ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@contextmanager
def storage_faults(doing: str, path: str) -> Iterator[None]:
    """Raise `StorageError` for any `OSError` inside; `doing` completes "cannot …"."""
    try:
        yield
    except NbcontainerError:
        raise  # some of ours are OSErrors too
    except OSError as problem:
        raise StorageError(_sentence(problem, doing, path)) from problem


def _sentence(problem: OSError, doing: str, path: str) -> str:
    if problem.errno == errno.ENOSPC:
        return (
            f"cannot {doing}: the disk holding {path} is full ({_free(path)} free);"
            f" make room (%container df shows what the store holds) {_ELSEWHERE}"
        )
    if problem.errno == errno.EDQUOT:
        return (
            f"cannot {doing}: your disk quota where {path} lies is used up;"
            f" make room (%container df shows what the store holds) {_ELSEWHERE}"
        )
    if problem.errno == errno.EROFS:
        return f"cannot {doing}: {path} is on a read-only file system; remount it {_ELSEWHERE}"
    if problem.errno in {errno.EACCES, errno.EPERM}:
        return f"cannot {doing}: user {os.geteuid()} may not use {path}; change its owner {_ELSEWHERE}"
    return f"cannot {doing} at {path}: {problem.strerror or problem}; check that disk {_ELSEWHERE}"


def _free(path: str) -> str:
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    try:
        status = os.statvfs(path or "/")
    except OSError:
        return "an unknown amount"
    return human_size(status.f_bavail * status.f_frsize)
