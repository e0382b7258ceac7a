"""Capabilities by name and number, compared with the kernel's own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.runtime.capabilities import CAPABILITIES, DEFAULT_CAPABILITIES, capability_numbers

HEADER = Path("/usr/include/linux/capability.h")


@pytest.mark.skipif(not HEADER.exists(), reason="needs the kernel's headers: apt install linux-libc-dev")
def test_numbers_are_the_kernels() -> None:
    """Every number is the one of linux/capability.h, and none is missing."""
    found = re.findall(r"^#define\s+CAP_([A-Z_]+)\s+(\d+)\s*$", HEADER.read_text(), re.MULTILINE)
    assert {name: int(number) for name, number in found} == CAPABILITIES


@pytest.mark.skipif(not os.path.exists("/proc/sys/kernel/cap_last_cap"), reason="needs /proc")
def test_kernel_knows_no_more() -> None:
    """A kernel with a newer capability is noticed."""
    assert int(Path("/proc/sys/kernel/cap_last_cap").read_text()) <= max(CAPABILITIES.values())


def test_default() -> None:
    """Docker's fourteen, as a mask of the kernel."""
    assert sum(1 << number for number in capability_numbers(DEFAULT_CAPABILITIES)) == 0xA80425FB


def test_names() -> None:
    """A name is read with or without CAP_, in any case; an unknown one is refused."""
    assert capability_numbers(("CAP_CHOWN", "chown", "Sys_Admin")) == {0, 21}
    with pytest.raises(InvalidOption, match="'FLY' does not exist"):
        capability_numbers(("FLY",))
