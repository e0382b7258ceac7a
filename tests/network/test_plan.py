"""Subnets, addresses and names of interfaces: pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from nbcontainer.errors import Conflict, InvalidOption
from nbcontainer.model.network import Network
from nbcontainer.network import plan

LAB = Network(name="lab", id="5" * 64)


def subnets(network: Network = LAB, taken: tuple[str, ...] = ()) -> plan.Subnets:
    return plan.subnets_of(network, "abcdef", [IPv4Network(each) for each in taken])


def test_interface_names_fit_and_tell_the_store():
    """Fifteen characters at most, with the store's key, and each of another kind."""
    key = plan.store_key("/some/where", 0)
    bridge = plan.bridge_name(key, "f" * 64)
    names = [bridge, plan.desk_name(bridge), plan.peer_name(key, 1), plan.peer_name(key, 0xFFFFFF)]
    assert len(set(names)) == 4
    assert all(len(name) <= 15 and name.startswith(plan.interface_prefix(key)) for name in names)
    assert key != plan.store_key("/some/where", 1000)
    assert key != plan.store_key("/some/where/else", 0)


def test_subnet_is_the_same_each_time_and_overlaps_nobody():
    """The same network gets the same subnet where it can; where a route is in the way, the next one that is free."""
    first = subnets().subnet
    assert subnets().subnet == first
    assert first.subnet_of(plan.POOL)
    second = subnets(taken=(str(first),)).subnet
    assert not second.overlaps(first)
    wide = f"{first.network_address}/16"
    assert not subnets(taken=(str(IPv4Network(wide, strict=False)),)).subnet.overlaps(IPv4Network(wide, strict=False))


def test_no_subnet_left_is_said():
    """With the way out."""
    with pytest.raises(Conflict, match="--subnet"):
        subnets(taken=("10.192.0.0/10",))


def test_gateway_is_the_first_address_unless_asked():
    """Of both kinds."""
    made = subnets(Network(name="n", id="1", subnet="10.9.0.0/28", gateway="10.9.0.14"))
    assert str(made.gateway) == "10.9.0.14"
    plain = subnets()
    assert plain.gateway == plain.subnet[1]
    assert plain.subnet6 is not None
    assert plain.gateway6 == plain.subnet6[1]
    assert plain.subnet6.subnet_of(IPv6Network("fd00::/8"))


def test_networks_of_two_stores_have_other_unique_local_subnets():
    """As RFC 4193 wants it."""
    assert plan.unique_local("aaaaaa", "bridge") != plan.unique_local("bbbbbb", "bridge")
    assert plan.unique_local("aaaaaa", "bridge") != plan.unique_local("aaaaaa", "lab")


def test_addresses_go_round():
    """The next free one is given; one that was given back comes again only after all others."""
    book = plan.Addresses(subnets(Network(name="n", id="1", subnet="10.9.0.0/29")))
    taken = [str(book.take(f"c{number}")) for number in range(5)]
    assert taken == [f"10.9.0.{number}" for number in (2, 3, 4, 5, 6)]
    with pytest.raises(Conflict, match=r"every address of 10\.9\.0\.0/29"):
        book.take("more")
    book.give_back("c0")
    book.give_back("c3")
    assert str(book.take("again")) == "10.9.0.2"
    assert str(book.take("and again")) == "10.9.0.5"


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        ("10.8.0.3", InvalidOption, "not one of a machine in"),
        ("10.9.0.0", InvalidOption, "not one of a machine in"),
        ("10.9.0.7", InvalidOption, "not one of a machine in"),
        ("10.9.0.1", InvalidOption, "own gateway"),
        ("10.9.0.2", Conflict, "taken by container first"),
        ("fd00::1", InvalidOption, "IPv6"),
        ("ten", InvalidOption, "no address"),
    ],
)
def test_address_that_cannot_be_given(wanted, error, words):
    """Is refused with the reason."""
    book = plan.Addresses(subnets(Network(name="n", id="1", subnet="10.9.0.0/29")))
    book.take("first")
    with pytest.raises(error, match=words):
        book.take("second", wanted)


def test_address_that_was_asked_for():
    """Is given, once; the IPv6 one has the same number beside it unless it was asked for, too."""
    book = plan.Addresses(subnets(Network(name="n", id="1", subnet="10.9.0.0/29", subnet6="fd00:9::/64")))
    four = book.take("c", "10.9.0.5")
    assert four == IPv4Address("10.9.0.5")
    assert str(book.take6("c", "", four)) == "fd00:9::5"
    assert str(book.take6("d", "fd00:9::99", book.take("d"))) == "fd00:9::99"
    with pytest.raises(Conflict):
        book.take6("e", "fd00:9::99", four)
    with pytest.raises(InvalidOption):
        book.take6("e", "fd00:8::1", four)


@pytest.mark.parametrize(
    ("subnet", "gateway", "words"),
    [
        ("10.0.0.1/24", "", "no bits beside"),
        ("10.0.0.0/31", "", "too small"),
        ("127.0.0.0/8", "", "meaning of its own"),
        ("169.254.0.0/16", "", "meaning of its own"),
        ("224.0.0.0/8", "", "meaning of its own"),
        ("lab", "", "ADDRESS/BITS"),
        ("10.0.0.0/24", "10.0.1.1", "not an address of a machine in"),
        ("10.0.0.0/24", "10.0.0.0", "not an address of a machine in"),
        ("10.0.0.0/24", "fd00::1", "not an address of a machine in"),
        ("10.0.0.0/24", "gw", "no address"),
    ],
)
def test_subnet_that_cannot_be(subnet, gateway, words):
    """Is refused with the reason."""
    with pytest.raises(InvalidOption, match=words):
        plan.check_subnet(subnet, gateway)


def test_mac_addresses():
    """One pair after another, as `ip` writes them; not those of a group."""
    assert plan.check_mac("02-42-AC-11-00-02") == "02:42:ac:11:00:02"
    assert plan.mac_of(IPv4Address("10.192.0.7")) == "02:42:0a:c0:00:07"
    for text in ("02:42:ac:11:00", "03:42:ac:11:00:02", "00:00:00:00:00:00", "zz:42:ac:11:00:02"):
        with pytest.raises(InvalidOption):
            plan.check_mac(text)
