"""A machine that hides the processes of others (hidepid of proc(5)), as shared ones do: a container's are hidden, too."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.users import User

pytestmark = [pytest.mark.root, pytest.mark.subids, pytest.mark.overlay]

HIDING = """
mount --make-rprivate / && mount -t proc -o hidepid=2 proc /proc || exit
exec setpriv --reuid "$1" --regid "$2" --clear-groups "$3" -m nbcontainer "${@:4}"
"""


@pytest.fixture(params=["range", "single"])
def nbcontainer(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Lend the command line of a user of such a machine."""
    user: User = request.getfixturevalue("user_with_range" if request.param == "range" else "user_without_range")
    environment = {"PATH": os.environ["PATH"], "HOME": user.home, "NBCONTAINER_ROOT": f"{user.home}/hidden"}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["unshare", "--mount", "bash", "-c", HIDING, "sh", str(user.uid), str(user.gid), user.python]
        return subprocess.run([*command, *words], cwd="/", env=environment, capture_output=True, text=True, check=False)

    return call


def test_containers_run_and_end(nbcontainer: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """A container runs, one on behind is ended by its monitor, and what cannot be done is told with the reason."""
    done = nbcontainer("run", "--network", "none", "host", "echo", "on")
    assert (done.returncode, done.stdout) == (0, "on\n"), done
    behind = ("run", "-d", "--network", "none", "--name", "work", "host", "sleep", "1000")
    assert nbcontainer(*behind).returncode == 0
    for words in ("exec work true", "top work", "kill -s USR1 work", "pause work"):
        refused = nbcontainer(*words.split())
        assert "hidepid" in refused.stderr, refused
    assert nbcontainer("stop", "work").returncode == 0
    assert " Exited " in nbcontainer("ps", "-a").stdout
    assert nbcontainer("start", "work").returncode == 0
    assert nbcontainer("rm", "-f", "work").returncode == 0
    assert nbcontainer("ps", "-aq").stdout == ""
