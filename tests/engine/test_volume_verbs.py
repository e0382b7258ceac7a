"""The verbs about volumes ask the engine and answer something readable; ``ps``, ``images`` and ``prune`` filter."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from nbcontainer.engine import tables
from nbcontainer.engine.command_line import parse
from nbcontainer.engine.filters import Filter
from nbcontainer.engine.verbs import VERBS, dispatch, run_request, split_verb
from nbcontainer.errors import ContainerNotFound, InvalidOption, VolumeNotFound
from nbcontainer.model import BindMount, RunOptions, TmpfsMount, VolumeMount
from nbcontainer.testing.engine import RecordingEngine
from tests.engine.test_verbs import FakeSession


@pytest.fixture
def engine() -> RecordingEngine:
    """Lend an engine with a volume in use and a spare one, and four containers."""
    engine = RecordingEngine()
    engine.filled = [
        engine.volume("results", labels={"course": "physics"}, used_by=("work",)),
        engine.volume("f" * 64, anonymous=True),
    ]
    engine.kept = [
        engine.container("new", created=3.0, labels={"a": "b"}),
        engine.container("busy", created=2.0, state="running", exit_code=None, mounted=("results", "/keep")),
        engine.container("old", created=1.0, exit_code=1),
    ]
    return engine


def say(engine: RecordingEngine, line: str) -> Any:
    """The answer to a line."""
    return dispatch(FakeSession(engine), shlex.split(line))


def test_create(engine: RecordingEngine) -> None:
    """A volume is made with its labels, and its name is the answer."""
    assert say(engine, "volume create -l a=b --label c --driver local results") == "results"
    assert engine.last("create_volume") == {"name": "results", "labels": {"a": "b", "c": ""}}
    assert say(engine, "volume create") == "0" * 64
    with pytest.raises(InvalidOption, match="'nfs' is not there"):
        say(engine, "volume create --driver nfs x1")
    with pytest.raises(InvalidOption, match="a volume is a folder"):
        say(engine, "volume create --opt type=nfs x1")


def test_list(engine: RecordingEngine) -> None:
    """The table says who uses a volume; -q gives names, a filter some, json values."""
    shown = str(say(engine, "volume ls"))
    assert "VOLUME NAME" in shown
    assert "work" in shown
    assert "course=physics" in shown
    assert str(say(engine, "volume ls -q --filter dangling=true")) == "f" * 64
    assert str(say(engine, "volume list -q -f name=res -f label=course")) == "results"
    first = json.loads(say(engine, "volume ls --format json").splitlines()[0])
    assert (first["volume_name"], first["labels"], first["used_by"]) == ("results", {"course": "physics"}, "work")
    engine.filled = []
    assert "no volumes" in str(say(engine, "volume ls"))


def test_inspect(engine: RecordingEngine) -> None:
    """One name answers an object in docker's words, several a list."""
    one = say(engine, "volume inspect results")
    assert (one["Name"], one["Driver"], one["UsedBy"]) == ("results", "local", ["work"])
    assert [each["Name"] for each in say(engine, f"volume inspect results {'f' * 64}")] == ["results", "f" * 64]
    assert say(engine, "inspect results")["Mountpoint"].endswith("/results/_data")
    with pytest.raises(VolumeNotFound):
        say(engine, "volume inspect nothing")


def test_remove(engine: RecordingEngine) -> None:
    """Removed volumes are named; with -f one that is not there is let be."""
    assert say(engine, f"volume rm results {'f' * 64}") == f"results\n{'f' * 64}"
    with pytest.raises(VolumeNotFound):
        say(engine, "volume rm nothing")
    assert say(engine, "volume remove -f nothing results") == "results"


def test_prune(engine: RecordingEngine) -> None:
    """A prune takes volumes without a name, with -a or all=true the named ones; it says what that freed."""
    assert say(engine, "volume prune") == f"{'f' * 64}\nfreed 2 MB"
    assert engine.last("prune_volumes") == {"everything": False, "filters": ()}
    say(engine, "volume prune -a -f --filter label!=keep")
    assert engine.last("prune_volumes") == {"everything": True, "filters": (Filter("label", "keep", negated=True),)}
    say(engine, "volume prune --filter all=1")
    assert engine.last("prune_volumes")["everything"]


def test_prune_of_containers(engine: RecordingEngine) -> None:
    """Containers that have ended are removed, those that a filter leaves out are not."""
    assert say(engine, "prune -f --filter until=24h") == "new\nold\nfreed 2 MB"
    assert engine.last("prune_containers") == {"filters": (Filter("until", "24h"),)}


def test_group_of_verbs(engine: RecordingEngine) -> None:
    """``volume`` alone, with a wrong second word, or with -h says what there is."""
    with pytest.raises(InvalidOption, match="volume needs a second word; there are volume create"):
        say(engine, "volume")
    with pytest.raises(InvalidOption, match=r"volume does not know 'prun'; did you mean prune\?"):
        say(engine, "volume prun")
    for line in ("volume -h", "volume --help", "help volume"):
        text = say(engine, line)
        assert "volume inspect" in text
        assert "%container volume … -h" in text
    assert "usage: %container volume rm" in say(engine, "help volume rm")
    assert "usage: %container volume rm" in say(engine, "volume rm -h")
    with pytest.raises(InvalidOption, match="help explains one verb"):
        say(engine, "help volume rm now")


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("ps", ["busy"]),
        ("ps --filter volume=results", ["busy"]),
        ("ps --filter status=exited", ["new", "old"]),
        ("ps --filter exited=1", ["old"]),
        ("ps -a --filter label=a", ["new"]),
        ("ps --filter before=new", ["busy", "old"]),
        ("ps -a --filter since=old --filter status=exited", ["new"]),
        ("ps -n 2", ["new", "busy"]),
        ("ps --last 9", ["new", "busy", "old"]),
        ("ps -l", ["new"]),
        ("ps -a --filter ancestor=debian", ["new", "busy", "old"]),
    ],
)
def test_lists_of_containers(engine: RecordingEngine, line: str, names: list[str]) -> None:
    """What a filter or a number asks for, ended containers among them where it means those."""
    found = say(engine, line)
    assert isinstance(found, tables.Table)
    assert [row.name for row in found] == names


def test_ps_for_programs(engine: RecordingEngine) -> None:
    """``--format json`` gives an object a line."""
    lines = [json.loads(line) for line in say(engine, "ps -a --format json").splitlines()]
    assert [line["names"] for line in lines] == ["new", "busy", "old"]
    assert lines[0]["container_id"].startswith("c0ffee")
    with pytest.raises(InvalidOption, match="--format must be table or json"):
        say(engine, "ps --format '{{.ID}}'")
    with pytest.raises(InvalidOption, match="--last '0'"):
        say(engine, "ps -n 0")


def test_ps_compares_with_containers_only(engine: RecordingEngine) -> None:
    """An image is no container to compare with."""
    engine.known = [engine.image()]
    with pytest.raises(ContainerNotFound, match="to compare with"):
        say(engine, "ps --filter before=debian")


def test_images_for_programs(engine: RecordingEngine) -> None:
    """Images are filtered and given as values, too."""
    engine.known = [engine.image(), engine.image("docker.io/library/nginx:latest")]
    (line,) = say(engine, "images --filter reference=ngi* --format json").splitlines()
    assert json.loads(line)["image"] == "nginx"


def test_remove_a_container_with_its_volumes(engine: RecordingEngine) -> None:
    """``rm -v`` says so to the engine."""
    say(engine, "rm -v new")
    assert engine.last("remove_container") == {"container": "new", "force": False, "volumes": True}
    say(engine, "rm -fv new")
    assert engine.last("remove_container") == {"container": "new", "force": True, "volumes": True}


def test_mounts_and_labels_reach_the_engine() -> None:
    """-v, --mount, --tmpfs and --label of run become values."""
    line = (
        "run -v results:/a -v /b --mount type=bind,src=/tmp,dst=/c,ro --mount type=tmpfs,dst=/d --tmpfs /e"
        " --label x=y -l z debian"
    )
    verb, words = split_verb(shlex.split(line), VERBS, "notebook")
    options = run_request(parse(verb, words, door="notebook")).options
    assert options == RunOptions(
        volumes=(
            VolumeMount(name="results", target="/a"),
            VolumeMount(target="/b"),
            BindMount(source="/tmp", target="/c", read_only=True),
        ),
        tmpfs=(TmpfsMount(target="/e"), TmpfsMount(target="/d")),
        labels=(("x", "y"), ("z", "")),
    )


def test_labels_are_made_harmless(engine: RecordingEngine) -> None:
    """A label steers no terminal and makes no HTML."""
    engine.filled = [engine.volume(labels={"a": "\x1b[2J<b>"})]
    table = say(engine, "volume ls")
    assert "\x1b" not in str(table)
    assert "<b>" not in table._repr_html_()
