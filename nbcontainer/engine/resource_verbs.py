"""The verbs about what containers use: `stats`, `top`, `pause`, `unpause`, `update`; part of the one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbcontainer.engine import tables
from nbcontainer.engine.command_line import Option, Positional, Verb
from nbcontainer.engine.limit_options import LIMIT_OPTIONS, limits_of
from nbcontainer.runtime.limits import binary_size

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from nbcontainer.engine.door import Session
    from nbcontainer.engine.views import ContainerProcess, ContainerSummary, ContainerUsage

__all__ = ["RESOURCE_VERBS", "process_table", "usage_table"]


def _stats(session: Session, arguments: Namespace) -> object:
    return usage_table(session.engine.stats(arguments.container))


def _top(session: Session, arguments: Namespace) -> object:
    return process_table(session.engine.top(arguments.container))


def _names(changed: Sequence[ContainerSummary]) -> tables.Message:
    return tables.Message("\n".join(each.name or each.id[:12] for each in changed))


def _pause(session: Session, arguments: Namespace) -> object:
    return _names([session.engine.pause(name) for name in arguments.container])


def _unpause(session: Session, arguments: Namespace) -> object:
    return _names([session.engine.unpause(name) for name in arguments.container])


def _update(session: Session, arguments: Namespace) -> object:
    limits = limits_of(arguments)
    return _names([session.engine.update(name, limits) for name in arguments.container])


def usage_table(rows: Sequence[ContainerUsage]) -> tables.Table[ContainerUsage]:
    """``stats``: docker's columns; without limits of their own, containers share the machine's."""

    def memory(row: ContainerUsage) -> str:
        limit = "no limit" if row.memory_limit is None else binary_size(row.memory_limit)
        return f"{binary_size(row.memory)} / {limit}"

    def pids(row: ContainerUsage) -> str:
        return str(row.pids) if row.pids_limit is None else f"{row.pids} / {row.pids_limit}"

    def moved(row: ContainerUsage) -> str:
        if row.read is None or row.written is None:
            return "-"
        return f"{tables.size_text(row.read)} / {tables.size_text(row.written)}"

    return tables.Table(
        [
            tables.Column("CONTAINER ID", lambda row: row.id[:12], lambda row: row.id),
            tables.Column("NAME", lambda row: row.name),
            tables.Column("IMAGE", lambda row: row.image),
            tables.Column("CPU %", lambda row: f"{row.cpu:.1f}", lambda row: row.cpu, right=True),
            tables.Column("MEM USAGE / LIMIT", memory, lambda row: row.memory, right=True),
            tables.Column("PIDS", pids, lambda row: row.pids, right=True),
            tables.Column("BLOCK I/O", moved, lambda row: (row.read, row.written), right=True),
        ],
        rows,
        empty="no running containers",
    )


def process_table(rows: Sequence[ContainerProcess]) -> tables.Table[ContainerProcess]:
    """``top``: pids are this machine's, users the container's."""

    def user(row: ContainerProcess) -> str:
        if row.user is None:
            return "-"
        return "root" if row.user == 0 else str(row.user)

    def spent(row: ContainerProcess) -> str:
        minutes, seconds = divmod(int(row.seconds), 60)
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"

    return tables.Table(
        [
            tables.Column("PID", lambda row: str(row.pid), lambda row: row.pid, right=True),
            tables.Column("PPID", lambda row: str(row.parent), lambda row: row.parent, right=True),
            tables.Column("USER", user, lambda row: row.user),
            tables.Column("STATE", lambda row: row.state),
            tables.Column("TIME", spent, lambda row: row.seconds, right=True),
            tables.Column("MEMORY", lambda row: binary_size(row.memory), lambda row: row.memory, right=True),
            tables.Column("COMMAND", lambda row: row.command),
        ],
        rows,
        empty="no processes",
    )


_CONTAINER = Positional(name="CONTAINER", help="a name or an id", completes="container")
_CONTAINERS = Positional(name="CONTAINER", help="a name or an id", count="some", completes="container")

RESOURCE_VERBS: tuple[Verb, ...] = (
    Verb(
        name="stats",
        summary="Show what running containers use, of every notebook of yours",
        description=(
            "Looks twice, half a second apart. Without a memory limit, memory is what the processes tell: their own"
            " and their share of what they have in common."
        ),
        handler=_stats,
        positionals=(
            Positional(name="CONTAINER", help="only these, by name or id", count="any", completes="container"),
        ),
        options=(Option(flags=("--no-stream",), help="show it once: always so"),),
        examples=("stats", "stats work"),
    ),
    Verb(
        name="top",
        summary="Show the processes of a container",
        handler=_top,
        positionals=(_CONTAINER,),
        examples=("top work",),
    ),
    Verb(
        name="pause",
        summary="Stop every process of containers where it is",
        description="They go on by unpause as if nothing had been. Ending a paused container works.",
        handler=_pause,
        positionals=(_CONTAINERS,),
        examples=("pause work",),
    ),
    Verb(
        name="unpause",
        summary="Let paused containers go on",
        handler=_unpause,
        positionals=(_CONTAINERS,),
        examples=("unpause work",),
    ),
    Verb(
        name="update",
        summary="Change the limits of running containers",
        description=(
            "What is not named stays as it is. Memory can be changed where the container was started with a limit on"
            " it: what it used before is not counted apart otherwise."
        ),
        handler=_update,
        positionals=(_CONTAINERS,),
        options=LIMIT_OPTIONS,
        examples=("update --cpus 0.5 work", "update --memory 1g --pids-limit 200 work"),
    ),
)
