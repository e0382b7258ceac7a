"""The keeper: the process that owns a store's networks: ``python -I …/keeper.py OPTIONS``.

It is started by the first engine that needs it, outlives that one's kernel, and ends some seconds after the last
container in a network has. It makes bridges and links, gives addresses, answers for names, holds published ports. Who
kills it finds its successor sweeping what it left.

A container arrives in two steps. The engine asks for a place, which fixes the addresses, and hands over the
keeper's end of the container's *gate*. Through that the container sends its network namespace and a pidfd
of its PID 1 while it builds its root; the keeper makes the link and says through the gate that the command may start.
The pidfd tells when all is over, whoever is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import ipaddress
import json
import os
import signal
import socket
import struct
import sys
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(here)))

from nbcontainer.errors import Conflict, NbcontainerError, NotFound, UnsupportedHost
from nbcontainer.model.network import Endpoint
from nbcontainer.network import messages, plan, rules
from nbcontainer.network.forwarding import Datagrams, Streams
from nbcontainer.network.guests import Guest, Place, Room
from nbcontainer.network.loop import READ, Loop
from nbcontainer.network.places import LOCK, LOG, SOCKET, START, Options, at
from nbcontainer.network.ports import is_loopback
from nbcontainer.network.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from nbcontainer.model.network import Network, PortMapping
    from nbcontainer.network.loop import Timer
    from nbcontainer.network.wiring import Wiring

__all__ = ["Keeper", "main"]

_GATE = 4096
_BACKLOG = 64
_RETRY = 1.0
_CHANGE = 65536
_SECOND_CHANCE = 3.0
"""Seconds in which another process may come for a place whose first one ended before it was started."""
GO = b"."


class Keeper:
    """Everything that a keeper knows and does, on one loop. `close` takes it all away."""

    def __init__(self, loop: Loop, wiring: Wiring, options: Options) -> None:
        self._loop = loop
        self._wiring = wiring
        self._options = options
        self._key = options.key
        self._rooms: dict[str, Room] = {}
        self._guests: dict[str, Guest] = {}
        self._askers: dict[str, Guest] = {}
        self._resolver = Resolver(loop, *wiring.name_server(), self._askers.get)
        self._clients: set[int] = set()
        self._serial = os.getpid() * 997
        self._leaving: Timer | None = None
        self.may_leave: Callable[[], bool] = lambda: True
        if wiring.changes is not None:
            self._loop.watch(wiring.changes.fileno(), READ, lambda _: self._readdressed())
        self._reconsider()

    # --- engines ----------------------------------------------------------------------------------------------------

    def admit_client(self, channel: socket.socket) -> None:
        """Serve an engine on its connection, for as long as that is there."""
        number = channel.fileno()
        self._clients.add(number)
        self._loop.watch(number, READ, lambda _: self._serve(channel))
        self._reconsider()

    def _serve(self, channel: socket.socket) -> None:
        try:
            received = messages.receive(channel)
        except messages.MessageError as problem:
            self._answer(channel, messages.Refused(error="UnsupportedHost", message=f"the network keeper: {problem}"))
            return
        except OSError:
            received = None
        if received is None:
            self._clients.discard(channel.fileno())
            self._loop.forget(channel.fileno())
            channel.close()
            self._reconsider()
            return
        message, fds = received
        try:
            answer = self._act(message, fds)
        except NbcontainerError as problem:
            answer = messages.Refused(error=type(problem).__name__, message=problem.message)
        except OSError as problem:
            answer = messages.Refused(error="UnsupportedHost", message=f"the network keeper failed: {problem}")
        finally:
            for fd in fds:
                os.close(fd)
        self._answer(channel, answer)
        self._reconsider()

    def _answer(self, channel: socket.socket, answer: messages.Message) -> None:
        with contextlib.suppress(OSError):  # it is gone: its end of file comes next
            messages.send(channel, answer)

    def _act(self, message: messages.Message, fds: list[int]) -> messages.Message:
        """Do what is asked; descriptors that are kept are taken out of `fds`."""
        if isinstance(message, messages.Attach):
            return messages.Attached(endpoint=self._attach(message, fds))
        if isinstance(message, messages.Detach):
            self._detach(message.container, message.network, over=message.over)
            return messages.Done()
        if isinstance(message, messages.Claim):
            claimed = self._guests.get(message.container)
            if claimed is None or claimed.gate is None:
                raise NotFound("no place was kept for this container")
            claimed.ahead = False
            return messages.Done()
        if isinstance(message, messages.Name):
            guest = self._guests.get(message.container)
            for place in guest.places.values() if guest else ():
                place.endpoint = replace(place.endpoint, names=message.names)
            return messages.Done()
        if isinstance(message, messages.Remove):
            self._remove(message.network)
            return messages.Done()
        if isinstance(message, messages.Look):
            return self._seen()
        raise UnsupportedHost(f"the network keeper does not know what {type(message).__name__} asks for")

    def _seen(self) -> messages.Seen:
        networks = []
        for room in self._rooms.values():
            subnets = room.subnets
            networks.append(
                replace(
                    room.network,
                    subnet=str(subnets.subnet),
                    gateway=str(subnets.gateway),
                    subnet6=str(subnets.subnet6 or ""),
                    gateway6=str(subnets.gateway6 or ""),
                    mtu=room.mtu,
                )
            )
        endpoints = [place.endpoint for room in self._rooms.values() for place in room.places.values()]
        return messages.Seen(networks=tuple(networks), endpoints=tuple(endpoints))

    # --- networks ---------------------------------------------------------------------------------------------------

    def _room(self, network: Network) -> Room:
        room = self._rooms.get(network.id)
        if room is not None:
            return room
        if network.hosts and not self._wiring.limits:
            raise UnsupportedHost(
                "an egress network needs the program nft, which keeps a container from what it may not reach; install"
                " it (apt install nftables)"
            )
        taken = [*self._wiring.taken(), *(each.subnets.subnet for each in self._rooms.values())]
        subnets = plan.subnets_of(network, self._key, taken)
        if network.subnet and any(subnets.subnet.overlaps(each) for each in taken):
            raise Conflict(
                f"subnet {subnets.subnet} of network {network.name} is in use on this machine; make the network anew"
                " with another --subnet"
            )
        bridge = plan.bridge_name(self._key, network.id)
        room = Room(network=network, subnets=subnets, bridge=bridge, mtu=network.mtu or self._wiring.mtu())
        # the filter first: there is no moment in which a bridge is open
        self._rooms[network.id] = room
        try:
            self._filter()
            self._wiring.open_bridge(bridge, subnets, room.mtu)
            self._filter()  # forwarding may have been turned on, and is guarded now
        except BaseException:
            del self._rooms[network.id]
            raise
        return room

    def _remove(self, network: str) -> None:
        room = next((each for each in self._rooms.values() if network in {each.network.name, each.network.id}), None)
        if room is None:
            return
        if room.places:
            names = ", ".join(place.endpoint.names[0] for place in room.places.values())
            raise Conflict(f"network {room.network.name} is in use by {names}; end or disconnect them first")
        self._close_room(room)

    def _close_room(self, room: Room) -> None:
        del self._rooms[room.network.id]
        self._wiring.close_bridge(room.bridge)
        with contextlib.suppress(NbcontainerError):
            self._filter()

    def _filter(self) -> None:
        """Have the packet filter say what is so now."""
        bridges = [room.as_filtered() for room in self._rooms.values()]
        published = [
            each for room in self._rooms.values() for place in room.places.values() for each in place.publications
        ]
        self._wiring.filter(bridges, published)

    def _readdressed(self) -> None:
        """This machine has other addresses than before."""
        changes = self._wiring.changes
        if changes is not None:
            with contextlib.suppress(OSError):  # until there is nothing more; or so much that some was lost
                while changes.recv(_CHANGE):
                    pass
            with contextlib.suppress(NbcontainerError):
                self._filter()

    def _admit(self, room: Room, address: str, seconds: int) -> None:
        with contextlib.suppress(NbcontainerError):  # then it cannot be reached, which the asker will see
            self._wiring.admit(room.bridge, address, seconds)

    # --- containers -------------------------------------------------------------------------------------------------

    def _attach(self, message: messages.Attach, fds: list[int]) -> Endpoint:
        network = message.network
        known = self._guests.get(message.container)
        if known is not None and network.id in known.places:
            if message.living or known.namespace >= 0:
                raise Conflict(f"the container is in network {network.name} already")
            self._forget(known)  # it was asked for and never came
            known = None
        room = self._room(network)
        endpoint = self._endpoint(message, room)
        guest = known or Guest(
            container=message.container,
            hosts=network.hosts,
            admit=self._admit,
            servers=message.dns,
            ahead=message.ahead,
        )
        place = Place(room=room, endpoint=endpoint)
        room.places[message.container] = place
        guest.places[network.id] = place
        self._guests[message.container] = guest
        try:
            if message.living:
                if guest.namespace < 0:
                    guest.namespace, guest.pidfd = fds.pop(0), fds.pop(0)
                    self._loop.watch(guest.pidfd, READ, lambda _: self._ended(guest))
                self._link(guest, place)
            else:
                guest.gate = socket.socket(fileno=fds.pop(0))
                self._loop.watch(guest.gate.fileno(), READ, lambda _: self._at_gate(guest))
            self._publish(place, message, fds)
        except BaseException:
            self._leave(guest, place)
            raise
        return place.endpoint

    def _endpoint(self, message: messages.Attach, room: Room) -> Endpoint:
        owner, subnets = message.container, room.subnets
        try:
            address = room.addresses.take(owner, message.address)
            address6 = room.addresses.take6(owner, message.address6, address)
        except NbcontainerError:
            room.addresses.give_back(owner)
            raise
        internal = room.network.internal
        return Endpoint(
            network=room.network.name,
            container=owner,
            interface="eth0",
            mac=message.mac or plan.mac_of(address),
            address=str(address),
            prefix=subnets.subnet.prefixlen,
            gateway="" if internal else str(subnets.gateway),
            address6=str(address6 or ""),
            prefix6=subnets.subnet6.prefixlen if subnets.subnet6 else 0,
            gateway6="" if internal or address6 is None else str(subnets.gateway6),
            names=message.names,
            ports=message.ports,
        )

    def _publish(self, place: Place, message: messages.Attach, fds: list[int]) -> None:
        endpoint = place.endpoint
        if not message.ports:
            return
        for mapping, count in zip(message.ports, message.sockets, strict=True):
            targets = [(endpoint.address, mapping.container_port)]
            if endpoint.address6:
                targets.append((endpoint.address6, mapping.container_port))
            kind = Streams if mapping.protocol == "tcp" else Datagrams
            for _ in range(count):
                listener = socket.socket(fileno=fds.pop(0))
                place.forwards.append(kind(self._loop, listener, tuple(targets), self._wiring.open_socket))
        place.publications = tuple(_publications(message.ports, endpoint))
        if place.publications:
            self._filter()

    def _at_gate(self, guest: Guest) -> None:
        """A container has come, or will never."""
        assert guest.gate is not None
        try:
            data, fds, _, _ = socket.recv_fds(guest.gate, _GATE, 2)
        except OSError:
            data, fds = b"", []
        if guest.is_over():  # another process comes in place of one that has ended while it waited
            self._vacate(guest)
        if not data or len(fds) != 2 or guest.namespace >= 0:
            for fd in fds:
                os.close(fd)
            self._loop.forget(guest.gate.fileno())
            guest.gate.close()
            guest.gate = None
            if guest.namespace < 0:
                self._forget(guest)
            return
        guest.namespace, guest.pidfd = fds
        self._loop.watch(guest.pidfd, READ, lambda _: self._ended(guest))
        try:
            for place in guest.places.values():
                self._link(guest, place)
            word = GO
        except NbcontainerError as problem:
            word = problem.message.encode()
        except OSError as problem:
            word = f"the container's network cannot be made: {problem}".encode()
        with contextlib.suppress(OSError):
            guest.gate.send(word[:_GATE])
        self._reconsider()

    def _link(self, guest: Guest, place: Place) -> None:
        self._serial += 1
        room, name = place.room, plan.peer_name(self._key, self._serial)
        first = not any(each.link for each in guest.places.values())
        place.endpoint = self._wiring.connect(
            name, room.bridge, guest.namespace, place.endpoint, mtu=room.mtu, first=first
        )
        place.link = name
        self._askers[place.endpoint.address] = guest

    def _ended(self, guest: Guest) -> None:
        if guest.gate is not None and guest.container in self._guests:  # somebody may still come through it
            self._vacate(guest)
            if not guest.ahead:
                self._loop.later(_SECOND_CHANCE, lambda: self._forget_vacant(guest))
        else:
            self._forget(guest)
        self._reconsider()

    def _vacate(self, guest: Guest) -> None:
        """The process that waited in a place has ended; the place is kept for another."""
        for place in guest.places.values():
            place.link = ""
            self._askers.pop(place.endpoint.address, None)
        self._loop.forget(guest.pidfd)
        guest.let_go()

    def _forget_vacant(self, guest: Guest) -> None:
        if guest.namespace < 0 and self._guests.get(guest.container) is guest:
            self._forget(guest)
            self._reconsider()

    def _detach(self, container: str, network: str, *, over: bool) -> None:
        guest = self._guests.get(container)
        if guest is None:
            return
        if not network:
            self._forget(guest, over=over)
            return
        place = next((each for each in guest.places.values() if each.endpoint.network == network), None)
        if place is None:
            raise NotFound(f"the container is not in network {network}")
        self._leave(guest, place)

    def _forget(self, guest: Guest, *, over: bool = False) -> None:
        for place in list(guest.places.values()):
            self._leave(guest, place, over=over)

    def _leave(self, guest: Guest, place: Place, *, over: bool = False) -> None:
        """Take a container out of a network, and forget one that is in none any more."""
        room = place.room
        for each in place.forwards:
            each.close()
        guest.places.pop(room.network.id, None)
        room.places.pop(guest.container, None)
        room.addresses.give_back(guest.container)
        self._askers.pop(place.endpoint.address, None)
        # a container that has ended takes the link along with its namespace: nobody has to wait for that
        if place.link and not over and not guest.is_over():
            self._wiring.disconnect(place.link)
            for other in list(guest.places.values())[:1]:
                with contextlib.suppress(NbcontainerError):
                    self._wiring.lead_out(guest.namespace, other.endpoint)
        if not guest.places:
            self._resolver.forget(guest)
            for fd in (guest.pidfd, guest.gate.fileno() if guest.gate else -1):
                self._loop.forget(fd)
            guest.close()
            self._guests.pop(guest.container, None)
        if room.network.hosts and not room.places and room.network.id in self._rooms:
            self._close_room(room)
        elif place.publications:
            with contextlib.suppress(NbcontainerError):
                self._filter()

    # --- leaving ----------------------------------------------------------------------------------------------------

    def _reconsider(self) -> None:
        """Leave in a while, unless somebody is here; sooner when no engine is."""
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        if all(guest.ahead for guest in self._guests.values()):
            patience = self._options.idle if self._clients else self._options.alone
            self._leaving = self._loop.later(patience, self._leave_all)

    def _leave_all(self) -> None:
        if not all(guest.ahead for guest in self._guests.values()) or not self.may_leave():
            self._leaving = self._loop.later(_RETRY, self._reconsider)
            return
        self._loop.stop()

    def close(self) -> None:
        """Take everything away; safe twice."""
        for guest in list(self._guests.values()):
            with contextlib.suppress(NbcontainerError):
                self._forget(guest)
        self._resolver.close()
        self._wiring.close()


def _publications(ports: tuple[PortMapping, ...], endpoint: Endpoint) -> list[rules.Publication]:
    """What the packet filter publishes: everything but loopback, which it cannot."""
    found = []
    for mapping in ports:
        if is_loopback(mapping.host_ip):
            continue
        host: IPv4Address | IPv6Address = ipaddress.ip_address(mapping.host_ip)
        address = endpoint.address if host.version == 4 else endpoint.address6
        if address:
            found.append(
                rules.Publication(
                    protocol=mapping.protocol,
                    host_ip="" if host.is_unspecified else str(host),
                    host_port=mapping.host_port,
                    address=address,
                    port=mapping.container_port,
                )
            )
    return found


def main(text: str) -> NoReturn:
    """Become a process of its own, make the wiring, say so, and serve."""
    options = Options.read(text)
    ready = options.ready
    os.set_inheritable(ready, False)  # noqa: FBT003 - the standard library's own signature
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    code = 1
    keeper: Keeper | None = None
    try:
        _complain_to(os.path.join(options.folder, LOG))
        folder = os.open(options.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise Conflict(
                "another network keeper of this store is at work and does not answer; try again"
            ) from problem
        loop = Loop()
        wiring = _wiring(options)
        keeper = Keeper(loop, wiring, options)
        code = _serve(loop, keeper, folder, lambda: _tell(ready, {"below": wiring.below}))
    except NbcontainerError as problem:
        _tell(ready, {"error": type(problem).__name__, "message": problem.message})
    except OSError as problem:
        _tell(ready, {"error": "UnsupportedHost", "message": f"the network keeper cannot start: {problem}"})
    except Exception:  # noqa: BLE001 - the boundary of a process: whatever it was must be told
        traceback.print_exc()
    finally:
        if keeper is not None:
            keeper.close()
        os._exit(code)


def _complain_to(path: str) -> None:
    """Have what is written to standard error, by us and by our helpers, kept."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.dup2(fd, 2)
    os.close(fd)


def _tell(ready: int, words: dict[str, str | int]) -> None:
    with contextlib.suppress(OSError):
        os.write(ready, json.dumps(words).encode())
    os.close(ready)


def _wiring(options: Options) -> Wiring:
    if options.userns >= 0:
        from nbcontainer.network.below import BelowWiring

        return BelowWiring(options.key, options.userns)
    from nbcontainer.network.wiring import MachineWiring

    return MachineWiring(options.key)


def _serve(loop: Loop, keeper: Keeper, folder: int, ready: Callable[[], None]) -> int:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET, dir_fd=folder)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(at(folder, SOCKET))
    listener.listen(_BACKLOG)
    listener.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    start = os.open(START, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)

    def knock(_: int) -> None:
        with contextlib.suppress(OSError):
            channel, _address = listener.accept()
            if _peer(channel) == os.geteuid():
                keeper.admit_client(channel)
            else:
                channel.close()

    def may_leave() -> bool:
        """Nobody is on the way here: who is holds the lock until it has been heard (see `client`)."""
        try:
            fcntl.flock(start, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET, dir_fd=folder)
        return True

    keeper.may_leave = may_leave
    loop.watch(listener.fileno(), READ, knock)
    signal.signal(signal.SIGTERM, lambda _number, _frame: loop.stop())
    ready()
    gc.collect()
    gc.freeze()
    loop.run()
    return 0


def _peer(channel: socket.socket) -> int:
    """The uid of who is at the other end (SO_PEERCRED of unix(7))."""
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


if __name__ == "__main__":
    main(sys.argv[1])
