"""What the machine brings along into a container, turned against it: its interpreter, and the descriptors it hands over."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer.testing.rootfs import PYTHON
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from tests.integration.tiers import Driver, Tier

CHANGE_WHAT_RUNS = """
import errno, json, os, sys

def said(attempt):
    try:
        attempt()
    except OSError as problem:
        return "refused " + errno.errorcode[problem.errno]
    return "done"

place = sys.argv[-1]
handle, opened = os.open(place, os.O_PATH), os.open(place, os.O_RDONLY)
status = os.fstat(opened)
answers = {
    "chmod": said(lambda: os.fchmod(opened, status.st_mode & 0o7777)),
    "times": said(lambda: os.utime(opened, ns=(status.st_atime_ns, status.st_mtime_ns))),
    "attribute": said(lambda: os.setxattr(opened, "user.nbcontainer-test", b"")),
    "write": said(lambda: os.open(f"/proc/self/fd/{handle}", os.O_WRONLY)),
    "truncate": said(lambda: os.truncate(place, status.st_size)),
}
print(json.dumps([os.readlink(place), answers]))
"""
HARMLESS = {"refused EROFS", "refused EACCES", "refused EPERM", "refused ETXTBSY"}
"""Writing is refused as ETXTBSY first, since PID 1 runs the same file, where a read-only mount would refuse it."""
ITS_HOME = ("PYTHONHOME=" + str(Path(PYTHON).parent.parent),)


@pytest.mark.parametrize("way", ["command", "interpreter", "link"])
def test_interpreter_of_the_machine(tier: Tier, own_interpreter: Driver, way: str) -> None:
    """A command that names the program which starts containers does not get it to change (CVE-2019-5736)."""
    folder = tier.folder("way")
    folder.chmod(0o777)
    (folder / "script").write_text(f"#!/proc/self/exe -S\n{CHANGE_WHAT_RUNS}")
    (folder / "script").chmod(0o755)
    (folder / "link").symlink_to("/proc/self/exe")
    commands = {
        "command": ("/proc/self/exe", "-S", "-c", CHANGE_WHAT_RUNS, "/proc/self/exe"),
        "interpreter": ("/work/script", "/proc/self/exe"),
        "link": ("/work/link", "-S", "-c", CHANGE_WHAT_RUNS, "/proc/self/exe"),
    }
    before = Path(sys.executable).stat().st_ctime_ns
    try:
        result = own_interpreter.run(*commands[way], volumes=[(folder, "/work", "rw")], environment=ITS_HOME)
    except Raised as raised:
        assert raised.is_ours, raised.kinds
        return
    assert result.ok, result
    program, answers = json.loads(result.stdout)
    assert program == "/" or "python" in program  # the mount that it came from is nowhere any more
    assert set(answers.values()) <= HARMLESS, answers
    assert Path(sys.executable).stat().st_ctime_ns == before


def test_file_as_standard_input(tier: Tier) -> None:
    """A file given as standard input can be read, and not changed through its descriptor."""
    folder = tier.folder("input")
    data = folder / "data"
    data.write_text("rows\n")
    if tier.user is not None:
        os.chown(data, tier.user.uid, tier.user.gid)
    change = "cat; for each in 0 1 2; do chmod 600 /dev/fd/$each; echo pwned >> /proc/self/fd/0; done 2>/dev/null; true"
    tier.driver.begin("run_fed", image=tier.image, source=str(data), script=change)
    assert tier.driver.finish() == "rows\n"
    assert (data.read_text(), data.stat().st_mode & 0o777) == ("rows\n", 0o644)


@pytest.mark.parametrize(
    ("script", "answer"), [("wc -c", "5000000\n"), ("head -c 3", "xxx"), ("true", ""), ("exec <&-; sleep 0.1", "")]
)
def test_large_file_as_standard_input(tier: Tier, script: str, answer: str) -> None:
    """A file longer than a pipe arrives whole, and nobody waits for a command that does not read it."""
    data = tier.folder("input") / "data"
    data.write_bytes(b"x" * 5_000_000)
    tier.driver.begin("run_fed", image=tier.image, source=str(data), script=script)
    assert tier.driver.finish() == answer


def test_interpreter_of_ones_own_and_the_host_image(own_interpreter: Driver) -> None:
    """What keeps the interpreter from containers keeps nothing of the machine from them: overlays lie around it, too."""
    result = own_interpreter.run(script="echo on; ls / | grep -c tmp", image="host")
    assert result.stdout == "on\n1\n", result
