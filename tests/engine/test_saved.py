"""A container's spec as its record keeps it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbcontainer.engine.records import Stored
from nbcontainer.engine.saved import saved_spec, spec_of
from nbcontainer.errors import StorageError, UnsupportedHost
from nbcontainer.model import ContainerId, ContainerSpec, Device, Limits, Mount, Ulimit

ID = ContainerId("a" * 64)


def stored(**fields: object) -> Stored:
    """A record with these fields."""
    return Stored(directory=str(Path("/nowhere") / ID), fields=fields, locked=False)


FULL = ContainerSpec(
    id=ID,
    argv=("sh", "-c", "\udcff"),
    root=(Mount(kind="overlay", target="/", lower=("x",)),),
    environment=("A=b", "C=\udcfe"),
    working_directory="/work",
    user="alice:1",
    hostname="box",
    mounts=(
        Mount(kind="bind", target="/data", source="/srv", recursive=True),
        Mount(kind="tmpfs", target="/t", size=5),
    ),
    network="host",
    capabilities=("CHOWN",),
    no_new_privileges=False,
    seccomp="unconfined",
    read_only_root=True,
    limits=Limits(memory=5, cpus=0.5, cpuset_cpus="0"),
    script=b"true",
    files=(("/etc/x", "y"),),
    scratch="/gone",
    generation="7",
    ulimits=(Ulimit(name="nofile", soft=1, hard=2),),
    shm_size=9,
    devices=(Device(source="/dev/fuse", target="/dev/fuse"),),
)


def test_round_trip() -> None:
    """Everything but the root, the script and what belongs to one run comes back, through JSON."""
    kept = json.loads(json.dumps(saved_spec(FULL)))
    assert spec_of(stored(spec=kept)) == dataclasses.replace(FULL, root=(), script=None, scratch="", generation="")
    assert not {"root", "script", "scratch", "generation", "id"} & kept.keys()
    assert saved_spec(ContainerSpec(id=ID, argv=(), root=())) == {}


def test_older_record() -> None:
    """A record that does not tell how the container was started says so."""
    with pytest.raises(UnsupportedHost, match="older nbcontainer"):
        spec_of(stored())


@pytest.mark.parametrize(
    "spec",
    [
        {"argv": 3},
        {"argv": [1]},
        {"limits": {"a": 1}},
        {"mounts": [1]},
        {"devices": 4},
        {"user": None},
        {"network": []},
    ],
)
def test_damaged_record(spec: dict[str, object]) -> None:
    """A record that somebody has bent is named, not guessed at."""
    with pytest.raises(StorageError, match="is damaged"):
        spec_of(stored(spec=spec))


VALUES = st.none() | st.integers() | st.text() | st.lists(st.none() | st.dictionaries(st.text(), st.integers()))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([field.name for field in dataclasses.fields(ContainerSpec)]), VALUES))
def test_any_record_is_read_or_refused(spec: dict[str, object]) -> None:
    """Whatever stands in it, the answer is a spec or one of our own errors."""
    with contextlib.suppress(StorageError, UnsupportedHost):
        assert isinstance(spec_of(stored(spec=spec)).argv, tuple)
