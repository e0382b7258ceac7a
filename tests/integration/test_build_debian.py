"""The introduction's Dockerfile for real: Debian's own nginx, installed by apt in a base that mmdebstrap makes.

It is built in every tier, and what root built runs in docker and podman.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.integration.fixtures import OWN_TIER
from tests.integration.programs import copy, run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.tiers import Tier

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.peers("mmdebstrap"),
    pytest.mark.timeout(900),
]

_NGINX = """\
FROM {image}
MAINTAINER Ada <ada@example.org>
RUN apt-get update
RUN apt-get install -y nginx
EXPOSE 80
CMD ["nginx", "-g", "daemon off;"]
"""
_TALK = """\
nginx
exec 3<>/dev/tcp/127.0.0.1/80
printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3
head -1 <&3
nginx -s stop
"""


def test_nginx(tier: Tier, debian: str) -> None:
    """It is built with a cold cache, found made the second time, and the server answers."""
    text = _NGINX.format(image=debian)
    tier.driver.pull(debian)
    with tier.spawn() as driver:  # which lets go of the network when it ends
        built = driver.build(text, "web", network="default")
        assert [end.partition(":")[0] for end in built["ends"]] == ["cached", "done", "done"]
        assert not [notice for notice in built["notices"] if "network" in notice]
        again = driver.build(text, "web", network="default")
    assert again["id"] == built["id"]
    answer = tier.driver.run("bash", "-c", _TALK, image="web")
    assert "200 OK" in answer.stdout, answer


_PAGE = """\
exec 3<>/dev/tcp/127.0.0.1/80
printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3
cat <&3
"""


def served_by(engine: Callable[..., str], *options: str) -> str:
    """The page that the image's own command serves, asked for from inside: there is no network."""
    container = engine("run", "--detach", "--network", "none", *options, "web").strip()
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                return engine("exec", container, "bash", "-c", _PAGE)
            except AssertionError:  # nginx does not listen yet
                assert time.monotonic() < deadline, engine("logs", container)
                time.sleep(0.1)
    finally:
        engine("rm", "--force", container)


@OWN_TIER
@pytest.mark.root
@pytest.mark.peers("docker", "dockerd", "podman", "skopeo", "docker-registry")
def test_the_same_image_elsewhere(
    tier: Tier,
    debian: str,
    *,
    docker: Callable[..., str],
    podman: Callable[..., str],
    registry_host: str,
    peers_folder: Path,
) -> None:
    """Docker and podman load the archive and serve the page; skopeo copies it to a registry, digest for digest."""
    archive = peers_folder / "web.tar"
    built = tier.driver.build(_NGINX.format(image=debian), "web", outputs=[("oci", str(archive))])
    assert "web" in docker("load", "--input", str(archive))
    assert docker("inspect", "--format", "{{.Id}}", "web").strip() == built["id"]
    assert "Welcome to nginx" in served_by(docker)
    podman("load", "--quiet", "--input", str(archive))
    assert podman("inspect", "--format", "{{.Id}}", "web").strip() == built["id"].removeprefix("sha256:")
    assert "Welcome to nginx" in served_by(podman, *_PODMAN_LIMITS)
    name = f"docker://{registry_host}/built/web:1"
    copy(f"oci-archive:{archive}", name, "--preserve-digests")
    told = json.loads(run("skopeo", "inspect", "--tls-verify=false", name))
    assert told["Digest"] == built["digest"]
    settings = json.loads(run("skopeo", "inspect", "--config", f"docker-archive:{archive}"))
    assert settings["author"] == "Ada <ada@example.org>"
    assert settings["config"]["Cmd"] == ["nginx", "-g", "daemon off;"]
    assert settings["config"]["ExposedPorts"] == {"80/tcp": {}}
    assert [entry["created_by"].split()[0] for entry in settings["history"]][-5:] == [
        "MAINTAINER",
        "RUN",
        "RUN",
        "EXPOSE",
        "CMD",
    ]
    pulled = tier.driver.pull(f"{registry_host}/built/web:1")
    assert tier.driver.run("nginx", "-v", image=pulled).ok


_PODMAN_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
"""Podman raises limits otherwise, which root without CAP_SYS_RESOURCE may not."""
