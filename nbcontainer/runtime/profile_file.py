"""A seccomp profile of the person's own, in the JSON form that docker, podman and the OCI runtimes read.

Top to bottom: a default action; groups of calls with an action, conditions on arguments, and the capabilities,
architectures and kernels for which the group counts. Read once into rules; what cannot be kept is refused, not left
out. Sources: OCI runtime-spec config-linux.md "Seccomp", docker's profiles/seccomp.
"""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nbcontainer.runtime.seccomp import Action, Rule

__all__ = ["read_profile"]

_LARGEST = 4 * 1024 * 1024
_EPERM = 1
_ACTIONS: dict[str, Action] = {
    "SCMP_ACT_ALLOW": None,
    "SCMP_ACT_LOG": "LOG",
    "SCMP_ACT_KILL": "KILL",
    "SCMP_ACT_KILL_THREAD": "KILL",
    "SCMP_ACT_KILL_PROCESS": "KILL_PROCESS",
    "SCMP_ACT_TRAP": "TRAP",
}
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


def read_profile(path: str, capabilities: frozenset[str]) -> tuple[Action, tuple[Rule, ...]]:
    """The default action and the rules of the profile at `path` for a container with these capabilities.

    Raises `InvalidOption` naming the file and what is wrong with it.
    """
    document = _load(path)
    refuse = _refuser(path)
    default = _action(document.get("defaultAction"), document.get("defaultErrnoRet"), refuse)
    rules: list[Rule] = []
    groups = document.get("syscalls", [])
    if not isinstance(groups, list):
        raise refuse("syscalls is not a list")
    for group in groups:
        if not isinstance(group, dict):
            raise refuse("an entry of syscalls is not an object")
        if _counts(group, capabilities, refuse):
            rules += _rules(group, refuse)
    return default, tuple(rule for rule in rules if rule[1] != default)


def _load(path: str) -> dict[str, Any]:
    refuse = _refuser(path)
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as problem:
        raise InvalidOption(f"seccomp profile {path} cannot be read: {problem.strerror}") from problem
    if len(data) > _LARGEST:
        raise refuse("it is larger than 4 MiB")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as problem:
        raise refuse(f"it is not JSON ({problem})") from problem
    if not isinstance(document, dict) or "defaultAction" not in document:
        raise refuse("it has no defaultAction")
    return document


def _refuser(path: str) -> Callable[[str], InvalidOption]:
    return lambda what: InvalidOption(f"seccomp profile {path} cannot be used: {what}")


def _action(name: object, errno: object, refuse: Callable[[str], InvalidOption]) -> Action:
    if name == "SCMP_ACT_ERRNO":
        if errno is not None and not (type(errno) is int and 0 <= errno < 4096):
            raise refuse(f"errnoRet {errno!r} is not an error number")
        return _EPERM if errno is None else int(errno)
    if isinstance(name, str) and name in _ACTIONS:
        return _ACTIONS[name]
    known = "ALLOW, ERRNO, KILL, KILL_PROCESS, LOG or TRAP"
    raise refuse(f"the action {name!r} needs a tracer or is not known; use {known}")


def _counts(group: dict[str, Any], capabilities: frozenset[str], refuse: Callable[[str], InvalidOption]) -> bool:
    includes, excludes = group.get("includes") or {}, group.get("excludes") or {}
    if not isinstance(includes, dict) or not isinstance(excludes, dict):
        raise refuse("includes or excludes is not an object")
    machine = _ARCHITECTURES.get(os.uname().machine, os.uname().machine)
    held = {f"CAP_{name}" for name in capabilities}
    if includes.get("arches") and machine not in includes["arches"]:
        return False
    if not set(includes.get("caps") or ()) <= held or (includes.get("minKernel") and not _since(includes["minKernel"])):
        return False
    return not (
        machine in (excludes.get("arches") or ())
        or set(excludes.get("caps") or ()) & held
        or (excludes.get("minKernel") and _since(excludes["minKernel"]))
    )


def _since(version: str) -> bool:
    numbers = re.findall(r"\d+", str(version))[:2]
    here = re.findall(r"\d+", os.uname().release)[:2]
    return [int(each) for each in here] >= [int(each) for each in numbers]


def _rules(group: dict[str, Any], refuse: Callable[[str], InvalidOption]) -> Iterable[Rule]:
    names = group.get("names") or ([group["name"]] if "name" in group else [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise refuse("names is not a list of system calls")
    action = _action(group.get("action"), group.get("errnoRet"), refuse)
    arguments = group.get("args") or []
    try:
        conditions = tuple(
            (int(each["index"]), _operator(each["op"], refuse), int(each["value"]), int(each.get("valueTwo", 0)))
            for each in arguments
        )
    except (TypeError, KeyError, ValueError) as problem:
        raise refuse(f"a condition of {names[:1]} is not index, value and op ({problem})") from problem
    indexes = [condition[0] for condition in conditions]
    if len(set(indexes)) < len(indexes):  # several on one argument: any of them is enough, as the OCI runtimes have it
        return [(name, action, (condition,)) for name in names for condition in conditions]
    return [(name, action, conditions) for name in names]


def _operator(name: object, refuse: Callable[[str], InvalidOption]) -> str:
    text = str(name).removeprefix("SCMP_CMP_")
    if text not in _OPERATORS:
        raise refuse(f"the comparison {name!r} is not known")
    return text
