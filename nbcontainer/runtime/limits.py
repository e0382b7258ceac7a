"""From limits as asked to what is written into cgroup files: pure, for cgroup v1 and v2, so it is tested as a table.

A *setting* is one file of one controller and the text for it. The numbers are docker's: a processor's worth of time is
100 ms in 100 ms, a share of 1024 is usual, memory without a word about swap may take as much swap again. Sources:
kernel documentation cgroup-v2.rst, cgroup-v1/{memory,cpusets,pids}.rst, scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nbcontainer.model import Limits

__all__ = [
    "OPTIONS",
    "Setting",
    "binary_size",
    "check_limits",
    "controllers_asked",
    "parse_cpu_list",
    "settings",
]

_PERIOD = 100_000
_LEAST_MEMORY = 6 * 1024 * 1024
_SHARES = (2, 262_144)
_WEIGHTS = (1, 10_000)

OPTIONS = {"memory": "--memory", "cpu": "--cpus", "cpuset": "--cpuset-cpus", "pids": "--pids-limit"}
"""The option that stands for each controller in sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One file of a controller and its text. An `optional` one is left out where the kernel has no such file."""

    controller: str
    file: str
    value: str
    optional: bool = False


def controllers_asked(limits: Limits) -> frozenset[str]:
    """The controllers that these limits need."""
    found = set()
    if limits.memory is not None or limits.memory_reservation is not None or limits.memory_swap is not None:
        found.add("memory")
    if limits.cpus is not None or limits.cpu_shares is not None:
        found.add("cpu")
    if limits.cpuset_cpus:
        found.add("cpuset")
    if limits.pids is not None:
        found.add("pids")
    return frozenset(found)


def settings(limits: Limits, version: Literal[1, 2]) -> tuple[Setting, ...]:
    """What to write, in order; a limit that is None writes nothing, one of -1 lifts it."""
    return (*_memory(limits, version), *_cpu(limits, version), *_sets(limits))


def _memory(limits: Limits, version: int) -> Iterable[Setting]:
    swap = limits.memory_swap
    if swap is None and limits.memory is not None:
        swap = limits.memory * 2 if limits.memory > 0 else -1
    if version == 1:
        if limits.memory is not None:
            yield Setting(controller="memory", file="memory.limit_in_bytes", value=str(limits.memory))
        if swap is not None:
            optional = limits.memory_swap is None
            yield Setting(controller="memory", file="memory.memsw.limit_in_bytes", value=str(swap), optional=optional)
        if limits.memory_reservation is not None:
            value = str(limits.memory_reservation)
            yield Setting(controller="memory", file="memory.soft_limit_in_bytes", value=value)
        return
    if limits.memory is not None:
        yield Setting(controller="memory", file="memory.max", value=_or_max(limits.memory))
    if swap is not None:  # v2 counts swap by itself, docker's option counts memory with it
        alone = -1 if swap < 0 or limits.memory is None else swap - limits.memory
        optional = limits.memory_swap is None
        yield Setting(controller="memory", file="memory.swap.max", value=_or_max(alone), optional=optional)
    if limits.memory_reservation is not None:
        yield Setting(controller="memory", file="memory.low", value=_or_max(limits.memory_reservation))


def _cpu(limits: Limits, version: int) -> Iterable[Setting]:
    if limits.cpus is not None:
        quota = max(round(limits.cpus * _PERIOD), 1000) if limits.cpus > 0 else -1
        if version == 1:
            yield Setting(controller="cpu", file="cpu.cfs_period_us", value=str(_PERIOD))
            yield Setting(controller="cpu", file="cpu.cfs_quota_us", value=str(quota))
        else:
            yield Setting(controller="cpu", file="cpu.max", value=f"{_or_max(quota)} {_PERIOD}")
    if limits.cpu_shares is not None:
        if version == 1:
            yield Setting(controller="cpu", file="cpu.shares", value=str(limits.cpu_shares))
        else:
            yield Setting(controller="cpu", file="cpu.weight", value=str(_weight(limits.cpu_shares)))


def _weight(shares: int) -> int:
    """Docker's shares (2 to 262144) on the scale of v2 (1 to 10000), linearly as the OCI runtimes do."""
    return _WEIGHTS[0] + (shares - _SHARES[0]) * (_WEIGHTS[1] - _WEIGHTS[0]) // (_SHARES[1] - _SHARES[0])


def _sets(limits: Limits) -> Iterable[Setting]:
    if limits.cpuset_cpus:
        yield Setting(controller="cpuset", file="cpuset.cpus", value=limits.cpuset_cpus)
    if limits.pids is not None:
        yield Setting(controller="pids", file="pids.max", value=_or_max(limits.pids))


def _or_max(number: int) -> str:
    return "max" if number < 0 else str(number)


def check_limits(limits: Limits, processors: frozenset[int]) -> None:
    """Raise `InvalidOption` for limits that contradict each other or this machine's `processors`."""
    if limits.memory is not None and limits.memory < _LEAST_MEMORY:
        raise InvalidOption(f"--memory {limits.memory} is less than 6m, in which no program starts; give more")
    if limits.memory_swap is not None and limits.memory_swap != -1:
        if limits.memory is None:
            raise InvalidOption("--memory-swap counts memory and swap together; give --memory too")
        if limits.memory_swap < limits.memory:
            raise InvalidOption(
                f"--memory-swap ({binary_size(limits.memory_swap)}) counts memory and swap together, so it cannot be"
                f" less than --memory ({binary_size(limits.memory)})"
            )
    reserved = limits.memory_reservation
    if reserved is not None and limits.memory is not None and reserved > limits.memory:
        raise InvalidOption(
            f"--memory-reservation ({binary_size(reserved)}) cannot be more than --memory"
            f" ({binary_size(limits.memory)})"
        )
    if limits.cpus is not None and not 0.01 <= limits.cpus <= len(processors):
        raise InvalidOption(f"--cpus {limits.cpus:g} is outside 0.01 to {len(processors)}, which this machine has")
    if limits.cpu_shares is not None and not _SHARES[0] <= limits.cpu_shares <= _SHARES[1]:
        raise InvalidOption(f"--cpu-shares {limits.cpu_shares} is outside {_SHARES[0]} to {_SHARES[1]}; 1024 is usual")
    if limits.cpuset_cpus:
        missing = sorted(parse_cpu_list(limits.cpuset_cpus) - processors)
        if missing:
            here = ",".join(str(number) for number in sorted(processors))
            raise InvalidOption(
                f"--cpuset-cpus {limits.cpuset_cpus} names processor {missing[0]}, which is not here; there are {here}"
            )


_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)


def parse_cpu_list(text: str) -> frozenset[int]:
    """The processors of a list such as ``0-2,4`` (cpuset(7), list format)."""
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise InvalidOption(f"processors {text!r} are not a list such as 0-2,4")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def binary_size(size: float) -> str:
    """Bytes in units of 1024, as limits are given: ``256 MiB``, ``1.5 GiB``."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"
