"""A container-to-be: PID 1 in fresh namespaces, with its stage built there.

It is made while nobody waits, and where it is known what will be asked for, it has the root mounted and entered by then
(`furnish`), and has dropped what a container may not do. A request then goes straight to it: it spawns the command,
keeps the control socket, reaps, forwards signals, reports the exit, and by its own end ends every process of the
container. PID 1 is an interpreter of the machine, so it is closed to the container: not dumpable (no /proc/1/exe,
CVE-2019-5736), no capability but KILL.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time

from nbcontainer._linux import processes, syscalls
from nbcontainer._linux.values import value
from nbcontainer.runtime.child import gate, limits, setup, stage
from nbcontainer.runtime.claim import Claim
from nbcontainer.runtime.protocol import (
    BUILD_HOST_NAME,
    Execute,
    Failed,
    Furnish,
    Offer,
    ProtocolError,
    Room,
    Signal,
    Started,
    encode,
    encode_end,
    receive,
    send,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import NoReturn

    from nbcontainer.runtime.protocol import Message, Run

__all__ = [
    "LATER",
    "Prepared",
    "Settings",
    "clone",
    "filter_of",
    "keep_only",
    "prepare",
    "refused",
    "rehearse_command",
    "rehearse_message",
    "report",
    "reporting",
    "tell",
]

_NAMESPACES = processes.CLONE_NEWPID | processes.CLONE_NEWNS | processes.CLONE_NEWIPC | processes.CLONE_NEWUTS
_CAP_KILL = 5
_FULL = "no further process can be made: the limit on processes of this user (ulimit -u) or of the machine is reached"
_HARMLESS = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
        signal.SIGWINCH,
    }
)
"""Signals that end nobody by default (signal(7))."""
LATER = 0.003
"""Seconds after which a process ends that has reported an end: to end takes the kernel a millisecond."""
_STARTED = encode(Started())
_FURNISHING = Furnish(
    Room(
        id="",
        operations=[{"op": "", "lower": [""]}],
        working_directory="",
        user="",
        hostname="",
        network="",
        filter="",
        no_new_privileges=True,
        capabilities=[_CAP_KILL],
        read_only_root=False,
        script=False,
        scratch="",
        generation="",
        rlimits={},
    ),
    ahead=False,
)
"""What a room's building begins with, for a rehearsal: a hundred of the pages that it copies are copied then."""


@value
class Settings:
    """What every container of this launcher has in common.

    With a `namespace` the private network is that one, which was there before; it is -1 otherwise. `cgroup` is where it
    is from its first moment, if it has a limit on processes, else "".
    """

    private_network: bool
    namespace: int
    single_id: bool
    last_capability: int
    capabilities: frozenset[int]
    filters: dict[str, bytes]
    cgroup: str


class Prepared:
    """The launcher's hold on a container-to-be."""

    def __init__(self, pid: int, pidfd: int, channel: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._channel = channel
        self.id = ""
        self.network = ""
        self.room: Room | None = None
        self.furnished_at = 0.0
        self._claim: Claim | None = None

    def furnish(self, room: Room, fds: list[int], *, ahead: bool = False) -> None:
        """Have the room built; whether that went well is told to whoever asks for the command."""
        send(self._channel, Furnish(room, ahead), tuple(fds))
        self.room = room
        self.furnished_at = time.clock_gettime(time.CLOCK_BOOTTIME)

    def offer(self, channel: socket.socket) -> None:
        """Offer it to the engine, with its room or without one, if the socket takes that (see `Offer`)."""
        message = Offer(self.id, self.pid, self.network) if self.room is None else Offer(self.room.id, self.pid)
        if self._claim is not None:  # of the offer without a room, which is ours by now
            self._claim.close()
        self._claim = Claim()
        fds = (self._claim.fd, self.pidfd, self._channel.fileno())
        with contextlib.suppress(OSError):  # it has not looked for long; then it is ours alone
            send(channel, message, fds, wait=False)

    def claim(self) -> bool:
        """Whether it is ours, from now on for good: false once the engine has taken it."""
        return self._claim is None or self._claim.take()

    def start(self, request: Run, fds: list[int]) -> None:
        """Hand the request over."""
        send(self._channel, Execute.of(request), tuple(fds))

    def is_alive(self) -> bool:
        """Whether PID 1 has not ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Let go; PID 1 of one that was never started ends."""
        os.close(self.pidfd)
        if self._claim is not None:
            self._claim.close()
        self._channel.close()


def prepare(cloned: Callable[[socket.socket], tuple[int, int]]) -> Prepared:
    """Have a container-to-be made that starts to build in its namespaces; returns at once.

    `cloned` makes it, by `clone`, with its end of a socket, and answers with pid and pidfd.
    """
    channel, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with requests:
            pid, pidfd = cloned(requests)
    except OSError:
        channel.close()
        raise
    return Prepared(pid, pidfd, channel)


def clone(settings: Settings, requests: socket.socket, *, further: int = 0, cgroup: int = -1) -> tuple[int, int]:
    """Clone into new namespaces, with `further` flags and into a `cgroup` of v2; pid and pidfd of PID 1."""
    own_network = settings.private_network and settings.namespace < 0
    flags = _NAMESPACES | further | (processes.CLONE_NEWNET if own_network else 0)
    pid, pidfd = processes.clone_into(flags, cgroup)
    if pid:
        return pid, pidfd
    try:
        _become_init(settings, requests)
    finally:
        os._exit(125)


def _become_init(settings: Settings, requests: socket.socket) -> NoReturn:
    processes.die_with_parent()
    processes.hide_from_tracers()
    if settings.namespace >= 0:
        syscalls.setns(settings.namespace, processes.CLONE_NEWNET)
    keep_only(requests.fileno())
    signal.set_wakeup_fd(-1)
    processes.on_signals(signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ)  # CPython ignores two
    os.setsid()
    processes.new_session_keyring()
    refusals = -1
    if settings.cgroup:
        with contextlib.suppress(OSError):  # older kernels do not count
            refusals = os.open(f"{settings.cgroup}/pids.events", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(processes.CLONE_NEWCGROUP)
    problem = ""
    try:
        stage.build_trees(
            private_network=settings.private_network,
            new_network=settings.private_network and settings.namespace < 0,
            tty_group=not settings.single_id,
        )
    except OSError as trouble:
        problem = f"the container's /proc, /sys and /dev could not be prepared: {trouble}"
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    processes.on_signals(signal.SIGCHLD, action=_note)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _Init(settings, requests, _Watch(wake_read, wake_write, refusals), problem).live()


def keep_only(*kept: int) -> None:
    """Close every descriptor but standard ones and `kept`; point the standard ones at nothing."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    syscalls.close_all_but(*kept)


def _note(number: int, frame: object) -> None:
    """Do nothing: having a handler is what makes the wake-up descriptor readable."""


class _Watch:
    """PID 1's life beside its command: reap orphans, pass signals on, report the command's end.

    `refusals` is the open file with what the limit on processes did, or -1.
    """

    def __init__(self, wake: int, waker: int, refusals: int) -> None:
        self._wake = wake
        self._waker = waker
        self._refusals = refusals

    def keep(self, command: int, control: socket.socket | None, passed_on: socket.socket | None = None) -> NoReturn:
        """Until all should end, for which PID 1 ends. Without `control` that will be `passed_on` by the command."""
        poll = select.poll()
        for channel in (control, passed_on):
            if channel is not None:
                poll.register(channel, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake, 4096)
                    status = _reap(command)
                    if status is not None:
                        if control is not None:
                            _tell_the_end(control, status, refused(self._refusals), alone=_is_alone())
                        os._exit(0)
                elif control is not None:
                    if not _obey(control, command):
                        os._exit(0)
                elif passed_on is not None:
                    poll.unregister(passed_on)
                    _, fds, _, _ = socket.recv_fds(passed_on, 16, 4)
                    if not fds:
                        os._exit(0)
                    control = socket.socket(fileno=fds[0])
                    poll.register(control, select.POLLIN)

    def leave(self) -> None:
        """In a child that is none: have signals as everybody has them."""
        signal.set_wakeup_fd(-1)
        processes.on_signals(signal.SIGCHLD)
        for fd in (self._wake, self._waker, *([self._refusals] if self._refusals >= 0 else [])):
            os.close(fd)

    def rehearse(self) -> None:
        """Go once, without effect, the way on which everybody will wait for us.

        What is written to there, reference counts among it, is memory that we share with the launcher until the first
        write, when the kernel copies it: a hundred and fifty pages.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            poll = select.poll()
            poll.register(ours, select.POLLIN)
            poll.poll(0)
            _reap(-1)
            _tell_the_end(theirs, 0, refused(self._refusals), alone=False)


def refused(fd: int) -> int:
    """How often the limit was met: ``max 3`` in pids.events (cgroups(7))."""
    with contextlib.suppress(OSError, ValueError):
        for line in os.pread(fd, 4096, 0).splitlines() if fd >= 0 else ():
            if line.startswith(b"max "):
                return int(line[4:])
    return 0


def _tell_the_end(control: socket.socket, status: int, refusals: int, *, alone: bool) -> None:
    """Report how the command ended; where nothing else is left to end, stay for as long as that is dealt with.

    To end takes the kernel a millisecond, for which whoever the report has woken might have to wait.
    """
    with contextlib.suppress(OSError):
        control.send(encode_end(status, refusals, alone=alone), socket.MSG_NOSIGNAL)
        if alone:
            time.sleep(LATER)


def _is_alone() -> bool:
    """Whether we have no child: then there is no other process in this pid namespace, whose orphans are ours."""
    try:
        os.waitid(os.P_ALL, 0, os.WNOHANG | os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return True
    return False


def _reap(command: int) -> int | None:
    """Collect every ended child; the wait status of the command when it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == command:
            found = status


def _obey(control: socket.socket, command: int) -> bool:
    """Do what the engine says; False when everything should end (it said so, or it is gone)."""
    try:
        received = receive(control)
    except (OSError, ProtocolError):
        return False
    if received is None or not isinstance(received[0], Signal) or received[0].everything:
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(command, received[0].number)
    return True


class _Init:
    """PID 1 before there is a command: it builds the room, now or long before the request, and has it started.

    As a rule it takes on what the command may do, and spawns it: no memory is copied for that, none is taken down.
    Where that does not do (`setup.can_spawn`), and where the room has cgroups of its own, in which PID 1 would be
    counted, a child builds the room and becomes the command.
    """

    def __init__(self, settings: Settings, requests: socket.socket, watch: _Watch, problem: str) -> None:
        self._settings = settings
        self._requests = requests
        self._watch = watch
        self._problem, self._code = problem, 125
        self._built: setup.Built | None = None
        self._link: socket.socket | None = None

    def live(self) -> NoReturn:
        """Until there is a command, and then with it; or until nobody will ask for one."""
        arrival = select.poll()
        arrival.register(self._requests, select.POLLIN)
        if not arrival.poll(0):
            rehearse_message(_FURNISHING)
            self._watch.rehearse()
        while True:
            message, fds = receive(self._requests) or (None, [])
            if isinstance(message, Furnish) and not self._problem:
                if not setup.can_spawn(message.room) or message.room.cgroups:
                    self._hand_over(message, fds)
                else:
                    self._furnish(message, fds)
            elif isinstance(message, Execute):
                self._execute(message, fds)
            elif message is None:
                os._exit(125)

    def _furnish(self, message: Furnish, fds: list[int]) -> None:
        try:
            self._link = gate.show(fds.pop()) if message.room.gated else None
            self._built = _furnished(self._settings, message.room, fds)
        except setup.SetupError as trouble:
            self._problem, self._code = str(trouble), trouble.exit_code
        except Exception as trouble:  # noqa: BLE001 - the boundary of a process: whatever it was must be told
            self._problem = f"the container could not be set up: {type(trouble).__name__}: {trouble}"
        if message.ahead:
            if self._built is None:
                os._exit(125)
            rehearse_command(self._built)
            self._watch.rehearse()

    def _room(self) -> setup.Built:
        """The room that was built; raise what kept it from being built."""
        if self._built is None:
            raise setup.SetupError(self._problem or "the request has no room", self._code)
        return self._built

    def _execute(self, message: Execute, fds: list[int]) -> NoReturn:
        self._requests.close()
        control, stdio = socket.socket(fileno=fds[0]), (fds[1], fds[2], fds[3])
        with reporting(control):
            built = self._room()
            while self._link is not None and not gate.wait(self._link, control):
                _heed_early(control)
            try:
                command = setup.spawn(built, message, stdio)
            except BlockingIOError as trouble:
                raise setup.SetupError(_FULL) from trouble
            self._attend(command, control, stdio, root=built.account.uid == 0)
        os._exit(125)

    def _attend(self, command: int, control: socket.socket, stdio: tuple[int, int, int], *, root: bool) -> NoReturn:
        """Live beside the command. Trouble is the end, and no failure to start any more, which it could pretend."""
        try:
            if root:
                processes.set_capabilities(frozenset({_CAP_KILL}))
            with contextlib.suppress(OSError):  # the engine is gone, and its silence is heard in a moment
                control.send(_STARTED, socket.MSG_NOSIGNAL)
            for fd in stdio:  # whoever listens there hears its end
                os.close(fd)
            os.chdir("/")
            self._watch.keep(command, control)
        finally:
            os._exit(125)

    def _hand_over(self, message: Furnish, fds: list[int]) -> None:
        """Have a child furnish the room and become the command; returns where none can be made."""
        control, to_us = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            command = os.fork()
        except OSError:
            self._problem = _FULL
            return
        if command == 0:
            try:
                control.close()
                self._watch.leave()
                os.setsid()
                self._furnish(message, fds)
                self._become(to_us)
            finally:
                os._exit(125)
        for fd in fds:
            os.close(fd)
        self._requests.close()
        to_us.close()
        os.chdir("/")
        processes.set_capabilities(frozenset({_CAP_KILL}))
        self._watch.keep(command, None, passed_on=control)

    def _become(self, init: socket.socket) -> None:
        """In the child: wait for the command, and become it; `init` is told of whoever wants to hear of it."""
        message, fds = receive(self._requests) or (None, [])
        if not isinstance(message, Execute):
            os._exit(125)
        self._requests.close()
        socket.send_fds(init, [b"."], fds[:1])
        init.close()
        control = socket.socket(fileno=fds[0])
        with reporting(control):
            built = self._room()
            if self._link is not None:
                gate.wait(self._link)
            setup.execute(built, message, (fds[1], fds[2], fds[3]), lambda master: tell(control, _STARTED, master))


def _heed_early(control: socket.socket) -> None:
    """Do what is said while there is no command yet: a signal that would end it ends us."""
    try:
        message, _ = receive(control) or (None, [])
    except (OSError, ProtocolError):
        os._exit(0)
    if not isinstance(message, Signal) or message.everything:
        os._exit(0)
    if message.number not in _HARMLESS:
        with contextlib.suppress(OSError):
            control.send(encode_end(message.number, 0, alone=True), socket.MSG_NOSIGNAL)
        os._exit(0)


def rehearse_command(built: setup.Built) -> None:
    """The same for the command (see `_Watch.rehearse`)."""
    request = Execute(["true"], ["TERM=dumb"], "")
    rehearse_message(request)
    with contextlib.suppress(setup.SetupError):
        setup.rehearse(built, request)


def rehearse_message(message: Message) -> None:
    """Send a message to ourselves, and hear it (see `_Watch.rehearse`)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send(theirs, message, (theirs.fileno(),))
        _, fds = receive(ours) or (None, [])
        for fd in fds:
            socket.socket(fileno=fd).close()


def _take_hostname(room: Room) -> None:
    """Have the name; where an outer container's filter lets nobody have one (podman's), that one's stays.

    One that was asked for, unlike the beginning of the id or that of all builds, is refused then.
    """
    try:
        syscalls.sethostname(room.hostname)
    except PermissionError as problem:
        if room.hostname not in {room.id[: len(room.hostname)], BUILD_HOST_NAME}:
            raise setup.SetupError(
                f"host name {room.hostname} cannot be had: the system call filter of a container around this process"
                " refuses it; start that one with --security-opt seccomp=unconfined, or leave --hostname out"
            ) from problem


def _furnished(settings: Settings, room: Room, fds: list[int]) -> setup.Built:
    """The room, built and entered."""
    if room.joins:
        gate.join(fds.pop())
    limits.enter_cgroups(room, fds)
    processes.drop_bounding_set(frozenset(room.capabilities), settings.last_capability)
    _take_hostname(room)
    root = setup.build_root(room, fds)
    setup.enter_root(root)
    for fd in (root, *fds):
        os.close(fd)
    return setup.settle(room, filter_of(room, settings.filters), single_id=settings.single_id)


def filter_of(room: Room, filters: Mapping[str, bytes]) -> bytes:
    """The room's filter, by name or its own; without one nothing runs, unless that is what was asked for."""
    if room.filter == "unconfined":
        return b""
    program = bytes.fromhex(room.program) if room.filter in {"adapted", "custom"} else filters.get(room.filter)
    if not program:
        raise setup.SetupError(f"system-call filter {room.filter!r} is not among those this launcher was started with")
    return program


def tell(control: socket.socket, message: bytes, master: int) -> None:
    """Send an encoded message, and with it the master of a terminal if there is one."""
    if master < 0:
        control.sendall(message)
    else:
        socket.send_fds(control, [message], [master])


@contextlib.contextmanager
def reporting(control: socket.socket) -> Iterator[None]:
    """Tell the engine what keeps a command from being started, whatever it is: this is the boundary of a process."""
    try:
        yield
    except setup.SetupError as trouble:
        report(control, str(trouble), trouble.exit_code)
    except Exception as trouble:  # noqa: BLE001 - see above
        report(control, f"the command could not be started: {type(trouble).__name__}: {trouble}", 125)


def report(control: socket.socket, message: str, exit_code: int) -> None:
    """Tell the engine why there is no command."""
    with contextlib.suppress(OSError):
        send(control, Failed("ContainerStartError", message, exit_code))
