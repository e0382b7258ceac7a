"""`cp`, `diff` and `export`, in all three tiers: of containers that run, in whoever's notebook, and of ended ones."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import nbcontainer
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.engine.views import Change
    from tests.integration.tiers import Driver, Tier

_SCRIPT = """\
mkdir -p /out/sub /empty
printf hello > /out/x
ln -s x /out/link
ln /out/x /out/twin
ln -s /out /way
printf deep > /out/sub/deep
chmod 4755 /out/sub/deep
rm /bin/tail
echo changed >> /etc/passwd
"""


@pytest.fixture(params=["ended", "running", "elsewhere"])
def container(request: pytest.FixtureRequest, tier: Tier) -> Iterator[tuple[Driver, str]]:
    """Lend an engine and a container it can reach: ended, running in another notebook's engine, or in its own."""
    if request.param == "ended":
        assert tier.sh(_SCRIPT, name="box").ok
        try:
            yield tier.driver, "box"
        finally:
            tier.driver.call("remove_container", "box")
        return
    with tier.spawn() as keeper:
        keeper.begin_run(script=f"{_SCRIPT}echo ready; sleep 1000", name="box", remove=True)
        keeper.wait_for_output(b"ready")
        try:
            yield tier.driver, "box"
        finally:
            keeper.interrupt()
            keeper.finish()


def changes(found: tuple[Change, ...]) -> list[str]:
    """As docker prints them."""
    return [f"{each.kind} {each.path}" for each in found]


def names(path: Path) -> list[str]:
    """Everything below a folder."""
    return sorted(os.path.relpath(each, path) for each in path.rglob("*"))


def test_out(tier: Tier, container: tuple[Driver, str]) -> None:
    """The table of docker: into a folder, as a new name, over a file, what is in a folder, a link or what it points to."""
    engine, box = container
    here = tier.folder("here")
    engine.call("copy_from", box, "/out", str(here))
    assert names(here) == ["out", "out/link", "out/sub", "out/sub/deep", "out/twin", "out/x"]
    assert (here / "out" / "x").read_text() == "hello"
    assert (here / "out" / "x").stat().st_ino == (here / "out" / "twin").stat().st_ino
    assert (here / "out" / "sub" / "deep").stat().st_mode & 0o7777 == 0o755
    assert (here / "out" / "x").stat().st_uid == here.stat().st_uid
    engine.call("copy_from", box, "out/.", str(here / "new"))
    assert names(here / "new") == ["link", "sub", "sub/deep", "twin", "x"]
    engine.call("copy_from", box, "/out/sub/deep", str(here / "new" / "x"))
    assert (here / "new" / "x").read_text() == "deep"
    engine.call("copy_from", box, "/out/link", str(here))
    assert os.readlink(here / "link") == "x"
    engine.call("copy_from", box, "/out/link", str(here / "target"), follow_link=True)
    assert (here / "target").read_text() == "hello"
    engine.call("copy_from", box, "/way/", str(here / "followed"))
    assert "x" in names(here / "followed")
    engine.call("copy_from", box, "/way", str(here))
    assert os.readlink(here / "way") == "/out"
    result = engine.call("copy_from", box, "/empty", str(here))
    assert (result.entries, result.bytes, result.notices) == (1, 0, ())


def test_out_refused(tier: Tier, container: tuple[Driver, str]) -> None:
    """What cannot be is said in one sentence, with the path, and nothing is made here."""
    engine, box = container
    here = tier.folder("here")
    (here / "file").write_text("kept")
    for source, target, sentence in (
        ("/nonesuch", ".", "nonesuch' does not exist"),
        ("/out/x/", ".", "is a file, not a folder"),
        ("/out/x/y", ".", "lies under something that is no folder"),
        ("/out/x", "nowhere/", "does not exist; make it first"),
        ("/out/x", "nowhere/y", "does not exist"),
        ("/out", "file", "a folder cannot be copied onto it"),
        ("/out/x", "file/", "is a file, not a folder"),
    ):
        with pytest.raises(Raised, match=sentence) as caught:
            engine.call("copy_from", box, source, str(here / target) + ("/" if target.endswith("/") else ""))
        assert caught.value.is_ours, source
    assert names(here) == ["file"]
    assert (here / "file").read_text() == "kept"


def test_in(tier: Tier, container: tuple[Driver, str]) -> None:
    """The same table the other way; copies belong to the container's root, and links on the way are the container's."""
    engine, box = container
    here = tier.folder("here")
    (here / "data").mkdir()
    (here / "data" / "a.csv").write_text("1,2\n")
    (here / "data" / "l").symlink_to("/etc/passwd")
    engine.call("copy_to", str(here / "data"), box, "/out")
    engine.call("copy_to", str(here / "data/."), box, "/fresh")
    engine.call("copy_to", str(here / "data" / "a.csv"), box, "way/sub")
    engine.call("copy_to", str(here / "data" / "a.csv"), box, "/out/link")
    engine.call("copy_to", str(here / "data" / "l"), box, "/out/")
    engine.call("copy_to", str(here / "data" / "l"), box, "/out/words", follow_link=True)
    back = tier.folder("back")
    engine.call("copy_from", box, "/out/.", str(back))
    assert (back / "data" / "a.csv").read_text() == "1,2\n"
    assert (back / "sub" / "a.csv").read_text() == "1,2\n"
    assert os.readlink(back / "link") == "x"
    assert (back / "x").read_text() == "1,2\n"
    assert (back / "twin").read_text() == "hello"
    assert os.readlink(back / "l") == "/etc/passwd"
    assert "root" in (back / "words").read_text()
    found = changes(engine.call("diff", box))
    assert {"A /fresh", "A /fresh/a.csv", "A /out/data", "A /out/sub/a.csv"} <= set(found)


def test_in_refused(tier: Tier, container: tuple[Driver, str]) -> None:
    """What cannot be is said in one sentence, and nothing is made there."""
    engine, box = container
    here = tier.folder("here")
    (here / "file").write_text("1")
    before = changes(engine.call("diff", box))
    for source, target, sentence in (
        ("nonesuch", "/", "does not exist on this machine"),
        ("file", "/nowhere/", "does not exist; make it first"),
        ("file", "/nowhere/y", "does not exist"),
        ("file/", "/out", "is a file, not a folder"),
        (".", "/etc/passwd", "a folder cannot be copied onto it"),
        ("file", "/etc/passwd/", "is a file, not a folder"),
    ):
        with pytest.raises(Raised, match=sentence) as caught:
            engine.call("copy_to", os.path.join(here, source), box, target)
        assert caught.value.is_ours, source
    (here / "x").mkdir()
    with pytest.raises(Raised, match="no folder"):
        engine.call("copy_to", str(here / "x"), box, "/out")
    assert changes(engine.call("diff", box)) == before


def test_diff(tier: Tier, container: tuple[Driver, str]) -> None:
    """What the container did, and nothing of what its start did."""
    engine, box = container
    assert changes(engine.call("diff", box)) == [
        "C /bin", "D /bin/tail", "A /empty", "C /etc", "C /etc/passwd", "A /out", "A /out/link", "A /out/sub",
        "A /out/sub/deep", "A /out/twin", "A /out/x", "A /way",
    ]  # fmt: skip
    assert tier.run("true", name="idle").ok
    try:
        assert engine.call("diff", "idle") == ()
    finally:
        tier.driver.call("remove_container", "idle")


def test_export(tier: Tier, container: tuple[Driver, str]) -> None:
    """The tar is the whole root as the container has it, with its owners."""
    engine, box = container
    here = tier.folder("here")
    result = engine.call("export", box, str(here / "root.tar"))
    assert names(here) == ["root.tar"]
    with tarfile.open(here / "root.tar") as archive:
        found = {member.name: member for member in archive.getmembers()}
        assert result.entries == len(found)
        assert {"bin/sh", "etc/passwd", "out/sub/deep", "way", "empty"} <= found.keys()
        assert "bin/tail" not in found
        assert found["out/sub/deep"].mode == 0o4755
        assert found["home/alice"].uid == (1000 if tier.has_users else 0)
        assert not [name for name in found if name.startswith(("proc/", "sys/", "dev/"))]
    with pytest.raises(Raised, match="is a folder"):
        engine.call("export", box, str(here))


def test_owners(tier: Tier) -> None:
    """Without -a the copies in a container are root's; with it they have the numbers they had."""
    here = tier.folder("here")
    (here / "f").write_text("1")
    if tier.privileged:
        os.chown(here / "f", 1000, 1000)
    assert tier.run("mkdir", "/d", name="box").ok
    try:
        tier.driver.call("copy_to", str(here / "f"), "box", "/d/plain")
        if tier.has_users:
            with contextlib.suppress(Raised):  # a user's own number may lie beyond what the container has
                tier.driver.call("copy_to", str(here / "f"), "box", "/d/kept", archive=True)
        tier.driver.call("export", "box", str(here / "root.tar"))
        with tarfile.open(here / "root.tar") as archive:
            assert archive.getmember("d/plain").uid == 0
            if tier.privileged:
                assert archive.getmember("d/kept").uid == 1000
    finally:
        tier.driver.call("remove_container", "box")


def test_archive_out(tier: Tier) -> None:
    """Root may keep owners and set-user-id bits of what comes out; others are told that they cannot."""
    here = tier.folder("here")
    assert tier.run("chown", "33:33", "/home/alice", name="box").ok
    try:
        if tier.privileged:
            tier.driver.call("copy_from", "box", "/home/alice", str(here), archive=True)
            assert (here / "alice").stat().st_uid == 33
        elif tier.has_users:
            with pytest.raises(Raised, match="only root may give files away; leave -a out"):
                tier.driver.call("copy_from", "box", "/home/alice", str(here), archive=True)
    finally:
        tier.driver.call("remove_container", "box")


def test_volumes_and_memory(tier: Tier) -> None:
    """A running container is copied as it sees itself: with its volumes and what is only in memory, to and fro."""
    shared, here = tier.folder("shared"), tier.folder("here")
    (shared / "theirs").write_text("of the host")
    with tier.spawn() as keeper:
        script = "printf shm > /dev/shm/word; echo ready; sleep 1000"
        keeper.begin_run(script=script, name="box", remove=True, volumes=[(shared, "/data", "rw")])
        keeper.wait_for_output(b"ready")
        tier.driver.call("copy_from", "box", "/data", str(here))
        assert (here / "data" / "theirs").read_text() == "of the host"
        tier.driver.call("copy_from", "box", "/dev/shm/word", str(here))
        assert (here / "word").read_text() == "shm"
        tier.driver.call("copy_to", str(here / "word"), "box", "/data/")
        assert (shared / "word").read_text() == "shm"
        assert (shared / "word").stat().st_uid == shared.stat().st_uid
        tier.driver.call("copy_to", str(here / "word"), "box", "/etc/hosts")
        tier.driver.call("copy_from", "box", "/etc/hosts", str(here))
        assert (here / "hosts").read_text() == "shm"
        with pytest.raises(Raised, match="made up by the kernel"):
            tier.driver.call("copy_from", "box", "/proc/cpuinfo", str(here))
        keeper.interrupt()
        keeper.finish()


def test_read_only_container(tier: Tier) -> None:
    """A container with a read-only root takes no files, and says so."""
    here = tier.folder("here")
    (here / "f").write_text("1")
    with tier.spawn() as keeper:
        keeper.begin_run(script="echo ready; sleep 1000", name="box", remove=True, read_only=True)
        keeper.wait_for_output(b"ready")
        with pytest.raises(Raised, match="read-only file system"):
            tier.driver.call("copy_to", str(here / "f"), "box", "/f")
        keeper.interrupt()
        keeper.finish()


def test_throw_away_container(tier: Tier) -> None:
    """A container without a name can be reached by its id while it runs, and not after."""
    with tier.spawn() as keeper:
        keeper.begin_run(script="echo x > /x; echo ready; sleep 1000")
        keeper.wait_for_output(b"ready")
        (row,) = tier.driver.call("containers")
        here = tier.folder("here")
        tier.driver.call("copy_from", row.id[:12], "/x", str(here))
        assert (here / "x").read_text() == "x\n"
        keeper.interrupt()
        keeper.finish()
    with pytest.raises(Raised, match="no container"):
        tier.driver.call("diff", row.id[:12])


def test_what_is_no_file(tier: Tier) -> None:
    """Fifos are copied without being opened; sockets and devices are left out and said to be."""
    here = tier.folder("here")
    with tier.spawn() as keeper:
        bound = "import socket; socket.socket(socket.AF_UNIX).bind('/d/socket')"
        script = f'mkdir /d; mkfifo /d/fifo; /opt/python/bin/python3 -c "{bound}"; ln -s socket /d/way; echo ready; sleep 1000'
        keeper.begin_run(script=script, name="box", remove=True)
        keeper.wait_for_output(b"ready")
        result = tier.driver.call("copy_from", "box", "/d", str(here))
        assert (here / "d" / "fifo").is_fifo()
        assert names(here / "d") == ["fifo", "way"]
        assert result.notices == ("d/socket was left out: it is a socket",)
        for path, kind in (("/d/socket", "a socket"), ("/dev/null", "a device")):
            with pytest.raises(Raised, match=f"is {kind}, which cannot be copied"):
                tier.driver.call("copy_from", "box", path, str(here))
        keeper.interrupt()
        keeper.finish()
    with socket.socket(socket.AF_UNIX) as ours:
        ours.bind(str(here / "mine"))
    assert tier.run("true", name="box").ok
    try:
        result = tier.driver.call("copy_to", f"{here}/.", "box", "/tmp")
        assert result.notices == ("root/mine was left out: it is a socket",) or "mine was left out" in result.notices[0]
    finally:
        tier.driver.call("remove_container", "box")


def test_awkward_names(tier: Tier, container: tuple[Driver, str]) -> None:
    """Names with newlines, of 255 bytes, that are no text, and ``..`` in a path."""
    engine, box = container
    here = tier.folder("here")
    awkward = ["new\nline", "n" * 255, "\udcff\udcfe", "a=b", "-", "x:y", " "]
    for name in awkward:
        (here / name).write_text(name.encode("utf-8", "surrogateescape").hex())
    engine.call("copy_to", str(here), box, "/in")
    back = tier.folder("back")
    engine.call("copy_from", box, "/in/.", str(back))
    assert names(back) == sorted(awkward)
    for name in awkward:
        single = tier.folder("single")
        engine.call("copy_from", box, f"/in/{name}", str(single))
        assert (single / name).read_text() == (here / name).read_text()
    assert {f"A /in/{name}" for name in awkward} <= set(changes(engine.call("diff", box)))
    engine.call("copy_from", box, "/in/../../../out/x", str(here))
    assert (here / "x").read_text() == "hello"
    engine.call("copy_from", box, "..", str(here / "whole"))
    assert (here / "whole" / "out" / "x").read_text() == "hello"


def nbcontainer_as(tier: Tier, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """The terminal's command, as the tier's person."""
    user = tier.user
    acting: dict[str, Any] = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    environment = {"PATH": os.environ["PATH"], "HOME": tier.home, "NBCONTAINER_ROOT": tier.store}
    if user is None:
        environment["PYTHONPATH"] = str(Path(nbcontainer.__file__).parent.parent)
    argv = [user.python if user else sys.executable, "-m", "nbcontainer", *words]
    return subprocess.run(argv, input=data, capture_output=True, check=False, cwd=tier.home, env=environment, **acting)


def test_streams_in_a_terminal(tier: Tier) -> None:
    """``-`` is a tar on standard output, and on standard input, compressed or not."""
    assert tier.sh("mkdir -p /out/sub; echo hi > /out/sub/x; mkdir /real; ln -s /real /lib2", name="box").ok
    try:
        done = nbcontainer_as(tier, "cp", "box:/out", "-")
        assert (done.returncode, done.stderr) == (0, b"")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert archive.getnames() == ["out", "out/sub", "out/sub/x"]
        done = nbcontainer_as(tier, "cp", "box:/out/.", "-")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert archive.getnames() == [".", "./sub", "./sub/x"]
        for mode in ("w", "w:gz"):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode=mode) as archive:
                info = tarfile.TarInfo(f"lib2/in-{mode[-1]}")
                info.size, info.uid = 3, 1000
                archive.addfile(info, io.BytesIO(b"abc"))
            done = nbcontainer_as(tier, "cp", "-", "box:/", data=buffer.getvalue())
            assert (done.returncode, done.stderr) == (0, b""), done
        done = nbcontainer_as(tier, "diff", "box")
        assert b"A /real/in-w\nA /real/in-z\n" in done.stdout
        done = nbcontainer_as(tier, "export", "box")
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert archive.getmember("real/in-w").uid == 0
        for words, data, sentence in (
            (("cp", "-", "box:/etc/passwd"), buffer.getvalue(), b"is no folder"),
            (("cp", "-", "box:/"), b"not a tar" * 100, b"the tar archive cannot be unpacked"),
            (("cp", "-", "box:/"), buffer.getvalue()[:60], b"ends too early"),
            (("cp", "box:/nonesuch", "-"), b"", b"does not exist"),
            (("cp", "a", "b"), b"", b"neither side is in a container"),
            (("cp", "box:/a", "box:/b"), b"", b"both sides are in containers"),
        ):
            done = nbcontainer_as(tier, *words, data=data)
            assert done.returncode in {1, 2}, words
            assert sentence in done.stderr, (words, done.stderr)
            assert done.stderr.count(b"\n") == 1
    finally:
        tier.driver.call("remove_container", "box")


def test_interrupted_copy(tier: Tier) -> None:
    """Ctrl-C in the middle of a copy ends it, leaves no process, and lets the container be used again."""
    here = tier.folder("here")
    (here / "large").write_bytes(b"x" * (100 << 20))
    (here / "small").write_bytes(b"x")
    assert tier.run("true", name="box").ok
    try:
        with tier.spawn() as other:
            assert other.call("diff", "box") == ()
            other.begin("call", method="copy_to", arguments=(str(here), "box", "/in"), options={})
            # a look at the record is no use of the files: it must not refuse the copy
            wait_until(lambda: any(change.path == "/in" for change in tier.driver.call("diff", "box")))
            other.interrupt()
            with contextlib.suppress(Raised):
                other.finish()
        tier.driver.call("copy_to", str(here / "small"), "box", "/after")
        assert "A /after" in changes(tier.driver.call("diff", "box"))
    finally:
        tier.driver.call("remove_container", "box")
        (here / "large").unlink()


def test_host_image(tier: Tier) -> None:
    """On the machine's own root `diff` says what would have changed, and `cp` takes it out; `commit` cannot be."""
    path = "/etc/motd-of-a-test" if tier.privileged else f"{tier.home_of_account}/new-of-a-test"
    result = tier.driver.run("sh", "-c", f"echo x > {path}", image="host", name="box")
    assert result.ok, result
    try:
        assert f"A {path}" in changes(tier.driver.call("diff", "box"))
        here = tier.folder("here")
        tier.driver.call("copy_from", "box", path, str(here / "out"))
        assert (here / "out").read_text() == "x\n"
        tier.driver.call("copy_to", str(here / "out"), "box", f"{path}-2")
        assert f"A {path}-2" in changes(tier.driver.call("diff", "box"))
        with pytest.raises(Raised, match="no image that could be extended"):
            tier.driver.call("commit", "box", "mine")
        assert not os.path.lexists(path)
        (here / ".ssh").mkdir()
        with pytest.raises(Raised):
            tier.driver.call("copy_from", "box", "/etc/shadow", str(here / "shadow"))
    finally:
        tier.driver.call("remove_container", "box")
