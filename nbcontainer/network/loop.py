"""The keeper's event loop: descriptors that become ready and things to do later, one thread, nothing else.

Not asyncio, because pyroute2's calls run a loop of asyncio's of their own and refuse to inside another's.
"""

from __future__ import annotations

import heapq
import itertools
import select
import time
from collections.abc import Callable

__all__ = ["READ", "WRITE", "Loop", "Timer"]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

Ready = Callable[[int], None]
"""Called with the events (`READ`, `WRITE`, or'ed with errors and hang-ups) of its descriptor."""


class Timer:
    """Something to do later; `cancel` before then and it is not done."""

    __slots__ = ("act", "at")

    def __init__(self, at: float, act: Callable[[], None] | None) -> None:
        self.at = at
        self.act = act

    def cancel(self) -> None:
        """Do not do it; nothing happens when it is done or cancelled already."""
        self.act = None


class Loop:
    """Watches until `stop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ready: dict[int, Ready] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._serial = itertools.count()
        self._running = True

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready` when `fd` is; for one that is watched already, from now on with these events."""
        if fd in self._ready:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._ready[fd] = ready

    def forget(self, fd: int) -> None:
        """Watch no longer: before the descriptor is closed. Safe twice."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, seconds: float, act: Callable[[], None]) -> Timer:
        """Call `act` after some seconds."""
        timer = Timer(time.monotonic() + seconds, act)
        heapq.heappush(self._timers, (timer.at, next(self._serial), timer))
        return timer

    def stop(self) -> None:
        """Return from `run` when what is being handled is."""
        self._running = False

    def run(self) -> None:
        """Handle what happens, one event at a time: handling one may close another's descriptor."""
        while self._running:
            for fd, events in self._epoll.poll(self._patience(), 16):
                ready = self._ready.get(fd)
                if ready is not None:
                    ready(events)
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                act = heapq.heappop(self._timers)[2].act
                if act is not None:
                    act()

    def _patience(self) -> float:
        while self._timers and self._timers[0][2].act is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def close(self) -> None:
        """Let go of the kernel's object."""
        self._epoll.close()
