"""What a build needs of an engine: base images, containers that keep what they wrote until it is a layer, and tasks.

Implements `nbcontainer.build.workshop.Workshop`. Builds have a launcher of their own (`build_runtime`).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nbcontainer.engine.lifecycle import process_fields
from nbcontainer.engine.running import resolv_conf
from nbcontainer.engine.successors import new_container_id
from nbcontainer.errors import ContainerStartError, ImageNotFound, InvalidInput, UnsupportedHost
from nbcontainer.images.lent import lent_by_layout, lent_by_registry, lent_by_store
from nbcontainer.model import ImageConfig, Platform, Reference, RunOptions
from nbcontainer.runtime.bundle import bundle
from nbcontainer.runtime.launcher import error_from
from nbcontainer.runtime.protocol import BUILD_HOST_NAME
from nbcontainer.runtime.supervisor import supervise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Self

    from nbcontainer.build.request import CacheSource
    from nbcontainer.build.workshop import Job
    from nbcontainer.engine.records import Record
    from nbcontainer.engine.session import Session
    from nbcontainer.images.image import Image
    from nbcontainer.images.lent import LentImage
    from nbcontainer.images.unpack import Helper
    from nbcontainer.layers.snapshotter import Snapshotter
    from nbcontainer.model import ContainerSpec, ExitReason, Listener, Mount
    from nbcontainer.registry import Interrupt
    from nbcontainer.runtime.connection import Connection
    from nbcontainer.runtime.supervisor import Outcome
    from nbcontainer.store import ContentStore, RefStore

__all__ = ["EngineWorkshop"]

_LOST = "its processes vanished without an exit code: killed from outside, or the machine ran out of memory"
_EMPTY = "empty"
"""A folder of every launcher's stage (`nbcontainer.runtime.child.stage`)."""
_MOUNTED = frozenset({"hosts", "hostname", "resolv.conf"})
_BACKLOG = 16
_DYING = 2
"""Seconds for which the end of processes that were killed is waited for."""
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedJob:
    """A RUN that has ended (see `nbcontainer.build.workshop.Ran`)."""

    exit_code: int
    reason: ExitReason
    detail: str
    written: dict[str, Any] | None


class EngineWorkshop:
    """One build's hold on an engine; a context manager."""

    def __init__(
        self, session: Session, pull: Callable[[str, str, Literal["always", "missing"], Listener], Image]
    ) -> None:
        self._session = session
        self._pull = pull
        self._lent = contextlib.ExitStack()
        self._runtime = self._lent.enter_context(session.build_runtime.lent())
        self._lock = threading.Lock()
        self._cleaner = ThreadPoolExecutor(1, thread_name_prefix="nbcontainer-clean")
        self._running: set[Connection] = set()
        self._stopping = threading.Event()
        self._closed = False
        self._ended_jobs: list[tuple[str, Record]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with self._lock:
                self._closed = True
            self._clean_up()
            self._cleaner.shutdown(wait=True)
        finally:
            self._lent.close()

    # --- the store --------------------------------------------------------------------------------------------------

    @property
    def content(self) -> ContentStore:
        """See `Workshop.content`."""
        return self._session.content

    @property
    def refs(self) -> RefStore:
        """See `Workshop.refs`."""
        return self._session.library.refs

    @property
    def snapshots(self) -> Snapshotter:
        """See `Workshop.snapshots`."""
        return self._session.snapshots

    @property
    def helper(self) -> Helper:
        """See `Workshop.helper`."""
        return self._runtime

    def _clean_up(self) -> None:
        """Take away what ended commands have left, now that there is time: a command is being started, or none is."""
        with self._lock:
            ended, self._ended_jobs = self._ended_jobs, []
        for directory, record in ended:
            try:
                self._cleaner.submit(self._clean, directory, record)
            except RuntimeError:  # the build was over before its last command was
                self._clean(directory, record)

    def _clean(self, directory: str, record: Record) -> None:
        try:
            self._session.discard(directory)
        finally:
            record.close()

    @property
    def owners(self) -> bool:
        """See `Workshop.owners`."""
        return not self._session.id_map.single

    @property
    def no_bridge(self) -> str:
        """See `Workshop.no_bridge`."""
        return self._session.networks.problem

    @property
    def folder(self) -> str:
        """See `Workshop.folder`."""
        return os.path.join(self._session.settings.root, "build")

    def view(self, root: Sequence[Mount]) -> list[dict[str, Any]]:
        """See `Workshop.view`. Overlayfs shows nothing of one layer alone, so that one stands on an empty folder."""
        steps = self._runtime.view(root)
        for step in steps:
            if step["op"] == "overlay" and not step["upper"] and len(step["lower"]) == 1:
                step["lower"].append(_EMPTY)
        return steps

    def image(self, name: str, platform: str, *, fresh: bool, listener: Listener) -> Image:
        """See `Workshop.image`."""
        found = self._pull(name, platform, "always" if fresh else "missing", listener)
        if found.chain is not None and not self.snapshots.has(found.chain):
            found = self._pull(name, platform, "always", listener)
        return found

    def lent(
        self, source: CacheSource, platform: Platform, *, fresh: bool, interrupt: Interrupt, listener: Listener
    ) -> LentImage:
        """See `Workshop.lent`. Of a name alone the image here counts, as for a run; else the registry's."""
        if source.kind == "local":
            return lent_by_layout(source.place, platform, self.content)
        if source.kind == "image" and not fresh:
            with contextlib.suppress(ImageNotFound):
                return lent_by_store(self._session.library.find(source.place), self.content)
        with contextlib.ExitStack() as undo:
            reference = Reference.parse(source.place)
            client = undo.enter_context(self._session.puller(listener)).client
            undo.callback(interrupt.watch(client.close))
            return lent_by_registry(reference, platform, client=client, content=self.content, undo=undo)

    # --- RUN --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def run(self, job: Job, output: Callable[[Literal["stdout", "stderr"], bytes], None]) -> Iterator[EndedJob]:
        """See `Workshop.run`. The record is locked until the block ends, so nobody takes the files away before."""
        session = self._session
        container = new_container_id()
        directory = session.records.path(container)
        spec = self._spec(job, container, directory)
        fields = {
            "name": "",
            "image": "(build)",
            "chain": str(job.chain or ""),
            "command": list(spec.argv),
            "title": job.title,
            "created": time.time(),
            "keep": False,
        }
        record = session.records.create(container, fields)
        try:
            yield self._carried_out(spec, record, output)
        finally:  # the next step need not wait for it; the record stays locked until it is done
            with self._lock:
                self._ended_jobs.append((directory, record))
                late = self._closed
            if late:
                self._clean_up()

    def _spec(self, job: Job, container: Any, directory: str) -> ContainerSpec:
        if job.chain is None:
            raise InvalidInput("the stage has no files yet, so there is no program to run; COPY some in first")
        root = self.snapshots.mounts(job.chain, upper=f"{directory}/upper", work=f"{directory}/work")
        config = ImageConfig(
            platform=Platform.host(), environment=job.environment, user=job.user, working_directory=job.directory
        )
        spec = bundle(
            container,
            config,
            RunOptions(network=job.network, hostname=BUILD_HOST_NAME),
            root=tuple(replace(mount, volatile=True) for mount in root),
            argv=job.argv,
            script=job.script,
            host_resolv_conf=resolv_conf() if job.network == "host" else "",
            single_id=self._session.id_map.single,
        )
        owners = self.owners
        files = tuple(file if owners else replace(file, uid=0, gid=0) for file in job.files)
        return replace(spec, mounts=job.mounts, mounted_files=files, extra_hosts=job.hosts)

    def _carried_out(
        self,
        spec: ContainerSpec,
        record: Record,
        output: Callable[[Literal["stdout", "stderr"], bytes], None],
    ) -> EndedJob:
        with contextlib.ExitStack() as undo:
            ends = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)]
            undo.callback(_close_all, ends)
            readers = []
            for _ in range(2):
                reader, writer = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, reader)
                ends.append(writer)
                readers.append(reader)
                self._session.adopt(writer)
            stands = self._session.build_runtime.stands
            lease = undo.enter_context(stands.lease(spec, self._runtime, self._stopping.is_set))
            if self._stopping.is_set():
                raise UnsupportedHost("the build was ended before this command began")
            if lease.fields:
                record.update(**lease.fields)
            connection = self._runtime.start(
                lease.spec,
                (ends[0], ends[1], ends[2]),
                gate=lease.gate,
                namespace=lease.namespace,
                network=lease.network,
            )
            undo.callback(connection.close)
            undo.callback(_wait_until_gone, connection)
            with self._lock:
                self._running.add(connection)
                too_late = self._stopping.is_set()
            undo.callback(self._over, connection)
            if too_late:
                connection.end()
            self._clean_up()
            lease.started()
            _close_all(ends)

            def accepted(pid: int) -> None:
                record.update(started=time.time(), **process_fields(pid))

            if connection.pid is not None:
                accepted(connection.pid)
            outcome = supervise(
                connection,
                stdout=readers[0],
                stderr=readers[1],
                sink=output,
                on_accepted=accepted,
            )
        if outcome.failure is not None:
            problem = error_from(outcome.failure)
            if isinstance(problem, ContainerStartError):
                return EndedJob(
                    exit_code=problem.exit_code, reason="exited", detail=str(problem), written=self._written(spec)
                )
            raise problem
        return self._ended(spec, outcome)

    def _over(self, connection: Connection) -> None:
        with self._lock:
            self._running.discard(connection)

    def _ended(self, spec: ContainerSpec, outcome: Outcome) -> EndedJob:
        code, detail, reason = 137, "", outcome.reason
        if outcome.status is not None:
            code = os.waitstatus_to_exitcode(outcome.status)
            if code < 0:
                detail = f"killed by {signal.Signals(-code).name}" if -code < signal.SIGRTMIN else f"signal {-code}"
                code, reason = 128 - code, "signalled" if reason == "exited" else reason
        elif reason == "lost":
            detail = _LOST
        return EndedJob(exit_code=code, reason=reason, detail=detail, written=self._written(spec))

    def _written(self, spec: ContainerSpec) -> dict[str, Any] | None:
        """Where a task finds what was written; None when that is nothing at all."""
        (mount,) = (each for each in spec.root if each.kind == "overlay")
        try:
            above, below = os.stat(mount.upper), os.stat(mount.lower[0])
            if _alike(above, below) and _holds_only_stubs(mount.upper, mount.lower):
                return None
        except FileNotFoundError:
            return None
        except OSError:  # container root has closed its own root to us; a task may look
            pass
        (step,) = self.view((mount,))
        return {"upper": step["upper"], "lower": step["lower"]}

    def discard(self, path: str) -> None:
        """See `Workshop.discard`."""
        self._session.discard(path)

    def stop(self, number: int) -> None:
        """See `Workshop.stop`. What has not begun does not begin."""
        with self._lock:
            self._stopping.set()
            for connection in self._running:
                if number == signal.SIGKILL:
                    connection.end()
                else:
                    connection.signal(number)

    # --- ssh --------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def open_socket_to(self, path: str, *, mode: int, uid: int, gid: int) -> Iterator[str]:
        """See `Workshop.open_socket_to`.

        An agent answers its own user only, and container root is somebody else: so we listen in the store and pass on
        what is said.
        """
        folder = os.path.join(self.folder, "mounts", f"ssh-{new_container_id()[:16]}")
        os.mkdir(folder, 0o700)
        here = os.path.join(folder, "agent")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _bind(listener, folder, "agent")
            self._give(folder, 0o755, 0, 0)
            self._give(here, mode, uid, gid)
            listener.listen(_BACKLOG)
            worker = threading.Thread(target=_pass_on, args=(listener, path), name="nbcontainer-ssh", daemon=True)
            worker.start()
            try:
                yield here
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                worker.join()
        finally:
            listener.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _give(self, path: str, mode: int, uid: int, gid: int) -> None:
        os.chmod(path, mode)
        if self._session.privileged:
            ids = self._session.id_map
            os.chown(path, ids.uids[0].outside + uid, ids.gids[0].outside + gid)


def _wait_until_gone(connection: Connection) -> None:
    """Wait for the end of what a command has left running: what comes next in its network shall not meet it."""
    if not connection.alone and connection.pidfd >= 0:
        end = select.poll()
        end.register(connection.pidfd, select.POLLIN)
        end.poll(_DYING * 1000)


def _alike(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)


def _holds_only_stubs(upper: str, lowers: Sequence[str]) -> bool:
    """Whether nothing is in a writable layer but what our own mounts were put on (see `nbcontainer.layers.diff`).

    Most commands of builds that change nothing are told so here, without a walk by a task.
    """
    names = os.listdir(upper)
    if not names:
        return True
    if names != ["etc"]:
        return False
    etc = os.path.join(upper, "etc")
    below = next((each for lower in lowers if (each := _look(os.path.join(lower, "etc"))) is not None), None)
    status = os.lstat(etc)
    if not stat.S_ISDIR(status.st_mode) or below is None or not _alike(status, below):
        return False
    for name in os.listdir(etc):
        stub = os.lstat(os.path.join(etc, name))
        if name not in _MOUNTED or not stat.S_ISREG(stub.st_mode) or stub.st_size:
            return False
        if any(_look(os.path.join(lower, "etc", name)) is not None for lower in lowers):
            return False
    return True


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _close_all(ends: list[int]) -> None:
    while ends:
        os.close(ends.pop())


def _bind(listener: socket.socket, folder: str, name: str) -> None:
    """Bind by way of the folder's descriptor: a socket's path may have 107 bytes, and a store may lie deep."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        listener.bind(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def _pass_on(listener: socket.socket, path: str) -> None:
    """Connect whoever comes to the socket at `path`, each in two threads, until nobody is listened for any more."""
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:
            return
        try:
            agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            agent.connect(path)
        except OSError:
            caller.close()
            continue
        for source, target in ((caller, agent), (agent, caller)):
            threading.Thread(target=_pump, args=(source, target), name="nbcontainer-ssh", daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE):
            target.sendall(piece)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
