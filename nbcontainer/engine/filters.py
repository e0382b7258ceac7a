"""``--filter NAME=VALUE`` of the verbs that list and prune: read once, matched against the engine's values.

As docker has it: several filters of one name ask for any of them (labels for all of them), different names for all.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING

from nbcontainer.engine.command_line import Option, nearest, read_duration
from nbcontainer.errors import InvalidOption, InvalidReference, NbcontainerError
from nbcontainer.model import Reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nbcontainer.engine.views import ContainerSummary, ImageSummary, VolumeSummary

__all__ = [
    "CONTAINER_FILTERS",
    "CONTAINER_PRUNE_FILTERS",
    "IMAGE_FILTERS",
    "VOLUME_FILTERS",
    "VOLUME_PRUNE_FILTERS",
    "Filter",
    "created_before",
    "filter_option",
    "filtered_containers",
    "filtered_images",
    "filtered_volumes",
    "has_labels",
    "image_names",
    "names_match",
]

CONTAINER_FILTERS = ("ancestor", "before", "exited", "health", "id", "label", "name", "since", "status", "volume")
CONTAINER_PRUNE_FILTERS = ("label", "until")
IMAGE_FILTERS = ("before", "dangling", "label", "reference", "since", "until")
VOLUME_FILTERS = ("dangling", "driver", "label", "name")
VOLUME_PRUNE_FILTERS = ("all", "label")
_MOMENTS = frozenset({"before", "since"})
_STATES = ("created", "running", "paused", "restarting", "exited", "dead")
_HEALTH = ("starting", "healthy", "unhealthy", "none")
_UNTAGGED = "localhost/untagged"
"""How an image is called that a commit or build made without a name."""
_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter as typed; `negated` ones (``label!=VALUE``) leave out what matches."""

    name: str
    value: str
    negated: bool = False

    @property
    def is_true(self) -> bool:
        """What the value of one such as ``dangling`` says."""
        return self.value.lower() in {"true", "1"}


def filter_option(names: Sequence[str], *, short: bool = True) -> Option:
    """``--filter`` for these names; `short` where docker has ``-f`` for it, and not for ``--force``."""
    known = ", ".join(names)
    return Option(
        flags=("-f", "--filter") if short else ("--filter",),
        metavar="NAME=VALUE",
        many=True,
        help=f"only those that match: {known}",
        read=_reader(names),
    )


def _reader(names: Sequence[str]) -> Callable[[str], Filter]:
    def read(text: str) -> Filter:
        name, equals, value = text.partition("=")
        negated = name.endswith("!")
        name = name.removesuffix("!").strip().lower()
        if not equals or name not in names:
            hint = nearest(name, names) or f"; there are {', '.join(names)}"
            raise InvalidOption(f"filter {text!r} is not one of NAME=VALUE that is known here{hint}")
        if negated and name != "label":
            raise InvalidOption(f"filter {text!r}: only labels can be left out by !=")
        return _checked(Filter(name, value.strip(), negated), text)

    return read


def _checked(read: Filter, text: str) -> Filter:
    if read.name == "status" and read.value not in _STATES:
        hint = nearest(read.value, _STATES) or f"; there are {', '.join(_STATES)}"
        raise InvalidOption(f"filter {text!r}: there is no status {read.value!r}{hint}")
    if read.name == "health" and read.value not in _HEALTH:
        hint = nearest(read.value, _HEALTH) or f"; there are {', '.join(_HEALTH)}"
        raise InvalidOption(f"filter {text!r}: no container's health is {read.value!r}{hint}")
    if read.name == "exited" and not re.fullmatch(r"\d{1,3}", read.value, re.ASCII):
        raise InvalidOption(f"filter {text!r}: {read.value!r} is no exit code; write for example exited=0")
    if read.name in {"dangling", "all"} and read.value.lower() not in {"true", "false", "1", "0"}:
        raise InvalidOption(f"filter {text!r}: {read.value!r} is neither true nor false")
    if read.name == "until":
        created_before(read)
    if read.name == "name":
        try:
            re.compile(read.value)
        except re.error as problem:
            raise InvalidOption(f"filter {text!r}: {read.value!r} is no pattern: {problem}") from problem
    return read


def created_before(until: Filter) -> float:
    """The moment that ``until=`` means: a duration back from now, a date, or unix seconds."""
    text = until.value
    if _SECONDS.fullmatch(text) and float(text) > 1e8:  # a number as small as that is a duration
        return float(text)
    try:
        moment = datetime.fromisoformat(text.removesuffix("Z") + ("+00:00" if text.endswith("Z") else ""))
    except ValueError:
        try:
            return time.time() - read_duration(text)
        except InvalidOption as problem:
            raise InvalidOption(
                f"filter until={text!r} is neither a duration such as 24h nor a date such as 2026-11-25"
            ) from problem
    return moment.astimezone(timezone.utc).timestamp()


# --- matching --------------------------------------------------------------------------------------------------------


def _all_names(filters: Sequence[Filter], matches: Callable[[Filter], bool]) -> bool:
    """Whether, for each name, any of its filters matches; labels are left to `has_labels`."""
    names = {each.name for each in filters if each.name != "label"}
    return all(any(matches(each) for each in filters if each.name == name) for name in names)


def has_labels(labels: Mapping[str, str], filters: Sequence[Filter]) -> bool:
    """Whether all of the filters on labels hold: ``label=NAME`` or ``label=NAME=VALUE``."""

    def there(each: Filter) -> bool:
        name, equals, value = each.value.partition("=")
        return name in labels and (not equals or labels[name] == value)

    return all(there(each) != each.negated for each in filters if each.name == "label")


def names_match(pattern: str, name: str) -> bool:
    """Docker's look at names: the pattern may match anywhere in it."""
    return re.search(pattern, name) is not None


def filtered_containers(
    containers: Sequence[ContainerSummary],
    filters: Sequence[Filter],
    *,
    find: Callable[[str], ContainerSummary],
    chain_of: Callable[[str], str],
) -> list[ContainerSummary]:
    """Those that match. `find` finds a container by what people call it, `chain_of` the chain id of an image."""
    moments = {each.value: find(each.value).created for each in filters if each.name in _MOMENTS}
    chains = {each.value: _chain(each.value, chain_of) for each in filters if each.name == "ancestor"}

    def matches(row: ContainerSummary, each: Filter) -> bool:
        if each.name in _MOMENTS:
            moment = moments[each.value]
            return row.created > moment if each.name == "since" else row.created < moment
        if each.name == "ancestor":
            chain = chains[each.value]
            return bool(chain and row.chain == chain) or each.value in image_names(row.image)
        answers: dict[str, Callable[[], bool]] = {
            "status": lambda: each.value == ("paused" if row.paused else row.state),
            "name": lambda: names_match(each.value, row.name),
            "health": lambda: each.value == (row.health or "none"),
            "id": lambda: row.id.startswith(each.value),
            "exited": lambda: row.state == "exited" and row.exit_code == int(each.value),
            "volume": lambda: each.value in row.mounted,
        }
        return answers[each.name]()

    return [row for row in containers if has_labels(row.labels, filters) and _all_names(filters, partial(matches, row))]


def _chain(image: str, chain_of: Callable[[str], str]) -> str:
    try:
        return chain_of(image)
    except NbcontainerError:  # no image of that name any more: containers may still tell of it
        return ""


def image_names(image: str) -> set[str]:
    """What people may call an image, in a filter: with and without registry and tag."""
    try:
        familiar = Reference.parse(image).familiar
    except InvalidReference:
        return {image}
    return {image, familiar, familiar.partition("@")[0].rpartition(":")[0]}


def filtered_volumes(volumes: Sequence[VolumeSummary], filters: Sequence[Filter]) -> list[VolumeSummary]:
    """Those that match; a dangling volume is one that no container names."""

    def matches(row: VolumeSummary, each: Filter) -> bool:
        if each.name == "dangling":
            return (not row.used_by) == each.is_true
        if each.name == "driver":
            return each.value == "local"
        return each.name != "name" or names_match(each.value, row.name)

    return [row for row in volumes if has_labels(row.labels, filters) and _all_names(filters, partial(matches, row))]


def filtered_images(
    images: Sequence[ImageSummary],
    filters: Sequence[Filter],
    *,
    matches_name: Callable[[ImageSummary, str], bool],
    find: Callable[[str], ImageSummary],
) -> list[ImageSummary]:
    """Those that match; a dangling image is one without a name."""
    moments = {each.value: find(each.value).created or 0.0 for each in filters if each.name in _MOMENTS}

    def matches(row: ImageSummary, each: Filter) -> bool:
        created = row.created or 0.0
        if each.name in _MOMENTS:
            moment = moments[each.value]
            return created > moment if each.name == "since" else created < moment
        if each.name == "until":
            return created < created_before(each)
        if each.name == "dangling":
            return row.reference.startswith(_UNTAGGED) == each.is_true
        return matches_name(row, each.value)

    return [row for row in images if has_labels(row.labels, filters) and _all_names(filters, partial(matches, row))]
