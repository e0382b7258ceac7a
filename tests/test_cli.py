"""``nbcontainer`` in a terminal: bytes through, exit codes, one-line errors."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from nbcontainer.cli import main
from nbcontainer.errors import ContainerNotFound, ContainerStartError, ImageNotFound, RegistryUnreachable
from nbcontainer.testing.engine import RecordingEngine, Script, pull_events


@pytest.fixture
def engine():
    return RecordingEngine(known=[RecordingEngine.image()], kept=[RecordingEngine.container()])


@pytest.fixture
def nbcontainer(engine):
    return lambda *words: main(words, make_engine=lambda: engine)


def test_run_passes_bytes_and_the_exit_code_through(nbcontainer, engine, capfdbinary):
    """Nothing is decoded, nothing is added."""
    engine.scripts = [Script(output=(("stdout", b"\xff\x00\n"), ("stderr", b"\xfe")), exit_code=42)]
    assert nbcontainer("run", "debian", "ls", "-la") == 42
    shown = capfdbinary.readouterr()
    assert shown.out == b"\xff\x00\n"
    assert shown.err == b"\xfe"
    assert engine.last("run")["argv"] == ("ls", "-la")
    assert engine.last("run")["stdin"] is None
    assert engine.closed


def test_standard_input_is_passed_only_when_asked(nbcontainer, engine, monkeypatch):
    """``-i``, as docker has it."""
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert nbcontainer("run", "-i", "debian", "cat") == 0
    assert engine.last("run")["stdin"] is stdin.buffer


def test_exec_and_start_are_transparent_too(nbcontainer, engine, monkeypatch, capfdbinary):
    """The same bytes and codes for a command in a running container and for one that is started again."""
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff"))
    monkeypatch.setattr(sys, "stdin", stdin)
    engine.scripts = [
        Script(output=(("stdout", b"\xff"),), exit_code=9),
        Script(exit_code=4),
        Script(exit_code=143, reason="stopped", detail="stopped by `%container stop`"),
    ]
    assert nbcontainer("exec", "-i", "work", "cat", "-u") == 9
    assert capfdbinary.readouterr().out == b"\xff"
    assert (engine.last("exec")["argv"], engine.last("exec")["stdin"]) == (("cat", "-u"), stdin.buffer)
    assert nbcontainer("start", "work") == 4
    assert nbcontainer("restart", "-t", "0", "work") == 143
    assert b"work: stopped by `nbcontainer stop`" in capfdbinary.readouterr().err
    assert nbcontainer("exec", "gone", "true") == 125


def test_run_on_behind_answers_the_id(nbcontainer, engine, capsys):
    """Docker's answer, for scripts."""
    assert nbcontainer("run", "-d", "-i", "--name", "web", "debian", "sleep", "9") == 0
    assert capsys.readouterr().out == f"c0ffee{'0' * 58}\n"
    asked = engine.last("launch")
    assert (asked["argv"], asked["options"].service.interactive) == (("sleep", "9"), True)
    assert nbcontainer("create", "--name", "later", "debian") == 0
    assert engine.last("create")["options"].name == "later"
    engine.failure["launch"] = ContainerStartError("x: not found", exit_code=127)
    assert nbcontainer("run", "-d", "debian", "x") == 127


def test_attach_passes_on(nbcontainer, engine, monkeypatch, capfdbinary):
    """Bytes, input, signals and the code; what ended it is said."""
    stdin = io.TextIOWrapper(io.BytesIO(b"\xff"))
    monkeypatch.setattr(sys, "stdin", stdin)
    engine.kept.append(RecordingEngine.container("web", id="b" * 64, state="running", service=True))
    engine.scripts = [
        Script(output=(("stdout", b"\xff"),), exit_code=7),
        Script(exit_code=143, reason="stopped", detail="stopped by `%container stop`"),
    ]
    assert nbcontainer("attach", "web") == 7
    assert capfdbinary.readouterr().out == b"\xff"
    assert (engine.last("attach")["stdin"], engine.last("attach")["pass_signals"]) == (stdin.buffer, True)
    assert nbcontainer("start", "-a", "web") == 143
    assert (engine.last("attach")["stdin"], engine.last("attach")["start"]) == (None, True)
    assert b"web: stopped by `nbcontainer stop`" in capfdbinary.readouterr().err


ENDS = [
    (Script(exit_code=137, reason="signalled", detail="killed by signal 9"), 137, "debian: killed by signal 9"),
    (Script(exit_code=143, reason="timeout", detail="timeout 10 s"), 143, "debian: timeout 10 s"),
    (Script(exit_code=137, reason="interrupted", detail="2 processes ended"), 130, "2 processes ended"),
    (Script(error=ContainerStartError("x: not found", exit_code=127)), 127, "x: not found"),
    (Script(error=ImageNotFound("there is no debian")), 125, "there is no debian"),
    (Script(error=RegistryUnreachable("no answer")), 125, "no answer"),
    (Script(error=KeyboardInterrupt()), 130, "interrupted"),
]


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end[2])
def test_ends_of_a_run(nbcontainer, engine, capsys, end):
    """Docker's exit codes, and one line that says why."""
    script, code, words = end
    engine.scripts = [script]
    assert nbcontainer("run", "debian", "x") == code
    shown = capsys.readouterr()
    assert f"nbcontainer: {words}" in shown.err or words in shown.err
    assert "Traceback" not in shown.err
    assert engine.closed


def test_sentences_are_in_the_terminals_words(nbcontainer, engine, capsys):
    """Errors, ends of runs and tables name verbs as this door has them."""
    engine.failure = {"logs": ContainerNotFound("no container 'x'; `%container ps -a` lists those that are here")}
    assert nbcontainer("logs", "x") == 1
    assert "`nbcontainer ps -a`" in capsys.readouterr().err
    engine.scripts = [Script(reason="stopped", exit_code=143, detail="stopped by `%container stop` (SIGTERM)")]
    assert nbcontainer("run", "debian", "x") == 143
    assert capsys.readouterr().err == "nbcontainer: debian: stopped by `nbcontainer stop` (SIGTERM)\n"
    engine.kept = [RecordingEngine.container(reason="stopped by `%container stop` (SIGTERM)")]
    assert nbcontainer("ps", "-a") == 0
    assert "`nbcontainer stop`" in capsys.readouterr().out


def test_usage_errors_are_2_and_others_1(nbcontainer, capsys):
    """A line that cannot be read, and an engine that says no."""
    assert nbcontainer("run", "--nmae", "x", "debian") == 2
    assert "did you mean --name?" in capsys.readouterr().err
    assert nbcontainer("frobnicate") == 2
    assert nbcontainer("rmi", "nothing") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("nbcontainer: there is no image 'nothing'")


def test_tables_are_plain_text(nbcontainer, capsys):
    """What docker prints."""
    assert nbcontainer("images") == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("IMAGE")


def test_pull_shows_lines_on_standard_error(nbcontainer, engine, capsys):
    """Standard output is for what scripts read."""
    engine.events = pull_events()
    assert nbcontainer("pull", "debian") == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1].startswith("pulled debian:latest")
    assert nbcontainer("pull", "-q", "debian") == 0
    shown = capsys.readouterr()
    assert shown.out == "docker.io/library/debian:latest\n"
    assert shown.err == ""


def test_missing_network_gets_a_hint(nbcontainer, engine, capsys):
    """At this door too."""
    engine.scripts = [Script(output=(("stderr", b"Could not resolve host: x\n"),), exit_code=6)]
    assert nbcontainer("run", "debian", "curl", "x") == 6
    assert "nbcontainer: hint: " in capsys.readouterr().err


def test_help_and_version_need_no_engine(capsys):
    """Nor anything else."""

    def refuse():
        raise AssertionError("an engine was made")

    for words in ([], ["--help"], ["help"], ["help", "run"], ["run", "-h"], ["--version"]):
        assert main(words, make_engine=refuse) == 0
        assert "nbcontainer" in capsys.readouterr().out


def test_install_can_be_undone(nbcontainer, monkeypatch, tmp_path, capsys):
    """One file in the profile, and it loads the extension."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert nbcontainer("install") == 0
    (file,) = (tmp_path / "profile_default" / "startup").iterdir()
    compile(file.read_text(), str(file), "exec")
    assert "load_ext" in file.read_text()
    assert nbcontainer("uninstall") == 0
    assert not file.exists()
    assert nbcontainer("uninstall") == 0
    assert "nothing to remove" in capsys.readouterr().out


PROGRAM = """
import sys
from nbcontainer.cli import main
from nbcontainer.testing.engine import RecordingEngine, Script
output = [("stdout", b"x" * 65536)] * 64
sys.exit(main(make_engine=lambda: RecordingEngine(known=[RecordingEngine.image()], scripts=[Script(output=output)])))
"""


def test_a_reader_that_leaves_is_no_error():
    """``nbcontainer run … | head -c1`` says nothing on standard error."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "debian", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        errors = process.stderr.read()
    assert errors == b""
    assert process.returncode == 141


def test_as_a_module():
    """``python -m nbcontainer`` is the same program."""
    done = subprocess.run([sys.executable, "-m", "nbcontainer", "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("nbcontainer: nbcontainer run needs an IMAGE")
    assert "Traceback" not in done.stderr


def test_interrupt_outside_a_run_is_130():
    """Ctrl-C in a pull ends with one line."""
    program = textwrap.dedent("""
        import os, signal, sys, time
        from nbcontainer.cli import main
        from nbcontainer.testing.engine import RecordingEngine
        class Slow(RecordingEngine):
            def pull(self, *arguments, **options):
                print("ready", flush=True)
                time.sleep(30)
        sys.exit(main(["pull", "debian"], make_engine=Slow))
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors == "nbcontainer: interrupted\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-"])
def test_closed_standard_streams(closed):
    """What nobody wants to hear goes nowhere, and nothing else is written into a file that has its number."""
    line = f'"$0" -m nbcontainer version {closed}'
    done = subprocess.run(["sh", "-c", line, sys.executable], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_current_folder_that_is_gone(tmp_path):
    """A path that is relative to nothing is a mistake in the line."""
    line = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" -I -m nbcontainer run -v ./x:/x host true'
    done = subprocess.run(["sh", "-c", line, sys.executable], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("nbcontainer: the current folder has been removed; change to one that is there")


def test_a_list_of_nothing_is_nothing(nbcontainer, engine, capsys):
    """Scripts count lines."""
    engine.kept = []
    assert nbcontainer("ps", "-aq") == 0
    assert capsys.readouterr().out == ""
