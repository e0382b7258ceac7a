"""Records of containers: the lock tells who lives, whatever the record says."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.engine.records import ContainerRecords, Record
from nbcontainer.errors import Conflict, ContainerNotFound, InvalidOption, InvalidReference, StorageError
from nbcontainer.model import ContainerId

if TYPE_CHECKING:
    from collections.abc import Iterator


def new_id(start: str = "") -> ContainerId:
    """An id that begins like this."""
    return ContainerId((start + os.urandom(32).hex())[:64])


@pytest.fixture
def records(tmp_path: Path) -> ContainerRecords:
    """Lend the records of an empty store."""
    (tmp_path / "containers").mkdir()
    return ContainerRecords(str(tmp_path), None)


@pytest.fixture
def record(records: ContainerRecords) -> Iterator[Record]:
    """Lend the record of a running, named container."""
    record = records.create(new_id(), fields("work"))
    yield record
    record.close()


def fields(name: str = "", **more: Any) -> dict[str, Any]:
    """What a container is recorded with."""
    return {"name": name, "image": "x", "command": ["sh"], "created": 1.0, "keep": bool(name), **more}


def test_running(records: ContainerRecords, record: Record) -> None:
    """A container whose record is locked runs, and has a pid."""
    record.update(pid=7)
    (stored,) = records.walk()
    summary = stored.summary()
    assert (summary.id, summary.state, summary.pid, stored.abandoned) == (record.id, "running", 7, False)


def test_exited(records: ContainerRecords, record: Record) -> None:
    """One that ended in order has its code and no pid."""
    record.update(pid=7)
    record.update(finished=2.0, exit_code=3, reason="exited")
    record.close()
    summary = records.find("work").summary()
    assert (summary.state, summary.exit_code, summary.pid, summary.finished) == ("exited", 3, None, 2.0)


def test_dead(records: ContainerRecords, record: Record) -> None:
    """One whose supervisor died is dead, whatever its record says."""
    record.update(pid=7)
    record.close()
    summary = records.find("work").summary()
    assert (summary.state, summary.pid, summary.exit_code) == ("dead", None, None)


def test_abandoned(records: ContainerRecords) -> None:
    """A throw-away container that nobody supervises is abandoned: it cannot be found."""
    record = records.create(new_id(), fields())
    (stored,) = records.walk()
    assert not stored.abandoned
    record.close()
    (stored,) = records.walk()
    assert stored.abandoned
    with pytest.raises(ContainerNotFound):
        records.find(record.id)


def test_lock_is_another_process_s_business(records: ContainerRecords, record: Record) -> None:
    """Looking does not take the lock away, in this process or another."""
    for _ in range(3):
        assert [stored.locked for stored in records.walk()] == [True]
    pid = os.fork()
    if pid == 0:
        os.close(record._fd)
        found = [stored.locked for stored in records.walk()]
        os._exit(0 if found == [True] else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_record_shrinks_and_grows(records: ContainerRecords, record: Record) -> None:
    """A record can become shorter and longer, and is whole at each reading."""
    for text in ("x" * 5000, "", "y" * 10_000):
        record.update(reason=text)
        assert records.find("work").fields["reason"] == text


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b"1" * 10_000])
def test_damaged_record(records: ContainerRecords, record: Record, damage: bytes) -> None:
    """A damaged record is left out, and does not hide the others."""
    other = records.create(new_id(), fields("other"))
    other.close()
    Path(other.directory, "record.json").write_bytes(damage)
    assert [stored.id for stored in records.walk()] == [record.id]


def test_record_is_no_link(records: ContainerRecords, tmp_path: Path) -> None:
    """A record that is a link is not followed: the folder is container root's."""
    folder = Path(records.path(new_id()))
    folder.mkdir()
    (tmp_path / "elsewhere").write_text(json.dumps(fields("evil")))
    (folder / "record.json").symlink_to(tmp_path / "elsewhere")
    assert list(records.walk()) == []


@pytest.mark.parametrize("name", ["a b", "-x", ".x", "x/y", "ü", "x" * 129, "a\n"])
def test_impossible_name(records: ContainerRecords, name: str) -> None:
    """A name is letters, digits, and a few marks."""
    with pytest.raises(InvalidOption, match="container name"):
        records.create(new_id(), fields(name))
    assert os.listdir(records.directory) == []


def test_name_is_taken(records: ContainerRecords, record: Record) -> None:
    """A name belongs to one container, running or not, until that is removed."""
    with pytest.raises(Conflict, match=f"taken by {record.id[:12]}"):
        records.create(new_id(), fields("work"))
    record.close()
    with pytest.raises(Conflict):
        records.create(new_id(), fields("work"))


def test_name_given_once(records: ContainerRecords) -> None:
    """Of threads that want one name at once, one gets it."""
    made: list[Record] = []
    refused: list[Conflict] = []

    def create() -> None:
        try:
            made.append(records_of(records).create(new_id(), fields("one")))
        except Conflict as problem:
            refused.append(problem)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 7)
    made[0].close()


def records_of(records: ContainerRecords) -> ContainerRecords:
    """The same store as another engine sees it."""
    return ContainerRecords(os.path.dirname(records.directory), None)


def test_threads_of_one_engine_give_names(records: ContainerRecords) -> None:
    """Threads of one engine may name containers at the same time."""
    problems: list[BaseException] = []

    def create(number: int) -> None:
        try:
            records.create(new_id(), fields(f"n{number}")).close()
        except BaseException as problem:  # noqa: BLE001 - shown below
            problems.append(problem)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len(list(records.walk())) == 8


def test_find(records: ContainerRecords) -> None:
    """A container is found by name, by id, and by the start of an id when that is unique; a name goes first."""
    kept = [
        records.create(new_id(start), fields(name)) for start, name in (("aa1", "one"), ("aa2", "two"), ("bb", "aa1"))
    ]
    for each in kept:
        each.close()
    assert records.find("one").id == kept[0].id
    assert records.find(kept[1].id).id == kept[1].id
    assert records.find("aa2").id == kept[1].id
    assert records.find("aa1").id == kept[2].id
    with pytest.raises(InvalidReference, match="fits several"):
        records.find("aa")
    for text in ("", "a", "zz", kept[0].id + "0"):
        with pytest.raises(ContainerNotFound):
            records.find(text)


def test_output(records: ContainerRecords, record: Record) -> None:
    """What was written is kept in order, byte for byte, as long as the container is."""
    pieces = [("stdout", b"a\n"), ("stderr", b"\xff\0"), ("stdout", "é".encode()[:1]), ("stdout", "é".encode()[1:])]
    for stream, data in pieces:
        record.append(stream, data)  # type: ignore[arg-type]
    assert [(line.stream, line.data) for line in records.output(records.find("work"))] == pieces


def test_output_of_thrown_away_is_not_kept(records: ContainerRecords) -> None:
    """A container that is thrown away leaves no log."""
    record = records.create(new_id(), fields())
    record.append("stdout", b"x")
    assert os.listdir(record.directory) == ["record.json"]
    record.close()


def test_output_is_bounded(records: ContainerRecords) -> None:
    """A log does not grow without end: the limits are those in the record."""
    record = records.create(new_id(), fields(name="bounded", keep=True, log={"size": 1000, "files": 2}))
    for _ in range(100):
        record.append("stdout", b"x" * 100)
    sizes = [os.path.getsize(os.path.join(record.directory, name)) for name in ("output.jsonl", "output.jsonl.1")]
    assert max(sizes) <= 1000
    assert not os.path.exists(os.path.join(record.directory, "output.jsonl.2"))
    record.close()


def test_damaged_output(records: ContainerRecords, record: Record) -> None:
    """Lines that a crash cut off are left out."""
    record.append("stdout", b"x")
    with open(os.path.join(record.directory, "output.jsonl"), "ab") as file:
        file.write(b'{"time": 1, "str\n\xff\n[]\n1\n{"log": 1, "stream": 2, "time": "x"}\n')
    record.append("stdout", b"y")
    assert [line.data for line in records.output(records.find("work"))] == [b"x", b"y"]


def test_no_room(tmp_path: Path) -> None:
    """Where no record can be made, the sentence says where and what to do."""
    with pytest.raises(StorageError, match="NBCONTAINER_ROOT"):
        ContainerRecords(str(tmp_path / "nonesuch"), None).create(new_id(), fields())


@pytest.mark.parametrize("moment", ["chown", "write", "flock"])
def test_interrupted_creation(records: ContainerRecords, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A creation that is cut short leaves no directory behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    targets = {"chown": "os.chown", "write": "os.write", "flock": "fcntl.flock"}
    records._owner = 0
    with monkeypatch.context() as patch:
        patch.setattr(f"nbcontainer.engine.records.{targets[moment]}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            records.create(new_id(), fields())
    assert os.listdir(records.directory) == []


@pytest.mark.root
def test_directory_is_container_roots_from_the_first_moment(tmp_path: Path) -> None:
    """Container root may be building the room meanwhile: no moment shows it a directory that is somebody else's."""
    owner = 123_456
    (tmp_path / "containers").mkdir()
    records = ContainerRecords(str(tmp_path), owner)
    seen: set[int] = set()
    done = threading.Event()
    names = [new_id() for _ in range(300)]

    def watch() -> None:
        for name in names:
            while not done.is_set():
                with contextlib.suppress(FileNotFoundError):
                    seen.add(os.stat(records.path(name)).st_uid)
                    break

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for name in names:
            records.create(name, fields()).close()
    finally:
        watcher.join(20)
        done.set()
        watcher.join()
    assert seen == {owner}
    assert sorted(os.listdir(records.directory)) == sorted(names)


@pytest.mark.root
def test_room_built_ahead_is_kept(tmp_path: Path) -> None:
    """A directory that holds a room is used as it is."""
    (tmp_path / "containers").mkdir()
    records = ContainerRecords(str(tmp_path), 123_456)
    name = new_id()
    os.makedirs(os.path.join(records.path(name), "upper"))
    records.create(name, fields()).close()
    assert sorted(os.listdir(records.path(name))) == ["record.json", "upper"]


def test_nearest_name(tmp_path: Path) -> None:
    """A mistyped name is answered with the one that was meant, another one with where to look."""
    records = ContainerRecords(str(tmp_path), None)
    os.makedirs(records.directory)
    records.create(ContainerId("ab" * 32), {"name": "analysis", "keep": True}).close()
    with pytest.raises(ContainerNotFound, match=r"no container 'anlysis'; did you mean analysis\?$"):
        records.find("anlysis")
    with pytest.raises(ContainerNotFound, match=r"no container 'zzz'; `%container ps -a` lists"):
        records.find("zzz")


@pytest.mark.parametrize("alone", [True, False])
def test_holding(records: ContainerRecords, alone: bool) -> None:
    """Files are worked on by one, or read by several; who only looks at the record meanwhile is waited for."""
    records.create(new_id(), fields("done")).close()
    stored = records.find("done")
    path = Path(stored.directory, "record.json")
    look = os.open(path, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    over = threading.Timer(0.1, os.close, (look,))
    over.start()
    with records.holding(stored, alone=alone):
        assert records.find("done").locked is alone
        with pytest.raises(Conflict, match=r"in use, .*; try again"), records.holding(stored, alone=True):
            pass
        if not alone:
            with records.holding(stored, alone=False):
                pass
        path.unlink()
        with pytest.raises(ContainerNotFound, match="is gone"), records.holding(stored, alone=False):
            pass
    over.join()


def test_removing_what_has_been_started_again(records: ContainerRecords, record: Record) -> None:
    """A container that somebody has started since it was looked at is not removed; one being removed is not started."""
    record.close()
    (seen,) = records.walk()
    again = records.reopen(seen)
    with pytest.raises(Conflict, match="started again"), records.removing(seen):
        pytest.fail("it runs")
    again.close()
    with records.removing(seen):
        assert list(records.walk()) == []
        with pytest.raises(ContainerNotFound):
            records.reopen(seen)
    with pytest.raises(ContainerNotFound), records.removing(seen):
        pytest.fail("it is gone")


SERVICE = {"service": {"restart": "always"}, "keep": True}


@pytest.mark.parametrize(
    ("further", "held", "state", "reason"),
    [
        ({}, False, "created", ""),
        ({"started": 1.0, "pid": 7}, True, "running", ""),
        ({"started": 1.0, "finished": 2.0, "exit_code": 3, "restarting": True}, True, "restarting", ""),
        ({"started": 1.0, "finished": 2.0, "exit_code": 0}, False, "exited", ""),
        ({"started": 1.0, "finished": 2.0, "exit_code": 0}, True, "exited", ""),
        ({"started": 1.0, "boot_id": "here"}, False, "dead", "lost: its monitor was killed"),
        ({"started": 1.0, "boot_id": "before"}, False, "dead", "the machine was restarted while it ran"),
    ],
)
def test_states_of_a_service(
    records: ContainerRecords,
    monkeypatch: pytest.MonkeyPatch,
    *,
    further: dict[str, Any],
    held: bool,
    state: str,
    reason: str,
) -> None:
    """What a record says, whether somebody holds it, and which start of the machine it is from tell the state."""
    monkeypatch.setattr("nbcontainer._linux.identity.boot_id", lambda: "here")
    record = records.create(new_id(), fields(name="web", **{**SERVICE, **further}))
    if not held:
        record.close()
    summary = records.find("web").summary()
    assert (summary.state, summary.reason, summary.service) == (state, reason, True)
    assert (summary.pid is not None) == (state == "running")
    record.close()


def test_a_lock_that_is_handed_over_holds(records: ContainerRecords) -> None:
    """Whoever has the descriptor has the container, also when the one who gave it lets go; if nobody took it, we do."""
    record = records.create(new_id(), fields(name="web", **SERVICE))
    taken: list[int] = []

    def refuse(lock: int) -> None:
        raise BrokenPipeError(lock)

    with pytest.raises(BrokenPipeError):
        record.hand_over(refuse)
    assert records.find("web").locked
    record.hand_over(lambda lock: taken.append(os.dup(lock)))
    assert not record.held
    assert records.find("web").locked
    os.close(*taken)
    assert not records.find("web").locked


def test_watching(records: ContainerRecords) -> None:
    """A look at a record can be taken again, changes nothing, and outlives the container's folder."""
    record = records.create(new_id(), fields(name="web", **SERVICE))
    with records.watching(records.find("web")) as look:
        assert look().locked
        record.update(finished=2.0, exit_code=4)
        os.unlink(os.path.join(record.directory, "record.json"))
        assert look().fields["exit_code"] == 4
        record.close()
        for _ in range(2):
            assert not look().locked


def test_settling(records: ContainerRecords) -> None:
    """One that has ended is waited for until its monitor lets go or starts it again."""
    record = records.create(new_id(), fields(name="web", started=1.0, finished=2.0, exit_code=0, **SERVICE))
    ending = records.find("web")
    assert ending.ending
    timer = threading.Timer(0.1, record.update, kwargs={"restarting": True})
    timer.start()
    assert records.settled(ending).summary().state == "restarting"
    timer.join()
    record.update(restarting=None)
    timer = threading.Timer(0.1, record.close)
    timer.start()
    settled = records.settled(ending)
    timer.join()
    assert (settled.locked, settled.summary().state) == (False, "exited")


GROW = """
import sys
from nbcontainer.engine.records import ContainerRecords
records = ContainerRecords(sys.argv[1], None)
(stored,) = records.walk()
for length in range(0, 8000, 5):
    records.amend(stored, note="x" * length)
"""


def test_reading_while_it_is_written(records: ContainerRecords, record: Record, tmp_path: Path) -> None:
    """A look in the middle of a change, by which the record grows, shows it before or after, and never nothing."""
    with subprocess.Popen([sys.executable, "-c", GROW, str(tmp_path)]) as writer:
        while writer.poll() is None:
            assert [each.id for each in records.walk()] == [record.id]
    assert writer.returncode == 0
    assert len(record.read("note")) == 7995
