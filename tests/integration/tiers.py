"""The three kinds of isolation, each as a person who drives an engine: root, a user with subordinate ids, one without.

Each `Tier` has a store with the image `tiny` (shell, coreutils, Python) and a long-lived `Driver` (an engine in its
own process, see `agent`). `spawn` gives another one on the same store, for tests that kill it. After every test a
tier must be quiet again: no process, descriptor or container directory more than before.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import nbcontainer
from nbcontainer import errors
from nbcontainer._linux.cgroups import controller_of, machine_hierarchies
from nbcontainer._linux.idmaps import id_map_for_host
from nbcontainer.model import RunResult
from tests.harness.leaks import processes_below
from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tests.harness.users import User

__all__ = ["SECRETS", "Driver", "Raised", "Tier", "TierName", "wait_until"]

TierName = Literal["own", "range", "single"]
"""Whoever runs the tests (root, often), a user with subordinate ids, a user without."""
_AGENT = (Path(__file__).parent / "agent.py").read_text(encoding="utf-8")
SECRETS = {
    "JUPYTER_TOKEN": "t0ken-of-the-server",
    "AWS_SECRET_ACCESS_KEY": "key-to-the-kingdom",
    "PYTHONPATH_EXTRA": "x",
}
"""In every driver's environment; no container may see a word of it."""


def wait_until(claim: Callable[[], object], *, within: float = 10, what: str = "") -> None:
    """Wait until `claim` holds; fail the test when it does not in time."""
    deadline = time.monotonic() + patient(within)
    pause = 0.002
    while not claim():
        assert time.monotonic() < deadline, f"not within {within} s: {what or claim}"
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _follows(pid: int) -> bool:
    """Whether a process is in a container beside the first one there; a waiting container may have such a one."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("NSpid:"):
                return len(line.split()) > 2 and line.split()[-1] != "1"
    return False


class Raised(Exception):
    """An exception of the driver's process: `is_a` knows its classes, `str` is its sentence."""

    def __init__(self, described: dict[str, Any]) -> None:
        super().__init__(described["text"])
        self.kinds: list[str] = described["kinds"]
        self.attributes: dict[str, Any] = described["attributes"]

    def is_a(self, kind: type[BaseException]) -> bool:
        """Whether it was one of these."""
        return kind.__name__ in self.kinds

    @property
    def is_ours(self) -> bool:
        """Whether it was raised on purpose, with a sentence for the person."""
        return self.is_a(errors.NbcontainerError)


@dataclass(slots=True)
class _Live:
    """What a run has told so far."""

    output: dict[str, bytes] = field(default_factory=lambda: {"stdout": b"", "stderr": b""})
    events: list[str] = field(default_factory=list)
    answer: tuple[str, Any] | None = None


class Driver:
    """One engine in a process of its own."""

    def __init__(
        self, tier: Tier, *, root: str = "", environment: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        ours, theirs = socket.socketpair()
        user = tier.user
        self._as_root = user is None and os.geteuid() == 0
        variables = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
        variables |= {"HOME": tier.home, **SECRETS, **(environment or {})}
        acting: dict[str, Any] = {}
        if user is None:
            variables["PYTHONPATH"] = str(Path(nbcontainer.__file__).parent.parent)
        else:
            acting = {"user": user.uid, "group": user.gid, "extra_groups": []}
        with theirs:
            self.process = subprocess.Popen(
                [*tier.prefix, user.python if user else sys.executable, "-c", _AGENT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=tier.home,
                env=variables,
                start_new_session=True,
                umask=0o022,
                **acting,
            )
        self._connection = Connection(ours.detach())
        # or it would be at rest otherwise than `at_rest` says
        usual = {
            "interrupt_grace": 0.5,
            "pool_idle": patient(300),
            "build_idle": 0,
            "network": "none",
            "network_idle": 0.3,
        }
        self._connection.send((root or tier.store, {**usual, **settings}))
        self._tier = tier
        self._live = _Live()
        self._busy = False

    @property
    def pid(self) -> int:
        """The process in which the engine lives."""
        return self.process.pid

    @property
    def usable(self) -> bool:
        """Whether it can be asked something: not where a test gave up in the middle of something."""
        return not self._busy and self.process.poll() is None

    def run(
        self,
        *argv: str,
        image: str = "",
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        stdin: bytes | None = None,
        check: bool = False,
        **options: Any,
    ) -> RunResult:
        """Run a container and give its result; raise `Raised` for what the engine raised."""
        self.begin_run(*argv, image=image, script=script, shell=shell, stdin=stdin, check=check, live=False, **options)
        return RunResult(**self.finish())

    def begin_run(
        self,
        *argv: str,
        image: str = "",
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        stdin: bytes | None = None,
        check: bool = False,
        live: bool = True,
        **options: Any,
    ) -> None:
        """Start a run without waiting for it."""
        options["volumes"] = [
            {"source": str(source), "target": target, "read_only": mode == "ro"}
            for source, target, mode in options.get("volumes", ())
        ]
        asked = {
            "image": image or self._tier.image,
            "argv": argv,
            "script": script,
            "shell": tuple(shell),
            "stdin": stdin,
            "check": check,
        }
        self.begin("run", options=options, live=live, **asked)

    def exec(
        self,
        container: str,
        *argv: str,
        script: str | bytes | None = None,
        shell: Sequence[str] = (),
        stdin: bytes | None = None,
        check: bool = False,
        **options: Any,
    ) -> RunResult:
        """Run a command in a running container and give its result."""
        asked = {"argv": argv, "script": script, "shell": tuple(shell), "stdin": stdin, "check": check}
        self.begin("exec", container=container, options=options, live=False, **asked)
        return RunResult(**self.finish())

    def begin_exec(self, container: str, *argv: str, script: str | None = None, **options: Any) -> None:
        """Start a command in a running container without waiting for it."""
        self.begin("exec", container=container, argv=argv, script=script, options=options, live=True)

    def start(self, container: str, *, restart: bool = False, **asked: Any) -> RunResult:
        """Start a kept container again and give its result."""
        self.begin("start", container=container, restart=restart, live=False, **asked)
        return RunResult(**self.finish())

    def begin(self, name: str, **values: Any) -> None:
        """Ask for something without waiting."""
        assert not self._busy, f"the engine still has to answer what was asked before: {self._live}"
        self._live = _Live()
        self._busy = True
        self._connection.send((name, values))

    def finish(self, within: float = 60) -> Any:
        """What it answered."""
        self._hear(lambda live: live.answer is not None, within)
        assert self._live.answer is not None
        self._busy = False
        kind, value = self._live.answer
        if kind == "raised":
            raise Raised(value)
        return value

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the engine."""
        self.begin("call", method=method, arguments=arguments, options=options)
        return self.finish()

    def pull(self, image: str) -> str:
        """Pull an image."""
        self.begin("pull", image=image)
        reference: str = self.finish()
        return reference

    def build(self, dockerfile: str, *tags: str, folder: str = "", **options: Any) -> dict[str, Any]:
        """Build an image of a text, and give what came of it; raise `Raised` for what the engine raised."""
        self.begin_build(dockerfile, *tags, folder=folder, **options)
        built: dict[str, Any] = self.finish(within=300)
        return built

    def begin_build(
        self,
        dockerfile: str | None,
        *tags: str,
        folder: str = "",
        files: Mapping[str, bytes] | None = None,
        archive: bytes | None = None,
        **options: Any,
    ) -> None:
        """Start a build without waiting for it; its commands have the machine's network unless something is said."""
        options.setdefault("network", "host")
        context = {"folder": folder, "files": dict(files or {}), "archive": archive}
        text = None if dockerfile is None else dockerfile.encode()
        self.begin("build", context=context, options={"dockerfile": text, "tags": tags, **options})

    def look(self) -> dict[str, Any]:
        """What a leak would show in."""
        self.begin("look")
        looked: dict[str, Any] = self.finish()
        return looked

    def wait_for_output(self, text: bytes, *, within: float = 20) -> None:
        """Wait until the container has written this to its standard output."""
        self._hear(lambda live: text in live.output["stdout"] or live.answer is not None, within)
        assert text in self._live.output["stdout"], f"it ended without {text!r}: {self._live}"

    def wait_for_event(self, name: str, *, within: float = 20) -> None:
        """Wait until the engine has told of such an event."""
        self._hear(lambda live: name in live.events or live.answer is not None, within)
        assert name in self._live.events, f"it ended without {name}: {self._live}"

    @property
    def output(self) -> dict[str, bytes]:
        """What the run has written so far."""
        return self._live.output

    def interrupt(self) -> None:
        """Do what ■ does."""
        os.kill(self.pid, signal.SIGINT)

    def processes(self) -> set[int]:
        """Everything below the engine's process."""
        return processes_below(self.pid)

    @property
    def at_rest(self) -> int:
        """How many those are when nothing runs and the pool is full."""
        return self.at_rest_with(3)

    def at_rest_with(self, pool: int) -> int:
        """The same with a pool of this size.

        Launcher, clerk, janitor, and containers in waiting. With cgroups v1 also what makes each of them, and one
        more, in its cgroup; an ordinary user has none there.
        """
        pids = controller_of(machine_hierarchies(), "pids")
        made_inside = self._as_root and pids is not None and pids.version == 1
        return 3 + pool + (pool + 1 if made_inside and pool else 0)

    def kill(self) -> set[int]:
        """End the engine's process by SIGKILL; give what was running below it."""
        below = self.processes()
        self.process.kill()
        self.process.wait()
        self._connection.close()
        return below

    def close(self) -> None:
        """Let it end in order; safe after `kill`."""
        if self.process.poll() is not None:
            if not self._connection.closed:
                self._connection.close()
            return
        if self._busy:  # a test failed in the middle of something: it would be waited for
            self.process.kill()
        self._connection.close()
        try:
            self.process.wait(patient(20))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def _hear(self, enough: Callable[[_Live], bool], within: float) -> None:
        deadline = time.monotonic() + patient(within)
        while not enough(self._live):
            left = deadline - time.monotonic()
            assert left > 0, f"nothing more within {within} s: {self._live}"
            assert self._connection.poll(left), f"no word within {within} s: {self._live}"
            try:
                kind, *values = self._connection.recv()
            except (EOFError, ConnectionResetError):
                raise AssertionError(f"the engine's process died (code {self.process.poll()})") from None
            if kind == "output":
                self._live.output[values[0]] += values[1]
            elif kind == "event":
                self._live.events.append(values[0])
            else:
                self._live.answer = (kind, values[0])


@dataclass
class Tier:
    """One kind of isolation. `home` is where the acting person may write; `image` is the tiny image's name.

    `prefix` is a command that takes rights away and executes the engine's process.
    """

    name: TierName
    home: str
    store: str
    image: str
    user: User | None = None
    prefix: tuple[str, ...] = ()
    driver: Driver = field(init=False)
    """The long-lived engine."""

    @property
    def privileged(self) -> bool:
        """Whether the acting person is root, with all of root's rights."""
        return self.user is None and os.geteuid() == 0 and not self.prefix

    @property
    def home_of_account(self) -> str:
        """The person's own home: `home` may lie in /tmp, which the host image does not show."""
        return self.user.home if self.user else pwd.getpwuid(os.geteuid()).pw_dir

    def run(self, *argv: str, **asked: Any) -> RunResult:
        """Run a container on the long-lived engine."""
        return self.driver.run(*argv, **asked)

    def sh(self, script: str, **asked: Any) -> RunResult:
        """Run a shell script; its standard error must stay empty."""
        result = self.driver.run(script=script, **asked)
        assert result.stderr == "", result
        return result

    def renew(self) -> None:
        """Have another long-lived engine: the last one was left in the middle of something."""
        self.driver.close()
        self.driver = Driver(self)
        assert self.run("true").ok

    @contextlib.contextmanager
    def spawn(self, **settings: Any) -> Iterator[Driver]:
        """Another engine, on the same store unless `root` says otherwise."""
        driver = Driver(self, **settings)
        try:
            yield driver
        finally:
            driver.close()

    @property
    def has_users(self) -> bool:
        """Whether containers here have more than one id."""
        return not id_map_for_host().single if self.name == "own" else self.name == "range"

    def folder(self, name: str) -> Path:
        """A fresh folder of the acting person's."""
        path = Path(self.home) / f"{name}-{time.monotonic_ns()}"
        path.mkdir()
        if self.user is not None:
            os.chown(path, self.user.uid, self.user.gid)
        return path

    @property
    def short(self) -> str:
        """The image as messages name it."""
        return self.image

    def containers(self) -> list[str]:
        """The directories of containers in the store; one prepared for the next run has no record yet."""
        folder = os.path.join(self.store, "containers")
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(folder) if os.path.exists(f"{folder}/{name}/record.json")]
        return []

    def quiet(self, *, before: dict[str, Any]) -> str:
        """What the driver has more than before, as a sentence, after giving it a moment; "" for nothing."""
        deadline = time.monotonic() + patient(5)
        while True:
            found = self._left(before)
            if not found or time.monotonic() > deadline:
                return found
            time.sleep(0.02)

    def _left(self, before: dict[str, Any]) -> str:
        now = self.driver.look()
        if len(now["fds"]) > len(before["fds"]):
            new = sorted(target for fd, target in now["fds"].items() if before["fds"].get(fd) != target)
            return f"{self.name}: {len(now['fds'])} descriptors, {len(before['fds'])} before; new: {new}"
        if now["threads"] > before["threads"]:
            return f"{self.name}: {now['threads']} threads, {before['threads']} before"
        below = sum(not _follows(pid) for pid in self.driver.processes())
        if now["launcher"] and below != self.driver.at_rest:
            return f"{self.name}: {below} processes below the engine, {self.driver.at_rest} at rest"
        left = set(self.containers()) - before["containers"]
        return f"{self.name}: containers left in the store: {sorted(left)}" if left else ""

    def look(self) -> dict[str, Any]:
        """The state to compare with by `quiet`."""
        return {**self.driver.look(), "containers": set(self.containers())}
