"""The verbs about volumes, and `prune` for containers: part of the one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbcontainer.engine import tables
from nbcontainer.engine.command_line import Option, Positional, Verb
from nbcontainer.engine.filters import (
    CONTAINER_PRUNE_FILTERS,
    VOLUME_FILTERS,
    VOLUME_PRUNE_FILTERS,
    filter_option,
    filtered_volumes,
)
from nbcontainer.engine.mount_options import read_label
from nbcontainer.errors import InvalidOption, VolumeNotFound

if TYPE_CHECKING:
    from argparse import Namespace

    from nbcontainer.engine.door import Session

__all__ = ["FORMAT", "VOLUME_VERBS"]

FORMAT = Option(
    flags=("--format",),
    metavar="{table,json}",
    choices=("table", "json"),
    help="json shows the values, an object a line",
)
"""Of the verbs that list something."""


def _create(session: Session, arguments: Namespace) -> object:
    if arguments.driver not in {None, "local"}:
        raise InvalidOption(f"volume driver {arguments.driver!r} is not there: a volume is a folder of the store")
    return tables.Message(session.engine.create_volume(arguments.name or "", dict(arguments.label)).name)


def _list(session: Session, arguments: Namespace) -> object:
    table = tables.volume_table(filtered_volumes(session.engine.volumes(), arguments.filter), quiet=arguments.quiet)
    return tables.json_lines(table) if arguments.format == "json" else table


def _inspect(session: Session, arguments: Namespace) -> object:
    described = [tables.describe_volume(session.engine.inspect_volume(name)) for name in arguments.volume]
    return tables.Document(described[0] if len(described) == 1 else described)


def _remove(session: Session, arguments: Namespace) -> object:
    removed = []
    for name in arguments.volume:
        try:
            removed.append(session.engine.remove_volume(name).name)
        except VolumeNotFound:
            if not arguments.force:
                raise
    return tables.Message("\n".join(removed))


def _prune(session: Session, arguments: Namespace) -> object:
    everything = arguments.all or any(each.is_true for each in arguments.filter if each.name == "all")
    return tables.pruned_message(session.engine.prune_volumes(everything=everything, filters=arguments.filter))


def _prune_containers(session: Session, arguments: Namespace) -> object:
    return tables.pruned_message(session.engine.prune_containers(arguments.filter))


_VOLUMES = Positional(name="VOLUME", help="the name of a volume", count="some", completes="volume")
_NO_QUESTION = Option(flags=("-f", "--force"), help="ask nothing: always so")

VOLUME_VERBS: tuple[Verb, ...] = (
    Verb(
        name="prune",
        summary="Remove all containers that have ended",
        description=(
            "Running ones stay, and so do volumes and images; volume prune and builder prune free those. Nothing is"
            " asked first."
        ),
        handler=_prune_containers,
        options=(filter_option(CONTAINER_PRUNE_FILTERS, short=False), _NO_QUESTION),
        examples=("prune", "prune --filter until=24h"),
    ),
    Verb(
        name="volume create",
        summary="Make a volume: a folder of the store that outlives containers",
        description=(
            "run -v NAME:/path makes it, too, when it is not there. An empty volume is filled with what the image has"
            " at the path when it is first used. Without NAME it gets one that nobody has."
        ),
        handler=_create,
        positionals=(Positional(name="NAME", help="its name", count="optional"),),
        options=(
            Option(flags=("-l", "--label"), metavar="NAME=VALUE", many=True, help="a label", read=read_label),
            Option(flags=("-d", "--driver"), metavar="NAME", help="local, which is all there is"),
            Option(
                flags=("-o", "--opt"),
                metavar="NAME=VALUE",
                refusal="a volume is a folder of the store; other file systems cannot be mounted by a container",
            ),
        ),
        examples=("volume create results", "volume create --label course=physics results"),
    ),
    Verb(
        name="volume ls",
        summary="List volumes, and who uses them",
        handler=_list,
        options=(Option(flags=("-q", "--quiet"), help="show only names"), filter_option(VOLUME_FILTERS), FORMAT),
        examples=("volume ls", "volume ls -q --filter dangling=true"),
        aliases=("volume list",),
    ),
    Verb(
        name="volume inspect",
        summary="Show everything known of volumes",
        description="One name answers an object, several a list of them.",
        handler=_inspect,
        positionals=(_VOLUMES,),
        examples=("volume inspect results",),
    ),
    Verb(
        name="volume rm",
        summary="Remove volumes, and what is in them",
        description="Not one that a container names, running or not: remove that container first.",
        handler=_remove,
        positionals=(_VOLUMES,),
        options=(Option(flags=("-f", "--force"), help="say nothing of one that is not there"),),
        examples=("volume rm results",),
        aliases=("volume remove",),
    ),
    Verb(
        name="volume prune",
        summary="Remove volumes that no container uses: those without a name, or with -a all",
        description="Nothing is asked first.",
        handler=_prune,
        options=(
            Option(flags=("-a", "--all"), help="named volumes, too"),
            filter_option(VOLUME_PRUNE_FILTERS, short=False),
            _NO_QUESTION,
        ),
        examples=("volume prune", "volume prune -a --filter label=course=physics"),
    ),
)
