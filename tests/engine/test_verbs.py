"""The verb table: every verb has help, an example, a parser at both doors and a line in the reference."""

from __future__ import annotations

import contextlib
import inspect
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.cli import TERMINAL_VERBS
from nbcontainer.engine.command_line import (
    HelpRequested,
    nearest,
    parse,
    read_duration,
    read_environment,
    usage,
    verb_help,
)
from nbcontainer.engine.door import TypedExec, TypedStart, network_hint, owner_hint, worded
from nbcontainer.engine.mount_options import read_volume
from nbcontainer.engine.verbs import (
    RUN,
    VERBS,
    dispatch,
    find_verb,
    overview,
    reference_markdown,
    run_request,
    split_verb,
)
from nbcontainer.errors import ImageNotFound, InvalidOption
from nbcontainer.model import BindMount, ExecOptions, RunOptions, ignore
from nbcontainer.testing.engine import RecordingEngine

if TYPE_CHECKING:
    from nbcontainer.engine.door import Door, Typed, TypedBuild, TypedRun

ISSUE_VERBS = [
    "build",
    "builder",
    "debug",
    "network connect",
    "network create",
    "network disconnect",
    "network inspect",
    "network ls",
    "network prune",
    "network rm",
    "port",
    "pull",
    "images",
    "rmi",
    "tag",
    "inspect",
    "history",
    "run",
    "create",
    "attach",
    "open",
    "exec",
    "start",
    "restart",
    "ps",
    "stop",
    "kill",
    "wait",
    "rename",
    "rm",
    "logs",
    "cp",
    "diff",
    "commit",
    "export",
    "stats",
    "top",
    "pause",
    "unpause",
    "update",
    "df",
    "info",
    "doctor",
    "version",
    "help",
    "prune",
    "volume create",
    "volume inspect",
    "volume ls",
    "volume prune",
    "volume rm",
]


class FakeSession:
    """A door that remembers."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.door: Door = "notebook"
        self.verbs = VERBS
        self.requests: list[Typed] = []
        self.builds: list[TypedBuild] = []
        self.written: list[tuple[str, bytes]] = []

    def pulling(self, image: str, *, quiet: bool) -> Any:
        """Show nothing, but remember the question."""
        self.pulled = (image, quiet)
        return contextlib.nullcontext(ignore)

    def execute(self, request: Typed) -> object:
        """Remember a request."""
        self.requests.append(request)
        return "ran"

    def build(self, request: TypedBuild) -> object:
        """Remember a request."""
        self.builds.append(request)
        return "built"

    def output(self, stream: str, data: bytes) -> None:
        """Remember output."""
        self.written.append((stream, data))


@pytest.fixture
def engine() -> RecordingEngine:
    return RecordingEngine(known=[RecordingEngine.image()], kept=[RecordingEngine.container()])


@pytest.fixture
def session(engine: RecordingEngine) -> FakeSession:
    return FakeSession(engine)


def run_options(line: str, door: Door = "notebook") -> TypedRun:
    return run_request(parse(RUN, shlex.split(line), door=door))


def test_table_holds_the_verbs_people_were_promised():
    """The table has the verbs of the issues, each once."""
    assert sorted(verb.name for verb in VERBS) == sorted(ISSUE_VERBS)
    names = [name for verb in TERMINAL_VERBS for name in (verb.name, *verb.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("door", ["notebook", "terminal"])
@pytest.mark.parametrize("verb", TERMINAL_VERBS, ids=lambda verb: verb.name)
def test_every_verb_is_documented_and_parses_its_examples(verb, door):
    """Help names every option and positional, and every example can be read at each door it belongs to."""
    text = verb_help(verb, door)
    assert verb.summary in text
    assert usage(verb, door) in text
    assert not verb.summary.endswith(".")
    for option in verb.offered(door):
        assert option.help
        assert all(flag in text for flag in option.flags)
    assert all(positional.help for positional in verb.positionals)
    assert verb.examples
    for example in verb.examples:
        found, words = split_verb(shlex.split(example), TERMINAL_VERBS, door)
        assert found == verb
        parse(verb, words, door=door)
    with pytest.raises(HelpRequested):
        parse(verb, ["-h"], door=door)


@pytest.mark.parametrize("verb", TERMINAL_VERBS, ids=lambda verb: verb.name)
def test_flags_of_a_verb_are_unambiguous(verb):
    """No flag stands twice at one door, and none takes -h away from help."""
    for door in ("notebook", "terminal"):
        flags = [flag for option in verb.options if option.door in {None, door} for flag in option.flags]
        assert len(flags) == len(set(flags))
        assert not {"-h", "--help"} & set(flags)


def test_reference_page_has_every_verb_and_option():
    """The reference page is complete, because it is made from the table."""
    page = reference_markdown()
    for verb in VERBS:
        assert f"## {verb.name}\n" in page
        assert all(option.flags[-1] in page for option in verb.offered("notebook"))
    assert "refus" not in page
    assert "\n|" in page


def test_overview_lists_every_verb():
    """``help`` lists what there is."""
    text = overview("notebook", VERBS)
    assert all(f"  {verb.name} " in text for verb in VERBS)
    assert "%%container" in text
    assert "%%container" not in overview("terminal", VERBS)


def test_everything_after_the_image_is_the_command():
    """Options of the command, ``--`` and ``-h`` belong to the command."""
    request = run_options("-q debian ls -la --name x -- -h")
    assert request.image == "debian"
    assert request.command == ("ls", "-la", "--name", "x", "--", "-h")
    assert request.quiet
    assert request.options.name == ""


@pytest.mark.parametrize("line", ["-e A=b", "-eA=b", "--env A=b", "--env=A=b", "-qe A=b", "-- "])
def test_spellings_of_an_option(line):
    """Short, attached, clustered and long forms read alike; ``--`` ends the options."""
    request = run_options(f"{line} debian")
    assert request.image == "debian"
    assert request.options.environment == (() if line == "-- " else ("A=b",))


def test_options_may_stand_between_positionals_where_no_command_follows():
    """``rm a -f b`` removes both, as docker's does."""
    arguments = parse(find_verb("rm", VERBS, "notebook"), ["a", "-f", "b"], door="notebook")
    assert arguments.container == ("a", "b")
    assert arguments.force


def test_run_options_reach_the_engine_as_values(monkeypatch, tmp_path):
    """Every option of ``run`` becomes a typed value."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INHERITED", "yes")
    monkeypatch.delenv("ABSENT", raising=False)
    line = (
        "--name n --rm -e A=b -e INHERITED -e ABSENT -v .:/data:ro -w /data -u 1000:1000 --hostname h"
        " --entrypoint /bin/x --network host --read-only --pull never --platform arm64 --timeout 1m30s"
        " --out o --err e --no-raise-error -s 'python3 -u' --expand host"
    )
    request = run_options(line)
    assert request.options == RunOptions(
        name="n",
        remove=True,
        environment=("A=b", "INHERITED=yes"),
        volumes=(BindMount(source=str(tmp_path), target="/data", read_only=True),),
        working_directory="/data",
        user="1000:1000",
        hostname="h",
        entrypoint=("/bin/x",),
        network="host",
        read_only=True,
        pull="never",
        platform="linux/arm64",
        timeout=90.0,
    )
    assert (request.out, request.err, request.shell) == ("o", "e", ("python3", "-u"))
    assert request.expand
    assert not request.raise_error


def test_defaults_leave_the_choice_to_the_engine():
    """Nothing asked means None or empty, and an empty entry point means none at all."""
    assert run_options("debian").options == RunOptions()
    assert run_options("--entrypoint '' debian ls").options.entrypoint == ()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--nmae x debian", ["--nmae", "did you mean --name?", "%container run -h"]),
        ("-x debian", ["no option -x"]),
        ("-e", ["-e needs a value", "NAME"]),
        ("", ["needs an IMAGE", "usage:"]),
        ("--network egress: debian", ["names that may be reached", "egress:example.org"]),
        ("--network a/b debian", ["'a/b'", "egress:HOST"]),
        ("-p http debian", ["'http'", "8080:80"]),
        ("--rm=false debian", ["--rm is a switch"]),
        ("--detach-keys ctrl-p debian bash", ["--detach-keys", "only in a terminal"]),
        ("-m much debian", ["'much'", "256m"]),
        ("--memory -5 debian", ["'-5'", "256m"]),
        ("--cpus two debian", ["--cpus 'two'", "1.5"]),
        ("--cpu-shares 1.5 debian", ["--cpu-shares '1.5'", "512"]),
        ("--cpuset-cpus 3-1 debian", ["'3-1'", "0-2,4"]),
        ("--pids-limit -2 debian", ["-1 for any number"]),
        ("--ulimit files=3 debian", ["'files'", "nofile"]),
        ("--ulimit nofile=3:2 debian", ["above the hard"]),
        ("--tmpfs data debian", ["PATH[:OPTIONS]"]),
        ("--tmpfs /x:suid debian", ["'suid'", "size=SIZE"]),
        ("--device fuse debian", ["HOST[:CONTAINER[:rwm]]"]),
        ("--device /dev/fuse:/dev/fuse:x debian", ["'x'", "r, w or both"]),
        ("--cap-add EVERYTHING debian", ["'EVERYTHING'", "capabilities(7)"]),
        ("--security-opt apparmor=x debian", ["no security module"]),
        ("--security-opt seccomp=/no/file debian", ["/no/file", "not a file"]),
        ("--security-opt unknown debian", ["no-new-privileges"]),
        ("--security-opt systempaths=unconfined debian", ["stays hidden"]),
        ("--stop-signal NONE debian", ["'NONE'", "TERM"]),
        ("--privileged debian", ["--privileged", "--cap-add"]),
        ("--pid host debian", ["--pid", "no sandbox"]),
        ("--ipc=host debian", ["--ipc", "no sandbox"]),
        ("--userns host debian", ["--userns", "never the machine's root"]),
        ("--timeout soon debian", ["'soon'", "1m30s"]),
        ("--timeout 0 debian", ["'0'", "positive"]),
        ("-v some/data:/x debian", ["'some/data'", "no name of a volume", "./some/data"]),
        ("-v d:/x debian", ["'d'", "2 to 128"]),
        ("-v .:/x:nocopy debian", ["nocopy is for volumes"]),
        ("-v data:/x:shared debian", ["shared", "never show on the other"]),
        ("-v data:/x:ro,rw debian", ["ro and rw"]),
        ("-v data:/x:ro:y debian", ["HOST:CONTAINER[:ro] or NAME:CONTAINER"]),
        ("-v data debian", ["'data' must be an absolute path"]),
        ("--mount data debian", ["'data' needs a value", "data=VALUE"]),
        ("--mount type=volume,target=x debian", ["'x' must be an absolute path"]),
        ("--mount type=volume,source=data debian", ["no target", "target=/data"]),
        ("--mount type=bind,target=/x debian", ["no source", "source=."]),
        ("--mount type=bind,source=/no/such,target=/x debian", ["/no/such", "create it"]),
        ("--mount type=bind,source=.,target=/x,bind-propagation=shared debian", ["never show on the other"]),
        ("--mount type=bind,source=.,target=/x,bind-recursive=disabled debian", ["bind-recursive", "comes along"]),
        ("--mount type=bind,source=.,target=/x,volume-nocopy debian", ["'volume-nocopy'", "type=volume"]),
        ("--mount type=volume,source=./data,target=/x debian", ["'./data'", "type=bind"]),
        ("--mount type=volume,source=data,target=/x,volume-driver=nfs debian", ["only the local driver"]),
        ("--mount type=volume,target=/x,volume-subpath=sub debian", ["volume-subpath needs a source"]),
        ("--mount type=volume,target=/x,target=/y debian", ["target twice"]),
        ("--mount type=volume,target=/x,readonly=perhaps debian", ["neither true nor false"]),
        ("--mount type=image,source=x,target=/x debian", ["type=image", "not be mounted there yet"]),
        ("--mount type=disk,target=/x debian", ["no type 'disk'", "volume, bind and tmpfs"]),
        ("--mount type=tmpfs,target=/x,tmpfs-mode=9 debian", ["tmpfs-mode=9", "octal"]),
        ("--mount type=tmpfs,target=/x,tmpfs-sise=9 debian", ["'tmpfs-sise'", "did you mean tmpfs-size"]),
        ("--mount 'type=tmpfs,\"target=/x' debian", ["cannot be read"]),
        ("-l =x debian", ["no name"]),
        ("-v .:/ debian", ["below /"]),
        ("-v .:x debian", ["absolute"]),
        ("-v /no/such/folder:/x debian", ["/no/such/folder", "create it"]),
        ("-v .:/x:z debian", ["SELinux", "leave it out"]),
        ("-v .:/x:w debian", ["'w'", "ro, rw and nocopy"]),
        ("-e =b debian", ["no name"]),
        ("--out 1x debian", ["variable '1x'"]),
        ("-w data debian", ["/data"]),
        ("--platform a/b/c/d debian", ["OS/ARCH"]),
        ("-s '' debian", ["python3"]),
    ],
)
def test_errors_name_the_thing_and_the_way_out(line, words):
    """A line that cannot be read is one sentence that helps."""
    with pytest.raises(InvalidOption) as caught:
        run_options(line)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_the_other_door_are_refused():
    """``--out`` needs variables, ``-i`` a standard input."""
    with pytest.raises(InvalidOption, match="only in a notebook"):
        run_options("--out x debian", door="terminal")
    assert run_options("-i debian", door="terminal").interactive


def test_surplus_words_are_an_error():
    """A verb without a command does not swallow words."""
    with pytest.raises(InvalidOption, match="'more'"):
        parse(find_verb("tag", VERBS, "notebook"), ["a", "b", "more"], door="notebook")


def test_unknown_verbs_suggest():
    """The nearest verb, or how to run a command in an image of that name."""
    with pytest.raises(InvalidOption, match="did you mean images"):
        find_verb("imags", VERBS, "notebook")
    with pytest.raises(InvalidOption, match=r"%container run IMAGE COMMAND.*%%container IMAGE"):
        find_verb("debian", VERBS, "notebook")
    assert nearest("zzz", ["run"]) == ""


def test_substitution_reaches_options_and_images_but_no_command():
    """``{name}`` is the door's business, and a command is left alone."""
    arguments = parse(RUN, ["-e", "A={x}", "{x}", "echo", "{x}"], door="notebook", substitute=lambda text: text.upper())
    assert arguments.env == ("A={X}",)
    assert arguments.image == "{X}"
    assert arguments.command == ("echo", "{x}")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("1.5", 1.5), ("1m30s", 90), ("2h", 7200), ("500ms", 0.5), ("1h1m1s", 3661)]
)
def test_durations(text, seconds):
    """Seconds, or Go's notation."""
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "1x", "m", "1s1m", "inf", "nan", "٣"])
def test_durations_that_are_none(text):
    """Anything else is refused."""
    with pytest.raises(InvalidOption):
        read_duration(text)


def test_volumes_expand_the_home_folder(monkeypatch, tmp_path):
    """``~`` is this machine's home; the container side is made normal."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_volume("~:/a//b/") == BindMount(source=str(tmp_path), target="/a/b")


def test_environment_values_keep_equal_signs():
    """Only the first ``=`` separates."""
    assert read_environment("A=b=c") == "A=b=c"
    assert read_environment("A=") == "A="


@pytest.mark.parametrize(
    "text",
    [
        "W: Failed to fetch http://deb.debian.org  Temporary failure resolving 'deb.debian.org'",
        "curl: (6) Could not resolve host: example.org",
        "socket.gaierror: [Errno -3] Temporary failure in name resolution",
        "ping: example.org: Name or service not known",
        "wget: bad address 'example.org'",
        "npm ERR! getaddrinfo EAI_AGAIN registry.npmjs.org",
        "dial tcp: lookup example.org: no such host",
        "connect: Network is unreachable",
    ],
)
def test_failed_look_ups_get_a_hint(text):
    """What programs say without a network is recognised, unless there is one."""
    assert "--network host" in network_hint(text, None)
    assert "--network host" in network_hint(text, "none")
    assert network_hint(text, "host") == ""


def test_ordinary_failures_get_no_hint():
    """A missing file has nothing to do with the network."""
    assert network_hint("cat: x: No such file or directory", None) == ""


def test_no_word_asks_for_the_status(session, engine):
    """Plain ``%container`` shows the status."""
    assert "recording" in str(dispatch(session, []))


@pytest.mark.parametrize(
    ("line", "method", "shown"),
    [
        ("pull -q debian", "pull", "docker.io/library/debian:latest"),
        ("images", "images", "117 MB"),
        ("images -q", "images", str(RecordingEngine.image().id)[7:19]),
        ("images --no-trunc", "images", str(RecordingEngine.image().id)),
        ("images nothing", "images", "no images"),
        ("rmi -f debian", "remove_image", "Untagged: docker.io/library/debian:latest"),
        ("tag debian my/base", "tag", "docker.io/my/base:latest"),
        ("inspect debian", "inspect", '"Cmd"'),
        ("inspect work", "inspect", '"Status": "exited"'),
        ("history debian", "history", "CMD [bash]"),
        ("ps", "containers", "no running containers"),
        ("ps -a", "containers", "Exited (0)"),
        ("ls -aq", "containers", "c0ffee000000"),
        ("rm -f work", "remove_container", "work"),
        ("stop -t 2 work", "stop", "work"),
        ("kill -s HUP work", "kill", "work"),
        ("wait work", "wait", "0"),
        ("rename work analysis", "rename", "work is now analysis"),
        ("df", "disk_usage", "17 MB (14 %)"),
        ("info", "info", "/nowhere"),
        ("doctor", "doctor", "tier: recording"),
        ("version", "version", "nbcontainer"),
    ],
)
def test_verbs_ask_the_engine_and_answer_something_readable(session, engine, line, method, shown):
    """Each verb asks one question and its answer can be printed."""
    answer = dispatch(session, shlex.split(line))
    assert method in [call.method for call in engine.calls]
    assert shown in str(answer)


def test_a_removal_that_takes_only_the_name_says_so(session, engine):
    """While somebody builds, the layers stay, and it is told when they will go."""
    engine.busy = True
    assert "Its layers go with the next removal" in str(dispatch(session, ["rmi", "debian"]))


def test_several_names_inspect_to_a_list(session):
    """One name is an object, several are a list."""
    one: Any = dispatch(session, ["inspect", "debian"])
    several: Any = dispatch(session, ["inspect", "debian", "work"])
    assert one["Os"] == "linux"
    assert [entry["Id"][:6] for entry in several] == ["sha256", "c0ffee"]


def test_force_and_options_arrive(session, engine):
    """Switches are handed on."""
    dispatch(session, ["rmi", "-f", "debian"])
    assert engine.last("remove_image") == {"image": "debian", "force": True}
    dispatch(session, ["pull", "--platform", "arm64", "debian"])
    assert engine.last("pull")["platform"] == "linux/arm64"


def test_signals_and_graces_arrive(session, engine):
    """A signal by name or number, a grace in seconds or none at all; the engine's own default when nothing is said."""
    for line, method, arguments in (
        ("kill work", "kill", {"number": 9}),
        ("kill --signal usr1 work", "kill", {"number": 10}),
        ("stop work", "stop", {"grace": None}),
        ("stop -t 1m30s work", "stop", {"grace": 90}),
        ("stop --time 0 work", "stop", {"grace": 0}),
    ):
        dispatch(session, shlex.split(line))
        assert engine.last(method) == {"container": "work", **arguments}
    with pytest.raises(InvalidOption, match="did you mean SIGKILL"):
        dispatch(session, ["kill", "-s", "KIL", "work"])


def test_run_is_the_doors_business(session):
    """The handler only hands the request over."""
    assert dispatch(session, ["run", "debian", "ls", "-la"]) == "ran"
    assert session.requests[0].command == ("ls", "-la")


def test_logs_tail_counts_lines_and_keeps_streams(session):
    """The last lines are taken over both streams, stamped when asked."""
    dispatch(session, ["logs", "--tail", "2", "work"])
    assert session.written == [("stdout", b"two\n"), ("stderr", b"three\n")]
    session.written.clear()
    dispatch(session, ["logs", "-t", "-n", "1", "work"])
    assert session.written == [("stderr", b"2023-11-14T22:13:21+00:00 three\n")]
    session.written.clear()
    dispatch(session, ["logs", "-n", "all", "work"])
    assert len(session.written) == 3


def test_help_of_one_verb_and_of_none(session):
    """``help``, ``help VERB`` and ``VERB -h`` agree."""
    assert dispatch(session, ["help", "ls"]) == dispatch(session, ["ps", "-h"])
    assert "verbs:" in str(dispatch(session, ["help"]))
    assert dispatch(session, ["-h"]) == dispatch(session, ["help"])


def test_engine_errors_pass_through(session):
    """Errors of the engine are not dressed up."""
    with pytest.raises(ImageNotFound):
        dispatch(session, ["rmi", "nothing"])


def test_recording_engine_has_the_engines_signatures():
    """The fake cannot drift from the engine."""
    from nbcontainer.engine.engine import Engine

    names = [name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_")]
    for name in names:
        assert inspect.signature(getattr(RecordingEngine, name)) == inspect.signature(getattr(Engine, name)), name


def test_words_of_a_door() -> None:
    """Sentences are written as a notebook has them, and shown in a terminal as that has them."""
    text = "no container 'x'; `%container ps -a` lists those that are here (%container df)"
    assert worded(text, "notebook") == text
    assert (
        worded(text, "terminal") == "no container 'x'; `nbcontainer ps -a` lists those that are here (nbcontainer df)"
    )
    assert worded("NBCONTAINER_ROOT or %config ContainerMagics.root", "terminal") == "NBCONTAINER_ROOT"
    assert worded("begin it with %%container IMAGE, 100%container", "terminal").endswith(
        "%%container IMAGE, 100%container"
    )


def test_owner_hint() -> None:
    """An ordinary user who meets a file of somebody else's on the host image is told why it cannot be changed."""
    assert "read-only" in owner_hint("host", "sh: /etc/passwd: Permission denied", root=False)
    assert "read-only" in owner_hint("host", "touch: Value too large for defined data type", root=False)
    assert owner_hint("host", "sh: /etc/passwd: Permission denied", root=True) == ""
    assert owner_hint("debian", "Permission denied", root=False) == ""
    assert owner_hint("host", "No such file", root=False) == ""


def test_exec_keeps_the_command_verbatim(session):
    """What follows the container is the command; options before it are read, and what docker has more is refused."""
    dispatch(session, shlex.split("exec -e A=b -u nobody -w /tmp --timeout 1m work ls -la --x"))
    (request,) = session.requests
    assert isinstance(request, TypedExec)
    assert (request.container, request.command) == ("work", ("ls", "-la", "--x"))
    assert request.options == ExecOptions(environment=("A=b",), user="nobody", working_directory="/tmp", timeout=60)
    dispatch(session, shlex.split("exec -d work nginx"))
    assert session.requests[-1].options.detached
    for line, words in (
        ("exec", "needs a CONTAINER"),
        ("exec --detach-keys ctrl-p work sh", "only in a terminal"),
        ("exec --privileged work sh", "--cap-add"),
    ):
        with pytest.raises(InvalidOption, match=words):
            dispatch(session, shlex.split(line))


def test_start_and_restart(session):
    """Both name one container; the grace is for the one that is ended, the time limit for the one that is started."""
    dispatch(session, shlex.split("start --out text work"))
    dispatch(session, shlex.split("restart -t 0 --timeout 2 work"))
    assert session.requests == [
        TypedStart(container="work", out="text"),
        TypedStart(container="work", restart=True, grace=0.0, timeout=2.0),
    ]
