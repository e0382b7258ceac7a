"""A person runs commands and cells: codes, streams, environment, users, folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import ContainerExit, ContainerStartError, ContainerTimeout, InvalidOption
from nbcontainer.testing.rootfs import PYTHON
from tests.integration.tiers import SECRETS, Raised

if TYPE_CHECKING:
    from tests.integration.tiers import Tier


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("true", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
        ("kill -SEGV $$", 139),
    ],
)
def test_exit_code(tier: Tier, script: str, code: int) -> None:
    """A cell's code is its command's, or 128 + n for signal n."""
    result = tier.run(script=script)
    assert result.exit_code == code
    assert result.reason == ("signalled" if code > 128 and code != 255 else "exited")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["nonesuch"], 127, "'nonesuch' is not found in $PATH"),
        (["/bin/nonesuch"], 127, "'/bin/nonesuch' is not in the image"),
        (["/etc/passwd"], 126, "cannot be executed: Permission denied"),
        (["/etc"], 126, "cannot be executed: Permission denied"),
        ([""], 127, "the command is empty"),
    ],
)
def test_command_cannot_start(tier: Tier, argv: list[str], code: int, words: str) -> None:
    """A command that is missing or is no program raises with docker's code and a sentence."""
    with pytest.raises(Raised, match="tiny") as raised:
        tier.run(*argv)
    assert raised.value.is_a(ContainerStartError)
    assert raised.value.attributes["exit_code"] == code
    assert words in str(raised.value)


def test_no_shebang_interpreter(tier: Tier) -> None:
    """A cell for an interpreter that the image lacks says which one."""
    with pytest.raises(Raised, match="'/usr/bin/ruby' is not in the image") as raised:
        tier.run(script="#!/usr/bin/ruby\nputs 1\n")
    assert raised.value.attributes["exit_code"] == 127


def test_streams_apart(tier: Tier) -> None:
    """Standard output and standard error arrive apart, whole and in order each."""
    result = tier.run(script="for i in $(seq 200); do echo out $i; echo err $i >&2; done")
    assert result.stdout == "".join(f"out {i}\n" for i in range(1, 201))
    assert result.stderr == "".join(f"err {i}\n" for i in range(1, 201))


def test_much_output(tier: Tier) -> None:
    """Output of many pipes' size on both streams loses no byte."""
    result = tier.run(script="head -c 13107200 /dev/zero & head -c 6553600 /dev/zero >&2; wait")
    assert (len(result.stdout_bytes), len(result.stderr_bytes)) == (200 * 65536, 100 * 65536)


def test_no_final_newline_and_bytes(tier: Tier) -> None:
    """Bytes that are not text, and a last line without an end, arrive as they are."""
    assert tier.run(script=r"printf 'a\377\0b'").stdout_bytes == b"a\xff\0b"


def test_live_output(tier: Tier) -> None:
    """What a command writes is told while it still runs."""
    tier.driver.begin_run(script="echo early; read answer; echo $answer", stdin=b"", live=True)
    tier.driver.wait_for_output(b"early\n")
    assert tier.driver.finish()["exit_code"] == 0


@pytest.mark.parametrize("size", [0, 1, 65536, 3_000_000])
def test_stdin(tier: Tier, size: int) -> None:
    """Standard input arrives whole and ends; a command that is not fed gets an end at once."""
    assert tier.run("wc", "-c", stdin=b"x" * size).stdout.strip() == str(size)
    assert tier.run("cat").stdout == ""


def test_stdin_unread(tier: Tier) -> None:
    """A command that does not read its input ends all the same."""
    assert tier.run("true", stdin=b"x" * 3_000_000).ok


def test_check(tier: Tier) -> None:
    """With check, a bad end raises: image and code, then the last lines of standard error."""
    with pytest.raises(Raised) as raised:
        tier.run(script="seq 100 >&2; exit 3", check=True)
    assert raised.value.is_a(ContainerExit)
    assert raised.value.attributes["returncode"] == 3
    assert str(raised.value).splitlines() == [f"{tier.short}: exit code 3", *(str(i) for i in range(91, 101))]


def test_shebang_and_shell(tier: Tier) -> None:
    """A cell is run by its #! line, else by the shell asked for, else by /bin/sh."""
    assert tier.run(script=f"#!{PYTHON} -I\nimport sys; print(sys.flags.isolated)").stdout == "1\n"
    assert tier.run(script="print(1 + 1)", shell=[PYTHON]).stdout == "2\n"
    assert tier.run(script="echo $0").stdout == "/dev/cell\n"


def test_large_script(tier: Tier) -> None:
    """A cell of a megabyte, longer than any datagram, runs."""
    assert tier.run(script=": " + "x" * 1_000_000 + "\necho end").stdout == "end\n"


def test_environment(tier: Tier) -> None:
    """The environment is the image's, then ours over it; nothing of the machine's is inherited."""
    lines = tier.run("env", environment=("OVERRIDDEN=mine", "EMPTY=", "ODD=a=b c")).stdout.splitlines()
    names = {line.partition("=")[0] for line in lines}
    assert {"FROM_IMAGE=yes", "OVERRIDDEN=mine", "EMPTY=", "ODD=a=b c", "PATH=/bin:/usr/bin", "HOME=/root"} <= set(
        lines
    )
    assert names <= {"FROM_IMAGE", "OVERRIDDEN", "EMPTY", "ODD", "PATH", "HOME", "HOSTNAME", "APT_CONFIG"}
    assert not names & set(SECRETS)


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0:0:root:/root"),
        ("0", "0:0:root:/root"),
        ("alice", "1000:1000:alice wheel staff:/home/alice"),
        ("1000", "1000:1000:alice wheel staff:/home/alice"),
        ("1000:1", "1000:1:daemon:/home/alice"),
        ("alice:staff", "1000:50:staff:/home/alice"),
        ("4242", "4242:0:root:/"),
        ("4242:4343", "4242:4343:4343:/"),
    ],
)
def test_user(tier: Tier, user: str, expected: str) -> None:
    """A user is a name or number of the image's passwd, with its groups unless one is given, and its home."""
    script = 'echo "$(id -u):$(id -g):$(id -Gn 2>/dev/null):$HOME"'
    if not tier.has_users and not expected.startswith("0:0"):
        with pytest.raises(Raised, match="cannot be used: the id is outside this machine's range") as raised:
            tier.run(script=script, user=user)
        assert raised.value.attributes["exit_code"] == 126
        return
    result = tier.run(script=script, user=user)
    assert result.stdout.strip() == expected or result.stdout.strip().startswith(
        expected.split(":root:", maxsplit=1)[0]
    )
    groups = result.stdout.split(":")[2].split()
    assert sorted(groups) == sorted(expected.split(":")[2].split()) or not tier.has_users


@pytest.mark.parametrize(
    ("user", "words"), [("bob", "'bob' is not in the image's /etc/passwd"), ("0:bobs", "'bobs' is not in")]
)
def test_unknown_user(tier: Tier, user: str, words: str) -> None:
    """A user or group that the image does not have is named."""
    with pytest.raises(Raised, match=words):
        tier.run("true", user=user)


def test_working_directory(tier: Tier) -> None:
    """The directory asked for is made when it is missing."""
    assert tier.run("pwd").stdout == "/\n"
    assert tier.run("pwd", working_directory="/new/deep/place").stdout == "/new/deep/place\n"
    with pytest.raises(Raised, match="must be absolute") as raised:
        tier.run("pwd", working_directory="relative")
    assert raised.value.is_a(InvalidOption)
    with pytest.raises(Raised, match="working directory /etc/passwd is a file in this image"):
        tier.run("pwd", working_directory="/etc/passwd")


def test_hostname(tier: Tier) -> None:
    """The host name is the one asked for, everywhere, else the start of the container's id."""
    script = "cat /etc/hostname /proc/sys/kernel/hostname; uname -n; echo $HOSTNAME"
    assert tier.sh(script, hostname="lab.example").stdout == "lab.example\n" * 4
    result = tier.run("uname", "-n")
    assert result.stdout.strip() == result.id[:12]
    assert "localhost" in tier.sh("cat /etc/hosts").stdout


def test_read_only(tier: Tier) -> None:
    """A read-only container can write to /dev/shm and nowhere in the image."""
    result = tier.run(script="echo x > /dev/shm/ok && echo x > /tmp/no", read_only=True)
    assert result.exit_code != 0
    assert "Read-only file system" in result.stderr
    assert "/tmp/no" in result.stderr


def test_fresh_each_time(tier: Tier) -> None:
    """What a container writes is in no other one."""
    assert tier.sh("echo x > /root/x; rm /bin/wc; ls /root").stdout == "x\n"
    assert tier.sh("ls /root; ls /bin/wc").stdout == "/bin/wc\n"


def test_entrypoint(tier: Tier) -> None:
    """The entrypoint asked for comes before the command."""
    assert tier.run("b", "c", entrypoint=("/bin/echo", "a")).stdout == "a b c\n"


def test_timeout(tier: Tier) -> None:
    """At the time limit every process is ended, also those that ignore signals, and the result says so."""
    script = (
        "trap '' TERM INT; setsid sh -c 'trap \"\" TERM INT; while :; do sleep 1; done' & while :; do sleep 1; done"
    )
    result = tier.run(script=script, timeout=0.3)
    assert (result.reason, result.exit_code) == ("timeout", 137)
    assert "time limit" in result.detail
    with pytest.raises(Raised, match="time limit") as raised:
        tier.run(script=script, timeout=0.3, check=True)
    assert raised.value.is_a(ContainerTimeout)


def test_network_none(tier: Tier) -> None:
    """Without a network there is a loopback that works and nothing else."""
    program = (
        "import json, socket\n"
        "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close()\n"
        "print(json.dumps([name for _, name in socket.if_nameindex()]))\n"
    )
    assert json.loads(tier.run(script=program, shell=[PYTHON]).stdout) == ["lo"]


def test_devices(tier: Tier) -> None:
    """The usual devices work for container root: null, zero, random, a terminal, shared memory."""
    script = (
        "echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; echo y > /dev/shm/y; cat /dev/shm/y;"
        " ls -l /dev/pts/ptmx | cut -c1; echo z | cat /dev/stdin"
    )
    assert tier.sh(script).stdout.split() == ["4", "4", "y", "c", "z"]


@pytest.mark.parametrize("user", ["", "alice"])
def test_standard_streams_by_name(tier: Tier, user: str) -> None:
    """A program may open /dev/stdout and /dev/stderr by name, as log settings of many images do."""
    if user and not tier.has_users:
        pytest.skip("needs several ids")
    result = tier.run(script="echo out > /dev/stdout; echo err > /dev/stderr", user=user)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
