"""A database, a login server and a web server at once: Debian's own, built inline, on one network, by name and by port.

Each is used by its own client, from a container that knows it by name alone, and from this machine through the port
that it was published at. So what is tried is what daemons do that simple programs do not: users of their own,
privileged ports, sockets in /run, volumes that are filled, processes for each session.

With a single id sshd ends every session: it looks whether it did become its unprivileged user, and it did not. So the
story is told by root and by a user with subordinate ids.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest
import requests

from nbcontainer.model import RunOptions, ServiceOptions, VolumeMount
from nbcontainer.model.network import NetworkOptions
from nbcontainer.network.ports import read_publish
from nbcontainer.network.programs import found
from tests.harness.patience import patient
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Tier

pytestmark = [
    pytest.mark.network,
    pytest.mark.slow,
    pytest.mark.peers("mmdebstrap"),
    pytest.mark.timeout(900),
    pytest.mark.parametrize(
        "person",
        [
            pytest.param("own", marks=[pytest.mark.userns, pytest.mark.overlay]),
            pytest.param("range", marks=[pytest.mark.subids, pytest.mark.overlay]),
        ],
        indirect=True,
    ),
]

_DOCKERFILE = """\
FROM {image} AS base
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update

FROM base AS web
RUN apt-get install -y --no-install-recommends nginx
RUN echo 'a page of nginx' > /var/www/html/index.html
EXPOSE 80
CMD ["nginx", "-g", "daemon off;"]

FROM base AS login
RUN apt-get install -y --no-install-recommends openssh-server
RUN <<END
mkdir -p -m 700 /root/.ssh /run/sshd
ssh-keygen -q -t ed25519 -N '' -C '' -f /key
cp /key.pub /root/.ssh/authorized_keys
END
EXPOSE 22
CMD ["/usr/sbin/sshd", "-D", "-e"]

FROM base AS database
RUN apt-get install -y --no-install-recommends mariadb-server
COPY <<END /etc/mysql/first.sql
CREATE DATABASE IF NOT EXISTS shop;
CREATE USER IF NOT EXISTS 'ada'@'%' IDENTIFIED BY 'lovelace';
GRANT ALL ON shop.* TO 'ada'@'%';
END
RUN mkdir -p /run/mysqld && chown mysql: /run/mysqld
VOLUME /var/lib/mysql
EXPOSE 3306
CMD ["mariadbd", "--user=mysql", "--bind-address=*", "--init-file=/etc/mysql/first.sql"]

FROM database AS client
RUN apt-get install -y --no-install-recommends openssh-client curl
COPY --from=login --chmod=600 /key /key
"""
"""What their packages are fetched from is asked for once; the stages are built at the same time."""

_STAGES = ("web", "login", "database", "client")
_PAGE = "curl -sS --max-time 20 http://{host}:{port}/"
_SQL = "mariadb --skip-ssl --protocol=tcp -h {host} -P {port} -u ada -plovelace shop -N -B -e '{text}'"
_SSH = (
    "ssh -i /key -p {port} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes"
    " root@{host} 'cat /proc/sys/kernel/hostname; echo $SSH_CONNECTION'"
)


@pytest.fixture
def images(tier: Tier, debian: str) -> Iterator[None]:
    """Build the four images of the one text, unless that is done; the engine lets go of the network afterwards."""
    if found("nft") is None or (not tier.privileged and found("pasta") is None):
        pytest.skip("networks take nft, and as a user pasta")
    text = _DOCKERFILE.format(image=debian)
    for stage in _STAGES:
        tier.driver.build(text, stage, target=stage)
    yield
    tier.driver.begin("close")
    tier.driver.finish()


@contextlib.contextmanager
def running(tier: Tier, image: str, port: int, *, volume: str = "", at: str = "") -> Iterator[int]:
    """Have a daemon run on behind under its image's name, published at a free port, which is lent; remove it after."""
    options = RunOptions(
        name=image,
        network="bridge",
        networking=NetworkOptions(ports=read_publish(str(port))),
        volumes=(VolumeMount(name=volume, target=at),) if volume else (),
        service=ServiceOptions(),
    )
    tier.driver.call("launch", image, (), options=options)
    try:
        (mapping,) = tier.driver.call("ports", image)
        yield mapping.host_port
    finally:
        tier.driver.call("remove_container", image, force=True)


def client(tier: Tier, command: str, *, network: str = "bridge", within: float = 40) -> str:
    """What a command in a container of clients writes, once the daemon it asks has come up."""
    deadline = time.monotonic() + patient(within)
    while True:
        result = tier.driver.run("bash", "-c", command, image="client", network=network)
        if result.ok:
            return result.stdout
        assert time.monotonic() < deadline, (command, result.stderr, *map(said, [tier] * 3, _STAGES[:3]))
        time.sleep(0.2)


def said(tier: Tier, name: str) -> str:
    """The end of what a daemon wrote."""
    with contextlib.suppress(Raised):
        return b"".join(line.data for line in tier.driver.call("logs", name)).decode(errors="replace")[-2000:]
    return ""


def test_three_daemons_at_once(tier: Tier, images: None) -> None:
    """Their clients use them by name from another container and by port from this machine; a volume keeps the rows."""
    with contextlib.ExitStack() as undo:
        web = undo.enter_context(running(tier, "web", 80))
        login = undo.enter_context(running(tier, "login", 22))
        with running(tier, "database", 3306, volume="rows", at="/var/lib/mysql") as database:
            assert client(tier, _PAGE.format(host="web", port=80)) == "a page of nginx\n"
            host, connection = client(tier, _SSH.format(host="login", port=22)).splitlines()
            shown = {each.name: each for each in tier.driver.call("containers")}
            assert set(shown) == {"web", "login", "database"}
            assert host == shown["login"].id[:12]
            assert connection.split()[-1] == "22"
            text = 'CREATE TABLE apples (name TEXT); INSERT INTO apples VALUES ("Boskoop"); SELECT name FROM apples'
            assert client(tier, _SQL.format(host="database", port=3306, text=text)) == "Boskoop\n"

            # and from this machine: the clients in its own network
            assert requests.get(f"http://127.0.0.1:{web}/", timeout=20).text == "a page of nginx\n"
            with socket.create_connection(("127.0.0.1", login), 20) as channel:
                assert channel.recv(100).startswith(b"SSH-2.0-OpenSSH")
            ssh = _SSH.format(host="127.0.0.1", port=login)
            assert client(tier, ssh, network="host").splitlines()[0] == host
            sql = _SQL.format(host="127.0.0.1", port=database, text="SELECT COUNT(*) FROM apples")
            assert client(tier, sql, network="host") == "1\n"
            ended = tier.driver.call("stop", "database")
            assert (ended.state, ended.exit_code) == ("exited", 0)
        with running(tier, "database", 3306, volume="rows", at="/var/lib/mysql"):
            sql = _SQL.format(host="database", port=3306, text="SELECT name FROM apples")
            assert client(tier, sql) == "Boskoop\n"
    tier.driver.call("remove_volume", "rows")
    assert tier.driver.call("containers", everything=True) == ()
