"""The verbs that run something in a container that is there: `exec`, `start`, `restart`; part of the one table.

And the options that they share with `run`.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from nbcontainer.engine.command_line import (
    Option,
    Positional,
    Verb,
    read_choice,
    read_duration,
    read_environment,
)
from nbcontainer.engine.door import TypedExec, TypedStart
from nbcontainer.engine.service_verbs import DETACH_KEYS_OPTION
from nbcontainer.engine.tables import Message
from nbcontainer.errors import InvalidOption
from nbcontainer.model import ExecOptions
from nbcontainer.runtime.console import DETACH_KEYS

if TYPE_CHECKING:
    from argparse import Namespace

    from nbcontainer.engine.door import Session
    from nbcontainer.engine.views import ContainerSummary

__all__ = [
    "CELL_OPTIONS",
    "COMMAND_VERBS",
    "ENVIRONMENT",
    "EXEC",
    "GRACE",
    "RAISING",
    "TERMINAL_OPTIONS",
    "TIMEOUT",
    "USER",
    "WORKING_DIRECTORY",
]


def _exec(session: Session, arguments: Namespace) -> object:
    options = ExecOptions(
        environment=tuple(variable for variable in arguments.env if variable),
        working_directory=arguments.workdir or "",
        user=arguments.user or "",
        timeout=arguments.timeout,
        detached=arguments.detach,
        terminal=arguments.tty,
    )
    return session.execute(
        TypedExec(
            container=arguments.container,
            command=arguments.command,
            options=options,
            shell=arguments.shell or (),
            out=arguments.out or "",
            err=arguments.err or "",
            raise_error=not arguments.no_raise_error,
            expand=arguments.expand,
            interactive=arguments.interactive,
            detach_keys=arguments.detach_keys or DETACH_KEYS,
        )
    )


def _start(session: Session, arguments: Namespace) -> object:
    name = arguments.container
    behind = arguments.detach or session.engine.is_service(name)
    if behind and not arguments.attach and not arguments.interactive:
        return _named(session.engine.start_behind(name))
    return session.execute(_typed_start(arguments, attach=behind))


def _restart(session: Session, arguments: Namespace) -> object:
    name = arguments.container
    if arguments.detach or session.engine.is_service(name):
        return _named(session.engine.restart_behind(name, grace=arguments.time))
    return session.execute(_typed_start(arguments, restart=True, grace=arguments.time))


def _named(summary: ContainerSummary) -> object:
    """Docker's answer: the container's name."""
    return Message(summary.name or summary.id[:12])


def _typed_start(
    arguments: Namespace, *, restart: bool = False, grace: float | None = None, attach: bool = False
) -> TypedStart:
    return TypedStart(
        container=arguments.container,
        restart=restart,
        grace=grace,
        timeout=arguments.timeout,
        out=arguments.out or "",
        err=arguments.err or "",
        raise_error=not arguments.no_raise_error,
        interactive=arguments.interactive,
        detach_keys=arguments.detach_keys or DETACH_KEYS,
        attach=attach,
    )


def _read_grace(text: str) -> float:
    return 0.0 if re.fullmatch(r"0+(?:\.0*)?s?", text.strip(), re.ASCII) else read_duration(text)


def _read_shell(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as problem:
        raise InvalidOption(f"shell {text!r} cannot be split into words: {problem}") from problem
    if not words:
        raise InvalidOption("--shell needs a program, for example --shell python3")
    return words


# Options that several verbs have

ENVIRONMENT = Option(
    flags=("-e", "--env"),
    metavar="NAME[=VALUE]",
    many=True,
    help="set a variable; without a value, take the one it has here",
    read=read_environment,
)
WORKING_DIRECTORY = Option(
    flags=("-w", "--workdir"),
    metavar="FOLDER",
    help="start in this folder of the container",
    read=read_choice("working folder", r"/[^\0\n]*", "/data"),
)
USER = Option(
    flags=("-u", "--user"),
    metavar="USER[:GROUP]",
    help="run as this user of the container: a name or a number",
    read=read_choice("user", r"[^\s:]+(?::[^\s:]+)?", "1000:1000 or nobody"),
)
TIMEOUT = Option(
    flags=("--timeout",),
    metavar="TIME",
    help="end every process after this time: seconds, or 1m30s",
    read=read_duration,
)
GRACE = Option(
    flags=("-t", "--time", "--timeout"),
    metavar="TIME",
    help="how long to wait before everything is ended: seconds, or 1m30s; 10 is the default, 0 does not wait",
    read=_read_grace,
)
CELL_OPTIONS: tuple[Option, ...] = (
    Option(
        flags=("-s", "--shell"),
        metavar="PROGRAM",
        door="notebook",
        help="what runs the cell's text, for example python3; sh when neither this nor a #! line is given",
        read=_read_shell,
        completes="shell",
    ),
    Option(
        flags=("--out",),
        metavar="VARIABLE",
        door="notebook",
        help="put standard output into this variable instead of showing it",
        read=read_choice("variable", r"[^\W\d]\w*", "result"),
    ),
    Option(
        flags=("--err",),
        metavar="VARIABLE",
        door="notebook",
        help="the same for standard error",
        read=read_choice("variable", r"[^\W\d]\w*", "errors"),
    ),
    Option(
        flags=("--no-raise-error",),
        door="notebook",
        help="go on when the command fails; its code is in _exit_code",
    ),
    Option(
        flags=("--expand",),
        door="notebook",
        help="replace {{name}} in the cell's text and in COMMAND by the variable, as it is",
    ),
)
"""What a cell adds: who runs its text, where its output goes, what happens when it fails."""
_RESULT_OPTIONS = tuple(option for option in CELL_OPTIONS if option.name in {"out", "err", "no_raise_error"})
RAISING: tuple[Option, ...] = tuple(option for option in CELL_OPTIONS if option.name == "no_raise_error")
_INTERACTIVE: tuple[Option, ...] = (
    Option(
        flags=("-i", "--interactive"),
        help="pass standard input to the command; in a cell, ask for what it reads in the input box",
    ),
    DETACH_KEYS_OPTION,
)
TERMINAL_OPTIONS: tuple[Option, ...] = (
    *_INTERACTIVE,
    Option(flags=("-t", "--tty"), help="give the command a terminal; with -i, one to type into, in a notebook too"),
)
"""How a command is talked to."""

EXEC = Verb(
    name="exec",
    summary="Run a command in a container that runs already",
    description=(
        "It has the container's user, environment, rights and limits unless options say otherwise. Works on containers"
        " of all your notebooks. The container does not notice its end."
    ),
    handler=_exec,
    positionals=(
        Positional(name="CONTAINER", help="a name or an id", completes="running"),
        Positional(name="COMMAND", help="the command and its arguments, verbatim", count="rest"),
    ),
    options=(
        ENVIRONMENT,
        WORKING_DIRECTORY,
        USER,
        TIMEOUT,
        Option(flags=("-d", "--detach"), help="do not wait for it, and let it run on"),
        *CELL_OPTIONS,
        *TERMINAL_OPTIONS,
        Option(flags=("--privileged",), refusal="a command has the rights of its container; start that with --cap-add"),
    ),
    examples=(
        "exec work ls -l /out",
        "exec -it work bash",
        "exec -u nobody -w /tmp work sh -c 'echo $PWD'",
        "exec -d work nginx",
    ),
)

_KEPT = Positional(name="CONTAINER", help="a name or an id of one that was kept", completes="container")

COMMAND_VERBS: tuple[Verb, ...] = (
    EXEC,
    Verb(
        name="start",
        summary="Run a kept container once more, in the files it left",
        description=(
            "The same command or cell with the same options; output streams as it does for run. Volumes and devices are"
            " checked anew. What ran on behind, or was made by create, does so again."
        ),
        handler=_start,
        positionals=(_KEPT,),
        options=(
            Option(flags=("-a", "--attach"), help="of one that runs on behind, show what it writes until it ends"),
            Option(flags=("-d", "--detach"), help="let it run on behind, also if it did not before"),
            TIMEOUT,
            *_RESULT_OPTIONS,
            *_INTERACTIVE,
        ),
        examples=("start work", "start -a web"),
    ),
    Verb(
        name="restart",
        summary="End a kept container, in whichever notebook it runs, and start it here",
        description="What runs on behind goes on doing so.",
        handler=_restart,
        positionals=(_KEPT,),
        options=(
            Option(flags=("-d", "--detach"), help="let it run on behind, also if it did not before"),
            Option(flags=("-t", "--time"), metavar="TIME", help="as the -t of stop", read=_read_grace),
            TIMEOUT,
            *_RESULT_OPTIONS,
            *_INTERACTIVE,
        ),
        examples=("restart -t 2 work",),
    ),
)
