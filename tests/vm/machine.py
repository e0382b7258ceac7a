"""Starting the guest: the qemu command is made here, watched until it ends or its time is over, and its report shown.

Emulation is qemu's own (tcg): ten times slower than the machine it runs on, and the same everywhere. The report comes
through a virtio port into a file, and is shown while it grows; the console goes to ``console.log``.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tests.vm.guest import verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.vm.image import Disk

__all__ = ["Machine", "boot"]

_LAST_WORDS = 40
"""Lines of the console that are shown when the guest ends without an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One start of the guest; what it writes goes into `folder`, and nothing of the disk is changed."""

    program: ClassVar[str] = "qemu-system-x86_64"
    disk: Disk
    checkout: Path
    folder: Path
    memory: int
    processors: int

    @property
    def console(self) -> Path:
        """What the kernel and systemd said."""
        return self.folder / "console.log"

    @property
    def report(self) -> Path:
        """What the tests said."""
        return self.folder / "report.txt"

    def command(self) -> list[str]:
        """The qemu command."""
        kernel = "root=/dev/vda rw console=ttyS0 panic=-1 quiet systemd.show_status=false"
        return [
            *(self.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-accel", "tcg,thread=single", "-cpu", "max,la57=off", "-smp", str(self.processors)),
            *("-m", str(self.memory), "-nic", "none", "-device", "virtio-rng-pci"),
            *("-kernel", str(self.disk.kernel), "-initrd", str(self.disk.initrd), "-append", kernel),
            *("-drive", f"file={self.disk.root},format=raw,if=virtio,snapshot=on"),
            *("-drive", f"file={self.checkout},format=raw,if=virtio,readonly=on"),
            *("-serial", f"file:{self.console}"),
            *("-device", "virtio-serial-pci", "-chardev", f"file,id=report,path={self.report}"),
            *("-device", "virtserialport,chardev=report,name=report"),
        ]


def boot(machine: Machine, *, timeout: float, show: Callable[[str], object]) -> int:
    """Run the guest until it powers itself off, showing its report; the status it gave, or 1 when it gave none."""
    deadline = time.monotonic() + timeout
    shown = 0
    with subprocess.Popen(machine.command(), stdin=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.5)
                shown = _show_from(machine.report, shown, show)
            late = process.poll() is None
        finally:
            process.kill()
    _show_from(machine.report, shown, show)
    status = verdict(_text(machine.report))
    if late:
        show(f"\nthe guest was not done after {timeout / 60:g} minutes; give more with --timeout\n")
    elif status is None:
        show("\nthe guest ended without an answer; its console said last:\n")
        show("\n".join(_text(machine.console).splitlines()[-_LAST_WORDS:]) + "\n")
    return 1 if late or status is None else status


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _show_from(report: Path, shown: int, show: Callable[[str], object]) -> int:
    """Show what has been added to the report, whole lines only; how much of it has been shown."""
    if not report.exists():
        return shown
    with report.open("rb") as file:
        file.seek(shown)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    if whole:
        show(whole.decode(errors="replace").replace("\r\n", "\n"))
    return shown + len(whole)
