"""``build``, ``debug`` and ``builder`` as they are typed, and what they answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nbcontainer.build.request import BuildOutput, CacheSource
from nbcontainer.engine.build_verbs import built_message, secret_value, variable_value
from nbcontainer.engine.door import FAILED, SecretSource
from nbcontainer.engine.verbs import dispatch
from nbcontainer.errors import InvalidInput, InvalidOption, NotFound
from nbcontainer.testing.engine import RecordingEngine
from tests.engine.test_verbs import FakeSession


@pytest.fixture
def session():
    """Lend a door over a recording engine."""
    return FakeSession(RecordingEngine())


def built(session, line):
    """The request that a line of ``build`` makes."""
    dispatch(session, ["build", *line.split()])
    return session.builds[-1]


def test_options_reach_the_builder(session, monkeypatch):
    """Every option is read into the request, in docker's words."""
    monkeypatch.setenv("HERE", "from-here")
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    request = built(
        session,
        "-t a -t b:1 -f D --build-arg X=1 --build-arg HERE --build-arg GONE --target t --no-cache --pull"
        " --platform arm64 --network none --label l=1 --add-host db:10.0.0.1 --add-host six=::1"
        " --cache-from app:1 --cache-from type=registry,ref=app:2 --cache-from type=local,src=d --cache-to type=inline"
        " -o type=oci,dest=x.tar -o folder --progress tree -q --ssh default=/s --var v --secret id=s,src=f ctx",
    )
    options = request.options
    assert (request.path, request.quiet, request.progress, request.variables) == ("ctx", True, "tree", ("v",))
    assert options.tags == ("a", "b:1")
    assert options.dockerfile_name == "D"
    assert options.arguments == {"X": "1", "HERE": "from-here"}
    assert (options.target, options.no_cache, options.pull, options.network) == ("t", True, True, "none")
    assert options.platform == "linux/arm64"
    assert options.labels == {"l": "1"}
    assert options.hosts == ("10.0.0.1\tdb", "::1\tsix")
    assert options.outputs == (
        BuildOutput(kind="oci", destination="x.tar"),
        BuildOutput(kind="local", destination="folder"),
    )
    assert options.cache_from == (
        CacheSource(kind="image", place="app:1"),
        CacheSource(kind="registry", place="app:2"),
        CacheSource(kind="local", place="d"),
    )
    assert options.inline_cache
    assert options.agents == {"default": "/s"}
    assert request.secrets == (SecretSource(id="s", kind="file", where="f"),)
    assert options.epoch is None


def test_epoch(session, monkeypatch):
    """SOURCE_DATE_EPOCH comes from an argument or the environment, and is a number."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "12")
    assert built(session, ".").options.epoch == 12
    assert built(session, "--build-arg SOURCE_DATE_EPOCH=34 .").options.epoch == 34
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(InvalidOption, match="number of seconds"):
        built(session, ".")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--secret src=f .", "has no id"),
        ("--secret id=a,mode=4 .", "has 'mode=4'"),
        ("--add-host db .", "is not NAME:ADDRESS"),
        ("--add-host db:host-gateway .", "is no IP address"),
        ("--output type=image,dest=x .", "there are local, tar and oci"),
        ("--output type=tar .", "has no destination"),
        ("--label =x .", "has no name"),
        ("--build-arg =x .", "has no name"),
        ("--var a.b .", "is not the name of a variable"),
        ("--push .", "pushing is not there yet"),
        ("--squash .", "COPY --from"),
        ("--context a b", "given twice"),
        ("--ssh x= .", "there is no agent"),
        ("--cache-from type=gha .", "write NAME, type=registry,ref=NAME or type=local,src=PATH"),
        ("--cache-from type=registry,src=f .", "cannot be used here"),
        ("--cache-from type=local,ref=f .", "cannot be used here"),
        ("--cache-from type=s3,region=x .", "has 'region=x'"),
        ("--cache-from app:! .", "'app:!'"),
        ("--cache-to type=registry,ref=x .", "a cache is written into the image and nowhere else"),
        ("--cache-to x .", "--cache-to type=inline"),
    ],
)
def test_what_cannot_be_read(session, line, sentence):
    """A wrong option is refused with the sentence that says how it is written."""
    with pytest.raises((InvalidOption, InvalidInput), match=sentence):
        built(session, line)


def test_secrets_are_found_where_they_are(tmp_path, monkeypatch):
    """A file, a variable of the environment, a variable of the notebook; what is missing is told."""
    (tmp_path / "f").write_bytes(b"\xffbytes")
    monkeypatch.setenv("TOKEN", "word")
    assert secret_value(SecretSource(id="a", kind="file", where=str(tmp_path / "f")), None) == b"\xffbytes"
    assert secret_value(SecretSource(id="a", kind="environment", where="TOKEN"), None) == b"word"
    assert secret_value(SecretSource(id="a", kind="variable", where="v"), {"v": "text"}) == b"text"
    for source, sentence in (
        (SecretSource(id="a", kind="file", where=str(tmp_path / "none")), "cannot be read"),
        (SecretSource(id="a", kind="environment", where="NOT_THERE"), "no variable NOT_THERE"),
    ):
        with pytest.raises(NotFound, match=sentence):
            secret_value(source, None)
    with pytest.raises(InvalidOption, match="this is a terminal"):
        secret_value(SecretSource(id="a", kind="variable", where="v"), None)


def test_variables_are_text_or_bytes():
    """A variable of another type, or none, is refused by name."""
    assert variable_value("a", {"a": bytearray(b"x")}, what="--var") == b"x"
    with pytest.raises(InvalidOption, match="is a list"):
        variable_value("a", {"a": []}, what="--var")
    with pytest.raises(InvalidOption, match="there is no variable 'b'"):
        variable_value("b", {}, what="--var")


def test_debug_and_prune(session):
    """Debugging names line, command and the way in; builder knows one action."""
    text = str(dispatch(session, ["debug"]))
    for part in ("line 3", "exit code 2", "RUN make test", "/src", "cache at /cache", "%%container --failed --before"):
        assert part in text
    session.door = "terminal"
    assert "nbcontainer run --failed" in str(dispatch(session, ["debug"]))
    assert str(dispatch(session, ["builder", "prune", "--unused-for", "2h"])) == "forgot 3 steps, freed 2 MB"
    assert session.engine.last("clear_build_cache") == {"unused_for": 7200.0}
    with pytest.raises(InvalidOption, match="there is builder prune"):
        dispatch(session, ["builder", "build"])


def test_failed_runs(session):
    """A run with --failed has no image: all words are the command; --before needs it."""
    dispatch(session, ["run", "--failed", "sh", "-c", "ls"])
    request = session.requests[-1]
    assert (request.image, request.command, request.failed) == (FAILED, ("sh", "-c", "ls"), "after")
    dispatch(session, ["run", "--failed", "--before", "ls"])
    assert session.requests[-1].failed == "before"
    with pytest.raises(InvalidOption, match="--before goes with --failed"):
        dispatch(session, ["run", "--before", "debian"])


def test_messages(session):
    """A finished build names image, layers, size, steps and time; quietly, its id."""
    answer = session.engine.build(built(session, "-t app .").options)
    assert str(built_message(answer, quiet=False)).startswith("built app:latest: 2 layers, 117 MB, 3 steps, 1 of them")
    assert str(built_message(answer, quiet=True)) == str(answer.image.id)
    nameless = str(built_message(replace(answer, names=()), quiet=False))
    assert nameless.startswith("built an image without a name (-t NAME gives it one): 2 layers")
    assert nameless.endswith(f"\n{answer.image.digest}")
