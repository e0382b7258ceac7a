"""Settings of an engine: one frozen value, handed over once; nothing below reads the environment or a global.

Precedence is the doors' business (flag, then `%config`, then configuration file, then environment, then these
defaults).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Settings"]

_PREFIX = "NBCONTAINER_"


def _no_mirrors() -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType({})


def default_root() -> str:
    """``/var/lib/nbcontainer`` as root, ``$XDG_DATA_HOME/nbcontainer`` otherwise."""
    if os.geteuid() == 0:
        return "/var/lib/nbcontainer"
    data_home = os.environ.get("XDG_DATA_HOME") or os.path.join(os.path.expanduser("~"), ".local", "share")
    return os.path.join(data_home, "nbcontainer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an `Engine` needs to know of its surroundings.

    `root` holds all state. `mirrors` maps a registry host to bases tried before it. `insecure_registries` may be
    reached over plain http (loopback always may). `interrupt_grace` is the seconds a cell has between SIGINT and the
    end of all its processes. `pool_size` containers are kept prepared, 0 turns that off; after `pool_idle` seconds
    without a request none is, until the next. What a build has started for itself is kept for `build_idle` seconds,
    for the next one. `network` is that of containers for which none was asked, "" for a bridge where that can be; what
    networks need is kept for `network_idle` seconds after the last container that had one.
    """

    root: str = field(default_factory=default_root)
    mirrors: Mapping[str, tuple[str, ...]] = field(default_factory=_no_mirrors, hash=False)
    insecure_registries: tuple[str, ...] = ()
    parallel_downloads: int = 3
    registry_timeout: float = 30.0
    interrupt_grace: float = 2.0
    pool_size: int = 3
    pool_idle: float = 300.0
    build_idle: float = 60.0
    network: str = ""
    network_idle: float = 20.0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read ``NBCONTAINER_ROOT``, ``_MIRRORS``, ``_INSECURE_REGISTRIES`` and ``_NETWORK``.

        Mirrors are ``host=base[,base…]`` separated by ``;`` or spaces; insecure registries are separated by commas or
        spaces. Raises `InvalidOption` naming the variable.
        """
        variables = os.environ if environment is None else environment
        root = variables.get(_PREFIX + "ROOT") or default_root()
        return cls(
            root=os.path.abspath(os.path.expanduser(root)),
            mirrors=parse_mirrors(variables.get(_PREFIX + "MIRRORS", "")),
            insecure_registries=tuple(variables.get(_PREFIX + "INSECURE_REGISTRIES", "").replace(",", " ").split()),
            network=variables.get(_PREFIX + "NETWORK", ""),
        )


def parse_mirrors(text: str) -> Mapping[str, tuple[str, ...]]:
    """Read ``docker.io=http://127.0.0.1:5000,mirror.example other.io=…``."""
    mirrors: dict[str, tuple[str, ...]] = {}
    for entry in text.replace(";", " ").split():
        host, equals, bases = entry.partition("=")
        listed = tuple(base for base in bases.split(",") if base)
        if not (host and equals and listed):
            raise InvalidOption(
                f"{_PREFIX}MIRRORS entry {entry!r} is not HOST=MIRROR[,MIRROR]; e.g. docker.io=localhost:5000"
            )
        mirrors[host] = listed
    return MappingProxyType(mirrors)
