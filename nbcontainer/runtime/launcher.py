"""The engine's end of the launcher: start it, map its ids, hand it requests.

One per engine, started on first use (some tens of milliseconds, once). It is a child of ours in a session of its own,
so the interrupt that Jupyter sends to the kernel's process group does not reach it; our death does, as an end of
file.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbcontainer import errors
from nbcontainer._linux import idmaps, mounts
from nbcontainer._linux.cgroups import machine_hierarchies
from nbcontainer._linux.values import replaced
from nbcontainer.errors import Conflict, InvalidOption, NbcontainerError, UnsupportedHost
from nbcontainer.runtime import cgroups
from nbcontainer.runtime.connection import Connection
from nbcontainer.runtime.freezer import freezer_prefix
from nbcontainer.runtime.offers import Offers
from nbcontainer.runtime.protocol import (
    MOST_FDS,
    Configure,
    Done,
    Expect,
    Failed,
    Lend,
    Mapped,
    ProtocolError,
    Ready,
    Run,
    Task,
    Unshared,
    Visit,
    receive,
    send,
)
from nbcontainer.runtime.resources import Resources
from nbcontainer.runtime.rootfs import Stage
from nbcontainer.runtime.shared_ids import Namespaces, top_namespace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nbcontainer._linux.cgroups import Hierarchy
    from nbcontainer.model import IdMap, NetworkMode
    from nbcontainer.runtime.groups import Group

__all__ = [
    "CLOSED",
    "Launcher",
    "LauncherSettings",
    "child_environment",
    "error_from",
    "shifted_clone",
    "write_id_map",
]

CLOSED = "the engine has been closed, and what was at work in it has ended"

_START_TIMEOUT = 20.0
_DYING = 2.0
_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE")


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherSettings:
    """What a launcher is started with."""

    store: str
    id_map: IdMap
    filters: Mapping[str, bytes]
    capabilities: frozenset[int]
    pool_size: int
    pool_idle: float
    host_paths: tuple[str, ...] = ()
    pids_limit: int = 4096
    modules: tuple[str, ...] = ()
    pool_network: NetworkMode = "none"

    def configuration(self, *, cgroup: str = "", freezer: str = "") -> Configure:
        """The same for the process that is started, with the cgroups that it was given."""
        return Configure(
            store=self.store,
            single_id=self.id_map.single,
            privileged=self.id_map.method == "privileged",
            pool_size=self.pool_size,
            pool_idle=int(self.pool_idle * 1000),
            filters={name: program.hex() for name, program in self.filters.items()},
            capabilities=sorted(self.capabilities),
            cgroup=cgroup,
            pids_limit=self.pids_limit,
            freezer=freezer,
            modules=list(self.modules),
            pool_network=self.pool_network,
        )


class Launcher:
    """A running launcher process. Requests may be sent from any thread."""

    def __init__(self, settings: LauncherSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._over = False
        self._channel: socket.socket | None = None
        self._cgroup = ""
        self._freezer = ""
        self._hierarchies: tuple[Hierarchy, ...] = ()
        self._host_lowers: tuple[str, ...] = ()
        self._host_problem = ""
        self._deaths = 0
        self._offers = Offers()
        self._taken: list[str] = []

    @property
    def pid(self) -> int | None:
        """The launcher's process id while it runs."""
        return self._process.pid if self._process else None

    @property
    def configuration(self) -> Configure:
        """What a process that does the same elsewhere has to know."""
        return self._settings.configuration()

    @property
    def stage(self) -> Stage:
        """What the launcher has attached; starts it when it is not running."""
        self._ensure()
        return Stage(store=self._settings.store, host_lowers=self._host_lowers)

    @property
    def host_problem(self) -> str:
        """Why the machine's own root could not be cloned, or ""."""
        return self._host_problem

    @property
    def waiting_descriptors(self) -> frozenset[int]:
        """What rooms that wait for their command keep open in this process."""
        return self._offers.descriptors

    def run(
        self,
        request: Run,
        stdio: tuple[int, int, int],
        further: Sequence[int] = (),
        group: Group | None = None,
        network: Sequence[int] = (),
    ) -> Connection:
        """Start a container; the descriptors stay the caller's to close, its cgroups become the connection's.

        Those of its `network` a room that was built ahead has already.
        """
        _check_count((*stdio, *further, *network))
        resources = self._resources(group)
        alone = not further and group is None
        started = self._started_in_offer(request, stdio, resources, (*further, *network), alone=alone)
        connection = started or self._request(request, (*stdio, *further, *network), resources)
        connection.whole = True
        return connection

    def _resources(self, group: Group | None) -> Resources:
        return Resources(group, self._hierarchies, self._freezer, pids_limit=self._settings.pids_limit)

    def invited(self, request: Visit, stdio: Sequence[int]) -> Connection | None:
        """Have a command join a container, if somebody waits there for just such a one."""
        channel = self._ensure()
        with self._lock:
            return self._offers.visit(channel, request, stdio) if channel is self._channel else None

    def visit(self, request: Visit, fds: Sequence[int]) -> Connection:
        """Have a command join a container of this launcher; the descriptors stay the caller's to close."""
        return self._request(request, tuple(fds))

    @property
    def limits_processes(self) -> bool:
        """Whether every container has a limit on processes here; starts the launcher when it is not running."""
        self._ensure()
        return bool(self._cgroup)

    def expect(self, message: Expect, gates: Sequence[int] = ()) -> None:
        """Say what will probably be asked for next. A launcher that is gone learns it with the request after that."""
        channel = self._channel
        if channel is not None:
            with self._lock:
                self._offers.expect(message.rooms)
                taken, self._taken = self._taken, []
            with contextlib.suppress(OSError):
                send(channel, replaced(message, taken=taken), tuple(gates))

    def lend(self, network: str, namespace: int = -1) -> None:
        """Have rooms with a network of this name made in this namespace; without one, that is over."""
        channel = self._ensure() if namespace >= 0 else self._channel
        if channel is not None:
            with contextlib.suppress(OSError):  # it has just gone
                send(channel, Lend(network), (namespace,) if namespace >= 0 else ())

    def _started_in_offer(
        self,
        request: Run,
        stdio: tuple[int, int, int],
        resources: Resources,
        further: Sequence[int],
        *,
        alone: bool,
    ) -> Connection | None:
        """Start the command without asking the launcher, if we have been offered what it takes.

        That is exactly this room, for a container that is `alone`, without more than its network; or a container
        without a room. The launcher is told of the first with what is expected next, which has time: woken now, it
        would take a processor from the command.
        """
        channel = self._ensure()
        with self._lock:
            if channel is not self._channel:
                return None
            if self._offers.expects(request.room.id):
                connection = self._offers.start(channel, request, stdio, resources) if alone else None
                if connection is not None:
                    self._taken.append(request.room.id)
                return connection
            return self._offers.furnish(channel, request, stdio, resources, further)

    def call(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Call ``module:function`` of this package inside the user namespace and wait for what it returns.

        Raises the `NbcontainerError` that it raised.
        """
        connection = self.begin(target, arguments, fds)
        try:
            return self.finish(connection)
        finally:
            connection.close()

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> Connection:
        """Start such a call; `finish` waits for it, and closing the connection's descriptors ends it early."""
        return self._request(Task(target, dict(arguments)), tuple(fds))

    @staticmethod
    def finish(connection: Connection) -> dict[str, Any]:
        """The result of a call, or its error raised."""
        message = connection.receive()
        if isinstance(message, Done):
            return message.result
        if isinstance(message, Failed):
            raise error_from(message)
        raise UnsupportedHost("a helper process in the user namespace died without a word; see `%container doctor`")

    @property
    def has_died(self) -> bool:
        """Whether the process that was started last has ended, whether or not that has been noticed."""
        process = self._process
        return process is not None and process.poll() is not None

    @property
    def deaths(self) -> int:
        """How many launchers have died without being told to; the latest is cleaned up after now.

        Its containers died with it. Their writable layers are left, because its janitor died too.
        """
        with self._lock:
            if self.has_died:
                self._stop()
                self._deaths += 1
            return self._deaths

    def close(self, *, for_good: bool = False) -> None:
        """End the launcher and everything below it; `for_good` it is not started again, whoever is still at work."""
        with self._lock:
            self._over = self._over or for_good
            self._stop()

    def _request(
        self, message: Run | Task | Visit, fds: tuple[int, ...], resources: Resources | None = None
    ) -> Connection:
        _check_count(fds)
        channel = self._ensure()

        def ask(control: int) -> None:
            try:
                send(channel, message, (control, *fds))
            except (BrokenPipeError, ConnectionResetError):
                with self._lock:
                    if channel is self._channel:
                        self._stop()
                        self._deaths += 1
                send(self._ensure(), message, (control, *fds))

        return Connection.opened(ask, resources)

    # --- starting ---------------------------------------------------------------------------------------------------

    def _ensure(self) -> socket.socket:
        with self._lock:
            if self._over:
                raise Conflict(CLOSED)
            if self._channel is None:
                try:
                    self._channel = self._start()
                except BaseException:
                    self._stop()
                    raise
            return self._channel

    def _start(self) -> socket.socket:
        settings = self._settings
        os.makedirs(os.path.join(settings.store, "run"), mode=0o710, exist_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(_START_TIMEOUT)
        with theirs, tempfile.TemporaryFile() as complaints:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _child_program(), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
                cwd="/",
                env=child_environment(),
            )
            try:
                self._introduce(ours)
            except (OSError, ProtocolError, UnsupportedHost) as problem:
                ours.close()
                complaints.seek(0)
                said = complaints.read(4000).decode(errors="replace").strip().splitlines()
                detail = f" ({said[-1]})" if said else ""
                raise UnsupportedHost(
                    f"containers cannot be made on this machine: {problem}{detail}; "
                    "`%container doctor` names the cause and the fix"
                ) from problem
        ours.settimeout(None)
        return ours

    def _introduce(self, channel: socket.socket) -> None:
        settings = self._settings
        assert self._process is not None
        self._make_cgroups(str(self._process.pid))
        if self._cgroup:
            with open(os.path.join(self._cgroup, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(self._process.pid))
        configuration = settings.configuration(cgroup=self._cgroup, freezer=self._freezer)
        namespaces = Namespaces(settings.store, settings.id_map)
        with namespaces.held():  # until it is below: who looks earlier would not find where its containers will be
            pid = self._settle_ids(channel, configuration, namespaces)
            clones = self._clones(pid) if configuration.privileged else []
            try:
                send(channel, Mapped(), tuple(clones))
            finally:
                for fd in clones:
                    os.close(fd)
            self._expect(channel, Ready)

    def _settle_ids(self, channel: socket.socket, configuration: Configure, namespaces: Namespaces) -> int:
        """Have the launcher join the user namespace of one that lives, or make its own and get its maps; its pid."""
        assert self._process is not None
        shared = namespaces.open_theirs()
        try:
            send(channel, configuration, shared)
            pid: int = self._expect(channel, Unshared).pid
        finally:
            for namespace in shared:
                os.close(namespace)
        if pid != self._process.pid:
            raise ProtocolError("the launcher is in another pid namespace")
        if not shared:
            write_id_map(pid, self._settings.id_map)
        namespaces.add(pid)
        return pid

    def remember(self, pid: int) -> None:
        """List a process that lives in the user namespace that all launchers of this store share, beside them."""
        namespaces = Namespaces(self._settings.store, self._settings.id_map)
        with namespaces.held():
            namespaces.add(pid)

    def open_user_namespace(self) -> int:
        """Open the user namespace that all launchers of this store share; the caller's to close."""
        self._ensure()
        assert self._process is not None
        return top_namespace(self._process.pid)

    def _make_cgroups(self, name: str) -> None:
        """Give container root a place for the limit on processes, where we may; tell where pausing would have one."""
        root = self._settings.id_map
        uid, gid = root.uids[0].outside, root.gids[0].outside
        self._hierarchies = machine_hierarchies()
        cgroups.sweep(self._hierarchies)
        self._cgroup = cgroups.make_subtree(name, uid, gid)
        self._freezer = freezer_prefix(self._hierarchies, name)

    def _clones(self, pid: int) -> list[int]:
        """Detached copies of the store's mount and, with ids shifted, of the machine's file systems."""
        clones = [mounts.clone_tree(mounts.AT_FDCWD, self._settings.store)]
        cloned: list[str] = []
        userns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            for path in self._settings.host_paths:
                if not os.path.isdir(path):  # a mounted file, as /etc/hosts in an outer container
                    continue
                try:
                    clones.append(shifted_clone(path, userns, recursive=False))
                    cloned.append(path)
                except OSError as problem:
                    self._host_problem = f"{path} cannot be shown with shifted ids ({problem.strerror})"
        finally:
            os.close(userns)
        self._host_lowers = tuple(cloned)
        return clones

    def shifted_clone(self, path: str) -> int:
        """A detached recursive copy of `path` whose ids are shifted into the containers' namespace (root only)."""
        self._ensure()
        userns = os.open(f"/proc/{self.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return shifted_clone(path, userns, recursive=True)
        finally:
            os.close(userns)

    def _expect(self, channel: socket.socket, kind: type[Any]) -> Any:
        received = receive(channel)
        if received is None:
            raise ProtocolError("the launcher process ended early")
        message, fds = received
        for fd in fds:
            os.close(fd)
        if isinstance(message, Failed):
            raise UnsupportedHost(message.message)
        if not isinstance(message, kind):
            raise ProtocolError(f"the launcher said {type(message).__name__}, not {kind.__name__}")
        return message

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._offers.close()
        self._taken.clear()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._cgroup:
            _remove_cgroup(self._cgroup)
        self._cgroup = self._freezer = ""


def _check_count(fds: Sequence[int]) -> None:
    if len(fds) >= MOST_FDS:
        raise InvalidOption(f"{len(fds)} volumes or layers at once are more than the {MOST_FDS - 1} there can be")


def _remove_cgroup(path: str) -> None:
    """Remove the launcher's cgroup; when it was killed, its containers are still dying for a moment."""
    deadline = time.monotonic() + _DYING
    cgroups.remove_subtree(path)
    while os.path.isdir(path) and time.monotonic() < deadline:
        time.sleep(0.01)
        cgroups.remove_subtree(path)


def shifted_clone(path: str, userns: int, *, recursive: bool) -> int:
    """A detached copy of the mount at `path` with the id map of `userns` (mount_setattr(2), MOUNT_ATTR_IDMAP)."""
    tree = mounts.clone_exactly(path, recursive=recursive)
    try:
        mounts.set_attributes(tree, mounts.MOUNT_ATTR_IDMAP, recursive=recursive, userns=userns)
    except BaseException:
        os.close(tree)
        raise
    return tree


def write_id_map(pid: int, id_map: IdMap) -> None:
    """Write the id maps of the launcher's new user namespace; raise `UnsupportedHost` with the reason."""
    refusal = idmaps.write_map(pid, id_map)
    if refusal:
        raise UnsupportedHost(f"the id map of a user namespace cannot be written: {refusal}")


def error_from(message: Failed) -> NbcontainerError:
    """The exception that a `Failed` message names, if it is one of ours."""
    kind = errors.class_named(message.error)
    if kind is errors.ContainerStartError:
        return errors.ContainerStartError(message.message, exit_code=message.exit_code)
    try:
        return kind(message.message)
    except TypeError:
        return NbcontainerError(message.message)


def child_environment() -> dict[str, str]:
    """What helper processes get to see of our environment: what finds programs and libraries, and the language."""
    return {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}


def _child_program() -> str:
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "child", "__main__.py")
