"""Links in network namespaces of their own, each in a process of its own, since entering one moves a whole process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
from nbcontainer.errors import UnsupportedHost
from nbcontainer.model.network import Endpoint
from nbcontainer.network.definitions import BRIDGE
from nbcontainer.network.links import Links, inside, new_namespace
from nbcontainer.network.plan import subnets_of

links, elsewhere = Links(), new_namespace()
links.make_bridge("bridge0", subnets_of(BRIDGE, "abcdef", []), 1500)
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
endpoint = Endpoint(
    network="bridge", container="c" * 64, interface="eth0", mac="02:00:0a:c0:00:02", address="10.192.0.2", prefix=24,
    gateway="10.192.0.1",
)
links.remove("bridge0")
try:
    links.make_pair("pair0", "bridge0", elsewhere, endpoint, 1500)
except UnsupportedHost as problem:
    print(problem.message, links.named("pair"))
""")
    assert said == "link bridge0 is not there any more; somebody has taken it away []"
