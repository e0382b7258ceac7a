"""An engine in a process of its own, driven over a socket: what a notebook kernel is to nbcontainer, without the notebook.

Started as ``python -c <this text> FD`` by whichever user a test acts as, so it imports nothing of the tests. It
answers one request at a time in its main thread (where Ctrl-C arrives), and tells of output and events as they come.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import signal
import socket
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

from nbcontainer import errors
from nbcontainer.build.request import BuildOptions, BuildOutput, ContextSource
from nbcontainer.engine.engine import Engine
from nbcontainer.engine.settings import Settings
from nbcontainer.model import (
    BindMount,
    ContainerId,
    ContainerSpec,
    ExecOptions,
    Limits,
    RunOptions,
    StepFinished,
    StepOutput,
    StepStarted,
)
from nbcontainer.runtime.driver import Process


def describe(problem: BaseException) -> dict[str, Any]:
    """Put an exception into plain values: its class's names, from itself up, and what it says."""
    kept = ("exit_code", "returncode", "stderr_tail", "reason", "line", "drawing")
    return {
        "kinds": [kind.__name__ for kind in type(problem).__mro__],
        "text": str(problem),
        "attributes": {name: getattr(problem, name) for name in kept if hasattr(problem, name)},
    }


def run_options(plain: dict[str, Any]) -> RunOptions:
    """Options from plain values."""
    volumes = (*(BindMount(**volume) for volume in plain.pop("volumes", ())), *plain.pop("mounts", ()))
    limits = Limits(**plain.pop("limits")) if isinstance(plain.get("limits"), dict) else plain.pop("limits", Limits())
    return RunOptions(volumes=volumes, limits=limits, **plain)


class Agent:
    """The engine and the way to whoever drives it."""

    def __init__(self, engine: Engine, connection: Connection) -> None:
        self.engine = engine
        self._connection = connection
        self._sending = threading.Lock()
        self._running = False
        self._telling = False
        self._pressed = False
        signal.signal(signal.SIGINT, self._interrupted)

    def _interrupted(self, *_: object) -> None:
        """Raise as Python's own handler does, but only while the engine works: half a message must not be sent."""
        if self._running and not self._telling:
            raise KeyboardInterrupt
        self._pressed = True

    def tell(self, kind: str, *values: object) -> None:
        """Send one message."""
        self._telling = True
        try:
            with self._sending:
                self._connection.send((kind, *values))
        finally:
            self._telling = False
        if self._running and self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def serve(self) -> None:
        """Answer until the other side closes."""
        while True:
            try:
                name, values = self._connection.recv()
            except (EOFError, ConnectionResetError):
                return
            self.tell(*self._answer(name, values))

    def _answer(self, name: str, values: dict[str, Any]) -> tuple[str, Any]:
        try:
            try:
                self._pressed = False
                self._running = True
                return "returned", getattr(self, f"do_{name}")(**values)
            finally:
                self._running = False
        except BaseException as problem:  # noqa: BLE001 - the other side raises it again
            self._running = False
            return "raised", describe(problem)

    def do_run(self, *, options: dict[str, Any], live: bool, **asked: Any) -> dict[str, Any]:
        """Run a container; with `live`, output and events are told as they come."""
        if live:
            asked["output"] = lambda stream, data: self.tell("output", stream, data)
            asked["listener"] = lambda event: self.tell("event", type(event).__name__)
        asked["failed"] = options.pop("failed", "")
        result = self.engine.run(options=run_options(options), **asked)
        return dataclasses.asdict(result)

    def do_exec(self, *, container: str, options: dict[str, Any], live: bool, **asked: Any) -> dict[str, Any]:
        """Run a command in a running container."""
        return dataclasses.asdict(
            self.engine.exec(container, options=ExecOptions(**options), **self._listening(live=live), **asked)
        )

    def do_start(self, *, container: str, restart: bool, live: bool, **asked: Any) -> dict[str, Any]:
        """Start a kept container again."""
        again = self.engine.restart if restart else self.engine.start
        return dataclasses.asdict(again(container, **self._listening(live=live), **asked))

    def _listening(self, *, live: bool) -> dict[str, Any]:
        return {"output": lambda stream, data: self.tell("output", stream, data)} if live else {}

    def do_visit_waiting(self, *, pid: int) -> str:
        """Have a command join a process that waits to become a container, which no verb does; how that failed."""
        runtime: Any = self.engine._session.runtime  # type: ignore[union-attr]
        spec = ContainerSpec(id=ContainerId("0" * 64), argv=("/bin/ls", "/"), root=())
        reader, writer = os.pipe()
        pidfd = os.pidfd_open(pid)
        try:
            process = Process(pid=pid, pidfd=pidfd, first=pid, launcher=runtime.pid)
            connection = runtime.visit(spec, process, (reader, writer, writer))
            message = connection.receive()
            connection.close()
            return str(getattr(message, "message", message))
        finally:
            for fd in (reader, writer, pidfd):
                os.close(fd)

    def do_run_swapped(self, *, image: str, source: str, link: str) -> dict[str, Any]:
        """Run with a volume whose source becomes a link when it has been checked and nothing is started yet."""
        module: Any = sys.modules[Engine.__module__]
        start = module.carry_out

        def swap(*arguments: Any, **options: Any) -> Any:
            os.rmdir(source)
            os.symlink(link, source)
            return start(*arguments, **options)

        module.carry_out = swap
        try:
            volumes = (BindMount(source=source, target="/work", read_only=True),)
            return dataclasses.asdict(self.engine.run(image, ["ls", "/work"], options=RunOptions(volumes=volumes)))
        finally:
            module.carry_out = start

    def do_run_fed(self, *, image: str, source: str, script: str) -> str:
        """Run a script whose standard input is a file, as ``nbcontainer run -i IMAGE <FILE`` has it; its output."""
        with open(source, "rb") as file:
            return self.engine.run(image, ["/bin/sh", "-c", script], stdin=file).stdout

    def do_build(self, *, context: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
        """Build; with every event told, and the steps as they ended and as they began."""
        ends: list[str] = []
        order: list[str] = []
        texts: dict[int, str] = {}

        def listen(event: Any) -> None:
            if isinstance(event, StepStarted):
                texts[event.step] = event.text
                order.append(f"begun: {event.text}")
            elif isinstance(event, StepOutput):
                self.tell("output", event.stream, event.data)
            elif isinstance(event, StepFinished):
                ends.append(f"{event.end}: {texts[event.step]}")
                order.append(ends[-1])
            self.tell("event", type(event).__name__)

        archive = context.pop("archive", None)
        source = ContextSource(archive=None if archive is None else io.BytesIO(archive), **context)
        outputs = tuple(BuildOutput(kind=kind, destination=path) for kind, path in options.pop("outputs", ()))
        built = self.engine.build(BuildOptions(context=source, outputs=outputs, **options), listener=listen)
        return {
            "reference": built.image.reference,
            "id": str(built.image.id),
            "digest": str(built.image.digest),
            "layers": built.layers,
            "cached": built.cached,
            "ends": ends,
            "order": order,
            "notices": built.notices,
        }

    def do_pull(self, *, image: str) -> str:
        """Pull, telling of each event."""
        return self.engine.pull(image, listener=lambda event: self.tell("event", type(event).__name__)).reference

    def do_call(self, *, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Call any other method of the engine; dataclasses come as they are."""
        return getattr(self.engine, method)(*arguments, **options)

    def do_follow(self, *, container: str, **span: Any) -> int:
        """Follow a log to its end, telling of each piece; how many there were."""
        count = 0
        for piece in self.engine.follow_logs(container, **span):
            self.tell("output", piece.stream, piece.data)
            count += 1
        return count

    def do_attach(self, *, container: str, typed: bytes = b"", **asked: Any) -> dict[str, Any]:
        """Attach, telling of output as it comes; `typed` is what stands in for a keyboard."""
        reader, writer = os.pipe()
        os.write(writer, typed)
        os.close(writer)
        with open(reader, "rb") as stdin:
            result = self.engine.attach(
                container,
                stdin=stdin if typed else None,
                output=lambda stream, data: self.tell("output", stream, data),
                **asked,
            )
        return dataclasses.asdict(result)

    def do_many(self, *, image: str, argv: list[str], threads: int, rounds: int) -> list[tuple[int, str]]:
        """Run `rounds` containers in each of `threads` threads at once; tell each one's code and output."""
        results: list[tuple[int, str]] = []

        def work() -> None:
            for _ in range(rounds):
                try:
                    result = self.engine.run(image, argv)
                    results.append(
                        (result.exit_code, result.stdout or f"{result.reason}: {result.detail} {result.stderr}")
                    )
                except errors.NbcontainerError as problem:
                    results.append((-1, str(problem)))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return results

    def do_exec_many(self, *, container: str, argv: list[str], threads: int, rounds: int) -> list[tuple[int, str]]:
        """Run commands in a container from several threads at once; tell each one's code and output."""
        results: list[tuple[int, str]] = []

        def work() -> None:
            for _ in range(rounds):
                try:
                    result = self.engine.exec(container, argv)
                    results.append((result.exit_code, result.stdout or result.detail))
                except errors.NbcontainerError as problem:
                    results.append((-1, str(problem)))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return results

    def do_aside(self, *, image: str, script: str, options: dict[str, Any]) -> None:
        """Run a container in a thread of its own, and answer when it has written ``ready``."""
        ready, failed = threading.Event(), list[str]()

        def work() -> None:
            def heard(stream: str, data: bytes) -> None:
                if b"ready" in data:
                    ready.set()

            try:
                self.engine.run(image, script=script, options=run_options(options), output=heard)
            except errors.NbcontainerError as problem:
                failed.append(str(problem))
            finally:
                ready.set()

        self._aside = threading.Thread(target=work)
        self._aside.start()
        ready.wait(20)
        if failed:
            self._aside.join()
            raise errors.NbcontainerError(failed[0])

    def do_joined(self) -> None:
        """Wait for the end of that container."""
        self._aside.join()

    def do_look(self) -> dict[str, Any]:
        """Tell what a leak would show in: our descriptors, and the launcher's pid."""
        gc.collect()  # a descriptor may hang in a cycle that nobody refers to
        found = {}
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        session = self.engine._session
        pid = session.runtime.pid if session else None
        for waiting in session.runtime.waiting_descriptors if session else ():
            found.pop(waiting, None)
        return {"fds": found, "launcher": pid, "threads": threading.active_count(), "root": self.engine.settings.root}

    def do_close(self) -> None:
        """Close the engine; it can be used again."""
        self.engine.close()

    def do_chdir(self, *, path: str) -> None:
        """Change the directory, which is where cells on the host image start."""
        os.chdir(path)


def main() -> None:
    """Serve the socket given on the command line."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        connection = Connection(channel.detach())
    root, overrides = connection.recv()
    with Engine(Settings(root=root, **overrides)) as engine:
        Agent(engine, connection).serve()


if __name__ == "__main__":
    main()
