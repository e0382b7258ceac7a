"""Which flags each instruction has, as data: for whoever reads a Dockerfile, and for whoever completes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FLAGS", "NETWORKS", "NOT_TRIGGERED", "SECURITY", "FlagRule"]

NETWORKS = ("default", "none", "host")
SECURITY = ("sandbox", "insecure")
NOT_TRIGGERED = frozenset({"ONBUILD", "FROM", "MAINTAINER"})
"""What ONBUILD cannot trigger."""


@dataclass(frozen=True, slots=True)
class FlagRule:
    """``--name=VALUE``; a `switch` may stand alone. One with a `refusal` is BuildKit's and cannot be had here."""

    name: str
    switch: bool = False
    repeated: bool = False
    refusal: str = ""


_CHOWN, _CHMOD, _LINK = FlagRule("chown"), FlagRule("chmod"), FlagRule("link", switch=True)
_EXCLUDE = FlagRule("exclude", repeated=True)
FLAGS: Mapping[str, tuple[FlagRule, ...]] = {
    "ADD": (
        _CHOWN,
        _CHMOD,
        _LINK,
        FlagRule("checksum"),
        FlagRule("keep-git-dir", switch=True),
        FlagRule("unpack", switch=True),
        _EXCLUDE,
    ),
    "ARG": (),
    "CMD": (),
    "COPY": (FlagRule("from"), _CHOWN, _CHMOD, _LINK, FlagRule("parents", switch=True), _EXCLUDE),
    "ENTRYPOINT": (),
    "ENV": (),
    "EXPOSE": (),
    "FROM": (FlagRule("platform"),),
    "HEALTHCHECK": tuple(map(FlagRule, ("interval", "timeout", "start-period", "start-interval", "retries"))),
    "LABEL": (),
    "MAINTAINER": (),
    "ONBUILD": (),
    "RUN": (
        FlagRule("mount", repeated=True),
        FlagRule("network"),
        FlagRule("security"),
        FlagRule(
            "device",
            refusal="RUN --device asks for devices of the machine (CDI), and no build gets any here; leave it out, and"
            " give the device to the container that runs the image",
        ),
    ),
    "SHELL": (),
    "STOPSIGNAL": (),
    "USER": (),
    "VOLUME": (),
    "WORKDIR": (),
}
"""The flags of every instruction there is."""
