"""Tab completion on ``%container`` lines, on the first line of ``%%container`` cells, and in ``%%dockerfile`` cells.

A matcher of IPython's second API, because only that one lets us say which piece of the line is completed: for
``ubuntu:2`` the older hook is given the ``2`` alone. It asks the local store and a short list, never the network, and
never raises: a broken store must not take completion away from the rest of the notebook.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from IPython.core import completer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from IPython.core.completer import CompletionContext, SimpleMatcherResult

    from nbcontainer.engine.command_line import Verb
    from nbcontainer.engine.door import Door

__all__ = ["POPULAR", "complete_container", "completions"]

_LINE = re.compile(r"(?:^|=)\s*%container\s(?P<rest>.*)$")
_CELL = re.compile(r"^%%container\s(?P<rest>.*)$")
_BUILD = re.compile(r"^%%dockerfile\s(?P<rest>.*)$")
_BUILD_CELL = re.compile(r"\s*(?:#.*\n\s*)*%%dockerfile\b")
POPULAR = (
    "alpine",
    "busybox",
    "debian",
    "fedora",
    "gcc",
    "golang",
    "host",
    "julia",
    "node",
    "python",
    "r-base",
    "rust",
    "ubuntu",
)
"""Names offered beside those in the store, so that the first cell can be completed too."""

_log = logging.getLogger(__name__)


def _complete(context: CompletionContext) -> SimpleMatcherResult:
    """Answer IPython; nothing at all on any other line."""
    nothing: SimpleMatcherResult = {"completions": [], "suppress": False, "matched_fragment": ""}
    if _BUILD_CELL.match(context.full_text):
        return _offered(lambda: _in_dockerfile(context), nothing)
    found = _LINE.search(context.text_until_cursor)
    cell = _CELL.match(context.text_until_cursor)
    if cell is not None and context.full_text.lstrip().startswith("%%container"):
        found = cell
    if found is None:
        return nothing
    rest, in_cell = found["rest"], found is cell
    return _offered(lambda: completions(rest, cell=in_cell), nothing)


def _offered(find: Callable[[], tuple[str, list[str]]], nothing: SimpleMatcherResult) -> SimpleMatcherResult:
    try:
        fragment, words = find()
    except Exception:  # noqa: BLE001 - see the module's docstring
        _log.debug("completion failed", exc_info=True)
        return nothing
    offered = [completer.SimpleCompletion(word, type="container") for word in words]
    return {"completions": offered, "suppress": bool(offered), "matched_fragment": fragment, "ordered": True}


if hasattr(completer, "context_matcher"):
    complete_container: Any = completer.context_matcher(priority=100)(_complete)
else:  # IPython before 8.6 has no such matchers: no completion there
    complete_container = _complete


def _in_dockerfile(context: CompletionContext) -> tuple[str, list[str]]:
    """Options of the build on the cell's first line, and the Dockerfile below it."""
    from nbcontainer.ipython.dockerfile_words import dockerfile_words, stage_names

    above = context.full_text.split("\n")[: context.cursor_line]
    first = _BUILD.match(context.text_until_cursor)
    if first is not None and not any(line.startswith("%%dockerfile") for line in above):
        rest = first["rest"]
        *before, fragment = re.split(r"\s+", rest.lstrip())
        if before[-1:] == ["--target"]:
            return fragment, _starting(fragment, stage_names(context.full_text.split("\n")))
        fragment, found = completions(f"build {rest}", cell=False)
        return fragment, [word for word in found if word not in {"-f", "--file"}]
    return dockerfile_words(above, context.text_until_cursor, _bases)


def _bases() -> list[str]:
    """Images that can be built upon."""
    return [name for name in (*_stored(), *POPULAR) if name != "host"]


def completions(rest: str, *, cell: bool) -> tuple[str, list[str]]:
    """The fragment before the cursor and the words that begin with it; `rest` is the line after the magic's name."""
    from nbcontainer.engine.verbs import CELL_VERBS, RUN, VERBS, split_verb

    *before, fragment = re.split(r"\s+", rest.lstrip()) or [""]
    if cell:
        named = next((verb for verb in CELL_VERBS if before[:1] == [verb.name]), None)
        return fragment, _starting(fragment, _after_verb(named or RUN, before[1:] if named else before, fragment))
    if not before:
        return fragment, _starting(fragment, [verb.name.partition(" ")[0] for verb in VERBS])
    second = [verb.name.partition(" ")[2] for verb in VERBS if verb.name.startswith(f"{before[0]} ")]
    if second and len(before) == 1:
        return fragment, _starting(fragment, second)
    verb, words = split_verb(before, VERBS, "notebook")
    return fragment, _starting(fragment, _after_verb(verb, list(words), fragment))


def _starting(fragment: str, words: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(fragment)]


def _after_verb(verb: Verb, before: list[str], fragment: str, door: Door = "notebook") -> list[str]:
    """What may stand after these words of a verb."""
    positionals, waiting = 0, None
    for word in before:
        option = verb.option(word, door) if waiting is None else None
        if waiting is not None:
            waiting = None
        elif option is not None and option.metavar:
            waiting = option
        elif not word.startswith("-"):
            positionals += 1
    if waiting is not None:
        return [*waiting.choices, *_values(waiting.completes)]
    if verb.takes_command and positionals >= len(verb.positionals) - 1:
        return []
    if fragment.startswith("-"):
        return [flag for option in verb.offered(door) for flag in option.flags] + ["-h", "--help"]
    place = min(positionals, len(verb.positionals) - 1)
    if place < 0 or (positionals > place and verb.positionals[place].count not in {"any", "some"}):
        return []
    return _values(verb.positionals[place].completes)


def _values(kind: str) -> list[str]:
    kinds: dict[str, Callable[[], list[str]]] = {
        "image": lambda: [*_stored(), *POPULAR],
        "stored": _stored,
        "container": _containers,
        "running": lambda: _containers(everything=False),
        "either": lambda: _containers() + _stored(),
        "verb": _verbs,
        "volume": _volumes,
        "network": lambda: [*_networks(), "none", "host", "egress:", "container:"],
        "shell": lambda: ["bash", "node", "perl", "python3", "sh"],
    }
    return kinds[kind]() if kind else []


def _verbs() -> list[str]:
    from nbcontainer.engine.verbs import VERBS

    return [verb.name for verb in VERBS]


def _stored() -> list[str]:
    """Names in the store as people type them, ``debian`` beside ``debian:latest``."""
    from nbcontainer.model import Reference

    names: list[str] = []
    for image in _engine().images():
        familiar = Reference.parse(image.reference).familiar if image.id else image.reference
        names += [familiar.removesuffix(":latest"), familiar]
    return sorted(set(names))


def _containers(*, everything: bool = True) -> list[str]:
    return [summary.name or summary.id[:12] for summary in _engine().containers(everything=everything)]


def _volumes() -> list[str]:
    return [volume.name for volume in _engine().volumes()]


def _networks() -> list[str]:
    return [summary.network.name for summary in _engine().networks()]


def _engine() -> Any:
    from IPython.core.getipython import get_ipython

    from nbcontainer.ipython.extension import get_engine
    from nbcontainer.ipython.session import settings_of

    shell: Any = get_ipython()
    return get_engine(settings_of(shell.magics_manager.registry["ContainerMagics"]))
