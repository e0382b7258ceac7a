"""The engines that the benchmarks of running containers compare, each set up on one root file system.

`Ours` is our engine in this process, as a notebook has it. A `Peer` is known by its command lines: to run ``true`` in a
fresh container, to hold a container in which a command sleeps, to run ``true`` in that one, to let it go. Ours, docker
and podman give each container a copy-on-write layer of its own; bwrap, runc and crun are given a directory that is
unpacked already, which is less work. Ours is always in a user namespace, the others only when started by a user who is
not root. Nobody has a network unless asked for one, as `network.py` does.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import peers

from nbcontainer import Engine, Settings
from nbcontainer.model import RunOptions
from nbcontainer.model.network import NetworkOptions
from nbcontainer.network.places import FOLDER, LOCK
from nbcontainer.testing.registry import InProcessRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from nbcontainer.model.network import PortMapping

__all__ = ["NO_NETWORK", "OURS", "OURS_IMAGE", "SLEEP", "Command", "Ours", "Peer", "command", "set_up"]

OURS = "nbcontainer"
OURS_IMAGE = "debian"
SLEEP: Command = ("sleep", "100000")
NO_NETWORK = "none"
"""Ours would have `bridge` where nothing is said; what is compared here says it."""
Command = tuple[str, ...]

_IMAGE = "nbc-bench"
_STARTING = 20.0
_LEAVING = 30.0


def command(*argv: str, cwd: str | None = None) -> None:
    """Run a contender's command line; nothing is shown unless it fails."""
    done = subprocess.run(
        argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()}")


def _leave_running(*argv: str) -> None:
    """Run a command line whose container stays and keeps its standard error: a pipe would not come to its end."""
    with tempfile.TemporaryFile() as said:
        code = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, check=False
        ).returncode
        if code:
            said.seek(0)
            raise RuntimeError(f"exit code {code}: {said.read().decode(errors='replace').strip()}")


class Ours:
    """Our engine in this process, the image pulled from a registry in this process."""

    def __init__(self, stage: peers.Stage, tar: str) -> None:
        served = stage.undo.enter_context(InProcessRegistry())
        served.add_image(f"library/{OURS_IMAGE}", "latest", layers=[Path(tar).read_bytes()], compression="none")
        self.root = stage.path("ours")
        self._held: dict[str, threading.Thread] = {}
        stage.undo.callback(self._await_keeper)
        settings = Settings(root=self.root, mirrors={"docker.io": (served.url,)}, network=NO_NETWORK)
        self.engine = stage.undo.enter_context(Engine(settings))
        stage.undo.callback(self.release_all)
        self.engine.pull(OURS_IMAGE)

    def run(self, network: str = NO_NETWORK) -> None:
        """Run ``true`` in a fresh container."""
        self.engine.run(OURS_IMAGE, ["true"], options=RunOptions(network=network), check=True)

    def hold(
        self, name: str, argv: Command = SLEEP, *, network: str = NO_NETWORK, ports: Sequence[PortMapping] = ()
    ) -> None:
        """Start a container that goes on running; as with a cell, a thread of this process watches it."""
        networking = NetworkOptions(ports=tuple(ports))
        options = RunOptions(name=name, remove=True, network=network, networking=networking)
        thread = threading.Thread(target=self._watch, args=(argv, options), daemon=True)
        self._held[name] = thread
        thread.start()
        deadline = time.monotonic() + _STARTING
        while not any(each.name == name and each.started is not None for each in self.engine.containers()):
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError(f"container {name} did not start")
            time.sleep(0.01)

    def _watch(self, argv: Command, options: RunOptions) -> None:
        # what it wrote is what its end is reported with; a container that is killed is no failure here
        self.engine.run(OURS_IMAGE, argv, options=options)

    def enter(self, name: str) -> None:
        """Run ``true`` in a container that is held."""
        self.engine.exec(name, ["true"], check=True)

    def release(self, name: str) -> None:
        """End a container that is held."""
        self.engine.kill(name)
        self._held.pop(name).join()

    def within(self, name: str) -> Command:
        """What goes before a command line that shall run in a container that is held."""
        return ("env", f"NBCONTAINER_ROOT={self.root}", sys.executable, "-m", "nbcontainer", "exec", name)

    def _await_keeper(self) -> None:
        """Wait for the keeper of networks to leave: it takes bridges and rules away, a moment after the engine."""
        deadline = time.monotonic() + _LEAVING
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.root, FOLDER, LOCK), "rb") as file:
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    time.sleep(0.05)
                else:
                    return
            print("the keeper of networks is still there", file=sys.stderr)

    def release_all(self) -> None:
        """End every container that is held."""
        for name in list(self._held):
            with contextlib.suppress(Exception):  # it never started, and that has been told
                self.release(name)


@dataclass(slots=True, kw_only=True)
class Peer:
    """Another engine, by its command lines.

    `fresh` is asked for a new one each time, since some want a name that is not taken. Without `hold` it cannot keep
    a container that others enter. With `serve` it can be given options, in docker's words, and a command for that; then
    `within` goes before a command line that shall run in there.
    """

    name: str
    fresh: Callable[[], Command]
    hold: Callable[[str], Command] | None = None
    serve: Callable[[str, Command, Command], Command] | None = None
    within: Callable[[str], Command] | None = None
    enter: Callable[[str], Command] | None = None
    release: Callable[[str], Command] | None = None
    cwd: str | None = None
    slow: bool = False
    held: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run ``true`` in a fresh container."""
        command(*self.fresh(), cwd=self.cwd)

    def begin(self, name: str) -> None:
        """Hold a container under this name."""
        assert self.hold is not None
        self.held.append(name)
        _leave_running(*self.hold(name))

    def begin_serving(self, name: str, options: Command, argv: Command) -> None:
        """Hold a container under this name, with these options and for this command."""
        assert self.serve is not None
        self.held.append(name)
        _leave_running(*self.serve(name, options, argv))

    def visit(self, name: str) -> None:
        """Run ``true`` in the container that is held."""
        assert self.enter is not None
        command(*self.enter(name))

    def end(self, name: str) -> None:
        """Let a container go."""
        assert self.release is not None
        self.held.remove(name)
        command(*self.release(name))

    def end_all(self) -> None:
        """Let every container go."""
        for name in list(self.held):
            with contextlib.suppress(RuntimeError):
                self.end(name)


def set_up(
    stage: peers.Stage, tar: str, names: Sequence[str], only: Collection[str] = (), *, network: str = NO_NETWORK
) -> tuple[Ours | None, list[Peer], dict[str, str]]:
    """Set up ours and the peers of these `names` that `only` admits; also tell who could not be, and why.

    Whoever is not installed is named on the terminal and left out. `network` is that of docker's and podman's
    containers, "" for the one that they have by default.
    """
    print("setting up …", flush=True)
    chosen = [name for name in names if not only or name.startswith(tuple(only))]
    if not {OURS, "podman", "docker"}.issuperset(chosen):
        directory = stage.path("rootfs")
        os.mkdir(directory)
        # device nodes are every contender's own business, and only root could make them
        peers.check("tar", "--extract", "--file", tar, "--directory", directory, "--exclude=./dev/*")
    found: list[Peer] = []
    problems: dict[str, str] = {}
    for name in chosen:
        if name == OURS:
            continue
        if peers.find(name) is None:
            print(f"{name}: absent")
            continue
        try:
            peer = _RECIPES[name](stage, tar, network)
        except (RuntimeError, OSError) as problem:
            problems[name] = str(problem)
        else:
            stage.undo.callback(peer.end_all)
            found.append(peer)
    return (Ours(stage, tar) if OURS in chosen else None), found, problems


def _bwrap(stage: peers.Stage, _tar: str, _network: str) -> Peer:
    """All namespaces, the directory as root, private /proc and /dev."""
    line = (
        "bwrap", "--unshare-all", "--bind", stage.path("rootfs"), "/", "--proc", "/proc", "--dev", "/dev", "true",
    )  # fmt: skip
    return Peer(name="bwrap", fresh=lambda: line)


def _oci_runtime(name: str, stage: peers.Stage, _tar: str, _network: str) -> Peer:
    """`runc spec`'s own bundle, with ``true`` for a command and no terminal, and another with ``sleep``."""
    bundle, sleeping = stage.path(f"{name}-bundle"), stage.path(f"{name}-sleeping")
    for folder, argv in ((bundle, ["true"]), (sleeping, list(SLEEP))):
        os.mkdir(folder)
        rootless = os.geteuid() != 0
        peers.check(name, "spec", *(["--rootless"] if rootless else []), cwd=folder)
        path = Path(folder, "config.json")
        spec = json.loads(path.read_text(encoding="utf-8"))
        spec["process"].update(terminal=False, args=argv)
        spec["root"]["path"] = stage.path("rootfs")
        path.write_text(json.dumps(spec), encoding="utf-8")
    program = (name, "--root", stage.path(f"{name}-state"))
    numbers = itertools.count()
    return Peer(
        name=name,
        fresh=lambda: (*program, "run", f"nbc-bench-{os.getpid()}-{next(numbers)}"),
        hold=lambda held: (*program, "run", "--detach", "--bundle", sleeping, f"nbc-bench-{os.getpid()}-{held}"),
        enter=lambda held: (*program, "exec", f"nbc-bench-{os.getpid()}-{held}", "true"),
        release=lambda held: (*program, "delete", "--force", f"nbc-bench-{os.getpid()}-{held}"),
        cwd=bundle,
    )


def _podman(stage: peers.Stage, tar: str, network: str) -> Peer:
    """An imported image."""
    program = peers.podman(stage)
    peers.check(*program, "import", tar, _IMAGE)
    return _with_docker_words("podman", program, network, peers.PODMAN_LIMITS, removal=("--time", "0"))


def _docker(stage: peers.Stage, tar: str, network: str) -> Peer:
    """A dockerd of our own."""
    if os.geteuid() != 0:
        raise RuntimeError("dockerd needs root")
    program = stage.undo.enter_context(peers.dockerd(stage, bridge=network != NO_NETWORK))
    peers.check(*program, "import", tar, _IMAGE)
    return _with_docker_words("docker", program, network, (), removal=())


def _with_docker_words(name: str, program: Command, network: str, limits: Command, *, removal: Command) -> Peer:
    plain = (*(("--network", network) if network else ()), *limits)

    def serve(held: str, options: Command, argv: Command) -> Command:
        return (*program, "run", "--detach", "--name", held, *plain, *options, _IMAGE, *argv)

    return Peer(
        name=name,
        fresh=lambda: (*program, "run", "--rm", *plain, _IMAGE, "true"),
        hold=lambda held: serve(held, (), SLEEP),
        serve=serve,
        within=lambda held: (*program, "exec", held),
        enter=lambda held: (*program, "exec", held, "true"),
        release=lambda held: (*program, "rm", "--force", *removal, held),
        slow=True,
    )


_RECIPES: dict[str, Callable[[peers.Stage, str, str], Peer]] = {
    "bwrap": _bwrap,
    "runc": partial(_oci_runtime, "runc"),
    "crun": partial(_oci_runtime, "crun"),
    "podman": _podman,
    "docker": _docker,
}
