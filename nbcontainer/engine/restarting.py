"""When a container that runs on behind is started again, and after how long: pure, in docker's rules and numbers.

The pause before a restart begins with a tenth of a second and doubles up to a minute; a life of ten seconds or more
makes it begin anew. Who ended a container by a verb wants it to have ended, whatever the policy. Between ``always``
and ``unless-stopped`` there is no difference while the machine is up; nothing here starts anything when it comes up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import get_args

from nbcontainer.errors import InvalidOption
from nbcontainer.model import RestartName, RestartPolicy

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "Attempts", "Ended", "next_attempt", "read_restart_policy"]

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 60.0
_SETTLED = 10.0
"""Seconds of life after which a container has not failed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a life ended: its code, how many seconds it had, whether somebody wanted it to end."""

    exit_code: int
    lived: float
    wanted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """How often it has been started again, and how long the pause before that was; 0 for no restart yet."""

    count: int = 0
    pause: float = 0.0


def next_attempt(policy: RestartPolicy, ended: Ended, so_far: Attempts) -> Attempts | None:
    """The restart to come, with the pause before it; None when there is none."""
    if ended.wanted or not _asks_for(policy, ended, so_far):
        return None
    before = 0.0 if ended.lived >= _SETTLED else so_far.pause
    pause = min(before * 2, LONGEST_PAUSE) if before else FIRST_PAUSE
    return replace(so_far, count=so_far.count + 1, pause=pause)


def _asks_for(policy: RestartPolicy, ended: Ended, so_far: Attempts) -> bool:
    if policy.name == "on-failure":
        return ended.exit_code != 0 and (not policy.most or so_far.count < policy.most)
    return policy.name in {"always", "unless-stopped"}


def read_restart_policy(text: str) -> RestartPolicy:
    """``no``, ``always``, ``unless-stopped``, ``on-failure`` or ``on-failure:N``, as typed after ``--restart``."""
    name, colon, most = text.partition(":")
    for known in get_args(RestartName):
        if name == known:
            break
    else:
        names = ", ".join(get_args(RestartName))
        raise InvalidOption(f"restart policy {text!r} is not known; there are {names} and on-failure:N")
    if colon and name != "on-failure":
        raise InvalidOption(f"restart policy {text!r}: a number of retries goes with on-failure alone")
    if colon and not re.fullmatch(r"\d{1,9}", most, re.ASCII):
        raise InvalidOption(f"restart policy {text!r} has no number of retries; write for example on-failure:5")
    return RestartPolicy(name=known, most=int(most or 0))
