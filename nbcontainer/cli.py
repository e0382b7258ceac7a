"""The terminal's door: ``nbcontainer VERB …``, made from the same table of verbs as the magics.

``run``, ``exec`` and ``start`` are transparent: bytes in, bytes out, and the command's own exit code, so that they work
in pipes and scripts. Exit codes are docker's: 125 when the container could not be set up, 126 and 127 when its command
could not be started, 128 + n after signal n; 130 after Ctrl-C, 2 for a line that cannot be read, 1 for any other
failure.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from nbcontainer.build.request import ContextSource
from nbcontainer.engine.build_verbs import built_message, secret_value
from nbcontainer.engine.command_line import Option, Verb, read_choice
from nbcontainer.engine.door import TypedAttach, TypedBuild, TypedExec, TypedRun, TypedStart, hints, worded
from nbcontainer.engine.tables import Message, Report, Shown, Table
from nbcontainer.engine.verbs import VERBS, dispatch, overview
from nbcontainer.errors import ContainerExit, ContainerStartError, InvalidOption, NbcontainerError
from nbcontainer.model import Notice, RunResult
from nbcontainer.runtime.console import Console, say_to
from nbcontainer.widgets.buildlog import BuildLog
from nbcontainer.widgets.progress import choose_display

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from nbcontainer.engine.attending import Input
    from nbcontainer.engine.door import Door, Session, Typed
    from nbcontainer.engine.engine import Engine
    from nbcontainer.model import Event, Listener

__all__ = ["TERMINAL_VERBS", "TerminalSession", "main"]

_INTERRUPTED = 130
_RUNNING = (["run"], ["create"], ["exec"], ["start"], ["restart"], ["attach"])
_BROKEN_PIPE = 141
_TAIL = 64 * 1024


def main(words: Sequence[str] | None = None, *, make_engine: Callable[[], Engine] | None = None) -> int:
    """Carry out a command line and answer its exit code. `make_engine` is for tests."""
    _fill_standard_streams()
    line = list(sys.argv[1:] if words is None else words)
    session = TerminalSession(make_engine or _make_engine)
    try:
        with contextlib.closing(session):
            code = _carry_out(session, line)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        # Who reads us has left (``| head``): say nothing, and keep the interpreter's last flush from saying something.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _fill_standard_streams() -> None:
    """Have what was closed (``>&-``) lead nowhere: nothing of ours may get its number, and nobody finds None there."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            if fd == number:
                os.set_inheritable(fd, True)  # noqa: FBT003 - the standard library's own signature
            else:
                os.dup2(fd, number)
                os.close(fd)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def _carry_out(session: TerminalSession, line: list[str]) -> int:
    try:
        return _exit_code(_answer(session, line))
    except InvalidOption as problem:
        _complain(str(problem))
        return 2
    except NbcontainerError as problem:
        _complain(str(problem))
        return _failure_code(problem, running=line[:1] in _RUNNING)
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except Detached:
        sys.stderr.write("\n")  # it is shown in the middle of a line, as a rule
        _complain("detached; the container runs on")
        return 0


def _answer(session: TerminalSession, line: list[str]) -> object:
    """Print what a verb answers."""
    if line[:1] in (["--version"], ["-V"]):
        answer: object = Message(f"nbcontainer {_version()}")
    elif not line:
        answer = Message(overview("terminal", session.verbs))
    else:
        answer = dispatch(session, line)
    if answer is not None and not isinstance(answer, (Shown, RunResult)):
        text = worded(str(answer), "terminal") if isinstance(answer, (Table, Report)) else str(answer)
        if text:  # nothing at all for `ps -q` without containers: scripts count lines
            print(text)
    return answer


def _exit_code(answer: object) -> int:
    if isinstance(answer, RunResult):
        return _INTERRUPTED if answer.reason == "interrupted" else answer.exit_code
    if isinstance(answer, Report):
        return 0 if answer.ok else 1
    return 0


def _failure_code(problem: NbcontainerError, *, running: bool) -> int:
    if isinstance(problem, ContainerStartError):
        return problem.exit_code
    if isinstance(problem, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(problem, ContainerExit):
        return problem.returncode
    return 125 if running else 1


def _complain(text: str) -> None:
    sys.stderr.write(f"nbcontainer: {worded(text, 'terminal')}\n")
    sys.stderr.flush()


def _descriptor(stream: Any) -> int:
    """The descriptor of a standard stream; -1 for none (closed, or a test's)."""
    try:
        return int(stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1


class Detached(Exception):
    """The keys were typed that leave a terminal to whoever attaches next."""


def _detach() -> NoReturn:
    raise Detached


def _stay(request: Typed) -> None:
    """The keys that detach were typed where nobody else would go on."""
    if isinstance(request, TypedExec):
        text = "a command that has joined a container ends with its terminal; it cannot be left"
    else:
        text = "this container was started here and ends with this command; to leave one, run it with -dit and attach"
    say_to(_descriptor(sys.stderr), f"nbcontainer: {text}")


def _subject(request: Typed) -> str:
    return request.image if isinstance(request, TypedRun) else request.container


def _worded_event(event: Event) -> Event:
    return replace(event, text=worded(event.text, "terminal")) if isinstance(event, Notice) else event


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("nbcontainer")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _make_engine() -> Engine:
    from nbcontainer.engine.engine import Engine
    from nbcontainer.engine.settings import Settings

    return Engine(Settings.from_environment())


class TerminalSession:
    """One command line."""

    def __init__(self, make_engine: Callable[[], Engine]) -> None:
        self._make_engine = make_engine
        self._engine: Engine | None = None
        self._stderr_tail = bytearray()

    @property
    def door(self) -> Door:
        """The terminal."""
        return "terminal"

    @property
    def verbs(self) -> Sequence[Verb]:
        """The common table, and what only a terminal has."""
        return TERMINAL_VERBS

    @property
    def engine(self) -> Engine:
        """The engine of this command, made when it is needed."""
        if self._engine is None:
            self._engine = self._make_engine()
        return self._engine

    def close(self) -> None:
        """Close the engine if there is one."""
        if self._engine is not None:
            self._engine.close()

    @contextlib.contextmanager
    def pulling(self, image: str, *, quiet: bool) -> Iterator[Listener]:
        """Show a pull on standard error: standard output belongs to the command."""
        from nbcontainer.widgets.progress import PullProgress, choose_display

        picture = choose_display("none" if quiet else "auto", notebook=False, stream=sys.stderr)
        with PullProgress(picture, image) as listener:
            yield lambda event: listener(_worded_event(event))

    def output(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Write bytes through as they are."""
        if stream == "stderr":
            self._stderr_tail += data
            del self._stderr_tail[:-_TAIL]
        raw = getattr(sys, stream).buffer
        raw.write(data)
        raw.flush()

    def execute(self, request: Typed) -> object:
        """Run the command between this process's own standard input and outputs."""
        if isinstance(request, TypedRun) and request.behind:
            return self._launched(request)
        if isinstance(request, TypedAttach) or (isinstance(request, TypedStart) and request.attach):
            return self._attached(request)
        stdin = self._input(request)
        found: tuple[str, ...] = ()
        if isinstance(request, TypedRun):
            with self.pulling(request.image, quiet=request.quiet) as listener:
                result = self.engine.run(
                    request.image,
                    request.command,
                    options=request.options,
                    stdin=stdin,
                    output=self.output,
                    listener=listener,
                    failed=request.failed,
                )
            network = request.options.network or ("host" if request.failed else self.engine.default_network)
            found = hints(
                request.image,
                self._stderr_tail.decode(errors="replace"),
                network,
                interactive=request.interactive,
                terminal=request.options.terminal,
            )
        elif isinstance(request, TypedExec):
            result = self.engine.exec(
                request.container, request.command, options=request.options, stdin=stdin, output=self.output
            )
        elif request.restart:
            result = self.engine.restart(
                request.container, grace=request.grace, timeout=request.timeout, stdin=stdin, output=self.output
            )
        else:
            result = self.engine.start(request.container, timeout=request.timeout, stdin=stdin, output=self.output)
        return self._told(request, result, found)

    def _told(self, request: Typed, result: RunResult, hinted: tuple[str, ...] = ()) -> RunResult:
        """Say what may help, and how it ended where its code does not tell."""
        for hint in (*result.notes, *hinted):
            _complain(f"hint: {hint}")
        if result.reason != "exited":
            _complain(f"{_subject(request)}: {result.detail or result.reason}")
        return result

    def _input(self, request: TypedRun | TypedExec | TypedStart) -> Input:
        """Standard input, as a terminal where it is one: whether the command has one is known when it is started."""
        wanted = isinstance(request, TypedStart) or request.options.terminal
        keys = _descriptor(sys.stdin) if request.interactive else -1
        if not wanted or (request.interactive and not os.isatty(keys)):
            return sys.stdin.buffer if request.interactive else None
        return Console(
            keys=keys, screen=_descriptor(sys.stdout), detach=request.detach_keys, on_detach=lambda: _stay(request)
        )

    def _launched(self, request: TypedRun) -> object:
        """Docker's answer: the id, and nothing else."""
        image, command, options = request.image, request.command, request.options
        with self.pulling(image, quiet=request.quiet) as listener:
            if request.behind == "create":
                summary = self.engine.create(image, command, options=options, listener=listener)
            else:
                summary = self.engine.launch(image, command, options=options, listener=listener, failed=request.failed)
        return Message(summary.id)

    def _attached(self, request: TypedAttach | TypedStart) -> RunResult:
        """Show what a container that runs on behind writes, with its input where that was asked for."""
        start = isinstance(request, TypedStart)
        wanted = request.interactive if isinstance(request, TypedStart) else request.stdin
        result = self.engine.attach(
            request.container,
            start=start,
            stdin=self._attached_input(request) if wanted else None,
            output=self.output,
            pass_signals=True if isinstance(request, TypedStart) else request.pass_signals,
        )
        return self._told(request, result)

    def _attached_input(self, request: TypedAttach | TypedStart) -> BinaryIO | Console:
        keys = _descriptor(sys.stdin)
        if not os.isatty(keys):
            return sys.stdin.buffer
        return Console(keys=keys, screen=_descriptor(sys.stdout), detach=request.detach_keys, on_detach=_detach)

    def build(self, request: TypedBuild) -> object:
        """Build; the steps are shown on standard error, as docker does."""
        secrets = {each.id: secret_value(each, None) for each in request.secrets}
        progress: Any = "none" if request.quiet else request.progress
        with contextlib.ExitStack() as undo:
            context, dockerfile = _build_input(request, undo)
            log = undo.enter_context(
                BuildLog(
                    lambda _, data: self.output("stderr", data),
                    lambda: choose_display("text", notebook=False, stream=sys.stderr),
                    progress=progress,
                    heading_stream="stderr",
                )
            )
            options = replace(request.options, context=context, dockerfile=dockerfile, secrets=secrets)
            built = self.engine.build(options, listener=lambda event: log.listen(_worded_event(event)))
        return built_message(built, quiet=request.quiet)


def _build_input(request: TypedBuild, undo: contextlib.ExitStack) -> tuple[ContextSource, bytes | None]:
    """The context, and the Dockerfile where it does not lie in it: ``-`` is either, on standard input."""
    path = request.path or "."
    if path != "-":
        if os.path.isfile(path):
            return ContextSource(archive=undo.enter_context(open(path, "rb"))), None
        return ContextSource(folder=path), _standard_input() if request.options.dockerfile_name == "-" else None
    data = _standard_input()
    if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd" or data[257:262] == b"ustar":
        return ContextSource(archive=io.BytesIO(data)), None
    return ContextSource(), data


def _standard_input() -> bytes:
    if sys.stdin.isatty():
        raise InvalidOption("- reads a Dockerfile or a tar from standard input; redirect it, as in … < Dockerfile")
    return sys.stdin.buffer.read()


# Verbs of the terminal alone

_STARTUP = """\
# Written by "nbcontainer install", removed by "nbcontainer uninstall".
import importlib.util

if importlib.util.find_spec("nbcontainer"):
    get_ipython().run_line_magic("load_ext", "nbcontainer")
del importlib
"""
_STARTUP_NAME = "50-nbcontainer.py"
_PROFILE = Option(
    flags=("--profile",),
    metavar="NAME",
    help="the IPython profile; default is the default",
    read=read_choice("profile", r"[\w.-]+", "default"),
)


def _startup_file(arguments: Namespace) -> str:
    base = os.environ.get("IPYTHONDIR") or os.path.join("~", ".ipython")
    folder = os.path.join(os.path.expanduser(base), f"profile_{arguments.profile or 'default'}", "startup")
    return os.path.join(folder, _STARTUP_NAME)


def _install(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    path = _startup_file(arguments)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(_STARTUP)
    except OSError as problem:
        raise NbcontainerError(f"cannot write {path}: {problem.strerror}") from problem
    return Message(f"wrote {path}: %%container is there in every new notebook of this profile")


def _uninstall(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    path = _startup_file(arguments)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return Message(f"there is no {path}; nothing to remove")
    except OSError as problem:
        raise NbcontainerError(f"cannot remove {path}: {problem.strerror}") from problem
    return Message(f"removed {path}")


TERMINAL_VERBS: tuple[Verb, ...] = (
    *VERBS,
    Verb(
        name="install",
        summary="Load the extension in every new notebook and IPython",
        description="Writes one file into the startup folder of an IPython profile; uninstall removes it.",
        handler=_install,
        options=(_PROFILE,),
        examples=("install",),
        door="terminal",
    ),
    Verb(
        name="uninstall",
        summary="Undo install",
        handler=_uninstall,
        options=(_PROFILE,),
        examples=("uninstall",),
        door="terminal",
    ),
)


if __name__ == "__main__":
    sys.exit(main())
