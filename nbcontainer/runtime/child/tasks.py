"""Functions of this package called where container root lives: the other end of `Runtime.call`.

Everything they need has been loaded before (see `modules`).
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from nbcontainer.errors import NbcontainerError
from nbcontainer.runtime.protocol import Done, Failed, ProtocolError, Task, send

if TYPE_CHECKING:
    import socket

__all__ = ["perform"]

_PACKAGE = "nbcontainer."


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
