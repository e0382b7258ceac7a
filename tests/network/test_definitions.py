"""The networks that a person has made, as the store keeps them."""

from __future__ import annotations

import pytest

from nbcontainer.engine.networking import new_network
from nbcontainer.errors import Conflict, InvalidOption, NotFound, StorageError
from nbcontainer.model.network import Network
from nbcontainer.network.definitions import BRIDGE, Definitions


def test_made_found_and_removed(tmp_path):
    """By name, by id, and by the beginning of an id; the default one is always there."""
    definitions = Definitions(str(tmp_path))
    assert definitions.walk() == (BRIDGE,)
    made = definitions.create(Network(name="lab", id="", subnet="10.9.0.0/24", labels=("a=b",)))
    assert len(made.id) == 64
    assert made.created > 0
    assert definitions.walk() == (BRIDGE, made)
    for name in ("lab", made.id, made.id[:12]):
        assert definitions.find(name) == made
    definitions.remove(made)
    definitions.remove(made)
    with pytest.raises(NotFound, match=r"network create lab"):
        definitions.find("lab")


def test_name_is_taken_once(tmp_path):
    """By whoever comes first; the other's network is as it was."""
    definitions = Definitions(str(tmp_path))
    first = definitions.create(Network(name="lab", id=""))
    with pytest.raises(Conflict, match="lab exists already"):
        definitions.create(Network(name="lab", id="", internal=True))
    assert definitions.find("lab") == first
    assert [each.name for each in definitions.walk()] == ["bridge", "lab"]


@pytest.mark.parametrize("name", ["none", "host", "bridge", "default", "container", "egress", "a/b", "", "egress:x"])
def test_names_with_a_meaning_are_refused(tmp_path, name):
    """They would be understood as something else after --network."""
    with pytest.raises(InvalidOption):
        Definitions(str(tmp_path)).create(Network(name=name, id=""))


def test_the_default_network_stays(tmp_path):
    """It can be found, and not removed."""
    definitions = Definitions(str(tmp_path))
    with pytest.raises(InvalidOption, match="cannot be removed"):
        definitions.remove(definitions.find("bridge"))


def test_words_for_run_are_no_networks(tmp_path):
    """Nobody is told to make one of that name, which would be refused."""
    with pytest.raises(NotFound, match="'none' is a word for run --network"):
        Definitions(str(tmp_path)).find("none")


def test_damaged_file_is_named(tmp_path):
    """With what to do about it."""
    definitions = Definitions(str(tmp_path))
    definitions.create(Network(name="lab", id=""))
    (tmp_path / "network" / "networks" / "lab").write_text('{"colour": "red"}', encoding="utf-8")
    with pytest.raises(StorageError, match="network lab is damaged"):
        definitions.walk()


def test_subnets_of_a_new_network():
    """One of each kind, each with its gateway."""
    made = new_network(
        "lab",
        ("fd00:9::/64", "10.9.0.0/24"),
        ("10.9.0.254", "fd00:9::ff"),
        internal=True,
        mtu=1400,
        labels=("a=b",),
    )
    assert (made.subnet, made.gateway, made.subnet6, made.gateway6) == (
        "10.9.0.0/24", "10.9.0.254", "fd00:9::/64", "fd00:9::ff",
    )  # fmt: skip
    assert made.internal


@pytest.mark.parametrize(
    ("subnets", "gateways", "mtu", "words"),
    [
        (("10.9.0.0/24", "10.8.0.0/24"), (), 0, "one subnet of each kind"),
        ((), ("10.9.0.1",), 0, "belongs to no --subnet"),
        (("fd00::/64",), ("10.9.0.1",), 0, "belongs to no --subnet"),
        ((), (), 500, "1280"),
    ],
)
def test_new_network_that_cannot_be(subnets, gateways, mtu, words):
    """Is refused with the reason."""
    with pytest.raises(InvalidOption, match=words):
        new_network("lab", subnets, gateways, internal=False, mtu=mtu, labels=())
