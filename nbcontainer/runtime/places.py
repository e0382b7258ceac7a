"""Paths inside containers that both sides of the launcher's socket know; nothing is imported for them."""

from __future__ import annotations

__all__ = ["MASKED_IN_PROC", "MASKED_IN_SYS", "READ_ONLY_IN_PROC", "SCRIPT_PATH"]

MASKED_IN_PROC = (
    "acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list",
    "timer_stats",
)  # fmt: skip
MASKED_IN_SYS = ("firmware", "devices/virtual/powercap")
READ_ONLY_IN_PROC = ("bus", "fs", "irq", "sys", "sysrq-trigger")
SCRIPT_PATH = "/dev/cell"
"""Where a cell's text is inside: /dev is always ours and writable by no image, so nothing of the image changes."""
