"""The verbs and options of containers that run on behind: `create`, `attach`, `logs`, `open`; part of the one table."""

from __future__ import annotations

import os
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.command_line import Option, Positional, Verb, read_duration
from nbcontainer.engine.door import TypedAttach
from nbcontainer.engine.limit_options import read_size
from nbcontainer.engine.logs import cut, last_lines, read_moment
from nbcontainer.engine.opening import Page, address, behind_hub, behind_proxy, chosen_port
from nbcontainer.engine.restarting import read_restart_policy
from nbcontainer.engine.views import ContainerDetail, ImageDetail
from nbcontainer.errors import InvalidOption, NotFound
from nbcontainer.model import HealthCheck, LogLimits, ServiceOptions
from nbcontainer.runtime.console import DETACH_KEYS, read_detach_keys

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterable, Sequence

    from nbcontainer.engine.door import Session
    from nbcontainer.engine.views import LogLine

__all__ = ["DETACH", "SERVICE_OPTIONS", "service_options", "service_verbs"]

_MOST_FILES = 1000


# What is typed


def _read_time(text: str) -> float:
    """``30s``, ``1m30s``; 0 is the default."""
    return 0.0 if re.fullmatch(r"0+(?:\.0*)?(?:ms|s|m|h)?", text.strip(), re.ASCII) else read_duration(text)


def _read_count(text: str) -> int:
    if not re.fullmatch(r"\d{1,6}", text, re.ASCII):
        raise InvalidOption(f"{text!r} is no number of retries; write for example 3")
    return int(text)


def _read_log_option(text: str) -> tuple[str, int]:
    name, equals, value = text.partition("=")
    if name == "max-size" and equals:
        return name, read_size(value)
    if name == "max-file" and equals and re.fullmatch(r"\d{1,4}", value, re.ASCII) and 0 < int(value) <= _MOST_FILES:
        return name, int(value)
    raise InvalidOption(f"log option {text!r} is not known; there are max-size=SIZE and max-file=NUMBER (of files)")


def _read_driver(text: str) -> str:
    if text not in {"json-file", "local"}:
        raise InvalidOption(
            f"log driver {text!r} is not there; output is kept in files of lines of JSON, and `logs` shows it"
        )
    return text


def _read_port(text: str) -> int:
    number, _, protocol = text.partition("/")
    if not re.fullmatch(r"\d{1,5}", number, re.ASCII) or not 0 < int(number) < 1 << 16 or protocol not in {"", "tcp"}:
        raise InvalidOption(f"port {text!r} is none; write the container's own, for example 80")
    return int(number)


def _read_height(text: str) -> int:
    if not re.fullmatch(r"\d{2,5}", text, re.ASCII):
        raise InvalidOption(f"height {text!r} is no number of pixels; write for example 480")
    return int(text)


def _read_tail(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isascii() or not text.isdigit():
        raise InvalidOption(f"--tail {text!r} is neither a number of lines nor all")
    return int(text)


DETACH_KEYS_OPTION = Option(
    flags=("--detach-keys",),
    metavar="KEYS",
    door="terminal",
    help="what is typed to leave a terminal and let the container run on; ctrl-p,ctrl-q is the default",
    read=read_detach_keys,
)
DETACH = Option(
    flags=("-d", "--detach", "--bg"),
    help="let it run on behind, and outlive this notebook or terminal; see logs, attach, stop",
)
_RESTART = Option(
    flags=("--restart",),
    metavar="POLICY",
    help="with -d, when to start it again: no (the default), on-failure[:N], always, unless-stopped",
    read=read_restart_policy,
)
_HEALTH: tuple[Option, ...] = (
    Option(flags=("--health-cmd",), metavar="COMMAND", help="with -d, a command that tells whether it is well"),
    Option(
        flags=("--health-interval",), metavar="TIME", help="between two checks; 30s is the default", read=_read_time
    ),
    Option(flags=("--health-timeout",), metavar="TIME", help="for one check; 30s is the default", read=_read_time),
    Option(
        flags=("--health-retries",),
        metavar="N",
        help="failed checks in a row that make it unhealthy; 3 is the default",
        read=_read_count,
    ),
    Option(
        flags=("--health-start-period",),
        metavar="TIME",
        help="in which failed checks do not count; 0s is the default",
        read=_read_time,
    ),
    Option(
        flags=("--health-start-interval",),
        metavar="TIME",
        help="between two checks in that period; 5s is the default",
        read=_read_time,
    ),
)
_NO_HEALTH = Option(flags=("--no-healthcheck",), help="run no checks, whatever the image says")
_LOG: tuple[Option, ...] = (
    Option(
        flags=("--log-opt",),
        metavar="NAME=VALUE",
        many=True,
        help="with -d, how much output is kept: max-size (10m) of each of max-file (3) files",
        read=_read_log_option,
    ),
    Option(flags=("--log-driver",), metavar="NAME", help="json-file, the only one", read=_read_driver),
)
SERVICE_OPTIONS: tuple[Option, ...] = (
    _RESTART,
    *_HEALTH,
    _NO_HEALTH,
    *_LOG,
)
"""What a container that runs on behind can be asked to be."""


def service_options(arguments: Namespace, *, behind: bool) -> ServiceOptions | None:
    """What these options ask for; None for a run that is waited for, with which most of them do not go."""
    if not behind:
        for option in (_RESTART, *_HEALTH, _LOG[0]):
            value = getattr(arguments, option.name)
            if value and str(value) != "no":
                raise InvalidOption(f"{option.flags[0]} goes with -d: a run that is waited for has none")
        return None
    given = {option.name.removeprefix("health_"): getattr(arguments, option.name) for option in _HEALTH}
    command = given.pop("cmd")
    if arguments.no_healthcheck and (command or any(value is not None for value in given.values())):
        raise InvalidOption("--no-healthcheck and the --health options exclude each other")
    test: tuple[str, ...] = ("NONE",) if arguments.no_healthcheck or command == "" else ()
    if command:
        test = ("CMD-SHELL", command)
    log = dict(arguments.log_opt)
    plain = LogLimits()
    return ServiceOptions(
        restart=arguments.restart or ServiceOptions().restart,
        health=HealthCheck(test=test, **{name: value for name, value in given.items() if value is not None}),
        log=LogLimits(size=log.get("max-size", plain.size), files=log.get("max-file", plain.files)),
        interactive=getattr(arguments, "interactive", False),
    )


# Handlers


def _attach(session: Session, arguments: Namespace) -> object:
    return session.execute(
        TypedAttach(
            container=arguments.container,
            stdin=not arguments.no_stdin,
            pass_signals=arguments.sig_proxy != "false",
            detach_keys=arguments.detach_keys or DETACH_KEYS,
            raise_error=not arguments.no_raise_error,
        )
    )


def _logs(session: Session, arguments: Namespace) -> object:
    span: dict[str, Any] = {"since": arguments.since, "until": arguments.until}
    if not arguments.follow:
        pieces = session.engine.logs(arguments.container, **span)
        _show(session, last_lines(pieces, arguments.tail), stamped=arguments.timestamps)
        return None
    try:
        _show(
            session,
            session.engine.follow_logs(arguments.container, tail=arguments.tail, **span),
            stamped=arguments.timestamps,
        )
    except KeyboardInterrupt:
        if session.door == "terminal":
            raise
    return None


def _show(session: Session, pieces: Iterable[LogLine], *, stamped: bool) -> None:
    for piece in cut(pieces) if stamped else pieces:
        stamp = f"{datetime.fromtimestamp(piece.time, timezone.utc).isoformat()} ".encode() if stamped else b""
        session.output(piece.stream, stamp + piece.data)


def _open(session: Session, arguments: Namespace) -> object:
    detail = session.engine.inspect(arguments.container)
    if not isinstance(detail, ContainerDetail):
        kind = "an image" if isinstance(detail, ImageDetail) else "a volume"
        raise NotFound(f"{arguments.container} is {kind}; open shows what a container publishes")
    name = detail.summary.name or detail.summary.id[:12]
    if detail.summary.state != "running":
        raise NotFound(f"container {name} is {detail.summary.state}, so nothing answers; `%container start {name}`")
    wanted = None if arguments.port is None else _read_port(arguments.port)
    port = chosen_port(detail.record, name, wanted)
    proxied = session.door == "notebook" and behind_proxy(os.environ)
    hub = session.door == "notebook" and behind_hub(os.environ)
    note = (
        "" if proxied or not hub else "behind JupyterHub this can be reached with jupyter-server-proxy: pip install it"
    )
    return Page(
        url=address(port, os.environ, proxied=proxied), proxied=proxied, height=arguments.height or 480, note=note
    )


_CONTAINER = Positional(name="CONTAINER", help="a name or an id", completes="container")
_RUNNING = Positional(name="CONTAINER", help="a name or an id", completes="running")


def service_verbs(raising: Sequence[Option]) -> tuple[Verb, ...]:
    """The verbs; `raising` are the options about what becomes of a bad end."""
    return (
        Verb(
            name="attach",
            summary="Show what a container that runs on behind writes, until it ends",
            description=(
                "From now on: logs shows what was before. In a terminal, Ctrl-C goes to the container and what is typed"
                " too, if it was started with -i; of one that has a terminal (-it), Ctrl-P Ctrl-Q leaves it. In a"
                " notebook that opens a terminal, and else interrupting the cell leaves the container alone."
            ),
            handler=_attach,
            positionals=(_RUNNING,),
            options=(
                Option(flags=("--no-stdin",), door="terminal", help="pass no input"),
                Option(
                    flags=("--sig-proxy",),
                    metavar="{true,false}",
                    choices=("true", "false"),
                    door="terminal",
                    help="whether Ctrl-C goes to the container; true is the default",
                ),
                DETACH_KEYS_OPTION,
                *raising,
            ),
            examples=("attach web",),
        ),
        Verb(
            name="logs",
            summary="Show what a container wrote",
            description="Kept for containers that run on behind, and for those with a name.",
            handler=_logs,
            positionals=(_CONTAINER,),
            options=(
                Option(flags=("-f", "--follow"), help="go on with what it writes, until it ends or you interrupt"),
                Option(
                    flags=("-n", "--tail"),
                    metavar="N",
                    help="only the last N lines; all is the default",
                    read=_read_tail,
                ),
                Option(
                    flags=("--since",),
                    metavar="MOMENT",
                    help="only what came later: 10m (ago), unix seconds or 2026-01-31T09:30:00Z",
                    read=read_moment,
                ),
                Option(flags=("--until",), metavar="MOMENT", help="only what came earlier", read=read_moment),
                Option(flags=("-t", "--timestamps"), help="put the time before each line"),
            ),
            examples=("logs --tail 20 work", "logs -f --since 10m web"),
        ),
        Verb(
            name="open",
            summary="Show the page that a container serves",
            description=(
                "PORT is the container's own, which was published with -p; without it, the only one. In a notebook the"
                " page is shown in a frame, in a terminal its address."
            ),
            handler=_open,
            positionals=(
                _RUNNING,
                Positional(name="PORT", help="the container's port, for example 80", count="optional"),
            ),
            options=(
                Option(
                    flags=("--height",),
                    metavar="PIXELS",
                    door="notebook",
                    help="of the frame; 480 is the default",
                    read=_read_height,
                ),
            ),
            examples=("open web 80",),
        ),
    )
