"""What a cell's command reads with -i: the answer of the person, or nothing and a sentence."""

from __future__ import annotations

import queue
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.ipython.test_kernel import Kernel, event_loop_of_the_client, kernel

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["event_loop_of_the_client", "kernel"]

pytestmark = [pytest.mark.userns, pytest.mark.overlay]


def answered(kernel: Kernel, code: str, answers: Sequence[str | None], *, allow_stdin: bool = True) -> dict[str, Any]:
    """Run a cell, and answer each time its input box opens; None interrupts instead. What it showed, and the boxes."""
    client = kernel.client
    request = client.execute(code, allow_stdin=allow_stdin)
    shown: dict[str, Any] = {"stdout": "", "stderr": "", "error": None, "boxes": []}
    waiting = list(answers)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            asked = client.get_stdin_msg(timeout=0.01)
        except queue.Empty:
            pass
        else:
            shown["boxes"].append(asked["content"])
            answer = waiting.pop(0)
            if answer is None:
                kernel.manager.interrupt_kernel()
            else:
                client.input(answer)
        try:
            message = client.get_iopub_msg(timeout=0.1)
        except queue.Empty:
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            shown[content["name"]] += content["text"]
        elif message["msg_type"] == "error":
            shown["error"] = content
        elif content.get("execution_state") == "idle":
            assert not waiting, "not every answer was asked for"
            return shown
    raise AssertionError(f"the cell does not end: {shown}")


def test_input_box_answers_what_the_command_reads(kernel: Kernel) -> None:
    """Line by line, when it reads; what it shows before stands before; the rest of the cell goes on."""
    cell = (
        "%%container -i host\necho name?; read name; echo hello $name; read more; echo and $more; sleep 0.5; echo end\n"
    )
    shown = answered(kernel, cell, ["Ada Lovelace", "ü"])
    assert shown["error"] is None
    assert shown["stdout"] == "name?\nhello Ada Lovelace\nand ü\nend\n"
    assert [box["password"] for box in shown["boxes"]] == [False, False]


def test_nobody_is_asked_while_nothing_is_read(kernel: Kernel) -> None:
    """A command that only works gets no box, however silent it is, and what reads a file is not meant."""
    cell = "sleep 1; (sleep 0.6; echo x) | while read line; do echo $line; done; cat /etc/hostname >/dev/null\n"
    shown = answered(kernel, f"%%container -i host\n{cell}", [])
    assert shown["error"] is None
    assert shown["boxes"] == []
    assert shown["stdout"] == "x\n"


def test_question_for_a_password_hides_the_answer(kernel: Kernel) -> None:
    """As getpass does in a cell."""
    shown = answered(
        kernel, "%%container -i host\nprintf 'Password for me: '; read secret; echo ${#secret}\n", ["1234"]
    )
    assert shown["boxes"][0]["password"] is True
    assert shown["stdout"].endswith("4\n")


def test_interrupt_of_the_box_ends_the_cell(kernel: Kernel) -> None:
    """■ while it is open ends the command, and nobody is asked again on the way."""
    shown = answered(kernel, "%%container -i host\ntrap 'read again' INT; read name; read more\n", [None])
    assert shown["error"]["ename"] == "ContainerInterrupted"
    assert len(shown["boxes"]) == 1


def test_front_end_without_input_gives_none(kernel: Kernel) -> None:
    """As papermill and nbconvert are: the command gets an end of file, the cell says so once."""
    shown = answered(kernel, "%%container -i host\nread a; echo $?; read b; echo $?\n", [], allow_stdin=False)
    assert shown["error"] is None
    assert shown["stdout"] == "1\n1\n"
    assert shown["stderr"].count("nobody can be asked here") == 1


def test_cell_without_input_never_waits(kernel: Kernel) -> None:
    """Without -i there is none, at once, and a command that says so gets a hint."""
    shown = answered(kernel, "%%container --shell /usr/bin/python3 --no-raise-error host\ninput('name? ')\n", [])
    assert "EOFError" in shown["stderr"]
    assert "-i" in shown["stderr"].splitlines()[-1]


def test_line_and_a_command_that_joins_ask_too(kernel: Kernel) -> None:
    """A line's command, and one in a container that runs."""
    shown = answered(kernel, "%container run -i host sh -c 'read x; echo got $x'", ["1"])
    assert shown["stdout"] == "got 1\n"
