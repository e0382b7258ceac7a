"""Commands that join a container which runs already: what `exec` is made of.

For each container that is visited there are two processes, for as long as somebody comes. The *porter*, a child of
whoever serves the engine, stays outside: it passes signals on, reports ends, and ends a command when nobody listens any
more. It outlives its own parent, because a container cannot end before every process in it has been collected, which is
the porter's task. The *door* is in the container's cgroups and in all its namespaces but the process ids, so nothing
inside can see it; entering costs milliseconds (a move between cgroups waits for the whole machine) and is done once.

For each visit the door makes a *joiner*, which drops everything and makes the *command*, both as children of the porter
(CLONE_PARENT). Only the joiner's children join the process ids. So what becomes visible in the container has no more
rights than the container gives, and no descriptor but its own (CVE-2016-9962, CVE-2022-1227, CVE-2024-21626). After a
visit one joiner is made ahead, which has dropped everything by the time somebody comes; the engine is invited to hand
the next visit directly to it. It is used only for the same room, and only while the container's accounts are what they
were. Door and joiner count as processes of the container while they are there, so they do not stay for long.
Sources: setns(2), pid_namespaces(7), clone(2).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import time
from functools import partial

from nbcontainer._linux import identity, processes, syscalls
from nbcontainer._linux.trees import end_tree
from nbcontainer._linux.values import value
from nbcontainer.runtime.child import init, setup, stage
from nbcontainer.runtime.claim import Claim
from nbcontainer.runtime.protocol import (
    Accepted,
    Arrival,
    Execute,
    Exited,
    Furnish,
    Invitation,
    ProtocolError,
    Signal,
    Started,
    Visit,
    encode,
    receive,
    send,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import NoReturn

    from nbcontainer.runtime.protocol import Room

__all__ = ["Porters", "Settings"]

_NAMESPACES = processes.CLONE_NEWNS | processes.CLONE_NEWIPC | processes.CLONE_NEWUTS | processes.CLONE_NEWCGROUP
_CONTROL, _PIDFD, _ENTRANCES = 0, 4, slice(5, None)
_JOINER, _ENTERED, _TOLD = b"joiner ", b"entered", b"told"
_FULL = "the container's limit on processes (--pids-limit, --ulimit nproc) is reached; no further one can start"
_ENDED = "the container has just ended"
_AGAIN = 20
"""Milliseconds after which it is looked again for a command that is to end before it has begun."""
_AT_ONCE = 2
"""Milliseconds for which a joiner waits for the end of its command."""
_CORE = 0x80
"""In a wait status: a core was dumped (wait(2))."""
_CALM = 25
"""Milliseconds without a visitor after which a joiner is made ahead."""
_IDLE = 10.0
"""Seconds without a visitor after which a porter leaves."""


@value
class Settings:
    """What every visit of this process has in common."""

    single_id: bool
    last_capability: int
    filters: Mapping[str, bytes]


class Porters:
    """The porters of one serving process. `let_go` closes in a child what only that process needs.

    On `engine`, if it listens there, invitations are sent.
    """

    def __init__(self, settings: Settings, let_go: Callable[[], None], engine: socket.socket | None = None) -> None:
        self._settings = settings
        self._let_go = let_go
        self._engine = engine
        self._known: dict[tuple[str, str], tuple[int, socket.socket]] = {}

    def admit(self, request: Visit, fds: list[int]) -> None:
        """Have a visit attended to; what becomes of it is told on its control socket."""
        key = (request.room.id, request.places)
        known = self._known.get(key)
        if known is not None:
            try:
                send(known[1], request, tuple(fds))
            except OSError:  # it has just left
                self._drop(key)
            else:
                return
        send(self._start(key), request, tuple(fds))

    def _start(self, key: tuple[str, str]) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            try:
                engine = None if self._engine is None else self._engine.dup()
                self._let_go()
                init.keep_only(theirs.fileno(), *([] if engine is None else [engine.fileno()]))
                _Porter(theirs, self._settings, engine).attend()
            finally:
                os._exit(0)
        theirs.close()
        self._known[key] = (pid, ours)
        return ours

    def forget(self, pid: int) -> None:
        """Note that a child has ended, if it was one of them."""
        for key in [key for key, (porter, _) in self._known.items() if porter == pid]:
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        self._known.pop(key)[1].close()

    def close(self) -> None:
        """Send no more visitors."""
        for key in list(self._known):
            self._drop(key)


# --- the porter -------------------------------------------------------------------------------------------------------


class _Guest:
    """One visit: on its way while `pid` is 0."""

    def __init__(self, control: socket.socket, joined: socket.socket, *, detached: bool, script_path: str = "") -> None:
        self.control = control
        self.joined = joined
        self.detached = detached
        self.script = os.path.basename(script_path)
        self.joiner = 0
        self.room: Room | None = None
        self.pid = 0
        self.pidfd = -1
        self.folder = -1
        self.wanted = True
        self.told = False
        self.ending = False

    @property
    def unborn(self) -> bool:
        """Whether nobody wants its command any more, of which we have not heard yet."""
        return not self.wanted and not self.pid and self.joiner > 0

    def close(self) -> None:
        """Let go of everything, and take away the text that the command was made from."""
        if self.folder >= 0:
            with contextlib.suppress(OSError):
                os.unlink(self.script, dir_fd=self.folder)
        self.control.close()
        self.joined.close()
        for fd in (self.pidfd, self.folder):
            if fd >= 0:
                os.close(fd)


class _Waiting:
    """A joiner that was made ahead: who comes next wants the same, as a rule. Whoever reads the claim has it."""

    def __init__(self, room: Room, pid: int, channel: socket.socket, joined: socket.socket) -> None:
        self.room = room
        self.pid = pid
        self.joined = joined
        self.taken = False
        self._channel = channel
        self._claim = Claim()

    def invite(self, engine: socket.socket, pidfd: int) -> None:
        """Let the engine know, if its socket takes it."""
        with contextlib.suppress(OSError):
            send(engine, Invitation(self.room.id), (self._claim.fd, pidfd, self._channel.fileno()), wait=False)

    def claim(self) -> bool:
        """Whether it is ours now; false when the engine has claimed it, and somebody is about to come."""
        return self._claim.take()

    def take(self, request: Visit, fds: list[int]) -> bool:
        """Hand it a visit that came to us; false when that is another one, or it has gone."""
        if self.taken or request.room != self.room or not self.claim():
            return False
        try:
            send(self._channel, request, tuple(fds))
        except OSError:
            return False
        self.taken = True
        return True

    def end(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Let go of it; its `joined` socket may be a guest's by now."""
        self._channel.close()
        self._claim.close()


class _Porter:
    """The loop of one process, for one container."""

    def __init__(self, requests: socket.socket, settings: Settings, engine: socket.socket | None) -> None:
        processes.hide_from_tracers()
        syscalls.set_child_subreaper()
        self._requests = requests
        self._engine = engine
        self._waiting: list[_Waiting] = []  # one, and any that the engine has claimed and not come to yet
        self._settings = settings
        self._guests: list[_Guest] = []
        self._early: dict[int, int] = {}
        self._door: socket.socket | None = None
        self._door_pid = 0
        self._open = True
        self._container = -1
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._wake, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._poll.register(self._wake, select.POLLIN)
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)

    def attend(self) -> None:
        """Receive guests until nobody comes any more, and stay until the last one has left."""
        self._serve()
        with contextlib.suppress(OSError):
            self._requests.shutdown(socket.SHUT_RD)  # whoever comes from now on gets another porter
        while self._receive():  # and these were on their way
            pass
        self._open = False
        self._dismiss()
        self._serve()
        self._close_door()

    def _serve(self) -> None:
        while self._open or self._guests or self._waiting:
            self._end_unborn()
            ready = [fd for fd, _ in self._poll.poll(self._patience())]
            if not ready and not self._guests:
                return
            for fd in ready[:1]:  # what is done for one may close another, and its number be given to somebody new
                if fd == self._wake:
                    self._collect()
                elif fd == self._requests.fileno():
                    self._receive()
                elif fd == self._container:  # it ends, and everybody in it; what is outside must leave, too
                    self._poll.unregister(self._container)
                    self._close_door()
                    self._turn_away()
                elif self._door is not None and fd == self._door.fileno():
                    self._welcome()
                else:
                    self._hear(fd)

    def _patience(self) -> int | None:
        """Milliseconds to wait for something to do."""
        if not self._guests:
            return int(_IDLE * 1000)
        return _AGAIN if any(guest.unborn for guest in self._guests) else None

    def _end_unborn(self) -> None:
        """End the commands that nobody wants any more, and that somebody keeps from their execve.

        A joiner hears of its child when that has executed the program, and we by the joiner. Somebody in the container
        can stop the child before, or have the program leased. When the child is killed, the joiner goes on.
        """
        for guest in self._guests:
            if guest.unborn:
                with contextlib.suppress(ProcessLookupError):  # the joiner is ours to collect: its number is its own
                    joiner = processes.pidfd_open(guest.joiner)
                    try:
                        child = identity.open_child(guest.joiner, joiner)
                        identity.send_signal(child, signal.SIGKILL)
                        os.close(child)
                    finally:
                        os.close(joiner)

    def _receive(self) -> bool:
        """Take a new guest; False when there are no more."""
        try:
            received = receive(self._requests)
        except ProtocolError:
            return True
        except OSError:
            received = None
        if received is None:
            self._open = False
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._requests)
            return False
        message, fds = received
        try:
            if isinstance(message, Visit) and len(fds) > _PIDFD:
                self._send_in(message, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _send_in(self, request: Visit, fds: list[int]) -> None:
        control = socket.socket(fileno=os.dup(fds[_CONTROL]))
        if self._container < 0:
            self._open_door(request, fds)
        if any(waiting.take(request, fds[:_PIDFD]) for waiting in self._waiting):  # it comes as one that was invited
            control.close()
            return
        self._dismiss()
        joined, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            assert self._door is not None
            send(self._door, request, (fds[_CONTROL], theirs.fileno(), *fds[1:_PIDFD]))
        except (OSError, AssertionError):
            joined.close()
            with control:
                init.report(control, "it cannot be entered just now, and may have just ended; try again", 125)
            return
        finally:
            theirs.close()
        self._guests.append(_Guest(control, joined, detached=request.detached, script_path=request.script_path))
        self._poll.register(control, select.POLLIN)
        self._poll.register(joined, select.POLLIN)

    def _open_door(self, request: Visit, fds: list[int]) -> None:
        self._container = os.dup(fds[_PIDFD])
        self._poll.register(self._container, select.POLLIN)
        self._door, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._door_pid = os.fork()
        if self._door_pid == 0:
            try:
                _keep_door(theirs, request, fds, self._settings)
            finally:
                os._exit(0)
        theirs.close()
        self._poll.register(self._door, select.POLLIN)

    def _welcome(self) -> None:
        """The door has made a joiner ahead, or is gone."""
        assert self._door is not None
        try:
            received = receive(self._door)
        except (OSError, ProtocolError):
            received = None
        message, fds = received or (None, [])
        if not isinstance(message, Furnish) or len(fds) != 3:
            self._poll.unregister(self._door)
            for fd in fds:
                os.close(fd)
            return
        self._dismiss()
        channel, joined = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])
        try:
            waiting = _Waiting(message.room, identity.pid_of(fds[2]), channel, joined)
        except ProcessLookupError:  # it is over already
            channel.close()
            joined.close()
        else:
            self._waiting.append(waiting)
            self._poll.register(joined, select.POLLIN)
            if self._engine is not None and self._open:
                waiting.invite(self._engine, fds[2])
        os.close(fds[2])

    def _dismiss(self) -> None:
        """End the joiner that waits, unless somebody is coming to it right now."""
        for waiting in [each for each in self._waiting if not each.taken and each.claim()]:
            self._waiting.remove(waiting)
            self._poll.unregister(waiting.joined)
            waiting.end()
            waiting.joined.close()
            waiting.close()

    def _come(self, waiting: _Waiting) -> None:
        """The joiner has a guest, or cannot serve the one it was given, or is gone."""
        self._waiting.remove(waiting)
        self._poll.unregister(waiting.joined)
        waiting.close()
        try:
            received = receive(waiting.joined)
        except (OSError, ProtocolError):
            received = None
        message, fds = received or (None, [])
        if not isinstance(message, Arrival) or len(fds) != 1:
            waiting.joined.close()
            if isinstance(message, Visit) and len(fds) == _PIDFD:  # another account by now: somebody else must be made
                self._send_in(message, fds)
            for fd in fds:
                os.close(fd)
            return
        guest = _Guest(socket.socket(fileno=fds[0]), waiting.joined, detached=message.detached)
        guest.joiner, guest.room = waiting.pid, waiting.room
        self._guests.append(guest)
        # in this order: where both have something, the command has come before whatever the engine says of it
        self._poll.register(guest.joined, select.POLLIN)
        self._poll.register(guest.control, select.POLLIN)

    def _close_door(self) -> None:
        """Nobody can be let in any more: there will be another porter for those who come."""
        self._open = False
        self._dismiss()
        if self._door is not None:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._door)
            self._door.close()
            self._door = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._door_pid, signal.SIGKILL)

    def _turn_away(self) -> None:
        """End the joiners that are still on their way: they are in no process id namespace that ends them."""
        for waiting in self._waiting:
            waiting.end()
        for guest in self._guests:
            if guest.joiner:  # also one that has told all: frozen, it would not let us adopt its command
                with contextlib.suppress(ProcessLookupError):
                    os.kill(guest.joiner, signal.SIGKILL)

    def _hear(self, fd: int) -> None:
        for waiting in self._waiting:
            if fd == waiting.joined.fileno():
                self._come(waiting)
                return
        for guest in self._guests:
            if fd == guest.joined.fileno():
                self._arrived(guest)
                return
            if fd == guest.control.fileno():
                self._obey(guest)
                return

    def _arrived(self, guest: _Guest) -> None:
        """The door has made a joiner, the joiner a command, of which it may have told the end; or there is none."""
        said, fds, _, _ = socket.recv_fds(guest.joined, 64, 1)
        if said == _TOLD:
            guest.told = True
            return
        if said.startswith(_JOINER):
            guest.joiner = int(said.removeprefix(_JOINER))
            return
        if said == _ENTERED:
            guest.folder = fds[0]
            return
        if guest.room is None or not said:
            self._poll.unregister(guest.joined)
        if guest.pid:  # the joiner of a spawned one has left
            return
        if guest.room is not None and self._door is not None:
            with contextlib.suppress(OSError):
                send(self._door, Furnish(guest.room, ahead=True))
        if not said:
            self._leave(guest)
            return
        guest.pid, guest.pidfd = int(said), fds[0]
        with contextlib.suppress(OSError):  # the engine may be gone already
            send(guest.control, Accepted(guest.pid), (guest.pidfd,))
        if guest.pid in self._early:
            self._ended(guest, self._early.pop(guest.pid))
        elif not guest.wanted:
            end_tree(guest.pid)

    def _obey(self, guest: _Guest) -> None:
        """Do what the engine says; when it says that all should end, or is gone, end the command.

        The engine speaks only to end it. A command that obeys may have started others that do not (a shell's background
        processes ignore SIGINT), so those in its session end with it.
        """
        try:
            received = receive(guest.control)
        except (OSError, ProtocolError):
            received = None
        if guest.told and received is None:  # it has ended, the engine knows, and what it has left may stay
            self._poll.unregister(guest.control)
            return
        guest.ending = not guest.detached
        if received is not None and isinstance(received[0], Signal) and not received[0].everything:
            if guest.pid:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(guest.pid, received[0].number)
            return
        self._poll.unregister(guest.control)
        if guest.detached:
            return
        guest.wanted = False  # one on its way cannot be stopped without losing sight of what it has made
        if guest.pid:
            end_tree(guest.pid)

    def _collect(self) -> None:
        """Look for children that have ended."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                self._bury(ended.si_pid)
        if all(guest.pid for guest in self._guests) and not self._waiting:
            self._early.clear()

    def _bury(self, pid: int) -> None:
        """Collect a child that has ended: a command, a joiner, the door."""
        guest = next((each for each in self._guests if each.pid == pid), None)
        if guest is not None and guest.ending:
            end_tree(pid)  # what it has left, before its number can be another session's
        status = os.waitpid(pid, 0)[1]
        if guest is not None:
            self._ended(guest, status)
            return
        if pid == self._door_pid:
            self._close_door()
            return
        for each in self._guests:
            if each.joiner == pid:
                each.joiner = 0  # its number may be somebody else's now
                return
        if all(each.pid != pid for each in self._waiting):
            self._early[pid] = status  # a command whose arrival has not been heard of yet, perhaps

    def _ended(self, guest: _Guest, status: int) -> None:
        with contextlib.suppress(OSError):
            send(guest.control, Exited(status))
        self._leave(guest)

    def _leave(self, guest: _Guest) -> None:
        self._guests.remove(guest)
        for channel in (guest.control, guest.joined):
            with contextlib.suppress(KeyError):
                self._poll.unregister(channel)
        guest.close()


def _note(number: int, frame: object) -> None:
    """Do nothing: having a handler is what makes the wake-up descriptor readable."""


# --- the door ---------------------------------------------------------------------------------------------------------


def _accounts() -> list[tuple[int, ...]]:
    """What tells whether users have been looked up in the files that are there now."""
    found: list[tuple[int, ...]] = []
    for path in ("/etc/passwd", "/etc/group"):
        with contextlib.suppress(OSError):
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


class _Door:
    """What lets joiners into one container."""

    def __init__(self, container: int, settings: Settings, problem: str) -> None:
        self._container = container
        self._settings = settings
        self._problem = problem
        self._last: Room | None = None
        self._guarded: list[int] = []
        self._spawned, self._to_guard = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def serve(self, requests: socket.socket) -> None:
        """Until the porter is gone, or this is a door that leads nowhere and has said so."""
        try:
            self._serve(requests)
        finally:
            self._guard()
            self._end_guarded()

    def _serve(self, requests: socket.socket) -> None:
        poll = select.poll()
        for channel in (requests, self._spawned):
            poll.register(channel, select.POLLIN)
        while True:
            ready = poll.poll(_CALM if self._last is not None else None)
            if not ready:
                self._prepare(requests)
                continue
            self._guard()
            if all(fd != requests.fileno() for fd, _ in ready):
                continue
            received = receive(requests)
            if received is None:
                return
            message, fds = received
            if isinstance(message, Furnish):  # the last joiner made ahead has somebody: make another
                self._last = message.room
                continue
            assert isinstance(message, Visit)
            self._let_in(message, fds, requests)
            if self._problem:  # the next visitor may find it solved, by another door
                return

    def _guard(self) -> None:
        """Remember commands that nobody's end would end: a parent's does, but theirs was a joiner, which has told us.

        Those that have ended are forgotten.
        """
        for ended in [each for each in self._guarded if identity.has_ended(each)]:
            self._guarded.remove(ended)
            os.close(ended)
        with contextlib.suppress(BlockingIOError):
            while (told := receive(self._spawned, wait=False)) is not None:
                self._guarded += told[1]

    def _end_guarded(self) -> None:
        """The porter is gone, by whatever death: end whom it attended."""
        for pidfd in self._guarded:
            with contextlib.suppress(PermissionError):  # another user by its own doing
                identity.send_signal(pidfd, signal.SIGKILL)

    def _let_in(self, request: Visit, fds: list[int], requests: socket.socket) -> None:
        control, joined = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])
        try:
            pid, pidfd = processes.clone_sibling()
            if pid == 0:
                requests.close()
                self._join(request, control, joined, fds)
            os.close(pidfd)
            # a porter that has closed this end has seen the joiner come and go
            with contextlib.suppress(OSError):
                joined.send(b"%s%d" % (_JOINER, pid), socket.MSG_NOSIGNAL)
        except OSError:
            init.report(control, _FULL, 125)
        control.close()
        joined.close()
        for fd in fds[2:]:
            os.close(fd)
        # a text is opened before rights are dropped; a terminal that waits would take the first number
        self._last = None if request.room.script or request.room.terminal else request.room

    def _prepare(self, requests: socket.socket) -> None:
        """In a calm moment, have a joiner drop everything for the room that was asked for last."""
        room, self._last = self._last, None
        assert room is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs_joined, joined = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, theirs_joined, joined:
            try:
                pid, pidfd = processes.clone_sibling()
            except OSError:
                return
            if pid == 0:
                requests.close()
                ours.close()
                theirs_joined.close()
                self._wait(room, theirs, joined)
            try:
                send(requests, Furnish(room, ahead=True), (ours.fileno(), theirs_joined.fileno(), pidfd))
            finally:
                os.close(pidfd)

    # --- in the joiner ------------------------------------------------------------------------------------------------

    def _join(self, request: Visit, control: socket.socket, joined: socket.socket, fds: list[int]) -> NoReturn:
        """Drop everything, become the command. Ends the process in any case; what went wrong has been told."""
        try:
            with init.reporting(control):
                if self._problem:
                    raise setup.SetupError(self._problem)
                if request.room.script:
                    _show_folder(os.path.dirname(request.script_path), joined)
                built = self._settled(request.room, request.script_path)
                _become(built, request, control, joined, fds)
        finally:
            os._exit(125)

    def _wait(self, room: Room, requests: socket.socket, joined: socket.socket) -> NoReturn:
        """The same in two halves, long before and with the request; silent when there is none that fits."""
        try:
            accounts = _accounts()
            built = self._settled(room, "")
            processes.die_with_parent()  # a change of identity has undone it
            spawns = setup.can_spawn(room)
            _rehearse(built)
            request, fds = receive(requests) or (None, [])
            if not isinstance(request, Visit):
                os._exit(0)
            requests.close()
            if request.room != room or accounts != _accounts():
                send(joined, request, tuple(fds))
                os._exit(0)
            control = socket.socket(fileno=fds[0])
            send(joined, Arrival(request.detached), (fds[0],))
            start = partial(_spawn, guard=self._to_guard) if spawns and not request.detached else _become
            with init.reporting(control):
                start(built, request, control, joined, [-1, *fds])
        finally:
            os._exit(125)

    def _settled(self, room: Room, script_path: str) -> setup.Built:
        try:
            syscalls.setns(self._container, processes.CLONE_NEWPID)  # for children
        except OSError as problem:
            raise setup.SetupError(_ENDED) from problem
        os.close(self._container)
        return setup.settle(
            room,
            init.filter_of(room, self._settings.filters),
            single_id=self._settings.single_id,
            script_path=script_path,
            make_directory=False,
        )


def _keep_door(requests: socket.socket, request: Visit, fds: list[int], settings: Settings) -> None:
    """Enter the container and let joiners in, until the porter is gone."""
    init.keep_only(requests.fileno(), *fds[_PIDFD:])
    signal.set_wakeup_fd(-1)
    processes.on_signals(signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD)
    container = fds[_PIDFD]
    problem = ""
    try:
        processes.new_session_keyring()
        _enter(container, fds[_ENTRANCES], network=request.room.network)
        processes.drop_bounding_set(frozenset(request.room.capabilities), settings.last_capability)
    except OSError as trouble:
        problem = f"the container cannot be entered: {trouble.strerror or trouble}; it may have just ended"
    _Door(container, settings, problem).serve(requests)


def _enter(container: int, entrances: list[int], *, network: str) -> None:
    """Join cgroups and namespaces, for good."""
    for entrance in entrances:
        os.write(entrance, b"0")
        os.close(entrance)
    # a network that is the machine's own is ours already, and nobody here may join it
    syscalls.setns(container, _NAMESPACES | (0 if network == "host" else processes.CLONE_NEWNET))
    os.chdir("/")
    if not stage.is_a_container_root():
        raise OSError(errno.EAGAIN, "it is just starting, or has no /proc")


def _become(built: setup.Built, request: Visit, control: socket.socket, joined: socket.socket, fds: list[int]) -> None:
    """The command, in the container; returns only by raising."""
    started = encode(Started())

    def announce(master: int) -> None:
        _arrive(joined, detached=request.detached)
        init.tell(control, started, master)

    setup.execute(built, Execute.of(request), (fds[2], fds[3], fds[4]), announce)


def _show_folder(path: str, joined: socket.socket) -> None:
    """Give the porter the folder that will hold the command's text, so that it can be taken away in any case."""
    try:
        folder = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as problem:
        raise setup.SetupError(f"the container's {path} cannot be used: {problem.strerror}") from problem
    socket.send_fds(joined, [_ENTERED], [folder])
    os.close(folder)


def _rehearse(built: setup.Built) -> None:
    """Go once, without effect, the way of the next visit (see `init.rehearse_command`)."""
    for message in (Visit(built.room, [], [], "", "", "", detached=False), Arrival(detached=False), Exited(0)):
        init.rehearse_message(message)
    init.rehearse_command(built)


@contextlib.contextmanager
def _becoming_visible() -> Iterator[None]:
    """Say what it means when the kernel makes no process in the container's pid namespace."""
    try:
        yield
    except OSError as problem:
        if problem.errno == errno.EAGAIN:
            raise setup.SetupError(_FULL) from problem
        if problem.errno == errno.ENOMEM:  # what fork(2) says of a pid namespace whose PID 1 has ended
            raise setup.SetupError(_ENDED) from problem
        raise


def _spawn(
    built: setup.Built,
    request: Visit,
    control: socket.socket,
    joined: socket.socket,
    fds: list[int],
    *,
    guard: socket.socket,
) -> None:
    """Start the command as a child and leave it to the porter, which adopts it when we end.

    That takes a millisecond in which nobody would hear of an end, so one that comes at once is told from here; the
    porter's word is a second one then, which nobody waits for.
    """
    with _becoming_visible():
        pid = setup.spawn(built, Execute.of(request), (fds[2], fds[3], fds[4]))
    for stream in fds[2:]:  # whoever listens to it hears its end
        os.close(stream)
    try:
        pidfd = processes.pidfd_open(pid)
        send(guard, Accepted(pid), (pidfd,))
        socket.send_fds(joined, [b"%d" % pid], [pidfd])
    except OSError:  # nobody is there to adopt it; it is ours, so its number is its own
        os.kill(pid, signal.SIGKILL)
        raise
    status = _ended_at_once(pid, pidfd)
    if status is None:
        send(control, Started())
    else:
        with contextlib.suppress(OSError):  # before the engine, whose goodbye would else be a wish to end what it left
            joined.send(_TOLD)
        send(control, Exited(status))
        time.sleep(init.LATER)
    os._exit(0)


def _ended_at_once(pid: int, pidfd: int) -> int | None:
    """The wait status of a child that ends within moments; it stays to be collected."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_AT_ONCE):
        return None
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    if ended is None:  # somebody traces it, and has not looked yet
        return None
    if ended.si_code == os.CLD_EXITED:
        return ended.si_status << 8
    return ended.si_status | (_CORE if ended.si_code == os.CLD_DUMPED else 0)


def _arrive(joined: socket.socket, *, detached: bool) -> None:
    """Become visible in the container: go on as another child of the porter, which is told who that is."""
    processes.hide_from_tracers()  # a change of identity has undone it
    with _becoming_visible():
        pid, pidfd = processes.clone_sibling()
    if pid:
        socket.send_fds(joined, [b"%d" % pid], [pidfd])
        os._exit(0)
    os.setsid()
    if not detached:
        processes.die_with_parent()
