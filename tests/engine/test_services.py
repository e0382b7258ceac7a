"""Attaching to a container that comes to its end at that moment."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine import control, services
from nbcontainer.engine.lifecycle import Lifecycle
from nbcontainer.engine.records import ContainerRecords
from nbcontainer.errors import Conflict
from nbcontainer.model import ContainerId

if TYPE_CHECKING:
    from pathlib import Path

    from nbcontainer.model import RunResult


@pytest.mark.parametrize("over", [True, False])
def test_attach_to_what_ends_while_it_is_asked(tmp_path: Path, over: bool) -> None:
    """A monitor that leaves instead of answering has no input to give; how its container ended is shown all the same.

    One that does not answer although its container is at work is a trouble that is told.
    """
    (tmp_path / "containers").mkdir()
    records = ContainerRecords(str(tmp_path), None)
    service = {"name": "web", "image": "x", "command": ["sh"], "created": 1.0, "keep": True, "service": {}}
    record = records.create(ContainerId(os.urandom(32).hex()), service)
    record.update(started=2.0)
    listener = control.listen(record.directory)

    def leave() -> None:
        channel, _ = listener.accept()
        with channel:
            channel.recv(4096)
            record.append("stdout", b"last words\n")
            if over:
                record.update(finished=time.time(), exit_code=3, reason="exited")

    monitor = threading.Thread(target=leave)
    monitor.start()
    shown: list[bytes] = []
    with open(os.devnull, "rb") as stdin:

        def attach() -> RunResult:
            return services.attach(
                records,
                Lifecycle(records),
                records.find("web"),
                begin=None,
                stdin=stdin,
                output=lambda _, data: shown.append(data),
                pass_signals=False,
            )

        try:
            if over:
                assert attach().exit_code == 3
                assert shown == [b"last words\n"]
            else:
                with pytest.raises(Conflict, match="does not answer"):
                    attach()
        finally:
            monitor.join()
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
            record.close()
