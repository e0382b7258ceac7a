"""``%container`` and ``%%container`` as a person types them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from IPython.core.error import UsageError

from nbcontainer.errors import (
    ContainerExit,
    ContainerInterrupted,
    ContainerNotFound,
    ContainerStartError,
    ImageNotFound,
)
from nbcontainer.ipython import extension
from nbcontainer.ipython.completion import complete_container
from nbcontainer.ipython.session import settings_of
from nbcontainer.model import RunResult
from nbcontainer.testing.engine import RecordingEngine, Script, pull_events


def test_the_cell_is_the_script(notebook):
    """The body goes to the engine as it is, with docker's defaults and no network of its own choice."""
    outcome = notebook.run("%%container debian\necho $HOME {print} {{x}}\n")
    asked = notebook.engine.last("run")
    assert outcome.error is None
    assert outcome.value is None
    assert asked["image"] == "debian"
    assert asked["script"] == "echo $HOME {print} {{x}}\n"
    assert asked["argv"] == ()
    assert asked["stdin"] is None
    assert asked["check"] is True
    assert asked["options"].network is None


def test_with_a_command_the_cell_is_its_input(notebook):
    """``%%container IMAGE COMMAND`` feeds the body to the command."""
    notebook.run("%%container -q debian awk '{print $1}' -v x\na b\n")
    asked = notebook.engine.last("run")
    assert asked["argv"] == ("awk", "{print $1}", "-v", "x")
    assert asked["stdin"] == b"a b\n"
    assert asked["script"] is None


def test_shell_comment_and_continued_line(notebook):
    """``--shell`` is split into words, a comment is one, and a backslash continues the line."""
    notebook.run("%%container --shell 'python3 -u' \\\n  -e A='b c' \\\n  debian  # with python\nprint(1)\n")
    asked = notebook.engine.last("run")
    assert asked["shell"] == ("python3", "-u")
    assert asked["options"].environment == ("A=b c",)
    assert asked["script"] == "print(1)\n"


def test_comments_above_the_magic_are_allowed(notebook):
    """What IPython answers with a confusing error just works."""
    outcome = notebook.run("# what this does\n\n%%container debian\ntrue\n")
    assert outcome.error is None
    assert notebook.engine.last("run")["script"] == "true\n"
    assert notebook.run("# a comment\n1 + 1\n").value == 2


def test_no_image_means_the_default_one(notebook):
    """The embedded default is this machine, copy-on-write; a trait changes it."""
    notebook.run("%%container\ntrue\n")
    assert notebook.engine.last("run")["image"] == "host"
    notebook.run("%config ContainerMagics.default_image = 'class/base'")
    notebook.run("%%container -q\ntrue\n")
    assert notebook.engine.last("run")["image"] == "class/base"
    assert isinstance(notebook.run("%container run").error, UsageError)


def test_output_is_streamed_to_its_own_stream(notebook):
    """Standard output and error stay apart; a character split across reads survives."""
    notebook.engine.scripts = [
        Script(output=(("stdout", b"caf\xc3"), ("stderr", b"\x1b[31moh\x1b[0m\r"), ("stdout", b"\xa9\n")))
    ]
    outcome = notebook.run("%%container debian\ntrue\n")
    assert outcome.out == "café\n"
    assert outcome.err == "\x1b[31moh\x1b[0m\r"


def test_a_failing_cell_raises(notebook):
    """One line, the last lines of standard error, and an error other tools know."""
    notebook.engine.scripts = [Script(output=(("stderr", b"boom\n"),), exit_code=3)]
    outcome = notebook.run("%%container debian\nexit 3\n")
    assert isinstance(outcome.error, subprocess.CalledProcessError)
    assert isinstance(outcome.error, ContainerExit)
    assert outcome.error.returncode == 3
    assert "ContainerExit: debian: exit code 3\nboom" in outcome.out + outcome.err
    assert "Traceback" not in outcome.out + outcome.err


def test_no_raise_error_goes_on(notebook):
    """The code is left in ``_exit_code``, as ``%%bash`` does."""
    notebook.engine.scripts = [Script(exit_code=3)]
    assert notebook.run("%%container --no-raise-error debian\nexit 3\n").error is None
    assert notebook.shell.user_ns["_exit_code"] == 3


def test_an_interrupt_always_stops_the_notebook(notebook):
    """Not even ``--no-raise-error`` lets the next cells run."""
    notebook.engine.scripts = [Script(exit_code=130, reason="interrupted", detail="interrupted; 3 processes ended")]
    outcome = notebook.run("%%container --no-raise-error debian\nsleep 9\n")
    assert isinstance(outcome.error, ContainerInterrupted)
    assert "3 processes ended" in outcome.out + outcome.err


def test_an_interrupt_outside_a_container_is_one_line(notebook):
    """An interrupted pull stops the notebook without a traceback of ours."""
    notebook.engine.failure["pull"] = KeyboardInterrupt()
    outcome = notebook.run("%container pull debian")
    assert isinstance(outcome.error, KeyboardInterrupt)
    assert "KeyboardInterrupt: interrupted" in outcome.out + outcome.err
    assert "Traceback" not in outcome.out + outcome.err


def test_out_and_err_capture_text(notebook):
    """Captured streams are not shown, and are there after a failure too."""
    notebook.engine.scripts = [
        Script(output=(("stdout", b"caf\xc3"), ("stdout", b"\xa9"), ("stderr", b"no")), exit_code=1)
    ]
    outcome = notebook.run("%%container --out o --err e debian\nfalse\n")
    assert isinstance(outcome.error, ContainerExit)
    assert notebook.shell.user_ns["o"] == "café"
    assert notebook.shell.user_ns["e"] == "no"
    assert outcome.out.startswith("ContainerExit") or outcome.out == ""


def test_a_cell_on_behind(notebook):
    """``%%container -d``: the cell is its script; name, id and what it publishes are the value."""
    notebook.engine.record = {"ports": [{"ip": "", "host_port": 8080, "container_port": 80, "protocol": "tcp"}]}
    outcome = notebook.run("%%container -d --name web --restart always debian\necho hi\n")
    assert outcome.error is None
    asked = notebook.engine.last("launch")
    assert (asked["image"], asked["script"], asked["options"].name) == ("debian", "echo hi\n", "web")
    assert str(asked["options"].service.restart) == "always"
    assert str(outcome.value).splitlines() == [
        "web (c0ffee000000) runs on behind",
        "0.0.0.0:8080->80/tcp  http://127.0.0.1:8080/",
    ]
    outcome = notebook.run("%container run -d debian sleep 9")
    assert notebook.engine.last("launch")["argv"] == ("sleep", "9")
    assert isinstance(notebook.run("%%container --bg debian cat\nx\n").error, UsageError)
    assert str(notebook.run("%container create --name later debian").value) == "later"
    assert notebook.engine.last("create")["options"].name == "later"


def test_attach_and_its_interrupt(notebook):
    """What it writes is shown; an interrupt ends the showing, in one line, and is no failure."""
    notebook.engine.kept.append(RecordingEngine.container("web", id="b" * 64, state="running", service=True))
    notebook.engine.scripts = [
        Script(output=(("stdout", b"on\n"),), exit_code=3),
        Script(output=(("stdout", b"on\n"),), error=KeyboardInterrupt()),
        Script(),
    ]
    outcome = notebook.run("%container attach --no-raise-error web")
    assert (outcome.out, outcome.error, notebook.shell.user_ns["_exit_code"]) == ("on\n", None, 3)
    assert notebook.engine.last("attach")["pass_signals"] is False
    outcome = notebook.run("%container attach web")
    assert (outcome.out, outcome.err, outcome.error) == ("on\n", "detached; web goes on\n", None)
    notebook.run("%container start -a web")
    assert notebook.engine.last("attach")["start"] is True


def test_variables_in_options(notebook, tmp_path):
    """``{name}`` works in options and in the image, and nowhere else."""
    notebook.shell.user_ns.update(folder=tmp_path, image="debian:12", n=3)
    notebook.run("%%container -v {folder}:/data -e N={n} -e J='{\"a\":1}' {image} echo {n}\n\n")
    asked = notebook.engine.last("run")
    assert asked["options"].volumes[0].source == str(tmp_path)
    assert asked["options"].environment == ("N=3", 'J={"a":1}')
    assert asked["image"] == "debian:12"
    assert asked["argv"] == ("echo", "{n}")


def test_variables_are_looked_up_strictly(notebook):
    """An unknown name is an error, a doubled brace is a brace, and not every value is text."""
    outcome = notebook.run("%%container -e A={nothing} debian\ntrue\n")
    assert isinstance(outcome.error, UsageError)
    assert "'nothing'" in str(outcome.error)
    notebook.run("%%container -e A={{nothing}} debian\ntrue\n")
    assert notebook.engine.last("run")["options"].environment == ("A={nothing}",)
    notebook.shell.user_ns["table"] = [1]
    assert "is a list" in str(notebook.run("%%container -e A={table} debian\ntrue\n").error)


def test_the_body_is_expanded_only_when_asked(notebook):
    """``--expand`` replaces ``{{name}}``, and leaves ``$`` and single braces to the shell."""
    notebook.shell.user_ns["n"] = 3
    notebook.run("%%container --expand debian\necho {{n}} {{ n }} ${n} {n}\n")
    assert notebook.engine.last("run")["script"] == "echo 3 3 ${n} {n}\n"
    assert isinstance(notebook.run("%%container --expand debian\necho {{nothing}}\n").error, UsageError)


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("%%container debian\n\n\n", ["empty", "%container run debian"]),
        ("%%container pull debian\nx\n", ["line verb", "%container pull"]),
        ("%%container --nmae x debian\nx\n", ["--name"]),
        ("%%container 'debian\nx\n", ["quote"]),
        ("%container imags", ["images"]),
        ("%container run --shell python3 debian", ["--shell"]),
        ("%%container --shell python3 debian cat\nx\n", ["--shell"]),
    ],
)
def test_bad_lines_are_one_red_line(notebook, cell, words):
    """A `UsageError`: no traceback, and nothing was run."""
    outcome = notebook.run(cell)
    assert isinstance(outcome.error, UsageError)
    assert all(word in str(outcome.error) for word in words)
    assert "Traceback" not in outcome.out + outcome.err
    assert not [call for call in notebook.engine.calls if call.method == "run"]


def test_run_word_in_a_cell_is_taken_as_meant(notebook):
    """People write ``%%container run debian``."""
    notebook.run("%%container run debian\ntrue\n")
    assert notebook.engine.last("run")["image"] == "debian"


def test_a_cell_in_a_running_container(notebook):
    """``%%container exec NAME`` runs the cell there, as a script or as the input of a command; failures are red."""
    notebook.engine.kept.append(notebook.engine.container("work", state="running"))
    notebook.engine.scripts = [Script(output=(("stdout", b"there\n"),)), Script(), Script(exit_code=3)]
    outcome = notebook.run("%%container exec --shell python3 -e A={1 + 1} work\nprint(1)\n".replace("{1 + 1}", "2"))
    assert (outcome.error, outcome.out) == (None, "there\n")
    asked = notebook.engine.last("exec")
    assert (asked["container"], asked["script"], asked["shell"]) == ("work", "print(1)\n", ("python3",))
    assert asked["options"].environment == ("A=2",)
    notebook.run("%%container exec work tr a b\naaa\n")
    asked = notebook.engine.last("exec")
    assert (asked["argv"], asked["stdin"], asked["script"]) == (("tr", "a", "b"), b"aaa\n", None)
    assert isinstance(notebook.run("%%container exec work\nexit 3\n").error, ContainerExit)
    assert isinstance(notebook.run("%%container exec work\n\n").error, UsageError)
    assert isinstance(notebook.run("%%container exec\ntrue\n").error, UsageError)
    assert isinstance(notebook.run("%%container exec gone\ntrue\n").error, ContainerNotFound)


def test_start_and_restart_stream_like_a_run(notebook):
    """A kept container runs once more: output below the cell, text into variables, the code in `_exit_code`."""
    notebook.engine.kept.append(notebook.engine.container("work"))
    notebook.engine.scripts = [Script(output=(("stdout", b"again\n"),)), Script(exit_code=4)]
    assert notebook.run("%container start work").out == "again\n"
    notebook.run("%container restart -t 1 --no-raise-error work")
    assert notebook.engine.last("restart")["grace"] == 1.0
    assert notebook.run("_exit_code").value == 4


def test_line_run_shows_output_and_no_repr(notebook):
    """``%container run`` prints what the command prints; assigned, it is the result."""
    notebook.engine.scripts = [Script(output=(("stdout", b"hi\n"),)), Script(output=(("stdout", b"ho\n"),))]
    assert "RunResult" not in notebook.run("%container run debian echo hi").out
    outcome = notebook.run("result = %container run debian echo ho")
    assert outcome.out == "ho\n"
    result = notebook.shell.user_ns["result"]
    assert isinstance(result, RunResult)
    assert result.stdout == "ho\n"
    assert notebook.engine.last("run")["argv"] == ("echo", "ho")


@pytest.mark.parametrize(
    ("cell", "kept"),
    [
        ("%container run debian true", False),
        ("1\n  %container run debian true", False),
        ("r = %container run debian true\nr", True),
        ("r = %container run debian true\n%container ps\nr", True),
        ("get_ipython().run_line_magic('container', 'run debian true')", True),
    ],
)
def test_plain_line_leaves_no_empty_prompt_in_a_terminal(notebook, cell, kept):
    """Terminal IPython writes ``Out[n]:`` before it asks how to show a value, so a plain line has none."""
    assert isinstance(notebook.run(cell).value, RunResult) == kept


def test_option_after_the_image_gets_a_hint(notebook):
    """``%%container debian -q`` cannot find a command called -q: say why."""
    error = ContainerStartError("debian: -q: not found", exit_code=127)
    notebook.engine.scripts = [Script(error=error)]
    outcome = notebook.run("%%container debian -q\ntrue\n")
    assert isinstance(outcome.error, ContainerStartError)
    assert "options go before the image" in str(outcome.error)


def test_missing_network_gets_a_hint(notebook):
    """Once, after the output, and not when there is a network."""
    failed = Script(output=(("stderr", b"curl: (6) Could not resolve host: x\n"),), exit_code=6)
    notebook.engine.scripts = [failed, failed]
    assert notebook.run("%%container debian\ncurl x\n").err.count("hint: ") == 1
    assert "hint: " not in notebook.run("%%container --network host debian\ncurl x\n").err


def test_line_verbs_answer_objects(notebook):
    """Tables are values: they can be kept and asked."""
    outcome = notebook.run("images = %container images\nlen(images)")
    assert outcome.value == 1
    assert "root" in str(notebook.run("%container").value)
    assert "verbs:" in str(notebook.run("%container help").value)
    assert "--env" in str(notebook.run("%container run -h").value)
    assert "--env" in str(notebook.run("%%container -h\n\n\n").value)


def test_pull_is_shown_and_silent_when_asked(notebook):
    """A pull leaves its closing line; ``-q`` leaves nothing but the name."""
    notebook.engine.events = pull_events()
    shown = notebook.run("name = %container pull debian").out
    assert shown.splitlines()[-1].startswith("pulled debian:latest sha256:")
    assert notebook.shell.user_ns["name"] == "docker.io/library/debian:latest"
    assert "pulled" not in notebook.run("%%container -q debian\ntrue\n").out


def test_engine_errors_are_one_line(notebook):
    """No traceback for what the person can do something about."""
    outcome = notebook.run("%container rmi nothing")
    assert isinstance(outcome.error, ImageNotFound)
    assert "Traceback" not in outcome.out + outcome.err
    assert "ImageNotFound: there is no image" in outcome.out + outcome.err


def test_capture_sees_the_output(notebook):
    """``%%capture`` above the magic takes its output."""
    notebook.engine.scripts = [Script(output=(("stdout", b"hi\n"), ("stderr", b"ho\n")))]
    outcome = notebook.run("%%capture taken\n%%container debian\ntrue\n")
    assert outcome.out == ""
    assert notebook.shell.user_ns["taken"].stdout == "hi\n"
    assert notebook.shell.user_ns["taken"].stderr == "ho\n"


def test_output_is_capped_with_one_note(notebook):
    """A cell that writes without end does not take the notebook with it."""
    notebook.run("%config ContainerMagics.output_limit = 10")
    notebook.engine.scripts = [Script(output=(("stdout", b"x" * 8),) * 4)]
    out = notebook.run("%%container debian\nyes\n").out
    assert out.startswith("x" * 10 + "\n[stdout truncated after 10 B; use --out VARIABLE")
    assert out.count("x") == 10


def test_traits_become_settings(notebook, monkeypatch):
    """A trait wins over the environment, which wins over the default."""
    monkeypatch.setenv("NBCONTAINER_ROOT", "/from/environment")
    monkeypatch.setenv("NBCONTAINER_INSECURE_REGISTRIES", "a,b")
    assert settings_of(notebook.magics).root == "/from/environment"
    notebook.run("%config ContainerMagics.root = '/from/trait'")
    notebook.run("%config ContainerMagics.mirrors = {'docker.io': 'http://localhost:5000', 'ghcr.io': ['a', 'b']}")
    notebook.run("%config ContainerMagics.interrupt_grace = 5")
    settings = settings_of(notebook.magics)
    assert settings.root == "/from/trait"
    assert settings.insecure_registries == ("a", "b")
    assert dict(settings.mirrors) == {"docker.io": ("http://localhost:5000",), "ghcr.io": ("a", "b")}
    assert settings.interrupt_grace == 5


def test_changed_settings_make_a_new_engine(notebook, monkeypatch):
    """The engine is made once, and again when ``%config`` changed what it was made of."""
    made: list[RecordingEngine] = []

    def make(settings):
        made.append(RecordingEngine(settings))
        return made[-1]

    monkeypatch.setattr(extension, "make_engine", make)
    extension.close_engine()
    notebook.run("%container images")
    notebook.run("%container images")
    assert len(made) == 1
    notebook.run("%config ContainerMagics.root = '/other'")
    notebook.run("%container images")
    assert [engine.closed for engine in made] == [True, False]
    assert made[1].settings.root == "/other"


def test_help_is_made_from_the_table(notebook):
    """``%container?`` shows the verbs and the options of ``run``."""
    from IPython.core.oinspect import getdoc

    text = str(getdoc(notebook.shell.find_line_magic("container")))
    assert "verbs:" in text
    assert "--no-raise-error" in text


def test_unload_takes_everything_back(notebook):
    """No magic, no completer, no filter, no configurable is left, and the engine is closed."""
    shell = notebook.shell
    notebook.run("%container images")
    extension.unload_ipython_extension(shell)
    assert shell.find_line_magic("container") is None
    assert shell.find_cell_magic("container") is None
    assert complete_container not in shell.Completer.custom_matchers
    assert extension.allow_comment_above not in shell.input_transformers_cleanup
    assert not [each for each in shell.configurables if type(each).__name__ == "ContainerMagics"]
    assert notebook.engine.closed
    extension.unload_ipython_extension(shell)


def test_loading_twice_registers_once(notebook):
    """``%load_ext`` after ``%reload_ext`` does not pile up."""
    extension.load_ipython_extension(notebook.shell)
    assert notebook.shell.Completer.custom_matchers.count(complete_container) == 1
    assert notebook.shell.input_transformers_cleanup.count(extension.allow_comment_above) == 1


def test_loading_is_lazy():
    """Nothing heavy is imported before the first use."""
    program = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "before = set(sys.modules)\n"
        "shell.run_line_magic('load_ext', 'nbcontainer.ipython')\n"
        "new = set(sys.modules) - before\n"
        "print(*sorted(new))\n"
        "shell.history_manager.end_session()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    new = done.stdout.split()
    assert "nbcontainer.ipython.magics" in new
    heavy = ("ipywidgets", "pyroute2", "requests", "argparse", "nbcontainer.engine", "nbcontainer.model", "ctypes")
    assert [name for name in new if name.split(".")[0] in heavy or name.startswith(heavy)] == []
    assert len(new) < 15, new
