"""The programs of other people that networks stand on, and what to say where one is missing."""

from __future__ import annotations

import os
import shutil

__all__ = ["NO_NFT", "NO_TUN", "NO_UPLINK", "found", "may_open_tun"]

_FURTHER = ("/usr/local/sbin", "/usr/sbin", "/sbin")

NO_NFT = (
    "networks of containers need the program nft, which keeps them from this machine's own services; install it"
    " (apt install nftables), or use --network none or --network host"
)
NO_UPLINK = (
    "networks of a user's containers need the program pasta; install it (apt install passt), or use --network none or"
    " --network host"
)
NO_TUN = (
    "networks of a user's containers need /dev/net/tun, which cannot be opened here; let an administrator open it as"
    " distributions do (modprobe tun; chmod 0666 /dev/net/tun), or use --network none or --network host"
)
_TUN = "/dev/net/tun"


def may_open_tun(path: str = _TUN) -> bool:
    """Whether the device is ours to open, from which pasta makes the way out."""
    return os.access(path, os.R_OK | os.W_OK)


def found(name: str) -> str | None:
    """The path of a program, also where a user's PATH does not lead."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_FURTHER))
    return shutil.which(name, path=path)
