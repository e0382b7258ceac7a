"""The harness itself: it must see what it is there to see, or every other test is worth less."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness.host import PROBED, absence, feature
from tests.harness.leaks import Leaks, processes_below
from tests.harness.users import User, run_as

if TYPE_CHECKING:
    from pathlib import Path

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def watch(leaks: Leaks, monkeypatch: pytest.MonkeyPatch) -> Leaks:
    """Lend the session's leak watcher with less patience."""
    monkeypatch.setattr("tests.harness.leaks._PATIENCE", 0.1)
    return leaks


def test_clean_test_leaves_nothing(watch: Leaks) -> None:
    """Nothing done is nothing left, at once."""
    before = watch.snapshot()
    began = time.monotonic()
    assert watch.left_since(before) == []
    assert time.monotonic() - began < 0.1


def test_process_is_a_leak(watch: Leaks) -> None:
    """A child that still runs is named with its command, unless its tree is allowed."""
    before = watch.snapshot()
    child = subprocess.Popen(SLEEP)
    try:
        assert "time.sleep(60)" in " ".join(watch.left_since(before))
        with watch.allowing(trees=[child.pid]):
            assert watch.left_since(before) == []
    finally:
        child.kill()
        child.wait()


def test_orphan_is_a_leak(watch: Leaks) -> None:
    """A process whose parent has ended cannot hide behind pid 1."""
    before = watch.snapshot()
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=-3, stderr=-3).pid, flush=True)"
    done = subprocess.run([sys.executable, "-c", code, *SLEEP], capture_output=True, text=True, check=True)
    orphan = int(done.stdout)
    try:
        assert orphan in processes_below(os.getpid())
        assert f"process {orphan}" in " ".join(watch.left_since(before))
    finally:
        os.kill(orphan, 9)
        os.waitpid(orphan, 0)


def test_straggler_is_waited_for(watch: Leaks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is just ending is given time, and reaped."""
    monkeypatch.setattr("tests.harness.leaks._PATIENCE", 5)
    before = watch.snapshot()
    code = "import os, time; os.fork() or (time.sleep(0.2), os._exit(0))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert watch.left_since(before) == []


def test_descriptor_is_a_leak(watch: Leaks, tmp_path: Path) -> None:
    """An open file is named with its path, unless its kind is allowed."""
    before = watch.snapshot()
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert watch.left_since(before) == [f"descriptor {fd} -> {tmp_path}/file"]
        with watch.allowing(fds=[str(tmp_path)]):
            assert watch.left_since(before) == []
    finally:
        os.close(fd)


@pytest.mark.root
def test_mount_is_a_leak(watch: Leaks, tmp_path: Path) -> None:
    """A mount in this session's folder is named."""
    before = watch.snapshot()
    subprocess.run(["mount", "-t", "tmpfs", "leak", tmp_path], check=True)
    try:
        assert str(tmp_path) in " ".join(watch.left_since(before))
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_markers_answer_with_sentences() -> None:
    """Every probed marker gives "" or a sentence to show as the reason for a skip."""
    for marker in set(PROBED) - {"network"}:
        reason = absence(marker)
        assert not reason or reason.endswith(".")
    assert absence("peers", "sh") == ""
    assert absence("peers", "no-such-program") == "needs no-such-program on PATH."
    assert feature("openat2").name == "openat2"


def test_require_turns_a_skip_into_a_failure(pytester_run: Path) -> None:
    """`--require` fails what would be skipped, and refuses markers it does not know."""
    test = pytester_run / "test_it.py"
    test.write_text("import pytest\n@pytest.mark.peers('no-such-program')\ndef test_it(): pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)]

    def run(*options: str) -> str:
        done = subprocess.run([*command, *options], cwd=pytester_run, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    assert "1 skipped" in run()
    assert "--require=peers: needs no-such-program on PATH." in run("--require=peers")
    assert "no marker pears" in run("--require=pears")


@pytest.fixture
def pytester_run(tmp_path: Path) -> Path:
    """Lend a folder where pytest runs with our conftest and markers."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    (tmp_path / "conftest.py").write_text(
        f"import sys\nsys.path.insert(0, {root!r})\nfrom tests.conftest import *\n"
        "from tests.conftest import pytest_addoption, pytest_configure, pytest_runtest_setup\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    peers\n")
    return tmp_path


@pytest.mark.subids
@pytest.mark.parametrize("which", ["user_with_range", "user_without_range"])
def test_users_are_who_they_are(which: str, request: pytest.FixtureRequest) -> None:
    """A command runs as that user, from its home, with no groups of ours and no environment of ours."""
    user: User = request.getfixturevalue(which)
    code = "import os, nbcontainer; print(os.getuid(), os.getgid(), os.getgroups(), os.getcwd(), sorted(os.environ))"
    done = run_as(user, [user.python, "-c", code], env={"EXTRA": "1"})
    assert done.stdout.startswith(f"{user.uid} {user.gid} [] {user.home} ["), done.stderr + done.stdout
    assert "EXTRA" in done.stdout
    assert "PYTEST_CURRENT_TEST" not in done.stdout


@pytest.mark.subids
def test_user_that_hangs_is_ended(user_without_range: User) -> None:
    """A timeout ends the command and its children."""
    with pytest.raises(subprocess.TimeoutExpired):
        run_as(user_without_range, ["sh", "-c", "sleep 60 & sleep 60"], timeout=0.2)


@pytest.mark.subids
def test_user_reads_input(user_without_range: User) -> None:
    """Text given as input arrives on standard input."""
    assert run_as(user_without_range, ["cat"], input="hello").stdout == "hello"
