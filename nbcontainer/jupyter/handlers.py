"""The routes: a page with a terminal in it, and the request by which the page has its command started.

``GET nbcontainer/terminals/NAME`` is the page, ``POST`` starts what the ticket of that name says and answers the name
of a terminal, to which the page then talks on the server's own web socket. Both ask for what the server's own terminals
ask for: a person who is signed in, allowed to use terminals, and with ``POST`` the XSRF token.
"""

from __future__ import annotations

import html
import json
import os
from typing import Any

from jupyter_core.paths import jupyter_runtime_dir
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import FileFindHandler, JupyterHandler
from jupyter_server.utils import url_path_join
from tornado import web

from nbcontainer.engine.tickets import is_ticket, take_ticket, ticket_folder

__all__ = ["TerminalPage", "add_handlers"]

_STATIC = os.path.join(os.path.dirname(os.path.abspath(__file__)), "static")
_NAME = r"(?P<name>[0-9a-f]{32})"


def add_handlers(server: Any) -> None:
    """Add the routes to a Jupyter server."""
    base = url_path_join(server.web_app.settings["base_url"], "nbcontainer")
    server.web_app.add_handlers(
        ".*$",
        [
            (url_path_join(base, "terminals", _NAME), TerminalPage),
            (url_path_join(base, "static", "(.*)"), FileFindHandler, {"path": [_STATIC], "no_cache_paths": ["/"]}),
        ],
    )


class TerminalPage(JupyterHandler):
    """One ticket's page."""

    auth_resource = "terminals"

    @web.authenticated
    @authorized
    def get(self, name: str) -> None:
        """Show the page; 404 when there is neither a ticket of this name nor a terminal."""
        terminals = self._terminals
        if terminals is None or not (is_ticket(_tickets(), name) or _terminal(name) in terminals.terminals):
            raise web.HTTPError(404)
        place = os.path.join(_STATIC, "terminal.html")
        with open(place, encoding="utf-8") as file:
            page = file.read()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        _ = self.xsrf_token  # has the browser keep what the page sends back with its request
        self.finish(page.replace("{base}", html.escape(self.base_url)).replace("{name}", name))

    @web.authenticated
    @authorized
    def post(self, name: str) -> None:
        """Start the command, unless it runs already."""
        terminal, terminals = _terminal(name), self._terminals
        self.set_header("Content-Type", "application/json")
        if terminals is None:
            self._refuse("terminals are switched off on this server")
            return
        if terminal not in terminals.terminals:
            ticket = take_ticket(_tickets(), name)
            if ticket is None:
                self._refuse("this terminal has ended; run the cell again for another one")
                return
            directory = ticket.directory if os.path.isdir(ticket.directory) else None
            terminals.create(
                name=terminal,
                shell_command=list(ticket.argv),
                cwd=directory,
                extra_env=dict(ticket.environment),
            )
        self.finish(json.dumps({"terminal": terminal}))

    def _refuse(self, message: str) -> None:
        """Answer with a sentence that the page shows."""
        self.set_status(404)
        self.finish(json.dumps({"message": message}))

    @property
    def _terminals(self) -> Any:
        """The server's manager of terminals, or None where they are switched off."""
        return self.settings.get("terminal_manager") if self.settings.get("terminals_available") else None


def _tickets() -> str:
    return ticket_folder(jupyter_runtime_dir())


def _terminal(name: str) -> str:
    """The name under which the server lists it; its web socket knows letters, digits and underscores."""
    return f"container_{name[:8]}"
