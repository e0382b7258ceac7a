"""Terminals below cells: a ticket with the line, a page that asks for it, and a sentence where nobody answers."""

from __future__ import annotations

import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.displaypub import CapturingDisplayPublisher

from nbcontainer.engine.settings import Settings
from nbcontainer.engine.tickets import take_ticket
from nbcontainer.ipython.terminals import show_terminal
from tests.ipython.test_kernel import Kernel, event_loop_of_the_client, kernel

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["event_loop_of_the_client", "kernel"]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lend the folder in which kernel and server of a user meet."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    return folder / "nbcontainer"


def displayed(kernel: Kernel, code: str) -> tuple[dict[str, str], str]:
    """What a cell displays, by kind, and what it writes to standard error."""
    request = kernel.client.execute(code)
    data: dict[str, str] = {}
    error = ""
    while True:
        message = kernel.client.get_iopub_msg(timeout=60)
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        if "data" in content:
            data = content["data"]
        elif message["msg_type"] == "stream":
            error += content["text"]
        elif content.get("execution_state") == "idle":
            return data, error


def ticket_of(runtime: Path, page: str) -> Any:
    """The ticket that a page asks for."""
    (name,) = set(re.findall(r"nbcontainer/terminals/([0-9a-f]{32})", page))
    ticket = take_ticket(str(runtime), name)
    assert ticket is not None
    return ticket


def test_line_is_handed_on(runtime: Path, kernel: Kernel) -> None:
    """With its variables put in, the settings of the notebook, its folder, and what ``-e NAME`` means here."""
    kernel.run("import os; image, os.environ['GIVEN'] = 'host', 'from here'\n%config ContainerMagics.network = 'none'")
    shown, error = displayed(kernel, "%container run -it -v .:{image}/x {image} sh")
    assert "absolute" in error, "a volume that is none is refused here, not in the terminal"
    assert not shown
    shown, error = displayed(kernel, "%container run -it -e GIVEN -v .:/data {image} sh -c '{image}'")
    assert error == ""
    ticket = ticket_of(runtime, shown["text/html"])
    words = ["run", "--network", "none", "-it", "-e", "GIVEN", "-v", ".:/data", "host", "sh", "-c", "{image}"]
    assert list(ticket.argv[-len(words) :]) == words
    assert ticket.argv[1:3] == ("-m", "nbcontainer")
    assert ticket.directory == os.getcwd()
    assert ticket.environment["GIVEN"] == "from here"
    assert ticket.environment["NBCONTAINER_ROOT"] == os.environ["NBCONTAINER_ROOT"]
    assert "JPY_PARENT_PID" not in ticket.environment
    assert "type in one of this machine's: nbcontainer run" in shown["text/plain"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("%%container -it host\necho x\n", "one %"),
        ("%container run -it --out x host sh", "no variable"),
        ("%container exec -it nobody sh", ""),
    ],
)
def test_lines_that_are_for_no_terminal(runtime: Path, kernel: Kernel, code: str, words: str) -> None:
    """A cell's text is not typed, a terminal's output goes into no variable."""
    shown, error = displayed(kernel, code)
    if words:
        assert words in error
        assert not runtime.exists()
    else:
        assert list(ticket_of(runtime, shown["text/html"]).argv[-4:]) == ["exec", "-it", "nobody", "sh"]


def test_terminal_without_a_person_colours_the_cell(kernel: Kernel) -> None:
    """-t alone gives the cell's script a terminal to write to."""
    shown = kernel.run("%%container -t host\ntest -t 1 && ls --color=auto -d /\n")
    assert shown["error"] is None
    assert "\x1b[" in shown["stdout"]


def test_nothing_of_a_line_becomes_markup(runtime: Path, shell: Any) -> None:
    """Quotes, tags, scripts and line ends of a command stay text, in the sentence and in the script."""
    before, shell.display_pub = shell.display_pub, CapturingDisplayPublisher()
    hostile = "</script><img src=x onerror='alert(1)'>\"${x}`\\\n&"
    try:
        show_terminal(["run", "-it", hostile], Settings(root="/store"), {})
        (output,) = shell.display_pub.outputs
    finally:
        shell.display_pub = before
    page = output["data"]["text/html"]
    assert page.count("</script>") == 1
    assert "<img" not in page
    (title,) = re.findall(r"frame\.title = (.*);", page)
    assert json.loads(re.sub(r"\\u\{([0-9a-f]+)\}", lambda mark: json.dumps(chr(int(mark[1], 16)))[1:-1], title))
    ticket = ticket_of(runtime, page)
    assert ticket.argv == (sys.executable, "-m", "nbcontainer", "run", "-it", hostile)
