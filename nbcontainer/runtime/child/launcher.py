"""The launcher: one single-threaded process that owns the user namespace in which everything runs.

The engine's process (a notebook kernel with a dozen threads) can neither fork into Python nor unshare; this one can.
Its life: enter a new user and mount namespace, wait until the engine has written the id maps, attach the stage, keep
a few containers-to-be ready, furnished ones among them, and answer `Run` and `Task` requests until the engine's
socket closes, by whatever death. Then it ends everything it started.

Processes below it: the *clerk* with *tasks* (a function of this package run inside the namespace) and the *janitor*
(removes the writable layers of ended containers), *visits* (a command that joins a container), and for each container
an *init* (PID 1) with the *command*.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import time

from nbcontainer._linux import mounts, processes, syscalls
from nbcontainer.runtime.child import clerk, init, interpreter, limits, modules, nursery, stage, visits
from nbcontainer.runtime.protocol import (
    Accepted,
    Configure,
    Expect,
    Failed,
    Lend,
    Mapped,
    ProtocolError,
    Ready,
    Room,
    Run,
    Taken,
    Task,
    Unshared,
    Visit,
    receive,
    send,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

_STAGE = "run"
_NETWORKS = frozenset({"none", "host"})
"""What a room's network can be beside one that was lent: one of its own, or the machine's."""
_WATCHES = (("max_user_instances", "max_inotify_instances"), ("max_user_watches", "max_inotify_watches"))
_MOST_DEATHS = 20
"""Containers that died while they waited, after which no more are prepared ahead: something here ends them."""
_CALM = 25
"""Milliseconds without a request after which the pool is filled."""
_STALE = 900.0
"""Seconds after which a furnished container is not used any more: an hour later others would sweep its folder."""


def main(fd: int, memory: int = -1, lower: int = -1) -> NoReturn:
    """Serve the engine at the other end of `fd` until it goes away.

    With `memory` this is the second life of a launcher (see `interpreter.start_again`): a file with its configuration.
    `lower` is the user namespace in which another one has its containers, to have ours there as well.
    """
    channel = socket.socket(fileno=fd)
    os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's own signature
    try:
        if memory < 0:
            configuration, shared = _first(channel)
            exposed = interpreter.could_be_changed(configuration)
            if exposed:
                modules.load()
                _enter_user_namespace(channel, configuration, shared[:1])
                interpreter.start_again(configuration, fd, further=tuple(shared[1:]))
            for namespace in shared[1:]:
                os.close(namespace)
            helper = clerk.start(configuration.modules, channel)
            modules.load()
            fds = _enter_user_namespace(channel, configuration, shared[:1])
        else:
            configuration, fds = interpreter.remembered(memory), []
            helper = clerk.start(configuration.modules, channel, *([lower] if lower >= 0 else []))
            modules.load()
            interpreter.go_below(lower)
        _build_stage(configuration, fds)
        launcher = Launcher(channel, configuration, helper)
    except (OSError, ProtocolError) as problem:
        with contextlib.suppress(OSError):
            send(channel, Failed("UnsupportedHost", f"the launcher could not set itself up: {problem}"))
        os._exit(1)
    send(channel, Ready())
    launcher.serve()
    os._exit(0)


def _first(channel: socket.socket) -> tuple[Configure, list[int]]:
    received = receive(channel)
    if received is None or not isinstance(received[0], Configure):
        raise ProtocolError("expected Configure")
    return received[0], received[1]


def _enter_user_namespace(channel: socket.socket, configuration: Configure, shared: list[int]) -> list[int]:
    """Unshare and have the maps written; return the clones of the machine's file systems that came along, as root.

    Where another launcher of this person lives, its namespace came along, and is entered instead.
    The current directory, which is where the stage will be, follows into the new mount namespace, whether or not
    container root may walk the folders above it.
    """
    os.chdir(os.path.join(configuration.store, _STAGE))
    for namespace in shared:
        syscalls.setns(namespace, processes.CLONE_NEWUSER)
        os.close(namespace)
    syscalls.unshare(processes.CLONE_NEWNS if shared else processes.CLONE_NEWUSER | processes.CLONE_NEWNS)
    send(channel, Unshared(os.getpid()))
    received = receive(channel)
    if received is None or not isinstance(received[0], Mapped):
        raise ProtocolError("expected Mapped")
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    mounts.mount("", "/", "", mounts.MS_REC | mounts.MS_PRIVATE)
    _leave_watches_to_others()
    return received[1]


def _leave_watches_to_others() -> None:
    """Let containers have half of a user's inotify instances and watches: container root may be that user, at work.

    The limits of a user namespace hold below those of its parents (namespaces(7), /proc/sys/user).
    """
    for limit, name in _WATCHES:
        with contextlib.suppress(OSError, ValueError):  # a kernel without inotify
            with open(f"/proc/sys/fs/inotify/{limit}", encoding="ascii") as file:
                most = int(file.read())
            processes.write_text(f"/proc/sys/user/{name}", str(max(1, most // 2)))


def _build_stage(configuration: Configure, fds: list[int]) -> None:
    """Mount the stage over the store's run directory, which is the current one, and attach the store to it."""
    mounts.mount("tmpfs", ".", "tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, "mode=755,size=1m")
    here = _reopen_here()
    os.fchdir(here)
    os.close(here)
    for name in stage.DIRECTORIES:
        os.mkdir(name, 0o755)
    if fds:
        _attach(fds[0], "store")
        for number, tree in enumerate(fds[1:]):
            os.mkdir(f"host/{number}", 0o755)
            _attach(tree, f"host/{number}")
    else:
        _attach(mounts.clone_tree(mounts.AT_FDCWD, configuration.store), "store")


def _reopen_here() -> int:
    """The current directory again, from its mount point: what has been mounted on it becomes visible."""
    parent = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.open(_STAGE, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=parent)
    finally:
        os.close(parent)


def _attach(tree: int, target: str) -> None:
    target_fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mounts.move_tree(tree, target_fd)
    finally:
        os.close(target_fd)
        os.close(tree)


class Launcher:
    """The serving loop and what it keeps: containers-to-be, running containers, the janitor."""

    def __init__(self, channel: socket.socket, configuration: Configure, helper: clerk.Clerk) -> None:
        self._channel = channel
        self._configuration = configuration
        self._clerk = helper
        self._pool_idle = configuration.pool_idle / 1000
        self._filters = {name: bytes.fromhex(text) for name, text in configuration.filters.items()}
        self._ready: list[init.Prepared] = []
        self._pool_network = configuration.pool_network
        self._lent: dict[str, int] = {}
        self._furnished: list[init.Prepared] = []
        self._surrendered: dict[str, int] = {}
        self._surprising = False
        self._expected: list[Room] = []
        self._gates: dict[str, int] = {}
        self._left: set[str] = set()
        self._last_request = _now()
        self._broken = False
        self._died_waiting = 0
        self._lame = False
        self._running: dict[int, str] = {}
        self._serial = 0
        self._last_capability = processes.last_capability()
        settings = init.Settings(
            private_network=True,
            namespace=-1,
            single_id=configuration.single_id,
            last_capability=self._last_capability,
            capabilities=frozenset(configuration.capabilities),
            filters=self._filters,
            cgroup="",
        )
        kept = configuration.pool_size + 1 if configuration.pool_size else 0  # one is there for what has been taken
        self._places = nursery.Places(configuration.cgroup, configuration.pids_limit, kept, settings)
        visiting = visits.Settings(
            single_id=configuration.single_id, last_capability=self._last_capability, filters=self._filters
        )
        self._porters = visits.Porters(visiting, self._become_helper, self._channel)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        syscalls.set_child_subreaper()  # what a killed porter leaves: a container waits for who collects it
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        self._leave_own_cgroup()
        gc.collect()
        gc.freeze()
        gc.disable()

    def serve(self) -> None:
        """Answer requests until the engine is gone, then end everything."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            events = poll.poll(self._patience())
            if not events:
                self._use_the_calm()
                continue
            for fd, _ in events:
                if fd == self._wake_read:
                    self._reap()
                    continue
                try:
                    received = receive(self._channel)
                except ProtocolError:  # one bad message must not end every container
                    continue
                if received is None:
                    self._end()
                    return
                message, fds = received
                try:
                    self._answer(message, fds)
                finally:
                    for each in fds:
                        os.close(each)
            if self._lame and not self._running:  # the engine will start another one
                self._end()
                return
            if not self._asleep() and not any(each.network == self._pool_network for each in self._ready):
                self._refill()

    def _answer(self, message: object, fds: list[int]) -> None:
        if isinstance(message, Expect):
            self._expect(message, fds)
            return
        if isinstance(message, Lend):
            self._lend(message.name, fds)
            return
        if isinstance(message, Taken):
            self._taken_without_room(message)
            return
        if not fds:
            return
        self._last_request = _now()
        control = socket.socket(fileno=os.dup(fds[0]))
        try:
            if isinstance(message, Run):
                self._run(message, control, fds)
            elif isinstance(message, Task):
                self._clerk.hand(message, fds)
            elif isinstance(message, Visit):
                self._porters.admit(message, fds)
        except OSError as problem:
            with contextlib.suppress(OSError):
                send(control, Failed("UnsupportedHost", f"a container could not be prepared: {problem}"))
        finally:
            control.close()

    # --- containers -------------------------------------------------------------------------------------------------

    def _run(self, request: Run, control: socket.socket, fds: list[int]) -> None:
        room = request.room
        prepared = self._take_furnished(room)
        self._expected = [each for each in self._expected if each.id != room.id]
        self._close_gates()
        furnished = prepared is not None
        self._surprising = not furnished
        if prepared is None:
            self._keep_ready(room.network)
            prepared = self._one_ready(room.network)
        self._left.discard(room.scratch)
        self._running[prepared.pid] = room.scratch
        try:
            if not furnished:
                prepared.furnish(room, fds[4:])
            prepared.start(request, fds[:4])
            with contextlib.suppress(OSError):  # the engine may be gone already; its silence ends the container
                send(control, Accepted(prepared.pid), (prepared.pidfd,))
        except OSError as problem:  # it died while it waited
            with contextlib.suppress(OSError):
                send(control, Failed("ContainerStartError", f"a prepared container had died: {problem}"))
        finally:
            prepared.close()

    def _prepare(self, network: str) -> init.Prepared:
        if network not in _NETWORKS and network not in self._lent:
            raise OSError("its network has just ended, with the process that kept it; try again")
        self._serial += 1
        prepared = self._places.prepare(private_network=network != "host", namespace=self._lent.get(network, -1))
        prepared.id, prepared.network = f"container {self._serial}", network
        return prepared

    # --- the pool ---------------------------------------------------------------------------------------------------

    def _patience(self) -> int | None:
        """How long to wait for a request, in milliseconds, before there is something else to do."""
        if self._asleep():
            return None
        if self._lacking() or self._unfurnished() or not self._places.are_tidy:
            return _CALM
        if not self._ready and not self._furnished:
            return None
        return max(_CALM, int((self._last_request + self._pool_idle - _now()) * 1000))

    def _asleep(self) -> bool:
        """Whether nobody has asked for so long that nothing should be kept waiting."""
        return not self._ready and not self._furnished and _now() - self._last_request >= self._pool_idle

    def _use_the_calm(self) -> None:
        """Nobody asks: furnish what is expected, prepare what is lacking, let go of what is not asked for any more.

        Preparing takes the same locks of the kernel (mounts, network namespaces) as the container that has just been
        asked for, so it waits for a calm moment, unless there is none left.
        """
        if _now() - self._last_request >= self._pool_idle:
            self._expected.clear()
            self._close_gates()
            for prepared in [*self._furnished, *self._ready]:
                self._let_go(prepared)
            return
        for room in self._unfurnished()[:1]:
            try:
                self._furnish(room, self._one_ready(room.network))
            except OSError:  # whoever asks for it will meet the same problem and report it
                self._expected.remove(room)
        self._refill()
        self._places.tidy([each.pid for each in (*self._ready, *self._furnished)])

    def _keep_ready(self, network: str) -> None:
        """Keep ready what is asked for now: the next one wants the same network, as a rule.

        What waits with another one goes when there is no place for both.
        """
        self._pool_network = network
        for prepared in [each for each in self._ready if each.network != network and not self._lacking()]:
            self._let_go(prepared)

    def _lend(self, network: str, fds: list[int]) -> None:
        """Know a network namespace by its name; without a descriptor, forget it and what waits in it."""
        if fds:
            self._lent[network] = os.dup(fds[0])
        elif network in self._lent:
            if network == self._pool_network:
                self._pool_network = self._configuration.pool_network
            for prepared in [each for each in self._ready if each.network == network]:
                self._let_go(prepared)
            os.close(self._lent.pop(network))

    def _one_ready(self, network: str) -> init.Prepared:
        """A container-to-be with this network: one that waits, or one made now."""
        for prepared in [each for each in self._ready if each.network == network]:
            if prepared.claim():
                self._ready.remove(prepared)
                return prepared
            self._surrender(prepared)
        return self._prepare(network)

    def _surrender(self, prepared: init.Prepared) -> None:
        """Give up one that the engine has taken, and has not told us of yet: with which room, is told then."""
        self._ready.remove(prepared)
        self._running[prepared.pid] = ""
        self._surrendered[prepared.id] = prepared.pid
        prepared.close()

    def _taken_without_room(self, message: Taken) -> None:
        """The engine has had a room built, and started a command there, in a container that we had offered."""
        self._last_request = _now()
        self._surprising = True
        for prepared in [each for each in self._ready if each.id == message.id]:
            self._keep_ready(prepared.network)
            self._surrender(prepared)
        pid = self._surrendered.pop(message.id, -1)
        if pid in self._running:
            self._running[pid] = message.scratch
        elif message.scratch:  # it is over already
            self._clerk.discard(message.scratch)

    def _lacking(self) -> bool:
        return not self._broken and len(self._ready) + len(self._furnished) < self._configuration.pool_size

    def _refill(self) -> None:
        if self._lacking():
            try:
                prepared = self._prepare(self._pool_network)
            except OSError:
                self._broken = True  # the next request will meet the same problem and report it
                return
            self._ready.append(prepared)
            if self._surprising:  # else the next one has been furnished, and to hear of this one takes the engine time
                prepared.offer(self._channel)

    def _expect(self, message: Expect, gates: list[int]) -> None:
        for prepared in [each for each in self._furnished if each.room is not None and each.room.id in message.taken]:
            self._taken(prepared)
        for room, fd in zip([each for each in message.rooms if each.gated], gates, strict=False):
            self._gates[room.id] = os.dup(fd)
        most = max(0, self._configuration.pool_size - 1)  # one always waits for what nobody expects
        self._expected = [*self._expected, *message.rooms][-most:] if most else []
        self._close_gates()
        for folder in message.released:
            self._left.discard(folder)
            self._clerk.discard(folder)

    def _unfurnished(self) -> list[Room]:
        rooms = [each.room for each in self._furnished]
        return [room for room in self._expected if room not in rooms and (not room.gated or room.id in self._gates)]

    def _close_gates(self) -> None:
        """Let go of the gates of rooms that are not expected any more."""
        for room in set(self._gates) - {each.id for each in self._expected}:
            os.close(self._gates.pop(room))

    def _furnish(self, room: Room, prepared: init.Prepared) -> None:
        """Have a container-to-be build a room that nobody has asked for yet."""
        gate = self._gates.pop(room.id, -1)
        try:
            prepared.furnish(room, [gate] if room.gated else [], ahead=True)
        except OSError:  # it died while it waited
            self._let_go(prepared)
            self._count_death()
            return
        finally:
            if gate >= 0:
                os.close(gate)
        self._left.add(room.scratch)
        self._furnished.append(prepared)
        prepared.offer(self._channel)
        if len(self._furnished) >= self._configuration.pool_size:
            self._let_go(self._furnished[0])

    def _take_furnished(self, room: Room) -> init.Prepared | None:
        """The waiting container that is exactly this room, if there is one, it lives, and it is fresh."""
        for prepared in [each for each in self._furnished if each.room is not None and each.room.id == room.id]:
            fresh = _now() - prepared.furnished_at < _STALE
            if prepared.room == room and fresh and prepared.is_alive() and prepared.claim():
                self._furnished.remove(prepared)
                return prepared
            self._let_go(prepared)
        return None

    def _taken(self, prepared: init.Prepared) -> None:
        """The engine has started a command in a room that we had offered."""
        assert prepared.room is not None
        self._last_request = _now()
        self._surprising = False
        self._furnished.remove(prepared)
        self._expected = [each for each in self._expected if each.id != prepared.room.id]
        self._left.discard(prepared.room.scratch)
        self._running[prepared.pid] = prepared.room.scratch
        prepared.close()

    def _let_go(self, prepared: init.Prepared) -> None:
        """End a container that waits; `_reap` collects it, and its folder stays for a request that still names it."""
        if not prepared.claim():
            if prepared.room is None:
                self._surrender(prepared)
            else:
                self._taken(prepared)
            return
        for waiting in (self._ready, self._furnished):
            if prepared in waiting:
                waiting.remove(prepared)
        with contextlib.suppress(ProcessLookupError):
            os.kill(prepared.pid, signal.SIGKILL)
        prepared.close()

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._forget(pid)

    def _forget(self, pid: int) -> None:
        self._lame = self._lame or pid == self._clerk.pid
        self._porters.forget(pid)
        for prepared in [each for each in self._furnished if each.pid == pid and not each.claim()]:
            self._taken(prepared)
        for prepared in [each for each in self._ready if each.pid == pid and not each.claim()]:
            self._surrender(prepared)
        self._places.leave(pid)
        self._surrendered = {name: each for name, each in self._surrendered.items() if each != pid}
        if self._asleep():
            self._places.give_up_free()
        scratch = self._running.pop(pid, "")
        if scratch:
            self._clerk.discard(scratch)
        for prepared in [each for each in self._furnished if each.pid == pid]:  # it could not be built ahead
            self._furnished.remove(prepared)
            self._expected = [room for room in self._expected if room != prepared.room]
            prepared.close()
        for prepared in [each for each in self._ready if each.pid == pid]:
            self._ready.remove(prepared)
            prepared.close()
            self._count_death()

    def _count_death(self) -> None:
        self._died_waiting += 1
        self._broken = self._died_waiting >= _MOST_DEATHS

    # --- cgroups ----------------------------------------------------------------------------------------------------

    def _leave_own_cgroup(self) -> None:
        """Move, with the clerk, into a leaf of our subtree, so that siblings can have limits (cgroups(7), v2)."""
        root = self._configuration.cgroup
        if not root:
            self._clerk.join("")
            return
        leaf = os.path.join(root, "launcher")
        try:
            os.mkdir(leaf, 0o755)
            processes.write_text(f"{leaf}/cgroup.procs", "0")
        except OSError as problem:
            raise OSError(f"cgroup {root} was given but cannot be used: {problem}") from problem
        self._clerk.join(leaf)
        try:
            if os.path.exists(f"{root}/cgroup.subtree_control"):
                processes.write_text(f"{root}/cgroup.subtree_control", "+pids")
        except OSError as problem:
            raise OSError(f"cgroup {root} was given but cannot be used: {problem}") from problem

    # --- tasks and visits ---------------------------------------------------------------------------------------------

    def _become_helper(self) -> None:
        """In a child: be nobody's launcher any more."""
        signal.set_wakeup_fd(-1)
        processes.on_signals(signal.SIGCHLD)
        gc.enable()
        for prepared in (*self._ready, *self._furnished):
            prepared.close()
        self._places.close()
        self._porters.close()
        self._clerk.close()
        self._channel.close()

    def _end(self) -> None:
        """The engine is gone: every container dies, their writable layers are removed, cgroups too."""
        limits.thaw(self._configuration.freezer, self._running)
        pids = [*self._running, *(prepared.pid for prepared in (*self._ready, *self._furnished))]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            self._forget(pid)
        for folder in self._left:
            self._clerk.discard(folder)
        self._clerk.close()
        self._porters.close()
        self._places.close()
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()


def _now() -> float:
    """Seconds, those in which the machine was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _note(number: int, frame: object) -> None:
    """A handler that does nothing: being one makes the wake-up descriptor readable."""
