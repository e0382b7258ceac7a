"""What ``--filter`` means: read once, matched as docker matches."""

from __future__ import annotations

import time

import pytest

from nbcontainer.engine.filters import (
    CONTAINER_FILTERS,
    IMAGE_FILTERS,
    VOLUME_FILTERS,
    Filter,
    created_before,
    filter_option,
    filtered_containers,
    filtered_images,
    filtered_volumes,
    has_labels,
)
from nbcontainer.engine.views import ContainerSummary, ImageSummary, VolumeSummary
from nbcontainer.errors import ContainerNotFound, ImageNotFound, InvalidOption
from nbcontainer.testing.engine import RecordingEngine

EVERY = tuple(dict.fromkeys((*CONTAINER_FILTERS, *IMAGE_FILTERS, *VOLUME_FILTERS, "until", "all")))
ROWS = [
    RecordingEngine.container(
        "web-1",
        id="a" * 64,
        state="running",
        image="debian:latest",
        created=10.0,
        labels={"tier": "front"},
        exit_code=None,
        health="healthy",
    ),
    RecordingEngine.container(
        "web-2",
        id="b" * 64,
        state="running",
        paused=True,
        image="docker.io/library/nginx:1.27",
        created=20.0,
    ),
    RecordingEngine.container(
        "job",
        id="ab" * 32,
        exit_code=3,
        image="debian:12",
        created=30.0,
        labels={"tier": "back", "x": ""},
        chain="sha256:1",
    ),
    RecordingEngine.container(
        "old", id="c" * 64, state="dead", exit_code=None, created=5.0, mounted=("results", "/keep")
    ),
]


def read(text: str) -> Filter:
    """A filter of any verb."""
    found = filter_option(EVERY).read(text)
    assert isinstance(found, Filter)
    return found


def find(name: str) -> ContainerSummary:
    """A container by its name."""
    for row in ROWS:
        if row.name == name:
            return row
    raise ContainerNotFound(f"no container {name!r}")


def chain_of(image: str) -> str:
    """The chain of the one image that is here."""
    if image != "sha256:1234":
        raise ImageNotFound("no image")
    return "sha256:1"


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ("status=running", "web-1"),
        ("status=paused", "web-2"),
        ("status=restarting", ""),
        ("health=healthy", "web-1"),
        ("health=none name=web", "web-2"),
        ("status=exited status=dead", "job old"),
        ("health=none", "web-2 job old"),
        ("name=web", "web-1 web-2"),
        ("name=^web-[2-9]$ name=job", "web-2 job"),
        ("id=a", "web-1 job"),
        ("id=ab", "job"),
        ("exited=3", "job"),
        ("exited=0", ""),
        ("label=tier", "web-1 job"),
        ("label=tier=back", "job"),
        ("label=tier label=x", "job"),
        ("label=x=", "job"),
        ("label!=tier", "web-2 old"),
        ("label!=tier=back", "web-1 web-2 old"),
        ("ancestor=debian", "web-1 job old"),
        ("ancestor=debian:12", "job"),
        ("ancestor=nginx", "web-2"),
        ("ancestor=sha256:1234", "job"),
        ("volume=results", "old"),
        ("volume=/keep", "old"),
        ("volume=/kee", ""),
        ("before=web-2", "web-1 old"),
        ("since=web-1", "web-2 job"),
        ("since=web-1 before=job", "web-2"),
        ("status=running name=job", ""),
    ],
)
def test_containers(filters: str, names: str) -> None:
    """Filters of one name ask for any, labels for all, different names for all."""
    found = filtered_containers(ROWS, [read(each) for each in filters.split()], find=find, chain_of=chain_of)
    assert " ".join(row.name for row in found) == names


def test_container_to_compare_with_must_be_there() -> None:
    """A typing mistake in ``before`` is an error, not an empty list."""
    with pytest.raises(ContainerNotFound):
        filtered_containers(ROWS, [read("before=nobody")], find=find, chain_of=chain_of)


def test_volumes() -> None:
    """Dangling volumes are those that no container names."""
    rows = [
        VolumeSummary(name="results", created=1.0, mountpoint="", used_by=("work",), labels={"a": "b"}),
        VolumeSummary(name="spare-1", created=1.0, mountpoint=""),
    ]
    for text, names in (
        ("dangling=true", ["spare-1"]),
        ("dangling=0", ["results"]),
        ("name=spare", ["spare-1"]),
        ("label=a=b", ["results"]),
        ("driver=local", ["results", "spare-1"]),
        ("driver=nfs", []),
    ):
        assert [row.name for row in filtered_volumes(rows, [read(text)])] == names


def test_images() -> None:
    """Images are found by name, age and label; one that a build left without a name dangles."""
    rows = [
        RecordingEngine.image("docker.io/library/debian:latest"),
        ImageSummary(
            reference="localhost/untagged:abc",
            id=None,
            digest=None,
            platform="linux/amd64",
            created=time.time(),
            pulled=None,
            size=0,
            compressed_size=0,
            labels={"a": "b"},
        ),
    ]

    def matches(row: ImageSummary, pattern: str) -> bool:
        return pattern in row.reference

    def newest(_: str) -> ImageSummary:
        return rows[1]

    for text, expected in (
        ("dangling=true", rows[1:]),
        ("dangling=false", rows[:1]),
        ("reference=debian", rows[:1]),
        ("label=a", rows[1:]),
        ("until=1h", rows[:1]),
        ("before=x", rows[:1]),
        ("since=x", []),
    ):
        assert filtered_images(rows, [read(text)], matches_name=matches, find=newest) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("status", ["'status'", "NAME=VALUE"]),
        ("stauts=exited", ["did you mean status?"]),
        ("colour=red", ["there are ancestor"]),
        ("status=stopped", ["no status 'stopped'"]),
        ("health=helthy", ["no container's health is 'helthy'", "did you mean healthy?"]),
        ("exited=x", ["'x' is no exit code"]),
        ("dangling=perhaps", ["neither true nor false"]),
        ("name=[", ["no pattern"]),
        ("until=soon", ["24h"]),
        ("name!=x", ["only labels"]),
    ],
)
def test_filters_that_are_none(text: str, words: list[str]) -> None:
    """A filter that means nothing is one sentence that helps."""
    with pytest.raises(InvalidOption) as caught:
        read(text)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_until() -> None:
    """A duration counts back from now; a date and unix seconds are moments."""
    assert created_before(Filter("until", "24h")) == pytest.approx(time.time() - 86400, abs=5)
    assert created_before(Filter("until", "90")) == pytest.approx(time.time() - 90, abs=5)
    assert created_before(Filter("until", "1700000000")) == 1_700_000_000
    assert created_before(Filter("until", "2023-11-14T22:13:20Z")) == 1_700_000_000
    assert created_before(Filter("until", "2023-11-14T23:13:20+01:00")) == 1_700_000_000
    assert created_before(Filter("until", "2023-11-14")) < 1_700_000_000


def test_labels_without_filters() -> None:
    """No filter leaves nothing out."""
    assert has_labels({}, [])
    assert has_labels({}, [Filter("status", "exited")])
