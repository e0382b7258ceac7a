"""Containers and archives that use a copy to reach what is not theirs: each test fails when they get it."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.testing.rootfs import PYTHON
from tests.integration.test_files import changes, names, nbcontainer_as
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Driver, Tier

_SWAP = """\
import os, sys
at, to = sys.argv[1:]
print("ready", flush=True)
while True:
    os.rename(at, at + "-real")
    os.symlink(to, at)
    os.unlink(at)
    os.rename(at + "-real", at)
"""
_SECONDS = 2.5


@contextlib.contextmanager
def swapping(tier: Tier, prepare: str, at: str, to: str, **options: Any) -> Iterator[Driver]:
    """A container, in another notebook, in which a folder is a link now and then, as fast as can be."""
    with tier.spawn() as keeper:
        script = f"{prepare}\nexec {PYTHON} - {at} {to} <<'END'\n{_SWAP}END\n"
        keeper.begin_run(script=script, name="box", remove=True, **options)
        keeper.wait_for_output(b"ready")
        try:
            yield tier.driver
        finally:
            keeper.interrupt()
            keeper.finish()


def for_a_while() -> Iterator[int]:
    """Numbers, for as long as a race is worth running."""
    end = time.monotonic() + _SECONDS
    number = 0
    while time.monotonic() < end or number < 5:
        yield number
        number += 1


@pytest.mark.parametrize("up", ["/", "../../../../../../../.."])
def test_reading_through_an_exchanged_folder(tier: Tier, up: str) -> None:
    """CVE-2018-15664: a folder of the path turns into a link to / now and then, and no file of the host is ever read."""
    secret = tier.folder("secret") / "word"
    secret.write_text("outside")
    prepare = f"mkdir -p /race{secret.parent}; printf inside > /race{secret}"
    target = tier.folder("target")
    seen = []
    with swapping(tier, prepare, "/race", up) as engine:
        for number in for_a_while():
            try:
                engine.call("copy_from", "box", f"/race{secret}", str(target / str(number)))
            except Raised as refused:
                assert refused.is_ours, refused
            else:
                seen.append((target / str(number)).read_text())
    assert set(seen) <= {"inside"}


def test_writing_through_an_exchanged_folder(tier: Tier) -> None:
    """The same the other way round: nothing appears on the host."""
    victim, here = tier.folder("victim"), tier.folder("here")
    (here / "tree" / "sub").mkdir(parents=True)
    (here / "tree" / "sub" / "word").write_text("planted")
    written = 0
    with swapping(tier, f"mkdir -p /race{victim}", "/race", "/") as engine:
        for number in for_a_while():
            try:
                engine.call("copy_to", str(here / "tree"), "box", f"/race{victim}/{number}")
                written += 1
            except Raised as refused:
                assert refused.is_ours, refused
    assert names(victim) == []


def test_the_target_is_a_volume_of_the_container(tier: Tier) -> None:
    """Copies into a folder that the container can change, too, go through no link it puts there."""
    shared, victim = tier.folder("shared"), tier.folder("victim")
    (shared / "tree").mkdir()
    if tier.name == "range":
        os.chmod(shared / "tree", 0o777)
    prepare = "mkdir /tree; for each in 1 2 3 4 5 6 7 8 9; do echo $each > /tree/$each; done"
    with swapping(tier, prepare, "/data/tree", str(victim), volumes=[(shared, "/data", "rw")]) as engine:
        for _ in for_a_while():
            try:
                engine.call("copy_from", "box", "/tree", str(shared))
            except Raised as refused:
                assert refused.is_ours, refused
    assert names(victim) == []


def test_the_source_is_a_volume_of_the_container(tier: Tier) -> None:
    """A folder of the machine that the container can change is copied without what its links point to."""
    shared, secret = tier.folder("shared"), tier.folder("secret")
    (secret / "word").write_text("outside")
    (shared / "tree").mkdir()
    (shared / "tree" / "word").write_text("inside")
    with swapping(tier, "mkdir /in", "/data/tree", str(secret), volumes=[(shared, "/data", "rw")]) as engine:
        for number in for_a_while():
            try:
                engine.call("copy_to", str(shared), "box", f"/in/{number}")
            except Raised as refused:
                assert refused.is_ours, refused
        back = tier.folder("back")
        engine.call("copy_from", "box", "/in", str(back))
    found = [path.read_text() for path in back.rglob("word") if not path.is_symlink()]
    assert set(found) <= {"inside"}


def archive_of(*members: tuple[str, bytes, str], data: bytes = b"planted") -> bytes:
    """An archive of members (name, type, link)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


FILE, LINK, HARD = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        pytest.param([("../planted", FILE, "")], b"points out of", id="parent"),
        pytest.param([("a/../../planted", FILE, "")], b"points out of", id="parent-inside"),
        pytest.param([("x", HARD, "../../../etc/passwd")], b"points out of", id="hard-link"),
        pytest.param([("x", HARD, "etc/shadow-of-nobody")], b"does not exist", id="hard-link-to-nothing"),
        pytest.param([("tmp", FILE, "")], b"is a folder there", id="over-a-folder"),
        pytest.param([("", FILE, "")], b"no folder", id="no-name"),
    ],
)
def test_archives_that_point_out(tier: Tier, members: list[tuple[str, bytes, str]], sentence: bytes) -> None:
    """Such an archive on standard input is refused in one sentence."""
    assert tier.run("true", name="box").ok
    try:
        done = nbcontainer_as(tier, "cp", "-", "box:/", data=archive_of(*members))
        assert done.returncode == 1, done
        assert sentence in done.stderr, done
        assert changes(tier.driver.call("diff", "box")) == []
    finally:
        tier.driver.call("remove_container", "box")


def test_archives_that_write_through_their_links(tier: Tier) -> None:
    """A link in the archive and a file behind it: the file lands where the link leads in the container, not here."""
    victim = tier.folder("victim")
    assert tier.sh(f"mkdir -p {victim}", name="box").ok
    try:
        data = archive_of(
            ("way", LINK, str(victim)),
            ("way/planted", FILE, ""),
            (f"/{'../' * 0}abs", FILE, ""),
            ("up", LINK, "../../../../../../../../.."),
            (f"up{victim}/second", FILE, ""),
            ("hard", HARD, "way/planted"),
        )
        done = nbcontainer_as(tier, "cp", "-", "box:/", data=data)
        assert (done.returncode, done.stderr) == (0, b"")
        assert names(victim) == []
        found = changes(tier.driver.call("diff", "box"))
        assert {f"A {victim}/planted", f"A {victim}/second", "A /abs", "A /hard"} <= set(found)
    finally:
        tier.driver.call("remove_container", "box")


def test_links_in_the_container_lead_nowhere(tier: Tier) -> None:
    """Links that name files of the machine are links in every copy, and empty when followed."""
    secret = tier.folder("secret") / "word"
    secret.write_text("outside")
    script = f"ln -s {secret} /direct; ln -s /proc/self/root{secret} /magic; ln -s /proc/1/root /root-of-1; ln -s {secret.parent} /folder"
    assert tier.sh(script, name="ended").ok
    here = tier.folder("here")
    with tier.spawn() as keeper:
        keeper.begin_run(script=f"{script}; echo ready; sleep 1000", name="live", remove=True)
        keeper.wait_for_output(b"ready")
        for box in ("ended", "live"):
            for path in ("/direct", "/magic", "/folder/word", f"/root-of-1{secret}"):
                with pytest.raises(Raised) as refused:
                    tier.driver.call("copy_from", box, path, str(here / "out"), follow_link=True)
                assert refused.value.is_ours
            with pytest.raises(Raised) as refused:
                tier.driver.call("copy_to", "/etc/hostname", box, "/folder/word")
            assert refused.value.is_ours
        keeper.interrupt()
        keeper.finish()
    tier.driver.call("remove_container", "ended")
    assert names(here) == []
    assert secret.read_text() == "outside"


def test_no_copy_can_be_seen_from_inside(tier: Tier) -> None:
    """Nothing in the container sees a process of ours while files are copied (CVE-2016-9962, CVE-2022-1227)."""
    watch = (
        "import os\nprint('ready', flush=True)\nseen = set()\n"
        "while not os.path.exists('/stop'):\n    seen |= {name for name in os.listdir('/proc') if name.isdigit()}\n"
        "print(sorted(seen), flush=True)\n"
    )
    here = tier.folder("here")
    (here / "stop").touch()
    with tier.spawn() as keeper:
        keeper.begin_run(PYTHON, "-c", watch, name="box", remove=True)
        keeper.wait_for_output(b"ready")
        for number in range(3):
            tier.driver.call("copy_from", "box", "/bin", str(here / str(number)))
        tier.driver.call("copy_to", str(here / "stop"), "box", "/")
        keeper.finish()
        assert keeper.output["stdout"].splitlines()[-1] == b"['1', '2']"


def test_bombs(tier: Tier) -> None:
    """A file of a terabyte of nothing stays one of nothing; a full disk is a sentence; so is an archive bomb's end."""
    here = tier.folder("here")
    (here / "large").write_bytes(b"x" * (80 << 20))
    with tier.spawn() as keeper:
        grow = f'{PYTHON} -c \'import os; os.close(os.open("/tera", os.O_CREAT)); os.truncate("/tera", 1 << 40)\''
        keeper.begin_run(script=f"{grow}; echo ready; sleep 1000", name="box", remove=True)
        keeper.wait_for_output(b"ready")
        result = tier.driver.call("copy_from", "box", "/tera", str(here / "out"))
        assert result.bytes == 0
        assert (here / "out").stat().st_size == 1 << 40
        assert (here / "out").stat().st_blocks < 100
        with pytest.raises(Raised, match="no space left"):
            tier.driver.call("copy_to", str(here / "large"), "box", "/dev/shm/")
        done = nbcontainer_as(tier, "cp", "-", "box:/dev/shm", data=gzip.compress(bytes(1 << 20))[:-20])
        assert done.returncode == 1
        keeper.interrupt()
        keeper.finish()
    for name in ("large", "out"):
        Path(here / name).unlink()
