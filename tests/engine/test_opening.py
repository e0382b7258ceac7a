"""Where a browser finds a published port, and what a notebook shows of it."""

from __future__ import annotations

from typing import Any

import pytest

from nbcontainer.engine import opening
from nbcontainer.engine.opening import Launched, Page, Published, address, behind_proxy, chosen_port, published_ports
from nbcontainer.errors import InvalidOption, NotFound

WEB = {"ip": "0.0.0.0", "host_port": 8080, "container_port": 80, "protocol": "tcp"}
HUB = {"JUPYTERHUB_SERVICE_PREFIX": "/user/ann/"}


def record(*ports: dict[str, Any], network: str = "bridge") -> dict[str, Any]:
    return {"ports": list(ports), "spec": {"network": network}}


def test_what_a_record_tells() -> None:
    """Damaged entries are left out, an absent list is none."""
    assert published_ports(record(WEB)) == (Published(ip="0.0.0.0", host_port=8080, container_port=80),)
    assert published_ports({"ports": [None, {}, {"host_port": "x", "container_port": 1}, 3]}) == ()
    for nothing in ({}, {"ports": None}, {"ports": "x"}):
        assert published_ports(nothing) == ()
    assert str(published_ports(record({**WEB, "ip": "::1"}))[0]) == "[::1]:8080->80/tcp"
    assert str(published_ports(record({**WEB, "ip": ""}))[0]) == "0.0.0.0:8080->80/tcp"


def test_the_port_that_is_meant() -> None:
    """The container's own number; without one the only one, whichever family; udp is no page."""
    both = record({**WEB, "ip": "::"}, WEB)
    assert chosen_port(both, "web", None).ip == "0.0.0.0"
    assert chosen_port(both, "web", 80).host_port == 8080
    two = record(WEB, {**WEB, "container_port": 443, "host_port": 8443})
    assert chosen_port(two, "web", 443).host_port == 8443
    with pytest.raises(InvalidOption, match=r"several ports \(80, 443\)"):
        chosen_port(two, "web", None)
    with pytest.raises(NotFound, match="it publishes 80, 443"):
        chosen_port(two, "web", 8080)
    with pytest.raises(NotFound, match="publishes no port"):
        chosen_port(record({**WEB, "protocol": "udp"}), "web", None)


def test_in_the_machines_network() -> None:
    """Every port is there, so it has to be said which."""
    assert chosen_port(record(network="host"), "web", 8000) == Published(
        ip="127.0.0.1", host_port=8000, container_port=8000
    )
    with pytest.raises(InvalidOption, match="say which port"):
        chosen_port(record(network="host"), "web", None)


@pytest.mark.parametrize(
    ("ip", "proxied", "url"),
    [
        ("", False, "http://127.0.0.1:8080/"),
        ("0.0.0.0", False, "http://127.0.0.1:8080/"),
        ("127.0.0.1", False, "http://127.0.0.1:8080/"),
        ("10.1.2.3", False, "http://10.1.2.3:8080/"),
        ("::", False, "http://[::1]:8080/"),
        ("fd00::7", False, "http://[fd00::7]:8080/"),
        ("0.0.0.0", True, "/user/ann/proxy/8080/"),
        ("10.1.2.3", True, "/user/ann/proxy/10.1.2.3:8080/"),
    ],
)
def test_addresses(ip: str, proxied: bool, url: str) -> None:
    """This machine's own, or through the notebook's server."""
    assert address(Published(ip=ip, host_port=8080, container_port=80), HUB, proxied=proxied) == url


def test_behind_a_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only there, and only with the proxy installed."""
    monkeypatch.setattr(opening, "find_spec", lambda _: object())
    assert behind_proxy(HUB)
    assert not behind_proxy({})
    monkeypatch.setattr(opening, "find_spec", lambda _: None)
    assert not behind_proxy(HUB)


def test_the_page_in_a_notebook() -> None:
    """A frame and a link; what comes by the server's own origin has not the rights of that."""
    own, proxied = Page(url="http://127.0.0.1:1/"), Page(url="/user/a/proxy/1/", proxied=True, note="<b>")
    assert "allow-same-origin" in own._repr_html_()
    assert "allow-same-origin" not in proxied._repr_html_()
    assert "sandbox=" in proxied._repr_html_()
    assert "&lt;b&gt;" in proxied._repr_html_()
    assert str(own) == "http://127.0.0.1:1/"
    assert str(proxied) == "/user/a/proxy/1/\n<b>"
    assert 'src="http://x/&quot;&gt;"' in Page(url='http://x/">')._repr_html_()


def test_what_is_said_of_one_that_was_launched() -> None:
    """Name, short id, links."""
    launched = Launched(id="a" * 64, name="web", links=(("0.0.0.0:1->80/tcp", "http://127.0.0.1:1/"),))
    assert str(launched) == "web (aaaaaaaaaaaa) runs on behind\n0.0.0.0:1->80/tcp  http://127.0.0.1:1/"
    assert 'href="http://127.0.0.1:1/"' in launched._repr_html_()
    assert repr(Launched(id="b" * 64)) == "bbbbbbbbbbbb runs on behind"
