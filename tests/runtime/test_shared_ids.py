"""Which user namespace a new launcher joins: that of one that lives, with the same ids, or none."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from nbcontainer.model import IdMap, IdRange
from nbcontainer.runtime.shared_ids import Namespaces, top_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

ONE = IdRange(inside=0, outside=100_000, length=65536)
OTHER = IdRange(inside=0, outside=200_000, length=65536)


def mapped(block: IdRange) -> IdMap:
    return IdMap(uids=(block,), gids=(block,), method="privileged")


@contextlib.contextmanager
def process(*layers: str) -> Iterator[int]:
    """Have a process in namespaces; its pid."""
    script = "echo there; exec sleep 1000"
    words = [*(word for layer in layers for word in ("unshare", *layer.split())), "sh", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as made:
        assert made.stdout is not None
        try:
            assert made.stdout.readline() == b"there\n"
            yield made.pid
        finally:
            made.kill()


@pytest.mark.userns
def test_the_namespace_just_below_ours_is_found():
    """Of a process in it, and of one further down."""
    with process("--user --map-root-user") as first:
        namespace = top_namespace(first)
        try:
            assert os.path.samestat(os.fstat(namespace), os.stat(f"/proc/{first}/ns/user"))
        finally:
            os.close(namespace)
    with process("--user --map-root-user", "--user --map-root-user") as deep:
        namespace = top_namespace(deep)
        try:
            assert not os.path.samestat(os.fstat(namespace), os.stat(f"/proc/{deep}/ns/user"))
        finally:
            os.close(namespace)


def test_a_process_of_ours_has_none():
    """One that is in no namespace below ours cannot be joined."""
    with pytest.raises(OSError):
        top_namespace(os.getpid())


@pytest.mark.userns
def test_who_lives_is_joined(tmp_path):
    """With the same ids, while it lives; a store without a list begins one, and a damaged one begins anew."""
    mine, others = Namespaces(str(tmp_path), mapped(ONE)), Namespaces(str(tmp_path), mapped(OTHER))
    with mine.held():
        assert mine.open_theirs() == ()
    with process("--user --map-root-user") as pid:
        with mine.held():
            mine.add(pid)
        with mine.held():
            (namespace,) = mine.open_theirs()
            assert os.path.samestat(os.fstat(namespace), os.stat(f"/proc/{pid}/ns/user"))
            os.close(namespace)
        with others.held():
            assert others.open_theirs() == ()
    with mine.held():
        assert mine.open_theirs() == ()
    (tmp_path / "launchers.json").write_text("[[1", encoding="utf-8")
    with mine.held():
        assert mine.open_theirs() == ()


@pytest.mark.userns
def test_where_another_has_its_containers_further_down(tmp_path):
    """Then that namespace comes with the one above it, also where somebody lives in that."""
    mine = Namespaces(str(tmp_path), mapped(ONE))
    with process("--user --map-root-user", "--user --map-root-user") as deep:
        with mine.held():
            mine.add(deep)
        with mine.held():
            top, lower = mine.open_theirs()
        assert os.path.samestat(os.fstat(lower), os.stat(f"/proc/{deep}/ns/user"))
        assert not os.path.samestat(os.fstat(lower), os.fstat(top))
        for namespace in (top, lower):
            os.close(namespace)


@pytest.mark.userns
def test_namespaces_of_two_families_are_not_mixed(tmp_path):
    """What comes second lies below what comes first, whoever else is in the list."""
    mine = Namespaces(str(tmp_path), mapped(ONE))
    with process("--user --map-root-user") as first, process(*["--user --map-root-user"] * 2) as deep:
        with mine.held():
            mine.add(first)
            mine.add(deep)
        with mine.held():
            (top,) = mine.open_theirs()
        assert os.path.samestat(os.fstat(top), os.stat(f"/proc/{first}/ns/user"))
        os.close(top)


def test_who_lives_elsewhere_stays_in_the_list(tmp_path):
    """A store may be shared with a container: its pids say nothing here, and ours say nothing there."""
    elsewhere = [7, 8, "key", 4]
    (tmp_path / "launchers.json").write_text(json.dumps([elsewhere]), encoding="utf-8")
    mine = Namespaces(str(tmp_path), mapped(ONE))
    with mine.held():
        mine.add(os.getpid())
    listed = json.loads((tmp_path / "launchers.json").read_text(encoding="utf-8"))
    assert listed[0] == elsewhere
    assert [each[0] for each in listed] == [7, os.getpid()]
