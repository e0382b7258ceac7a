"""From a `ContainerSpec` to an ordered list of operations: pure, so it is printed and tested without privilege.

The child performs the list (`runtime.child.setup`) and decides nothing. Paths of layers are given relative to the
stage, the directory where the launcher has the store attached as ``store`` (the store itself may lie in a folder that
container root cannot walk through) and, as root, clones of the machine's file systems as ``host/0``, ``host/1``, ….
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.model import ContainerSpec, Mount, MountedFile

__all__ = [
    "Stage",
    "operations",
    "root_operations",
]

Operation = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What the launcher has attached: the store, and (as root) clones of these host paths, in this order."""

    store: str
    host_lowers: tuple[str, ...] = ()

    def locate(self, path: str, *, idmapped: bool = False) -> str:
        """`path` of the host as the stage has it."""
        if idmapped and path in self.host_lowers:
            return f"host/{self.host_lowers.index(path)}"
        if path == self.store or path.startswith(self.store + "/"):
            return "store" + path[len(self.store) :]
        return path


def operations(
    spec: ContainerSpec, stage: Stage, *, outside_mounts: tuple[int, ...] = (), device_nodes: int = -1
) -> list[Operation]:
    """The steps that turn an empty stage into the container's root, in order.

    `outside_mounts` gives, for each idmapped bind of ``spec.mounts`` in order, the index of the
    descriptor that travels with the request; `device_nodes` that of a mount with nodes made for ``spec.devices``,
    or -1 where the machine's own are shown.
    """
    steps = root_operations(spec.root, stage)
    steps += [{"op": "attach", "tree": tree, "target": tree} for tree in ("proc", "sys", "dev")]
    if spec.shm_size:
        steps.append({"op": "resize", "target": "/dev/shm", "size": spec.shm_size})  # noqa: S108 - the container's own
    generated = _generated_files(spec)
    later = [step for step in generated if _lies_in_a_volume(step["target"], spec.mounts, stage)]
    steps += [step for step in generated if step not in later]
    steps += [{"op": "write", "path": path.lstrip("/"), "text": text, "mode": 0o444} for path, text in spec.files]
    steps += [{"op": "mask", "target": mount.target} for mount in spec.root if mount.kind == "mask"]
    remaining = list(outside_mounts)
    for mount in spec.mounts:
        steps.append(_mount_step(mount, stage, remaining.pop(0) if mount.idmapped else -1))
    steps += later
    steps += [_mounted_file(number, file) for number, file in enumerate(spec.mounted_files)]
    if spec.devices:
        nodes = [[device.source, device.target, device.access] for device in spec.devices]
        steps.append({"op": "devices", "fd": device_nodes, "nodes": nodes})
    return steps


def _lies_in_a_volume(path: str, mounts: Sequence[Mount], stage: Stage) -> bool:
    """Whether a file of ours would be hidden by a writable volume of the store, and by nothing at its own place.

    It is shown over the volume then, as docker does it. In a folder of the person's it would leave an empty file.
    """
    if any(mount.target == path for mount in mounts):
        return False
    volumes = (each for each in mounts if each.source.startswith(f"{stage.store}/volumes/") and not each.read_only)
    return any(path.startswith(f"{each.target}/") for each in volumes)


def root_operations(root: Sequence[Mount], stage: Stage) -> list[Operation]:
    """The steps that mount the files of a container and nothing else; what is masked is covered by whoever asks."""
    return [_root_step(mount, stage) for mount in root if mount.kind != "mask"]


def _root_step(mount: Mount, stage: Stage) -> Operation:
    if mount.kind == "overlay":
        return {
            "op": "overlay",
            "target": mount.target,
            "lower": [stage.locate(layer, idmapped=mount.idmapped) for layer in mount.lower],
            "upper": stage.locate(mount.upper) if mount.upper else "",
            "work": stage.locate(mount.work) if mount.work else "",
            "volatile": mount.volatile,
        }
    if mount.kind == "symlink":
        return {"op": "symlink", "target": mount.target, "source": mount.source}
    return _mount_step(mount, stage, -1)


def _mounted_file(number: int, file: MountedFile) -> Operation:
    text = file.data.decode("utf-8", "surrogateescape")
    owner = {"mode": file.mode, "uid": file.uid, "gid": file.gid}
    return {"op": "generated", "target": file.target, "text": text, "name": f"file-{number}", **owner}


def _mount_step(mount: Mount, stage: Stage, fd: int) -> Operation:
    if mount.kind == "overlay":
        return _root_step(mount, stage)
    if mount.kind == "tmpfs":
        return {
            "op": "tmpfs",
            "target": mount.target,
            "size": mount.size,
            "mode": mount.mode,
            "read_only": mount.read_only,
            "executable": mount.executable,
        }
    if mount.kind == "mask":
        return {"op": "mask", "target": mount.target}
    return {
        "op": "bind",
        "target": mount.target,
        "source": stage.locate(mount.source),
        "fd": fd,
        "read_only": mount.read_only,
        "recursive": mount.recursive,
    }


def _generated_files(spec: ContainerSpec) -> list[Operation]:
    hosts = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff00::\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
        *(f"{address}\t{spec.hostname}" for address in spec.addresses or ("127.0.1.1",)),
        *spec.extra_hosts,
    ]
    files = {
        "/etc/hostname": f"{spec.hostname}\n",
        "/etc/hosts": "\n".join(hosts) + "\n",
        "/etc/resolv.conf": spec.resolv_conf,
    }
    return [{"op": "generated", "target": path, "text": text} for path, text in files.items()]
