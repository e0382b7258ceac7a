"""The verbs that move files: `cp`, `diff`, `commit`, `export`; part of the one table in `nbcontainer.engine.verbs`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from nbcontainer.engine import tables
from nbcontainer.engine.command_line import Option, Positional, Verb
from nbcontainer.errors import InvalidOption

if TYPE_CHECKING:
    from argparse import Namespace

    from nbcontainer.engine.door import Session
    from nbcontainer.engine.views import CopyResult

__all__ = ["FILE_VERBS", "Place"]

_STREAM = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One side of a copy as typed: a path in a container, or one of this machine (`container` is empty)."""

    container: str
    path: str

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``CONTAINER:PATH`` or ``PATH``, as docker does: a name with a colon is local after ``/`` or ``./``."""
        container, colon, path = text.partition(":")
        if not colon or not container or text.startswith(("/", ".", "~")):
            return cls(container="", path=text)
        if not path:
            raise InvalidOption(f"{text!r} names a container and no path in it; write {text}/ for its root")
        return cls(container=container, path=path)

    @property
    def streams(self) -> bool:
        """Whether it is a tar on standard input or output."""
        return not self.container and self.path == _STREAM

    def __str__(self) -> str:
        return f"{self.container}:{self.path}" if self.container else self.path


def _copy(session: Session, arguments: Namespace) -> object:
    source, target = Place.parse(arguments.source), Place.parse(arguments.target)
    if bool(source.container) == bool(target.container):
        both = "both sides are in containers: copy to this machine first, and from here to the other"
        none = "neither side is in a container: write one of them as CONTAINER:PATH"
        raise InvalidOption(f"cp {source} {target}: {both if source.container else none}")
    switches = {"archive": arguments.archive, "follow_link": arguments.follow_link}
    engine = session.engine
    if source.container:
        streamed = target.streams
        there = _standard_output(session, "cp") if streamed else os.path.expanduser(target.path)
        result = engine.copy_from(source.container, source.path, there, **switches)
    else:
        streamed = False
        here = _standard_input(session) if source.streams else os.path.expanduser(source.path)
        result = engine.copy_to(here, target.container, target.path, **switches)
    return _said(session, result, quiet=arguments.quiet or streamed, what=f"{source} to {target}")


def _said(session: Session, result: CopyResult, *, quiet: bool, what: str) -> object:
    """What was left out is said even when the rest is not."""
    for notice in result.notices:
        session.output("stderr", f"{tables.printable(notice)}\n".encode())
    if quiet:
        return None
    entries = "1 entry" if result.entries == 1 else f"{result.entries} entries"
    return tables.Message(f"copied {what}: {entries}, {tables.size_text(result.bytes)}")


def _standard_output(session: Session, verb: str) -> BinaryIO:
    if session.door == "notebook":
        raise InvalidOption(f"{verb} cannot write a tar into a notebook; name a file or folder")
    if sys.stdout.isatty():
        raise InvalidOption("a tar is not written to a terminal; redirect the output, as in … > files.tar")
    return sys.stdout.buffer


def _standard_input(session: Session) -> BinaryIO:
    if session.door == "notebook":
        raise InvalidOption("cp cannot read a tar from a notebook's input; name a file or folder")
    if sys.stdin.isatty():
        raise InvalidOption("a tar is not read from a terminal; redirect the input, as in … < files.tar")
    return sys.stdin.buffer


def _diff(session: Session, arguments: Namespace) -> object:
    return tables.Changes(session.engine.diff(arguments.container))


def _commit(session: Session, arguments: Namespace) -> object:
    made = session.engine.commit(
        arguments.container,
        arguments.name or "",
        message=arguments.message or "",
        author=arguments.author or "",
        changes=arguments.change,
        pause=arguments.pause,
    )
    for notice in made.notices:
        session.output("stderr", f"{tables.printable(notice)}\n".encode())
    return tables.Message(str(made.image.id))


def _export(session: Session, arguments: Namespace) -> object:
    if arguments.output:
        result = session.engine.export(arguments.container, os.path.expanduser(arguments.output))
        return _said(session, result, quiet=False, what=f"{arguments.container} to {arguments.output}")
    if session.door == "notebook":
        raise InvalidOption("export needs a file in a notebook: export -o FILE CONTAINER")
    result = session.engine.export(arguments.container, _standard_output(session, "export"))
    return _said(session, result, quiet=True, what="")


_CONTAINER = Positional(name="CONTAINER", help="a name or an id, running or ended", completes="container")

FILE_VERBS: tuple[Verb, ...] = (
    Verb(
        name="cp",
        summary="Copy files between a container and this machine",
        description=(
            "One side is CONTAINER:PATH. As docker: a folder is copied into an existing target folder, what is in it"
            " when the source ends with /.; a target that ends with / must exist. In a terminal - is a tar on standard"
            " output or input. Works on running containers, volumes included, and on kept ones that have ended."
        ),
        handler=_copy,
        positionals=(
            Positional(name="SOURCE", help="CONTAINER:PATH or a path of this machine"),
            Positional(name="TARGET", help="a path of this machine or CONTAINER:PATH"),
        ),
        options=(
            Option(
                flags=("-a", "--archive"), help="keep owners and set-user-id bits; out of a container this takes root"
            ),
            Option(flags=("-L", "--follow-link"), help="copy what a link at the end of SOURCE points to"),
            Option(flags=("-q", "--quiet"), help="do not say what was copied"),
        ),
        examples=("cp data.csv work:/root/", "cp work:/out/report.pdf .", "cp work:/out/. results"),
    ),
    Verb(
        name="diff",
        summary="Show which files a container added (A), changed (C) or deleted (D)",
        handler=_diff,
        positionals=(_CONTAINER,),
        examples=("diff work",),
    ),
    Verb(
        name="commit",
        summary="Make an image of what a container has changed",
        description=(
            "The image is that of the container with one layer more. Its settings are kept unless --change says"
            " otherwise: options of the run, variables with secrets among them, are not written into it. Without NAME"
            " it is called by its id."
        ),
        handler=_commit,
        positionals=(
            _CONTAINER,
            Positional(name="NAME", help="NAME[:TAG] of the new image", count="optional"),
        ),
        options=(
            Option(flags=("-m", "--message"), metavar="TEXT", help="a comment for the image's history"),
            Option(flags=("-a", "--author"), metavar="NAME", help="who made it, for example 'Ada <ada@example.org>'"),
            Option(
                flags=("-c", "--change"),
                metavar="INSTRUCTION",
                many=True,
                help="CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, USER, VOLUME or WORKDIR, as in a Dockerfile",
            ),
            Option(
                flags=("-p", "--pause"),
                help="hold a running container still meanwhile; it is committed as it is found otherwise",
            ),
        ),
        examples=("commit work class/base:2", "commit -m 'with pandas' -c 'ENV LANG=C.UTF-8' work"),
    ),
    Verb(
        name="export",
        summary="Write all files of a container as one tar",
        description="Image and changes in one, without volumes. In a terminal it goes to standard output.",
        handler=_export,
        positionals=(_CONTAINER,),
        options=(Option(flags=("-o", "--output"), metavar="FILE", help="write it to this file"),),
        examples=("export -o root.tar work",),
    ),
)
