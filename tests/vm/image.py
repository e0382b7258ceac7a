"""The guest's disk: Debian by mmdebstrap, the test requirements by pip, made once and kept by what it is made of.

Two steps, so that nobody needs to mount anything: mmdebstrap makes a tar, and mke2fs makes a file system of its
contents. An ordinary user does the second one as root of a user namespace, so that owners are right. This checkout is
not on the disk; it travels as a tar on a second one, which is made for every start.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.vm.guest import Plan

__all__ = ["PLAN", "TOOLS", "Disk", "Recipe", "checkout", "disk", "missing", "requirements"]

HERE = Path(__file__).resolve().parents[2]
PLAN = "tests/vm/plan.json"
"""Where the guest finds what to do, in the checkout."""
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "tar": "tar"}
PYTHONS = {"bookworm": "3.11", "trixie": "3.13"}
"""The Python of each Debian that is known to do."""
PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "kmod", "udev"),
    *("systemd", "systemd-sysv", "dbus", "dbus-user-session", "libpam-systemd", "apparmor"),
    *("iproute2", "login", "nftables", "passt", "passwd", "procps", "uidmap", "util-linux"),
    *("libseccomp2", "python3", "python3-venv"),
)
_LEFT_OUT = re.compile(r"(^|/)(\.git|\.venv|__pycache__|\.[a-z]+_cache|\.hypothesis)(/|$)")

_START = "tar -x -C /srv/nbcontainer -f /dev/vdb && cd /srv/nbcontainer && exec /opt/venv/bin/python -m tests.vm.guest"
_UNIT = f"""\
[Unit]
Description=The tests of nbcontainer
After=multi-user.target systemd-user-sessions.service systemd-logind.service
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=exec
ExecStart=/bin/sh -c '{_START}'
StandardOutput=file:/dev/virtio-ports/report
StandardError=inherit
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the disk is made of."""

    suite: str
    packages: tuple[str, ...] = PACKAGES
    unit: str = _UNIT
    size: str = "6G"

    @property
    def python(self) -> str:
        """The version of the guest's Python, such as ``3.13``."""
        try:
            return PYTHONS[self.suite]
        except KeyError:
            sys.exit(f"--suite {self.suite} is not known here; there are {', '.join(PYTHONS)}")

    def key(self, needed: Iterable[str]) -> str:
        """A name for the disk made of this and these Python packages."""
        text = repr((sorted(asdict(self).items()), self.python, sorted(needed)))
        return f"{self.suite}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A root file system, and the kernel and initial ramdisk to boot it with."""

    root: Path
    kernel: Path
    initrd: Path


def missing(tools: Iterable[str]) -> dict[str, str]:
    """Those of the tools that are not on PATH, with their Debian packages."""
    return {tool: TOOLS.get(tool, "qemu-system-x86") for tool in tools if not shutil.which(tool)}


def requirements() -> list[str]:
    """What the project and its tests need, as pyproject.toml has it; markers are pip's to judge."""
    found = []
    for line in importlib.metadata.requires("nbcontainer") or []:
        need, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"](\w+)['\"]", marker)
        if extra is None or extra[1] == "test":
            found.append(need.strip() if extra else line)
    return found


def disk(recipe: Recipe, cache: Path) -> Disk:
    """The disk of a recipe, from the cache or made now in place of the suite's last one.

    What is half made has another name.
    """
    needed = requirements()
    folder = cache / recipe.key(needed)
    made = Disk(root=folder / "root.ext4", kernel=folder / "vmlinuz", initrd=folder / "initrd.img")
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix="making-", dir=cache) as making:
            _make(recipe, needed, Path(making))
            os.mkdir(f"{making}/done")
            for name in (made.root, made.kernel, made.initrd):
                os.rename(f"{making}/{name.name}", f"{making}/done/{name.name}")
            os.rename(f"{making}/done", folder)
        for other in cache.glob(f"{recipe.suite}-*"):
            if other != folder:
                shutil.rmtree(other)
    return made


def _make(recipe: Recipe, needed: Sequence[str], making: Path) -> None:
    wheels = making / "wheels"
    _say(f"downloading {len(needed)} Python packages and what they need")
    _download(needed, recipe.python, wheels)
    unit = making / "nbcontainer-tests.service"
    unit.write_text(recipe.unit, encoding="utf-8")
    library = f"opt/venv/lib/python{recipe.python}"
    path = making / "checkout.pth"
    path.write_text("/srv/nbcontainer\n", encoding="ascii")
    _say(f"making Debian {recipe.suite} (minutes)")
    install = "/opt/venv/bin/python -m pip install --quiet --no-index --no-deps --root-user-action=ignore"
    hooks = (
        f'copy-in "{wheels}" /opt',
        f'copy-in "{unit}" /etc/systemd/system',
        'chroot "$1" python3 -m venv /opt/venv',
        f'chroot "$1" sh -c "{install} /opt/wheels/*.whl"',
        'rm -r "$1/opt/wheels"',
        'mkdir "$1/srv/nbcontainer"',
        f'copy-in "{path}" /{library}/site-packages',
        'chroot "$1" useradd --create-home --shell /bin/bash tester',
        'echo vm > "$1/etc/hostname"',
        'chroot "$1" systemctl --quiet set-default multi-user.target',
        'chroot "$1" systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer',
        'ln -s ../nbcontainer-tests.service "$1/etc/systemd/system/multi-user.target.wants/"',
    )
    _run(
        "mmdebstrap",
        "--variant=minbase",
        f"--include={','.join(recipe.packages)}",
        *(f"--customize-hook={hook}" for hook in hooks),
        recipe.suite,
        str(making / "root.tar"),
    )
    _say("making its file system")
    script = """
trap 'rm -rf "$1/tree"' EXIT
mkdir "$1/tree"
tar -x --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*' -C "$1/tree" -f "$1/root.tar"
cp "$1"/tree/boot/vmlinuz-* "$1/vmlinuz"
cp "$1"/tree/boot/initrd.img-* "$1/initrd.img"
chmod 644 "$1/vmlinuz" "$1/initrd.img"
mke2fs -q -t ext4 -d "$1/tree" "$1/root.ext4" "$2"
"""
    inside = () if os.geteuid() == 0 else ("unshare", "--user", "--map-root-user", "--map-auto")
    _run(*inside, "sh", "-euc", script, "sh", str(making), recipe.size)


def _download(needed: Sequence[str], python: str, target: Path) -> None:
    """Fetch wheels for the guest's Python, whatever ours is, from where pip is set up to look."""
    digits = python.replace(".", "")
    platforms = [f"manylinux{each}_x86_64" for each in ("2014", "_2_17", "_2_28", "_2_34")]
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *("--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--abi={abi}" for abi in (f"cp{digits}", "abi3", "none")),
        *(f"--platform={platform}" for platform in (*platforms, "any")),
        *(f"--dest={target}", *needed),
    )


def _run(*argv: str) -> None:
    try:
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    except subprocess.CalledProcessError as problem:
        sys.exit(f"{argv[0]} failed (exit code {problem.returncode}); its message is above")


def _say(text: str) -> None:
    print(f"── {text}", flush=True)


def checkout(target: Path, plan: Plan) -> Path:
    """Put this checkout and the plan into a tar, as root's and readable to all, whoever owns it here."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if _LEFT_OUT.search(entry.name):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = "root"
        entry.mode |= 0o755 if entry.isdir() or entry.mode & 0o100 else 0o644
        return entry

    with tarfile.open(target, "w") as archive:
        for name in ("nbcontainer", "tests", "docs", "pyproject.toml", "README.md"):
            archive.add(HERE / name, name, filter=readable)
        data = plan.text().encode()
        entry = tarfile.TarInfo(PLAN)
        entry.size, entry.mode = len(data), 0o644
        archive.addfile(entry, io.BytesIO(data))
    return target
