"""``commit --change``: Dockerfile instructions that change how an image wants to be run, and none that make files.

Source: docker's reference of ``docker container commit`` (which instructions) and of the Dockerfile (what each means).
A config is the ``config`` object of an OCI image config as JSON; a change returns a new one.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from typing import TYPE_CHECKING, Any

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["INSTRUCTIONS", "changed"]

_DEFAULT_SHELL = ["/bin/sh", "-c"]
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII | re.IGNORECASE)
_VARIABLE = re.compile(r"\\(.)|\$(?:\{(\w+)\}|(\w+))|(\$\{[^}]*\}?)|'", re.ASCII | re.DOTALL)
_ONBUILD_REFUSED = frozenset({"ONBUILD", "FROM", "MAINTAINER"})

Config = dict[str, Any]


def changed(config: Mapping[str, Any], changes: Iterable[str]) -> Config:
    """The config after each of `changes`, such as ``ENV A=b``; raise `InvalidOption` naming the one that is wrong."""
    result: Config = json.loads(json.dumps(dict(config)))
    for text in changes:
        word, _, rest = text.strip().partition(" ")
        apply = INSTRUCTIONS.get(word.upper())
        if apply is None:
            raise InvalidOption(f"change {text!r} starts with {word!r}; it can be one of {', '.join(INSTRUCTIONS)}")
        if "\n" in text:
            raise InvalidOption(f"change {text!r} has several lines; give each instruction its own --change")
        if not rest.strip():
            raise InvalidOption(f"change {text!r} says nothing after {word}")
        apply(result, rest.strip(), text)
    return result


def _expand(config: Config, text: str, change: str) -> str:
    """Replace ``$NAME`` and ``${NAME}`` by the image's variables; single quotes and a backslash keep a dollar."""
    variables = dict(entry.partition("=")[::2] for entry in config.get("Env") or [])
    quoted = False

    def replace(match: re.Match[str]) -> str:
        nonlocal quoted
        if match[0] == "'":
            quoted = not quoted
            return "'"
        if quoted:
            return match[0]
        if match[1] is not None:
            return "$" if match[1] == "$" else match[0]
        if match[4]:
            raise InvalidOption(f"change {change!r} has {match[4]}; only $NAME and ${{NAME}} are understood here")
        return str(variables.get(match[2] or match[3], ""))

    return _VARIABLE.sub(replace, text)


def _words(text: str, change: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as problem:
        raise InvalidOption(f"change {change!r} cannot be split into words: {problem}") from problem


def _pairs(config: Config, text: str, change: str) -> list[tuple[str, str]]:
    """``A=b C="d e"``, or the old form ``A b c`` for one pair."""
    first = text.split(None, 1)
    if "=" not in first[0]:
        if len(first) < 2:
            raise InvalidOption(f"change {change!r} gives {first[0]} no value; write {first[0]}=VALUE")
        return [(first[0], _expand(config, first[1], change))]
    pairs = []
    for word in _words(_expand(config, text, change), change):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidOption(f"change {change!r} has {word!r} where NAME=VALUE is expected")
        pairs.append((name, value))
    return pairs


def _list(text: str) -> list[str] | None:
    """The JSON form of an instruction, or None when it is not one (then it is the shell form, as in a Dockerfile)."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def _command(config: Config, text: str) -> list[str]:
    words = _list(text)
    return [*(config.get("Shell") or _DEFAULT_SHELL), text] if words is None else words


def _cmd(config: Config, text: str, _change: str) -> None:
    config["Cmd"] = _command(config, text)


def _entrypoint(config: Config, text: str, _change: str) -> None:
    config["Entrypoint"] = _command(config, text)
    config.pop("Cmd", None)


def _env(config: Config, text: str, change: str) -> None:
    variables = dict(entry.partition("=")[::2] for entry in config.get("Env") or [])
    variables.update(_pairs(config, text, change))
    config["Env"] = [f"{name}={value}" for name, value in variables.items()]


def _label(config: Config, text: str, change: str) -> None:
    config["Labels"] = {**(config.get("Labels") or {}), **dict(_pairs(config, text, change))}


def _expose(config: Config, text: str, change: str) -> None:
    ports = dict(config.get("ExposedPorts") or {})
    for word in _words(_expand(config, text, change), change):
        match = _PORT.fullmatch(word)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not match or not 0 < first <= last <= 65535:
            raise InvalidOption(f"change {change!r} has {word!r}, which is not a port such as 8080 or 53/udp")
        for port in range(first, last + 1):
            ports[f"{port}/{(match[3] or 'tcp').lower()}"] = {}
    config["ExposedPorts"] = ports


def _user(config: Config, text: str, change: str) -> None:
    (config["User"],) = _single(config, text, change)


def _single(config: Config, text: str, change: str) -> list[str]:
    words = _words(_expand(config, text, change), change)
    if len(words) != 1:
        raise InvalidOption(f"change {change!r} has {len(words)} words where one is expected; quote it")
    return words


def _working_directory(config: Config, text: str, change: str) -> None:
    (path,) = _single(config, text, change)
    config["WorkingDir"] = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "/", path))


def _volume(config: Config, text: str, change: str) -> None:
    words = _list(text)
    words = _words(_expand(config, text, change), change) if words is None else words
    if not all(words):
        raise InvalidOption(f"change {change!r} names an empty volume")
    config["Volumes"] = {**(config.get("Volumes") or {}), **{word: {} for word in words}}


def _on_build(config: Config, text: str, change: str) -> None:
    word = text.split(None, 1)[0].upper()
    if word in _ONBUILD_REFUSED:
        raise InvalidOption(f"change {change!r}: ONBUILD {word} is not allowed in a Dockerfile either")
    config["OnBuild"] = [*(config.get("OnBuild") or []), text]


INSTRUCTIONS: Mapping[str, Callable[[Config, str, str], None]] = {
    "CMD": _cmd,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "LABEL": _label,
    "ONBUILD": _on_build,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _working_directory,
}
"""What docker's ``commit --change`` takes."""
