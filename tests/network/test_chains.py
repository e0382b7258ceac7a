"""What other tables say of packets that are passed on."""

from __future__ import annotations

from nbcontainer.network.chains import ForwardChain, read_chains

LISTING = """\
table ip filter {
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain DOCKER-USER {
\t}
}
table inet firewalld {
\tchain filter_FORWARD {
\t\ttype filter hook forward priority filter + 10; policy accept;
\t}
}
table inet nbcontainer-abcdef {
\tchain forward {
\t\ttype filter hook forward priority filter - 10; policy accept;
\t}
}
"""


def test_chains_of_others_are_found():
    """Those that see what is passed on, with their policy, and not ours."""
    assert read_chains(LISTING) == (
        ForwardChain(table="ip filter", name="FORWARD", drops=True),
        ForwardChain(table="inet firewalld", name="filter_FORWARD", drops=False),
    )


def test_no_chain_and_other_text():
    """Nothing is found in nothing, and half a line is no chain."""
    assert read_chains("") == ()
    assert read_chains("chain\ntype filter hook\ntable\n policy") == ()
