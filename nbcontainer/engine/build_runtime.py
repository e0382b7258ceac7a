"""The launcher that builds have for themselves, kept a while for the next build.

What its tasks load would make every notebook's launcher start later. The containers that it keeps ready have the
network of RUN: one of their own where there are bridges, else the machine's. People who write a Dockerfile build again
and again, so it is ended only when no build has come for some time.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from nbcontainer.engine.stands import Stands
from nbcontainer.runtime.driver import NativeRuntime
from nbcontainer.runtime.lent import HOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.engine.networking import Networks
    from nbcontainer.engine.settings import Settings
    from nbcontainer.model import IdMap

__all__ = ["BuildRuntime"]

_READY = 2


class BuildRuntime:
    """Lends one runtime to all builds of an engine; its launcher starts when something must be made.

    `stands` are networks for commands that run in it.
    """

    def __init__(self, settings: Settings, id_map: IdMap, networks: Networks) -> None:
        self._settings = settings
        self._id_map = id_map
        self._networks = networks
        self.stands = Stands(networks)
        self._lock = threading.Lock()
        self._made: NativeRuntime | None = None
        self._builds = 0
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[NativeRuntime]:
        """The runtime, for the length of a build."""
        with self._lock:
            self._builds += 1
            self._forget_timer()
            if self._made is None:
                from nbcontainer.build.making import APPLY, LANDING  # heavy, and sessions import this module

                self._made = NativeRuntime(
                    self._settings.root,
                    self._id_map,
                    pool_size=min(_READY, self._settings.pool_size),
                    pool_idle=self._settings.pool_idle,
                    pool_network="host" if self._networks.problem else "none",
                    modules=(APPLY, LANDING, HOLDER),
                )
            runtime = self._made
        try:
            yield runtime
        finally:
            with self._lock:
                self._builds -= 1
                if not self._builds and self._made is runtime:
                    self._end_later()
            self.stands.tidy()

    def _end_later(self) -> None:
        """End it when no build comes; the caller holds the lock. One that was never started is let go at once."""
        if self._made is None or self._made.pid is None or not self._settings.build_idle:
            self._end()
            return
        self._timer = threading.Timer(self._settings.build_idle, self._end_if_idle)
        self._timer.daemon = True
        self._timer.start()

    def _end_if_idle(self) -> None:
        with self._lock:
            if not self._builds:
                self._end()

    def _end(self) -> None:
        made, self._made = self._made, None
        self.stands.close()
        if made is not None:
            made.close(for_good=True)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """End it now; safe twice."""
        with self._lock:
            self._forget_timer()
            self._end()
