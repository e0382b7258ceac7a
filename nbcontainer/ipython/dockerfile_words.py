"""What may stand at the cursor in a Dockerfile: instructions, their flags, stages and images. Pure.

The text above the cursor is only looked at: an unfinished Dockerfile cannot be parsed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nbcontainer.dockerfile.flags import FLAGS, NETWORKS, NOT_TRIGGERED
from nbcontainer.dockerfile.mounts import MOUNT_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["dockerfile_words", "stage_names"]

_DEPRECATED = frozenset({"MAINTAINER"})
_BEGUN = {"mount": "--mount=type=", "security": "--security=sandbox"}
"""Flags that go on in one way only, or in one only that a build takes."""
_FIRST_OPTIONS = {"bind": ",", "cache": ",target=", "tmpfs": ",target=", "secret": ",id="}
_STAGE = re.compile(r"\s*FROM\s+(?:--\S+\s+)*\S+\s+AS\s+(?P<name>\S+)", re.IGNORECASE)


def stage_names(lines: Sequence[str]) -> list[str]:
    """The stages that these lines begin."""
    return [found["name"].lower() for line in lines if (found := _STAGE.match(line))]


def dockerfile_words(above: Sequence[str], line: str, images: Callable[[], list[str]]) -> tuple[str, list[str]]:
    """The fragment before the cursor, and the words that begin with it; `line` is the cursor's, up to there."""
    *before, fragment = re.split(r"\s+", line.lstrip())
    upper = [word.upper() for word in before]
    known = [name for name in FLAGS if name not in _DEPRECATED]
    if upper[:1] == ["ONBUILD"]:
        before, upper = before[1:], upper[1:]
        known = [name for name in known if name not in NOT_TRIGGERED]
    if before:
        found = _after(upper[0], before[1:], fragment, stage_names(above), images)
    else:
        continued = bool(above) and above[-1].rstrip().endswith("\\")
        found = [] if continued else _instructions(fragment, known)
    return fragment, _starting(fragment, found)


def _after(name: str, words: list[str], fragment: str, stages: list[str], images: Callable[[], list[str]]) -> list[str]:
    """What may stand after an instruction and these words of it."""
    plain = [word for word in words if not word.startswith("--")]
    found: list[str] = []
    if fragment.startswith("--") and not plain:
        found = _flags(name, fragment, stages, images)
    elif name == "FROM" and not plain:
        found = [*stages, "scratch", *images()]
    elif name == "FROM" and len(plain) == 1:
        found = ["AS"]
    elif name == "HEALTHCHECK" and not plain:
        found = ["CMD", "NONE"]
    return found


def _instructions(fragment: str, known: list[str]) -> list[str]:
    """Instructions, in the case in which they are typed."""
    if fragment and fragment == fragment.lower():
        known = [name.lower() for name in known]
    return known


def _flags(name: str, fragment: str, stages: list[str], images: Callable[[], list[str]]) -> list[str]:
    if fragment.startswith("--from="):
        return [f"--from={each}" for each in [*stages, *images()]]
    if fragment.startswith("--mount=") and (source := re.fullmatch(r"(.*,from=)[^,]*", fragment)):
        return [f"{source[1]}{each}" for each in [*stages, *images()]]
    if name == "RUN" and fragment.startswith("--network="):
        return [f"--network={each}" for each in NETWORKS]
    if name == "RUN" and fragment.startswith("--mount=type="):
        return [f"--mount=type={each}{_FIRST_OPTIONS.get(each, '')}" for each in MOUNT_TYPES]
    return [
        _BEGUN.get(rule.name, f"--{rule.name}{'' if rule.switch else '='}")
        for rule in FLAGS.get(name, ())
        if not rule.refusal
    ]


def _starting(fragment: str, words: Sequence[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(fragment)]
