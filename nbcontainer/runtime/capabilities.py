"""Linux capabilities by name and number, and the fourteen a container starts with.

Source: capabilities(7) and linux/capability.h; the default set is the one every engine converged on. Never
inheritable, never ambient (CVE-2022-24769). NET_RAW stays in: Debian's ``ping`` carries it as an effective file
capability and would not even start when the bounding set lacks it; in a private network namespace it reaches nobody.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CAPABILITIES", "DEFAULT_CAPABILITIES", "capability_numbers", "chosen_capabilities"]

_NAMES = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
]

CAPABILITIES = {name: number for number, name in enumerate(_NAMES)}

DEFAULT_CAPABILITIES = (
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
)


def chosen_capabilities(add: Sequence[str], drop: Sequence[str]) -> tuple[str, ...]:
    """Docker's arithmetic: the default fourteen, or none or all by ``ALL``; what is added beats what is dropped.

    >>> chosen_capabilities(["NET_ADMIN"], ["ALL"])
    ('NET_ADMIN',)
    """
    capability_numbers(tuple(name for name in (*add, *drop) if name.upper() != "ALL"))
    added = {name.upper().removeprefix("CAP_") for name in add}
    dropped = {name.upper().removeprefix("CAP_") for name in drop}
    if "ALL" in added:
        kept = [name for name in CAPABILITIES if name not in dropped]
    else:
        base = () if "ALL" in dropped else DEFAULT_CAPABILITIES
        kept = [name for name in base if name not in dropped or name in added]
        kept += [name for name in CAPABILITIES if name in added and name not in kept]
    return tuple(kept)


@functools.lru_cache(maxsize=16)
def capability_numbers(names: tuple[str, ...]) -> frozenset[int]:
    """The kernel's numbers for capability names, with or without ``CAP_``; raise `InvalidOption` for an unknown one."""
    numbers = set()
    for name in names:
        number = CAPABILITIES.get(name.upper().removeprefix("CAP_"))
        if number is None:
            raise InvalidOption(f"capability {name!r} does not exist; see capabilities(7)")
        numbers.add(number)
    return frozenset(numbers)
