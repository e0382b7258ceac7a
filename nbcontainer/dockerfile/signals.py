"""Names of signals, as STOPSIGNAL takes them: with SIG in front or not, in any case, or a number that is not 0."""

from __future__ import annotations

import re

__all__ = ["SIGNALS", "is_signal"]

SIGNALS = (
    "SIGABRT", "SIGALRM", "SIGBUS", "SIGCHLD", "SIGCLD", "SIGCONT", "SIGFPE", "SIGHUP",
    "SIGILL", "SIGINT", "SIGIO", "SIGIOT", "SIGKILL", "SIGPIPE", "SIGPOLL", "SIGPROF",
    "SIGPWR", "SIGQUIT", "SIGSEGV", "SIGSTKFLT", "SIGSTOP", "SIGSYS", "SIGTERM", "SIGTRAP",
    "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH",
    "SIGXCPU", "SIGXFSZ",
)  # fmt: skip
"""signal(7). The machine that builds need not be the one that stops, so this is no question to the kernel."""

_REAL_TIME = re.compile(r"SIGRTMIN(?:\+(?:[1-9]|1[0-5]))?|SIGRTMAX(?:-(?:[1-9]|1[0-4]))?", re.ASCII)


def is_signal(text: str) -> bool:
    """Whether STOPSIGNAL may be this.

    >>> is_signal("int"), is_signal("SIGRTMIN+3"), is_signal("15"), is_signal("0")
    (True, True, True, False)
    """
    if text.isascii() and text.isdigit():
        return text.strip("0") != "" and len(text) < 10
    name = f"SIG{text.upper().removeprefix('SIG')}"
    return name in SIGNALS or bool(_REAL_TIME.fullmatch(name))
