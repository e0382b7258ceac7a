#!/usr/bin/env python3
"""Pull to ready: from an empty store to an image that can be run, out of a registry on loopback.

    python benchmarks/pull.py [--rounds 3] [--zstd] [--tar root.tar] [--json FILE]

The image is Debian with python3-numpy, python3-pandas and python3-matplotlib in one layer: about 1.3 GB in 47,000
files. Every contender is timed as the command a person would type, from its start to its exit: `nbcontainer pull` with
the interpreter's own start, `docker pull`, `podman pull`, and `skopeo copy` followed by `umoci unpack`. Before each the
store is empty and the disk's queue is drained; after each the image runs ``true``. Memory is the peak of the sum of the
resident sets of all its processes (docker's daemon and containerd included), sampled: pages they share are counted more
than once.

As root every pull goes to a file system made for it. ext4 avoids inodes that were in use some seconds ago, so on one
file system whoever comes after the removal of 47,000 files pays for them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

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
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    compression = "zstd" if options.zstd else "gzip"
    with peers.open_stage(options.temporary) as stage:
        host = stage.undo.enter_context(peers.registry(stage))
        tar = stage.root_tar(options.tar, options.packages)
        image, files = push(stage, tar, host, compression)
        ground = choose_ground(stage, size=4 * os.path.getsize(tar), files=4 * files)
        contenders = make_contenders(image, ground, tuple(filter(None, options.only.split(","))))
        peers.alternate(list(contenders), options.rounds, warm_up=0, pause=0)
        peers.print_table(contenders, ("docker", _OURS), scale=1, unit="s")
        memory = {each.name: watch.peak for each, watch in contenders.items() if each.seconds}
        print("\npeak memory: " + ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in memory.items()))
        peers.json_report(options.json, facts, contenders, memory=memory, compression=compression)


# --- the image --------------------------------------------------------------------------------------------------------


def push(stage: peers.Stage, tar: str, host: str, compression: str) -> tuple[str, int]:
    """Push the tar as an image of one layer, compressed by skopeo on its way; answer its name and how many files."""
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
    return image, names


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
    """Runs commands and knows the most memory that they, and the process `also` with its own, have had at once."""

    def __init__(self) -> None:
        self.peak = 0
        self.also: int | None = None

    def command(self, *argv: str, **variables: str) -> None:
        """Run a command to its end, sampling; interrupted, it is ended."""
        with subprocess.Popen(
            argv,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:
            over = threading.Event()
            tops = [process.pid] if self.also is None else [process.pid, self.also]
            sampler = threading.Thread(target=self._sample, args=(tops, over))
            sampler.start()
            try:
                _, complaint = process.communicate()
            except BaseException:
                process.terminate()
                raise
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


# --- where the pulled image goes --------------------------------------------------------------------------------------

Ground = Callable[[], "AbstractContextManager[peers.Stage]"]
"""Lends an empty place for one pull; nothing of it is left when the next one begins."""


def choose_ground(stage: peers.Stage, *, size: int, files: int) -> Ground:
    """A new file system for every pull where that can be had, else a new folder; say which, and why."""
    fresh = partial(peers.fresh_file_system, stage, size=size, files=files)
    reason = "that takes root"
    if os.geteuid() == 0:
        try:
            with fresh():
                pass
        except (OSError, RuntimeError) as problem:
            reason = str(problem).strip().splitlines()[-1]
        else:
            print("every pull goes to an ext4 made for it, in a file below " + str(stage.folder))
            return fresh
    print(
        f"every pull goes to a new folder below {stage.folder}, not to a file system of its own: {reason}.\n"
        "ext4 avoids inodes that were in use some seconds ago, so each pull may be slowed by the removal before it"
    )
    return partial(folder_ground, stage)


@contextlib.contextmanager
def folder_ground(stage: peers.Stage) -> Iterator[peers.Stage]:
    """Lend a folder of the stage."""
    folder = Path(stage.path("disk"))
    folder.mkdir()
    try:
        with contextlib.ExitStack() as undo:
            yield peers.Stage(folder, undo)
    finally:
        peers.remove_tree(str(folder))


# --- the contenders ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One pull, prepared: what is timed, and what proves that the image is ready."""

    act: Callable[[], None]
    prove: Callable[[], object]


class Recipe(Protocol):
    """How one contender pulls."""

    def __call__(self, stage: peers.Stage, image: str, watch: Watch) -> Pull:
        """Prepare a pull of an image into an empty stage."""


def make_contenders(image: str, ground: Ground, only: tuple[str, ...]) -> dict[peers.Contender, Watch]:
    """Set everybody up who is here."""
    recipes: dict[str, tuple[tuple[str, ...], Recipe]] = {
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
        watch = Watch()
        rounds = Rounds(ground, partial(recipe, image=image, watch=watch))
        contender = peers.Contender(
            name=name, before=rounds.before, act=rounds.act, after=rounds.after, tidy=rounds.tidy
        )
        contenders[contender] = watch
    print(flush=True)
    return contenders


class Rounds:
    """What one contender does in its rounds, each on new ground."""

    def __init__(self, ground: Ground, prepare: Callable[[peers.Stage], Pull]) -> None:
        self._ground = ground
        self._prepare = prepare
        self._held = contextlib.ExitStack()
        self._pull: Pull | None = None

    def before(self) -> None:
        """Get ground and prepare a pull on it."""
        self._pull = self._prepare(self._held.enter_context(self._ground()))
        os.sync()

    def act(self) -> None:
        """Pull."""
        assert self._pull is not None
        self._pull.act()

    def after(self) -> None:
        """See that the image runs."""
        assert self._pull is not None
        self._pull.prove()

    def tidy(self) -> None:
        """Leave the ground, whatever happened on it."""
        self._pull = None
        self._held.close()


def ours(stage: peers.Stage, image: str, watch: Watch) -> Pull:
    """Our own command."""
    command = (sys.executable, "-m", "nbcontainer")
    surroundings = {"NBCONTAINER_ROOT": stage.path("ours"), "TMPDIR": str(stage.folder)}
    return Pull(
        act=partial(watch.command, *command, "pull", image, **surroundings),
        prove=partial(
            peers.check, *command, "run", "--pull", "never", image, "true", env={**os.environ, **surroundings}
        ),
    )


def docker(stage: peers.Stage, image: str, watch: Watch) -> Pull:
    """A dockerd of our own, started anew."""
    program = stage.undo.enter_context(peers.dockerd(stage))
    watch.also = int(Path(stage.path("docker.pid")).read_text(encoding="ascii"))
    return Pull(
        act=partial(watch.command, *program, "pull", "--quiet", image),
        prove=partial(peers.check, *program, "run", "--rm", "--network", "none", image, "true"),
    )


def podman(stage: peers.Stage, image: str, watch: Watch) -> Pull:
    """A store of its own, which a first command has laid out."""
    program = peers.podman(stage)
    peers.check(*program, "images", "--quiet")
    pull = ("pull", "--quiet", "--tls-verify=false", image)
    return Pull(
        act=partial(watch.command, *program, *pull, TMPDIR=str(stage.folder)),
        prove=partial(peers.check, *program, "run", "--rm", "--network", "none", *peers.PODMAN_LIMITS, image, "true"),
    )


def umoci(stage: peers.Stage, image: str, watch: Watch) -> Pull:
    """Fetched into an OCI layout, then unpacked into a bundle."""
    layout, bundle = stage.path("umoci-layout"), stage.path("umoci-bundle")
    rootless = () if os.geteuid() == 0 else ("--rootless",)

    def act() -> None:
        fetch = ("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false")
        watch.command(*fetch, f"docker://{image}", f"oci:{layout}:1", TMPDIR=str(stage.folder))
        watch.command("umoci", "unpack", *rootless, "--image", f"{layout}:1", bundle)

    confine = ("chroot", f"{bundle}/rootfs") if os.geteuid() == 0 else ("bwrap", "--bind", f"{bundle}/rootfs", "/")
    return Pull(act=act, prove=partial(peers.check, *confine, "true"))


if __name__ == "__main__":
    main()
