"""The file of the interpreter that enters containers, and how it is kept from them.

A command of ``/proc/self/exe`` names the file that its process was made from: ours. Where that is the user's own file
(conda, pyenv, uv), container root owns it too; so whoever will enter containers executes itself once more from a
read-only mount first, and then goes one user namespace further down. For what a process has in memory belongs to the
user namespace in which it was executed (ptrace(2), "Ptrace access mode checking"): there, PR_SET_DUMPABLE would not
close it to a container that has CAP_SYS_PTRACE.
"""

from __future__ import annotations

import os
import sys

from nbcontainer._linux import mounts, processes, syscalls
from nbcontainer.runtime.protocol import Configure, ProtocolError, decode, encode

__all__ = ["could_be_changed", "go_below", "remembered", "start_again"]

_SELF = "/proc/self/exe"
_ISOLATED = ("-I", "-S")


def could_be_changed(configuration: Configure) -> bool:
    """Whether the file of this interpreter will be container root's own, as a user's from conda, pyenv or uv is."""
    return not configuration.privileged and (os.stat(_SELF).st_uid == os.geteuid() or os.access(_SELF, os.W_OK))


def start_again(configuration: Configure, *fds: int, further: tuple[int, ...] = ()) -> None:
    """Execute the same program anew, from a read-only mount.

    Its numbers are `fds`, a file of the configuration, and those in `further`.

    A command of ``/proc/self/exe`` (or a #! line of it) runs the file that the command's process was made from: ours.
    Through a mount over that file it can neither be written nor have its mode changed, whoever owns it
    (CVE-2019-5736). The path is as before, so the interpreter finds its library.
    """
    interpreter = os.path.realpath(_SELF)
    tree = mounts.clone_tree(mounts.AT_FDCWD, interpreter)
    mounts.set_attributes(tree, mounts.MOUNT_ATTR_RDONLY)
    target = os.open(interpreter, os.O_PATH | os.O_CLOEXEC)
    mounts.move_tree(tree, target)
    memory = os.memfd_create("nbcontainer-configuration", 0)
    with open(memory, "wb", closefd=False) as file:
        file.write(encode(configuration))
    for fd in (*fds, *further):
        os.set_inheritable(fd, True)  # noqa: FBT003 - the standard library's own signature
    numbers = (str(each) for each in (*fds, memory, *further))
    os.execv(interpreter, [sys.executable, *_ISOLATED, os.path.abspath(sys.argv[0]), *numbers])


def remembered(memory: int) -> Configure:
    """The configuration that the first life left in a file; raise `OSError` when the interpreter is open to change."""
    with open(memory, "rb") as file:
        file.seek(0)
        configuration = decode(file.read())
    if not isinstance(configuration, Configure):
        raise ProtocolError("expected Configure")
    if not os.statvfs(_SELF).f_flag & os.ST_RDONLY:
        raise OSError(
            "the interpreter could still be changed from inside a container, although it was mounted read-only"
        )
    return configuration


def go_below(lower: int = -1) -> None:
    """Enter a user and a mount namespace below the one in which this program was executed, with the same ids.

    `lower` is such a user namespace, in which somebody else's containers are already; else there is a new one.
    The mount that kept the file is taken away first: as a locked one it would keep overlays from what lies around it
    (mount_namespaces(7)). The process's own hold on it stays, and is as read-only as before.
    """
    mounts.unmount(os.path.realpath(_SELF), mounts.MNT_DETACH)
    if lower >= 0:
        syscalls.setns(lower, processes.CLONE_NEWUSER)
        os.close(lower)
        syscalls.unshare(processes.CLONE_NEWNS)
        return
    maps = {name: _same_ids(name) for name in ("uid_map", "gid_map")}
    parent = os.getpid()
    ours, theirs = os.pipe2(os.O_CLOEXEC)
    writer = os.fork()
    if writer == 0:  # only from above can every id be mapped (user_namespaces(7))
        status = 1
        try:
            os.close(theirs)
            if os.read(ours, 1):
                for name, text in maps.items():
                    processes.write_text(f"/proc/{parent}/{name}", text)
                status = 0
        finally:
            os._exit(status)
    os.close(ours)
    try:
        syscalls.unshare(processes.CLONE_NEWUSER | processes.CLONE_NEWNS)
        os.write(theirs, b".")
    finally:
        os.close(theirs)
        status = os.waitpid(writer, 0)[1]
    if status:
        raise OSError("the ids of a second user namespace, which keeps this program from containers, cannot be mapped")


def _same_ids(name: str) -> str:
    with open(f"/proc/self/{name}", encoding="ascii") as file:
        ranges = [line.split() for line in file]
    return "".join(f"{inside} {inside} {count}\n" for inside, _, count in ranges)
