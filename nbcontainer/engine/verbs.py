"""The one table of verbs. Magics, command line, completion, help and the reference page are all made from it.

A handler gets the door's `Session` and the parsed arguments, asks the engine one question and answers a value that
knows how to draw itself (`nbcontainer.engine.tables`), or None when everything is on the screen already.
"""

from __future__ import annotations

import fnmatch
import os
import signal
from argparse import Namespace
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer.engine import tables
from nbcontainer.engine.build_verbs import BUILD_VERBS
from nbcontainer.engine.command_line import (
    PREFIX,
    HelpRequested,
    Option,
    Positional,
    Verb,
    columns,
    nearest,
    option_help,
    parse,
    read_choice,
    read_platform,
    usage,
    verb_help,
)
from nbcontainer.engine.command_verbs import (
    CELL_OPTIONS,
    COMMAND_VERBS,
    ENVIRONMENT,
    EXEC,
    GRACE,
    RAISING,
    TERMINAL_OPTIONS,
    TIMEOUT,
    USER,
    WORKING_DIRECTORY,
)
from nbcontainer.engine.door import FAILED, TypedRun
from nbcontainer.engine.file_verbs import FILE_VERBS
from nbcontainer.engine.filters import (
    CONTAINER_FILTERS,
    IMAGE_FILTERS,
    filter_option,
    filtered_containers,
    filtered_images,
    image_names,
)
from nbcontainer.engine.lifecycle import signal_number
from nbcontainer.engine.limit_options import LIMIT_OPTIONS, SANDBOX_OPTIONS, sandbox_options
from nbcontainer.engine.mount_options import MOUNT_OPTIONS, split_mounts
from nbcontainer.engine.network_options import NETWORK_OPTIONS, networking_of
from nbcontainer.engine.network_verbs import NETWORK_VERBS
from nbcontainer.engine.resource_verbs import RESOURCE_VERBS
from nbcontainer.engine.service_verbs import DETACH, SERVICE_OPTIONS, service_options, service_verbs
from nbcontainer.engine.views import ContainerDetail, VolumeSummary
from nbcontainer.engine.volume_verbs import FORMAT, VOLUME_VERBS
from nbcontainer.errors import ContainerNotFound, InvalidOption
from nbcontainer.model import RunOptions, chain_ids
from nbcontainer.runtime.console import DETACH_KEYS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nbcontainer.engine.door import Door, Session
    from nbcontainer.engine.views import ContainerSummary, ImageSummary

__all__ = [
    "CELL_VERBS",
    "RUN",
    "VERBS",
    "dispatch",
    "find_verb",
    "overview",
    "reference_markdown",
    "run_request",
    "split_verb",
]


def dispatch(
    session: Session, words: Sequence[str], *, substitute: Callable[[str], str] = str, default_image: str = ""
) -> object:
    """Carry out a line: the verb and its words. No word at all asks for ``info``, the status.

    `substitute` and `default_image` are those of `parse`. Raises what the engine raises, and `InvalidOption` for a
    line that cannot be read.
    """
    if not words:
        return _info(session, Namespace())
    if words[0] in {"-h", "--help"}:
        return tables.Message(overview(session.door, session.verbs))
    try:
        verb, rest = split_verb(words, session.verbs, session.door)
        arguments = parse(verb, rest, door=session.door, substitute=substitute, default_image=default_image)
        return verb.handler(session, arguments)
    except HelpRequested as asked:
        return tables.Message(asked.text)
    except FileNotFoundError as problem:
        if problem.filename is None and _current_folder_is_gone():
            raise InvalidOption(
                "the current folder has been removed; change to one that is there, or write whole paths"
            ) from problem
        raise


def _current_folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def split_verb(words: Sequence[str], table: Sequence[Verb], door: Door) -> tuple[Verb, Sequence[str]]:
    """The verb that a line begins with, which may be two words (``volume ls``), and the rest of the line.

    Raises `HelpRequested` for ``volume -h``, and what `find_verb` raises.
    """
    group = [verb for verb in table if verb.name.startswith(f"{words[0]} ")]
    if not group:
        return find_verb(words[0], table, door), words[1:]
    if words[1:2] in (["-h"], ["--help"]):
        raise HelpRequested(_group_help(words[0], group, door))
    return find_verb(" ".join(words[:2]), table, door), words[2:]


def find_verb(name: str, table: Sequence[Verb], door: Door) -> Verb:
    """The verb of that name or alias; raise `InvalidOption` with the nearest one and what else could be meant."""
    for verb in table:
        if name == verb.name or name in verb.aliases:
            return verb
    prefix = PREFIX[door]
    first, _, second = name.partition(" ")
    group = [verb.name for verb in table if verb.name.startswith(f"{first} ")]
    if group:
        known = [each.removeprefix(f"{first} ") for each in group]
        what = f"{first} does not know {second!r}{nearest(second, known)}" if second else f"{first} needs a second word"
        raise InvalidOption(f"{what}; there are {', '.join(group)} (see {prefix} {first} -h)")
    suggestion = nearest(name, [word for verb in table for word in (verb.name, *verb.aliases)])
    if not suggestion and not name.startswith("-"):
        suggestion = f"; to run a command in an image write {prefix} run IMAGE COMMAND"
        suggestion += ", to run a cell %%container IMAGE" if door == "notebook" else ""
    raise InvalidOption(f"there is no verb {name!r}{suggestion} (see {prefix} help)")


# Handlers


def _pull(session: Session, arguments: Namespace) -> object:
    with session.pulling(arguments.image, quiet=arguments.quiet) as listener:
        summary = session.engine.pull(arguments.image, platform=arguments.platform or "", listener=listener)
    return tables.Message(summary.reference) if arguments.quiet else tables.Shown(summary.reference)


def _images(session: Session, arguments: Namespace) -> object:
    images = session.engine.images()
    found = [image for image in images if _matches(image, arguments.image)]

    def find(name: str) -> ImageSummary:
        return session.engine.inspect_image(name).summary

    found = filtered_images(found, arguments.filter, matches_name=_matches, find=find)
    table = tables.image_table(found, full=arguments.no_trunc, digests=arguments.digests, quiet=arguments.quiet)
    return tables.json_lines(table) if arguments.format == "json" else table


def _matches(image: ImageSummary, pattern: str | None) -> bool:
    """Docker's filter: a repository, a repository with a tag, or a shell pattern of either."""
    if not pattern:
        return True
    return any(fnmatch.fnmatchcase(name, pattern) for name in image_names(image.reference) if name)


def _remove_images(session: Session, arguments: Namespace) -> object:
    lines: list[str] = []
    for image in arguments.image:
        removed = session.engine.remove_image(image, force=arguments.force)
        lines += [f"Untagged: {name}" for name in removed.untagged]
        lines += [f"Deleted: {digest}" for digest in removed.deleted]
        if removed.freed:
            lines.append(f"Freed: {tables.size_text(removed.freed)}")
        if removed.deferred:
            lines.append("Its layers go with the next removal: a build or pull is going on in this store")
    return tables.Message("\n".join(lines))


def _tag(session: Session, arguments: Namespace) -> object:
    summary = session.engine.tag(arguments.image, arguments.name)
    return tables.Message(f"{arguments.image} is now also {summary.reference}")


def _inspect(session: Session, arguments: Namespace) -> object:
    described = [_describe(session, name) for name in arguments.name]
    return tables.Document(described[0] if len(described) == 1 else described)


def _describe(session: Session, name: str) -> dict[str, Any]:
    detail = session.engine.inspect(name)
    if isinstance(detail, VolumeSummary):
        return tables.describe_volume(detail)
    return tables.describe_container(detail) if isinstance(detail, ContainerDetail) else tables.describe_image(detail)


def _history(session: Session, arguments: Namespace) -> object:
    return tables.history_table(session.engine.history(arguments.image), full=arguments.no_trunc)


def _run(session: Session, arguments: Namespace) -> object:
    return session.execute(run_request(arguments))


def _create(session: Session, arguments: Namespace) -> object:
    lacking = dict.fromkeys(_WAITED_FOR)
    return session.execute(run_request(Namespace(**{**lacking, **vars(arguments)}), create=True))


def run_request(arguments: Namespace, *, create: bool = False) -> TypedRun:
    """What the parsed arguments of ``run``, or ``create``, ask for."""
    behind: Literal["", "start", "create"] = "create" if create else "start" if arguments.detach else ""
    if behind and (arguments.out or arguments.err):
        raise InvalidOption("--out and --err take the output of a run that is waited for; `logs` has that of this one")
    entrypoint = arguments.entrypoint
    image, command = arguments.image, arguments.command
    if arguments.before and not arguments.failed:
        raise InvalidOption("--before goes with --failed: the state before the failed step of the last build")
    if arguments.failed:  # then there is no image, and every word is the command's
        image, command = FAILED, () if image == FAILED else (image, *command)
    volumes, in_memory = split_mounts(arguments.volume, arguments.mount)
    sandbox = sandbox_options(arguments)
    options = RunOptions(
        name=arguments.name or "",
        remove=True if arguments.rm else None,
        environment=tuple(variable for variable in arguments.env if variable),
        volumes=volumes,
        labels=arguments.label,
        working_directory=arguments.workdir or "",
        user=arguments.user or "",
        hostname=arguments.hostname or "",
        entrypoint=None if entrypoint is None else tuple(word for word in (entrypoint,) if word),
        network=arguments.network,
        networking=networking_of(arguments),
        read_only=arguments.read_only,
        pull=arguments.pull or "missing",
        platform=arguments.platform or "",
        timeout=arguments.timeout,
        terminal=arguments.tty,
        service=service_options(arguments, behind=bool(behind)),
        **{**sandbox, "tmpfs": (*sandbox["tmpfs"], *in_memory)},
    )
    return TypedRun(
        image=image,
        command=command,
        options=options,
        shell=arguments.shell or (),
        out=arguments.out or "",
        err=arguments.err or "",
        quiet=arguments.quiet,
        raise_error=not arguments.no_raise_error,
        expand=arguments.expand,
        interactive=arguments.interactive,
        detach_keys=arguments.detach_keys or DETACH_KEYS,
        failed=("before" if arguments.before else "after") if arguments.failed else "",
        behind=behind,
    )


def _containers(session: Session, arguments: Namespace) -> object:
    last = 1 if arguments.latest else arguments.last
    everything = arguments.all or last is not None or any(each.name in _OF_ENDED for each in arguments.filter)
    found: Sequence[ContainerSummary] = session.engine.containers(everything=everything)
    if arguments.filter:
        found = filtered_containers(
            found,
            arguments.filter,
            find=lambda name: _find_container(session, name),
            chain_of=lambda name: _chain_of(session, name),
        )
    table = tables.container_table(
        found if last is None else found[:last], full=arguments.no_trunc, quiet=arguments.quiet, everything=everything
    )
    return tables.json_lines(table) if arguments.format == "json" else table


def _find_container(session: Session, name: str) -> ContainerSummary:
    detail = session.engine.inspect(name)
    if not isinstance(detail, ContainerDetail):
        raise ContainerNotFound(f"no container {name!r} to compare with; `%container ps -a` lists those that are here")
    return detail.summary


def _chain_of(session: Session, image: str) -> str:
    chains = chain_ids(session.engine.inspect_image(image).config.diff_ids)
    return str(chains[-1]) if chains else ""


def _remove_containers(session: Session, arguments: Namespace) -> object:
    return _named(
        session.engine.remove_container(name, force=arguments.force, volumes=arguments.volumes)
        for name in arguments.container
    )


def _kill(session: Session, arguments: Namespace) -> object:
    number = signal.SIGKILL if arguments.signal is None else arguments.signal
    return _named(session.engine.kill(name, number=number) for name in arguments.container)


def _stop(session: Session, arguments: Namespace) -> object:
    return _named(session.engine.stop(name, grace=arguments.timeout) for name in arguments.container)


def _named(summaries: Iterable[ContainerSummary]) -> object:
    """Docker's answer: what was done is known, so the containers are named, a line each."""
    return tables.Message("\n".join(summary.name or summary.id[:12] for summary in summaries))


def _wait(session: Session, arguments: Namespace) -> object:
    return tables.Message("\n".join(str(session.engine.wait(name).exit_code) for name in arguments.container))


def _rename(session: Session, arguments: Namespace) -> object:
    summary = session.engine.rename(arguments.container, arguments.name)
    return tables.Message(f"{arguments.container} is now {summary.name}")


def _disk_usage(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    return tables.disk_usage_table(session.engine.disk_usage())


def _info(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    return tables.pairs_table(session.engine.info().items)


def _doctor(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    return tables.Report(session.engine.doctor())


def _version(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    return tables.pairs_table(session.engine.version().items)


def _help(session: Session, arguments: Namespace) -> object:
    if not arguments.verb:
        return tables.Message(overview(session.door, session.verbs))
    if len(arguments.verb) > 2:
        raise InvalidOption(f"help explains one verb, not {' '.join(arguments.verb)!r}")
    group = [verb for verb in session.verbs if verb.name.startswith(f"{arguments.verb[0]} ")]
    if group and len(arguments.verb) == 1:
        return tables.Message(_group_help(arguments.verb[0], group, session.door))
    return tables.Message(verb_help(find_verb(" ".join(arguments.verb), session.verbs, session.door), session.door))


# Readers of this table's own forms


def _read_last(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise InvalidOption(f"--last {text!r} is not a number of containers")
    return int(text)


# Options, most of them used by several verbs

_OF_ENDED = frozenset({"status", "exited", "before", "since"})
"""Filters that mean containers that have ended, too."""

_QUIET_PULL = Option(flags=("-q", "--quiet"), help="do not show the pull")
_PLATFORM = Option(
    flags=("--platform",),
    metavar="OS/ARCH",
    help="which of the image's platforms, for example linux/arm64",
    read=read_platform,
)
_NO_TRUNC = Option(flags=("--no-trunc",), help="show ids and texts in full")
_QUIET_IDS = Option(flags=("-q", "--quiet"), help="show only ids")
_IMAGE = Positional(name="IMAGE", help="an image name, for example debian or ghcr.io/org/tool:1.2", completes="image")
_CONTAINERS = Positional(name="CONTAINER", help="a name or an id", count="some", completes="container")
_RUNNING = Positional(name="CONTAINER", help="a name or an id", count="some", completes="running")

RUN = Verb(
    name="run",
    summary="Run a command in a fresh container of an image",
    description=(
        "The container is a copy-on-write view of the image and is thrown away afterwards, unless it was given a name."
        " Without COMMAND the image's own command runs."
    ),
    handler=_run,
    positionals=(
        Positional(
            name="IMAGE",
            help="an image name, pulled when it is not here; host is this machine's own file system",
            completes="image",
        ),
        Positional(name="COMMAND", help="the command and its arguments, verbatim", count="rest"),
    ),
    options=(
        Option(
            flags=("--name",),
            metavar="NAME",
            help="give the container a name, and keep it afterwards",
            read=read_choice("container name", r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", "analysis-1"),
        ),
        Option(flags=("--rm",), help="remove the container afterwards even if it has a name"),
        ENVIRONMENT,
        *MOUNT_OPTIONS,
        WORKING_DIRECTORY,
        USER,
        Option(
            flags=("--hostname",),
            metavar="NAME",
            help="the container's host name",
            read=read_choice("host name", r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?", "box-1"),
        ),
        Option(
            flags=("--entrypoint",),
            metavar="PROGRAM",
            help='run this instead of the image\'s entry point; "" for none',
        ),
        *NETWORK_OPTIONS,
        Option(flags=("--read-only",), help="make the container's file system read-only"),
        Option(
            flags=("--pull",),
            metavar="{missing,always,never}",
            choices=("missing", "always", "never"),
            help="when to ask the registry; missing is the default",
        ),
        _PLATFORM,
        TIMEOUT,
        Option(
            flags=("--failed",),
            help="run in the state of the failed step of the last build, instead of an image; all words are COMMAND",
        ),
        Option(flags=("--before",), help="with --failed, the state before that step"),
        *LIMIT_OPTIONS,
        *SANDBOX_OPTIONS,
        DETACH,
        *SERVICE_OPTIONS,
        *CELL_OPTIONS,
        *TERMINAL_OPTIONS,
        _QUIET_PULL,
    ),
    examples=(
        "run debian cat /etc/os-release",
        "run -e GREETING=hello --timeout 1m30s debian sh -c 'echo $GREETING'",
        "run --memory 512m --cpus 1.5 --pids-limit 100 python python -c 'print(1)'",
        "run --name work debian apt-get update",
        "run -it debian bash",
        "run -d --name web --restart on-failure:5 nginx",
    ),
)

_WAITED_FOR = frozenset({"detach", "out", "err", "failed", "before"})
CREATE = Verb(
    name="create",
    summary="Make a container that start can start, on behind",
    description="Takes the options of run. Nothing of it runs until start.",
    handler=_create,
    positionals=RUN.positionals,
    options=tuple(option for option in RUN.options if option.name not in _WAITED_FOR),
    examples=("create --name web --restart always nginx",),
)

VERBS: tuple[Verb, ...] = (
    RUN,
    CREATE,
    *COMMAND_VERBS,
    Verb(
        name="pull",
        summary="Fetch an image from its registry",
        description="Layers that are here already are not fetched again. Docker's own credentials file is used.",
        handler=_pull,
        positionals=(_IMAGE,),
        options=(_PLATFORM, _QUIET_PULL),
        examples=("pull debian", "pull --platform linux/arm64 debian:12"),
    ),
    Verb(
        name="images",
        summary="List the images that are here",
        handler=_images,
        positionals=(
            Positional(
                name="IMAGE",
                help="only this repository, or a pattern such as 'deb*'",
                count="optional",
                completes="stored",
            ),
        ),
        options=(
            _QUIET_IDS,
            _NO_TRUNC,
            Option(flags=("--digests",), help="show manifest digests too"),
            filter_option(IMAGE_FILTERS),
            FORMAT,
        ),
        examples=("images", "images -q --no-trunc"),
    ),
    Verb(
        name="rmi",
        summary="Remove images",
        description="Takes the name away; the image and its layers go with the last name that used them.",
        handler=_remove_images,
        positionals=(Positional(name="IMAGE", help="a name or an id", count="some", completes="stored"),),
        options=(
            Option(flags=("-f", "--force"), help="remove an id with all its names, and images in use by containers"),
        ),
        examples=("rmi debian:12",),
    ),
    Verb(
        name="tag",
        summary="Give an image another name",
        handler=_tag,
        positionals=(
            Positional(name="IMAGE", help="an image that is here", completes="stored"),
            Positional(name="NAME", help="its further name"),
        ),
        examples=("tag debian:12 class/base",),
    ),
    Verb(
        name="inspect",
        summary="Show everything known of an image, container or volume",
        description="One name answers an object, several a list of them.",
        handler=_inspect,
        positionals=(
            Positional(name="NAME", help="an image, a container or a volume", count="some", completes="either"),
        ),
        examples=("inspect debian",),
    ),
    Verb(
        name="history",
        summary="Show how an image was made, newest step first",
        handler=_history,
        positionals=(Positional(name="IMAGE", help="an image that is here", completes="stored"),),
        options=(_NO_TRUNC,),
        examples=("history debian",),
    ),
    Verb(
        name="ps",
        summary="List containers",
        handler=_containers,
        options=(
            Option(flags=("-a", "--all"), help="those that ended, too"),
            filter_option(CONTAINER_FILTERS),
            Option(flags=("-n", "--last"), metavar="N", help="the N newest, ended ones among them", read=_read_last),
            Option(flags=("-l", "--latest"), help="the newest, ended or not"),
            _QUIET_IDS,
            _NO_TRUNC,
            FORMAT,
        ),
        examples=("ps -a", "ps --filter status=exited --filter label=course"),
        aliases=("ls",),
    ),
    Verb(
        name="stop",
        summary="End running containers, in good order",
        description=(
            "The image's stop signal (SIGTERM, as a rule) goes to the command and its process group; what still runs"
            " after the grace is ended with every process of the container. Works on containers of all your"
            " notebooks; the cell that ran it says that it was stopped."
        ),
        handler=_stop,
        positionals=(_RUNNING,),
        options=(GRACE,),
        examples=("stop work", "stop -t 2 work"),
    ),
    Verb(
        name="kill",
        summary="Send a signal to running containers; ends them at once unless told otherwise",
        description=(
            "SIGKILL ends every process of the container. Any other signal goes to its command alone, as in docker."
        ),
        handler=_kill,
        positionals=(_RUNNING,),
        options=(
            Option(
                flags=("-s", "--signal"),
                metavar="SIGNAL",
                help="a name or a number, for example HUP; KILL is the default",
                read=signal_number,
            ),
        ),
        examples=("kill work", "kill -s USR1 work"),
    ),
    Verb(
        name="wait",
        summary="Wait until containers have ended, and show their exit codes",
        handler=_wait,
        positionals=(_RUNNING,),
        examples=("wait work",),
    ),
    Verb(
        name="rename",
        summary="Give a container another name",
        description="It may be running.",
        handler=_rename,
        positionals=(
            Positional(name="CONTAINER", help="a name or an id", completes="container"),
            Positional(name="NAME", help="its new name"),
        ),
        examples=("rename work analysis-1",),
    ),
    Verb(
        name="rm",
        summary="Remove containers",
        handler=_remove_containers,
        positionals=(_CONTAINERS,),
        options=(
            Option(flags=("-f", "--force"), help="end it first when it is running"),
            Option(flags=("-v", "--volumes"), help="remove the volumes that were made for it, too"),
        ),
        examples=("rm work", "rm -v work"),
    ),
    *service_verbs(RAISING),
    *FILE_VERBS,
    *BUILD_VERBS,
    *RESOURCE_VERBS,
    *VOLUME_VERBS,
    *NETWORK_VERBS,
    Verb(
        name="df",
        summary="Show what the local store takes",
        handler=_disk_usage,
        examples=("df",),
    ),
    Verb(
        name="info",
        summary="Show the status: the store, the runtime tier, the settings",
        handler=_info,
        examples=("info",),
    ),
    Verb(
        name="doctor",
        summary="Try what this machine can do, and say how to fix what it cannot",
        description="Each line is a real attempt. Paste the report into a bug report.",
        handler=_doctor,
        examples=("doctor",),
    ),
    Verb(
        name="version",
        summary="Show the versions of this package and what it stands on",
        handler=_version,
        examples=("version",),
    ),
    Verb(
        name="help",
        summary="Show the verbs, or the help of one",
        handler=_help,
        positionals=(Positional(name="VERB", help="a verb", count="any", completes="verb"),),
        examples=("help", "help run"),
    ),
)

CELL_VERBS: tuple[Verb, ...] = (RUN, EXEC)
"""The verbs that may stand on the first line of a cell; without one, RUN is meant."""


# Help and reference


def _group_help(name: str, group: Sequence[Verb], door: Door) -> str:
    """What ``volume -h`` shows."""
    prefix = PREFIX[door]
    verbs = columns([(verb.name, verb.summary) for verb in group])
    return f"usage: {prefix} {name} …\n\nverbs:\n{verbs}\n\n{prefix} {name} … -h shows the options of one."


def overview(door: Door, table: Sequence[Verb]) -> str:
    """What ``help`` shows without a verb."""
    prefix = PREFIX[door]
    verbs = [(verb.name, verb.summary) for verb in table]
    cell = (
        "  %%container [OPTIONS] IMAGE                     run the cell below it in a fresh container\n"
        "  %%container [OPTIONS] IMAGE COMMAND [ARG…]      give the cell to COMMAND as its input\n"
        "  %%container exec [OPTIONS] CONTAINER            run the cell in a container that runs already\n"
        "  %%dockerfile [OPTIONS] [PATH]                   build an image of the cell, a Dockerfile\n"
        if door == "notebook"
        else ""
    )
    plain = f"  {prefix:<48}show the status\n" if door == "notebook" else ""
    return (
        f"Run commands in copy-on-write containers: no daemon, no root.\n\nusage:\n{cell}  {prefix + ' VERB …':<48}"
        f"one of the verbs below\n{plain}\nverbs:\n{columns(verbs)}\n\n"
        f"{prefix} VERB -h shows the options of one. Images are named as everywhere: debian, python:3.12,\n"
        "ghcr.io/org/tool, name@sha256:…; host is this machine's own file system, copy-on-write."
    )


def reference_markdown(further: Sequence[Verb] = ()) -> str:
    """The reference page of the documentation; `further` are verbs that one door has of its own."""
    known = (*VERBS, *further)
    parts = [
        "# Reference\n",
        (
            "Every verb works as `%container VERB` in a notebook and as `nbcontainer VERB` in a terminal."
            " `%%container [OPTIONS] IMAGE [COMMAND ARG…]` takes the options of [`run`](#run): the cell is a script for"
            " `sh`, for its `#!` line or for `--shell`; with a COMMAND it is the command's standard input."
            " In a notebook, options and image names may name variables in braces, as in `-v {folder}:/data`;"
            " a COMMAND is taken as it is.\n"
        ),
        "| Verb | |\n| --- | --- |",
        "\n".join(f"| [`{verb.name}`](#{verb.name.replace(' ', '-')}) | {_cell(verb.summary)} |" for verb in known)
        + "\n",
        *(_verb_markdown(verb) for verb in known),
    ]
    return "\n".join(parts)


def _verb_markdown(verb: Verb) -> str:
    line = usage(verb, verb.door or "notebook").partition(" ")[2]
    parts = [f"## {verb.name}\n", f"{verb.summary}.\n", f"```\n{line}\n```\n"]
    if verb.description:
        parts.append(f"{verb.description}\n")
    rows = [f"| `{positional.name}` | {_cell(positional.help)} |" for positional in verb.positionals]
    rows += [
        f"| `{_cell(option.label)}` | {_cell(option_help(option))}{_door_note(option.door)} |"
        for option in verb.options
        if not option.refusal
    ]
    if rows:
        parts.append("| | |\n| --- | --- |\n" + "\n".join(rows) + "\n")
    if verb.aliases:
        parts.append(f"Also called {', '.join(f'`{alias}`' for alias in verb.aliases)}.\n")
    if verb.examples:
        prefix = PREFIX[verb.door or "notebook"]
        parts.append("```\n" + "\n".join(f"{prefix} {example}" for example in verb.examples) + "\n```\n")
    return "\n".join(parts)


def _door_note(door: Door | None) -> str:
    return f" ({door} only)" if door else ""


def _cell(text: str) -> str:
    """Text inside a markdown table."""
    return text.replace("|", "\\|").replace("*", "\\*")
