"""Names: written last, read without locks, found by name or id."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from nbcontainer.errors import ImageNotFound, InvalidReference, StorageError
from nbcontainer.model import Digest, Event, Notice, Reference
from nbcontainer.store import ImageRecord, RefStore


@pytest.fixture
def refs(tmp_path: Path) -> RefStore:
    """An empty store of names."""
    return RefStore(str(tmp_path))


def record(name: str, config: str = "config", size: int = 1) -> ImageRecord:
    return ImageRecord(
        reference=Reference.parse(name),
        target=Digest.of(b"index"),
        manifest=Digest.of(b"manifest"),
        config=Digest.of(config.encode()),
        pulled_at=1_700_000_000.25,
        size=size,
    )


NAMES = [
    "ubuntu",
    "ubuntu:24.04",
    "localhost:5000/a/b:1",
    "[::1]:5000/a:x",
    "registry.example.com/a",
    "registry.example.com/a/b.json:tag",
    "registry.example.com/a:b.json",
    "registry.example.com/a/b:_tags",
    "ubuntu@" + str(Digest.of(b"pinned")),
    "ubuntu:24.04@" + str(Digest.of(b"pinned too")),
    "a:" + "t" * 128,
]


def test_every_name_comes_back(refs: RefStore) -> None:
    """Hosts with ports, IPv6, names that look like our own files: none collides with another."""
    records = [record(name, size=number) for number, name in enumerate(NAMES)]
    for each in records:
        refs.put(each)
    assert [refs.get(each.reference) for each in records] == records
    assert set(refs.list()) == set(records)
    for each in records:
        assert refs.delete(each.reference)
        assert not refs.delete(each.reference)
        assert refs.get(each.reference) is None
    assert refs.list() == ()


def test_nothing_is_left_of_deleted_names(refs: RefStore, tmp_path: Path) -> None:
    """Folders of a name go with it."""
    refs.put(record("registry.example.com/deep/er/name"))
    refs.delete(Reference.parse("registry.example.com/deep/er/name"))
    assert os.listdir(tmp_path / "refs") == []


def test_a_name_moves_in_one_step(refs: RefStore) -> None:
    """A reader sees the old record or the new one, whole, at any time."""
    refs.put(record("moving", size=0))
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            if refs.get(Reference.parse("moving")) is None:
                wrong.append("missing")

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(30):
        refs.put(record("moving", size=number))
    stop.set()
    reader.join()
    assert wrong == []


def test_a_damaged_record_is_named_and_passed_over(refs: RefStore, tmp_path: Path) -> None:
    """Reading it is an error with the file's name; listing says so and goes on."""
    refs.put(record("good"))
    refs.put(record("bad"))
    (path,) = [path for path in Path(tmp_path, "refs").rglob("latest.json") if "bad" in str(path)]
    for text in ("", "{", "[]", "{}", '{"reference": "bad", "target": "sha256:../../x"}', "null"):
        path.write_text(text)
        with pytest.raises(StorageError, match=r"bad/_tags/latest\.json is damaged"):
            refs.get(Reference.parse("bad"))
        notices: list[Event] = []
        assert [each.reference.familiar for each in refs.list(notices.append)] == ["good:latest"]
        assert isinstance(notices[0], Notice)


def test_an_interrupted_write_leaves_the_old_record(refs: RefStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the rename, the name still means what it meant, and no litter is listed."""
    refs.put(record("kept", size=1))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        refs.put(record("kept", size=2))
    monkeypatch.undo()
    assert [each.size for each in refs.list()] == [1]


def test_images_are_found_by_name_or_id(refs: RefStore) -> None:
    """A name is one record, an id every name of that image."""
    one, same, other = record("one"), record("same:2"), record("other", config="elsewhere")
    for each in (one, same, other):
        refs.put(each)
    assert refs.find("one") == (one,)
    assert refs.find("docker.io/library/one:latest") == (one,)
    identifier = one.id.hex
    for text in (identifier, identifier[:12], f"sha256:{identifier[:8]}", str(one.id)):
        assert refs.find(text) == (one, same)
    assert refs.find(other.id.short) == (other,)
    assert one.id == one.config


def test_ambiguous_and_unknown_ids_say_so(refs: RefStore) -> None:
    """A prefix of several images lists them; three digits are no id; what is not here is not found."""
    by_prefix: dict[str, int] = {}
    pair = None
    number = 0
    while pair is None:
        prefix = Digest.of(f"config{number}".encode()).hex[:4]
        if prefix in by_prefix:
            pair = by_prefix[prefix], number, prefix
        by_prefix[prefix] = number
        number += 1
    refs.put(record("one", config=f"config{pair[0]}"))
    refs.put(record("two", config=f"config{pair[1]}"))
    with pytest.raises(InvalidReference, match=r"fits 2 images.*one:latest.*two:latest|fits 2 images.*two.*one"):
        refs.find(pair[2])
    with pytest.raises(ImageNotFound):
        refs.find(pair[2][:3])
    with pytest.raises(ImageNotFound):
        refs.find("f" * 64)
    with pytest.raises(ImageNotFound, match="%container images"):
        refs.find("nothing:here")
    with pytest.raises(InvalidReference):
        refs.find("Not A Name")
