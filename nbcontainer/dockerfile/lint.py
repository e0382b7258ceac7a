"""Checks of what is allowed and yet not wise, under the names that BuildKit gives them.

Each check is data: a name, a sentence, and a function from a `Subject` to findings. The directive ``# check=`` chooses:
``skip=NAME,NAME`` (or ``all``), ``error=true`` to make findings fatal, ``experimental=NAME`` (or ``all``) for the
checks that are off by default. Only the text is looked at, and .dockerignore where there is one; what needs the base
image (InvalidBaseImagePlatform) is for who has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING

from nbcontainer.dockerfile.expansion import expand, global_arguments
from nbcontainer.dockerfile.globs import has_wildcards
from nbcontainer.dockerfile.instructions import (
    Add,
    Arg,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Shell,
    ShellForm,
    Workdir,
)
from nbcontainer.dockerfile.lines import Directives, Finding
from nbcontainer.errors import DockerfileError, InvalidReference
from nbcontainer.model import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from nbcontainer.dockerfile.ignore import Ignore
    from nbcontainer.dockerfile.parser import Dockerfile, Stage

__all__ = ["CHECKS", "PLATFORM_ARGUMENTS", "Check", "Choice", "Report", "Subject", "lint"]

PLATFORM_ARGUMENTS = (
    *(f"{side}{what}" for side in ("BUILD", "TARGET") for what in ("PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT")),
    "TARGETSTAGE",
)
"""What the builder sets: global in FROM lines, and in a stage after ``ARG NAME``."""

_SECRET = re.compile(
    r"(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)", re.IGNORECASE
)
_PUBLIC = re.compile(r"(?:_|^)public(?:_|$)", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|git@", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is checked. `inherited` gives the variables that a base image sets, where they are known."""

    dockerfile: Dockerfile
    ignore: Ignore | None = None
    inherited: Mapping[str, Collection[str]] = field(default_factory=dict)

    @property
    def escape(self) -> str:
        """The escape character in force."""
        return self.dockerfile.directives.escape

    def instructions(self) -> Iterator[Instruction]:
        """All of them in order, FROMs and global ARGs included."""
        yield from self.dockerfile.arguments
        for stage in self.dockerfile.stages:
            yield stage.base
            yield from stage.instructions

    def parent(self, stage: Stage) -> Stage | None:
        """The earlier stage that a stage begins with, when its name has no variable."""
        return self.dockerfile.stage(stage.base.image, before=stage.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check; `find` yields (where, what to say)."""

    name: str
    description: str
    find: Callable[[Subject], Iterator[tuple[Instruction, str]]]
    experimental: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the directive ``# check=`` says."""

    skip: frozenset[str] = frozenset()
    error: bool = False
    experimental: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, directives: Directives) -> Choice:
        """Read the directive; raises `DockerfileError` for what it does not know. Names of checks may be any."""
        choice = cls()
        for part in filter(None, (part.strip() for part in directives.check.split(";"))):
            key, equals, value = (each.strip() for each in part.partition("="))
            names = frozenset(filter(None, (name.strip() for name in value.split(","))))
            if key == "error" and value.lower() in {"true", "1", "false", "0"}:
                choice = replace(choice, error=value.lower() in {"true", "1"})
            elif key == "skip" and equals:
                choice = replace(choice, skip=names)
            elif key == "experimental" and equals:
                choice = replace(choice, experimental=names)
            else:
                assert directives.origin is not None
                raise directives.origin.error(
                    f"the check directive has {part!r}; write skip=NAME,NAME or error=true, with ';' between them"
                )
        return choice

    def wants(self, check: str, *, experimental: bool = False) -> bool:
        """Whether a check of this name is to be made."""
        if self.skip & {check, "all"}:
            return False
        return not experimental or bool(self.experimental & {check, "all"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Findings in the order of their lines; `fatal` when there are some and the directive makes them errors."""

    findings: tuple[Finding, ...]
    fatal: bool = False


def lint(
    dockerfile: Dockerfile,
    *,
    ignore: Ignore | None = None,
    inherited: Mapping[str, Collection[str]] | None = None,
) -> Report:
    """Make all checks that are wanted.

    `inherited` maps the images of FROM lines, as written, to the names of variables they set. Where an image is not in
    it, a variable counts as undefined only when it looks like a slip. Raises `DockerfileError` for a wrong directive.
    """
    choice = Choice.parse(dockerfile.directives)
    subject = Subject(dockerfile=dockerfile, ignore=ignore, inherited=inherited or {})
    findings = [each for each in dockerfile.findings if choice.wants(each.check)]
    for check in CHECKS:
        if choice.wants(check.name, experimental=check.experimental):
            findings += [
                Finding(check=check.name, message=message, origin=where.origin)
                for where, message in check.find(subject)
            ]
    findings.sort(key=lambda each: each.origin.first)
    return Report(findings=tuple(findings), fatal=choice.error and bool(findings))


# --- stages -----------------------------------------------------------------------------------------------------------


def _stage_name_casing(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for stage in subject.dockerfile.stages:
        if stage.base.written_name != stage.name:
            yield stage.base, f"the stage name {stage.base.written_name!r} should be lower case: {stage.name!r}"


def _from_as_casing(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for stage in subject.dockerfile.stages:
        base = stage.base
        if base.as_keyword and (base.keyword.isupper(), base.keyword.islower()) != (
            base.as_keyword.isupper(),
            base.as_keyword.islower(),
        ):
            yield base, f"{base.keyword!r} and {base.as_keyword!r} should both be upper or both lower case"


def _duplicate_stage_name(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    seen: set[str] = set()
    for stage in subject.dockerfile.stages:
        if stage.name and stage.name in seen:
            yield stage.base, f"there is an earlier stage {stage.name!r}, which cannot be named from here on"
        seen.add(stage.name)


def _reserved_stage_name(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for stage in subject.dockerfile.stages:
        if stage.name in {"scratch", "context"}:
            yield stage.base, f"the stage name {stage.name!r} has a meaning of its own; choose another"


def _from_platform_const(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for stage in subject.dockerfile.stages:
        platform = stage.base.platform
        if platform and "$" not in platform and not any(part and part in stage.name for part in platform.split("/")):
            yield stage.base, f"--platform={platform} lets the stage be built for that platform only; leave it out"


def _redundant_target_platform(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for stage in subject.dockerfile.stages:
        if stage.base.platform in {"$TARGETPLATFORM", "${TARGETPLATFORM}"}:
            yield stage.base, f"--platform={stage.base.platform} is the default; leave it out"


def _platform_values() -> dict[str, str]:
    return dict.fromkeys(PLATFORM_ARGUMENTS, "linux")


def _global_names(subject: Subject) -> dict[str, str]:
    declared = (each.name for arg in subject.dockerfile.arguments for each in arg.arguments)
    return _platform_values() | dict.fromkeys(declared, "x")


def _undefined_arg_in_from(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    known = _global_names(subject)
    for stage in subject.dockerfile.stages:
        for name in _undefined(stage.base, known, subject.escape):
            hint = _near(name, known)
            yield stage.base, f"FROM uses {name}, which no ARG before the first FROM declares{hint}"


def _invalid_default_arg_in_from(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    try:
        defaults = global_arguments(subject.dockerfile.arguments, {}, _platform_values(), escape=subject.escape)
    except DockerfileError:
        return
    known = _global_names(subject)
    for stage in subject.dockerfile.stages:
        if "$" not in stage.base.image or _undefined(stage.base, known, subject.escape):
            continue
        try:
            whole = expand(replace(stage.base, platform=""), known, escape=subject.escape)
        except DockerfileError:
            continue
        if whole.used <= set(PLATFORM_ARGUMENTS):
            continue
        message = f"with the defaults of its ARGs {stage.base.image!r} is no image name; give the ARG a default"
        try:
            image = expand(replace(stage.base, platform=""), defaults, escape=subject.escape).instruction.image
            if not subject.dockerfile.stage(image, before=stage.index):
                Reference.parse(image)
        except InvalidReference:
            yield stage.base, message
        except DockerfileError:
            # "${v:?say so}" is how to demand a value; an empty name is the finding
            if "?" not in stage.base.image:
                yield stage.base, message


# --- instructions -----------------------------------------------------------------------------------------------------


def _consistent_casing(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    everything = list(subject.instructions())
    upper = sum(each.keyword.isupper() for each in everything)
    lower = sum(each.keyword.islower() for each in everything)
    wanted = "lower" if lower > upper else "upper"
    for each in everything:
        if not (each.keyword.islower() if wanted == "lower" else each.keyword.isupper()):
            yield each, f"the instruction {each.keyword!r} should be {wanted} case, as most are here"


def _json_args_recommended(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    explicit: set[int] = set()  # stages in which SHELL was used: there the shell is meant
    for stage in subject.dockerfile.stages:
        parent = subject.parent(stage)
        shell = parent is not None and parent.index in explicit
        for each in stage.instructions:
            shell = shell or isinstance(each, Shell)
            if isinstance(each, Cmd | Entrypoint) and isinstance(each.command, ShellForm) and not shell:
                yield each, f"{each.NAME} in shell form hides signals from its program; write it as a JSON array"
        if shell:
            explicit.add(stage.index)


def _maintainer_deprecated(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each in subject.instructions():
        if isinstance(each, Maintainer):
            yield each, f"MAINTAINER is deprecated; write LABEL org.opencontainers.image.authors={each.author!r}"


def _workdir_relative_path(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    absolute: set[int] = set()
    for stage in subject.dockerfile.stages:
        parent = subject.parent(stage)
        known = parent is not None and parent.index in absolute
        for each in stage.instructions:
            if isinstance(each, Workdir):
                path = each.path.lstrip("\"'")
                if not known and not path.startswith(("/", "$")):
                    yield each, f"WORKDIR {each.path} depends on the base image's; begin with an absolute one"
                known = True
        if known:
            absolute.add(stage.index)


def _multiple_instructions(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for stage in subject.dockerfile.stages:
        for kind in (Cmd, Entrypoint, Healthcheck):
            for each in [each for each in stage.instructions if isinstance(each, kind)][:-1]:
                yield each, f"only the last {each.NAME} of a stage counts; remove this one"


def _legacy_key_value(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each in subject.instructions():
        if isinstance(each, Env | Label) and any(pair.legacy for pair in each.pairs):
            name = each.pairs[0].name
            yield each, f"'{each.NAME} {name} …' is the old form; write {each.NAME} {name}=VALUE"


def _secrets(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each in subject.instructions():
        names = (
            [pair.name for pair in each.pairs]
            if isinstance(each, Env)
            else [argument.name for argument in each.arguments]
            if isinstance(each, Arg)
            else []
        )
        for name in names:
            if _SECRET.search(name) and not _PUBLIC.search(name):
                yield each, f"{each.NAME} {name} would keep a secret in the image; use RUN --mount=type=secret"


def _definition_description(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each in subject.instructions():
        if isinstance(each, From):
            names = [each.written_name] if each.written_name else []
        else:
            names = [argument.name for argument in each.arguments] if isinstance(each, Arg) else []
        described = each.comments[-1].split(" ")[0] if each.comments else ""
        if names and described and described not in names:
            yield each, f"the comment above should begin with {' or '.join(names)}, or be set apart by an empty line"


def _expose_proto_casing(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each, port in _ports(subject):
        protocol = port.partition("/")[2]
        if protocol.isalpha() and not protocol.islower():
            yield each, f"the protocol of port {port!r} should be lower case: {port.lower()!r}"


def _expose_invalid_format(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each, port in _ports(subject):
        if ":" in re.sub(r"\$\{[^}]*\}", "", port):
            yield each, f"EXPOSE has no addresses or host ports; write {port.rpartition(':')[2]} instead of {port!r}"


def _ports(subject: Subject) -> Iterator[tuple[Expose, str]]:
    for each in subject.instructions():
        if isinstance(each, Expose):
            for port in each.ports:
                yield each, port


def _copy_ignored_file(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    for each in subject.instructions():
        if subject.ignore and isinstance(each, Copy | Add) and not getattr(each, "from_", ""):
            for source in each.sources:
                path = source.strip("\"'").strip("/").removeprefix("./")
                if "$" in path or has_wildcards(path) or _URL.match(path):
                    continue
                if subject.ignore.ignores(path):
                    yield each, f"{each.NAME} takes {source!r}, which .dockerignore leaves out"


# --- variables --------------------------------------------------------------------------------------------------------


def _undefined_var(subject: Subject) -> Iterator[tuple[Instruction, str]]:
    """Follow the names that are set through each stage; of an unknown base image any name may come.

    There a name counts as undefined when it is a global ARG that the stage does not declare again, or nearly the name
    of a variable that is set.
    """
    globally = {each.name for arg in subject.dockerfile.arguments for each in arg.arguments}
    after: dict[int, tuple[dict[str, str], bool]] = {}
    for stage in subject.dockerfile.stages:
        parent = subject.parent(stage)
        image = stage.base.image
        if parent is not None:
            names, complete = dict(after[parent.index][0]), after[parent.index][1]
        else:
            names = dict.fromkeys(("PATH", *subject.inherited.get(image, ())), "x")
            complete = image == "scratch" or image in subject.inherited
        for each in stage.instructions:
            for name in _undefined(each, names, subject.escape):
                hint = _near(name, names)
                if name in globally:
                    hint = f"; repeat ARG {name} after FROM"
                if complete or hint:
                    yield each, f"{each.NAME} uses {name}, which is not set here{hint}"
            if isinstance(each, Env):
                names.update((pair.name, "x") for pair in each.pairs)
            elif isinstance(each, Arg):
                names.update((argument.name, "x") for argument in each.arguments)
        after[stage.index] = (names, complete)


def _undefined(instruction: Instruction, names: Mapping[str, str], escape: str) -> list[str]:
    """The variables of an instruction that are not among `names`; what cannot be expanded has none."""
    try:
        return sorted(expand(instruction, names, escape=escape, judge=False).undefined)
    except DockerfileError:
        return []


def _near(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, names, 1, 0.75)
    return f"; did you mean {near[0]}?" if near else ""


CHECKS: tuple[Check, ...] = (
    Check(
        name="StageNameCasing",
        description="stage names are lower case",
        find=_stage_name_casing,
    ),
    Check(
        name="FromAsCasing",
        description="FROM and AS are both upper or both lower case",
        find=_from_as_casing,
    ),
    Check(
        name="ConsistentInstructionCasing",
        description="all instructions are upper case, or all lower case",
        find=_consistent_casing,
    ),
    Check(
        name="DuplicateStageName",
        description="a stage's name is its own",
        find=_duplicate_stage_name,
    ),
    Check(
        name="ReservedStageName",
        description="no stage is named scratch or context",
        find=_reserved_stage_name,
    ),
    Check(
        name="JSONArgsRecommended",
        description="CMD and ENTRYPOINT are JSON arrays, so that signals reach their program",
        find=_json_args_recommended,
    ),
    Check(
        name="MaintainerDeprecated",
        description="a label names the author, not MAINTAINER",
        find=_maintainer_deprecated,
    ),
    Check(
        name="UndefinedArgInFrom",
        description="FROM uses only ARGs that are declared before the first FROM",
        find=_undefined_arg_in_from,
    ),
    Check(
        name="WorkdirRelativePath",
        description="a relative WORKDIR follows an absolute one",
        find=_workdir_relative_path,
    ),
    Check(
        name="UndefinedVar",
        description="variables are set by ARG, ENV or the base image before they are used",
        find=_undefined_var,
    ),
    Check(
        name="MultipleInstructionsDisallowed",
        description="CMD, ENTRYPOINT and HEALTHCHECK stand once in a stage",
        find=_multiple_instructions,
    ),
    Check(
        name="LegacyKeyValueFormat",
        description="ENV and LABEL have '=' between name and value",
        find=_legacy_key_value,
    ),
    Check(
        name="RedundantTargetPlatform",
        description="--platform is not what it is anyway",
        find=_redundant_target_platform,
    ),
    Check(
        name="SecretsUsedInArgOrEnv",
        description="no secret is in ARG or ENV, which the image shows to everybody",
        find=_secrets,
    ),
    Check(
        name="InvalidDefaultArgInFrom",
        description="FROM is an image name also with the defaults of its ARGs",
        find=_invalid_default_arg_in_from,
    ),
    Check(
        name="FromPlatformFlagConstDisallowed",
        description="--platform is no constant, unless the stage's name has it too",
        find=_from_platform_const,
    ),
    Check(
        name="CopyIgnoredFile",
        description="COPY and ADD take nothing that .dockerignore leaves out",
        find=_copy_ignored_file,
    ),
    Check(
        name="InvalidDefinitionDescription",
        description="a comment directly above ARG or FROM … AS describes it: # NAME and a description",
        find=_definition_description,
        experimental=True,
    ),
    Check(
        name="ExposeProtoCasing",
        description="protocols of EXPOSE are lower case",
        find=_expose_proto_casing,
    ),
    Check(
        name="ExposeInvalidFormat",
        description="EXPOSE names no addresses and no host ports",
        find=_expose_invalid_format,
    ),
)  # fmt: skip
"""All but NoEmptyContinuation, which is noticed while lines are read, and what needs the base image."""
