"""Platforms: which of an index's images suits this machine.

Source: OCI image-spec image-index.md ("platform") and containerd's matching order: the exact variant first, then
the older ones the processor also runs (arm v8 > v7 > v6 > v5; amd64 v4 > … > v1).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from nbcontainer.errors import InvalidOption

__all__ = ["Platform"]

_MACHINES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "armv8l": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armel": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""),
    "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}
_OLDER = {
    "arm": ("v8", "v7", "v6", "v5"),
    "amd64": ("v4", "v3", "v2", "v1"),
}
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@dataclass(frozen=True, slots=True)
class Platform:
    """``os/architecture[/variant]`` in OCI (GOOS/GOARCH) words."""

    os: str
    architecture: str
    variant: str = ""

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``linux/arm64``, ``linux/arm/v7`` or a bare architecture such as ``arm64``.

        Raises `InvalidOption` when it has no such form.
        """
        parts = text.strip().lower().split("/")
        if not 1 <= len(parts) <= 3 or not all(part.replace("_", "").replace("-", "").isalnum() for part in parts):
            raise InvalidOption(f"platform {text!r} is not OS/ARCH[/VARIANT]; write for example linux/amd64")
        if len(parts) == 1:
            parts = ["linux", *parts]
        architecture, variant = _MACHINES.get(parts[1], (parts[1], ""))
        if len(parts) == 3:
            variant = parts[2]
        return cls(parts[0], architecture, variant)

    @classmethod
    def host(cls) -> Platform:
        """The platform of the running kernel."""
        machine = os.uname().machine
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)

    def preference(self, offered: Platform) -> int | None:
        """How well `offered` runs here: 0 is exact, larger is older, None is not at all."""
        if (self.os, self.architecture) != (offered.os, offered.architecture):
            return None
        default = _DEFAULT_VARIANT.get(self.architecture, "")
        wanted, has = self.variant or default, offered.variant or default
        if wanted == has:
            return 0
        older = _OLDER.get(self.architecture, ())
        if wanted in older and has in older and older.index(has) > older.index(wanted):
            return older.index(has) - older.index(wanted)
        return None

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)
