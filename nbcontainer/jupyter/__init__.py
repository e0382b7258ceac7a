"""The notebook server's door: terminals on containers, for cells that ask for one.

An extension of jupyter_server, which ``etc/jupyter/jupyter_server_config.d`` enables where the package is installed
beside it. It adds one page to the server's own terminals: what it opens is listed with the others, ended and culled
as they are, and not there at all where terminals are switched off. Nothing is imported before the server loads it.
"""

from __future__ import annotations

from typing import Any

__all__: list[str] = []


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "nbcontainer.jupyter"}]


def _load_jupyter_server_extension(server: Any) -> None:
    from nbcontainer.jupyter.handlers import add_handlers

    add_handlers(server)
