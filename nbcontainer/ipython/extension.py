"""What ``%load_ext nbcontainer`` does, and the one place where the notebook's engine lives.

Loading must be instant: it registers two names, a completer and a line filter, and imports nothing that IPython has
not imported itself. The engine, the verbs and the widgets come with the first use.
"""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING, Any

from nbcontainer.ipython.completion import complete_container
from nbcontainer.ipython.magics import ContainerMagics

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from nbcontainer.engine.engine import Engine
    from nbcontainer.engine.settings import Settings

__all__ = ["close_engine", "get_engine", "load_ipython_extension", "make_engine", "unload_ipython_extension"]


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Register the magics, the completer and the comment filter."""
    ipython.register_magics(ContainerMagics)
    _add(_matchers(ipython), complete_container)
    _add(ipython.input_transformers_cleanup, allow_comment_above)


def unload_ipython_extension(ipython: InteractiveShell) -> None:
    """Take back everything, and close the engine."""
    close_engine()
    _remove(_matchers(ipython), complete_container)
    _remove(ipython.input_transformers_cleanup, allow_comment_above)
    manager = ipython.magics_manager
    for kind in ("line", "cell"):
        for name in ("container", "dockerfile"):
            manager.magics[kind].pop(name, None)
    magics = manager.registry.pop(ContainerMagics.__name__, None)
    if magics is not None:
        _remove(ipython.configurables, magics)


def _matchers(ipython: InteractiveShell) -> list[Any]:
    """IPython's list of further completers; a list nobody reads where there is no such thing."""
    return getattr(getattr(ipython, "Completer", None), "custom_matchers", [])


def _add(items: list[Any], item: object) -> None:
    if item not in items:
        items.append(item)


def _remove(items: list[Any], item: object) -> None:
    if item in items:
        items.remove(item)


def allow_comment_above(lines: list[str]) -> list[str]:
    """Let comments and blank lines stand above ``%%container`` and ``%%dockerfile``.

    IPython knows a cell magic only on the very first line and otherwise says that ``%%container`` was not found. The
    lines are dropped for our magics alone; every other cell comes back as it is.
    """
    for number, line in enumerate(lines):
        if line.startswith(("%%container", "%%dockerfile")):
            return lines[number:]
        if line.strip() and not line.lstrip().startswith("#"):
            break
    return lines


class _Holder:
    """The notebook's one engine, with the settings it was made for."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.engine: Engine | None = None
        self.settings: Settings | None = None


_holder = _Holder()


def make_engine(settings: Settings) -> Engine:
    """Make an engine; tests put a recording one here."""
    from nbcontainer.engine.engine import Engine

    return Engine(settings)


def get_engine(settings: Settings) -> Engine:
    """The engine for these settings, made on first use; a changed ``%config`` closes the old one."""
    with _holder.lock:
        if _holder.engine is None or _holder.settings != settings:
            close_engine()
            _holder.engine, _holder.settings = make_engine(settings), settings
            atexit.register(close_engine)
        return _holder.engine


def close_engine() -> None:
    """Close the engine if there is one; safe to call twice."""
    with _holder.lock:
        engine, _holder.engine = _holder.engine, None
        atexit.unregister(close_engine)
        if engine is not None:
            engine.close()
