"""A person at a terminal, and a shell in a container: keys, size, jobs, codes, and a terminal that is as it was."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nbcontainer
from nbcontainer.errors import InvalidOption
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.screens import Screen
from tests.integration.fixtures import OWN_TIER
from tests.integration.test_exec import working
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Driver, Tier

LOOK = """
import fcntl, os, stat, struct, sys
rows, columns = struct.unpack("4H", fcntl.ioctl(0, 0x5413, bytes(8)))[:2]
print(os.ttyname(1), rows, columns, os.environ["TERM"], os.getsid(0) == os.getpid() or os.getppid() == os.getsid(0))
held = set()
for fd in os.listdir("/proc/self/fd"):
    if os.path.lexists(f"/proc/self/fd/{fd}"):
        held.add(os.readlink(f"/proc/self/fd/{fd}"))
held = sorted(held)
print("held", held, os.stat(0).st_uid == os.getuid(), os.path.exists("/dev/console"))
if os.path.exists("/dev/console"):
    print("console", os.stat("/dev/console").st_rdev == os.stat(0).st_rdev)
print("others", oct(stat.S_IMODE(os.stat(0).st_mode)))
"""


@contextlib.contextmanager
def at_terminal(tier: Tier, *words: str, size: tuple[int, int] = (24, 80), nohup: bool = False) -> Iterator[Screen]:
    """Lend a screen on which the acting person has called ``nbcontainer`` with these words."""
    user = tier.user
    variables = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    variables |= {"HOME": tier.home, "NBCONTAINER_ROOT": tier.store, "TERM": "screen"}
    acting: dict[str, Any] = {"cwd": tier.home}
    if user is None:
        variables["PYTHONPATH"] = str(Path(nbcontainer.__file__).parent.parent)
    else:
        acting |= {"user": user.uid, "group": user.gid, "extra_groups": []}
    asked: dict[str, Any] = {"nohup": nohup, **({"python": user.python} if user else {})}
    with Screen(["-m", "nbcontainer", *words], environment=variables, size=size, **asked, **acting) as screen:
        yield screen


@contextlib.contextmanager
def shell(tier: Tier, *options: str, nohup: bool = False) -> Iterator[Screen]:
    """Lend a screen with an interactive shell in a container, which waits for a command."""
    with at_terminal(tier, "run", "-it", *options, tier.image, "sh", "-i", nohup=nohup) as screen:
        screen.see(rb"[#$] ")
        yield screen


def test_terminal_is_a_real_one(tier: Tier) -> None:
    """It is pts 0 of the container's own and its console, of the person's size, the command's own, and all it holds."""
    with at_terminal(tier, "run", "-it", tier.image, PYTHON, "-c", LOOK, size=(33, 101)) as screen:
        assert screen.code() == 0, screen.shown
        assert screen.shown.replace(b"\r\n", b"\n") == (
            b"/dev/pts/0 33 101 xterm True\nheld ['/dev/pts/0'] True True\nconsole True\nothers 0o620\n"
        )
        assert screen.is_as_before


def test_terminal_belongs_to_the_user(tier: Tier) -> None:
    """A command of another user than root can open its own terminal by name."""
    if not tier.has_users:
        pytest.skip("with a single id there is no other user")
    code = "print(open(__import__('os').ttyname(0), 'r+b', buffering=0).isatty())"
    with at_terminal(tier, "run", "-it", "-u", "1000", tier.image, PYTHON, "-c", code) as screen:
        assert screen.code() == 0, screen.shown
    assert b"True" in screen.shown


def test_keys_go_to_the_container(tier: Tier) -> None:
    """Ctrl-C ends what is in the foreground there, Ctrl-Z stops it, Ctrl-D ends the shell; its code is the command's."""
    with shell(tier) as screen:
        assert screen.is_raw
        screen.type(b"sleep 1000; echo code $?\r")
        screen.see(rb"code \$\?\r\n")
        time.sleep(0.3)
        screen.type(b"\x03")
        screen.see(rb"code 130\r\n|[#$] ")
        screen.type(b"sleep 1000\r")
        screen.see(rb"sleep 1000\r\n")
        time.sleep(0.3)
        screen.type(b"\x1a")
        screen.see(rb"(?s)(?:Stopped|Suspended).*[#$] ")
        screen.type(b"fg\r")
        screen.see(rb"fg\r\nsleep 1000\r\n")
        time.sleep(0.3)
        screen.type(b"\x03")
        screen.see(rb"\^C\r\n[#$] ")
        screen.type(b"(exit 7)\r")
        screen.see(rb"exit 7\)\r\n[#$] ")
        screen.type(b"\x04")
        assert screen.code() == 7, screen.shown
        assert screen.is_as_before
    with shell(tier) as screen:
        screen.type(b"exit 23\r")
        assert screen.code() == 23


def test_size_follows_the_window(tier: Tier) -> None:
    """Who is in the foreground is told by SIGWINCH when the person's window has changed, and finds the new size."""
    code = (
        "import fcntl, os, signal, struct\n"
        "def told(*_): os.write(1, b'now %d %d.' % struct.unpack('4H', fcntl.ioctl(0, 0x5413, bytes(8)))[:2])\n"
        "signal.signal(signal.SIGWINCH, told)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    with at_terminal(tier, "run", "-it", tier.image, PYTHON, "-c", code) as screen:
        screen.see(rb"ready")
        screen.resize(50, 132)
        screen.see(rb"now 50 132\.")
        screen.resize(1, 1)
        screen.see(rb"now 1 1\.")
        screen.type(b"\x03")
        assert screen.code() == 130, "killed by SIGINT, as a shell would say it"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
@OWN_TIER
def test_terminal_is_restored_by_every_end(tier: Tier, number: signal.Signals) -> None:
    """A signal to the person's command gives the terminal back and ends the container."""
    with shell(tier, "--name", "ended", "--rm") as screen:
        assert screen.is_raw
        os.kill(screen.process.pid, number)
        assert screen.code() == {signal.SIGINT: 130}.get(number, 128 + number), screen.shown
        assert screen.is_as_before
    wait_until(lambda: not tier.driver.call("containers"), what="the container is over")


@pytest.mark.parametrize("nohup", [False, True], ids=["", "nohup"])
@OWN_TIER
def test_closed_window_ends_the_container(tier: Tier, nohup: bool) -> None:
    """When the connection to the person is cut, the container ends with it, even if SIGHUP is ignored."""
    with shell(tier, "--name", "cut", "--rm", nohup=nohup) as screen:
        screen.hang_up()
        screen.process.wait(20)
    wait_until(lambda: not tier.driver.call("containers"), what="the container is over")


@OWN_TIER
def test_failure_to_start_leaves_the_terminal_alone(tier: Tier) -> None:
    """A command that is not there gives its code, and the terminal was never raw."""
    with at_terminal(tier, "run", "-it", tier.image, "no-such-command") as screen:
        assert screen.code() == 127
        assert b"no-such-command" in screen.shown
        assert screen.is_as_before


@OWN_TIER
def test_terminal_without_input(tier: Tier) -> None:
    """With -t alone the command has a terminal and nobody types on it; Ctrl-C is the person's own."""
    with at_terminal(tier, "run", "-t", tier.image, "sh", "-c", "test -t 0 && echo has one; sleep 1000") as screen:
        screen.see(rb"has one\r+\n")
        assert screen.is_as_before
        screen.type(b"\x03")
        assert screen.code() == 130


@OWN_TIER
def test_detaching_is_refused_in_words(tier: Tier) -> None:
    """A container that was started here cannot go on without this command, says so, and goes on with it."""
    with shell(tier) as screen:
        screen.type(b"\x10")
        screen.type(b"\x11")
        screen.see(rb"ends with this command")
        screen.type(b"echo still here\r")
        screen.see(rb"still here\r\n")
        screen.type(b"exit\r")
        assert screen.code() == 0
    with at_terminal(tier, "run", "-it", "--detach-keys", "x,y", tier.image, "sh", "-i") as screen:
        screen.see(rb"[#$] ")
        screen.type(b"\x10\x11echo xz y\r")
        screen.see(rb"xz y\r\n")
        screen.type(b"xy")
        screen.see(rb"ends with this command")
        screen.type(b"\x03")
        screen.see(rb"[#$] ")
        screen.type(b"exit\r")
        screen.code()


def test_command_that_joins_has_a_terminal(tier: Tier) -> None:
    """With exec -it too: jobs, size, code; the container's console is not its."""
    with working(tier):
        for _ in range(2):
            with at_terminal(tier, "exec", "-it", "work", PYTHON, "-c", LOOK, size=(33, 101)) as screen:
                assert screen.code() == 0, screen.shown
            assert screen.shown.replace(b"\r\n", b"\n") == (
                b"/dev/pts/0 33 101 xterm True\nheld ['/dev/pts/0'] True False\nothers 0o620\n"
            )
        with at_terminal(tier, "exec", "-it", "work", "sh", "-i") as screen:
            screen.see(rb"[#$] ")
            assert screen.is_raw
            screen.type(b"sleep 1000\r")
            time.sleep(0.3)
            screen.type(b"\x03")
            screen.type(b"exit 9\r")
            assert screen.code() == 9, screen.shown
            assert screen.is_as_before
        with at_terminal(tier, "exec", "-it", "work", "sh", "-i") as screen:
            screen.see(rb"[#$] ")
            screen.type(b"sleep 4321 &\r")
            screen.see(rb"[#$] ")
            os.kill(screen.process.pid, signal.SIGTERM)
            assert screen.code() == 143
        wait_until(lambda: not _running(tier, "4321"), what="what it started has ended with it")


def _running(tier: Tier, word: str) -> bool:
    return any(word in str(each.command) for each in tier.driver.call("top", "work"))


def test_container_is_started_again_with_its_terminal(tier: Tier) -> None:
    """What was run with a terminal gets one whenever it is started; the window's size is that of now."""
    with at_terminal(tier, "run", "-it", "--name", "again", tier.image, PYTHON, "-c", LOOK) as screen:
        assert screen.code() == 0, screen.shown
    try:
        with at_terminal(tier, "start", "-ai", "again", size=(40, 90)) as screen:
            assert screen.code() == 0, screen.shown
        assert b"/dev/pts/0 40 90 xterm True" in screen.shown
        logged = b"".join(line.data for line in tier.driver.call("logs", "again"))
        assert logged.count(b"console True") == 2
    finally:
        tier.driver.call("remove_container", "again")


def test_output_of_a_terminal_is_one_stream(tier: Tier) -> None:
    """Without a person: both outputs come as the terminal shows them, and all of it comes."""
    result = tier.run(script="echo out; echo err >&2; seq 20000", terminal=True)
    assert result.ok
    assert result.stdout == "out\r\nerr\r\n" + "".join(f"{number}\r\n" for number in range(1, 20001))
    assert result.stderr == ""


@OWN_TIER
def test_input_that_is_no_terminal_is_refused(tier: Tier) -> None:
    """Docker's "the input device is not a TTY", before anything is started."""
    before = tier.containers()
    with pytest.raises(Raised, match="not a terminal") as caught:
        tier.run("cat", stdin=b"x", terminal=True)
    assert caught.value.is_a(InvalidOption)
    assert tier.containers() == before


@OWN_TIER
def test_rooms_made_ahead_serve_terminals(tier: Tier) -> None:
    """A run with a terminal and one without never get each other's room."""
    for _ in range(3):
        assert tier.run("sh", "-c", "test -t 0; echo $?", terminal=True).stdout == "0\r\n"
        time.sleep(0.2)
        assert tier.run("sh", "-c", "test -t 0; echo $?").stdout == "1\n"
        time.sleep(0.2)


@OWN_TIER
def test_terminal_of_a_read_only_container(tier: Tier) -> None:
    """The console is not a file of the image's, so a container that cannot be written to has it too."""
    result = tier.run("sh", "-c", "test -c /dev/console && test -t 1", terminal=True, read_only=True)
    assert result.ok, result


@OWN_TIER
def test_input_at_a_terminal_without_one_inside(tier: Tier) -> None:
    """With -i alone lines go through a pipe as they are typed, output is not held up, and Ctrl-D is their end."""
    script = "echo first; read line; echo got $line; test -t 0; echo $?; cat"
    with at_terminal(tier, "run", "-i", tier.image, "sh", "-c", script) as screen:
        screen.see(rb"first\r\n")
        assert screen.is_as_before
        screen.type(b"hello\r")
        screen.see(rb"got hello\r\n1\r\n")
        screen.type(b"more\r")
        screen.see(rb"more\r\nmore\r\n")
        screen.type(b"\x04")
        assert screen.code() == 0


@OWN_TIER
def test_time_limit_restores_the_terminal(tier: Tier) -> None:
    """A command at a terminal is ended like any other when its time is over."""
    with shell(tier, "--timeout", "1") as screen:
        assert screen.code() == 137
        assert screen.is_as_before
        assert b"time limit" in screen.shown


def test_driver_can_be_interrupted(tier: Tier) -> None:
    """The interrupt of a run with a terminal that nobody types on ends all of it."""
    with tier.spawn() as driver:
        _interrupted(driver)


def _interrupted(driver: Driver) -> None:
    driver.begin_run(script="trap '' HUP; echo ready; sleep 1000", terminal=True)
    driver.wait_for_output(b"ready")
    driver.interrupt()
    assert driver.finish()["reason"] == "interrupted"


@contextlib.contextmanager
def behind(tier: Tier, *words: str) -> Iterator[None]:
    """Have a container `shell` with a terminal run on behind; it is ended and removed afterwards."""
    with at_terminal(tier, "run", "-dit", "--name", "shell", tier.image, *(words or ("sh", "-i"))) as screen:
        assert screen.code() == 0, screen.shown
    try:
        yield
    finally:
        tier.driver.call("remove_container", "shell", force=True)


def test_container_that_runs_on_is_left_and_come_back_to(tier: Tier) -> None:
    """Ctrl-P Ctrl-Q leaves it as it is, the next one who attaches goes on; its end and its code are told."""
    with behind(tier):
        with at_terminal(tier, "attach", "shell", size=(33, 101)) as screen:
            wait_until(lambda: screen.is_raw, what="the terminal is raw")
            screen.type(b"kept=still; " + LOOK_SIZE + b"\r")
            screen.see(rb"size 33 101\r\n")
            screen.type(b"\x10\x11")
            assert screen.code() == 0
            assert b"runs on" in screen.shown
            assert screen.is_as_before
        with at_terminal(tier, "attach", "--detach-keys", "ctrl-a", "shell", size=(20, 70)) as screen:
            wait_until(lambda: screen.is_raw, what="the terminal is raw")
            screen.type(b"echo $kept here; " + LOOK_SIZE + b"\r")
            screen.see(rb"still here\r\nsize 20 70\r\n")
            screen.resize(40, 120)
            screen.type(LOOK_SIZE + b"\r")
            screen.see(rb"size 40 120\r\n")
            screen.type(b"sleep 1000\r")
            screen.see(rb"sleep 1000\r\n")
            time.sleep(0.3)
            screen.type(b"\x03")
            screen.see(rb"\^C")
            screen.type(b"\x01")
            assert screen.code() == 0
            assert screen.is_as_before
        with at_terminal(tier, "attach", "shell") as screen:
            wait_until(lambda: screen.is_raw, what="the terminal is raw")
            screen.type(b"exit 5\r")
            assert screen.code() == 5, screen.shown
            assert screen.is_as_before
        with at_terminal(tier, "start", "-ai", "shell") as screen:
            wait_until(lambda: screen.is_raw, what="the terminal is raw")
            screen.type(b"echo again $kept; " + LOOK_SIZE + b"\r")
            screen.see(rb"again\r\nsize 24 80\r\n")
            screen.type(b"exit 0\r")
            assert screen.code() == 0, screen.shown


LOOK_SIZE = (
    f'{PYTHON} -c \'import fcntl,struct; print("size", *struct.unpack("4H", fcntl.ioctl(0, 0x5413, bytes(8)))[:2])\''
).encode()


@OWN_TIER
def test_closed_window_leaves_what_runs_on(tier: Tier) -> None:
    """Only who attached has gone."""
    with behind(tier):
        with at_terminal(tier, "attach", "shell") as screen:
            wait_until(lambda: screen.is_raw, what="the terminal is raw")
            screen.hang_up()
            screen.process.wait(20)
        (summary,) = tier.driver.call("containers")
        assert summary.state == "running"


def _typed_and_seen(typing: Screen, looking: Screen) -> bool:
    """Whether what is typed at one screen is shown at the other within a second."""
    typing.type(b"echo seen by both\r")
    return looking.sees(rb"seen by both\r+\n", within=1)


@OWN_TIER
def test_terminal_is_not_typed_on_by_a_pipe(tier: Tier) -> None:
    """Who attaches without a terminal is told so; what is written is shown nevertheless where no input is wanted."""
    with behind(tier):
        with (
            at_terminal(tier, "attach", "--no-stdin", "shell") as screen,
            at_terminal(tier, "attach", "shell") as typing,
        ):
            wait_until(lambda: typing.is_raw, what="the terminal is raw")
            # what is shown before it has attached, it does not see
            assert any(_typed_and_seen(typing, screen) for _ in range(20)), screen.shown
            typing.see(rb"seen by both\r\n")
            assert screen.is_as_before
        command = [
            "-c",
            "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:], stdin=subprocess.DEVNULL).returncode)",
        ]
        variables = {**os.environ, "NBCONTAINER_ROOT": tier.store}
        with Screen(
            [*command, sys.executable, "-m", "nbcontainer", "attach", "shell"], environment=variables
        ) as screen:
            assert screen.code() != 0
            assert b"none to type on it" in screen.shown


@OWN_TIER
def test_ipython_at_a_terminal_lends_its_own(tier: Tier, tmp_path: Path) -> None:
    """A line with -it takes the terminal that the person sits at, and gives it back to IPython."""
    variables = {**os.environ, "NBCONTAINER_ROOT": tier.store, "IPYTHONDIR": str(tmp_path), "TERM": "dumb"}
    with Screen(
        ["-m", "IPython", "--simple-prompt", "--no-banner", "--no-confirm-exit"], environment=variables
    ) as screen:
        screen.see(rb"In \[1\]: ")
        screen.type(b"%load_ext nbcontainer\r")
        screen.see(rb"In \[2\]: ")
        screen.type(b"%container run -it " + tier.image.encode() + b" sh\r")
        wait_until(lambda: screen.is_raw, what="the terminal is raw")
        screen.type(b"test -t 0 && echo at a terminal; exit\r")
        screen.see(rb"at a terminal\r\n")
        screen.see(rb"In \[3\]: ")
        screen.type(b"%container run -i " + tier.image.encode() + b" sh -c 'read x; echo got $x'\r")
        screen.type(b"hello\r")
        screen.see(rb"got hello")
        screen.see(rb"In \[4\]: ")
        screen.type(b"exit\r")
        assert screen.code() == 0
