"""Setting one container up: perform the operations, pivot, settle in, and when the request is there, execute.

Runs in the process that will become the command, at first with all capabilities of the user namespace and with the
current directory on the stage. All but `execute` may happen long before the request. Long because order is the point;
each phase says what it relies on. Every access to the new root goes by directory descriptor and openat2, never by a
joined string: the image is a stranger's (runc's CVEs of this class are the reason).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from nbcontainer._linux import mounts, processes, syscalls, terminals
from nbcontainer._linux.values import value
from nbcontainer.runtime.child import accounts, limits, stage, terminal
from nbcontainer.runtime.places import SCRIPT_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from nbcontainer.runtime.protocol import Execute, Room

__all__ = [
    "Built",
    "SetupError",
    "build_root",
    "can_spawn",
    "enter_root",
    "execute",
    "perform",
    "rehearse",
    "settle",
    "spawn",
]

_IN_ROOT = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_NO_LINKS = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS
_DIRECTORY = os.O_PATH | os.O_DIRECTORY
_EARLY_FILTERS = frozenset({"adapted", "default"})
"""Filters that allow whatever is still to be called once they are loaded; a person's own may allow nothing of it."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

NULL_IN_ROOT = "dev/null"


class SetupError(Exception):
    """The container could not be started; carries docker's exit code (125, 126, 127)."""

    def __init__(self, message: str, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# --- the root -------------------------------------------------------------------------------------------------------


def build_root(room: Room, fds: list[int]) -> int:
    """Perform the operations of a room; return a descriptor of the finished root."""
    root = perform(room.operations, fds)
    if room.read_only_root:
        mounts.set_attributes(root, mounts.MOUNT_ATTR_RDONLY)
    return root


def perform(operations: Sequence[dict[str, Any]], fds: list[int]) -> int:
    """Mount what the operations say, in order; return a descriptor of the root that the first one made."""
    root = -1
    for step in operations:
        kind = step["op"]
        try:
            if root < 0:
                root = _first_mount(step)
            else:
                _PERFORM[kind](root, step, fds)
        except OSError as problem:
            where = step.get("target") or step.get("path") or "/"
            raise SetupError(f"{kind} at {where}: {_explain(problem, step)}") from problem
    if root < 0:
        raise SetupError("the request has no root file system")
    return root


def _explain(problem: OSError, step: dict[str, Any]) -> str:
    text = problem.strerror or str(problem)
    if problem.errno == errno.ENOENT and step["op"] in {"bind", "tmpfs"}:
        return "the image has a symbolic link there that leads nowhere; mount on the place that it means, or elsewhere"
    if problem.errno == errno.EINVAL and step["op"] == "overlay" and step["upper"]:
        return (
            "the store's file system cannot hold writable layers, as one that is an overlay itself cannot; move the"
            " store to another one (NBCONTAINER_ROOT), in an outer container to a volume of that one"
        )
    if problem.errno in (errno.ELOOP, errno.EXDEV):
        return f"the image has a symbolic link there, which could lead out of the container; refused ({text})"
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{text}; free some space or move the store (NBCONTAINER_ROOT)"
    return text


def _no_source(source: str, number: int) -> str:
    """Why what is to be shown cannot be: a path of the machine, or of a volume of the store."""
    name, _, subpath = source.removeprefix("store/volumes/").partition("/_data")
    if not source.startswith("store/volumes/") or not subpath:
        if number == errno.ELOOP:
            return f"a symbolic link has appeared in {source} since it was checked; refused"
        return f"{source} does not exist on this machine"
    if number == errno.ELOOP:
        return f"there is a symbolic link in {subpath.strip('/')} of volume {name}, which could lead anywhere; refused"
    return f"volume {name} has no {subpath.strip('/')}; make it first, in a container that has all of the volume"


def _first_mount(step: dict[str, Any]) -> int:
    if step["op"] == "overlay":
        _mount_overlay("root", step)
    elif step["op"] == "tmpfs":
        mounts.mount("tmpfs", "root", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=755,size=64m")
    else:
        raise SetupError(f"a root cannot start with {step['op']}")
    return os.open("root", _DIRECTORY | os.O_CLOEXEC)


def _mount_overlay(target: str, step: dict[str, Any]) -> None:
    lower, upper, work = step["lower"], step["upper"], step["work"]
    if upper:
        _make_upper(lower[0], upper, work, fresh=step["volatile"])
    flags = ["userxattr", "volatile"] if step["volatile"] and upper else ["userxattr"]
    options = f"lowerdir={':'.join(_escape(layer) for layer in lower)}"
    if upper:
        options += f",upperdir={_escape(upper)},workdir={_escape(work)}"
    options += "," + ",".join(flags)
    if len(os.fsencode(options)) < 4000 and (upper or len(lower) > 1):
        mounts.mount("overlay", target, "overlay", mounts.MS_NODEV, options)
        return
    tree = mounts.new_overlay(tuple(lower), upper, work, tuple(flags))
    try:
        target_fd = os.open(target, _DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.move_tree(tree, target_fd)
        finally:
            os.close(target_fd)
    finally:
        os.close(tree)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _make_upper(top: str, upper: str, work: str, *, fresh: bool) -> None:
    """Make the writable layer; its root takes the mode of the layer below, which the merged root would show.

    A `fresh` one replaces what a container that waited in vain has left there.
    """
    for path in (upper, work):
        if fresh and os.path.lexists(path):
            _remove_tree(path)
        try:
            os.mkdir(path, 0o755)
        except FileNotFoundError:
            os.makedirs(path, 0o755)
        except FileExistsError:
            if path == upper:
                return
    os.chmod(upper, stat.S_IMODE(os.stat(top).st_mode))


def _remove_tree(path: str) -> None:
    """Remove a folder of the store, as far as that is possible; no link in it is followed (os.fwalk)."""
    for _, folders, files, fd in os.fwalk(path, topdown=False):
        for name in (*files, *folders):  # a link to a folder is among the folders
            with contextlib.suppress(OSError):
                try:
                    os.unlink(name, dir_fd=fd)
                except IsADirectoryError:
                    os.rmdir(name, dir_fd=fd)
    with contextlib.suppress(OSError):
        os.rmdir(path)


def _ensure_directory(root: int, path: str, resolve: int = _IN_ROOT) -> int:
    """A descriptor of the directory `path` below `root`, made if it is not there."""
    relative = path.strip("/") or "."
    try:
        return syscalls.openat2(root, relative, _DIRECTORY, resolve=resolve)
    except FileNotFoundError:
        pass
    parent, _, name = relative.rpartition("/")
    parent_fd = _ensure_directory(root, parent, resolve) if parent else os.dup(root)
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=parent_fd)
    finally:
        os.close(parent_fd)
    return syscalls.openat2(root, relative, _DIRECTORY, resolve=resolve)


def _ensure_file(root: int, path: str) -> int:
    """A descriptor of the file `path` below `root`, made empty if it is not there; a dangling link is replaced."""
    relative = path.strip("/")
    try:
        return syscalls.openat2(root, relative, os.O_PATH, resolve=_IN_ROOT)
    except FileNotFoundError:
        pass
    parent, _, name = relative.rpartition("/")
    parent_fd = _ensure_directory(root, parent) if parent else os.dup(root)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent_fd)
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent_fd))
        return syscalls.openat2(parent_fd, name, os.O_PATH | os.O_NOFOLLOW, resolve=_NO_LINKS)
    finally:
        os.close(parent_fd)


def _attach(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    """Move a prepared tree in; its target may be no link, whoever made the image (CVE-2019-19921)."""
    target = _ensure_directory(root, step["target"], _NO_LINKS)
    try:
        tree = os.open(step["tree"], _DIRECTORY | os.O_CLOEXEC)
        try:
            mounts.move_tree(tree, target)
        finally:
            os.close(tree)
    finally:
        os.close(target)


def _overlay(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    target = _ensure_directory(root, step["target"], _NO_LINKS)
    try:
        _mount_overlay(f"/proc/self/fd/{target}", step)
    finally:
        os.close(target)


def _tmpfs(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    target = _ensure_directory(root, step["target"])
    try:
        flags = mounts.MS_NOSUID | mounts.MS_NODEV | (mounts.MS_RDONLY if step["read_only"] else 0)
        flags |= 0 if step["executable"] else mounts.MS_NOEXEC
        size = f",size={step['size']}" if step["size"] else ""
        mounts.mount("tmpfs", f"/proc/self/fd/{target}", "tmpfs", flags, f"mode={step['mode']:o}{size}")
    finally:
        os.close(target)


def _bind(root: int, step: dict[str, Any], fds: list[int]) -> None:
    if step.get("only_where_there") and not _is_there(root, step["target"]):
        return
    made_outside = step["fd"] >= 0
    tree = fds[step["fd"]] if made_outside else _cloned(step)
    try:
        attributes = mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV
        attributes |= mounts.MOUNT_ATTR_RDONLY if step["read_only"] else 0
        mounts.set_attributes(tree, attributes, recursive=step["recursive"])
        is_directory = stat.S_ISDIR(os.stat(tree).st_mode)
        target = _ensure_directory(root, step["target"]) if is_directory else _ensure_file(root, step["target"])
        try:
            mounts.move_tree(tree, target)
        finally:
            os.close(target)
    finally:
        if not made_outside:
            os.close(tree)


def _is_there(root: int, path: str) -> bool:
    try:
        os.close(syscalls.openat2(root, path.strip("/"), os.O_PATH, resolve=_IN_ROOT))
    except OSError:
        return False
    return True


def _cloned(step: dict[str, Any]) -> int:
    try:
        return mounts.clone_exactly(step["source"], recursive=step["recursive"])
    except OSError as problem:
        if problem.errno not in {errno.ENOENT, errno.ELOOP, errno.ENOTDIR}:
            raise
        raise SetupError(f"bind at {step['target']}: {_no_source(step['source'], problem.errno)}") from problem


def _devices(root: int, step: dict[str, Any], fds: list[int]) -> None:
    """Show device nodes: those made outside (as root), or the machine's own as far as container root may open them."""
    if step["fd"] >= 0:
        os.mkdir("gen/devices", 0o755)
        _move_to(fds[step["fd"]], "gen/devices")
    for number, (source, target, access) in enumerate(step["nodes"]):
        place = _ensure_file(root, target)
        try:
            if step["fd"] >= 0:
                mounts.mount(f"gen/devices/{number}", f"/proc/self/fd/{place}", "", mounts.MS_BIND)
            else:
                tree = mounts.clone_exactly(source, recursive=False)
                try:
                    mounts.set_attributes(tree, mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NOEXEC)
                    mounts.move_tree(tree, place)
                finally:
                    os.close(tree)
        finally:
            os.close(place)
        _check_access(root, source, target, access)


def _move_to(tree: int, target: str) -> None:
    target_fd = os.open(target, _DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.move_tree(tree, target_fd)
    finally:
        os.close(target_fd)


def _check_access(root: int, source: str, target: str, access: str) -> None:
    shown = syscalls.openat2(root, target.strip("/"), os.O_PATH, resolve=_IN_ROOT)
    try:
        wanted = (os.R_OK if "r" in access else 0) | (os.W_OK if "w" in access else 0)
        if not os.access(f"/proc/self/fd/{shown}", wanted, effective_ids=True):
            raise SetupError(
                f"device {source} cannot be given to the container: it is open to other users or groups of this"
                " machine, whose ids a container of yours does not have; let an administrator open it to you"
                f" (setfacl -m u:NAME:{access} {source}), or run as root"
            )
    finally:
        os.close(shown)


def _resize(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    """Give a prepared tmpfs another size (tmpfs(5), size=)."""
    target = syscalls.openat2(root, step["target"].strip("/"), _DIRECTORY, resolve=_NO_LINKS)
    try:
        flags = mounts.MS_REMOUNT | mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
        mounts.mount("", f"/proc/self/fd/{target}", "tmpfs", flags, f"size={step['size']}")
    finally:
        os.close(target)


def _generated(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    """Show a file of ours at a path of the image; one of the person's has a name, a mode and an owner of its own."""
    name = step.get("name") or step["target"].strip("/").replace("/", "-")
    source = f"gen/{name}"
    _write_new(source, step["text"], step.get("mode", 0o644))
    if step.get("uid") or step.get("gid"):
        os.chown(source, step["uid"], step["gid"])
    target = _ensure_file(root, step["target"])
    try:
        mounts.mount(source, f"/proc/self/fd/{target}", "", mounts.MS_BIND)
    finally:
        os.close(target)


def _write_new(path: str, text: str, mode: int, directory: int | None = None) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        view = memoryview(os.fsencode(text))
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _write(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    parent, _, name = step["path"].rpartition("/")
    parent_fd = syscalls.openat2(root, parent, _DIRECTORY, resolve=_NO_LINKS)
    try:
        _write_new(name, step["text"], step["mode"], parent_fd)
    finally:
        os.close(parent_fd)


def _mask(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    try:
        target = syscalls.openat2(root, step["target"].strip("/"), os.O_PATH, resolve=_IN_ROOT)
    except OSError:
        return  # nothing there, or nothing this container could reach either
    try:
        directory = stat.S_ISDIR(os.stat(target).st_mode)
        stage.cover(f"/proc/self/fd/{target}", null="/dev/null", directory=directory)
    finally:
        os.close(target)


def _symlink(root: int, step: dict[str, Any], _fds: list[int]) -> None:
    with contextlib.suppress(FileExistsError):
        os.symlink(step["source"], step["target"].strip("/"), dir_fd=root)


_PERFORM: dict[str, Callable[[int, dict[str, Any], list[int]], None]] = {
    "attach": _attach,
    "bind": _bind,
    "devices": _devices,
    "generated": _generated,
    "mask": _mask,
    "overlay": _overlay,
    "resize": _resize,
    "symlink": _symlink,
    "tmpfs": _tmpfs,
    "write": _write,
}


def enter_root(root: int) -> None:
    """Make `root` the root of this mount namespace and let go of the machine's own (pivot_root(2), "." over ".")."""
    os.fchdir(root)
    mounts.pivot_root(".", ".")
    mounts.unmount(".", mounts.MNT_DETACH)
    os.chdir("/")


# --- from here on the root is the container's; nothing is imported, decoded or looked up by libraries of the image


@value
class Built:
    """A room that has been entered, and what `execute` needs of it. `script` is the open place for a cell's text."""

    room: Room
    account: accounts.Account
    program_filter: bytes
    script: int
    terminal: terminals.Pair | None = None


def settle(
    room: Room, program_filter: bytes, *, single_id: bool, script_path: str = SCRIPT_PATH, make_directory: bool = True
) -> Built:
    """Do what needs no request: look the user up, make the working directory, drop what can be dropped already.

    The filter is loaded here when it is one of ours, which allows whatever `execute` still has to call. Where it
    pretends changes of owners, identity and capabilities must be final before.
    """
    try:
        account = accounts.resolve(room.user, may_set_groups=not single_id)
    except accounts.AccountError as problem:
        raise SetupError(str(problem), 126) from problem
    script = -1
    if room.script:
        try:
            script = os.open(script_path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise SetupError(f"the cell's text cannot be put at {script_path}: {problem.strerror}") from problem
        _close_to_others(script, account)
    pair = _terminal(account, console=make_directory) if room.terminal else None
    os.umask(0o022)
    if make_directory:
        _make_working_directory(room.working_directory)
    if not room.no_new_privileges:  # loading a filter then takes CAP_SYS_ADMIN, which is about to go (seccomp(2))
        _load_filter(room, program_filter)
    if _is_final(account, single_id=single_id):
        (_become_closed if can_spawn(room) else _become)(account, room)
    if room.filter in _EARLY_FILTERS and room.no_new_privileges:
        _load_filter(room, program_filter)
        program_filter = b""
    return Built(room, account, program_filter, script, pair)


def _close_to_others(script: int, account: accounts.Account) -> None:
    """Let the cell's text be read by the command's user alone."""
    if account.uid != 0:
        with contextlib.suppress(OSError):  # an id outside the map, which is told when it is taken on
            os.fchown(script, account.uid, account.gid)
    os.fchmod(script, 0o400)


def _terminal(account: accounts.Account, *, console: bool) -> terminals.Pair:
    try:
        return terminal.make(account, console=console)
    except OSError as problem:
        raise SetupError(f"the container cannot have a terminal: {problem.strerror or problem}") from problem


def _is_final(account: accounts.Account, *, single_id: bool) -> bool:
    """Whether the command's identity can be taken on before its pipes are here, whose owner only root can change."""
    return account.uid == 0 or single_id


def execute(built: Built, request: Execute, stdio: tuple[int, int, int], announce: Callable[[int], None]) -> None:
    """Become the command: descriptors, user, directory, execve. Returns only by raising.

    `announce` is called with the master of the command's terminal, or -1, when nothing but the execve is left.
    """
    room, account = built.room, built.account
    if built.script >= 0:
        _fill(built.script, request.script)
    environment = _environment(request, built)
    pair = built.terminal
    if pair is not None:
        stdio = (pair.slave, pair.slave, pair.slave)
        if request.rows and request.columns:
            terminals.set_window_size(pair.master, request.rows, request.columns)
    for target, source in enumerate(stdio):
        os.dup2(source, target, inheritable=True)
        if account.uid != 0:
            _give(target, account)
    if account.uid != 0:
        _become(account, room)
    _enter_working_directory(room.working_directory)
    program = _find_program(request.argv[0], environment)
    limits.set_rlimits(room)
    announce(pair.master if pair else -1)  # a filter of one's own may know no socket
    if pair is not None:
        terminals.take_control(0)
    if not room.no_new_privileges:
        limits.check_identity(room, account.uid)
    elif room.filter not in _EARLY_FILTERS:
        _load_filter(room, built.program_filter)
    try:
        os.execve(program, request.argv, environment)
    except OSError as problem:
        raise _cannot_execute(request.argv[0], problem) from problem


def can_spawn(room: Room) -> bool:
    """Whether `spawn` does for a room: with no more than the default rights, and nothing that a child must do alone.

    Until the execve the child has its parent's memory. With more rights (to trace, above all) somebody in the
    container could change it there.
    """
    plain = room.filter == "default" and room.no_new_privileges and not room.rlimits and not room.terminal
    return plain and _SPAWNS_IN_SESSIONS


def _spawns_in_sessions() -> bool:
    """Whether the interpreter was built with a C library that knows of sessions (glibc 2.26).

    It looks for that before it refuses what is no signal.
    """
    try:
        os.posix_spawn("/", ["/"], {}, setsid=True, setsigdef=[-1])
    except NotImplementedError:
        return False
    except ValueError:
        return True
    return False


_SPAWNS_IN_SESSIONS = _spawns_in_sessions()


def spawn(built: Built, request: Execute, stdio: tuple[int, int, int]) -> int:
    """Start the command as a child, in a session of its own; its pid as we see it. Only where `can_spawn` says so.

    No memory is copied for it and taken down by its execve, as by `execute` after a fork, which takes a millisecond and
    a half (posix_spawn(3)). Raises `SetupError`, and `OSError` when the kernel gives no process: EAGAIN when there may
    be no further one, ENOMEM when the container's first process has ended.
    """
    room, account = built.room, built.account
    if built.script >= 0:
        _fill(built.script, request.script)
    environment = _environment(request, built)
    if account.uid != 0:
        for source in stdio:
            _give(source, account)
        _become_closed(account, room)
    _enter_working_directory(room.working_directory)
    program = _find_program(request.argv[0], environment)
    actions = [(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(stdio)]
    try:
        return os.posix_spawn(program, request.argv, environment, file_actions=actions, setsid=True)
    except OSError as problem:
        if problem.errno in {errno.EAGAIN, errno.ENOMEM}:
            raise
        raise _cannot_execute(request.argv[0], problem) from problem


def rehearse(built: Built, request: Execute) -> None:
    """Do of `execute` and `spawn` what changes nothing; raise `SetupError` as that does.

    Nobody stays in the working directory: who waits there would keep a container from unmounting it.
    """
    try:
        _enter_working_directory(built.room.working_directory)
        _find_program(request.argv[0], _environment(request, built))
    finally:
        os.chdir("/")


def _fill(fd: int, text: str) -> None:
    try:
        view = memoryview(os.fsencode(text))
        while view:
            view = view[os.write(fd, view) :]
        os.close(fd)
    except OSError as problem:
        raise SetupError(f"the cell's text cannot be put at {SCRIPT_PATH}: {problem.strerror}") from problem


def _load_filter(room: Room, program_filter: bytes) -> None:
    if room.no_new_privileges:
        processes.forbid_new_privileges()
    if program_filter:
        processes.load_filter(program_filter)


def _environment(request: Execute, built: Built) -> dict[str, str]:
    environment = {"PATH": _DEFAULT_PATH, "HOSTNAME": built.room.hostname, "HOME": built.account.home}
    environment.update(entry.partition("=")[::2] for entry in request.environment)
    return environment


def _give(fd: int, account: accounts.Account) -> None:
    """Let the command open its own pipes by name (``/dev/stdout``): the kernel asks for their owner."""
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        with contextlib.suppress(OSError):  # a pipe of somebody else's, or an id outside the map: it works by number
            os.fchown(fd, account.uid, account.gid)


def _become(account: accounts.Account, room: Room) -> None:
    """Take on the command's identity and, as root, its capabilities (another user's are dropped by the kernel).

    Who has no subordinate ids gives nothing up after this: his filter, which is loaded next, pretends it.
    """
    try:
        if account.groups is not None:
            os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        if account.uid != 0:
            os.setresuid(account.uid, account.uid, account.uid)
    except OSError as problem:
        raise SetupError(
            f"user {room.user or '0'!r} ({account.uid}:{account.gid}) cannot be used: the id is outside this machine's"
            f" range for containers ({problem.strerror}); run as root (--user 0), or see `%container doctor` for"
            " subordinate ids",
            126,
        ) from problem
    if account.uid == 0:
        processes.set_capabilities(frozenset(room.capabilities))


def _become_closed(account: accounts.Account, room: Room) -> None:
    """The same for a process that stays an interpreter for longer: what a change of identity undoes is done again."""
    _become(account, room)
    processes.die_with_parent()
    processes.hide_from_tracers()


def _make_working_directory(path: str) -> None:
    try:
        os.makedirs(path, 0o755, exist_ok=True)
    except FileExistsError as problem:
        raise SetupError(
            f"working directory {path} is a file in this image; choose another with --workdir"
        ) from problem
    except OSError as problem:
        raise SetupError(f"working directory {path} cannot be made: {problem.strerror}") from problem


def _enter_working_directory(path: str) -> None:
    """Change there, by no link that is none, as those of /proc/1 are, and check that it is below the root.

    A path through /proc/self/fd would not be (CVE-2024-21626).
    """
    try:
        _change_directory(path)
        here = os.getcwd()
    except OSError as problem:
        raise SetupError(f"working directory {path} cannot be entered: {problem.strerror}", 126) from problem
    if not here.startswith("/"):
        raise SetupError(f"working directory {path} lies outside the container; refused")


def _change_directory(path: str) -> None:
    try:
        folder = syscalls.openat2(mounts.AT_FDCWD, path, _DIRECTORY, resolve=syscalls.RESOLVE_NO_MAGICLINKS)
    except OSError as problem:
        if problem.errno not in {errno.ENOSYS, errno.EPERM}:  # a filter of one's own does not know the call
            raise
        os.chdir(path)
        return
    try:
        os.fchdir(folder)
    finally:
        os.close(folder)


def _find_program(name: str, environment: dict[str, str]) -> str:
    if not name:
        raise SetupError("the command is empty", 127)
    if "/" in name:
        return name
    denied = False
    for folder in environment.get("PATH", _DEFAULT_PATH).split(":"):
        candidate = f"{folder or '.'}/{name}"
        try:
            mode = os.stat(candidate).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            if os.access(candidate, os.X_OK, effective_ids=True):
                return candidate
            denied = True
    if denied:
        raise SetupError(f"command {name!r} is found in $PATH but is not executable", 126)
    raise SetupError(f"command {name!r} is not found in $PATH of the image", 127)


def _cannot_execute(name: str, problem: OSError) -> SetupError:
    if problem.errno == errno.ENOENT:
        return SetupError(f"command {name!r} is not in the image (or its interpreter is not)", 127)
    if problem.errno == errno.ENOEXEC:
        return SetupError(f"command {name!r} is not a program for this machine: wrong architecture, or no #! line", 126)
    return SetupError(f"command {name!r} cannot be executed: {problem.strerror}", 126)
