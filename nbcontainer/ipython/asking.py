"""Input for a command that reads: Jupyter's input box, or the terminal in IPython."""

from __future__ import annotations

import builtins
import re
import sys
from typing import TYPE_CHECKING, Any

from IPython.core.error import StdinNotImplementedError

from nbcontainer.runtime.inputs import Asking

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["asking"]

_SECRET = re.compile(r"(?:password|passphrase|passwort|mot de passe|contraseña)[^\n]{0,200}:\s*$", re.IGNORECASE)


def asking(shell: Any, last_words: Callable[[], str]) -> Asking:
    """Ask the person; `last_words` is the end of what the command has shown, which may be a question for a password."""

    def ask() -> bytes:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        secret = bool(_SECRET.search(last_words()))
        try:
            line = _ask(shell, secret=secret)
        except EOFError:
            return b""
        except StdinNotImplementedError:
            sys.stderr.write("hint: the command reads its input, and nobody can be asked here; it gets none\n")
            return b""
        return f"{line}\n".encode("utf-8", "surrogateescape")

    return Asking(ask=ask)


def _ask(shell: Any, *, secret: bool) -> str:
    kernel = getattr(shell, "kernel", None)
    if kernel is not None:
        return str(kernel.getpass("") if secret else kernel.raw_input(""))
    if secret:
        import getpass

        return getpass.getpass("")
    return builtins.input()
