"""What the benchmarks share: the other engines set up in a temporary folder, rounds that alternate, tables of ratios.

A *contender* is one way to do the same thing. Contenders take turns (A B C … A B C …), so that a busy moment of the
machine meets all of them; the medians of the rounds are compared. Nothing outside the temporary folder is used: a
dockerd of our own with its own data and socket, a podman store, bundles, a registry on loopback, file systems in files.
All of it ends with the `Stage`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import platform
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = [
    "PODMAN_LIMITS",
    "Contender",
    "Stage",
    "Target",
    "accounts",
    "add_common_options",
    "alternate",
    "check",
    "dockerd",
    "environment",
    "find",
    "fresh_file_system",
    "json_report",
    "open_stage",
    "own_mounts",
    "podman",
    "print_environment",
    "print_table",
    "print_targets",
    "registry",
    "remove_tree",
    "run_program",
]

_UNIFIED = "/sys/fs/cgroup/unified"
_REEXECUTED = "NBCONTAINER_BENCHMARK_REEXECUTED"
PODMAN_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""For `podman run`, which otherwise raises limits: root without CAP_SYS_RESOURCE may not."""
_TOOLS = {
    "bwrap": "--version", "runc": "--version", "crun": "--version", "podman": "--version", "docker": "--version",
    "dockerd": "--version", "skopeo": "--version", "umoci": "--version", "docker-registry": "--version",
    "iperf3": "--version",
}  # fmt: skip
_DISK_BYTES, _DISK_FILES = 12 << 30, 400_000
_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "{host}"}}
"""


# --- the environment --------------------------------------------------------------------------------------------------


def own_mounts() -> bool:
    """As root, start this program again in a mount namespace of its own, without the hybrid cgroup v2 mount.

    What is mounted there goes with the last process started by the benchmark, a daemon too. And crun and podman take a
    machine with ``/sys/fs/cgroup/unified`` for what it is not and fail; without the mount they see cgroup v1. Every
    contender then runs in the same surroundings, ours too. Return whether the mounts are our own.
    """
    if os.geteuid() != 0 or _REEXECUTED in os.environ:
        return os.geteuid() == 0
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        return False  # root of a container that may not; the benchmark says later what it has to do without
    os.environ[_REEXECUTED] = "1"
    sys.stdout.flush()
    script = f'if mountpoint -q {_UNIFIED}; then umount {_UNIFIED}; fi; exec "$@"'
    return os.execvp("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, *sys.argv])


def find(program: str) -> str | None:
    """Where a program is; the distribution's own first, since docker's client and daemon must match."""
    folders = ("/usr/bin", "/usr/sbin", "/bin", "/sbin", os.environ.get("PATH", os.defpath))
    return shutil.which(program, path=os.pathsep.join(folders))


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    tools = {name: _version(name, option) for name, option in _TOOLS.items()}
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)),
        "user": "root" if os.geteuid() == 0 else "unprivileged",
        "tools": {name: version for name, version in tools.items() if version},
        "absent": [name for name, version in tools.items() if not version],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(name: str, option: str) -> str:
    path = find(name)
    if path is None:
        return ""
    done = subprocess.run([path, option], capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else "unknown"


def print_environment(facts: dict[str, Any]) -> None:
    """Say what the figures depend on."""
    print(f"Python {facts['python']}, Linux {facts['kernel']}, {facts['cpus']} CPUs, as {facts['user']}")
    print("; ".join(facts["tools"].values()))
    if facts["absent"]:
        print("absent: " + ", ".join(facts["absent"]))
    print(flush=True)


def add_common_options(parser: argparse.ArgumentParser, *, rounds: int) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds per contender (default {rounds})")
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--tar", metavar="FILE", help="a root file system to use, instead of running mmdebstrap")
    parser.add_argument(
        "--only", metavar="NAME,…", default="", help="measure only contenders whose name starts with one of these"
    )
    parser.add_argument("--temporary", metavar="FOLDER", help="where the temporary folder goes (default: as mktemp)")


# --- a place to work --------------------------------------------------------------------------------------------------


def check(*argv: str, **options: Any) -> str:
    """Run a command, answer what it printed; its complaint ends the benchmark."""
    done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


@dataclass(slots=True)
class Stage:
    """A temporary folder, and what must be ended before it goes."""

    folder: Path
    undo: contextlib.ExitStack

    def path(self, *parts: str) -> str:
        """A path below the folder."""
        return str(self.folder.joinpath(*parts))

    def root_tar(self, given: str | None, packages: str = "") -> str:
        """The tar of a Debian root file system: `given`, or made here by mmdebstrap."""
        if given:
            return os.path.abspath(given)
        target = self.path("root.tar")
        print(f"mmdebstrap: Debian bookworm{' with ' + packages if packages else ''} …", flush=True)
        chosen = [f"--include={packages}"] if packages else []
        check("mmdebstrap", "--variant=minbase", *chosen, "bookworm", target)
        return target


@contextlib.contextmanager
def open_stage(folder: str | None = None) -> Iterator[Stage]:
    """Lend a `Stage`; afterwards everything started on it has ended and the folder is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # so that a benchmark that is ended cleans up, without a traceback
        signal.signal(number, lambda got, _: sys.exit(128 + got))
    top = tempfile.mkdtemp(prefix="nbc-bench-", dir=folder)
    before = set(_cgroups())
    try:
        with contextlib.ExitStack() as undo:
            yield Stage(Path(top), undo)
    finally:
        remove_tree(top)
        for cgroup in set(_cgroups()) - before:
            _remove_cgroup(cgroup)


def _cgroups() -> list[str]:
    """The cgroups that podman and docker make for all their containers, and leave."""
    return [path for name in ("libpod_parent", "docker") for path in glob.glob(f"/sys/fs/cgroup/**/{name}")]


def _remove_cgroup(top: str) -> None:
    for folder, _, _ in os.walk(top, topdown=False):
        with contextlib.suppress(OSError):  # somebody uses it by now
            os.rmdir(folder)


def remove_tree(top: str) -> None:
    """Remove a folder, also one holding files of subordinate ids that only the user's own namespace may touch."""
    shutil.rmtree(top, ignore_errors=True)
    if os.path.lexists(top) and os.geteuid() != 0:
        subprocess.run(
            ["unshare", "--map-root-user", "--map-auto", "rm", "-rf", top], check=False, stderr=subprocess.DEVNULL
        )
    if os.path.lexists(top):
        print(f"could not remove all of {top}", file=sys.stderr)


@contextlib.contextmanager
def fresh_file_system(stage: Stage, *, size: int = 0, files: int = 0) -> Iterator[Stage]:
    """Lend a `Stage` on an ext4 made this moment, in a sparse file; afterwards both are gone.

    `size` in bytes and `files` may ask for more than the usual 12 GiB and 400,000. Needs root and loop devices.
    """
    image, folder = stage.path("disk.img"), stage.path("disk")
    os.mkdir(folder)
    with contextlib.ExitStack() as undo:
        undo.callback(remove_tree, folder)
        undo.callback(Path(image).unlink, missing_ok=True)
        check("truncate", "--size", str(max(size, _DISK_BYTES)), image)
        inodes = ("-N", str(max(files, _DISK_FILES)))
        check("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", *inodes, image)
        check("mount", "-o", "loop", image, folder)
        undo.callback(_unmount, folder)
        with contextlib.ExitStack() as inner:
            yield Stage(Path(folder), inner)


def _unmount(folder: str) -> None:
    """Unmount, also what a container engine has mounted below; what was killed just now may need a moment to let go."""
    for _ in range(50):
        if not subprocess.run(["umount", "--recursive", folder], capture_output=True, check=False).returncode:
            return
        time.sleep(0.1)
    check("umount", "--recursive", "--lazy", folder)
    print(f"{folder} was still in use when it was unmounted", file=sys.stderr)


@contextlib.contextmanager
def registry(stage: Stage) -> Iterator[str]:
    """Run docker-registry on a free port of loopback; lend its address."""
    program = find("docker-registry")
    if program is None:
        raise RuntimeError("docker-registry is not installed")
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    configuration = stage.path("registry.yml")
    Path(configuration).write_text(_REGISTRY.format(folder=stage.path("registry"), host=host), encoding="utf-8")
    with subprocess.Popen(
        [program, "serve", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            _wait_for(lambda: _accepts(host), process, "docker-registry")
            yield host
        finally:
            process.terminate()


@contextlib.contextmanager
def dockerd(stage: Stage, *, bridge: bool = False) -> Iterator[tuple[str, ...]]:
    """Run a dockerd with a store of its own; lend the beginning of every docker command line that talks to it.

    With `bridge` it has its usual network, and makes rules in the packet filter: be in a network namespace for that.
    """
    daemon, client = find("dockerd"), find("docker")
    if daemon is None or client is None:
        raise RuntimeError("docker is not installed")
    address = "unix://" + stage.path("docker.sock")
    command = (
        daemon, "--data-root", stage.path("docker"), "--exec-root", stage.path("docker-run"), "--pidfile",
        stage.path("docker.pid"), "--host", address, "--storage-driver", "overlay2", "--ip6tables=false",
        *(() if bridge else ("--bridge", "none", "--iptables=false")),
    )  # fmt: skip
    log = stage.path("dockerd.log")
    with open(log, "wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            docker = (client, "--host", address)
            _wait_for(
                lambda: not subprocess.run([*docker, "info"], capture_output=True, check=False).returncode,
                process,
                "dockerd",
                log,
            )
            yield docker
        finally:
            process.terminate()  # it stops its containerd before it ends
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def podman(stage: Stage) -> tuple[str, ...]:
    """Give the beginning of podman command lines: a store of its own, and cgroupfs, for there may be no systemd."""
    program = (
        "podman", "--root", stage.path("podman"), "--runroot", stage.path("podman-run"), "--cgroup-manager", "cgroupfs",
    )  # fmt: skip
    if find("crun") and not os.path.ismount(_UNIFIED):  # else runc, podman's second choice
        program += ("--runtime", "crun")
    elif find("runc"):
        program += ("--runtime", "runc")
    stage.undo.callback(subprocess.run, [*program, "system", "reset", "--force"], capture_output=True, check=False)
    return program


def _accepts(host: str) -> bool:
    name, _, port = host.partition(":")
    try:
        socket.create_connection((name, int(port)), 1).close()
    except OSError:
        return False
    return True


def _wait_for(claim: Callable[[], bool], process: subprocess.Popen[bytes], name: str, log: str = "") -> None:
    deadline = time.monotonic() + 60
    while not claim():
        if process.poll() is not None or time.monotonic() > deadline:
            said = Path(log).read_text(encoding="utf-8", errors="replace")[-1500:] if log else ""
            raise RuntimeError(f"{name} did not start {said}")
        time.sleep(0.1)


# --- other users ------------------------------------------------------------------------------------------------------


def accounts(parser: argparse.ArgumentParser, names: Sequence[str]) -> list[pwd.struct_passwd]:
    """Find the users of ``--as``; who is not there, or asks without being root, ends the benchmark."""
    if names and os.geteuid() != 0:
        parser.error("--as USER needs root")
    found = []
    for name in names:
        try:
            found.append(pwd.getpwnam(name))
        except KeyError:
            parser.error(f"there is no user {name!r}; make one with `useradd --create-home {name}`")
    return found


def run_program(program: str, arguments: Sequence[str], account: pwd.struct_passwd | None) -> tuple[Any, int]:
    """Run another benchmark, as another user if asked; return the JSON that it wrote, and its exit code."""
    acting: dict[str, Any] = {}
    environment = dict(os.environ)
    if account is not None:
        acting = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        kept = {name: environment[name] for name in ("PATH", "LANG", "LC_ALL") if name in environment}
        environment = {**kept, "HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
    with tempfile.TemporaryDirectory(prefix="nbc-bench-") as folder:
        if account is not None:
            os.chown(folder, account.pw_uid, account.pw_gid)
        report = os.path.join(folder, "report.json")
        path = str(Path(__file__).resolve().parent / program)
        done = subprocess.run(
            [sys.executable, path, *arguments, "--json", report],
            cwd=account.pw_dir if account else None,
            env=environment,
            check=False,
            **acting,
        )
        found = json.loads(Path(report).read_text(encoding="utf-8")) if os.path.exists(report) else None
    return found, done.returncode


# --- rounds and tables ------------------------------------------------------------------------------------------------


def _nothing() -> None:
    """What most contenders have to do before and after."""


@dataclass(slots=True, kw_only=True, eq=False)
class Contender:
    """One way to do it: `act` is timed, `before` and `after` are not; `act` may answer its own figure of seconds.

    `tidy` follows every round, also one that failed or was interrupted. `rounds` is its own limit, for the slow ones.
    One that fails is reported with the last line of its `problem`.
    """

    name: str
    act: Callable[[], float | None]
    before: Callable[[], None] = _nothing
    after: Callable[[], None] = _nothing
    tidy: Callable[[], object] = _nothing
    rounds: int | None = None
    seconds: list[float] = field(default_factory=list)
    problem: str = ""

    @property
    def median(self) -> float:
        """The middle round."""
        return statistics.median(self.seconds)


def alternate(contenders: Sequence[Contender], rounds: int, *, warm_up: int, pause: float) -> None:
    """Let the contenders take turns; `warm_up` rounds come first and do not count.

    `pause` lets what one contender does after its answer (refilling a pool, tearing a namespace down) end before the
    next begins.
    """
    for number in range(warm_up + rounds):
        for contender in contenders:
            limit = rounds if contender.rounds is None else min(rounds, contender.rounds)
            if contender.problem or len(contender.seconds) >= limit:
                continue
            try:
                contender.before()
                time.sleep(pause)
                began = time.perf_counter()
                told = contender.act()
                took = time.perf_counter() - began
                contender.after()
            except Exception as problem:  # noqa: BLE001 - one contender's failure is a line of the table
                contender.problem = str(problem) or repr(problem)
                continue
            finally:
                contender.tidy()
            if number >= warm_up:
                contender.seconds.append(took if told is None else told)


def print_table(
    contenders: Iterable[Contender], references: Sequence[str], *, scale: float = 1000, unit: str = "ms"
) -> None:
    """Median, least, and how many times the median of each reference."""
    contenders = list(contenders)
    known = {each.name: each.median for each in contenders if each.seconds}
    references = [name for name in references if name in known]
    width = max(len(each.name) for each in contenders)
    heads = "".join(f"{'x ' + name:>{max(len(name) + 4, 10)}}" for name in references)
    print(f"{'':<{width}} {'median ' + unit:>11} {'min ' + unit:>10} {'rounds':>7}{heads}")
    for each in contenders:
        if not each.seconds:
            lines = each.problem.strip().splitlines() or ["not measured"]
            print(f"{each.name:<{width}}   failed: {lines[-1][:160]}")
            continue
        ratios = "".join(f"{each.median / known[name]:>{max(len(name) + 4, 10)}.2f}" for name in references)
        figures = f"{each.median * scale:>11.2f} {min(each.seconds) * scale:>10.2f} {len(each.seconds):>7}"
        print(f"{each.name:<{width}} {figures}{ratios}")
    sys.stdout.flush()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The most that one contender's median may be, as a multiple of another's."""

    contender: str
    reference: str
    most: float


def print_targets(contenders: Iterable[Contender], targets: Iterable[Target]) -> list[dict[str, Any]]:
    """Say which targets are met; one that lacks a figure is not told. Return what was said, for `json_report`."""
    known = {each.name: each.median for each in contenders if each.seconds}
    told = []
    for target in targets:
        if target.contender in known and target.reference in known:
            ratio = known[target.contender] / known[target.reference]
            met = ratio <= target.most
            told.append({**dataclasses.asdict(target), "ratio": ratio, "met": met})
            print(
                f"target: {target.contender} at most {target.most:.3g} x {target.reference}: "
                f"{ratio:.3g}, {'met' if met else 'MISSED'}"
            )
    sys.stdout.flush()
    return told


def json_report(path: str | None, facts: dict[str, Any], contenders: Iterable[Contender], **more: Any) -> None:
    """Write every figure, if a file was asked for."""
    if path is None:
        return
    results = {
        each.name: {"median": each.median, "min": min(each.seconds), "seconds": each.seconds}
        if each.seconds
        else {"problem": each.problem}
        for each in contenders
    }
    document = {"environment": facts, "results": results, **more}
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
