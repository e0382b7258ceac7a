"""Limits of setrlimit(2): docker's names, read once, checked against what this process may give.

They are real limits of the command. A hard limit can only be lowered by whoever lacks CAP_SYS_RESOURCE on the machine
itself, and container root always does: one above our own is an error.
"""

from __future__ import annotations

import re
import resource
from typing import TYPE_CHECKING

from nbcontainer.errors import InvalidOption
from nbcontainer.model import Ulimit

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NAMES", "parse_ulimit", "resource_limits"]

NAMES = {
    "core": resource.RLIMIT_CORE,
    "cpu": resource.RLIMIT_CPU,
    "data": resource.RLIMIT_DATA,
    "fsize": resource.RLIMIT_FSIZE,
    "locks": 10,  # RLIMIT_LOCKS: the kernel has not looked at it since 2.4
    "memlock": resource.RLIMIT_MEMLOCK,
    "msgqueue": resource.RLIMIT_MSGQUEUE,
    "nice": resource.RLIMIT_NICE,
    "nofile": resource.RLIMIT_NOFILE,
    "nproc": resource.RLIMIT_NPROC,
    "rss": resource.RLIMIT_RSS,
    "rtprio": resource.RLIMIT_RTPRIO,
    "rttime": resource.RLIMIT_RTTIME,
    "sigpending": resource.RLIMIT_SIGPENDING,
    "stack": resource.RLIMIT_STACK,
}
_FORM = re.compile(r"([a-z]+)=(-1|\d{1,19}|unlimited)(?::(-1|\d{1,19}|unlimited))?", re.ASCII)
_MOST = 2**63 - 1


def parse_ulimit(text: str) -> Ulimit:
    """``NAME=SOFT[:HARD]`` in docker's words; -1 or ``unlimited`` is no limit."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidOption(f"ulimit {text!r} is not NAME=SOFT[:HARD]; write for example nofile=1024:4096")
    if match[1] not in NAMES:
        raise InvalidOption(f"ulimit {match[1]!r} does not exist; there are {', '.join(sorted(NAMES))}")
    soft, hard = (-1 if each in {"-1", "unlimited"} else int(each) for each in (match[2], match[3] or match[2]))
    if _infinite(soft) > _infinite(hard):
        raise InvalidOption(f"ulimit {text!r}: the soft limit is above the hard one")
    if max(soft, hard) > _MOST:
        raise InvalidOption(f"ulimit {text!r} is more than the kernel can count; -1 is unlimited")
    return Ulimit(name=match[1], soft=soft, hard=hard)


def resource_limits(ulimits: Sequence[Ulimit]) -> dict[str, list[int]]:
    """What to set: soft and hard by the resource's number; raise `InvalidOption` for a hard limit above our own."""
    found = {}
    for each in ulimits:
        number = NAMES[each.name]
        own = resource.RLIM_INFINITY if each.name == "locks" else resource.getrlimit(number)[1]
        if _infinite(each.hard) > _infinite(own):
            asked = "unlimited" if each.hard < 0 else str(each.hard)
            raise InvalidOption(
                f"--ulimit {each.name}: the hard limit {asked} is above this process's own ({own}), which a container"
                f" cannot exceed; ask for {own} or less, or raise it where Jupyter is started (ulimit -H, limits.conf)"
            )
        found[str(number)] = [each.soft, each.hard]
    return found


def _infinite(limit: int) -> float:
    return float("inf") if limit < 0 else limit
