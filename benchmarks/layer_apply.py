"""How fast a layer becomes files: ours against GNU tar and ``tarfile.extractall``, round by round.

    python benchmarks/layer_apply.py [LAYER.tar] [--rounds 5] [--directory DIR] [--files 20000]

Without a tar, one is made: small files in many directories, some large ones, links. Each round runs every contestant
once, so that a noisy machine is noisy for all; medians and ratios are printed, and ``--json`` gives them to a
program. `nbcontainer` reads from a pipe fed by ``cat``, in a process of its own, as in a pull; GNU tar likewise.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
OURS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from nbcontainer.layers.apply import serve
target = os.open(sys.argv[2], os.O_RDONLY | os.O_DIRECTORY)
serve({"owners": os.geteuid() == 0}, [0, target])
"""
TARFILE = """
import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
    if sys.version_info >= (3, 12):
        archive.extractall(sys.argv[1], filter="fully_trusted")
    else:
        archive.extractall(sys.argv[1])
"""


def make_layer(path: Path, files: int) -> None:
    """Write a tar of the shape of a distribution's layer: median 2 KiB, a long tail, a tenth symlinks."""
    chance = random.Random(7)
    block = os.urandom(1 << 20)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for number in range(files):
            if number % 12 == 0:
                folder = f"usr/share/d{number // 600}/e{number // 12}"
                info = tarfile.TarInfo(folder)
                info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                archive.addfile(info)
            info = tarfile.TarInfo(f"{folder}/file{number}")
            info.mode, info.mtime = 0o644, 1_700_000_000
            if number % 10 == 0:
                info.type, info.linkname = tarfile.SYMTYPE, "file1"
                archive.addfile(info)
                continue
            info.size = min(int(chance.lognormvariate(7.6, 1.9)), 30_000_000)
            archive.addfile(info, io.BytesIO((block * (info.size // len(block) + 1))[: info.size]))


def commands(target: str) -> dict[str, list[str]]:
    """The contestants, each unpacking standard input into `target`."""
    return {
        "nbcontainer": [sys.executable, "-I", "-S", "-c", OURS, str(PACKAGE), target],
        "GNU tar": ["tar", "-xpf", "-", "--numeric-owner", "-C", target],
        "tarfile": [sys.executable, "-I", "-S", "-c", TARFILE, target],
    }


def once(layer: Path, name: str, directory: str) -> float:
    """Seconds for one contestant, from start to exit, into a fresh directory."""
    target = tempfile.mkdtemp(dir=directory)
    try:
        started = time.perf_counter()
        with subprocess.Popen(["cat", layer], stdout=subprocess.PIPE, pipesize=1 << 20) as cat:
            subprocess.run(commands(target)[name], stdin=cat.stdout, check=True)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layer", nargs="?", type=Path, help="an uncompressed layer tar")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=None, help="unpack on this file system")
    parser.add_argument("--files", type=int, default=20_000, help="files of the layer that is made")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        layer = options.layer
        if layer is None:
            layer = Path(directory, "layer.tar")
            make_layer(layer, options.files)
        with tarfile.open(layer) as archive:
            entries = sum(1 for _ in archive)
        seconds: dict[str, list[float]] = {name: [] for name in commands("")}
        for _ in range(options.rounds):
            for name, measured in seconds.items():
                measured.append(once(layer, name, directory))
        report(layer, entries, seconds, as_json=options.json)


def report(layer: Path, entries: int, seconds: dict[str, list[float]], *, as_json: bool) -> None:
    """Medians, rates, and how many times faster or slower than ours each other one is."""
    size = layer.stat().st_size
    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    if as_json:
        print(json.dumps({"bytes": size, "entries": entries, "seconds": seconds, "medians": medians}))
        return
    print(f"{entries} entries, {size / 1e6:.0f} MB, {len(seconds['nbcontainer'])} rounds")
    for name, median in medians.items():
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"{name:12} {median:7.3f} s ({low:.3f} to {high:.3f})  {size / median / 1e6:6.0f} MB/s"
            f"  {entries / median:7.0f} entries/s  {median / medians['nbcontainer']:5.2f} x our time"
        )


if __name__ == "__main__":
    main()
