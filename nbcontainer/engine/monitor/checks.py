"""Running health checks beside a container, by the way that `exec` takes; `nbcontainer.engine.health` has the rules."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from nbcontainer.engine.health import MOST_OUTPUT, Health, pause_before, with_result
from nbcontainer.errors import Conflict, ContainerNotFound, NbcontainerError
from nbcontainer.model import ExecOptions

if TYPE_CHECKING:
    from nbcontainer.engine.health import Check
    from nbcontainer.engine.records import Stored
    from nbcontainer.engine.session import Session

__all__ = ["Checks"]

_NOT_STARTED = 126


class Checks:
    """The checks of one life of a container, in a thread of their own."""

    def __init__(self, session: Session, stored: Stored, check: Check) -> None:
        self._session = session
        self._stored = stored
        self._check = check
        self._over = threading.Event()
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="checks", daemon=True)

    def start(self) -> None:
        """Begin; the container has just been started."""
        self._tell(Health())
        self._thread.start()

    def stop(self) -> None:
        """No more checks; one that runs ends with its container."""
        self._over.set()

    def _run(self) -> None:
        health = Health()
        while not self._over.wait(pause_before(self._check, health, time.monotonic() - self._began)):
            lived = time.monotonic() - self._began
            began = time.time()
            try:
                code, output = self._once()
            except (Conflict, ContainerNotFound):  # it is paused, or has just ended
                continue
            except (NbcontainerError, OSError) as problem:
                code, output = _NOT_STARTED, str(problem)
            if self._over.is_set():
                return
            health = with_result(
                self._check, health, code=code, output=output, began=began, ended=time.time(), lived=lived
            )
            self._tell(health)

    def _once(self) -> tuple[int, str]:
        from nbcontainer.engine.executing import ExecRequest, execute
        from nbcontainer.engine.lifecycle import Lifecycle

        heard = bytearray()

        def hear(_: str, data: bytes) -> None:
            heard.extend(data[: MOST_OUTPUT - len(heard)])

        request = ExecRequest(
            container=self._stored.id,
            argv=self._check.argv,
            options=ExecOptions(timeout=self._check.timeout),
            script=None,
            shell=(),
            stdin=None,
            output=hear,
        )
        result = execute(self._session, Lifecycle(self._session.records), request, grace=0, check=False)
        if result.reason == "timeout":
            return -1, f"the check took longer than {self._check.timeout:g} s"
        return result.exit_code, heard.decode(errors="replace")

    def _tell(self, health: Health) -> None:
        try:
            self._session.records.amend(self._stored, health=health.as_field())
        except (ContainerNotFound, OSError):  # thrown away meanwhile, or the disk is full
            return
