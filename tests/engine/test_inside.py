"""What runs where the files are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("early", [False, True])
def test_task_ends_with_its_pipe(early: bool) -> None:
    """A task that is not wanted any more is ended by the kernel, also when that was so before it looked."""
    reader, writer = os.pipe()
    script = (
        "import sys, time\n"
        "from nbcontainer.engine.inside import end_with\n"
        "sys.stdin.read(1)\n"
        f"end_with({reader})\n"
        "print('working', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], pass_fds=[reader], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as task:
        os.close(reader)
        assert task.stdin is not None
        assert task.stdout is not None
        if early:
            os.close(writer)
        task.stdin.write(b".")
        task.stdin.flush()
        if not early:
            assert task.stdout.readline() == b"working\n"
            os.close(writer)
        assert task.wait(20) == (1 if early else -signal.SIGIO)
