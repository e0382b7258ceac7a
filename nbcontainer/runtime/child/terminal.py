"""The terminal of a command: made in the container's own devpts, shown at /dev/console, its master sent out.

Performed by the process that will become the command, when it has entered its root and still has all capabilities of
the user namespace, so long before the command where a room is built ahead. A command that joins a container gets one
too, without the console, as in docker: the console is the one that the container was started with.
"""

from __future__ import annotations

import contextlib
import os

from nbcontainer._linux import mounts, terminals

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nbcontainer.runtime.child.accounts import Account

__all__ = ["CONSOLE", "make"]

CONSOLE = "/dev/console"
_PTS = "/dev/pts"


def make(account: Account, *, console: bool) -> terminals.Pair:
    """A terminal that belongs to the command's user, at the console too where that is wanted."""
    pair = terminals.open_pair(_PTS)
    try:
        if account.uid != 0:
            with contextlib.suppress(OSError):  # an id outside the map, which is told when it is taken on
                os.fchown(pair.slave, account.uid, -1)
        if console:
            os.close(os.open(CONSOLE, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            mounts.mount(f"{_PTS}/{pair.number}", CONSOLE, "", mounts.MS_BIND)
    except BaseException:
        os.close(pair.master)
        os.close(pair.slave)
        raise
    return pair
