#!/usr/bin/env python3
"""Pull to ready: from an empty store to an image that can be run, out of a registry on loopback.

    python benchmarks/pull.py [--rounds 3] [--zstd] [--tar root.tar] [--json FILE]

The image is Debian with python3-numpy, python3-pandas and python3-matplotlib in one layer: about 1.3 GB in 47,000
files. Every contender is timed as the command a person would type, from its start to its exit: `nbcontainer pull` with
the interpreter's own start, `docker pull`, `podman pull`, and `skopeo copy` followed by `umoci unpack`. Before each the
store is empty and the disk's queue is drained; after each the image runs ``true``. Memory is the peak of the sum of the
resident sets of all its processes (docker's daemon and containerd included), sampled: pages they share are counted more
than once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_OURS = "nbcontainer"
_PACKAGES = "python3-numpy,python3-pandas,python3-matplotlib"
_SAMPLE = 0.05
_FORMATS = {"gzip": "v2s2", "zstd": "oci"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=3)
    parser.add_argument("--packages", default=_PACKAGES, help="what the image has beyond Debian (default: %(default)s)")
    parser.add_argument(
        "--zstd",
        action="store_true",
        help="an OCI image with a zstd layer, as skopeo pushes it, and not schema 2 with gzip, as docker does",
    )
    options = parser.parse_args()
    peers.leave_unified_cgroup()
    facts = peers.environment()
    peers.print_environment(facts)
    compression = "zstd" if options.zstd else "gzip"
    with peers.open_stage(options.temporary) as stage:
        host = stage.undo.enter_context(peers.registry(stage))
        tar = stage.root_tar(options.tar, options.packages)
        image = push(stage, tar, host, compression)
        contenders = make_contenders(stage, image, tuple(filter(None, options.only.split(","))))
        peers.alternate(list(contenders), options.rounds, warm_up=0, pause=0)
        peers.print_table(contenders, ("docker", _OURS), scale=1, unit="s")
        memory = {each.name: watch.peak for each, watch in contenders.items() if each.seconds}
        print("\npeak memory: " + ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in memory.items()))
        peers.json_report(options.json, facts, contenders, memory=memory, compression=compression)


# --- the image --------------------------------------------------------------------------------------------------------


def push(stage: peers.Stage, tar: str, host: str, compression: str) -> str:
    """Push the tar as an image of one layer, compressed by skopeo on its way; answer its name."""
    print(f"pushing with {compression} …", flush=True)
    layout = Path(stage.path("layout"))
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layer = _digest(tar)
    (blobs / layer).symlink_to(tar)
    machine = os.uname().machine
    config: dict[str, Any] = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _put(blobs, config, "application/vnd.oci.image.config.v1+json"),
        "layers": [_descriptor(layer, os.path.getsize(tar), "application/vnd.oci.image.layer.v1.tar")],
    }
    described = _put(blobs, manifest, manifest["mediaType"])
    described["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', encoding="ascii")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}), encoding="ascii")
    image = f"{host}/scientific:{compression}"
    peers.check(
        "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--format", _FORMATS[compression],
        "--dest-compress-format", compression, f"oci:{layout}:1", f"docker://{image}",
    )  # fmt: skip
    names = subprocess.run(["tar", "--list", "--file", tar], capture_output=True, check=True).stdout.count(b"\n")
    sent = peers.check("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{image}")
    size = sum(each["size"] for each in json.loads(sent)["layers"])
    print(f"{os.path.getsize(tar) / 1e6:.0f} MB in {names} entries, {size / 1e6:.0f} MB compressed\n", flush=True)
    return image


def _digest(path: str) -> str:
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()


def _put(blobs: Path, document: dict[str, Any], media_type: str) -> dict[str, Any]:
    data = json.dumps(document).encode("ascii")
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return _descriptor(digest, len(data), media_type)


def _descriptor(digest: str, size: int, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


# --- memory -----------------------------------------------------------------------------------------------------------


class Watch:
    """Runs commands and knows the most memory that they, and the processes `also` and theirs, have had at once."""

    def __init__(self, also: int | None = None) -> None:
        self.peak = 0
        self._also = also

    def command(self, *argv: str, **variables: str) -> None:
        """Run a command to its end, sampling."""
        with subprocess.Popen(
            argv,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            over = threading.Event()
            tops = [process.pid] if self._also is None else [process.pid, self._also]
            sampler = threading.Thread(target=self._sample, args=(tops, over))
            sampler.start()
            try:
                _, complaint = process.communicate()
            finally:
                over.set()
                sampler.join()
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {complaint.decode(errors='replace').strip()}")

    def _sample(self, tops: list[int], over: threading.Event) -> None:
        while not over.wait(_SAMPLE):
            pids = {pid for top in tops for pid in _tree(top)}
            self.peak = max(self.peak, sum(_resident(pid) for pid in pids))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text(encoding="ascii").split():
                yield from _tree(int(child))
    except OSError:  # it has ended
        return


def _resident(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# --- the contenders ---------------------------------------------------------------------------------------------------


def make_contenders(stage: peers.Stage, image: str, only: tuple[str, ...]) -> dict[peers.Contender, Watch]:
    """Set everybody up who is here."""
    recipes: dict[str, tuple[tuple[str, ...], Callable[[peers.Stage, str], tuple[peers.Contender, Watch]]]] = {
        _OURS: ((), ours),
        "docker": (("docker", "dockerd"), docker),
        "podman": (("podman",), podman),
        "skopeo+umoci": (("skopeo", "umoci"), umoci),
    }
    contenders = {}
    for name, (programs, recipe) in recipes.items():
        if only and not name.startswith(only):
            continue
        absent = [program for program in programs if peers.find(program) is None]
        if absent or (name == "docker" and os.geteuid() != 0):
            print(f"{name}: absent ({', '.join(absent) or 'dockerd needs root'})")
            continue
        contender, watch = recipe(stage, image)
        contenders[contender] = watch
    return contenders


def ours(stage: peers.Stage, image: str) -> tuple[peers.Contender, Watch]:
    """Our own command, on a new store each time."""
    watch = Watch()
    root = stage.path("ours")
    command = (sys.executable, "-m", "nbcontainer")

    def after() -> None:
        peers.check(*command, "run", "--pull", "never", image, "true", env={**os.environ, "NBCONTAINER_ROOT": root})
        peers.remove_tree(root)

    act = partial(watch.command, *command, "pull", image, NBCONTAINER_ROOT=root)
    return peers.Contender(name=_OURS, act=act, before=os.sync, after=after), watch


def docker(stage: peers.Stage, image: str) -> tuple[peers.Contender, Watch]:
    """A dockerd of our own; the image is removed after each pull."""
    program = stage.undo.enter_context(peers.dockerd(stage))
    watch = Watch(also=int(Path(stage.path("docker.pid")).read_text(encoding="ascii")))

    def before() -> None:
        if peers.check(*program, "images", "--all", "--quiet"):
            raise RuntimeError("docker's store is not empty")
        os.sync()

    def after() -> None:
        peers.check(*program, "run", "--rm", "--network", "none", image, "true")
        peers.check(*program, "rmi", "--force", image)

    act = partial(watch.command, *program, "pull", "--quiet", image)
    return peers.Contender(name="docker", act=act, before=before, after=after), watch


def podman(stage: peers.Stage, image: str) -> tuple[peers.Contender, Watch]:
    """A store of its own; the image is removed after each pull."""
    watch = Watch()
    program = peers.podman(stage)

    def before() -> None:
        if peers.check(*program, "images", "--all", "--quiet"):
            raise RuntimeError("podman's store is not empty")
        os.sync()

    def after() -> None:
        peers.check(*program, "run", "--rm", "--network", "none", *peers.PODMAN_LIMITS, image, "true")
        peers.check(*program, "rmi", "--force", image)

    act = partial(watch.command, *program, "pull", "--quiet", "--tls-verify=false", image)
    return peers.Contender(name="podman", act=act, before=before, after=after), watch


def umoci(stage: peers.Stage, image: str) -> tuple[peers.Contender, Watch]:
    """Fetched into an OCI layout, then unpacked into a bundle."""
    watch = Watch()
    layout, bundle = stage.path("umoci-layout"), stage.path("umoci-bundle")
    rootless = () if os.geteuid() == 0 else ("--rootless",)

    def act() -> None:
        fetch = ("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false")
        watch.command(*fetch, f"docker://{image}", f"oci:{layout}:1")
        watch.command("umoci", "unpack", *rootless, "--image", f"{layout}:1", bundle)

    def after() -> None:
        confine = ("chroot", f"{bundle}/rootfs") if os.geteuid() == 0 else ("bwrap", "--bind", f"{bundle}/rootfs", "/")
        peers.check(*confine, "true")
        clear()

    def clear() -> None:
        for folder in (layout, bundle):
            if os.path.exists(folder):
                peers.remove_tree(folder)
        os.sync()

    return peers.Contender(name="skopeo+umoci", act=act, before=clear, after=after), watch


if __name__ == "__main__":
    main()
