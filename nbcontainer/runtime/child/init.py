"""A container-to-be: PID 1 in fresh namespaces, and beside it the command-to-be, which builds the stage there.

Both are made while nobody waits, and where it is known what will be asked for, the second one has the root mounted and
entered by then (`furnish`). A request then goes straight to it: it drops everything and executes. PID 1 keeps the
control socket, reaps, forwards signals, reports the exit, and by its own end ends every process of the container. PID 1
is an interpreter of the machine, so it is closed to the container: not dumpable (no /proc/1/exe, CVE-2019-5736), no
capability but KILL.
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
    Execute,
    Exited,
    Failed,
    Furnish,
    Offer,
    ProtocolError,
    Room,
    Signal,
    Started,
    encode,
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
LATER = 0.003
"""Seconds after which a process ends that has reported an end: to end takes the kernel a millisecond."""
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

    def __init__(self, pid: int, pidfd: int, to_init: socket.socket, to_command: socket.socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self._to_init = to_init
        self._to_command = to_command
        self.id = ""
        self.network = ""
        self.room: Room | None = None
        self.furnished_at = 0.0
        self._claim: Claim | None = None

    def furnish(self, room: Room, fds: list[int], *, ahead: bool = False) -> None:
        """Have the room built; whether that went well is told to whoever asks for the command."""
        send(self._to_command, Furnish(room, ahead), tuple(fds))
        self.room = room
        self.furnished_at = time.clock_gettime(time.CLOCK_BOOTTIME)

    def offer(self, channel: socket.socket) -> None:
        """Offer it to the engine, with its room or without one, if the socket takes that (see `Offer`)."""
        message = Offer(self.id, self.pid, self.network) if self.room is None else Offer(self.room.id, self.pid)
        if self._claim is not None:  # of the offer without a room, which is ours by now
            self._claim.close()
        self._claim = Claim()
        fds = (self._claim.fd, self.pidfd, self._to_init.fileno(), self._to_command.fileno())
        with contextlib.suppress(OSError):  # it has not looked for long; then it is ours alone
            send(channel, message, fds, wait=False)

    def claim(self) -> bool:
        """Whether it is ours, from now on for good: false once the engine has taken it."""
        return self._claim is None or self._claim.take()

    def start(self, request: Run, fds: list[int]) -> None:
        """Hand the request over: the control socket to PID 1, everything to the command's process."""
        socket.send_fds(self._to_init, [b"."], fds[:1])
        send(self._to_command, Execute.of(request), tuple(fds))

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
        self._to_init.close()
        self._to_command.close()


def prepare(cloned: Callable[[socket.socket, socket.socket], tuple[int, int]]) -> Prepared:
    """Have a container-to-be made that starts to build in its namespaces; returns at once.

    `cloned` makes it, by `clone`, with its ends of two sockets, and answers with pid and pidfd.
    """
    to_init, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    to_command, commands = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with requests, commands:
            pid, pidfd = cloned(requests, commands)
    except OSError:
        to_init.close()
        to_command.close()
        raise
    return Prepared(pid, pidfd, to_init, to_command)


def clone(
    settings: Settings, requests: socket.socket, commands: socket.socket, *, further: int = 0, cgroup: int = -1
) -> tuple[int, int]:
    """Clone into new namespaces, with `further` flags and into a `cgroup` of v2; pid and pidfd of PID 1."""
    own_network = settings.private_network and settings.namespace < 0
    flags = _NAMESPACES | further | (processes.CLONE_NEWNET if own_network else 0)
    pid, pidfd = processes.clone_into(flags, cgroup)
    if pid:
        return pid, pidfd
    try:
        _become_init(settings, requests, commands)
    finally:
        os._exit(125)


def _become_init(settings: Settings, requests: socket.socket, commands: socket.socket) -> NoReturn:
    processes.die_with_parent()
    processes.hide_from_tracers()
    if settings.namespace >= 0:
        syscalls.setns(settings.namespace, processes.CLONE_NEWNET)
    keep_only(requests.fileno(), commands.fileno())
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):  # CPython ignores two of them
        signal.signal(number, signal.SIG_DFL)
    os.setsid()
    processes.new_session_keyring()
    refusals = -1
    if settings.cgroup:
        with contextlib.suppress(OSError):  # older kernels do not count
            refusals = os.open(f"{settings.cgroup}/pids.events", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.unshare(processes.CLONE_NEWCGROUP)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, _note)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)  # before the fork: the command may end first
    command = os.fork()
    if command == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            for fd in (wake_read, wake_write, *([refusals] if refusals >= 0 else [])):
                os.close(fd)
            _become_command(settings, commands)
        finally:
            os._exit(125)
    commands.close()
    os.chdir("/")
    processes.set_capabilities(frozenset({_CAP_KILL}))
    _watch(command, requests, wake_read, refusals)
    os._exit(0)


def keep_only(*kept: int) -> None:
    """Close every descriptor but standard ones and `kept`; point the standard ones at nothing."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for standard in range(3):
        os.dup2(null, standard)
    os.close(null)
    syscalls.close_all_but(*kept)


def _note(number: int, frame: object) -> None:
    """Do nothing: having a handler is what makes the wake-up descriptor readable."""


def _watch(command: int, requests: socket.socket, wake: int, refusals: int) -> None:
    """PID 1's life: reap orphans, pass signals on, report the command's end; return when all should end.

    `refusals` is the open file with what the limit on processes did, or -1.
    """
    control: socket.socket | None = None
    _rehearse(refusals)
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    poll.register(wake, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == wake:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake, 4096)
                status = _reap(command)
                if status is not None:
                    if control is not None:
                        _tell_the_end(control, Exited(status, refused(refusals), _is_alone()))
                    return
            elif fd == requests.fileno():
                poll.unregister(requests)
                _, fds, _, _ = socket.recv_fds(requests, 16, 4)
                if not fds:
                    return
                control = socket.socket(fileno=fds[0])
                poll.register(control, select.POLLIN)
            elif control is not None and not _obey(control, command):
                return


def _rehearse(refusals: int) -> None:
    """Go once, without effect, the way on which everybody will wait for us; the command may have ended already.

    What is written to there, reference counts among it, is memory that we share with the launcher until the first
    write, when the kernel copies it: a hundred and fifty pages.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        socket.send_fds(theirs, [b"."], [theirs.fileno()])
        _, fds, _, _ = socket.recv_fds(ours, 16, 4)
        with socket.socket(fileno=fds[0]) as control:
            poll = select.poll()
            poll.register(control, select.POLLIN)
            poll.poll(0)
            _tell_the_end(control, Exited(0, refused(refusals), _is_alone()))


def refused(fd: int) -> int:
    """How often the limit was met: ``max 3`` in pids.events (cgroups(7))."""
    with contextlib.suppress(OSError, ValueError):
        for line in os.pread(fd, 4096, 0).splitlines() if fd >= 0 else ():
            if line.startswith(b"max "):
                return int(line[4:])
    return 0


def _tell_the_end(control: socket.socket, ended: Exited) -> None:
    """Report how the command ended; where nothing else is left to end, stay for as long as that is dealt with.

    To end takes the kernel a millisecond, for which whoever the report has woken might have to wait.
    """
    with contextlib.suppress(OSError):
        send(control, ended)
        if ended.alone:
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


def _become_command(settings: Settings, commands: socket.socket) -> NoReturn:
    """Build the stage, furnish the room, now or long before the request, and become what is asked for.

    None of it is PID 1's: every page that it had written to by the time of the fork would be copied twice.
    """
    os.setsid()
    problem = ""
    try:
        stage.build_trees(
            private_network=settings.private_network,
            new_network=settings.private_network and settings.namespace < 0,
            tty_group=not settings.single_id,
        )
    except OSError as trouble:
        problem = f"the container's /proc, /sys and /dev could not be prepared: {trouble}"
    built: setup.Built | None = None
    waiting: socket.socket | None = None
    code = 125
    started = encode(Started())
    arrival = select.poll()
    arrival.register(commands, select.POLLIN)
    if not arrival.poll(0):
        rehearse_message(_FURNISHING)
    while True:
        received = receive(commands)
        if received is None:
            os._exit(125)
        message, fds = received
        if isinstance(message, Furnish) and not problem:
            try:
                waiting = gate.show(fds.pop()) if message.room.gated else None
                built = _furnished(settings, message.room, fds)
            except setup.SetupError as trouble:
                problem, code = str(trouble), trouble.exit_code
            except Exception as trouble:  # noqa: BLE001 - the boundary of a process: whatever it was must be told
                problem, code = f"the container could not be set up: {type(trouble).__name__}: {trouble}", 125
            if problem and message.ahead:
                os._exit(125)
            if built is not None and message.ahead:
                rehearse_command(built)
        elif isinstance(message, Execute):
            break
    commands.close()
    control = socket.socket(fileno=fds[0])
    with reporting(control):
        if problem or built is None:
            raise setup.SetupError(problem or "the request has no room", code)
        if waiting is not None:
            gate.wait(waiting)
        setup.execute(built, message, (fds[1], fds[2], fds[3]), lambda master: tell(control, started, master))
    os._exit(125)


def rehearse_command(built: setup.Built) -> None:
    """The same for the command (see `_rehearse`)."""
    request = Execute(["true"], ["TERM=dumb"], "")
    rehearse_message(request)
    with contextlib.suppress(setup.SetupError):
        setup.rehearse(built, request)


def rehearse_message(message: Message) -> None:
    """Send a message to ourselves, and hear it (see `_rehearse`)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        send(theirs, message, (theirs.fileno(),))
        _, fds = receive(ours) or (None, [])
        for fd in fds:
            socket.socket(fileno=fd).close()


def _furnished(settings: Settings, room: Room, fds: list[int]) -> setup.Built:
    """The room, built and entered."""
    if room.joins:
        gate.join(fds.pop())
    limits.enter_cgroups(room, fds)
    processes.drop_bounding_set(frozenset(room.capabilities), settings.last_capability)
    syscalls.sethostname(room.hostname)
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
