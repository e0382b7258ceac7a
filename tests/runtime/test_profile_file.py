"""Seccomp profiles of the person's own, in docker's JSON."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.runtime.profile_file import read_profile
from nbcontainer.runtime.seccomp import filter_for

if TYPE_CHECKING:
    from pathlib import Path

    from nbcontainer.runtime.seccomp import Action, Rule

ALLOW, ERRNO = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"
HEAD = '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"], "action": "SCMP_ACT_LOG", '


def read(tmp_path: Path, *syscalls: dict[str, Any], default: str = ERRNO, caps: tuple[str, ...] = ()) -> Any:
    """What a profile with these entries says."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": default, "syscalls": syscalls}))
    found: tuple[Action, tuple[Rule, ...]] = read_profile(str(path), frozenset(caps))
    return found


def test_rules(tmp_path: Path) -> None:
    """Names, actions, errors and conditions; what the default says anyway is left out."""
    default, rules = read(
        tmp_path,
        {"names": ["read", "write"], "action": ALLOW},
        {"names": ["chmod"], "action": ERRNO, "errnoRet": 38},
        {"names": ["mount"], "action": ERRNO},
        {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["socket"], "action": ALLOW, "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
    )
    assert default == 1
    assert rules == (
        ("read", None, ()),
        ("write", None, ()),
        ("chmod", 38, ()),
        ("reboot", "KILL_PROCESS", ()),
        ("socket", None, ((0, "EQ", 2, 0),)),
    )


def test_one_argument_twice(tmp_path: Path) -> None:
    """Several conditions on one argument are alternatives: libseccomp takes one each."""
    conditions = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (1, 2)]
    _, rules = read(tmp_path, {"names": ["socket"], "action": ALLOW, "args": conditions})
    assert rules == (("socket", None, ((0, "EQ", 1, 0),)), ("socket", None, ((0, "EQ", 2, 0),)))


@pytest.mark.parametrize(
    ("condition", "counts"),
    [
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, False),
        ({"includes": {"caps": ["CAP_CHOWN"]}}, True),
        ({"excludes": {"caps": ["CAP_CHOWN"]}}, False),
        ({"includes": {"arches": ["pdp11"]}}, False),
        ({"includes": {"minKernel": "2.6"}}, True),
        ({"includes": {"minKernel": "99.0"}}, False),
        ({"excludes": {"minKernel": "2.6"}}, False),
        ({"includes": {}, "excludes": None}, True),
    ],
)
def test_conditions_of_groups(tmp_path: Path, condition: dict[str, Any], counts: bool) -> None:
    """A group counts only for the capabilities, architectures and kernels that it names."""
    _, rules = read(tmp_path, {"names": ["sync"], "action": ALLOW, **condition}, caps=("CHOWN",))
    assert bool(rules) == counts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "no defaultAction"),
        ('{"syscalls": []}', "no defaultAction"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "SCMP_ACT_NOTIFY"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": 3}', "not a list"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [3]}', "not an object"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": 3, "action": "SCMP_ACT_LOG"}]}', "names"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": "x"}', "error number"),
        (HEAD + '"args": [{"index": 0, "value": 0, "op": "SCMP_CMP_ODD"}]}]}', "SCMP_CMP_ODD"),
        (HEAD + '"args": [3]}]}', "condition"),
    ],
)
def test_refused(tmp_path: Path, text: str, words: str) -> None:
    """A file that is no profile is refused by its name and what is wrong with it."""
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(InvalidOption, match=words) as caught:
        read_profile(str(path), frozenset())
    assert str(path) in str(caught.value)


def test_unreadable(tmp_path: Path) -> None:
    """A file that is not there is said to be so."""
    with pytest.raises(InvalidOption, match="No such file"):
        read_profile(str(tmp_path / "none.json"), frozenset())


def test_filters(tmp_path: Path) -> None:
    """Unconfined has no filter, unless owners must be pretended; a profile of one's own is compiled and kept."""
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({"defaultAction": ALLOW, "syscalls": [{"names": ["chmod"], "action": ERRNO}]}))
    cache = str(tmp_path / "cache")
    assert filter_for(cache, "unconfined", ["CHOWN"], pretend_owners=False) == b""
    pretended = filter_for(cache, "unconfined", ["CHOWN"], pretend_owners=True)
    mine = filter_for(cache, str(path), ["CHOWN"], pretend_owners=False)
    assert len({pretended, mine, filter_for(cache, str(path), ["CHOWN"], pretend_owners=True)}) == 3
    assert len(os.listdir(cache)) == 3
