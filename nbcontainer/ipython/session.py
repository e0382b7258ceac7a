"""The notebook's `Session`: how a magic's line and cell become a verb, and what a run looks like below a cell."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import ChainMap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from nbcontainer.build.request import ContextSource
from nbcontainer.engine.build_verbs import built_message, secret_value, variable_value
from nbcontainer.engine.door import FAILED, Typed, TypedAttach, TypedBuild, TypedExec, TypedRun, TypedStart, hints
from nbcontainer.engine.opening import Launched, address, behind_proxy, published_ports
from nbcontainer.engine.saved import has_terminal
from nbcontainer.engine.settings import Settings
from nbcontainer.engine.tables import Message, Shown
from nbcontainer.engine.verbs import CELL_VERBS, RUN, VERBS, dispatch
from nbcontainer.engine.views import ContainerDetail
from nbcontainer.errors import ContainerInterrupted, ContainerStartError, InvalidOption, NbcontainerError
from nbcontainer.ipython.arguments import expand_body, expander, join_continued, split_line
from nbcontainer.ipython.asking import asking
from nbcontainer.ipython.display import Interrupted, LineResult, stands_alone
from nbcontainer.ipython.streams import OutputWriter
from nbcontainer.widgets.buildlog import BuildLog
from nbcontainer.widgets.progress import PullProgress, choose_display

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from nbcontainer.engine.command_line import Verb
    from nbcontainer.engine.door import Door
    from nbcontainer.engine.engine import Engine
    from nbcontainer.ipython.magics import ContainerMagics
    from nbcontainer.ipython.streams import Stream
    from nbcontainer.model import Listener, RunResult
    from nbcontainer.runtime.inputs import Asking

__all__ = ["NotebookSession", "run_magic", "settings_of"]


def run_magic(
    magics: ContainerMagics, line: str, cell: str | None, local_ns: Mapping[str, Any], *, builds: bool = False
) -> object:
    """Carry out ``%container LINE`` or ``%%container LINE`` with its cell; `builds`: ``%%dockerfile LINE``."""
    shell: Any = magics.shell
    namespace = ChainMap(dict(local_ns), shell.user_ns)
    try:
        if cell is not None:
            line, cell = join_continued(line, cell)
        words = split_line(line)
        session = NotebookSession(magics, cell, namespace)
        default_image = ""
        if builds:
            words = ["build", *words]
        elif cell is not None:
            words = _cell_words(words)
            if words[0] == RUN.name:
                default_image = FAILED if "--failed" in words else magics.default_image
        session.words = tuple(words)
        answer = dispatch(session, words, substitute=expander(namespace), default_image=default_image)
    except InvalidOption as problem:
        raise UsageError(str(problem)) from None
    except NbcontainerError:
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    return None if isinstance(answer, (LineResult, Shown)) and stands_alone(shell) else answer


def _cell_words(words: list[str]) -> list[str]:
    """The words of a cell's line with their verb: the first one if it is a verb that has a cell, else ``run``."""
    if words and words[0] in {verb.name for verb in CELL_VERBS}:
        return words
    if words and any(words[0] in {verb.name, *verb.aliases} for verb in VERBS):
        raise InvalidOption(f"{words[0]!r} is a line verb and takes no cell; write %container {words[0]} with one %")
    return [RUN.name, *words]


def settings_of(magics: ContainerMagics) -> Settings:
    """The engine's settings: what the traits say, over the environment, over the defaults."""
    settings = Settings.from_environment()
    changes: dict[str, Any] = {}
    if magics.root:
        changes["root"] = os.path.abspath(os.path.expanduser(magics.root))
    if magics.mirrors:
        changes["mirrors"] = {
            host: (bases,) if isinstance(bases, str) else tuple(bases) for host, bases in magics.mirrors.items()
        }
    if magics.insecure_registries:
        changes["insecure_registries"] = tuple(magics.insecure_registries)
    if magics.interrupt_grace is not None:
        changes["interrupt_grace"] = magics.interrupt_grace
    return replace(settings, **changes)


class NotebookSession:
    """One call of a magic."""

    def __init__(self, magics: ContainerMagics, cell: str | None, namespace: Mapping[str, Any]) -> None:
        self._magics = magics
        self._shell: Any = magics.shell
        self._cell = cell
        self._namespace = namespace
        self.words: tuple[str, ...] = ()
        """The line as it was split, with its verb: for whom it is handed on to."""

    @property
    def door(self) -> Door:
        """The notebook."""
        return "notebook"

    @property
    def verbs(self) -> Sequence[Verb]:
        """The common table."""
        return VERBS

    @property
    def engine(self) -> Engine:
        """The notebook's engine, with the traits as they are now."""
        from nbcontainer.ipython.extension import get_engine

        return get_engine(settings_of(self._magics))

    def pulling(self, image: str, *, quiet: bool) -> AbstractContextManager[Listener]:
        """Show a pull as a display output, or as lines in terminal IPython."""
        notebook = getattr(self._shell, "kernel", None) is not None
        kind: Any = "none" if quiet else self._magics.progress
        return PullProgress(choose_display(kind, notebook=notebook, stream=sys.stdout), image)

    def output(self, stream: Stream, data: bytes) -> None:
        """Show a piece of a kept log."""
        getattr(sys, stream).write(data.decode(errors="replace"))

    def execute(self, request: Typed) -> object:
        """Run the cell or the line: stream its output, fill the variables asked for, raise when it failed."""
        if isinstance(request, TypedRun) and request.behind:
            return self._launched(request)
        if self._is_for_a_terminal(request):
            return self._at_terminal(request)
        if isinstance(request, TypedAttach) or (isinstance(request, TypedStart) and request.attach):
            return self._attached(request)
        captured: list[Stream] = []
        if request.out:
            captured.append("stdout")
        if request.err:
            captured.append("stderr")
        writer = OutputWriter(limit=self._magics.output_limit, captured=captured)
        if isinstance(request, TypedRun):
            return self._ran(request, writer)
        with self._shown(request, writer):
            ended = self._joined(request, writer) if isinstance(request, TypedExec) else self._started(request, writer)
            return self._answer(ended)

    def _launched(self, request: TypedRun) -> object:
        """Start or make a container that runs on behind; the cell, if there is one, is its script."""
        command, script, stdin = self._input(request, None, request.image, f"%container run -d {request.image}")
        if stdin is not None:
            raise InvalidOption(
                "with -d the cell is a script and cannot be COMMAND's input; leave COMMAND out, or write one line:"
                f" %container run -d {request.image} COMMAND"
            )
        network = self._network(request)
        asked: dict[str, Any] = {
            "options": replace(request.options, network=network),
            "script": script,
            "shell": request.shell,
        }
        with self.pulling(request.image, quiet=request.quiet) as listener:
            if request.behind == "create":
                summary = self.engine.create(request.image, command, listener=listener, **asked)
                return Message(summary.name or summary.id[:12])
            summary = self.engine.launch(request.image, command, listener=listener, failed=request.failed, **asked)
        return Launched(id=summary.id, name=summary.name, links=self._links(summary.id))

    def _links(self, container: str) -> tuple[tuple[str, str], ...]:
        """What a container publishes, and where the browser finds it."""
        try:
            detail = self.engine.inspect(container)
        except NbcontainerError:  # it is over and thrown away
            return ()
        record = getattr(detail, "record", {})
        proxied = behind_proxy(os.environ)
        return tuple(
            (str(port), address(port, os.environ, proxied=proxied))
            for port in published_ports(record)
            if port.protocol == "tcp"
        )

    def _attached(self, request: TypedAttach | TypedStart) -> object:
        """Show what a container that runs on behind writes; an interrupt ends the showing alone."""
        writer = OutputWriter(limit=self._magics.output_limit, captured=[])
        start = isinstance(request, TypedStart)
        try:
            result = self.engine.attach(request.container, start=start, output=writer.write, check=request.raise_error)
        except ContainerInterrupted:
            raise
        except KeyboardInterrupt:
            writer.close()
            sys.stderr.write(f"detached; {request.container} goes on\n")
            return None
        finally:
            writer.close()
        return self._answer(result)

    def _ran(self, request: TypedRun, writer: OutputWriter) -> object:
        command, script, stdin = self._input(request, writer, request.image, f"%container run {request.image}")
        network = self._network(request)
        had = network or ("host" if request.failed else self.engine.default_network)
        try:
            with (
                self._shown(request, writer, image=request.image, network=had),
                self.pulling(request.image, quiet=request.quiet) as listener,
            ):
                result = self.engine.run(
                    request.image,
                    command,
                    options=replace(request.options, network=network),
                    script=script,
                    shell=request.shell,
                    stdin=stdin,
                    output=writer.write,
                    listener=listener,
                    check=request.raise_error,
                    failed=request.failed,
                )
        except ContainerStartError as problem:
            raise _with_order_hint(problem, command, "image") from None
        return self._answer(result)

    def build(self, request: TypedBuild) -> object:
        """Build: the cell, if there is one, is the Dockerfile; the notebook's folder is the context unless named."""
        files = {name: variable_value(name, self._namespace, what="--var") for name in request.variables}
        path = request.path or "."
        folder = ""
        archive = None
        if path != "-":
            folder = os.path.abspath(os.path.expanduser(path))
        elif self._cell is None:
            raise InvalidOption("a notebook has no standard input; write the Dockerfile into a cell: %%dockerfile -")
        if self._cell is not None and request.options.dockerfile_name:
            raise InvalidOption("the cell is the Dockerfile, so -f has no use; %container build takes -f")
        if self._cell is not None and not self._cell.strip():
            raise InvalidOption("the cell is empty; write a Dockerfile into it, beginning with FROM IMAGE")
        secrets = {each.id: secret_value(each, self._namespace) for each in request.secrets}
        writer = OutputWriter(limit=self._magics.output_limit)
        progress: Any = "none" if request.quiet else request.progress
        notebook = getattr(self._shell, "kernel", None) is not None
        kind: Any = "none" if request.quiet else self._magics.progress
        with contextlib.ExitStack() as undo:
            undo.callback(writer.close)
            if folder and os.path.isfile(folder):
                archive, folder = undo.enter_context(open(folder, "rb")), ""
            log = undo.enter_context(
                BuildLog(
                    writer.write,
                    lambda: choose_display(kind, notebook=notebook, stream=sys.stdout),
                    progress=progress,
                )
            )
            options = replace(
                request.options,
                context=ContextSource(folder=folder, archive=archive, files=files),
                dockerfile=None if self._cell is None else self._cell.encode("utf-8", "surrogateescape"),
                secrets=secrets,
            )
            built = self.engine.build(options, listener=log.listen)
        return built_message(built, quiet=request.quiet)

    def _joined(self, request: TypedExec, writer: OutputWriter) -> RunResult:
        line = f"%container exec {request.container} COMMAND"
        command, script, stdin = self._input(request, writer, request.container, line)
        try:
            return self.engine.exec(
                request.container,
                command,
                options=request.options,
                script=script,
                shell=request.shell,
                stdin=stdin,
                output=writer.write,
                check=request.raise_error,
            )
        except ContainerStartError as problem:
            raise _with_order_hint(problem, command, "container") from None

    def _started(self, request: TypedStart, writer: OutputWriter) -> RunResult:
        asked: dict[str, Any] = {"timeout": request.timeout, "output": writer.write, "check": request.raise_error}
        if request.interactive:
            asked["stdin"] = asking(self._shell, writer.last_words)
        if request.restart:
            return self.engine.restart(request.container, grace=request.grace, **asked)
        return self.engine.start(request.container, **asked)

    def _is_for_a_terminal(self, request: Typed) -> bool:
        """Whether somebody is to type on a terminal: one that is asked for, or one that the container had before."""
        if isinstance(request, (TypedRun, TypedExec)):
            return request.interactive and request.options.terminal
        if isinstance(request, TypedStart) and not request.interactive:
            return False
        detail = self.engine.inspect(request.container)
        return isinstance(detail, ContainerDetail) and has_terminal(detail.record)

    def _at_terminal(self, request: Typed) -> object:
        """Have a terminal opened below the cell, and the line carried out there; or here, in terminal IPython."""
        if self._cell is not None:
            raise InvalidOption(
                "-it opens a terminal to type into, and a cell's text is not typed; write it on a line with one %, as"
                " in %container run -it IMAGE COMMAND"
            )
        if getattr(request, "out", "") or getattr(request, "err", ""):
            raise InvalidOption("what is shown in a terminal goes into no variable; leave --out and --err away")
        from nbcontainer.ipython.terminals import run_at_terminal, show_terminal

        words = self._handed_on(request)
        given = {}
        if isinstance(request, (TypedRun, TypedExec)):
            given = _given_variables(request.options.environment)
        settings = settings_of(self._magics)
        if getattr(self._shell, "kernel", None) is not None:
            show_terminal(words, settings, given)
        else:
            run_at_terminal(words, settings, given)
        return None

    def _handed_on(self, request: Typed) -> list[str]:
        """The line for the command line's door: variables put in, and what the traits of this one say."""
        command = len(request.command) if isinstance(request, (TypedRun, TypedExec)) else 0
        fixed = self.words[: len(self.words) - command] if command else self.words
        expand = expander(self._namespace)
        words = [expand(word) for word in fixed if word != "--no-raise-error"]
        words += self.words[len(fixed) :]
        if isinstance(request, TypedRun) and request.options.network is None and (network := self._network(request)):
            words[1:1] = ["--network", network]
        return words

    def _network(self, request: TypedRun) -> Any:
        """The network that is asked for by the line or the trait, if any; a failed step's is that of its build."""
        return request.options.network or (None if request.failed else self._magics.network or None)

    def _input(
        self, request: TypedRun | TypedExec, writer: OutputWriter | None, where: str, line: str
    ) -> tuple[tuple[str, ...], str | None, bytes | Asking | None]:
        """Command, script and standard input: the cell is one of the last two, or there is none.

        `where` it runs and the `line` without a cell are for the message about an empty one.
        """
        cell, command = self._cell, request.command
        asked = asking(self._shell, writer.last_words) if request.interactive and writer is not None else None
        if request.expand:
            command = tuple(expand_body(word, self._namespace) for word in command)
            cell = expand_body(cell, self._namespace) if cell is not None else None
        if request.shell and (cell is None or command):
            raise InvalidOption("--shell says what runs a cell's text; a line, or a cell with a COMMAND, has none")
        if cell is None:
            return command, None, asked
        if command:
            return command, None, cell.encode()
        if not cell.strip():
            raise InvalidOption(f"the cell is empty; to run a command in {where} without a cell write {line}")
        return (), cell, asked

    @contextlib.contextmanager
    def _shown(
        self,
        request: TypedRun | TypedExec | TypedStart,
        writer: OutputWriter,
        *,
        image: str = "",
        network: Any = "host",
    ) -> Iterator[None]:
        """Whatever happens in the block: show what is left, fill the variables, and hint at a missing network."""
        try:
            yield
        finally:
            writer.close()
            if request.out:
                self._shell.user_ns[request.out] = writer.text("stdout")
            if request.err:
                self._shell.user_ns[request.err] = writer.text("stderr")
            terminal = not isinstance(request, TypedStart) and request.options.terminal
            given = request.interactive or (self._cell is not None and bool(getattr(request, "command", ())))
            for hint in hints(image, writer.stderr_tail, network, interactive=given, terminal=terminal):
                sys.stderr.write(f"hint: {hint}\n")

    def _answer(self, result: RunResult) -> object:
        self._shell.user_ns["_exit_code"] = result.exit_code
        for note in result.notes:
            sys.stderr.write(f"hint: {note}\n")
        if result.reason == "interrupted":
            raise ContainerInterrupted(
                result.exit_code, result.argv, image=result.image, reason=result.detail or "interrupted"
            )
        return LineResult.of(result) if self._cell is None else None


def _given_variables(environment: Sequence[str]) -> dict[str, str]:
    """Those of ``-e NAME``: they have here the value that the command line's door would look for."""
    pairs = (entry.partition("=")[::2] for entry in environment)
    return {name: value for name, value in pairs if os.environ.get(name) == value}


def _with_order_hint(problem: ContainerStartError, command: tuple[str, ...], what: str) -> ContainerStartError:
    """A command that looks like an option was meant as one."""
    if not command or not command[0].startswith("-"):
        return problem
    text = (
        f"{problem}\n{command[0]!r} stands after the {what} and was taken as the command; options go before the {what}"
    )
    return ContainerStartError(text, exit_code=problem.exit_code)
