"""Folders of this machine that a container is to see: where they really are, and which of them are refused."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.model import BindMount

__all__ = ["resolved_volumes"]

_SOCKETS = ("docker.sock", "podman.sock", "containerd.sock")
_FORBIDDEN_SOURCES = frozenset({"/", "/proc", "/sys", "/dev", "/run", "/var/run", "/etc", "/boot"})


def resolved_volumes(volumes: Sequence[BindMount], store: str) -> tuple[BindMount, ...]:
    """The volumes with every link of their sources followed: what is checked here is what is mounted later.

    (Whoever mounts refuses links, so that none can be put in the way between.) Refuses what is not there, and what
    would hand the machine over.
    """
    resolved = []
    for volume in volumes:
        try:
            source = os.path.realpath(volume.source)
        except OSError as problem:  # a link that was there a moment ago
            raise InvalidOption(f"volume source {volume.source} changes while it is looked at; refused") from problem
        if volume.make_source and not os.path.lexists(source):
            _make_source(source, [os.path.realpath(store)])
        if not os.path.exists(source):
            raise InvalidOption(
                f"volume source {volume.source} does not exist on this machine; "
                f"make it first (mkdir -p {volume.source})"
            )
        runtime_directory = os.environ.get("JUPYTER_RUNTIME_DIR") or "~/.local/share/jupyter/runtime"
        keys = os.path.realpath(os.path.expanduser(runtime_directory))
        store = os.path.realpath(store)
        if _hands_over(source, [store, keys]):
            raise InvalidOption(
                f"volume source {volume.source} would hand this machine to the container: it is, lies in or holds "
                f"{_what_is_closed(source, store, keys)}"
            )
        resolved.append(dataclasses.replace(volume, source=source))
    return tuple(resolved)


def _make_source(source: str, closed: Sequence[str]) -> None:
    """Make a folder that was asked for with the mount; not where none could be mounted."""
    if _hands_over(source, closed):
        return
    try:
        os.makedirs(source, exist_ok=True)
    except OSError as problem:
        raise InvalidOption(f"volume source {source} cannot be made: {problem.strerror}") from problem


def _what_is_closed(source: str, store: str, keys: str) -> str:
    """The cause and the way out, for the refusal of a volume."""
    if _same_or_below(store, source) and source not in _FORBIDDEN_SOURCES:
        elsewhere = ", or move the store out of it with NBCONTAINER_ROOT" if not _same_or_below(keys, source) else ""
        return f"this package's store ({store}); mount a subfolder that you need{elsewhere}"
    if _same_or_below(keys, source) and source not in _FORBIDDEN_SOURCES:
        return f"the keys of your notebooks ({keys}); mount a subfolder that you need"
    return "system files, this package's store, Jupyter's keys or an engine's socket; mount a folder of your own"


def _hands_over(source: str, closed: Sequence[str]) -> bool:
    """Whether `source` gives away more than files: the machine's own folders, what is `closed`, an engine's socket."""
    if source in _FORBIDDEN_SOURCES or source.startswith(("/proc/", "/sys/")):
        return True
    if os.path.basename(source) in {*_SOCKETS, ".jupyter"}:
        return True
    if any(os.path.exists(os.path.join(source, name)) for name in _SOCKETS):
        return True
    return any(_same_or_below(path, source) or _same_or_below(source, path) for path in closed)


def _same_or_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
