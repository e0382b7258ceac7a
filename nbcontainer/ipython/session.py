"""The notebook's `Session`: how a magic's line and cell become a verb, and what a run looks like below a cell."""

from __future__ import annotations

import os
import sys
from collections import ChainMap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError

from nbcontainer.engine.door import TypedRun, hints
from nbcontainer.engine.settings import Settings
from nbcontainer.engine.tables import Shown
from nbcontainer.engine.verbs import RUN, VERBS, dispatch
from nbcontainer.errors import ContainerInterrupted, ContainerStartError, InvalidOption, NbcontainerError
from nbcontainer.ipython.arguments import expand_body, expander, join_continued, split_line
from nbcontainer.ipython.display import Interrupted, LineResult, stands_alone
from nbcontainer.ipython.streams import OutputWriter
from nbcontainer.widgets.progress import PullProgress, choose_display

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from nbcontainer.engine.command_line import Verb
    from nbcontainer.engine.door import Door
    from nbcontainer.engine.engine import Engine
    from nbcontainer.ipython.magics import ContainerMagics
    from nbcontainer.ipython.streams import Stream
    from nbcontainer.model import Listener, RunResult

__all__ = ["NotebookSession", "run_magic", "settings_of"]


def run_magic(magics: ContainerMagics, line: str, cell: str | None, local_ns: Mapping[str, Any]) -> object:
    """Carry out ``%container LINE`` or ``%%container LINE`` with its cell."""
    shell: Any = magics.shell
    namespace = ChainMap(dict(local_ns), shell.user_ns)
    try:
        if cell is not None:
            line, cell = join_continued(line, cell)
        words = split_line(line)
        session = NotebookSession(magics, cell, namespace)
        if cell is not None:
            words = ["run", *_cell_words(words)]
        answer = dispatch(
            session,
            words,
            substitute=expander(namespace),
            default_image=magics.default_image if cell is not None else "",
        )
    except InvalidOption as problem:
        raise UsageError(str(problem)) from None
    except NbcontainerError:
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
    return None if isinstance(answer, (LineResult, Shown)) and stands_alone(shell) else answer


def _cell_words(words: list[str]) -> list[str]:
    """The words of a cell's line; ``%%container run IMAGE`` is taken as meant, other verbs have no cell."""
    if words[:1] == ["run"]:
        return words[1:]
    if words and any(words[0] in {verb.name, *verb.aliases} for verb in VERBS if verb is not RUN):
        raise InvalidOption(f"{words[0]!r} is a line verb and takes no cell; write %container {words[0]} with one %")
    return words


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

    def execute(self, request: TypedRun) -> object:
        """Run the cell or the line: stream its output, fill the variables asked for, raise when it failed."""
        image, command, script, stdin = self._input(request)
        captured: list[Stream] = []
        if request.out:
            captured.append("stdout")
        if request.err:
            captured.append("stderr")
        writer = OutputWriter(limit=self._magics.output_limit, captured=captured)
        network: Any = request.options.network or self._magics.network
        try:
            with self.pulling(image, quiet=request.quiet) as listener:
                result = self.engine.run(
                    image,
                    command,
                    options=replace(request.options, network=network),
                    script=script,
                    shell=request.shell,
                    stdin=stdin,
                    output=writer.write,
                    listener=listener,
                    check=request.raise_error,
                )
        except ContainerStartError as problem:
            raise _with_order_hint(problem, command) from None
        finally:
            self._after(request, writer, network)
        return self._answer(result)

    def _input(self, request: TypedRun) -> tuple[str, tuple[str, ...], str | None, bytes | None]:
        """Image, command, script and standard input: the cell is one of the last two, or there is none."""
        cell, command = self._cell, request.command
        if request.expand:
            command = tuple(expand_body(word, self._namespace) for word in command)
            cell = expand_body(cell, self._namespace) if cell is not None else None
        if request.shell and (cell is None or command):
            raise InvalidOption("--shell says what runs a cell's text; a line, or a cell with a COMMAND, has none")
        if cell is None:
            return request.image, command, None, None
        if command:
            return request.image, command, None, cell.encode()
        if not cell.strip():
            line = f"%container run {request.image}"
            raise InvalidOption(f"the cell is empty; to run the image's own command write {line}")
        return request.image, (), cell, None

    def _after(self, request: TypedRun, writer: OutputWriter, network: Any) -> None:
        """Whatever happened: show what is left, fill the variables, and hint at a missing network."""
        writer.close()
        if request.out:
            self._shell.user_ns[request.out] = writer.text("stdout")
        if request.err:
            self._shell.user_ns[request.err] = writer.text("stderr")
        for hint in hints(request.image, writer.stderr_tail, network):
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


def _with_order_hint(problem: ContainerStartError, command: tuple[str, ...]) -> ContainerStartError:
    """A command that looks like an option was meant as one."""
    if not command or not command[0].startswith("-"):
        return problem
    text = f"{problem}\n{command[0]!r} stands after the image and was taken as the command; options go before the image"
    return ContainerStartError(text, exit_code=problem.exit_code)
