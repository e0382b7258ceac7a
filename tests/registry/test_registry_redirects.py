"""Where a registry may send us, and what comes along."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import CorruptContent, NbcontainerError, RegistryRefused
from nbcontainer.model import Platform, Reference
from nbcontainer.registry import RegistryClient, RegistrySettings
from nbcontainer.registry.redirects import TargetPolicy
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.registry import InProcessRegistry

if TYPE_CHECKING:
    from nbcontainer.registry.addresses import Reach

LINUX = Platform("linux", "amd64")
REACHES: dict[str, set[Reach]] = {
    "registry.example": {"public"},
    "cdn.example": {"public"},
    "inside.example": {"private"},
    "auth.inside.example": {"private"},
    "trick.example": {"public", "loopback"},
    "127.0.0.1": {"loopback"},
    "169.254.169.254": {"link-local"},
}


def policy(registry: str = "registry.example", *, insecure: tuple[str, ...] = (), token: bool = True) -> TargetPolicy:
    settings = RegistrySettings(insecure=insecure)
    near: set[Reach] = {"loopback", "link-local", "private"} if token else {"loopback", "link-local"}
    return TargetPolicy(
        endpoint=settings.endpoints(registry)[-1],
        settings=settings,
        what="the test",
        forbidden=frozenset(near),
        find_reaches=lambda name: frozenset(REACHES.get(name, ())),
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://registry.example/token",
        "http://cdn.example/x",
        "https://127.0.0.1:8888/api",
        "https://169.254.169.254/latest/meta-data",
        "https://inside.example/token",
        "https://trick.example/token",
        "gopher://cdn.example/",
    ],
)
def test_a_public_registry_does_not_send_us_inside(url):
    """Neither plain http nor this machine, the metadata service or the private network."""
    with pytest.raises(NbcontainerError):
        policy().check(url)


def test_what_a_public_registry_may_name():
    """Its CDN, itself, and for content (not for tokens) a private store."""
    policy().check("https://cdn.example/x")
    policy().check("https://registry.example/token")
    policy(token=False).check("https://inside.example/x")


def test_a_private_registry_may_name_its_neighbour():
    """A token server beside a registry on the same private network is usual, loopback is not."""
    policy("inside.example").check("https://auth.inside.example/token")
    with pytest.raises(RegistryRefused):
        policy("inside.example").check("https://127.0.0.1/token")


def test_a_name_that_is_also_loopback_opens_nothing():
    """A registry with one public and one loopback address may not name loopback."""
    with pytest.raises(RegistryRefused, match="loopback"):
        policy("trick.example").check("https://127.0.0.1/token")


def test_a_registry_on_this_machine_may_name_this_machine():
    """What is insecure by its place may go on by http on that place."""
    policy("127.0.0.1:5000").check("http://127.0.0.1:5001/token")


def test_listed_hosts_are_exempt():
    """A person's list of insecure hosts decides."""
    policy(insecure=("inside.example",)).check("http://inside.example/token")
    assert policy(insecure=("inside.example",)).verify("https://inside.example/") is False


def test_certificates_are_verified_but_for_insecure_hosts():
    """Only the insecure registry itself goes unverified, not where it sends us."""
    assert policy().verify("https://registry.example/")
    assert policy().verify("https://127.0.0.1/")
    assert not policy("127.0.0.1:5000").verify("https://127.0.0.1:5000/")
    assert policy("127.0.0.1:5000").verify("https://cdn.example/")


@pytest.fixture
def settings(tmp_path):
    """Settings with little patience."""
    return RegistrySettings(backoff=0.001, timeout=5, docker_config=str(tmp_path / "config.json"))


@pytest.mark.parametrize("scheme", ["token", "basic"])
def test_authorization_stays_with_its_origin(settings, tmp_path, scheme):
    """A blob redirected to a store on another port is fetched without the header, even though the host is the same."""
    with InProcessRegistry() as store, InProcessRegistry(auth=scheme) as registry, RegistryClient(settings) as client:
        entry = {"auth": base64.b64encode(b"alice:wonderland").decode()}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: entry}}))
        registry.add_image("a", "latest", layers=[tiny_layer({"x": b"y"})])
        store.add_image("a", "latest", layers=[tiny_layer({"x": b"y"})])
        registry.faults.redirect_blobs = store.url
        reference = Reference.parse(registry.reference("a"))
        image = client.resolve(reference, LINUX)
        with client.open_blob(reference, image.manifest.layers[0]) as stream:
            assert len(b"".join(stream)) == image.manifest.layers[0].size
        assert len(store.requests) == 2
        assert all("authorization" not in request.headers for request in store.requests)
        assert all("X-Signature" in request.path for request in store.requests)
        assert any("authorization" in request.headers for request in registry.asked("blobs"))


def test_store_that_refuses_is_told_without_signature(settings):
    """An error of the store names the store, not the signed URL."""
    with InProcessRegistry(auth="basic") as store, InProcessRegistry() as registry, RegistryClient(settings) as client:
        registry.add_image("a", "latest", layers=[])
        registry.faults.redirect_blobs = store.url
        with pytest.raises(RegistryRefused) as caught:
            client.resolve(Reference.parse(registry.reference("a")), LINUX)
        assert store.host in str(caught.value)
        assert "do-not-show-me" not in str(caught.value)
        assert caught.value.status == 401


def test_ten_redirects_and_no_more(settings):
    """A long chain is followed, an endless one is not."""
    with InProcessRegistry() as registry, RegistryClient(settings) as client:
        registry.add_image("a", "latest", layers=[])
        reference = Reference.parse(registry.reference("a"))
        registry.faults.redirects = 10
        client.resolve(reference, LINUX)
        registry.faults.redirects = 11
        with pytest.raises(RegistryRefused, match="more than 10 times"):
            client.resolve(reference, LINUX)


def test_redirected_content_is_checked_too(settings):
    """Whoever answers, the bytes must match."""
    with InProcessRegistry() as store, InProcessRegistry() as registry, RegistryClient(settings) as client:
        registry.add_image("a", "latest", layers=[tiny_layer({"x": b"y"})])
        store.add_image("a", "latest", layers=[tiny_layer({"x": b"y"})])
        reference = Reference.parse(registry.reference("a"))
        layer = client.resolve(reference, LINUX).manifest.layers[0]
        registry.faults.redirect_blobs = store.url
        store.faults.corrupt = {layer.digest}
        with pytest.raises(CorruptContent), client.open_blob(reference, layer) as stream:
            b"".join(stream)
