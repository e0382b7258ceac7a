"""Whether this host can run a marked test, by the same probes that `%container doctor` shows to people.

A marker's answer is a sentence (why it cannot, and the fix) or "" when it can. `pytest --require=root,userns` turns
the skips of those markers into failures, so that CI notices when coverage silently rots away.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile

from nbcontainer._linux.features import Feature, probe
from tests.harness.patience import patient

__all__ = ["PROBED", "absence", "feature"]

_FOR_ROOT = ("/usr/sbin", "/sbin")
"""Where a distribution has nft, whose users have that on no PATH; this package looks there, too."""
_PEERS = ("docker", "skopeo", "umoci", "docker-registry", "mmdebstrap")


@functools.cache
def _features() -> dict[str, Feature]:
    return {each.name: each for each in probe(tempfile.gettempdir(), timeout=patient(20))}


def feature(name: str) -> Feature:
    """Return one feature of this host; the probe runs once a session, when somebody first asks."""
    return _features()[name]


def _first_missing(*names: str) -> str:
    return next((feature(name).sentence for name in names if not feature(name).works), "")


def _root() -> str:
    if os.geteuid() != 0:
        return "needs root: run pytest as root."
    with open("/proc/self/uid_map", encoding="ascii") as file:
        if file.read().split() != ["0", "0", "4294967295"]:
            return "needs root of the initial user namespace: this one is inside a container."
    return ""


def _userns() -> str:
    return _first_missing("user-namespaces", "namespaces", "mount-api", "proc", "tmpfs")


def _overlay() -> str:
    return _userns() or _first_missing("overlay", "whiteouts")


def _subids() -> str:
    missing = [name for name in ("useradd", "userdel", "usermod", "newuidmap", "newgidmap") if not shutil.which(name)]
    if missing:
        return f"needs {', '.join(missing)}: apt install passwd uidmap."
    return _root() or _userns()


def _network() -> str:
    """Ask the package mirror by pip, the ordinary client, without installing anything."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed", "--quiet", "six"]
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return "needs a package mirror: pip got no answer within 30 s."
    return "" if done.returncode == 0 else "needs a package mirror: pip cannot reach one (see pip config)."


def _peers(*names: str) -> str:
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_FOR_ROOT))
    missing = [name for name in names or _PEERS if not shutil.which(name, path=path)]
    return f"needs {', '.join(missing)} on PATH." if missing else ""


def _browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return "" if any(shutil.which(name) for name in names) else "needs a browser: apt install chromium."


PROBED = ("root", "userns", "overlay", "subids", "network", "peers", "browser")
"""The markers that depend on the host (`slow` does not)."""


@functools.cache
def absence(marker: str, *arguments: str) -> str:
    """Return why a test marked `marker` cannot run here, or "".

    ``@pytest.mark.peers("skopeo")`` names the programs it needs; the other markers take no arguments.
    """
    probes = {
        "root": _root,
        "userns": _userns,
        "overlay": _overlay,
        "subids": _subids,
        "network": _network,
        "peers": _peers,
        "browser": _browser,
    }
    return probes[marker](*arguments)
