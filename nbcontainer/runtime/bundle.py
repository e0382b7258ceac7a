"""From image, options and host to a `ContainerSpec`: pure, so every rule of precedence can be tested as a table.

Rules are docker's (docker run reference): COMMAND replaces CMD; --entrypoint replaces ENTRYPOINT and drops CMD;
environment is the image's, then ours; the machine's own environment is not inherited.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidOption
from nbcontainer.model import ContainerId, ContainerSpec, Mount
from nbcontainer.runtime.capabilities import DEFAULT_CAPABILITIES
from nbcontainer.runtime.rootfs import SCRIPT_PATH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.model import BindMount, ImageConfig, RunOptions

__all__ = ["bundle", "command_line", "interpreter"]

_HOSTNAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", re.ASCII)
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
    host_resolv_conf: str = "",
    single_id: bool = False,
) -> ContainerSpec:
    """Everything a driver needs to run this container; raise `InvalidOption` for what cannot be."""
    network = options.network or "none"
    hostname = options.hostname or container[:12]
    if not _HOSTNAME.fullmatch(hostname):
        raise InvalidOption(f"host name {hostname!r} must be up to 64 letters, digits, dots and dashes")
    directory = options.working_directory or config.working_directory or "/"
    if not directory.startswith("/"):
        directory = f"/{directory}" if not options.working_directory else _refuse_relative(directory)
    environment = list(_environment(config.environment, options.environment))
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
        mounts=tuple(_bind(volume, idmapped=idmapped_binds) for volume in options.volumes),
        network=network,
        capabilities=DEFAULT_CAPABILITIES,
        read_only_root=options.read_only,
        script=script,
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


def _environment(image: Sequence[str], asked: Sequence[str]) -> Sequence[str]:
    merged: dict[str, str] = {}
    for entry in (*image, *asked):
        name, equals, value = entry.partition("=")
        if not name or "\0" in entry:
            raise InvalidOption(f"environment entry {entry!r} is not NAME=VALUE")
        if equals:
            merged[name] = value
    return [f"{name}={value}" for name, value in merged.items()]


def _bind(volume: BindMount, *, idmapped: bool) -> Mount:
    target = "/" + volume.target.strip("/")
    if target == "/":
        raise InvalidOption(f"volume {volume.source}:{volume.target} would replace the whole container; mount below /")
    if any(target == taken or target.startswith(taken + "/") for taken in _RESERVED):
        raise InvalidOption(
            f"volume target {target} lies in {target[:5].rstrip('/')}, which the sandbox owns; choose another"
        )
    if ".." in target.split("/"):
        raise InvalidOption(f"volume target {target} must not contain '..'")
    return Mount(
        kind="bind",
        source=volume.source,
        target=target,
        read_only=volume.read_only,
        recursive=True,
        idmapped=idmapped,
    )
