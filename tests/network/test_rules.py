"""The packet filter as text: what it says for which networks, and that nft can read it."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest

from nbcontainer.network.programs import found
from nbcontainer.network.rules import Bridge, Publication, admit, allowed_set, removal, ruleset

PLAIN = Bridge(interface="nbcabcdef-11111", subnet="10.192.1.0/24", subnet6="fd00:1::/64")
INNER = Bridge(interface="nbcabcdef-22222", subnet="10.192.2.0/24", internal=True)
LIMITED = Bridge(
    interface="nbcabcdef-33333",
    subnet="10.192.3.0/24",
    limited=True,
    allowed=(("192.0.2.7", 60), ("2001:db8::7", 30), ("192.0.2.8", 0)),
)
WEB = Publication(protocol="tcp", host_ip="", host_port=8080, address="10.192.1.2", port=80)
SIX = Publication(protocol="udp", host_ip="2001:db8::1", host_port=53, address="fd00:1::2", port=53)


def text(*bridges: Bridge, publications: tuple[Publication, ...] = (), **options: Any) -> str:
    return ruleset("nbcontainer-abcdef", "nbcabcdef", bridges, publications, **options)


def chain(rules: str, name: str) -> list[str]:
    """The rules of one chain."""
    body = rules.partition(f"chain {name} {{\n")[2].partition("\n  }")[0]
    return [line.strip() for line in body.splitlines()]


def test_nothing_of_this_machine_is_reached():
    """What comes from a bridge is refused, unless it answers or asks for a neighbour; names are served elsewhere."""
    rules = text(PLAIN)
    assert chain(rules, "input")[1:] == ['iifname "nbcabcdef*" jump inside']
    inside = chain(rules, "inside")
    assert inside[0] == "ct state established,related accept"
    assert inside[-2:] == ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"]
    assert not any("dport" in line for line in inside)


def test_what_belongs_to_no_connection_is_not_answered():
    """A segment of the way out that conntrack cannot place is dropped, before it gets the kernel's reset."""
    drop = 'iifname "uplink0" meta l4proto tcp ct state invalid drop'
    assert chain(text(PLAIN, uplink="uplink0"), "input")[-1] == drop
    assert drop not in text(PLAIN)


def test_networks_do_not_reach_each_other():
    """Each only itself, and none another store's."""
    rules = text(PLAIN, INNER)
    assert chain(rules, "between") == [
        'iifname "nbcabcdef-11111" oifname "nbcabcdef-11111" accept',
        'iifname "nbcabcdef-22222" oifname "nbcabcdef-22222" accept',
        "goto refuse",
    ]
    assert chain(rules, "outgoing")[0] == 'oifname "nbc*" goto refuse'


def test_clouds_keep_their_secrets():
    """Refused before anything is accepted but what is under way."""
    outgoing = chain(text(LIMITED), "outgoing")
    assert outgoing.index("ip daddr { 0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16 } goto refuse") < outgoing.index(
        f'iifname "{LIMITED.interface}" ip daddr @{allowed_set(LIMITED.interface)} accept'
    )


def test_addresses_that_mean_this_machine():
    """Are refused in whichever spelling: IPv4's loopback in an IPv6 packet among them."""
    (line,) = [line for line in chain(text(PLAIN), "outgoing") if line.startswith("ip6 daddr")]
    assert "::ffff:0:0/96" in line
    assert line.endswith("goto refuse")


def test_internal_and_limited_networks():
    """One leads nowhere, and is not disguised; the other where its sets say, which keep their time."""
    rules = text(INNER, LIMITED)
    assert 'iifname "nbcabcdef-22222" goto refuse' in chain(rules, "outgoing")
    assert chain(rules, "outgoing")[-2:] == ['iifname "nbcabcdef-33333" goto refuse', "accept"]
    assert not any("10.192.2.0" in line for line in chain(rules, "disguise"))
    assert "elements = { 192.0.2.7 timeout 60s, 192.0.2.8 }" in rules
    assert "elements = { 2001:db8::7 timeout 30s }" in rules


def test_addresses_that_are_forbidden():
    """Those of the machine above, of both kinds, before what is under way."""
    outgoing = chain(text(PLAIN, forbidden=("192.0.2.2", "fd00::2")), "outgoing")
    assert outgoing[1:3] == ["ip daddr { 192.0.2.2 } goto refuse", "ip6 daddr { fd00::2 } goto refuse"]


def test_published_ports():
    """At this machine's addresses only, of the kind that the container has, and never for containers."""
    publish = chain(text(PLAIN, publications=(WEB, SIX)), "publish")
    assert publish[1] == 'iifname "nbc*" return'
    assert publish[2:] == [
        "meta nfproto ipv4 fib daddr type local tcp dport 8080 dnat ip to 10.192.1.2:80",
        "ip6 daddr 2001:db8::1 fib daddr type local udp dport 53 dnat ip6 to [fd00:1::2]:53",
    ]


def test_forwarding_that_we_turned_on_serves_us_alone():
    """Nothing else is passed on, which it was not before."""
    assert not any("drop" in line for line in chain(text(PLAIN), "forward"))
    last = chain(text(PLAIN, guarded=("ipv4",)), "forward")[-1]
    assert last == 'iifname != "nbc*" oifname != "nbc*" meta nfproto ipv4 drop'


@pytest.mark.root
def test_nft_reads_it():
    """All of it at once, in a network namespace of its own, twice; then the changes, and the end."""
    nft = found("nft")
    if nft is None or os.geteuid():
        pytest.skip("takes nft, and root for a network namespace")
    whole = text(
        PLAIN,
        INNER,
        LIMITED,
        publications=(WEB, SIX),
        guarded=("ipv4", "ipv6"),
        forbidden=("192.0.2.2",),
        uplink="uplink0",
    )
    change = admit("nbcontainer-abcdef", LIMITED.interface, "192.0.2.7", 90)
    change += admit("nbcontainer-abcdef", LIMITED.interface, "2001:db8::9", 90)
    script = 'set -e; for text in "$@"; do printf \'%s\' "$text" | "$0" -f -; "$0" list ruleset; done'
    words = ["unshare", "--net", "sh", "-c", script, nft, whole, whole, change, removal("nbcontainer-abcdef")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2001:db8::9 timeout 1m30s" in done.stdout
