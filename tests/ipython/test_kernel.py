"""Real cells, in a real kernel, on the real engine."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import start_new_kernel
from jupyter_core.utils import ensure_event_loop

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.userns, pytest.mark.overlay]


class Kernel:
    """One kernel, one cell at a time."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client

    def run(self, code: str, *, interrupt_on: str = "") -> dict[str, Any]:
        """What the cell showed: text by stream, displayed plain text, the error; interrupted when it says a word."""
        request = self.client.execute(code)
        shown: dict[str, Any] = {"stdout": "", "stderr": "", "display": [], "error": None}
        while True:
            message = self.client.get_iopub_msg(timeout=60)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "stream":
                shown[content["name"]] += content["text"]
                if interrupt_on and interrupt_on in content["text"]:
                    self.manager.interrupt_kernel()
            elif "data" in content:
                shown["display"].append(content["data"]["text/plain"])
            elif message["msg_type"] == "error":
                shown["error"] = content
            elif content.get("execution_state") == "idle":
                return shown


@pytest.fixture(scope="module")
def event_loop_of_the_client() -> Iterator[None]:
    """The loop that jupyter_client makes on its first use and keeps: made before a test can be blamed for it."""
    loop = ensure_event_loop()
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event_loop_of_the_client: None) -> Iterator[Kernel]:
    """A kernel with a store of its own and the extension loaded."""
    monkeypatch.setenv("NBCONTAINER_ROOT", str(tmp_path / "store"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager, client = start_new_kernel(kernel_name="python3", cwd=os.getcwd())
    try:
        running = Kernel(manager, client)
        assert running.run("%load_ext nbcontainer")["error"] is None
        yield running
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=False)


def test_cells_run_in_containers_and_leave_nothing(kernel):
    """Output in its own stream, a fresh copy-on-write root each time, errors as one line."""
    first = kernel.run("%%container host\nid -u; echo made > /made; cat /made; echo oh >&2\n")
    assert first["stdout"].split() == ["0", "made"]
    assert first["stderr"] == "oh\n"
    second = kernel.run("%%container host\ntest ! -e /made; echo boom >&2; exit 7\n")
    assert second["error"]["ename"] == "ContainerExit"
    assert second["error"]["traceback"] == ["ContainerExit: host: exit code 7\nboom"]
    assert not os.path.exists("/made")


def test_interrupt_ends_every_process_and_says_so(kernel):
    """Grandchildren too; the kernel lives on and the next cell runs."""
    marker = f"sleep {os.getpid()}"
    started = time.monotonic()
    shown = kernel.run(f"%%container host\n({marker} &) ; echo started; {marker}\n", interrupt_on="started")
    assert time.monotonic() - started < 30
    assert shown["error"]["ename"] == "ContainerInterrupted"
    assert "interrupted" in shown["error"]["evalue"]
    assert len(shown["error"]["traceback"]) == 1
    listed = kernel.run(f"!pgrep -fx '{marker}' | wc -l")
    assert listed["stdout"].strip() == "0"
    assert kernel.run("%container run host echo alive")["stdout"] == "alive\n"


def test_a_container_on_behind_outlives_its_kernel(kernel):
    """A cell starts it, others follow it and are interrupted; the kernel is restarted, and it is still there."""
    shown = kernel.run("%%container -d --name web host\necho up; while :; do echo tick; sleep 0.2; done\n")
    assert shown["error"] is None
    assert "web (" in shown["display"][0]
    followed = kernel.run("%container logs -f web", interrupt_on="tick")
    assert followed["error"] is None
    assert followed["stdout"].startswith("up\ntick\n")
    attached = kernel.run("%container attach web", interrupt_on="tick")
    assert attached["error"] is None
    assert attached["stderr"] == "detached; web goes on\n"
    kernel.manager.restart_kernel(now=True)
    kernel.client.wait_for_ready(timeout=60)
    assert kernel.run("%load_ext nbcontainer")["error"] is None
    (listed,) = kernel.run("%container ps")["display"]
    assert "web" in listed
    assert "Up " in listed
    ended = kernel.run("%container rm -f web")
    assert ended["display"] == ["web"]
    assert "no containers" in kernel.run("%container ps -a")["display"][0]
    # what the killed kernel's launcher left is swept by the next one
    assert kernel.run("%%container host\ntrue\n")["error"] is None


def test_status_and_tables_are_displayed(kernel):
    """A line verb is the cell's value."""
    assert any("store" in text for text in kernel.run("%container")["display"])
    assert any("IMAGE" in text for text in kernel.run("%container images")["display"])
