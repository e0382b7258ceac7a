"""``RUN --mount=…``: comma-separated options to one frozen value for each type of mount.

Options are read twice. When the line is parsed, names are checked, and values where they hold no variable. When the
instruction runs, each value is expanded on its own and the whole becomes a value. ``from`` never expands: stages are
wired before anything runs.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, cast

from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MOUNT_TYPES",
    "BindRunMount",
    "CacheRunMount",
    "RunMount",
    "SecretRunMount",
    "Sharing",
    "SshRunMount",
    "TmpfsRunMount",
    "mount_source",
    "parse_mount",
]

Sharing = Literal["shared", "private", "locked"]

_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly", "rw": "readwrite"}
MOUNT_TYPES: dict[str, frozenset[str]] = {
    "bind": frozenset({"from", "source", "target", "readonly", "readwrite"}),
    "cache": frozenset({"id", "from", "source", "target", "readonly", "readwrite", "sharing", "mode", "uid", "gid"}),
    "tmpfs": frozenset({"target", "size", "readonly", "readwrite"}),
    "secret": frozenset({"id", "source", "target", "env", "required", "mode", "uid", "gid"}),
    "ssh": frozenset({"id", "target", "required", "mode", "uid", "gid"}),
}
_SWITCHES = frozenset({"readonly", "readwrite", "required"})
_KNOWN = sorted({"type", *_ALIASES, *(name for names in MOUNT_TYPES.values() for name in names)})
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,15})?) ?([kmgtp]?)i?b?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


@dataclass(frozen=True, slots=True, kw_only=True)
class BindRunMount:
    """Files of the build context, or of the stage or image `from_`. What is written to it is thrown away.

    `target` is relative to the WORKDIR in force, as it is for all types; `source` is below the root of `from_`.
    """

    target: str
    source: str = "/"
    from_: str = ""
    readonly: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRunMount:
    """A directory that outlives the build and starts with `source` of `from_`; `id` defaults to the cleaned target."""

    target: str
    id: str
    source: str = "/"
    from_: str = ""
    readonly: bool = False
    sharing: Sharing = "shared"
    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TmpfsRunMount:
    """An empty directory in memory; `size` is in bytes, None without a limit of its own."""

    target: str
    size: int | None = None
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRunMount:
    """A secret as the file `target`, as the variable `env`, or both; `target` is "" when it is a variable only."""

    id: str
    target: str = ""
    env: str = ""
    required: bool = False
    mode: int = 0o400
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SshRunMount:
    """A socket of the ssh agent `id`; `target` is "" for the place of the builder's choice, told in SSH_AUTH_SOCK."""

    id: str = "default"
    target: str = ""
    required: bool = False
    mode: int = 0o600
    uid: int = 0
    gid: int = 0


RunMount = BindRunMount | CacheRunMount | TmpfsRunMount | SecretRunMount | SshRunMount


def mount_source(flag: str) -> str:
    """The stage or image in ``from=``, which the graph of stages needs before anything is expanded; "" for none."""
    return next((value or "" for name, value in _options(flag) if name == "from"), "")


def parse_mount(flag: str, expand: Callable[[str], str] | None) -> RunMount | None:
    """The value of ``--mount`` as a mount; raises `DockerfileError` without a place.

    Without `expand` it is read as far as that goes: None is the answer when a value holds a variable.
    """
    options: dict[str, str | None] = {}
    undecided = False
    for name, value in _options(flag):
        canonical = _ALIASES.get(name, name)
        if canonical not in _KNOWN:
            near = get_close_matches(name, _KNOWN, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(_KNOWN)}"
            raise DockerfileError(f"a mount has no option {name!r}{hint}")
        if value is None and canonical not in _SWITCHES:
            raise DockerfileError(f"the mount option {name!r} needs a value; write {name}=VALUE")
        if canonical == "from" and re.search(r"\$.", value or ""):
            raise DockerfileError(
                "the mount option 'from' is not expanded; name a stage, and give that stage the variable in its FROM"
            )
        if value is not None and expand is None and re.search(r"[$'\"\\`]", value):
            undecided = True
        options[canonical] = expand(value) if value is not None and expand is not None else value
    return None if undecided else _mount(options)


def _options(flag: str) -> list[tuple[str, str | None]]:
    """Comma-separated fields, one of which may be in double quotes to hold a comma; names in any case."""
    try:
        rows = list(csv.reader(io.StringIO(flag, newline=""), strict=True))
    except csv.Error as problem:
        raise DockerfileError(f"the mount {flag!r} is no list of comma-separated options: {problem}") from problem
    fields = [part.partition("=") for row in rows for part in row]
    return [(name.lower(), value if equals else None) for name, equals, value in fields]


def _mount(options: dict[str, str | None]) -> RunMount:
    kind = (options.pop("type", "bind") or "").lower()
    if kind not in MOUNT_TYPES:
        near = get_close_matches(kind, MOUNT_TYPES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(MOUNT_TYPES)}"
        raise DockerfileError(f"there is no mount of type {kind!r}{hint}")
    for name in options:
        if name not in MOUNT_TYPES[kind]:
            raise DockerfileError(f"a mount of type {kind} has no option {name!r}; remove it or change the type")
    return _MAKERS[kind](_Options(kind, options))


class _Options:
    """The options of one mount, read by their type."""

    def __init__(self, kind: str, options: dict[str, str | None]) -> None:
        self._kind = kind
        self._options = options

    def text(self, name: str, default: str = "") -> str:
        return self._options.get(name) or default

    def target(self) -> str:
        target = self.text("target")
        if not target:
            raise DockerfileError(f"a mount of type {self._kind} needs a target; add target=/PATH")
        if posixpath.normpath(target) in {"/", "//"}:
            raise DockerfileError("a mount cannot cover the root directory; choose another target")
        return target

    def flag(self, name: str) -> bool | None:
        if name not in self._options:
            return None
        value = self._options[name]
        if value is None or value in _TRUE:
            return True
        if value in _FALSE:
            return False
        raise DockerfileError(f"the mount option {name!r} is true or false, not {value!r}")

    def readonly(self, *, default: bool) -> bool:
        for name in reversed(self._options):  # the later of the two wins
            if name == "readonly":
                return bool(self.flag(name))
            if name == "readwrite":
                return not self.flag(name)
        return default

    def number(self, name: str, default: int, *, base: int = 10) -> int:
        value = self._options.get(name)
        if value is None:
            return default
        digits = re.fullmatch(r"[0-7]{1,11}" if base == 8 else r"[0-9]{1,10}", value, re.ASCII)
        if not digits or int(value, base) >= 1 << 32:
            what = "an octal mode such as 0755" if base == 8 else "a number"
            raise DockerfileError(f"the mount option {name!r} is {what}, not {value!r}")
        return int(value, base)

    def size(self) -> int | None:
        value = self._options.get("size")
        if value is None:
            return None
        match = _SIZE.fullmatch(value)
        if not match:
            raise DockerfileError(f"the mount option 'size' is bytes or such as 64m or 1g, not {value!r}")
        return int(float(match[1]) * (1 << _UNITS[match[2].lower()])) or None

    def sharing(self) -> Sharing:
        value = self.text("sharing", "shared").lower()
        if value not in {"shared", "private", "locked"}:
            raise DockerfileError(f"the mount option 'sharing' is shared, private or locked, not {value!r}")
        return cast("Sharing", value)


def _bind(options: _Options) -> RunMount:
    return BindRunMount(
        target=options.target(),
        source=options.text("source", "/"),
        from_=options.text("from"),
        readonly=options.readonly(default=True),
    )


def _cache(options: _Options) -> RunMount:
    target = options.target()
    return CacheRunMount(
        target=target,
        id=options.text("id", posixpath.normpath(target)),
        source=options.text("source", "/"),
        from_=options.text("from"),
        readonly=options.readonly(default=False),
        sharing=options.sharing(),
        mode=options.number("mode", 0o755, base=8),
        uid=options.number("uid", 0),
        gid=options.number("gid", 0),
    )


def _tmpfs(options: _Options) -> RunMount:
    return TmpfsRunMount(target=options.target(), size=options.size(), readonly=options.readonly(default=False))


def _secret(options: _Options) -> RunMount:
    """The id is the source, or the last part of the target; the target /run/secrets/ID, unless a variable has it."""
    target, env = options.text("target"), options.text("env")
    identity = options.text("source") or options.text("id") or posixpath.basename(target.rstrip("/"))
    if not identity:
        raise DockerfileError("a mount of type secret needs an id; add id=NAME")
    return SecretRunMount(
        id=identity,
        target=target or ("" if env else f"/run/secrets/{posixpath.basename(identity.rstrip('/'))}"),
        env=env,
        required=bool(options.flag("required")),
        mode=options.number("mode", 0o400, base=8),
        uid=options.number("uid", 0),
        gid=options.number("gid", 0),
    )


def _ssh(options: _Options) -> RunMount:
    return SshRunMount(
        id=options.text("id", "default"),
        target=options.text("target"),
        required=bool(options.flag("required")),
        mode=options.number("mode", 0o600, base=8),
        uid=options.number("uid", 0),
        gid=options.number("gid", 0),
    )


_MAKERS: dict[str, Callable[[_Options], RunMount]] = {
    "bind": _bind, "cache": _cache, "tmpfs": _tmpfs, "secret": _secret, "ssh": _ssh,
}  # fmt: skip
