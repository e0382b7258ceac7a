"""What an image says of its own layers: written, read, and refused when it is not what it should be."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nbcontainer.build.claims import FIELD, Claim, claims_in, with_claims
from nbcontainer.build.stage import StageState, scratch, started_from
from nbcontainer.errors import InvalidImage
from nbcontainer.model import Descriptor, Digest, Platform

_BLOB = Descriptor(media_type="application/vnd.oci.image.layer.v1.tar+gzip", digest=Digest.of(b"blob"), size=4)
_WHEN = "2026-01-02T03:04:05.123456Z"


def grown(state: StageState, *names: bytes) -> StageState:
    """The stage with a layer for each name, made by the step whose key is the name's digest."""
    for name in names:
        state = state.with_layer(_BLOB, Digest.of(name), "RUN x", created=_WHEN, key=Digest.of(name))
    return state


def test_the_way_there_and_back() -> None:
    """Each layer made of a Dockerfile is claimed by its number; those of the base are not."""
    base = started_from({}, (_BLOB,), (Digest.of(b"base"),))
    state = grown(base, b"one", b"two")
    config = json.dumps(with_claims(state).config()).encode()
    assert claims_in(config, layers=3) == {
        Digest.of(b"one"): Claim(key=Digest.of(b"one"), layer=1, created=_WHEN),
        Digest.of(b"two"): Claim(key=Digest.of(b"two"), layer=2, created=_WHEN),
    }
    assert FIELD not in state.config()


def test_an_image_built_upon_does_not_hand_them_on() -> None:
    """A base's record is of its own build; its child begins without one."""
    config = with_claims(grown(scratch(Platform("linux", "amd64")), b"one")).config()
    child = started_from(config, (_BLOB,), (Digest.of(b"one"),))
    assert child.steps == (None,)
    assert FIELD not in child.config()


def test_none() -> None:
    """Other builders' images have no record, whatever else is in their configs."""
    assert claims_in(b'{"moby.buildkit.cache.v0": "e30="}', layers=1) == {}
    assert claims_in(b"[]", layers=1) == {}


_GOOD = {"key": str(Digest.of(b"k")), "layer": 0, "created": _WHEN}


@pytest.mark.parametrize(
    "record",
    [
        [],
        "steps",
        {},
        {"steps": 1},
        {"steps": ["x"]},
        {"steps": [{**_GOOD, "layer": 1}]},
        {"steps": [{**_GOOD, "layer": -1}]},
        {"steps": [{**_GOOD, "layer": True}]},
        {"steps": [{**_GOOD, "layer": "0"}]},
        {"steps": [{**_GOOD, "key": "sha256:00"}]},
        {"steps": [{**_GOOD, "key": 5}]},
        {"steps": [{**_GOOD, "created": "yesterday"}]},
        {"steps": [{**_GOOD, "created": "2026-13-02T03:04:05Z"}]},
        {"steps": [{**_GOOD, "created": None}]},
        {"steps": [_GOOD, {}]},
    ],
)
def test_what_is_no_record(record: Any) -> None:
    """Nothing is believed of a record with one entry that cannot be right: docker would fall over a wrong time."""
    with pytest.raises(InvalidImage):
        claims_in(json.dumps({FIELD: record}).encode(), layers=1)


def test_what_is_no_config() -> None:
    """Bytes that are no JSON, or too deep to read, are refused."""
    for data in (b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(InvalidImage):
            claims_in(data, layers=1)
