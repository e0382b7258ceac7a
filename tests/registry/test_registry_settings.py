"""Mirrors, insecure hosts, and the endpoints they make."""

from __future__ import annotations

import pytest

from nbcontainer.errors import InvalidOption
from nbcontainer.registry.settings import RegistrySettings, canonical_registry


def test_docker_hub_has_its_own_host():
    """docker.io is asked at registry-1.docker.io, by https only, with the credentials of docker.io."""
    (endpoint,) = RegistrySettings().endpoints("docker.io")
    assert endpoint.url("https", "library/ubuntu", "manifests/latest") == (
        "https://registry-1.docker.io/v2/library/ubuntu/manifests/latest"
    )
    assert endpoint.schemes == ("https",)
    assert endpoint.credential_key == "docker.io"
    assert str(endpoint) == "docker.io"


@pytest.mark.parametrize(
    ("mirror", "url"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000/v2/library/x/blobs/y"),
        ("mirror.example", "https://mirror.example/v2/library/x/blobs/y"),
        ("harbor.example/hub/", "https://harbor.example/v2/hub/library/x/blobs/y"),
        ("https://art.example/api/hub/v2", "https://art.example/api/hub/v2/library/x/blobs/y"),
        ("https://h.example/v2/hub", "https://h.example/v2/hub/library/x/blobs/y"),
    ],
)
def test_mirror_bases(mirror, url):
    """A path goes before the repository name, unless it is an API base."""
    first, last = RegistrySettings(mirrors={"docker.io": (mirror,)}).endpoints("docker.io")
    assert first.url(first.schemes[0], "library/x", "blobs/y") == url
    assert first.mirror
    assert not last.mirror


def test_mirror_has_credentials_of_its_own():
    """What is filed for docker.io is not for its mirror."""
    first, _ = RegistrySettings(mirrors={"docker.io": ("mirror.example:5000",)}).endpoints("docker.io")
    assert first.credential_key == "mirror.example:5000"


@pytest.mark.parametrize("mirror", ["", "ftp://x", "x y", "https://u:p@x", "x?y=1", "https://"])
def test_bad_mirrors_are_refused_at_once(mirror):
    """A mirror that cannot be is an error when it is set, and shows no password."""
    with pytest.raises(InvalidOption) as caught:
        RegistrySettings(mirrors={"docker.io": (mirror,)})
    assert "u:p" not in str(caught.value)


def test_insecure_hosts():
    """Loopback always; others by name, or by name and port."""
    settings = RegistrySettings(insecure=("Lab.example", "box:5000"))
    assert settings.endpoints("localhost:5000")[0].schemes == ("https", "http")
    assert settings.is_insecure("lab.example:1234")
    assert settings.is_insecure("box:5000")
    assert not settings.is_insecure("box:5001")
    assert not settings.listed_insecure("127.0.0.1")


def test_senseless_settings_are_refused():
    """No attempts and no time are no settings."""
    with pytest.raises(InvalidOption):
        RegistrySettings(attempts=0)
    with pytest.raises(InvalidOption):
        RegistrySettings(timeout=0)


def test_names_of_docker_hub_are_one():
    """Every host of Docker Hub is docker.io."""
    assert {canonical_registry(n) for n in ("index.docker.io", "registry-1.docker.io", "Docker.io")} == {"docker.io"}
