"""One command in a container that runs already, of whichever notebook: `exec`.

It gets what the container's own command was given, from the record: user, rights, filter, environment, limits. Its
end is not the container's end. An interrupt ends the command and what it started; what has become a daemon of the
container (a session of its own, its parent gone) stays, as in docker.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer._linux import identity
from nbcontainer.engine.attending import Heard, Talk, attend, check_input
from nbcontainer.engine.ending import Told
from nbcontainer.engine.results import Ran, bad_end, result_of, start_error
from nbcontainer.engine.saved import spec_of
from nbcontainer.errors import InvalidOption
from nbcontainer.model import RunResult
from nbcontainer.runtime.bundle import interpreter, merged_environment, terminal_default
from nbcontainer.runtime.protocol import Exited, Failed, Started

if TYPE_CHECKING:
    from nbcontainer.engine.attending import Input, OutputSink, Starter
    from nbcontainer.engine.lifecycle import Lifecycle
    from nbcontainer.engine.records import Stored
    from nbcontainer.engine.session import Session
    from nbcontainer.model import ContainerSpec, ExecOptions
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.driver import Window
    from nbcontainer.runtime.supervisor import Outcome

__all__ = ["ExecRequest", "execute"]

_FOLDER = "/dev"
"""Where a script lies while it runs: the one folder that no image and no volume has a say in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """What was asked, as parsed: a command or a script."""

    container: str
    argv: tuple[str, ...]
    options: ExecOptions
    script: bytes | None
    shell: tuple[str, ...]
    stdin: Input
    output: OutputSink | None


def execute(session: Session, lifecycle: Lifecycle, request: ExecRequest, *, grace: float, check: bool) -> RunResult:
    """Run the command beside the container's own and wait for its end, unless it is detached."""
    started = time.monotonic()
    options = request.options
    check_input(request.stdin, terminal=options.terminal)
    if options.detached and options.terminal:
        raise InvalidOption("a command that nobody waits for has nobody at its terminal; leave -t or -d away")
    with lifecycle.command_of(request.container) as (stored, process):
        path = f"{_FOLDER}/cell.{secrets.token_hex(8)}" if request.script is not None else ""
        spec = _spec(stored, request, path)
        ran = Ran(id=stored.id, image=str(stored.fields.get("image", "")), argv=spec.argv, started=started, joined=True)

        def start(stdio: tuple[int, int, int], window: Window) -> Connection:
            return session.runtime.visit(
                spec, process, stdio, script_path=path, detached=options.detached, window=window
            )

        if options.detached:
            return _let_go(ran, request.container, start)
        heard = Heard(request.output, None)
        talk = Talk(
            stdin=request.stdin, sink=heard.take, timeout=options.timeout, grace=grace, terminal=options.terminal
        )
        outcome, verdict = attend(session, talk, start)
        told = _told(request.container, outcome, process.first)
        result = result_of(
            ran, outcome, heard.stdout.data, heard.stderr.data, limit=options.timeout or 0, verdict=verdict, told=told
        )
    if outcome.failure is not None and outcome.reason == "exited":
        raise start_error(f"container {request.container}", outcome.failure)
    if check and not result.ok:
        raise bad_end(result, f"container {request.container}")
    return result


def _spec(stored: Stored, request: ExecRequest, script_path: str) -> ContainerSpec:
    """The container's own spec with the command, and the identity that was asked for, in it."""
    spec, options = spec_of(stored), request.options
    script = request.script
    argv = request.argv if script is None else (*interpreter(script, request.shell), script_path)
    if not argv:
        raise InvalidOption(f"there is no command to run in container {request.container}; give one after its name")
    for word in argv:
        if "\0" in word:
            raise InvalidOption(f"argument {word!r} has a NUL byte, which no command line can carry")
    directory = options.working_directory or spec.working_directory
    if not directory.startswith("/"):
        raise InvalidOption(
            f"working directory {directory!r} must be absolute inside the container; write /{directory}"
        )
    return dataclasses.replace(
        spec,
        argv=argv,
        script=request.script,
        environment=tuple(
            merged_environment(terminal_default(spec.environment, terminal=options.terminal), options.environment)
        ),
        terminal=options.terminal,
        working_directory=directory,
        user=options.user or spec.user,
    )


def _let_go(ran: Ran, container: str, start: Starter) -> RunResult:
    """Start a command that nobody listens to, and see that it did start."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        connection = start((null, null, null), None)
    finally:
        os.close(null)
    try:
        message = connection.receive_any()
        while message is not None and not isinstance(message, (Started, Failed, Exited)):
            message = connection.receive_any()
    finally:
        connection.close()
    if isinstance(message, Failed):
        raise start_error(f"container {container}", message)
    duration = time.monotonic() - ran.started
    return RunResult(id=ran.id, image=ran.image, argv=ran.argv, exit_code=0, reason="exited", duration=duration)


def _told(container: str, outcome: Outcome, first: int) -> Told | None:
    """Whether the command ended because its container did."""
    killed = outcome.status is None or os.WIFSIGNALED(outcome.status)
    if outcome.failure is None and outcome.reason in {"exited", "lost"} and killed and identity.is_ending(first):
        code = 128 + int(signal.SIGKILL)
        return Told(reason="stopped", code=code, detail=f"container {container} ended, and this command with it")
    return None
