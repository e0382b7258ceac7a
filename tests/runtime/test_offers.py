"""Rooms offered by the launcher: who gets one, and what is left open."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.processes import pidfd_open
from nbcontainer._linux.values import replaced
from nbcontainer.runtime.offers import Offers
from nbcontainer.runtime.protocol import Execute, Furnish, Offer, Ready, Room, Run, Taken, receive, send
from nbcontainer.runtime.resources import Resources

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOM = Room(
    id="1", operations=[], working_directory="/", user="", hostname="h", network="none", filter="default",
    no_new_privileges=True, capabilities=[1], read_only_root=False, script=True, scratch="",
    generation="2-3", rlimits={},
)  # fmt: skip
RUN = Run(room=ROOM, argv=["true"], environment=["A=b"], script="x")


class Launcher:
    """The other end: offers rooms, and has the socket of their process."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.waiting, self._channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.claim = os.eventfd(1, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def offer(self, room: str = "1", pid: int | None = None, network: str = "") -> None:
        """Offer a room, or with a network a container without one."""
        pidfd = pidfd_open(pid or os.getpid())
        send(self.theirs, Offer(room, 77, network), (self.claim, pidfd, self._channel.fileno()))
        os.close(pidfd)

    def close(self) -> None:
        """Let go of everything."""
        for each in (self.ours, self.theirs, self.waiting, self._channel):
            each.close()
        os.close(self.claim)


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    """Lend a launcher's end."""
    made = Launcher()
    yield made
    made.close()


@pytest.fixture
def offers() -> Iterator[Offers]:
    """Lend offers that expect the room, closed afterwards."""
    made = Offers()
    made.expect([ROOM])
    yield made
    made.close()


def start(offers: Offers, launcher: Launcher, request: Run = RUN) -> Any:
    """Ask for a start with the null device for all three streams."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return offers.start(launcher.ours, request, (null, null, null), Resources(None, ()))
    finally:
        os.close(null)


def test_started(offers: Offers, launcher: Launcher) -> None:
    """The first process gets the command, with the control socket and the three streams."""
    launcher.offer()
    connection = start(offers, launcher)
    assert connection.pid == 77
    received = receive(launcher.waiting)
    assert received is not None
    message, fds = received
    assert message == Execute(["true"], ["A=b"], "x")
    assert len(fds) == 4
    for fd in fds:
        os.close(fd)
    connection.close()
    with pytest.raises(BlockingIOError):
        os.eventfd_read(launcher.claim)
    assert start(offers, launcher) is None, "an offer is good for one start"


def test_none_offered(offers: Offers, launcher: Launcher) -> None:
    """Without an offer, or when what comes is something else, nobody is started."""
    assert start(offers, launcher) is None
    send(launcher.theirs, Ready())
    launcher.theirs.send(b"nonsense")
    assert start(offers, launcher) is None


def test_another_room(offers: Offers, launcher: Launcher) -> None:
    """A room that differs in anything is not taken, and stays the launcher's."""
    launcher.offer()
    assert start(offers, launcher, replaced(RUN, room=replaced(ROOM, user="me"))) is None
    assert os.eventfd_read(launcher.claim) == 1


def test_unexpected_room(offers: Offers, launcher: Launcher) -> None:
    """What was not asked for is not taken."""
    launcher.offer("2")
    assert start(offers, launcher, replaced(RUN, room=replaced(ROOM, id="2"))) is None
    assert os.eventfd_read(launcher.claim) == 1


def test_let_go_meanwhile(offers: Offers, launcher: Launcher) -> None:
    """The launcher that claims a room first has it."""
    launcher.offer()
    assert os.eventfd_read(launcher.claim) == 1
    assert start(offers, launcher) is None


def test_ended_meanwhile(offers: Offers, launcher: Launcher) -> None:
    """A room whose first process has ended is not taken."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    launcher.offer(pid=child)
    assert start(offers, launcher) is None
    os.waitpid(child, 0)


def test_command_gone(offers: Offers, launcher: Launcher) -> None:
    """When the waiting process is gone, somebody else must be asked."""
    launcher.offer()
    launcher.waiting.shutdown(socket.SHUT_RDWR)
    assert start(offers, launcher) is None


def test_forgotten(offers: Offers, launcher: Launcher) -> None:
    """Only the latest few are remembered, and what is forgotten is closed."""
    launcher.offer()
    assert start(offers, launcher, replaced(RUN, room=replaced(ROOM, id="9"))) is None
    assert len(offers.descriptors) == 3
    offers.expect([replaced(ROOM, id=str(number)) for number in range(2, 20)])
    assert offers.descriptors == frozenset()
    assert start(offers, launcher) is None


def furnish(offers: Offers, launcher: Launcher, further: tuple[int, ...] = (), request: Run = RUN) -> Any:
    """Ask for a room in a container that waits without one."""
    null = os.open(os.devnull, os.O_RDWR)
    try:
        return offers.furnish(launcher.ours, request, (null, null, null), Resources(None, ()), further)
    finally:
        os.close(null)


def test_furnished(offers: Offers, launcher: Launcher) -> None:
    """What waits without a room gets it, then the command; the launcher hears what it has to clean up."""
    launcher.offer("container 5", network="none")
    request = replaced(RUN, room=replaced(ROOM, id="9", scratch="store/containers/9"))
    further = os.open(os.devnull, os.O_RDONLY)
    connection = furnish(offers, launcher, (further,), request)
    os.close(further)
    assert connection.pid == 77
    fds: list[int] = []
    for expected, count in ((Furnish(request.room, ahead=False), 1), (Execute(["true"], ["A=b"], "x"), 4)):
        received = receive(launcher.waiting)
        assert received is not None
        assert (received[0], len(received[1])) == (expected, count)
        fds += received[1]
    received = receive(launcher.theirs)
    assert received == (Taken("container 5", "store/containers/9"), [])
    for fd in fds:
        os.close(fd)
    connection.close()
    assert furnish(offers, launcher) is None, "an offer is good for one start"
    assert offers.descriptors == frozenset()


def test_not_furnished(offers: Offers, launcher: Launcher) -> None:
    """Another network, or one that the launcher has taken for itself: somebody else must be asked."""
    launcher.offer("container 5", network="host")
    assert furnish(offers, launcher) is None
    assert len(offers.descriptors) == 3
    assert os.eventfd_read(launcher.claim) == 1
    assert furnish(offers, launcher, request=replaced(RUN, room=replaced(ROOM, network="host"))) is None
    assert offers.descriptors == frozenset()


def test_latest_without_a_room_is_kept(offers: Offers, launcher: Launcher) -> None:
    """One for each network, and not of many networks."""
    for number in range(20):
        launcher.offer(f"container {number}", network="none")
        launcher.offer(f"other {number}", network=f"lent-{number}")
        assert start(offers, launcher, replaced(RUN, room=replaced(ROOM, id="9"))) is None
    assert len(offers.descriptors) <= 4 * 16
    for number in (1, *range(30, 45), 1, 50):  # who is expected again is not the oldest any more
        offers.expect([replaced(ROOM, id=str(number))])
    assert offers.expects("1")


def test_expected_room_is_known(offers: Offers) -> None:
    """The launcher may be building it, so nobody else may."""
    assert offers.expects("1")
    assert not offers.expects("2")
