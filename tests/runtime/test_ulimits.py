"""Limits of setrlimit(2) by docker's names."""

from __future__ import annotations

import resource

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.model import Ulimit
from nbcontainer.runtime.ulimits import NAMES, parse_ulimit, resource_limits


@pytest.mark.parametrize(
    ("text", "soft", "hard"),
    [
        ("nofile=1024:2048", 1024, 2048),
        ("nofile=1024", 1024, 1024),
        ("core=-1", -1, -1),
        ("core=0:unlimited", 0, -1),
        ("memlock=unlimited:-1", -1, -1),
    ],
)
def test_forms(text: str, soft: int, hard: int) -> None:
    """One number is both limits; -1 and unlimited are the same."""
    assert parse_ulimit(text) == Ulimit(name=text.partition("=")[0], soft=soft, hard=hard)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nofile", "NAME=SOFT"),
        ("nofile=a", "NAME=SOFT"),
        ("nofile=-2", "NAME=SOFT"),
        ("nofile=1:2:3", "NAME=SOFT"),
        ("as=5", "'as' does not exist"),
        ("nofile=-1:5", "above the hard"),
        ("nofile=9999999999999999999", "more than the kernel"),
    ],
)
def test_refused(text: str, words: str) -> None:
    """What is no limit is said so, with the form or the names."""
    with pytest.raises(InvalidOption, match=words):
        parse_ulimit(text)


def test_own_hard_limit_is_the_bound() -> None:
    """A hard limit above this process's own cannot be kept, and the sentence has the number."""
    own = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert resource_limits([Ulimit(name="nofile", soft=1, hard=own)]) == {str(NAMES["nofile"]): [1, own]}
    with pytest.raises(InvalidOption, match=rf"hard limit unlimited is above this process's own \({own}\)"):
        resource_limits([Ulimit(name="nofile", soft=1, hard=-1)])


def test_last_one_counts() -> None:
    """A limit given twice counts as given last."""
    given = [Ulimit(name="core", soft=0, hard=0), Ulimit(name="core", soft=0, hard=1)]
    own = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if own == 0:
        given = [Ulimit(name="cpu", soft=5, hard=5), Ulimit(name="cpu", soft=5, hard=6)]
    assert list(resource_limits(given).values()) == [[given[1].soft, given[1].hard]]
