"""The server extension in a real Jupyter server: who may have a terminal, and that it is the one of the ticket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import requests
import websocket

from nbcontainer.engine.tickets import Ticket, leave_ticket
from tests.integration.tiers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TOKEN = "sesame"
AUTHORIZED = {"Authorization": f"token {TOKEN}"}


class Server:
    """A Jupyter server that has the extension, under a base URL as a hub gives it."""

    def __init__(self, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.runtime = folder / "runtime"
        self.base = f"http://127.0.0.1:{port}/user/me/"
        variables = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        variables |= {"HOME": str(folder), "JUPYTER_RUNTIME_DIR": str(self.runtime), "SHELL": "/bin/sh"}
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root"),
                *(f"--ServerApp.port={port}", "--ServerApp.base_url=/user/me/", f"--IdentityProvider.token={TOKEN}"),
                "--ServerApp.jpserver_extensions={'nbcontainer.jupyter': True, 'jupyter_server_terminals': True}",
                *options,
            ],
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, within=30, what="the server answers")

    def _answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.base}api", timeout=5).ok
        return False

    def ticket(self, *argv: str, **environment: str) -> str:
        """Leave a ticket, as a kernel does; the address of its page."""
        folder = str(self.runtime / "nbcontainer")
        name = leave_ticket(folder, Ticket(argv=argv, directory=str(self.runtime), environment=environment))
        return f"{self.base}nbcontainer/terminals/{name}"

    def close(self) -> None:
        """Let it end."""
        self.process.terminate()
        self.process.wait(20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Lend a server."""
    server = Server(tmp_path_factory.mktemp("server"))
    try:
        yield server
    finally:
        server.close()


def ask(method: str, address: str, **options: Any) -> requests.Response:
    """Ask the server, as somebody who is signed in unless the headers say otherwise."""
    asked = {"headers": AUTHORIZED, "timeout": 20, "allow_redirects": False, **options}
    with requests.request(method, address, **asked) as answer:
        return answer


def test_terminal_of_a_ticket(server: Server) -> None:
    """The page is there, the command is started once, in its folder, and is talked to by the server's own socket."""
    script = "echo in $(pwd) with $A; tty; read line; echo heard $line"
    page = server.ticket("/bin/sh", "-c", script, A="b c")
    answer = ask("GET", page)
    assert answer.ok
    assert 'data-base="/user/me/"' in answer.text
    assert "no-store" in answer.headers["Cache-Control"]
    started = ask("POST", page)
    assert started.ok
    terminal = started.json()["terminal"]
    assert ask("POST", page).json() == {"terminal": terminal}, "a page that is loaded again has the same one"
    assert [each["name"] for each in ask("GET", f"{server.base}api/terminals").json()] == [terminal]
    address = server.base.replace("http", "ws") + f"terminals/websocket/{terminal}"
    shown = ""
    channel = websocket.create_connection(address, header=[f"Authorization: token {TOKEN}"], timeout=20)
    try:
        channel.send(json.dumps(["stdin", "you\r"]))
        while "heard you" not in shown:
            kind, *rest = json.loads(channel.recv())
            shown += rest[0] if kind == "stdout" else ""
    finally:
        channel.close()
    assert f"in {server.runtime} with b c" in shown
    assert "/dev/pts/" in shown
    wait_until(lambda: not ask("GET", f"{server.base}api/terminals").json(), what="it is over")
    assert ask("GET", page).status_code == 404
    assert ask("POST", page).status_code == 404


def test_what_the_browser_says_does_not_matter(server: Server) -> None:
    """There is nothing in the request but the name of a ticket; other names and other methods get nothing."""
    assert ask("POST", f"{server.base}nbcontainer/terminals/{'0' * 32}", json={"argv": ["sh"]}).status_code == 404
    assert ask("POST", f"{server.base}nbcontainer/terminals/../terminals/x").status_code in {403, 404}
    assert ask("GET", f"{server.base}nbcontainer/terminals/").status_code in {302, 404}
    page = server.ticket("/bin/sh")
    assert ask("PUT", page).status_code == 405
    assert ask("DELETE", page).status_code == 405
    assert not ask("GET", f"{server.base}api/terminals").json()


def test_nobody_is_let_in_unknown(server: Server) -> None:
    """Without the token there is no page and no terminal, and another site's page cannot ask for one."""
    page = server.ticket("/bin/sh")
    assert ask("GET", page, headers={}).status_code in {302, 403}
    assert ask("POST", page, headers={}).status_code in {302, 403}
    with requests.Session() as signed_in:
        signed_in.get(f"{server.base}api/status", params={"token": TOKEN}, timeout=20)
        signed_in.get(page, params={"token": TOKEN}, timeout=20)
        refused = signed_in.post(page, headers={"Origin": "http://elsewhere.example"}, timeout=20)
        assert refused.status_code in {403, 404}
        assert signed_in.post(page, timeout=20).status_code == 403, "no XSRF token"
        told = {"X-XSRFToken": signed_in.cookies["_xsrf"]}
        assert signed_in.post(page.replace("terminals/", "terminals/0"), headers=told, timeout=20).status_code == 404
    assert not ask("GET", f"{server.base}api/terminals").json()


def test_page_has_what_it_needs(server: Server) -> None:
    """Scripts and styles come from this very server, with types that a browser takes, and nothing else does."""
    for name, kind in (("terminal.mjs", "javascript"), ("xterm.mjs", "javascript"), ("addon-fit.mjs", "javascript")):
        answer = ask("GET", f"{server.base}nbcontainer/static/{name}")
        assert answer.ok
        assert kind in answer.headers["Content-Type"]
    assert "css" in ask("GET", f"{server.base}nbcontainer/static/xterm.css").headers["Content-Type"]
    assert ask("GET", f"{server.base}nbcontainer/static/../handlers.py").status_code == 404
    assert ask("GET", f"{server.base}nbcontainer/static/%2e%2e/handlers.py").status_code in {403, 404}


def test_server_without_terminals_has_none_of_ours(tmp_path: Path) -> None:
    """Where they are switched off, the page says so, and the sentence below the cell stays."""
    server = Server(tmp_path, "--ServerApp.terminals_enabled=False")
    try:
        page = server.ticket("/bin/sh")
        assert ask("GET", page).status_code == 404
        refused = ask("POST", page)
        assert refused.status_code == 404
        assert "switched off" in refused.text
    finally:
        server.close()
