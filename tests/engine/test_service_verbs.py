"""The options and verbs of containers that run on behind, as they are typed."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.engine.command_line import parse
from nbcontainer.engine.door import TypedAttach, TypedStart
from nbcontainer.engine.verbs import CREATE, RUN, VERBS, dispatch, run_request
from nbcontainer.errors import InvalidOption, NotFound
from nbcontainer.model import HealthCheck, LogLimits, RestartPolicy, RunOptions, ServiceOptions, ignore
from nbcontainer.testing.engine import RecordingEngine

if TYPE_CHECKING:
    from nbcontainer.engine.door import Door, Typed, TypedRun


class FakeSession:
    """A door that remembers."""

    def __init__(self, engine: Any, door: Door = "notebook") -> None:
        self.engine = engine
        self.door = door
        self.verbs = VERBS
        self.requests: list[Typed] = []
        self.written: list[tuple[str, bytes]] = []

    def pulling(self, image: str, *, quiet: bool) -> Any:
        """Show nothing."""
        self.pulled = (image, quiet)
        return contextlib.nullcontext(ignore)

    def execute(self, request: Typed) -> object:
        """Remember a request."""
        self.requests.append(request)
        return "ran"

    def build(self, request: Any) -> object:
        """Nobody builds here."""
        raise AssertionError(request)

    def output(self, stream: str, data: bytes) -> None:
        """Remember output."""
        self.written.append((stream, data))


@pytest.fixture
def session() -> FakeSession:
    """Lend a notebook with a container of a cell, ``work``, and one that runs on behind, ``web``."""
    kept = [
        RecordingEngine.container(),
        RecordingEngine.container("web", id="b" * 64, state="running", service=True),
    ]
    return FakeSession(RecordingEngine(known=[RecordingEngine.image()], kept=kept))


def typed(line: str) -> TypedRun:
    return run_request(parse(RUN, shlex.split(line), door="notebook"))


def service(line: str) -> ServiceOptions:
    found = typed(line).options.service
    assert found is not None
    return found


def test_without_d_it_is_waited_for() -> None:
    """No service at all."""
    assert (typed("debian ls").behind, typed("debian ls").options.service) == ("", None)
    assert typed("--restart no --no-healthcheck debian ls").options.service is None


@pytest.mark.parametrize("flag", ["-d", "--detach", "--bg"])
def test_detached(flag: str) -> None:
    """Three ways to say it; docker's defaults."""
    assert typed(f"{flag} debian").behind == "start"
    assert service(f"{flag} debian") == ServiceOptions()


def test_all_of_it() -> None:
    """Policies, checks and logs in docker's words."""
    line = (
        "-d --restart on-failure:3 --health-cmd 'curl -f x' --health-interval 5s --health-timeout 1m30s"
        " --health-retries 4 --health-start-period 0s --health-start-interval 500ms"
        " --log-opt max-size=1m --log-opt max-file=2 --log-driver json-file debian"
    )
    assert service(line) == ServiceOptions(
        restart=RestartPolicy(name="on-failure", most=3),
        health=HealthCheck(
            test=("CMD-SHELL", "curl -f x"), interval=5, timeout=90, retries=4, start_period=0, start_interval=0.5
        ),
        log=LogLimits(size=1 << 20, files=2),
    )
    assert service("-d --no-healthcheck debian").health.test == ("NONE",)
    assert service("-d --health-cmd '' debian").health.test == ("NONE",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--restart always debian", "--restart goes with -d"),
        ("--health-cmd x debian", "--health-cmd goes with -d"),
        ("--log-opt max-size=1m debian", "--log-opt goes with -d"),
        ("-d --restart never debian", "unless-stopped"),
        ("-d --health-interval soon debian", "soon"),
        ("-d --health-retries -1 debian", "number of retries"),
        ("-d --no-healthcheck --health-cmd x debian", "exclude each other"),
        ("-d --log-opt max-size debian", "max-size=SIZE"),
        ("-d --log-opt max-file=0 debian", "max-file=NUMBER"),
        ("-d --log-opt labels=x debian", "max-size=SIZE"),
        ("-d --log-driver syslog debian", "files of lines of JSON"),
        ("-d --out x debian", "waited for"),
    ],
)
def test_what_is_refused(line: str, words: str) -> None:
    """In a sentence, before anything is done."""
    with pytest.raises(InvalidOption, match=words):
        typed(line)


def test_create_takes_the_options_of_run(session: FakeSession) -> None:
    """But those of waiting."""
    dispatch(session, shlex.split("create --name later --restart always -e A=b debian sleep 9"))
    (request,) = session.requests
    assert isinstance(request, type(typed("x")))
    assert (request.behind, request.command) == ("create", ("sleep", "9"))
    assert request.options.service == ServiceOptions(restart=RestartPolicy(name="always"))
    assert not {"detach", "out", "failed"} & {option.name for option in CREATE.options}


def test_start_and_restart_of_what_runs_behind(session: FakeSession) -> None:
    """The name is answered; -a shows it; one of a cell is run as before, unless -d."""
    assert str(dispatch(session, ["start", "web"])) == "web"
    assert session.engine.last("start_behind") == {"container": "web"}
    assert str(dispatch(session, shlex.split("restart -t 3 web"))) == "web"
    assert session.engine.last("restart_behind") == {"container": "web", "grace": 3.0}
    dispatch(session, ["start", "-a", "web"])
    dispatch(session, ["start", "work"])
    assert session.requests == [TypedStart(container="web", attach=True), TypedStart(container="work")]
    dispatch(session, ["start", "-d", "work"])
    assert session.engine.last("start_behind") == {"container": "work"}
    dispatch(session, ["restart", "-d", "work"])
    assert session.engine.last("restart_behind")["container"] == "work"


def test_attach(session: FakeSession) -> None:
    """In a terminal, signals and input go there unless told otherwise."""
    dispatch(session, ["attach", "web"])
    session.door = "terminal"
    dispatch(session, ["attach", "--sig-proxy=false", "--no-stdin", "web"])
    assert session.requests == [
        TypedAttach(container="web"),
        TypedAttach(container="web", stdin=False, pass_signals=False),
    ]


def test_logs(session: FakeSession) -> None:
    """A span, the last lines, the time before each line."""
    dispatch(session, shlex.split("logs --since 100 --until 200.5 -n 2 -t web"))
    assert session.engine.last("logs") == {"container": "web", "tail": None, "since": 100.0, "until": 200.5}
    assert session.written == [
        ("stdout", b"2023-11-14T22:13:20+00:00 two\n"),
        ("stderr", b"2023-11-14T22:13:21+00:00 three\n"),
    ]


def test_logs_are_followed(session: FakeSession) -> None:
    """An interrupt is the usual end in a notebook, and Ctrl-C in a terminal."""
    session.engine.failure["following"] = KeyboardInterrupt()
    assert dispatch(session, shlex.split("logs -f -n 1 web")) is None
    assert session.engine.last("follow_logs") == {"container": "web", "tail": 1, "since": None, "until": None}
    assert b"".join(data for _, data in session.written) == b"one\ntwo\nthree\n"
    session.door = "terminal"
    with pytest.raises(KeyboardInterrupt):
        dispatch(session, ["logs", "-f", "web"])


def test_open(session: FakeSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of a published port; what does not run, or is no container, has none."""
    monkeypatch.delenv("JUPYTERHUB_SERVICE_PREFIX", raising=False)
    session.engine.record = {"ports": [{"ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "protocol": "tcp"}]}
    assert str(dispatch(session, ["open", "web"])) == "http://127.0.0.1:8080/"
    page: Any = dispatch(session, shlex.split("open --height 700 web 80"))
    assert 'height="700"' in page._repr_html_()
    for line, kind in (
        ("open web 81", NotFound),
        ("open web 80/udp", InvalidOption),
        ("open web x", InvalidOption),
        ("open web 99999", InvalidOption),
        ("open --height x web", InvalidOption),
        ("open work 80", NotFound),
        ("open debian", NotFound),
    ):
        with pytest.raises(kind):
            dispatch(session, shlex.split(line))
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann/")
    monkeypatch.setattr("nbcontainer.engine.opening.find_spec", lambda _: None)
    assert "pip install" in str(dispatch(session, ["open", "web"]))
    monkeypatch.setattr("nbcontainer.engine.opening.find_spec", lambda _: object())
    assert str(dispatch(session, ["open", "web"])) == "/user/ann/proxy/8080/"
    session.door = "terminal"
    assert str(dispatch(session, ["open", "web"])) == "http://127.0.0.1:8080/"


def test_how_states_are_shown() -> None:
    """In docker's words."""
    from nbcontainer.engine.tables import container_table

    def status(**changes: Any) -> str:
        table = container_table([RecordingEngine.container("web", **changes)])
        return table.cells()[0][4]

    assert status(state="running", health="starting").endswith("(health: starting)")
    assert status(state="running", health="unhealthy").endswith("(unhealthy)")
    assert status(state="running", health="healthy", paused=True).endswith("(Paused)")
    assert status(state="created", exit_code=None) == "Created"
    assert status(state="restarting", exit_code=3).startswith("Restarting (3)")
    assert status(state="dead", reason="lost: its monitor was killed") == "Dead, lost: its monitor was killed"


def test_what_inspect_shows() -> None:
    """Docker's fields, from the record."""
    from nbcontainer.engine.tables import describe_container
    from nbcontainer.engine.views import ContainerDetail

    result = {"start": 1.0, "end": 2.0, "exit_code": 1, "output": "no"}
    record = {
        "service": {"restart": "on-failure:3", "remove": False},
        "log": {"size": 10, "files": 2},
        "restarts": 2,
        "health": {"status": "unhealthy", "failing": 3, "results": [result]},
    }
    shown = describe_container(ContainerDetail(summary=RecordingEngine.container(), record=record))
    assert shown["RestartCount"] == 2
    assert shown["HostConfig"]["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert shown["HostConfig"]["LogConfig"]["Config"] == {"max-size": "10", "max-file": "2"}
    health = shown["State"]["Health"]
    assert (health["Status"], health["FailingStreak"], health["Log"][0]["Output"]) == ("unhealthy", 3, "no")
    plain = describe_container(ContainerDetail(summary=RecordingEngine.container(), record={}))
    assert "Health" not in plain["State"]
    assert "HostConfig" not in plain


def test_options_reach_the_record() -> None:
    """What was asked, and the image's own check under it; --rm and a policy exclude each other."""
    from nbcontainer.engine.service import Service, service_fields
    from nbcontainer.model import ImageConfig, Platform

    config = ImageConfig(platform=Platform.host(), health=HealthCheck(test=("CMD", "x"), interval=7))
    asked = ServiceOptions(restart=RestartPolicy(name="always"), interactive=True)
    fields = service_fields(RunOptions(service=asked, timeout=5), config)
    read = Service.of(fields)
    assert (str(read.restart), read.interactive, read.remove, read.timeout) == ("always", True, False, 5)
    assert read.check is not None
    assert (read.check.argv, read.check.interval) == (("x",), 7)
    assert service_fields(RunOptions(), config) == {}
    with pytest.raises(InvalidOption, match="exclude each other"):
        service_fields(RunOptions(service=asked, remove=True), config)
    for damaged in ({}, {"service": 3}, {"service": {"restart": "x", "check": 3, "timeout": "y"}}):
        assert Service.of(damaged) == Service.of({})
