"""The verbs about builds: ``build``, ``debug`` and ``builder``; entries of the table in `nbcontainer.engine.verbs`."""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from nbcontainer.build.request import BuildOptions, BuildOutput, CacheSource
from nbcontainer.engine import tables
from nbcontainer.engine.command_line import Option, Positional, Verb, read_duration, read_platform
from nbcontainer.engine.door import SecretSource, TypedBuild
from nbcontainer.errors import InvalidInput, InvalidOption, NotFound
from nbcontainer.model import Reference

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping

    from nbcontainer.engine.door import Session
    from nbcontainer.engine.views import BuiltImage

__all__ = ["BUILD_VERBS", "built_message", "secret_value", "variable_value"]

_SECRET_LIMIT = 500 * 1024


def _build(session: Session, arguments: Namespace) -> object:
    if arguments.path is not None and arguments.context is not None and arguments.path != arguments.context:
        raise InvalidOption(f"the build context is given twice: {arguments.path} and --context {arguments.context}")
    given = dict(arguments.build_arg)
    options = BuildOptions(
        dockerfile_name=arguments.file or "",
        tags=arguments.tag,
        target=arguments.target or "",
        arguments={name: value for name, value in given.items() if value is not None},
        labels=dict(arguments.label),
        platform=arguments.platform or "",
        network=arguments.network or "default",
        pull=arguments.pull,
        no_cache=arguments.no_cache,
        agents=dict(arguments.ssh),
        hosts=arguments.add_host,
        epoch=_epoch(given.get("SOURCE_DATE_EPOCH") or os.environ.get("SOURCE_DATE_EPOCH", "")),
        outputs=arguments.output,
        cache_from=arguments.cache_from,
        inline_cache=bool(arguments.cache_to),
    )
    return session.build(
        TypedBuild(
            path=arguments.context or arguments.path or "",
            options=options,
            variables=arguments.var,
            secrets=arguments.secret,
            progress=arguments.progress or "auto",
            quiet=arguments.quiet,
        )
    )


def built_message(built: BuiltImage, *, quiet: bool) -> object:
    """What a door shows of a finished build: with `quiet` the id alone, as docker does."""
    if quiet:
        return tables.Message(str(built.image.id))
    names = ", ".join(built.names) or "an image without a name (-t NAME gives it one)"
    layers = "1 layer" if built.layers == 1 else f"{built.layers} layers"
    steps = "1 step" if built.steps == 1 else f"{built.steps} steps"
    known = f", {built.cached} of them cached" if built.cached else ""
    return tables.Message(
        f"built {names}: {layers}, {tables.size_text(built.image.size)}, {steps}{known},"
        f" in {built.seconds:.1f} s\n{built.image.digest}"
    )


def secret_value(source: SecretSource, variables: Mapping[str, Any] | None) -> bytes:
    """The bytes of a secret; `variables` are the notebook's, None where there are none."""
    where = source.where
    if source.kind == "environment":
        if where not in os.environ:
            raise NotFound(f"--secret id={source.id}: there is no variable {where} in the environment")
        return os.fsencode(os.environ[where])
    if source.kind == "variable":
        if variables is None:
            raise InvalidOption(f"--secret id={source.id}: var= names a variable of a notebook, and this is a terminal")
        return variable_value(where, variables, what=f"--secret id={source.id}")
    try:
        with open(os.path.expanduser(where), "rb") as file:
            return file.read(_SECRET_LIMIT + 1)
    except OSError as problem:
        raise NotFound(f"--secret id={source.id}: {where} cannot be read: {problem.strerror}") from problem


def variable_value(name: str, variables: Mapping[str, Any], *, what: str) -> bytes:
    """The text or bytes of a variable of the notebook."""
    if name not in variables:
        raise InvalidOption(f"{what}: there is no variable {name!r} in this notebook")
    value = variables[name]
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    raise InvalidOption(f"{what}: variable {name!r} is a {type(value).__name__}; it has to be text or bytes")


def _debug(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    step = session.engine.failed_step()
    place = f"line {step.line} of the Dockerfile" + (f", in {step.stage}" if step.stage else "")
    run = "%%container --failed" if session.door == "notebook" else "nbcontainer run --failed sh -c '…'"
    before = "%%container --failed --before" if session.door == "notebook" else "nbcontainer run --failed --before …"
    lines = [
        f"The last build failed at {place}, with exit code {step.code}:",
        f"  {step.text}",
        "",
        f"  command      {shlex.join(step.command)}",
        f"  user         {step.user or 'root'}",
        f"  folder       {step.directory}",
        f"  network      {step.network}",
        *([f"  mounts       {', '.join(step.mounts)}; secrets and agents are not there again"] if step.mounts else []),
        "",
        f"{run:<40}runs in the state that the step left, with its variables, user and folder",
        f"{before:<40}the same in the state before it",
        "",
        "Nothing you do there changes the state. It is kept until the next build or `%container builder prune`.",
    ]
    return tables.Message("\n".join(tables.printable(line) for line in lines))


def _builder(session: Session, arguments: Namespace) -> object:
    if arguments.action != "prune":
        raise InvalidOption(f"builder does not know {arguments.action!r}; there is builder prune")
    count, freed = session.engine.clear_build_cache(unused_for=arguments.unused_for)
    steps = "1 step" if count == 1 else f"{count} steps"
    return tables.Message(f"forgot {steps}, freed {tables.size_text(freed)}")


# Readers of this table's own forms


def _epoch(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"\d{1,12}", text, re.ASCII):
        raise InvalidOption(f"SOURCE_DATE_EPOCH is {text!r}; it has to be a number of seconds since 1970")
    return int(text)


def _read_argument(text: str) -> tuple[str, str | None]:
    """``NAME=VALUE``; a bare name takes the value it has in the environment."""
    name, equals, value = text.partition("=")
    if not name or "\0" in text or any(mark.isspace() for mark in name):
        raise InvalidOption(f"--build-arg {text!r} has no name; write NAME=VALUE")
    return name, value if equals else os.environ.get(name)


def _read_label(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name:
        raise InvalidOption(f"--label {text!r} has no name; write NAME=VALUE")
    return name, value


def _fields(what: str, text: str, known: tuple[str, ...]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or name not in known:
            raise InvalidOption(f"{what} {text!r} has {part!r}; it can have {', '.join(f'{each}=' for each in known)}")
        fields[name] = value
    return fields


def _read_secret(text: str) -> SecretSource:
    fields = _fields("--secret", text, ("id", "src", "source", "env", "var", "type"))
    identity = fields.get("id", "")
    if not identity:
        raise InvalidOption(f"--secret {text!r} has no id; write id=NAME,src=FILE")
    source = fields.get("src") or fields.get("source")
    if "var" in fields:
        return SecretSource(id=identity, kind="variable", where=fields["var"])
    if "env" in fields or fields.get("type") == "env":
        return SecretSource(id=identity, kind="environment", where=fields.get("env") or source or identity)
    if source:
        return SecretSource(id=identity, kind="file", where=source)
    kind: Any = "environment" if identity in os.environ else "file"
    return SecretSource(id=identity, kind=kind, where=identity)


def _read_agent(text: str) -> tuple[str, str]:
    identity, equals, path = text.partition("=")
    socket = path if equals else os.environ.get("SSH_AUTH_SOCK", "")
    if not identity or not socket:
        raise InvalidOption(f"--ssh {text}: there is no agent; start ssh-agent, or name its socket: {text}=PATH")
    return identity, os.path.expanduser(socket)


def _read_host(text: str) -> str:
    name, mark, address = text.partition("=" if "=" in text else ":")
    if not mark or not re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?", name, re.ASCII):
        raise InvalidOption(f"--add-host {text!r} is not NAME:ADDRESS")
    try:
        found = ipaddress.ip_address(address.strip("[]"))
    except ValueError as problem:
        raise InvalidOption(f"--add-host {text!r}: {address!r} is no IP address") from problem
    return f"{found}\t{name}"


def _read_output(text: str) -> BuildOutput:
    written = text if "=" in text else f"type=local,dest={text}"
    fields = _fields("--output", written, ("type", "dest"))
    kind: Any = fields.get("type", "")
    if kind not in {"local", "tar", "oci"}:
        raise InvalidOption(f"--output type={kind} is not there; there are local, tar and oci")
    if not fields.get("dest") or fields["dest"] == "-":
        raise InvalidOption(f"--output {text!r} has no destination; write type={kind},dest=PATH")
    return BuildOutput(kind=kind, destination=fields["dest"])


def _read_cache_source(text: str) -> CacheSource:
    written = text if "=" in text else f"type=image,ref={text}"
    fields = _fields("--cache-from", written, ("type", "ref", "src"))
    kind, ref, src = fields.get("type", ""), fields.get("ref", ""), fields.get("src", "")
    if kind in {"image", "registry"} and ref and not src:
        Reference.parse(ref)
        return CacheSource(kind="image" if kind == "image" else "registry", place=ref)
    if kind == "local" and src and not ref:
        return CacheSource(kind="local", place=src)
    raise InvalidOption(
        f"--cache-from {text!r} cannot be used here; write NAME, type=registry,ref=NAME or type=local,src=PATH"
    )


def _read_cache_target(text: str) -> str:
    if text not in {"inline", "type=inline"}:
        raise InvalidOption(
            f"--cache-to {text}: a cache is written into the image and nowhere else; write --cache-to type=inline, and"
            " push the image or keep it with --output type=oci"
        )
    return text


def _read_name(what: str, pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise InvalidInput(f"{what} {text!r} is not the name of a variable")
        return text

    return read


_NOT_NEEDED = "images are always built with this option's meaning here, or have no use for it; leave it out"

BUILD_VERBS: tuple[Verb, ...] = (
    Verb(
        name="build",
        summary="Build an image of a Dockerfile",
        description=(
            "PATH is the build context: a folder, a tar file, or - for none (in a terminal: a Dockerfile or a tar on"
            " standard input). In a notebook %%dockerfile takes the same options, the cell is the Dockerfile and the"
            " notebook's folder is the context. Steps that were made before are not made again. Commands of RUN have"
            " the network bridge where there can be one (see `doctor`), else the machine's own."
        ),
        handler=_build,
        positionals=(Positional(name="PATH", help="the build context; . when there is none", count="optional"),),
        options=(
            Option(flags=("-t", "--tag"), metavar="NAME[:TAG]", many=True, help="the image's name"),
            Option(flags=("-f", "--file"), metavar="FILE", help="the Dockerfile; PATH/Dockerfile is the default"),
            Option(flags=("--context",), metavar="PATH", help="the same as PATH"),
            Option(
                flags=("--build-arg",),
                metavar="NAME[=VALUE]",
                many=True,
                help="the value of an ARG; without a value, the one it has here",
                read=_read_argument,
            ),
            Option(flags=("--target",), metavar="STAGE", help="build this stage, by name or number"),
            Option(flags=("--no-cache",), help="make every step again"),
            Option(
                flags=("--cache-from",),
                metavar="IMAGE",
                many=True,
                help="take steps over that this image has a record of: NAME, type=registry,ref=NAME or"
                " type=local,src=PATH (an OCI layout or archive); you believe whoever made it",
                read=_read_cache_source,
            ),
            Option(
                flags=("--cache-to",),
                metavar="type=inline",
                many=True,
                help="put a record of its steps into the image, for --cache-from",
                read=_read_cache_target,
            ),
            Option(flags=("--pull",), help="ask the registry for base images even when they are here"),
            Option(
                flags=("--platform",),
                metavar="OS/ARCH",
                help="build for this platform, for example linux/arm64",
                read=read_platform,
            ),
            Option(
                flags=("--network",),
                metavar="{default,bridge,none,host}",
                choices=("default", "bridge", "none", "host"),
                help="the network of RUN commands; default is bridge, or the machine's own where there is none",
            ),
            Option(
                flags=("--secret",),
                metavar="id=ID,src=FILE",
                many=True,
                help="a secret for RUN --mount=type=secret: src=FILE, env=NAME, or in a notebook var=NAME",
                read=_read_secret,
            ),
            Option(
                flags=("--ssh",),
                metavar="ID[=SOCKET]",
                many=True,
                help="an ssh agent for RUN --mount=type=ssh; without a socket, yours",
                read=_read_agent,
            ),
            Option(
                flags=("--var",),
                metavar="NAME",
                many=True,
                door="notebook",
                help="put a variable, text or bytes, into the context as a file of its name",
                read=_read_name("--var", r"[^\W\d]\w*"),
            ),
            Option(flags=("--label",), metavar="NAME=VALUE", many=True, help="a label", read=_read_label),
            Option(
                flags=("--add-host",),
                metavar="NAME:ADDRESS",
                many=True,
                help="a line of /etc/hosts for RUN commands",
                read=_read_host,
            ),
            Option(
                flags=("-o", "--output"),
                metavar="type=KIND,dest=PATH",
                many=True,
                help="write the result there too: local (a folder), tar (its files), oci (an image archive)",
                read=_read_output,
            ),
            Option(
                flags=("--progress",),
                metavar="{auto,plain,tree}",
                choices=("auto", "plain", "tree"),
                help="plain shows what commands write, tree only the steps",
            ),
            Option(flags=("-q", "--quiet"), help="show nothing but the image's id"),
            Option(flags=("--rm",), refusal=_NOT_NEEDED),
            Option(flags=("--force-rm",), refusal=_NOT_NEEDED),
            Option(flags=("--load",), refusal=_NOT_NEEDED),
            Option(flags=("--push",), refusal="pushing is not there yet"),
            Option(flags=("--squash",), refusal="layers are not joined here; build in stages and COPY --from"),
        ),
        examples=(
            "build -t app .",
            "build -t app --build-arg VERSION=3 --target test -f docker/Dockerfile .",
            "build -t app --secret id=token,src=token.txt --network none .",
        ),
    ),
    Verb(
        name="debug",
        summary="Explain the failed step of the last build, and how to look at its files",
        description=(
            "When a RUN fails, the files it left are kept until the next build or a prune. run --failed runs a command"
            " in that state, %%container --failed a cell."
        ),
        handler=_debug,
        examples=("debug",),
    ),
    Verb(
        name="builder",
        summary="Free what builds remember: builder prune",
        description="Steps are forgotten and made again when they are needed. Images stay as they are.",
        handler=_builder,
        positionals=(Positional(name="ACTION", help="prune"),),
        options=(
            Option(
                flags=("--unused-for",),
                metavar="TIME",
                help="only steps that were of no use for this long, for example 24h",
                read=read_duration,
            ),
        ),
        examples=("builder prune", "builder prune --unused-for 168h"),
    ),
)
