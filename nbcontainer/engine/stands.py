"""Networks that builds keep for their commands, and that one `RUN` has after another.

A network namespace with a link takes the machine longer to make and to take down than most commands of a build take:
seven of the twenty-two milliseconds of work that a ``RUN true`` was. Nothing that a command does stays in one. Its
processes end with it, and their sockets; without NET_ADMIN, which no `RUN` has, it changes neither links nor addresses
nor the packet filter, and /proc/sys is read-only. Two commands never have the same one at the same time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.engine.successors import new_container_id
from nbcontainer.model.network import NetworkChoice
from nbcontainer.network.definitions import BRIDGE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.engine.networking import Lease, Networks
    from nbcontainer.model import ContainerSpec
    from nbcontainer.runtime.driver import Runtime
    from nbcontainer.runtime.lent import LentNetwork

__all__ = ["Stands"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stand:
    """A network with a place in it; `asked` is what follows ``--network``."""

    asked: str
    lease: Lease
    network: LentNetwork


class Stands:
    """What is kept. For several threads."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks
        self._lock = threading.Lock()
        self._free: list[_Stand] = []

    @contextlib.contextmanager
    def lease(self, spec: ContainerSpec, runtime: Runtime) -> Iterator[Lease]:
        """The network that `spec` asks for, as `Networks.lease` gives it, until the command is over."""
        if not NetworkChoice.parse(spec.network).is_bridged:
            with self._networks.lease(spec, "") as lease:
                yield lease
            return
        stand = self._found(spec.network) or self._made(spec, runtime)
        try:
            yield self._networks.standing(spec, stand.lease, stand.network)
        finally:
            with self._lock:
                self._free.append(stand)

    def _found(self, asked: str) -> _Stand | None:
        """One that is free and still connected."""
        while True:
            with self._lock:
                stand = next((each for each in reversed(self._free) if each.asked == asked), None)
                if stand is None:
                    return None
                self._free.remove(stand)
            if stand.network.is_there:
                return stand
            self._close(stand)

    def _made(self, spec: ContainerSpec, runtime: Runtime) -> _Stand:
        lease = self._networks.stand(dataclasses.replace(spec, id=new_container_id()))
        try:
            network = runtime.lend_network(lease.gate)
        except BaseException:
            self._networks.leave(lease)
            raise
        lease.started()
        return _Stand(asked=spec.network, lease=lease, network=network)

    def _close(self, stand: _Stand) -> None:
        stand.network.close()
        self._networks.leave(stand.lease)

    def tidy(self) -> None:
        """A build is over: keep one for the next, in the network that everybody has and nobody can remove."""
        self._let_go(kept=1)

    def close(self) -> None:
        """Let go of all of them; safe twice."""
        self._let_go(kept=0)

    def _let_go(self, kept: int) -> None:
        with self._lock:
            stay = [each for each in self._free if each.asked == BRIDGE.name][:kept]
            going = [each for each in self._free if each not in stay]
            self._free = stay
        for stand in going:
            self._close(stand)
