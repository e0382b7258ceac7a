"""From image, options and host to a `ContainerSpec`: pure, so every rule of precedence can be tested as a table.

Rules are docker's (docker run reference): COMMAND replaces CMD; --entrypoint replaces ENTRYPOINT and drops CMD;
environment is the image's, then ours; the machine's own environment is not inherited.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidImage, InvalidOption
from nbcontainer.model import BindMount, ContainerId, ContainerSpec, Mount
from nbcontainer.runtime.capabilities import chosen_capabilities
from nbcontainer.runtime.places import SCRIPT_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.model import ImageConfig, RunOptions, TmpfsMount, VolumeMount

__all__ = ["bundle", "command_line", "interpreter", "merged_environment", "terminal_default"]

_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", re.ASCII)
_LONGEST_NAME = 4095
_APT_CONFIG = "/dev/apt.conf"
"""With a single id apt cannot switch to its own user, and checks that it did: tell it not to."""
_RESERVED = ("/proc", "/sys", "/dev")


def bundle(
    container: ContainerId,
    config: ImageConfig,
    options: RunOptions,
    *,
    root: tuple[Mount, ...],
    argv: Sequence[str] = (),
    script: bytes | None = None,
    shell: Sequence[str] = (),
    idmapped_binds: bool = False,
    volumes: str = "",
    host_resolv_conf: str = "",
    single_id: bool = False,
    root_is_root: bool = False,
) -> ContainerSpec:
    """Everything a driver needs to run this container; raise `InvalidOption` for what cannot be.

    `volumes` is the folder in which those of the store lie. `root_is_root` where container root has the machine's id 0.
    """
    network = options.network or "none"
    hostname = options.hostname or container[:12]
    if not _HOSTNAME.fullmatch(hostname):
        raise InvalidOption(f"host name {hostname!r} must be up to 64 letters, digits, dots and dashes")
    for what, text in (("working directory", config.working_directory), ("user", config.user)):
        if "\0" in text or len(text) > _LONGEST_NAME:
            raise InvalidImage(
                f"the image's {what} is longer than {_LONGEST_NAME} characters or has a NUL byte; refused"
            )
    directory = options.working_directory or config.working_directory or "/"
    if not directory.startswith("/"):
        directory = f"/{directory}" if not options.working_directory else _refuse_relative(directory)
    environment = list(
        merged_environment(terminal_default(config.environment, terminal=options.terminal), options.environment)
    )
    files: tuple[tuple[str, str], ...] = ()
    if single_id:
        environment.append(f"APT_CONFIG={_APT_CONFIG}")
        files = ((_APT_CONFIG, 'APT::Sandbox::User "root";\n'),)
    return ContainerSpec(
        id=container,
        argv=command_line(config, options, argv, script, shell),
        root=root,
        environment=tuple(environment),
        working_directory=directory,
        user=options.user or config.user,
        hostname=hostname,
        mounts=_mounts(options, volumes, idmapped=idmapped_binds),
        network=network,
        networking=options.networking,
        capabilities=_capabilities(options, root, root_is_root=root_is_root),
        no_new_privileges=_no_new_privileges(options, single_id=single_id),
        seccomp=options.seccomp or "default",
        limits=options.limits,
        ulimits=options.ulimits,
        shm_size=options.shm_size,
        devices=options.devices,
        read_only_root=options.read_only,
        script=script,
        terminal=options.terminal,
        files=files,
        resolv_conf=host_resolv_conf if network == "host" else "# this container has no network\n",
    )


def _refuse_relative(directory: str) -> str:
    raise InvalidOption(f"working directory {directory!r} must be absolute inside the container; write /{directory}")


def command_line(
    config: ImageConfig,
    options: RunOptions,
    argv: Sequence[str],
    script: bytes | None,
    shell: Sequence[str],
) -> tuple[str, ...]:
    """What is executed: a cell by its interpreter, else entrypoint and command as docker joins them."""
    if script is not None:
        return (*interpreter(script, shell), SCRIPT_PATH)
    if options.entrypoint is not None:
        line = (*options.entrypoint, *argv)
    else:
        line = (*config.entrypoint, *(argv or config.command))
    if not line:
        raise InvalidOption("the image names no command to run; give one after the image, e.g. `/bin/sh`")
    for word in line:
        if "\0" in word:
            raise InvalidOption(f"argument {word!r} has a NUL byte, which no command line can carry")
    return line


def interpreter(script: bytes, shell: Sequence[str]) -> tuple[str, ...]:
    """Who runs a cell: its ``#!`` line, else `shell`, else ``/bin/sh``.

    As the kernel does, everything after the interpreter is one argument (execve(2)).
    """
    first, _, _ = script.partition(b"\n")
    if first.startswith(b"#!") and not shell:
        words = first[2:].decode("utf-8", "surrogateescape").strip().split(None, 1)
        if not words:
            raise InvalidOption("the cell's #! line names no interpreter; write for example #!/usr/bin/env python3")
        return tuple(words)
    return tuple(shell) or ("/bin/sh",)


def merged_environment(image: Sequence[str], asked: Sequence[str]) -> Sequence[str]:
    """Both, the later entry of a name winning; raise `InvalidOption` for what is not ``NAME=VALUE``."""
    merged: dict[str, str] = {}
    for entry in (*image, *asked):
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise InvalidOption(f"environment entry {entry!r} is not NAME=VALUE")
        if equals:
            merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]


def terminal_default(environment: Sequence[str], *, terminal: bool) -> Sequence[str]:
    """The environment with docker's ``TERM=xterm``, unless it has one, for a command with a terminal."""
    if not terminal or any(entry.startswith("TERM=") for entry in environment):
        return environment
    return ("TERM=xterm", *environment)


def _capabilities(options: RunOptions, root: Sequence[Mount], *, root_is_root: bool) -> tuple[str, ...]:
    """The capabilities asked for, unless one would undo what this container is to be kept from.

    All of them count in the container's user namespace only. But with SYS_ADMIN there it may unmount and remount, and
    that is how the host image hides keys and how a volume is read-only. And where container root is the machine's id 0,
    it is all that keeps it from /proc/sys: there the kernel asks for that id, and for no capability.
    """
    chosen = chosen_capabilities(options.cap_add, options.cap_drop)
    if "SYS_ADMIN" in chosen:
        if root_is_root:
            raise InvalidOption(
                "CAP_SYS_ADMIN cannot be had here: as root of an outer container you are container root, and with it a"
                " container could write this machine's settings in /proc/sys; add only the capabilities you need, or"
                " start as another user"
            )
        if any(mount.kind == "mask" for mount in root):
            raise InvalidOption(
                "CAP_SYS_ADMIN cannot be had on the host image: it could take off the covers that hide this machine's"
                " keys and tokens; use another image, or add only the capabilities you need"
            )
        closed = next((volume for volume in options.volumes if volume.read_only), None)
        if closed is not None:
            raise InvalidOption(
                f"CAP_SYS_ADMIN and the read-only volume {closed.target} contradict each other: it could be remounted"
                " writable; leave one of the two out, or mount a copy"
            )
    return chosen


def _no_new_privileges(options: RunOptions, *, single_id: bool) -> bool:
    if single_id and not options.no_new_privileges:
        raise InvalidOption(
            "--security-opt no-new-privileges:false gains nothing here: with a single id there is no other user to"
            " become; see `%container doctor` for subordinate ids"
        )
    return options.no_new_privileges


def _mounts(options: RunOptions, volumes: str, *, idmapped: bool) -> tuple[Mount, ...]:
    """What is mounted in the container, a folder before what lies in it, whatever the order it was typed in."""
    mounts = [
        *(_bind(each, volumes, idmapped=idmapped) for each in options.volumes),
        *(_tmpfs(each) for each in options.tmpfs),
    ]
    targets = [mount.target for mount in mounts]
    twice = next((target for target in targets if targets.count(target) > 1), None)
    if twice is not None:
        raise InvalidOption(f"{twice} is named by two mounts; leave one of them out")
    return tuple(sorted(mounts, key=lambda mount: mount.target.count("/")))


def _tmpfs(asked: TmpfsMount) -> Mount:
    if any(asked.target == taken or asked.target.startswith(taken + "/") for taken in _RESERVED):
        hint = "; --shm-size is for that" if asked.target == "/dev/shm" else ""  # noqa: S108 - the container's own
        raise InvalidOption(f"tmpfs {asked.target} lies where the sandbox has its own file systems{hint}")
    return Mount(
        kind="tmpfs",
        target=asked.target,
        size=asked.size,
        mode=asked.mode,
        read_only=asked.read_only,
        executable=asked.executable,
    )


def _bind(volume: BindMount | VolumeMount, volumes: str, *, idmapped: bool) -> Mount:
    target = "/" + volume.target.strip("/")
    if target == "/":
        source = volume.source if isinstance(volume, BindMount) else volume.name
        raise InvalidOption(f"volume {source}:{volume.target} would replace the whole container; mount below /")
    if any(target == taken or target.startswith(taken + "/") for taken in _RESERVED):
        raise InvalidOption(
            f"volume target {target} lies in {target[:5].rstrip('/')}, which the sandbox owns; choose another"
        )
    if ".." in target.split("/"):
        raise InvalidOption(f"volume target {target} must not contain '..'")
    if not isinstance(volume, BindMount):
        source = f"{volumes}/{volume.name}/_data/{_subpath(volume)}".rstrip("/")
        return Mount(kind="bind", source=source, target=target, read_only=volume.read_only)
    return Mount(
        kind="bind",
        source=volume.source,
        target=target,
        read_only=volume.read_only,
        recursive=True,
        idmapped=idmapped,
    )


def _subpath(volume: VolumeMount) -> str:
    """The folder of a volume that is shown; whoever mounts it follows no link on the way."""
    parts = [part for part in volume.subpath.split("/") if part not in {"", "."}]
    if volume.subpath.startswith("/") or ".." in parts or "\0" in volume.subpath:
        raise InvalidOption(
            f"volume-subpath {volume.subpath!r} of volume {volume.name} must be a path below it, without '..'"
        )
    return "/".join(parts)
