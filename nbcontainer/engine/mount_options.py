"""What people type after ``-v`` and ``--mount``, read once: docker's two languages for the same three things.

``-v`` is the short one: a name is a volume, a path a folder of this machine, a single path a volume of the
container's own. ``--mount`` spells everything out as ``key=value``; what docker has there and a sandbox cannot keep is
known, too, and refused with the reason.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.engine.command_line import Option, nearest
from nbcontainer.engine.limit_options import read_size
from nbcontainer.errors import InvalidOption
from nbcontainer.model import BindMount, TmpfsMount, VolumeMount
from nbcontainer.store import VOLUME_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MOUNT_OPTIONS", "read_label", "read_mount", "read_volume", "split_mounts"]

_MODES = frozenset({"ro", "rw", "nocopy", "private", "rprivate"})
_SHARED = frozenset({"shared", "rshared", "slave", "rslave"})
_NO_PROPAGATION = "mounts made on one side never show on the other: a sandbox stands on that; leave it out"


# --- -v --------------------------------------------------------------------------------------------------------------


def read_volume(text: str) -> BindMount | VolumeMount:
    """``NAME:CONTAINER[:ro,nocopy]``, ``HOST:CONTAINER[:ro]``, or ``CONTAINER``; HOST may start with ~ or a dot."""
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise InvalidOption(
            f"volume {text!r} is not HOST:CONTAINER[:ro] or NAME:CONTAINER; write for example .:/data, ~/set:/data:ro"
            " or results:/data"
        )
    source, target = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    modes = parts[2].split(",") if len(parts) == 3 else []
    for mode in modes:
        if mode in _SHARED:
            raise InvalidOption(f"volume {text!r}: {mode}: {_NO_PROPAGATION}")
        if mode in {"z", "Z"}:
            raise InvalidOption(
                f"volume {text!r}: {mode}: there are no SELinux labels for containers here; leave it out"
            )
        if mode not in _MODES:
            raise InvalidOption(f"volume {text!r} has the option {mode!r}; there are ro, rw and nocopy")
    if {"ro", "rw"} <= set(modes):
        raise InvalidOption(f"volume {text!r} is ro and rw; leave one of them out")
    where = _target(f"volume {text!r}", target)
    if not source or VOLUME_NAME.fullmatch(source):
        return VolumeMount(name=source, target=where, read_only="ro" in modes, copy="nocopy" not in modes)
    if "nocopy" in modes:
        raise InvalidOption(f"volume {text!r}: nocopy is for volumes; nothing is ever copied into a folder of yours")
    return BindMount(source=_host_path(f"volume {text!r}", source), target=where, read_only="ro" in modes)


def _target(what: str, target: str) -> str:
    if not target.startswith("/") or os.path.normpath(target).strip("/") == "":
        raise InvalidOption(f"{what}: the container side {target!r} must be an absolute path below /")
    return f"/{os.path.normpath(target).strip('/')}"


def _host_path(what: str, host: str, *, missing: bool = False) -> str:
    if not host.startswith(("/", ".", "~")):
        raise InvalidOption(
            f"{what}: {host!r} is no name of a volume (2 to 128 letters, digits, '_', '.' and '-'); for that folder"
            f" write ./{host}"
        )
    path = os.path.abspath(os.path.expanduser(host))
    if not missing and not os.path.exists(path):
        raise InvalidOption(f"{what}: there is no {path} on this machine; create it first")
    return path


# --- --mount ---------------------------------------------------------------------------------------------------------

_ALIASES = {
    "src": "source",
    "dst": "target",
    "destination": "target",
    "ro": "readonly",
    "bind-create-source": "bind-create-src",
}
_SWITCHES = frozenset({"readonly", "volume-nocopy", "bind-create-src", "bind-nonrecursive"})
_KEYS = {
    "volume": ("source", "target", "readonly", "volume-nocopy", "volume-subpath", "volume-label"),
    "bind": ("source", "target", "readonly", "bind-propagation", "bind-recursive", "bind-create-src", "consistency"),
    "tmpfs": ("target", "readonly", "tmpfs-size", "tmpfs-mode"),
}
_REFUSED = {
    "bind-nonrecursive": "what is mounted in the folder comes along; a view below those mounts is not given",
    "volume-driver": "there is only the local driver: a volume is a folder of the store",
    "volume-opt": "a volume is a folder of the store; other file systems cannot be mounted by a container",
    "image-subpath": "images cannot be mounted there yet; COPY --from in a Dockerfile takes files out of one",
}
_KINDS = {
    "image": _REFUSED["image-subpath"],
    "npipe": "named pipes are of another operating system",
    "cluster": "there is no cluster; write type=volume",
}


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of one ``--mount``; `text` is all of it."""

    text: str
    values: dict[str, str]
    labels: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        return self.values.get(name, "")

    def switch(self, name: str) -> bool:
        value = self.values.get(name)
        if value is None:
            return False
        if value.lower() not in {"", "true", "1", "false", "0"}:
            raise InvalidOption(f"mount {self.text!r}: {name}={value} is neither true nor false")
        return value.lower() in {"", "true", "1"}

    @property
    def target(self) -> str:
        if not self.get("target"):
            raise InvalidOption(f"mount {self.text!r} has no target; write for example target=/data")
        return _target(f"mount {self.text!r}", self.get("target"))


def read_mount(text: str) -> BindMount | VolumeMount | TmpfsMount:
    """``type=volume|bind|tmpfs,source=…,target=…[,readonly][,…]``; without a type it is a volume, as in docker."""
    fields = _fields(text)
    kind = fields.values.pop("type", "volume").lower()
    if kind in _KINDS:
        raise InvalidOption(f"mount {text!r}: type={kind}: {_KINDS[kind]}")
    if kind not in _KEYS:
        raise InvalidOption(f"mount {text!r}: there is no type {kind!r}; there are volume, bind and tmpfs")
    _check_keys(fields, kind)
    if kind == "tmpfs":
        return _tmpfs(fields)
    return _volume(fields) if kind == "volume" else _bind(fields)


def _fields(text: str) -> _Fields:
    """The parts of a line of comma-separated values, in which a part with a comma stands in quotes."""
    try:
        (parts,) = csv.reader([text], strict=True)
    except (csv.Error, ValueError) as problem:
        raise InvalidOption(
            f"mount {text!r} cannot be read; write type=volume,source=results,target=/data"
        ) from problem
    values: dict[str, str] = {}
    labels = []
    for part in parts:
        written, equals, value = part.strip().partition("=")
        name = _ALIASES.get(written.lower(), written.lower())
        if not equals and name not in _SWITCHES:
            known = [*_ALIASES, *(key for keys in _KEYS.values() for key in keys)]
            raise InvalidOption(
                f"mount {text!r}: {written!r} needs a value{nearest(name, known)}; write {written}=VALUE"
            )
        if name == "volume-label":
            labels.append(read_label(value))
        elif name in values:
            raise InvalidOption(f"mount {text!r} has {name} twice; leave one of them out")
        values[name] = value
    return _Fields(text, values, tuple(labels))


def _check_keys(fields: _Fields, kind: str) -> None:
    for name in fields.values:
        if name in _REFUSED and not (name == "volume-driver" and fields.get(name) in {"", "local"}):
            raise InvalidOption(f"mount {fields.text!r}: {name}: {_REFUSED[name]}")
        if name not in (*_KEYS[kind], "volume-driver"):
            other = next((each for each, keys in _KEYS.items() if name in keys), "")
            hint = f"; that is for type={other}" if other else nearest(name, _KEYS[kind])
            raise InvalidOption(f"mount {fields.text!r}: type={kind} has no option {name!r}{hint}")


def _volume(fields: _Fields) -> VolumeMount:
    name = fields.get("source")
    if name and not VOLUME_NAME.fullmatch(name):
        hint = "; for a folder of this machine write type=bind" if name.startswith(("/", ".", "~")) else ""
        raise InvalidOption(
            f"mount {fields.text!r}: volume name {name!r} must be 2 to 128 letters, digits, '_', '.' and '-', starting"
            f" with a letter or digit{hint}"
        )
    if fields.get("volume-subpath") and not name:
        raise InvalidOption(f"mount {fields.text!r}: a new volume has no folder yet; volume-subpath needs a source")
    return VolumeMount(
        name=name,
        target=fields.target,
        read_only=fields.switch("readonly"),
        copy=not fields.switch("volume-nocopy"),
        subpath=fields.get("volume-subpath"),
        labels=fields.labels,
    )


def _bind(fields: _Fields) -> BindMount:
    if fields.get("bind-propagation") not in {"", "private", "rprivate"}:
        raise InvalidOption(
            f"mount {fields.text!r}: bind-propagation={fields.get('bind-propagation')}: {_NO_PROPAGATION}"
        )
    recursive = fields.get("bind-recursive")
    if recursive not in {"", "enabled", "readonly"} or (recursive == "readonly" and not fields.switch("readonly")):
        reason = "goes with readonly" if recursive == "readonly" else _REFUSED["bind-nonrecursive"]
        raise InvalidOption(f"mount {fields.text!r}: bind-recursive={recursive}: {reason}")
    if not fields.get("source"):
        raise InvalidOption(f"mount {fields.text!r} has no source; write the folder of this machine, as in source=.")
    make = fields.switch("bind-create-src")
    source = fields.get("source")
    if not source.startswith(("/", ".", "~")):
        source = f"./{source}"  # here it can only be a path
    return BindMount(
        source=_host_path(f"mount {fields.text!r}", source, missing=make),
        target=fields.target,
        read_only=fields.switch("readonly"),
        make_source=make,
    )


def _tmpfs(fields: _Fields) -> TmpfsMount:
    mode = fields.get("tmpfs-mode")
    if mode and not re.fullmatch(r"[0-7]{3,5}", mode, re.ASCII):
        raise InvalidOption(f"mount {fields.text!r}: tmpfs-mode={mode} is not octal; write for example tmpfs-mode=1777")
    return TmpfsMount(
        target=fields.target,
        size=read_size(fields.get("tmpfs-size")) if fields.get("tmpfs-size") else 0,
        mode=int(mode, 8) & 0o7777 if mode else 0o1777,
        read_only=fields.switch("readonly"),
    )


# --- labels ----------------------------------------------------------------------------------------------------------


def read_label(text: str) -> tuple[str, str]:
    """``NAME=VALUE``, or ``NAME`` alone for an empty value."""
    name, _, value = text.partition("=")
    if not name.strip() or "\0" in text:
        raise InvalidOption(f"label {text!r} has no name; write NAME=VALUE")
    return name.strip(), value


def split_mounts(
    volumes: Sequence[BindMount | VolumeMount], mounts: Sequence[BindMount | VolumeMount | TmpfsMount]
) -> tuple[tuple[BindMount | VolumeMount, ...], tuple[TmpfsMount, ...]]:
    """What ``-v`` and ``--mount`` ask for, put together: what has files of its own, and what is in memory."""
    files = [each for each in mounts if not isinstance(each, TmpfsMount)]
    return (*volumes, *files), tuple(each for each in mounts if isinstance(each, TmpfsMount))


MOUNT_OPTIONS: tuple[Option, ...] = (
    Option(
        flags=("-v", "--volume"),
        metavar="[SOURCE:]CONTAINER[:ro]",
        many=True,
        help="show a volume (SOURCE is a name) or a folder or file of this machine (it starts with /, ~ or .); without"
        " SOURCE a volume of the container's own; ro, and for volumes nocopy, may follow",
        read=read_volume,
    ),
    Option(
        flags=("--mount",),
        metavar="type=KIND,target=PATH,…",
        many=True,
        help="the same spelled out: type=volume, bind or tmpfs, source, target, readonly, volume-nocopy,"
        " volume-subpath, bind-create-src, tmpfs-size, tmpfs-mode",
        read=read_mount,
    ),
    Option(
        flags=("-l", "--label"),
        metavar="NAME=VALUE",
        many=True,
        help="a label of the container, beside the image's",
        read=read_label,
    ),
)
"""What `run` shows in a container, and what it calls it."""
