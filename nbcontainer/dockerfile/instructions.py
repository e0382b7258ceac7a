"""One frozen value for each instruction of a Dockerfile.

A value holds what was written, *unexpanded*: a word keeps its quotes, escapes and variables until
`nbcontainer.dockerfile.expansion.expand` makes the expanded value of the same class. Each class says which of its
fields are expanded then; all others are final as they are. Two values are equal when they mean the same, wherever they
stand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from nbcontainer.dockerfile.forms import split_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.dockerfile.lines import Heredoc, Origin
    from nbcontainer.dockerfile.mounts import RunMount

__all__ = [
    "Add",
    "Arg",
    "Argument",
    "Cmd",
    "Command",
    "Copy",
    "Entrypoint",
    "Env",
    "ExecForm",
    "Expose",
    "From",
    "Healthcheck",
    "Instruction",
    "Label",
    "Maintainer",
    "Onbuild",
    "Pair",
    "Run",
    "Shell",
    "ShellForm",
    "Stopsignal",
    "Transfer",
    "User",
    "Volume",
    "Workdir",
]


@dataclass(frozen=True, slots=True)
class ShellForm:
    """A command line for the shell in force (SHELL, or ``/bin/sh -c``); never expanded by the builder."""

    text: str

    def arguments(self, shell: Sequence[str]) -> tuple[str, ...]:
        """What is executed."""
        return (*shell, self.text)


@dataclass(frozen=True, slots=True)
class ExecForm:
    """The arguments of a command, from a JSON array; no shell, never expanded."""

    words: tuple[str, ...]

    def arguments(self, shell: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - the same question to both forms
        """What is executed."""
        return self.words


Command = ShellForm | ExecForm


@dataclass(frozen=True, slots=True)
class Pair:
    """``name=value`` of ENV and LABEL; `legacy` is the old form ``ENV name value``."""

    name: str
    value: str
    legacy: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Argument:
    """``name[=default]`` of ARG; the default is None, not "", when there is none."""

    name: str
    default: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What all have.

    `code` is the instruction on one line, as BuildKit's history shows it; `keyword` is its name as it was typed;
    `comments` is the comment block directly above; `origin` has its physical lines.
    """

    NAME: ClassVar[str] = ""

    origin: Origin = field(compare=False, repr=False)
    code: str = field(compare=False)
    keyword: str = field(default="", compare=False, repr=False)
    comments: tuple[str, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """``FROM [--platform=P] IMAGE [AS NAME]``. Expanded, with global arguments only: `image`, `platform`.

    `name` is lower case, as stage names are compared; `written_name` and `as_keyword` are as typed, for checks.
    """

    NAME: ClassVar[str] = "FROM"

    image: str
    platform: str = ""
    name: str = ""
    written_name: str = field(default="", compare=False, repr=False)
    as_keyword: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """``RUN [--mount=…] [--network=N] [--security=S] COMMAND``. Expanded: `mount_flags`, option by option.

    `mounts` are the flags as typed values. It has them from the start when no flag holds a variable, and always after
    expansion; until then a flag with a variable keeps it empty. The command and its heredocs are the shell's: never
    expanded here.
    """

    NAME: ClassVar[str] = "RUN"

    command: Command
    heredocs: tuple[Heredoc, ...] = ()
    mount_flags: tuple[str, ...] = ()
    mounts: tuple[RunMount, ...] = ()
    network: str = "default"
    security: str = "sandbox"

    @property
    def script(self) -> Heredoc | None:
        """The heredoc that is the whole command, as in ``RUN <<EOF``; None when there is something beside it.

        When its body starts with ``#!`` it is to be written to a file and executed, else the shell gets the body.
        """
        if len(self.heredocs) != 1 or not isinstance(self.command, ShellForm):
            return None
        return self.heredocs[0] if len(split_words(self.command.text, "\\")) == 1 else None

    def arguments(self, shell: Sequence[str]) -> tuple[str, ...]:
        """What is executed, with the bodies of heredocs put back for the shell; a ``#!`` `script` is the caller's."""
        if script := self.script:
            return (*shell, script.body)
        if isinstance(self.command, ExecForm):
            return self.command.words
        parts = [self.command.text, *(f"{each.content}{each.name}" for each in self.heredocs)]
        return (*shell, "\n".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer(Instruction):
    """What COPY and ADD share. Expanded: `sources`, `destination`, `owner`, `mode`, and heredocs.

    `sources` are paths (or URLs) without the heredocs, which are in `heredocs`: a file each, by their name, whose
    content is expanded unless the word was quoted. `owner` is the text of --chown, `mode` of --chmod (see `Chmod`).
    `excludes` are never expanded, as in BuildKit; they are rules for `Ignore`.
    """

    sources: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    destination: str = ""
    owner: str = ""
    mode: str = ""
    link: bool = False
    excludes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Transfer):
    """``COPY [--from=F] [--chown] [--chmod] [--link] [--parents] [--exclude] SOURCE… DESTINATION``.

    `from_` is a stage's name or number, an image or a named context, and is never expanded: a variable in it is an
    error when the line is read, as in BuildKit.
    """

    NAME: ClassVar[str] = "COPY"

    from_: str = ""
    parents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(Transfer):
    """``ADD [--checksum] [--keep-git-dir] [--unpack] … SOURCE… DESTINATION``. Expanded too: `checksum`.

    `unpack` is None when the flag is absent: local archives are unpacked then and downloaded ones are not.
    """

    NAME: ClassVar[str] = "ADD"

    checksum: str = ""
    keep_git_dir: bool = False
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    """``ENV name=value …``. Expanded: names and values, all in the environment before the instruction."""

    NAME: ClassVar[str] = "ENV"

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """``ARG name[=default] …``. Expanded: defaults, each of which sees the names to its left.

    Who has --build-args asks `nbcontainer.dockerfile.expansion.assign_arguments` instead of `expand`.
    """

    NAME: ClassVar[str] = "ARG"

    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    """``LABEL name=value …``. Expanded: names and values."""

    NAME: ClassVar[str] = "LABEL"

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    """``MAINTAINER NAME``, deprecated. Not expanded."""

    NAME: ClassVar[str] = "MAINTAINER"

    author: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    """``EXPOSE PORT[-PORT][/PROTOCOL] …``. Expanded into several words each: `ports` (see `exposed_ports`)."""

    NAME: ClassVar[str] = "EXPOSE"

    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    """``VOLUME PATH …`` or a JSON array. Expanded: `paths`."""

    NAME: ClassVar[str] = "VOLUME"

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    """``USER NAME[:GROUP]``. Expanded: `user`."""

    NAME: ClassVar[str] = "USER"

    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    """``WORKDIR PATH``, relative to the one before. Expanded: `path`."""

    NAME: ClassVar[str] = "WORKDIR"

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Instruction):
    """``CMD COMMAND``. Not expanded. An empty exec form is no command at all."""

    NAME: ClassVar[str] = "CMD"

    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Instruction):
    """``ENTRYPOINT COMMAND``. Not expanded. ``ENTRYPOINT []`` takes an inherited one away."""

    NAME: ClassVar[str] = "ENTRYPOINT"

    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """``HEALTHCHECK [flags] CMD COMMAND`` or ``HEALTHCHECK NONE`` (`command` is None). Not expanded.

    Times are in nanoseconds, as an image's config has them; 0 (and 0 retries) leaves the default to who runs it.
    """

    NAME: ClassVar[str] = "HEALTHCHECK"

    command: Command | None = None
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0

    @property
    def test(self) -> tuple[str, ...]:
        """The command as an image's config has it: ``NONE``, or ``CMD`` or ``CMD-SHELL`` and its arguments."""
        if self.command is None:
            return ("NONE",)
        if isinstance(self.command, ExecForm):
            return ("CMD", *self.command.words)
        return ("CMD-SHELL", self.command.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopsignal(Instruction):
    """``STOPSIGNAL SIGNAL``. Expanded: `signal`."""

    NAME: ClassVar[str] = "STOPSIGNAL"

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    """``SHELL ["program", "argument", …]``. Not expanded."""

    NAME: ClassVar[str] = "SHELL"

    shell: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    """``ONBUILD INSTRUCTION``. Not expanded: a trigger is, where it runs.

    `expression` is what an image's config keeps: the instruction's text, heredoc bodies included, that
    `nbcontainer.dockerfile.parser.parse_trigger` reads again in the build that uses the image. `trigger` is it, read.
    """

    NAME: ClassVar[str] = "ONBUILD"

    expression: str
    trigger: Instruction
