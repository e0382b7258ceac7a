"""Links in network namespaces of their own, each in a process of its own, since entering one moves a whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
from nbcontainer.errors import UnsupportedHost
from nbcontainer.model.network import Endpoint
from nbcontainer.network.definitions import BRIDGE
from nbcontainer.network.links import Ends, Links, inside, new_namespace
from nbcontainer.network.plan import subnets_of

links, elsewhere = Links(), new_namespace()
links.make_bridge("bridge0", subnets_of(BRIDGE, "abcdef", []), 1500)
endpoint = Endpoint(
    network="bridge", container="c" * 64, interface="eth0", mac="02:00:0a:c0:00:02", address="10.192.0.2", prefix=24,
    gateway="10.192.0.1", address6="fd00:1::2", prefix6=64, gateway6="fd00:1::1",
)
"""
CONNECTED = """
import contextlib, json, subprocess
def shown(*words):
    with inside(elsewhere):
        return json.loads(subprocess.run(["ip", "-j", *words], capture_output=True, check=True).stdout or "[]")
with inside(elsewhere):
    ends = Ends()
links.make_pair("pair0", "bridge0", elsewhere, endpoint, 1400)
"""


def run(script: str) -> str:
    """What a script prints that is root of a user namespace with a network of its own."""
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", PRELUDE + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if "unshare failed" in done.stderr or "write failed" in done.stderr:
        pytest.skip("no user namespaces here")
    assert not done.returncode, done.stderr
    return done.stdout.strip()


def test_link_is_looked_for_where_links_were_opened():
    """The process may be in another namespace by now, where no such link is."""
    assert run('with inside(elsewhere): links.remove("bridge0")\nprint(links.named("bridge"))') == "[]"


def test_missing_link_is_named():
    """A bridge that somebody has taken away is an error that says so, and nothing is half made."""
    said = run("""
links.remove("bridge0")
try:
    links.make_pair("pair0", "bridge0", elsewhere, endpoint, 1500)
except UnsupportedHost as problem:
    print(problem.message, links.named("pair"))
""")
    assert said == "link bridge0 is not there any more; somebody has taken it away []"


def test_container_end_is_set_up():
    """Addresses of both families, the link's own MTU and hardware address, up, and three ways out."""
    said = run(f"""{CONNECTED}
ends.configure(endpoint, first=True)
(link,) = shown("addr", "show", "eth0")
addresses = [(each["local"], each["prefixlen"]) for each in link["addr_info"] if each["scope"] == "global"]
print(link["mtu"], link["address"], "UP" in link["flags"], addresses)
for family in ("-4", "-6"):
    for way in shown(family, "route", "show", "proto", "static"):
        print(way["dst"], way.get("gateway"), way["dev"], way.get("scope"))
""")
    assert said.splitlines() == [
        "1400 02:00:0a:c0:00:02 True [('10.192.0.2', 24), ('fd00:1::2', 64)]",
        "default 10.192.0.1 eth0 None",
        "169.254.53.53 None eth0 link",
        "default fd00:1::1 eth0 None",
    ]


def test_container_end_without_the_sixth_version():
    """Where there is no IPv6 a container has none, and that is no error."""
    said = run(f"""{CONNECTED}
with inside(elsewhere):
    open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w").write("1")
ends.configure(endpoint, first=True)
(link,) = shown("addr", "show", "eth0")
print([each["local"] for each in link["addr_info"]], [way["dst"] for way in shown("route", "show", "proto", "static")])
""")
    assert said == "['10.192.0.2'] ['default', '169.254.53.53']"


def test_refused_request_is_told():
    """Of several requests the first that is refused is told, in words of what it was for; the others are done."""
    said = run(f"""{CONNECTED}
from nbcontainer.errors import Conflict
ends.configure(endpoint, first=False)
try:
    ends.configure(endpoint, first=True)
except Conflict as problem:
    print(problem.message)
print([way["dst"] for way in shown("route", "show", "proto", "static")])
try:
    links.make_pair("pair0", "bridge0", elsewhere, endpoint, 1500)
except Conflict as problem:
    print(problem.message)
""")
    assert said.splitlines() == [
        "setting up eth0 of container cccccccccccc: it exists already",
        "['default', '169.254.53.53']",
        "making the link of container cccccccccccc: it exists already",
    ]


def test_what_a_killed_keeper_has_left():
    """An interface that is still there is taken away, with its other end; where there is none nothing happens."""
    said = run(f"""{CONNECTED}
for _ in range(2):
    ends.make_room("eth0")
    print(len(shown("link", "show", "type", "veth")), links.named("pair"))
""")
    assert said.splitlines() == ["0 []", "0 []"]


def test_free_name():
    """A second network's interface gets the next name."""
    said = run(f"""{CONNECTED}
print(ends.free_name())
with inside(elsewhere):
    print(Ends().free_name())
print(links.named("pair"))
""")
    assert said.splitlines() == ["eth1", "eth1", "['pair0']"]
