"""What the two doors, notebook and terminal, share and where they differ.

A *door* is a place people type commands: cells and line magics in a notebook, ``nbcontainer`` in a terminal. The
verbs are the same in both (`nbcontainer.engine.verbs`); what differs is collected in one small protocol, `Session`:
how a pull is shown, where output goes, and how a run is carried out with the door's own standard input and error
habits.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from nbcontainer.build.request import BuildOptions
from nbcontainer.model import ExecOptions, RunOptions
from nbcontainer.runtime.console import DETACH_KEYS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from nbcontainer.engine.command_line import Verb
    from nbcontainer.engine.engine import Engine
    from nbcontainer.model import Listener, NetworkMode

__all__ = [
    "FAILED",
    "Door",
    "FailedState",
    "SecretSource",
    "Session",
    "Typed",
    "TypedAttach",
    "TypedBuild",
    "TypedExec",
    "TypedRun",
    "TypedStart",
    "hints",
    "input_hint",
    "network_hint",
    "owner_hint",
    "worded",
]

Door = Literal["notebook", "terminal"]
FailedState = Literal["", "before", "after"]
FAILED = "(failed step)"
"""What stands for an image where the state of a failed build step is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedRun:
    """A ``run`` as typed: what the engine needs, and what only the door needs (`out` to `interactive`).

    `out` and `err` name user variables that take the text of a stream instead of the screen. With `failed` it runs in
    the state of the last build's failed step, and `image` says nothing. `behind` is for one that is not waited for: it
    is started, or only made.
    """

    image: str
    command: tuple[str, ...] = ()
    options: RunOptions = field(default_factory=RunOptions)
    shell: tuple[str, ...] = ()
    out: str = ""
    err: str = ""
    quiet: bool = False
    raise_error: bool = True
    expand: bool = False
    interactive: bool = False
    detach_keys: bytes = DETACH_KEYS
    failed: FailedState = ""
    behind: Literal["", "start", "create"] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSource:
    """Where the value of a ``--secret`` is: a file, a variable of the environment, or one of the notebook."""

    id: str
    kind: Literal["file", "environment", "variable"]
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedBuild:
    """A ``build`` as typed: `options` as far as they are known, and what the door has to look up.

    `path` is the context: a folder, a tar file, ``-`` for what the door has for input, or "" for its default.
    `variables` are those of the notebook that become files of the context.
    """

    path: str = ""
    options: BuildOptions = field(default_factory=BuildOptions)
    variables: tuple[str, ...] = ()
    secrets: tuple[SecretSource, ...] = ()
    progress: str = "auto"
    quiet: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedExec:
    """An ``exec`` as typed; the fields of both are those of `TypedRun`."""

    container: str
    command: tuple[str, ...] = ()
    options: ExecOptions = field(default_factory=ExecOptions)
    shell: tuple[str, ...] = ()
    out: str = ""
    err: str = ""
    raise_error: bool = True
    expand: bool = False
    interactive: bool = False
    detach_keys: bytes = DETACH_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedStart:
    """A ``start`` or ``restart`` as typed: `grace` is for the one that runs, `timeout` for the one that is started.

    With `attach` it is one that runs on behind, and is shown all the same.
    """

    container: str
    restart: bool = False
    grace: float | None = None
    timeout: float | None = None
    out: str = ""
    err: str = ""
    raise_error: bool = True
    interactive: bool = False
    detach_keys: bytes = DETACH_KEYS
    attach: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedAttach:
    """An ``attach`` as typed; `stdin` and `pass_signals` are for a terminal."""

    container: str
    stdin: bool = True
    pass_signals: bool = True
    detach_keys: bytes = DETACH_KEYS
    raise_error: bool = True


Typed = TypedRun | TypedExec | TypedStart | TypedAttach


class Session(Protocol):
    """What a verb's handler may ask of the door it was called through."""

    @property
    def door(self) -> Door:
        """Which door this is."""

    @property
    def verbs(self) -> Sequence[Verb]:
        """The verbs known here."""

    @property
    def engine(self) -> Engine:
        """The door's one engine, made on first use."""

    def pulling(self, image: str, *, quiet: bool) -> AbstractContextManager[Listener]:
        """Show a pull of `image` while the block runs; with `quiet`, or when nothing is pulled, show nothing."""

    def execute(self, request: Typed) -> object:
        """Run a command with the door's input and output; answer what the door shows or exits with."""

    def build(self, request: TypedBuild) -> object:
        """Build an image with the door's input and display; answer what the door shows."""

    def output(self, stream: Literal["stdout", "stderr"], data: bytes) -> None:
        """Write a container's bytes where the door shows that stream."""


_NOTEBOOK_WORDS = re.compile(r"(?<![%\w])%container\b")
_NOTEBOOK_SETTINGS = re.compile(r" or %config [\w.]+")


def worded(text: str, door: Door) -> str:
    """A sentence of the engine in the words of a door: below, every verb is written as a notebook has it.

    >>> worded("no container 'x'; `%container ps -a` lists those that are here", "terminal")
    "no container 'x'; `nbcontainer ps -a` lists those that are here"
    """
    if door == "notebook":
        return text
    return _NOTEBOOK_WORDS.sub("nbcontainer", _NOTEBOOK_SETTINGS.sub("", text))


_FAILED_LOOKUP = re.compile(
    r"temporary failure resolving"  # apt
    r"|could not resolve (?:host|proxy)"  # curl, git
    r"|temporary failure in name resolution|name or service not known"  # glibc, Python, pip
    r"|name does not resolve|try again\b.*resol"  # musl
    r"|bad address '"  # busybox
    r"|unable to resolve host address"  # wget
    r"|getaddrinfo|EAI_AGAIN|ENOTFOUND"  # node, R, Go, ruby
    r"|no such host|lookup \S+ on \S+: dial"  # Go
    r"|network is unreachable|failed to lookup address information",  # sockets, Rust
    re.IGNORECASE,
)


def network_hint(stderr: str, network: NetworkMode | None) -> str:
    """The sentence for a run that looked a name up without a network, else "".

    Asked of every finished run, not only of failed ones: ``apt-get update`` ends with 0 when it reached nobody.
    """
    if network not in {None, "none"} or not _FAILED_LOOKUP.search(stderr):
        return ""
    return "this container has no network; --network bridge gives it one of its own, --network host the machine's"


_NOT_YOURS = re.compile(r"permission denied|value too large for defined data type|\[errno (?:13|75)\]", re.IGNORECASE)


def owner_hint(image: str, stderr: str, *, root: bool) -> str:
    """The sentence for an ordinary user's run on the host image that met a file of somebody else's, else "".

    Such a file can be read as far as the user may, and not changed: its ids do not exist in the container, so the
    kernel refuses to copy it up (EOVERFLOW).
    """
    if root or image != "host" or not _NOT_YOURS.search(stderr):
        return ""
    return "on the host image, files of this machine that are not yours are read-only"


_NO_INPUT = re.compile(r"^EOFError: EOF when reading a line", re.MULTILINE)
_NO_TERMINAL = re.compile(
    r"(?:input|output|stdin|stdout) is not (?:from |to )?a (?:terminal|tty)|not a tty\b|/dev/tty: no such device",
    re.IGNORECASE,
)


def input_hint(stderr: str, *, interactive: bool, terminal: bool) -> str:
    """The sentence for a command that looked for input or for a terminal and had none, else ""."""
    if not terminal and _NO_TERMINAL.search(stderr):
        return "the command looks for a terminal; -it gives it one"
    if not interactive and _NO_INPUT.search(stderr):
        return "the command reads its input and has none; with -i, a cell asks for it and a terminal passes it on"
    return ""


def hints(
    image: str, stderr: str, network: NetworkMode | None, *, interactive: bool = False, terminal: bool = False
) -> tuple[str, ...]:
    """Every sentence that may help after a run that wrote `stderr`."""
    found = (
        network_hint(stderr, network),
        owner_hint(image, stderr, root=os.geteuid() == 0),
        input_hint(stderr, interactive=interactive, terminal=terminal),
    )
    return tuple(hint for hint in found if hint)
