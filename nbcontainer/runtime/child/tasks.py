"""Functions of this package called where container root lives: the other end of `Runtime.call`.

Everything they need is loaded before the namespaces are entered: afterwards the interpreter's own files may be out of
reach, and what lies at their paths may be a container's.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib
import sys
from typing import TYPE_CHECKING

from nbcontainer.errors import NbcontainerError
from nbcontainer.runtime.protocol import Done, Failed, ProtocolError, Task, send

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

__all__ = ["load", "perform"]

_PACKAGE = "nbcontainer."


def load(modules: Iterable[str]) -> None:
    """Import what will be used later, and take away the means to import more."""
    for codec in ("ascii", "latin-1", "utf-8"):
        codecs.lookup(codec)
    for module in modules:
        importlib.import_module(module)
    sys.meta_path.clear()


def perform(request: Task, control: socket.socket, fds: list[int]) -> int:
    """Call the function a task names, and answer on `control`; its errors travel by class name."""
    module, _, function = request.target.partition(":")
    try:
        if module not in sys.modules or not module.startswith(_PACKAGE):
            raise ProtocolError(f"{module} is not among the modules this process was started with")
        served = getattr(sys.modules[module], function)
        send(control, Done(served(request.arguments, fds)))
    except NbcontainerError as problem:
        _answer(control, Failed(type(problem).__name__, str(problem)))
    except MemoryError:
        _answer(control, Failed("StorageError", f"{request.target} ran out of memory"))
    except Exception as problem:  # noqa: BLE001 - the boundary of a process: whatever it was must be told
        _answer(control, Failed("NbcontainerError", f"{request.target} failed: {type(problem).__name__}: {problem}"))
    else:
        return 0
    return 1


def _answer(control: socket.socket, message: Failed) -> None:
    with contextlib.suppress(OSError):  # whoever asked has left
        send(control, message)
