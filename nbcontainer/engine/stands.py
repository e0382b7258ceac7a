"""Networks that builds keep for their commands, and that one `RUN` has after another.

A network namespace with a link takes the machine longer to make and to take down than most commands of a build take:
seven of the twenty-two milliseconds of work that a ``RUN true`` was. What a command does there does not stay: its
processes end with it; without NET_ADMIN, which no `RUN` has, it changes neither links nor addresses nor the packet
filter, and /proc/sys is read-only; and where a connection lingers (TIME_WAIT), the next command has another network.
Two commands never have the same one at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.engine.successors import new_container_id
from nbcontainer.model.network import NetworkChoice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbcontainer.engine.networking import Lease, Networks
    from nbcontainer.model import ContainerSpec
    from nbcontainer.runtime.driver import Runtime
    from nbcontainer.runtime.lent import LentNetwork

__all__ = ["Stands"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """A network with a place in it."""

    lease: Lease
    network: LentNetwork


class Stands:
    """What is kept. For several threads."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._lock = threading.Lock()
        self._free: list[_Stand] = []
        self._busy: list[_Stand] = []

    @contextlib.contextmanager
    def lease(self, spec: ContainerSpec, runtime: Runtime, given_up: Callable[[], bool]) -> Iterator[Lease]:
        """The network that `spec` asks for, as `Networks.lease` gives it, until the command is over.

        Of those with a place there is one for builds, the bridge. Nobody waits for one that is `given_up` meanwhile.
        """
        if not NetworkChoice.parse(spec.network).is_bridged:
            with self._networks.lease(spec, "") as lease:
                yield lease
            return
        stand = self._found() or self._made(spec, runtime, given_up)
        with self._lock:
            self._busy.append(stand)
        try:
            yield self._networks.standing(spec, stand.lease, stand.network)
        finally:
            stand.network.look()
            with self._lock:
                kept = stand in self._busy
                if kept:
                    self._busy.remove(stand)
                    self._free.append(stand)
            if not kept:
                self._close(stand)

    def _found(self) -> _Stand | None:
        """One that is free, still connected and as new."""
        while True:
            with self._lock:
                if not self._free:
                    return None
                stand = self._free.pop()
            if stand.network.is_there():
                return stand
            self._close(stand)

    def _made(self, spec: ContainerSpec, runtime: Runtime, given_up: Callable[[], bool]) -> _Stand:
        lease = self._networks.stand(dataclasses.replace(spec, id=new_container_id()))
        try:
            network = runtime.lend_network(lease.gate, given_up)
        except BaseException:
            self._networks.leave(lease)
            raise
        lease.started()
        return _Stand(lease=lease, network=network)

    def _close(self, stand: _Stand) -> None:
        try:
            stand.network.close()
        finally:
            self._networks.leave(stand.lease)

    def tidy(self) -> None:
        """A build is over: keep one for the next."""
        with self._lock:
            going, self._free = self._free[1:], self._free[:1]
        for stand in going:
            self._close(stand)

    def close(self) -> None:
        """Let go of all of them; what is in use ends with the container in it. Safe twice."""
        with self._lock:
            going, self._free = self._free, []
            busy, self._busy = self._busy, []
        for stand in busy:
            stand.network.close()
        for stand in going:
            self._close(stand)
