"""Volumes on disk: names, records, who may remove what, and what a killed process leaves."""

from __future__ import annotations

import json
import os
import shutil
import threading
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import Conflict, InvalidOption, StorageError, UnsupportedHost, VolumeNotFound
from nbcontainer.store import VolumeStore

if TYPE_CHECKING:
    from pathlib import Path


class Fixture:
    """A store of volumes and who uses them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: dict[str, dict[str, str]] = {}
        self.discarded: list[str] = []
        self.store = self.under("ids")

    def under(self, ids: str) -> VolumeStore:
        """The same store as containers of another id map see it."""
        return VolumeStore(str(self.root), ids=ids, owner=None, users=lambda: self.used, discard=self._discard)

    def _discard(self, path: str) -> None:
        self.discarded.append(path)
        shutil.rmtree(path)

    def names(self) -> list[str]:
        """What lies in the folder of volumes."""
        return sorted(os.listdir(self.root / "volumes"))


@pytest.fixture
def kept(tmp_path: Path) -> Fixture:
    """Lend a store without volumes."""
    return Fixture(tmp_path)


def test_create_and_find(kept: Fixture) -> None:
    """A volume is an empty folder with a record; making it again finds it and leaves its labels alone."""
    volume, made = kept.store.create("results", {"course": "physics"})
    assert made
    assert os.listdir(kept.store.data("results")) == []
    again, made = kept.store.create("results", {"course": "chemistry"})
    assert (again, made) == (volume, False)
    assert kept.store.find("results").labels == {"course": "physics"}
    assert [each.name for each in kept.store.walk()] == ["results"]
    assert kept.names() == ["results"]


def test_without_a_name(kept: Fixture) -> None:
    """A volume without a name gets one of 64 digits, and is found by the first of them."""
    volume, made = kept.store.create()
    assert made
    assert volume.anonymous
    assert len(volume.name) == 64
    assert kept.store.find(volume.name[:12]) == volume
    with pytest.raises(VolumeNotFound):
        kept.store.find(volume.name[:3])


@pytest.mark.parametrize("name", ["a", "-x", "../x", "a/b", "_data", "a b", "x" * 129, ".new-1", "é1", "a\n"])
def test_names_that_are_none(kept: Fixture, name: str) -> None:
    """A name is docker's form; nothing else reaches the disk, to make or to find."""
    with pytest.raises(InvalidOption, match="2 to 128"):
        kept.store.create(name)
    with pytest.raises(VolumeNotFound):
        kept.store.find(name)
    assert not (kept.root / "volumes").exists() or kept.names() == []


def test_unknown_names_suggest(kept: Fixture) -> None:
    """The nearest name, or how to see those that are here."""
    with pytest.raises(VolumeNotFound, match="volume ls"):
        kept.store.find("results")
    kept.store.create("results")
    with pytest.raises(VolumeNotFound, match=r"did you mean results\?"):
        kept.store.find("result")


def test_remove(kept: Fixture) -> None:
    """A removed volume is gone with its files; one that containers name is kept, and they are named."""
    kept.store.create("results")
    (kept.root / "volumes/results/_data/file").write_text("x")
    kept.used = {"results": {"1": "work", "2": "abc"}}
    with pytest.raises(Conflict, match=r"in use by containers abc, work; remove them first"):
        kept.store.remove("results")
    assert os.listdir(kept.store.data("results")) == ["file"]
    kept.used = {}
    kept.store.remove("results")
    assert kept.names() == []
    with pytest.raises(VolumeNotFound):
        kept.store.remove("results")


def test_the_last_container_takes_its_volume_along(kept: Fixture) -> None:
    """What goes with a container goes although its record still names it, unless another one does, too."""
    kept.store.create("results")
    kept.used = {"results": {"1": "work", "2": "abc"}}
    kept.store.drop(["results"], container="1")
    assert kept.names() == ["results"]
    kept.used = {"results": {"1": "work"}}
    kept.store.drop(["results"], container="1")
    assert kept.names() == []


def test_drop_leaves_what_is_used(kept: Fixture) -> None:
    """What goes with a container goes quietly: what somebody else uses, or is gone, is let be."""
    for name in ("used", "spare"):
        kept.store.create(name)
    kept.used = {"used": {"1": "work"}}
    kept.store.drop(["used", "spare", "gone"])
    assert kept.names() == ["used"]


def test_another_id_map(kept: Fixture) -> None:
    """A volume of other ids is listed, and neither used nor, by who cannot, removed: its owners would be wrong."""
    kept.store.create("results")
    other = kept.under("other")
    assert [other.is_ours(each) for each in other.walk()] == [False]
    with pytest.raises(UnsupportedHost, match=r"other user ids \(ids\) than containers have now \(other\)"):
        other.create("results")
    if os.geteuid() != 0:
        with pytest.raises(UnsupportedHost, match="cannot be removed"):
            other.remove("results")
    assert kept.names() == ["results"]
    kept.store.remove("results")


def test_damaged_record(kept: Fixture) -> None:
    """A volume whose record cannot be read is no volume, and its folder is not taken for a new one."""
    kept.store.create("results")
    record = kept.root / "volumes/results/volume.json"
    for text in ("", "[]", "{}", "null", "[" * 100_000, '{"created": "x", "ids": 1}', '{"created": 1, "labels": 3}'):
        record.write_text(text)
        assert list(kept.store.walk()) == []
        with pytest.raises(StorageError, match="volume results is damaged"):
            kept.store.create("results")


def test_record_that_is_a_link(kept: Fixture) -> None:
    """A record is a file of ours, not what a link means."""
    kept.store.create("results")
    record = kept.root / "volumes/results/volume.json"
    record.rename(kept.root / "elsewhere")
    record.symlink_to(kept.root / "elsewhere")
    with pytest.raises(VolumeNotFound):
        kept.store.find("results")


@pytest.mark.parametrize("moment", [".new-1", ".gone-1"])
def test_killed_on_the_way(kept: Fixture, moment: str) -> None:
    """What was being made or removed when a process was killed is no volume, and is swept."""
    kept.store.create("results")
    os.makedirs(kept.root / "volumes" / moment / "_data")
    assert [each.name for each in kept.store.walk()] == ["results"]
    kept.store.sweep()
    assert kept.names() == ["results"]


def test_volumes_of_thrown_away_containers_are_swept(kept: Fixture) -> None:
    """A volume that goes with its container goes when that has no record any more; any other one stays."""
    with kept.store.held():
        names = {
            kind: kept.store.ensure(container=kind * 64, transient=kind != "c")[0].name for kind in ("a", "b", "c", "d")
        }
    os.makedirs(kept.root / "containers" / ("a" * 64))
    (kept.root / "containers" / ("a" * 64) / "record.json").write_text("{}")
    kept.used = {names["d"]: {"1": "borrower"}}
    kept.store.sweep()
    assert kept.names() == sorted(names[kind] for kind in ("a", "c", "d"))


def test_sweep_without_leftovers_takes_no_lock(kept: Fixture) -> None:
    """Opening a store does not wait for whoever holds the names, unless there is something to remove."""
    kept.store.create("results")
    with kept.store.held():
        kept.store.sweep()


def test_failure_to_make_leaves_nothing(kept: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full in the middle leaves no half volume behind."""

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="cannot make volume results: the disk"):
        kept.store.create("results")
    assert kept.names() == []


def test_copy_becomes_the_volume_at_one_stroke(kept: Fixture) -> None:
    """Files copied aside are the volume's when the copy is kept, and gone when it is not."""
    kept.store.create("results")
    with kept.store.filling("results"):
        assert kept.store.seems_empty("results")
        with kept.store.copy("results") as aside:
            (kept.root / aside / "file").write_text("x")
        assert kept.store.seems_empty("results")
        with kept.store.copy("results") as aside:
            (kept.root / aside / "file").write_text("x")
            assert kept.store.keep_copy("results")
    assert not kept.store.seems_empty("results")
    assert sorted(os.listdir(kept.store.folder("results"))) == ["_data", "fill.lock", "volume.json"]


def test_copy_never_replaces_files(kept: Fixture) -> None:
    """When something has been written meanwhile, the copy is thrown away."""
    kept.store.create("results")
    with kept.store.filling("results"), kept.store.copy("results") as aside:
        (kept.root / aside / "file").write_text("copy")
        (kept.root / "volumes/results/_data/mine").write_text("mine")
        assert not kept.store.keep_copy("results")
    assert os.listdir(kept.store.data("results")) == ["mine"]
    assert not os.path.lexists(kept.root / "volumes/results/.copy")


def test_copy_after_a_kill(kept: Fixture) -> None:
    """What a killed copy left aside is taken away by the next one."""
    kept.store.create("results")
    os.makedirs(kept.root / "volumes/results/.copy")
    (kept.root / "volumes/results/.copy/half").write_text("x")
    with kept.store.filling("results"), kept.store.copy("results") as aside:
        assert os.listdir(aside) == []


def test_filling_a_volume_that_is_gone(kept: Fixture) -> None:
    """A volume that somebody has removed by hand is not made anew by its lock."""
    with pytest.raises(VolumeNotFound), kept.store.filling("results"):
        raise AssertionError("filled a volume that is not there")
    assert not (kept.root / "volumes" / "results").exists()


def test_making_and_removing_at_once(kept: Fixture) -> None:
    """Threads that make and remove one volume see it whole or not at all."""
    wrong = []

    def work() -> None:
        for _ in range(40):
            try:
                kept.store.create("results")
                kept.store.remove("results")
            except VolumeNotFound:
                continue
            except Exception as problem:  # noqa: BLE001 - whatever it is, it is the finding
                wrong.append(problem)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []
    assert kept.names() in ([], ["results"])


def test_record_is_plain(kept: Fixture) -> None:
    """The record is what a person can read, without the name: that is its folder's."""
    kept.store.create("results", {"a": "b"})
    fields = json.loads((kept.root / "volumes/results/volume.json").read_text())
    assert fields["ids"] == "ids"
    assert fields["labels"] == {"a": "b"}
    assert "name" not in fields
