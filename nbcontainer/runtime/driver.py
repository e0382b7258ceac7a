"""The seam between engine and execution: whoever can run a `ContainerSpec`.

`NativeRuntime` is ours; an OCI runtime on PATH can stand behind the same three methods.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

from nbcontainer._linux.cgroups import machine_hierarchies, membership
from nbcontainer._linux.values import replaced
from nbcontainer.errors import Conflict, InvalidOption, UnsupportedHost
from nbcontainer.model import Limits
from nbcontainer.runtime.capabilities import DEFAULT_CAPABILITIES, capability_numbers
from nbcontainer.runtime.devices import device_nodes
from nbcontainer.runtime.groups import group_in, make_group, places_in
from nbcontainer.runtime.launcher import CLOSED, Launcher, LauncherSettings
from nbcontainer.runtime.lent import LentNetwork
from nbcontainer.runtime.protocol import Expect, Room, Run, Visit
from nbcontainer.runtime.resources import Borrowed
from nbcontainer.runtime.rootfs import operations, root_operations
from nbcontainer.runtime.seccomp import compiled_profile, filter_for
from nbcontainer.runtime.ulimits import resource_limits
from nbcontainer.runtime.visiting import Visitors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nbcontainer._linux.cgroups import Hierarchy
    from nbcontainer.model import ContainerSpec, IdMap, Mount, NetworkMode
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.groups import Group
    from nbcontainer.runtime.rootfs import Stage

__all__ = ["NativeRuntime", "Process", "Runtime", "Window"]

Window = tuple[int, int] | None
"""Rows and columns of a terminal, if anybody has told."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A container's command as another process sees it; `first` is its PID 1, `launcher` the pid of what started that.

    `hierarchies` are the machine's, of cgroups. The pidfd stays its owner's to close.
    """

    pid: int
    pidfd: int
    first: int
    launcher: int
    hierarchies: tuple[Hierarchy, ...] = ()


class Runtime(Protocol):
    """Runs containers, and functions of this package, where container root lives."""

    def start(
        self,
        spec: ContainerSpec,
        stdio: tuple[int, int, int],
        *,
        window: Window = None,
        gate: int = -1,
        namespace: int = -1,
        network: LentNetwork | None = None,
    ) -> Connection:
        """Start `spec` with these descriptors (the caller's to close), or with a terminal of that size.

        Success means the request was taken; failure to set the container up arrives on the connection, and so does the
        master of its terminal. With a `gate` the command waits there for its link; with a `namespace` it is in that
        network instead of its own; with a `network` all of the container is in that one.
        """

    def lend_network(self, gate: int, given_up: Callable[[], bool]) -> LentNetwork:
        """Make a network for containers that are started in it one after another, and have it connected at the `gate`.

        Raises `UnsupportedHost` with what is said there instead, or when it is `given_up` meanwhile.
        """

    def expect(
        self, specs: Sequence[ContainerSpec], released: Sequence[str] = (), *, gates: Sequence[int] = ()
    ) -> None:
        """These are likely to be started next, whatever their command; nobody will start in the folders `released`.

        `gates`, one for each spec or none at all, are those that they will be started with.
        Only a hint: a driver may prepare them, and must not fail because of it.
        """

    def visit(
        self,
        spec: ContainerSpec,
        process: Process,
        stdio: tuple[int, int, int],
        *,
        script_path: str = "",
        detached: bool = False,
        window: Window = None,
    ) -> Connection:
        """Have the command of `spec` join the running container of which `process` is the command.

        Of `spec` only command, identity, rights and script count (put at `script_path`). A `detached` command goes on
        when the connection is closed; any other ends then. Raises `Conflict` for a container that cannot be entered.
        """

    def call(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Call ``module:function`` as container root; raise what it raised."""

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> Connection:
        """Start such a call without waiting; `finish` collects it."""

    def finish(self, connection: Connection) -> dict[str, Any]:
        """Wait for a call that `begin` started."""

    def close(self) -> None:
        """End every container and process; a later `start` begins anew. Safe twice."""


class NativeRuntime:
    """The in-process runtime: one launcher, started on first use."""

    def __init__(
        self,
        store: str,
        id_map: IdMap,
        *,
        pool_size: int,
        pool_idle: float,
        pool_network: NetworkMode = "none",
        host_paths: tuple[str, ...] = (),
        pids_limit: int = 4096,
        modules: tuple[str, ...] = (),
    ) -> None:
        self._modules = modules
        self._store = store
        self._id_map = id_map
        self._pool_size = pool_size
        self._pool_idle = pool_idle
        self._pool_network: NetworkMode = pool_network
        self._host_paths = host_paths
        self._pids_limit = pids_limit
        self._launcher_made: Launcher | None = None
        self._over = False
        self._making = threading.Lock()
        self._visitors = Visitors(lambda: self._launcher.configuration)

    @property
    def _launcher(self) -> Launcher:
        with self._making:  # two launchers would be one too many: the one forgotten ends its containers
            return self._made()

    def _made(self) -> Launcher:
        if self._launcher_made is None:
            if self._over:
                raise Conflict(CLOSED)
            cache = os.path.join(self._store, "cache")
            names = frozenset(DEFAULT_CAPABILITIES)
            program = compiled_profile(cache, names, pretend_owners=self._id_map.single)
            self._launcher_made = Launcher(
                LauncherSettings(
                    store=self._store,
                    id_map=self._id_map,
                    filters={"default": program},
                    capabilities=capability_numbers(DEFAULT_CAPABILITIES),
                    pool_size=self._pool_size,
                    pool_idle=self._pool_idle,
                    pool_network=self._pool_network,
                    host_paths=self._host_paths,
                    pids_limit=self._pids_limit,
                    modules=self._modules,
                )
            )
        return self._launcher_made

    @property
    def pid(self) -> int | None:
        """The launcher's process id while it runs."""
        return self._launcher_made.pid if self._launcher_made else None

    def open_user_namespace(self) -> int:
        """Open the user namespace in which containers of this person live; the caller's to close."""
        return self._launcher.open_user_namespace()

    def remember(self, pid: int) -> None:
        """Know a process that lives in that user namespace; who comes when all launchers have gone joins it there."""
        self._launcher.remember(pid)

    @property
    def waiting_descriptors(self) -> frozenset[int]:
        """What rooms that wait for their command keep open in this process."""
        return self._launcher_made.waiting_descriptors if self._launcher_made else frozenset()

    @property
    def host_lowers(self) -> tuple[str, ...]:
        """The machine's file systems that containers can have below them, as root."""
        return self._launcher.stage.host_lowers

    def host_problem(self) -> str:
        """Why the machine's root is not among them, or ""."""
        return self._launcher.host_problem

    def start(
        self,
        spec: ContainerSpec,
        stdio: tuple[int, int, int],
        *,
        window: Window = None,
        gate: int = -1,
        namespace: int = -1,
        network: LentNetwork | None = None,
    ) -> Connection:
        """See `Runtime.start`."""
        launcher = self._launcher
        stage = launcher.stage
        outside: list[int] = []
        entrances: list[int] = []
        group = None
        try:
            for mount in spec.mounts:
                if mount.idmapped:
                    outside.append(self._shifted(mount.source))  # noqa: PERF401 - each is closed if a later fails
            shifted, nodes = len(outside), -1
            if spec.devices and self._id_map.method == "privileged":
                nodes = shifted
                outside.append(device_nodes(spec.devices))
            room = _room(spec, stage, outside_mounts=tuple(range(shifted)), device_nodes=nodes)
            group = self._group(spec, launcher)
            if group is not None:
                entrances += group.entrances()
            room = self._own(room, spec, cgroups=len(entrances))
            waits = tuple(fd for fd in (namespace, gate) if fd >= 0)
            if waits:
                room = replaced(room, joins=namespace >= 0, gated=gate >= 0)
            if network is not None:
                room = replaced(room, network=network.name)
            script = (spec.script or b"").decode("utf-8", "surrogateescape")
            rows, columns = window or (0, 0)
            request = Run(
                room=room,
                argv=list(spec.argv),
                environment=list(spec.environment),
                script=script,
                rows=rows,
                columns=columns,
            )
            return launcher.run(request, stdio, (*outside, *entrances), group, waits)
        except BaseException:
            if group is not None:
                group.remove()
            raise
        finally:
            for fd in (*outside, *entrances):
                os.close(fd)

    def lend_network(self, gate: int, given_up: Callable[[], bool]) -> LentNetwork:
        """See `Runtime.lend_network`."""
        return LentNetwork(self._launcher, gate, given_up)

    def visit(
        self,
        spec: ContainerSpec,
        process: Process,
        stdio: tuple[int, int, int],
        *,
        script_path: str = "",
        detached: bool = False,
        window: Window = None,
    ) -> Connection:
        """See `Runtime.visit`."""
        room = self._own(_empty_room(spec), spec, cgroups=0)
        script = (spec.script or b"").decode("utf-8", "surrogateescape")
        argv, environment, size = list(spec.argv), list(spec.environment), window or (0, 0)
        request = Visit(room, argv, environment, script, script_path, "", detached, *size)
        known, where = process.hierarchies, (process.pid, process.pidfd)
        member = membership(process.pid, known)
        ours = self._launcher if self.pid == process.launcher else None
        connection = self._visitors.visit(request, where, stdio, places_in(member), launcher=ours)
        connection.resources = Borrowed(group_in(member, known), process.first)
        return connection

    def _own(self, room: Room, spec: ContainerSpec, *, cgroups: int) -> Room:
        """The room with what is its own: a filter that the launcher does not have yet, limits."""
        if spec.seccomp == "default" and set(spec.capabilities) == set(DEFAULT_CAPABILITIES):
            return replaced(room, cgroups=cgroups) if cgroups else room
        cache = os.path.join(self._store, "cache")
        program = filter_for(cache, spec.seccomp, spec.capabilities, pretend_owners=self._id_map.single)
        name = ("adapted" if spec.seccomp == "default" else "custom") if program else "unconfined"
        return replaced(room, filter=name, program=program.hex(), cgroups=cgroups)

    def _group(self, spec: ContainerSpec, launcher: Launcher) -> Group | None:
        """The cgroups that the container's limits need.

        With CAP_SYS_ADMIN it could mount the cgroup in which the pool made it and lift its limit on processes, so then
        it gets one that is not its own.
        """
        always = frozenset({"pids"}) if "SYS_ADMIN" in spec.capabilities else frozenset()
        if spec.limits == Limits() and not always:
            return None
        held = self._pids_limit if launcher.limits_processes else None
        return make_group(spec.id, spec.limits, machine_hierarchies(), pids=held, always=always)

    def expect(
        self, specs: Sequence[ContainerSpec], released: Sequence[str] = (), *, gates: Sequence[int] = ()
    ) -> None:
        """See `Runtime.expect`. A spec with volumes is left out: what they show is decided when it is started."""
        launcher = self._launcher
        stage = launcher.stage
        plain = [not any(mount.kind == "bind" for mount in spec.mounts) for spec in specs]
        rooms = [_room(spec, stage) for spec, known in zip(specs, plain, strict=True) if known]
        if gates:
            rooms = [replaced(room, gated=True) for room in rooms]
        message = Expect(rooms=rooms, released=[stage.locate(folder) for folder in released], taken=[])
        launcher.expect(message, [gate for gate, known in zip(gates, plain, strict=bool(gates)) if known])

    def view(self, root: Sequence[Mount]) -> list[dict[str, Any]]:
        """The steps by which a task mounts the files of a container (see `nbcontainer.runtime.child.views`)."""
        masks = [{"op": "mask", "target": mount.target} for mount in root if mount.kind == "mask"]
        return [*root_operations(root, self._launcher.stage), *masks]

    def _shifted(self, source: str) -> int:
        try:
            return self._launcher.shifted_clone(source)
        except FileNotFoundError as problem:
            raise InvalidOption(f"volume source {source} does not exist on this machine; make it first") from problem
        except OSError as problem:
            if problem.errno == errno.ELOOP:
                raise InvalidOption(
                    f"a symbolic link has appeared in volume source {source} since it was checked; refused"
                ) from problem
            raise UnsupportedHost(
                f"volume source {source} cannot be mounted: its file system does not support id-mapped mounts "
                f"({problem.strerror}); use a folder on ext4, xfs, btrfs or tmpfs, or run as an ordinary user"
            ) from problem

    def call(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """See `Runtime.call`."""
        return self._launcher.call(target, arguments, fds)

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> Connection:
        """See `Runtime.begin`."""
        return self._launcher.begin(target, arguments, fds)

    def finish(self, connection: Connection) -> dict[str, Any]:
        """See `Runtime.finish`."""
        return self._launcher.finish(connection)

    @property
    def deaths(self) -> int:
        """How many launchers have died without being told to (see `Launcher.deaths`)."""
        return self._launcher_made.deaths if self._launcher_made else 0

    def close(self, *, for_good: bool = False) -> None:
        """See `Runtime.close`; `for_good` nothing begins anew."""
        self._visitors.close()
        with self._making:
            self._over = self._over or for_good
            launcher = self._launcher_made
        if launcher is not None:
            launcher.close(for_good=for_good)


def _room(spec: ContainerSpec, stage: Stage, outside_mounts: tuple[int, ...] = (), device_nodes: int = -1) -> Room:
    return replaced(
        _empty_room(spec),
        operations=operations(spec, stage, outside_mounts=outside_mounts, device_nodes=device_nodes),
        scratch=stage.locate(spec.scratch) if spec.scratch else "",
    )


def _empty_room(spec: ContainerSpec) -> Room:
    """All of a room but its files."""
    return Room(
        id=spec.id,
        operations=[],
        working_directory=spec.working_directory,
        user=spec.user,
        hostname=spec.hostname,
        network="host" if spec.network == "host" else "none",
        filter=spec.seccomp,
        no_new_privileges=spec.no_new_privileges,
        capabilities=sorted(capability_numbers(spec.capabilities)),
        read_only_root=spec.read_only_root,
        script=spec.script is not None,
        scratch="",
        generation=spec.generation,
        rlimits=resource_limits(spec.ulimits),
        terminal=spec.terminal,
    )
