"""Other programs that tests compare with and talk to: docker with a daemon of its own, a registry, skopeo, podman.

A daemon and a registry are started once a session, by the first test that asks, below one folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.harness.leaks import Leaks

__all__ = ["copy", "docker", "peers_folder", "podman", "registry_host", "run", "running", "tool"]

_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "{host}"}}
"""


def tool(name: str) -> str:
    """Where a program is; the distribution's own first, since docker's client and daemon must match."""
    path = shutil.which(name, path=f"/usr/bin:/usr/sbin:{os.environ.get('PATH', os.defpath)}")
    assert path is not None
    return path


def run(name: str, *arguments: str, **options: Any) -> str:
    """Run a program that must succeed, and answer what it wrote."""
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False, timeout=100, **options)
    assert done.returncode == 0, f"{name} {' '.join(arguments)}: {done.stderr}"
    return str(done.stdout)


def copy(source: str, destination: str, *options: str) -> None:
    """`skopeo copy` on loopback."""
    insecure = ("--insecure-policy", "copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--quiet")
    run("skopeo", *insecure, *options, source, destination)


@contextlib.contextmanager
def running(leaks: Leaks, argv: Sequence[str], ready: Callable[[], bool], log: Path) -> Iterator[None]:
    """Run a server until the end of the block, allowing it to have processes of its own."""
    with log.open("wb") as output, subprocess.Popen(argv, stdout=output, stderr=output) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready():
                assert process.poll() is None, log.read_text(errors="replace")
                assert time.monotonic() < deadline, log.read_text(errors="replace")
                time.sleep(0.05)
            with leaks.allowing(trees=[process.pid], fds=[str(log)]):
                yield
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="session")
def peers_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Lend a folder for everything here, and remove it: there are too many bytes to keep for reading later."""
    folder = tmp_path_factory.mktemp("peers")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def registry_host(peers_folder: Path, leaks: Leaks) -> Iterator[str]:
    """Lend the address of a registry."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    configuration = peers_folder / "registry.yml"
    configuration.write_text(_REGISTRY.format(folder=peers_folder / "registry", host=f"127.0.0.1:{port}"))

    def accepts() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    argv = [tool("docker-registry"), "serve", str(configuration)]
    with running(leaks, argv, accepts, peers_folder / "registry.log"):
        yield f"127.0.0.1:{port}"


@pytest.fixture(scope="session")
def docker(peers_folder: Path, leaks: Leaks) -> Iterator[Callable[..., str]]:
    """Lend docker with a daemon and a store of its own."""
    address = f"unix://{peers_folder}/docker.sock"
    argv = [
        tool("dockerd"), "--data-root", f"{peers_folder}/docker", "--exec-root", f"{peers_folder}/docker-run",
        "--pidfile", f"{peers_folder}/docker.pid", "--host", address, "--storage-driver", "overlay2", "--bridge", "none",
        "--iptables=false", "--ip6tables=false",
    ]  # fmt: skip

    def answers() -> bool:
        command = [tool("docker"), "--host", address, "info"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    with running(leaks, argv, answers, peers_folder / "dockerd.log"):
        yield lambda *arguments: run("docker", "--host", address, *arguments)


@pytest.fixture(scope="session")
def podman(peers_folder: Path) -> Iterator[Callable[..., str]]:
    """Lend podman with a store of its own, and the runtime that takes every machine: crun refuses hybrid cgroups."""
    place = peers_folder / "podman"
    place.mkdir()
    options = (
        "--root", f"{place}/root", "--runroot", f"{place}/run", "--tmpdir", f"{place}/tmp", "--storage-driver", "overlay",
        "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc",
    )  # fmt: skip
    yield lambda *arguments: run("podman", *options, *arguments)
    run("podman", *options, "rm", "--all", "--force", "--time", "0")
    with contextlib.suppress(FileNotFoundError):
        subprocess.run(["umount", "--lazy", f"{place}/root/overlay"], capture_output=True, check=False)
