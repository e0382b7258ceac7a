"""What a stage of a build has become so far: layers, settings, history, arguments. Frozen; a step gives a new one.

The settings are the ``config`` object of an image config as JSON, so that fields nobody here knows pass through. What
each instruction does to them follows BuildKit's dispatch (frontend/dockerfile); history entries have its wording, which
is what other programs read.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from nbcontainer.build.claims import FIELD
from nbcontainer.dockerfile import instructions as i
from nbcontainer.dockerfile.ports import exposed_ports
from nbcontainer.errors import InvalidImage
from nbcontainer.model import Descriptor, Digest, Platform, chain_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "DEFAULT_PATH",
    "PROXIES",
    "UNKNOWN_TIME",
    "StageState",
    "StepMade",
    "created_by_run",
    "scratch",
    "started_from",
    "with_arguments",
    "with_metadata",
]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_SHELL = ("/bin/sh", "-c")
PROXIES = frozenset(
    name for word in ("HTTP", "HTTPS", "FTP", "NO", "ALL") for name in (f"{word}_PROXY", f"{word.lower()}_proxy")
)
"""Arguments that a build may be given without an ARG, and that stay out of history and cache keys then."""
UNKNOWN_TIME = "1970-01-01T00:00:00Z"
_COMMENT = "nbcontainer"


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMade:
    """By which step a layer was made, and when."""

    key: Digest
    created: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageState:
    """A stage between two instructions.

    `document` has what an image config says beside its settings, layers and history. `arguments` are the ARGs in force;
    one that was declared and has no value is not among them; `later` are those that came after an ENV of their name.
    `reset_command` says that an ENTRYPOINT takes the inherited CMD away, because the stage has not set one itself.
    `created` is when its last layer was made: a build that finds all its layers gives the same image again. `steps` has
    an entry for each layer, None for one of the base image.
    """

    platform: Platform
    document: Mapping[str, Any] = field(default_factory=_empty)
    options: Mapping[str, Any] = field(default_factory=_empty)
    layers: tuple[Descriptor, ...] = ()
    diff_ids: tuple[Digest, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()
    arguments: Mapping[str, str] = field(default_factory=_empty)
    later: frozenset[str] = frozenset()
    reset_command: bool = True
    created: str = UNKNOWN_TIME
    steps: tuple[StepMade | None, ...] = ()

    @property
    def chain(self) -> Digest | None:
        """The chain id of its files; None while there is no layer."""
        chains = chain_ids(self.diff_ids)
        return chains[-1] if chains else None

    @property
    def variables(self) -> dict[str, str]:
        """The environment of its settings."""
        return dict(entry.partition("=")[::2] for entry in self.options.get("Env") or ())

    @property
    def environment(self) -> dict[str, str]:
        """What words expand to and commands see: ENV over ARG, but for an ARG that came later, as in BuildKit."""
        return {**self.arguments, **self.variables, **{name: self.arguments[name] for name in self.later}}

    @property
    def shell(self) -> tuple[str, ...]:
        """What runs the shell form of commands."""
        return tuple(self.options.get("Shell") or DEFAULT_SHELL)

    @property
    def user(self) -> str:
        """The USER in force, "" for root."""
        return str(self.options.get("User") or "")

    @property
    def directory(self) -> str:
        """The WORKDIR in force."""
        return posixpath.join("/", str(self.options.get("WorkingDir") or "/"))

    @property
    def triggers(self) -> tuple[str, ...]:
        """ONBUILD instructions waiting in it."""
        return tuple(self.options.get("OnBuild") or ())

    def without_triggers(self) -> StageState:
        """The same when its triggers have been taken over."""
        return replace(self, options={name: value for name, value in self.options.items() if name != "OnBuild"})

    def setting(self, **options: Any) -> StageState:
        """With some settings replaced; None takes one away."""
        merged = {**self.options, **options}
        return replace(self, options={name: value for name, value in merged.items() if value is not None})

    def remembering(self, created_by: str, *, empty: bool = True) -> StageState:
        """With one line of history more."""
        entry: dict[str, Any] = {"created": self.created, "created_by": created_by, "comment": _COMMENT}
        if author := self.document.get("author"):
            entry["author"] = author
        if empty:
            entry["empty_layer"] = True
        return replace(self, history=(*self.history, entry))

    def with_layer(
        self, layer: Descriptor, diff_id: Digest, created_by: str, *, created: str, key: Digest
    ) -> StageState:
        """With one layer more, which the step named `key` made, and its line of history."""
        grown = replace(
            self,
            layers=(*self.layers, layer),
            diff_ids=(*self.diff_ids, diff_id),
            created=created,
            steps=(*self.steps, StepMade(key=key, created=created)),
        )
        return grown.remembering(created_by, empty=False)

    def resolved(self, path: str) -> str:
        """A path of an instruction, relative to the WORKDIR in force."""
        return posixpath.normpath(posixpath.join(self.directory, path))

    def config(self) -> dict[str, Any]:
        """The document of an image that this stage is."""
        return {
            **self.document,
            "architecture": self.platform.architecture,
            **({"variant": self.platform.variant} if self.platform.variant else {}),
            "os": self.platform.os,
            "config": dict(self.options),
            "created": self.created,
            "history": [dict(entry) for entry in self.history],
            "rootfs": {"type": "layers", "diff_ids": [str(each) for each in self.diff_ids]},
        }


def scratch(platform: Platform) -> StageState:
    """The empty stage of ``FROM scratch``."""
    return StageState(platform=platform, options={"Env": [f"PATH={DEFAULT_PATH}"], "WorkingDir": "/"})


_NOT_INHERITED = frozenset({
    "architecture", "config", "container", "container_config", "created", "docker_version", "history", "id", "os",
    "os.version", "parent", "parent_id", "rootfs", "throwaway", "variant", "moby.buildkit.buildinfo.v1",
    "moby.buildkit.cache.v0", FIELD,
})  # fmt: skip
"""Fields of a base's config that its child has its own of, or that would be wrong of it."""


def started_from(config: Mapping[str, Any], layers: Sequence[Descriptor], diff_ids: Sequence[Digest]) -> StageState:
    """The stage that an image's documents give to start with."""
    if len(layers) != len(diff_ids):
        raise InvalidImage(f"the base image has {len(layers)} layers and {len(diff_ids)} diff ids; it cannot be used")
    options = dict(config.get("config") or {})
    for name in ("OnBuild", "Shell"):
        words = options.get(name) or []
        if not isinstance(words, list) or not all(isinstance(each, str) for each in words):
            raise InvalidImage(f"{name} of the base image's config is no list of texts; the image cannot be built upon")
    environment = list(options.get("Env") or [])
    if not any(entry.startswith("PATH=") for entry in environment):
        environment.append(f"PATH={DEFAULT_PATH}")
    options["Env"] = environment
    return StageState(
        platform=Platform(
            str(config.get("os") or "linux"),
            str(config.get("architecture") or "amd64"),
            str(config.get("variant") or ""),
        ),
        document={name: value for name, value in config.items() if name not in _NOT_INHERITED},
        options=options,
        layers=tuple(layers),
        diff_ids=tuple(diff_ids),
        history=tuple(each for each in config.get("history") or () if isinstance(each, dict)),
        steps=(None,) * len(layers),
        created=str(config.get("created") or UNKNOWN_TIME),
    )


# --- instructions that change settings only -------------------------------------------------------------------------


def with_metadata(state: StageState, instruction: i.Instruction) -> StageState:
    """The stage after an expanded instruction that makes no files; `KeyError` for one that does."""
    changed = _APPLY[type(instruction)](state, instruction)
    # BuildKit has no line for triggers; those that run have one each
    return changed if isinstance(instruction, i.Onbuild) else changed.remembering(_shown(instruction, state.shell))


def with_arguments(
    state: StageState, instruction: i.Arg, *, given: Mapping[str, str], outer: Mapping[str, str]
) -> StageState:
    """The stage after an ARG: what was `given` counts before a default, and that before the arguments of FROM lines."""
    arguments = dict(state.arguments)
    later = set(state.later)
    shown = []
    for each in instruction.arguments:
        value = given.get(each.name, each.default if each.default is not None else outer.get(each.name))
        if value is not None:
            arguments[each.name] = value
            later |= {each.name} & set(state.variables)
        shown.append(each.name if each.default is None else f"{each.name}={each.default}")
    return replace(state, arguments=arguments, later=frozenset(later)).remembering(f"ARG {' '.join(shown)}")


def _env(state: StageState, instruction: i.Env) -> StageState:
    variables = state.variables
    variables.update((pair.name, pair.value) for pair in instruction.pairs)
    state = replace(state, later=state.later - {pair.name for pair in instruction.pairs})
    return state.setting(Env=[f"{name}={value}" for name, value in variables.items()])


def _label(state: StageState, instruction: i.Label) -> StageState:
    labels = {pair.name: pair.value for pair in instruction.pairs}
    return state.setting(Labels={**(state.options.get("Labels") or {}), **labels})


def _maintainer(state: StageState, instruction: i.Maintainer) -> StageState:
    return replace(state, document={**state.document, "author": instruction.author})


def _expose(state: StageState, instruction: i.Expose) -> StageState:
    ports: dict[str, Any] = {port: {} for word in instruction.ports for port in exposed_ports(word)}
    return state.setting(ExposedPorts={**(state.options.get("ExposedPorts") or {}), **ports})


def _volume(state: StageState, instruction: i.Volume) -> StageState:
    volumes: dict[str, Any] = {path: {} for path in instruction.paths}
    return state.setting(Volumes={**(state.options.get("Volumes") or {}), **volumes})


def _user(state: StageState, instruction: i.User) -> StageState:
    return state.setting(User=instruction.user)


def _cmd(state: StageState, instruction: i.Cmd) -> StageState:
    words = list(instruction.command.arguments(state.shell))
    return replace(state.setting(Cmd=words or None, ArgsEscaped=None), reset_command=False)


def _entrypoint(state: StageState, instruction: i.Entrypoint) -> StageState:
    words = list(instruction.command.arguments(state.shell))
    changed = state.setting(Entrypoint=words or None)
    return changed.setting(Cmd=None) if state.reset_command else changed


def _healthcheck(state: StageState, instruction: i.Healthcheck) -> StageState:
    fields = {
        "Test": list(instruction.test),
        "Interval": instruction.interval,
        "Timeout": instruction.timeout,
        "StartPeriod": instruction.start_period,
        "StartInterval": instruction.start_interval,
        "Retries": instruction.retries,
    }
    return state.setting(Healthcheck={name: value for name, value in fields.items() if value})


def _stopsignal(state: StageState, instruction: i.Stopsignal) -> StageState:
    return state.setting(StopSignal=instruction.signal)


def _shell(state: StageState, instruction: i.Shell) -> StageState:
    return state.setting(Shell=list(instruction.shell))


def _onbuild(state: StageState, instruction: i.Onbuild) -> StageState:
    return state.setting(OnBuild=[*state.triggers, instruction.expression])


_APPLY: dict[type[i.Instruction], Callable[[StageState, Any], StageState]] = {
    i.Cmd: _cmd,
    i.Entrypoint: _entrypoint,
    i.Env: _env,
    i.Expose: _expose,
    i.Healthcheck: _healthcheck,
    i.Label: _label,
    i.Maintainer: _maintainer,
    i.Onbuild: _onbuild,
    i.Shell: _shell,
    i.Stopsignal: _stopsignal,
    i.User: _user,
    i.Volume: _volume,
}


# --- history ---------------------------------------------------------------------------------------------------------


def _shown(instruction: i.Instruction, shell: Sequence[str]) -> str:
    """A line of history, as BuildKit words it."""
    text = instruction.code
    if isinstance(instruction, (i.Env, i.Label)):
        text = f"{instruction.NAME} " + " ".join(f"{pair.name}={pair.value}" for pair in instruction.pairs)
    elif isinstance(instruction, i.Expose):
        ports = sorted(port for word in instruction.ports for port in exposed_ports(word))
        text = f"EXPOSE map[{' '.join(f'{port}:{{}}' for port in ports)}]"
    elif isinstance(instruction, i.Volume):
        text = f"VOLUME [{' '.join(instruction.paths)}]"
    elif isinstance(instruction, (i.Cmd, i.Entrypoint)):
        text = f"{instruction.NAME} {_list(instruction.command.arguments(shell))}"
    elif isinstance(instruction, i.Shell):
        text = f"SHELL [{' '.join(instruction.shell)}]"
    elif isinstance(instruction, i.User):
        text = f"USER {instruction.user}"
    return text


def _list(words: Sequence[str]) -> str:
    return "[" + " ".join(json.dumps(word, ensure_ascii=False) for word in words) + "]"


def created_by_run(words: Sequence[str], arguments: Mapping[str, str]) -> str:
    """The line of history of a RUN: what was executed, and with which ARGs."""
    given = [f"{name}={value}" for name, value in arguments.items()]
    counted = [f"|{len(given)}", *given] if given else []
    return f"RUN {' '.join([*counted, *words])} # {_COMMENT}"
