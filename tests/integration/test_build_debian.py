"""The introduction's Dockerfile for real: Debian's own nginx, installed by apt in a base that mmdebstrap makes, in every tier."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from nbcontainer.testing.registry import InProcessRegistry
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


@pytest.fixture(scope="session")
def debian(registry: InProcessRegistry, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lend the name of a Debian image in a registry on loopback."""
    path: Path = tmp_path_factory.mktemp("debian") / "root.tar"
    subprocess.run(["mmdebstrap", "--variant=minbase", "--quiet", "bookworm", str(path)], check=True, timeout=600)
    registry.add_image("debian", "bookworm", layers=[path.read_bytes()], compression="none", config={"Cmd": ["bash"]})
    path.unlink()
    return registry.reference("debian", "bookworm")


def test_nginx(tier: Tier, debian: str) -> None:
    """It is built with a cold cache, found made the second time, and the server answers."""
    text = _NGINX.format(image=debian)
    tier.driver.pull(debian)
    built = tier.driver.build(text, "web")
    assert [end.partition(":")[0] for end in built["ends"]] == ["cached", "done", "done"]
    again = tier.driver.build(text, "web")
    assert again["id"] == built["id"]
    answer = tier.driver.run("bash", "-c", _TALK, image="web")
    assert "200 OK" in answer.stdout, answer
