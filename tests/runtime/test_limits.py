"""Limits as text for cgroup files, for both versions, and the contradictions that are refused."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.model import Limits
from nbcontainer.runtime.limits import binary_size, check_limits, controllers_asked, parse_cpu_list, settings

MIB = 1 << 20
HERE = frozenset({0, 1, 2, 3})


def written(version: Literal[1, 2], **limits: Any) -> dict[str, str]:
    """What would be written, by file."""
    return {each.file: each.value for each in settings(Limits(**limits), version)}


@pytest.mark.parametrize(
    ("limits", "v1", "v2"),
    [
        ({}, {}, {}),
        (
            {"memory": 256 * MIB},
            {"memory.limit_in_bytes": "268435456", "memory.memsw.limit_in_bytes": "536870912"},
            {"memory.max": "268435456", "memory.swap.max": "268435456"},
        ),
        (
            {"memory": 256 * MIB, "memory_swap": 256 * MIB},
            {"memory.limit_in_bytes": "268435456", "memory.memsw.limit_in_bytes": "268435456"},
            {"memory.max": "268435456", "memory.swap.max": "0"},
        ),
        (
            {"memory": 256 * MIB, "memory_swap": -1},
            {"memory.limit_in_bytes": "268435456", "memory.memsw.limit_in_bytes": "-1"},
            {"memory.max": "268435456", "memory.swap.max": "max"},
        ),
        ({"memory_reservation": MIB}, {"memory.soft_limit_in_bytes": "1048576"}, {"memory.low": "1048576"}),
        (
            {"cpus": 1.5},
            {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000"},
            {"cpu.max": "150000 100000"},
        ),
        ({"cpus": 0.01}, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "1000"}, {"cpu.max": "1000 100000"}),
        ({"cpu_shares": 2}, {"cpu.shares": "2"}, {"cpu.weight": "1"}),
        ({"cpu_shares": 1024}, {"cpu.shares": "1024"}, {"cpu.weight": "39"}),
        ({"cpu_shares": 262144}, {"cpu.shares": "262144"}, {"cpu.weight": "10000"}),
        ({"cpuset_cpus": "0-2"}, {"cpuset.cpus": "0-2"}, {"cpuset.cpus": "0-2"}),
        ({"pids": 100}, {"pids.max": "100"}, {"pids.max": "100"}),
        ({"pids": -1}, {"pids.max": "max"}, {"pids.max": "max"}),
    ],
)
def test_settings(limits: dict[str, Any], v1: dict[str, str], v2: dict[str, str]) -> None:
    """Every limit in the words of both versions."""
    assert written(1, **limits) == v1
    assert written(2, **limits) == v2


def test_swap_that_was_asked_for_must_hold() -> None:
    """Docker's default for swap is left out where swap is not counted; one that was asked for is not."""
    for version, file in ((1, "memory.memsw.limit_in_bytes"), (2, "memory.swap.max")):
        by_file = {each.file: each for each in settings(Limits(memory=MIB), version)}  # type: ignore[arg-type]
        assert by_file[file].optional
        asked = {each.file: each for each in settings(Limits(memory=MIB, memory_swap=MIB), version)}  # type: ignore[arg-type]
        assert not asked[file].optional


@pytest.mark.parametrize(
    ("limits", "controllers"),
    [
        ({}, set()),
        ({"memory": 1}, {"memory"}),
        ({"memory_reservation": 1}, {"memory"}),
        ({"cpus": 1.0, "cpu_shares": 3}, {"cpu"}),
        ({"cpuset_cpus": "0", "pids": 5}, {"cpuset", "pids"}),
    ],
)
def test_controllers(limits: dict[str, Any], controllers: set[str]) -> None:
    """Only the controllers of what was asked are needed."""
    assert controllers_asked(Limits(**limits)) == controllers


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"memory": 1000}, "less than 6m"),
        ({"memory_swap": 10 * MIB}, "give --memory too"),
        ({"memory": 20 * MIB, "memory_swap": 10 * MIB}, r"10 MiB.*less than --memory \(20 MiB\)"),
        ({"memory": 20 * MIB, "memory_reservation": 30 * MIB}, "more than --memory"),
        ({"cpus": 5.0}, "0.01 to 4"),
        ({"cpus": 0.001}, "0.01 to 4"),
        ({"cpu_shares": 1}, "2 to 262144"),
        ({"cpuset_cpus": "2-5"}, "processor 4, which is not here; there are 0,1,2,3"),
    ],
)
def test_contradictions(limits: dict[str, Any], words: str) -> None:
    """What cannot be is said before anything is made."""
    with pytest.raises(InvalidOption, match=words):
        check_limits(Limits(**limits), HERE)


def test_what_can_be() -> None:
    """Limits within the machine pass."""
    everything = Limits(
        memory=6 * MIB, memory_swap=-1, memory_reservation=MIB, cpus=4.0, cpu_shares=2, cpuset_cpus="0,3", pids=1
    )
    check_limits(everything, HERE)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "0-2 ", "٣", "0:1"])
def test_bad_cpu_lists(text: str) -> None:
    """What is no list of processors is refused."""
    with pytest.raises(InvalidOption, match="0-2,4"):
        parse_cpu_list(text)


def test_cpu_list() -> None:
    """Numbers and ranges, in any order."""
    assert parse_cpu_list("4,0-2") == {0, 1, 2, 4}


@pytest.mark.parametrize(
    ("size", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (256 * MIB, "256 MiB"), (3 << 30, "3 GiB")]
)
def test_binary_size(size: int, text: str) -> None:
    """Sizes are told in the units in which limits are given."""
    assert binary_size(size) == text
