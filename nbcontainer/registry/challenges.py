"""The WWW-Authenticate header: which ways to log in a server offers.

Grammar (RFC 9110, 11.2 to 11.6.1)::

    WWW-Authenticate = #challenge
    challenge        = auth-scheme [ 1*SP ( token68 / #auth-param ) ]
    auth-param       = token BWS "=" BWS ( token / quoted-string )

Commas part both challenges and parameters, so one cannot split on them: a word followed by ``=`` is a parameter, any
other begins a challenge. Registries in the wild leave URLs unquoted; that is read too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Challenge", "parse_challenges"]

_SEPARATORS = re.compile(r"[\s,]*")
_WORD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"?')
_UNQUOTED = re.compile(r'[^\s,"]*')
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9\-._~+/]+=*[ \t]*(?=,|$)")
_ESCAPE = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to log in; the scheme in lower case, parameters by lower-case name."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> tuple[Challenge, ...]:
    """Every challenge in the joined header values; what cannot be read is left out.

    >>> [c.scheme for c in parse_challenges('Basic realm="a, b", Bearer realm="https://x/t",service="x"')]
    ['basic', 'bearer']
    """
    found: list[tuple[str, dict[str, str]]] = []
    position = 0
    while (position := _after(_SEPARATORS, header, position)) < len(header):
        word = _WORD.match(header, position)
        if word is None:
            position = _after_comma(header, position)
            continue
        equals = _EQUALS.match(header, word.end())
        if equals is None:
            found.append((word[0].lower(), {}))
            token = _TOKEN68.match(header, word.end())
            position = token.end() if token and "=" in token[0] else word.end()
            continue
        value, position = _value(header, equals.end())
        if found:
            found[-1][1].setdefault(word[0].lower(), value)
    return tuple(Challenge(scheme, MappingProxyType(parameters)) for scheme, parameters in found)


def _value(header: str, position: int) -> tuple[str, int]:
    if quoted := _QUOTED.match(header, position):
        return _ESCAPE.sub(r"\1", quoted[1]), quoted.end()
    bare = _UNQUOTED.match(header, position)
    assert bare is not None
    return bare[0], bare.end()


def _after(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position


def _after_comma(text: str, position: int) -> int:
    comma = text.find(",", position + 1)
    return len(text) if comma < 0 else comma
