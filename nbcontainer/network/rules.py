"""The packet filter of our networks, as text for ``nft``: pure, one table of our own, replaced as a whole.

What it says, in the order of its chains: from a container nothing of this machine can be reached, by whichever of its
addresses; networks cannot reach each other; the link-local addresses where clouds keep their secrets cannot be reached
(169.254.169.254); an egress network reaches what its names resolved to and nothing else; from outside a container is
reached through published ports alone. A rule of ours can only refuse more than the machine's own: a packet must be
accepted in every table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nbcontainer.network.plan import ANY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Bridge", "Publication", "admit", "allowed_set", "removal", "ruleset"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """A network as the filter sees it. With `limited`, only what is in its sets of addresses can be reached."""

    interface: str
    subnet: str
    subnet6: str = ""
    internal: bool = False
    limited: bool = False
    allowed: tuple[tuple[str, int], ...] = field(default=())
    """Addresses that can be reached, with the seconds for which they can; 0 is for good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A port of this machine that leads to a container; `host_ip` "" is every address. Loopback is not among them."""

    protocol: str
    host_ip: str
    host_port: int
    address: str
    port: int


def allowed_set(interface: str, address: str = "") -> str:
    """The set with the addresses that a limited network can reach, of the family of `address`."""
    return f"{'six' if ':' in address else 'four'}-{interface}"


def ruleset(
    table: str,
    prefix: str,
    bridges: Sequence[Bridge],
    publications: Sequence[Publication],
    *,
    guarded: Sequence[str] = (),
    forbidden: Sequence[str] = (),
    uplink: str = "",
) -> str:
    """The whole table, in one transaction.

    `guarded` are the families (``ipv4``, ``ipv6``) of which nothing but ours is forwarded: we turned forwarding on.
    `forbidden` are addresses of this machine that would be reached by passing on, as they are from a network below it.
    `uplink` is a link that only ours go out by. What comes back on it and belongs to no connection is dropped: the
    kernel here would take it for its own and answer by a reset, which ends the container's connection. (pasta of 2023
    announces a larger window by a segment without the flag ACK, of which conntrack does not know whose it is.)
    """
    lines = [f"table inet {table}", f"delete table inet {table}", f"table inet {table} {{"]
    for bridge in bridges:
        if bridge.limited:
            lines += _sets(bridge)
    lines += _chain("input", "type filter hook input priority -10; policy accept;", [
        f'iifname "{prefix}*" jump inside',
        *([f'iifname "{uplink}" meta l4proto tcp ct state invalid drop'] if uplink else []),
    ])  # fmt: skip
    lines += _chain("inside", "", [
        "ct state established,related accept",
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept",
        "meta l4proto tcp reject with tcp reset",
        "reject with icmpx type admin-prohibited",
    ])  # fmt: skip
    lines += _chain("forward", "type filter hook forward priority -10; policy accept;", [
        f'iifname "{prefix}*" oifname "{prefix}*" jump between',
        f'iifname "{prefix}*" jump outgoing',
        f'oifname "{prefix}*" jump incoming',
        *(f'iifname != "{ANY_PREFIX}*" oifname != "{ANY_PREFIX}*" meta nfproto {each} drop' for each in guarded),
    ])  # fmt: skip
    lines += _chain("between", "", [
        *(f'iifname "{each.interface}" oifname "{each.interface}" accept' for each in bridges),
        "goto refuse",
    ])  # fmt: skip
    lines += _chain("outgoing", "", [
        f'oifname "{ANY_PREFIX}*" goto refuse',
        *_forbid(forbidden),
        "ct state established,related accept",
        f"ip daddr {{ {', '.join(_NOWHERE)} }} goto refuse",
        f"ip6 daddr {{ {', '.join(_NOWHERE6)} }} goto refuse",
        *(rule for each in bridges for rule in _reach(each)),
        "accept",
    ])  # fmt: skip
    lines += _chain("incoming", "", [
        "ct state established,related accept",
        "ct status dnat accept",
        "goto refuse",
    ])  # fmt: skip
    lines += _chain("refuse", "", ["meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"])
    lines += _chain("publish", "type nat hook prerouting priority dstnat; policy accept;", [
        f'iifname "{ANY_PREFIX}*" return',
        *(_publish(each) for each in publications),
    ])  # fmt: skip
    lines += _chain("disguise", "type nat hook postrouting priority srcnat; policy accept;", [
        rule for each in bridges if not each.internal for rule in _disguise(each)
    ])  # fmt: skip
    lines.append("}")
    return "\n".join(lines) + "\n"


_NOWHERE = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16")
_NOWHERE6 = ("::/96", "::ffff:0:0/96", "fe80::/10", "fd00:ec2::254")
"""What is passed on to nobody: addresses that mean the machine itself, or the place where clouds keep their secrets.

An IPv6 packet to ``::ffff:127.0.0.1`` can be made by hand; a program that passes it on by a socket, as pasta does,
would connect to IPv4's loopback.
"""


def _chain(name: str, hook: str, rules: Sequence[str]) -> list[str]:
    return [f"  chain {name} {{", *(f"    {line}" for line in ((hook, *rules) if hook else rules)), "  }"]


def _sets(bridge: Bridge) -> list[str]:
    lines = []
    for family, mark in (("ipv4_addr", False), ("ipv6_addr", True)):
        members = [_member(address, seconds) for address, seconds in bridge.allowed if (":" in address) == mark]
        name = allowed_set(bridge.interface, ":" if mark else "")
        lines += [f"  set {name} {{", f"    type {family}; flags timeout;"]
        lines += [f"    elements = {{ {', '.join(members)} }}"] if members else []
        lines.append("  }")
    return lines


def _member(address: str, seconds: int) -> str:
    return f"{address} timeout {seconds}s" if seconds else address


def _reach(bridge: Bridge) -> list[str]:
    name = bridge.interface
    if bridge.internal:
        return [f'iifname "{name}" goto refuse']
    if bridge.limited:
        return [
            f'iifname "{name}" ip daddr @{allowed_set(name)} accept',
            f'iifname "{name}" ip6 daddr @{allowed_set(name, ":")} accept',
            f'iifname "{name}" goto refuse',
        ]
    return []


def _forbid(addresses: Sequence[str]) -> list[str]:
    four = [each for each in addresses if ":" not in each]
    six = [each for each in addresses if ":" in each]
    lines = [f"ip daddr {{ {', '.join(four)} }} goto refuse"] if four else []
    return [*lines, f"ip6 daddr {{ {', '.join(six)} }} goto refuse"] if six else lines


def _publish(each: Publication) -> str:
    family = "ip6" if ":" in each.address else "ip"
    where = f"{family} daddr {each.host_ip} " if each.host_ip else f"meta nfproto ipv{6 if family == 'ip6' else 4} "
    target = f"[{each.address}]" if family == "ip6" else each.address
    return f"{where}fib daddr type local {each.protocol} dport {each.host_port} dnat {family} to {target}:{each.port}"


def _disguise(bridge: Bridge) -> list[str]:
    rules = [f'ip saddr {bridge.subnet} oifname != "{bridge.interface}" masquerade']
    if bridge.subnet6:
        rules.append(f'ip6 saddr {bridge.subnet6} oifname != "{bridge.interface}" masquerade')
    return rules


def admit(table: str, interface: str, address: str, seconds: int) -> str:
    """Let a limited network reach an address for some seconds, from now, whether or not it could before."""
    name = allowed_set(interface, address)
    entry = f"element inet {table} {name} {{ {_member(address, seconds)} }}"
    bare = f"element inet {table} {name} {{ {address} }}"
    return f"add {bare}\ndelete {bare}\nadd {entry}\n"


def removal(table: str) -> str:
    """Take the table away; no error when there is none."""
    return f"table inet {table}\ndelete table inet {table}\n"
