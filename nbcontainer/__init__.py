r"""nbcontainer: run notebook cells in copy-on-write containers, with no daemon and no root.

>>> from nbcontainer import Engine                                            # doctest: +SKIP
>>> Engine().run("debian", ["echo", "hi"]).stdout                             # doctest: +SKIP
'hi\n'

In a notebook: ``%load_ext nbcontainer``, then ``%%container debian`` on the first line of a cell.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nbcontainer.engine.engine import Engine
    from nbcontainer.engine.settings import Settings
    from nbcontainer.errors import ContainerExit, NbcontainerError
    from nbcontainer.ipython.extension import load_ipython_extension, unload_ipython_extension
    from nbcontainer.model import BindMount, ExecOptions, Reference, RunOptions, RunResult

__all__ = [
    "BindMount",
    "ContainerExit",
    "Engine",
    "ExecOptions",
    "NbcontainerError",
    "Reference",
    "RunOptions",
    "RunResult",
    "Settings",
    "load_ipython_extension",
    "unload_ipython_extension",
]

__version__ = "0.1.0"

_HOMES = {
    "BindMount": "nbcontainer.model",
    "ContainerExit": "nbcontainer.errors",
    "Engine": "nbcontainer.engine.engine",
    "ExecOptions": "nbcontainer.model",
    "NbcontainerError": "nbcontainer.errors",
    "Reference": "nbcontainer.model",
    "RunOptions": "nbcontainer.model",
    "RunResult": "nbcontainer.model",
    "Settings": "nbcontainer.engine.settings",
    "load_ipython_extension": "nbcontainer.ipython.extension",
    "unload_ipython_extension": "nbcontainer.ipython.extension",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that loading the extension costs next to nothing (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbcontainer' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
