"""Networks of containers, as root and as a user: ways out and in, names, and what must not be reached."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.build.request import BuildOptions, ContextSource
from nbcontainer.engine.engine import Engine
from nbcontainer.engine.settings import Settings
from nbcontainer.errors import NbcontainerError
from nbcontainer.model import StepOutput
from nbcontainer.model.network import NetworkOptions
from nbcontainer.network.plan import mac_of, store_key
from nbcontainer.network.ports import read_publish
from nbcontainer.network.programs import found
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.leaks import lives, processes_below
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Driver, Tier

pytestmark = pytest.mark.peers("nft", "pasta")

SERVER = """
import socket, sys, threading
def answer(channel):
    try:
        data = channel.recv(65536)
        channel.sendall(b"hello " + data)
    finally:
        channel.close()
listeners = []
for family in (socket.AF_INET, socket.AF_INET6):
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(("", 80))
    listener.listen(64)
    listeners.append(listener)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("", 53))
def tcp(listener):
    while True:
        threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
for listener in listeners:
    threading.Thread(target=tcp, args=(listener,), daemon=True).start()
print("ready", flush=True)
while True:
    data, peer = datagrams.recvfrom(65536)
    datagrams.sendto(data.upper(), peer)
"""
"""Answers hello by TCP at 80, and in capitals by UDP at 53: a port that no server of ours may take from it."""

TRY = """
import errno, socket, sys
for word in sys.argv[1:]:
    host, _, port = word.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 3) as channel:
            channel.sendall(b"you")
            print(word, channel.recv(100).decode())
    except socket.gaierror as problem:
        print(word, "no such name")
    except OSError as problem:
        print(word, errno.errorcode.get(problem.errno, "timeout"))
"""


@pytest.fixture
def net(tier: Tier) -> Iterator[Tier]:
    """Lend a tier that can have networks here; its engine lets go of the keeper afterwards."""
    if found("nft") is None or (not tier.privileged and found("pasta") is None):
        pytest.skip("networks take nft, and as a user pasta")
    yield tier
    tier.driver.begin("close")
    tier.driver.finish()


@contextlib.contextmanager
def server(tier: Tier, name: str = "web", *, network: str = "bridge", **options: Any) -> Iterator[Driver]:
    """Run a server in a container of another notebook."""
    with tier.spawn() as driver:
        networking = NetworkOptions(**options)
        driver.begin_run(PYTHON, "-c", SERVER, name=name, remove=True, network=network, networking=networking)
        driver.wait_for_output(b"ready")
        try:
            yield driver
        finally:
            with contextlib.suppress(Raised):
                tier.driver.call("kill", name)
            driver.finish()


def attempts(tier: Tier, *words: str, network: str = "bridge", **options: Any) -> dict[str, str]:
    """What came of connecting to each HOST:PORT from inside a container."""
    networking = NetworkOptions(**options)
    result = tier.run(PYTHON, "-c", TRY, *words, network=network, networking=networking)
    assert result.ok, result
    return dict(line.split(" ", 1) for line in result.stdout.splitlines())


def talk(host: str, port: int) -> bytes:
    """Say something to a server on this machine."""
    with socket.create_connection((host, port), 5) as channel:
        channel.sendall(b"host")
        return channel.recv(100)


def test_containers_of_two_notebooks_know_each_other(net: Tier) -> None:
    """By name, alias, id and address, over IPv4 and IPv6; a name of nobody is not found, and an address has a name."""
    with server(net, aliases=("www",)):
        (row,) = net.driver.call("containers")
        (place,) = net.driver.call("inspect_network", "bridge").endpoints
        tried = attempts(
            net,
            "web:80",
            "www:80",
            f"{row.id[:12]}:80",
            f"{place.address}:80",
            f"{place.address6}:80",
            "web:81",
            "wob:80",
        )
        assert list(tried.values()) == ["hello you"] * 5 + ["ECONNREFUSED", "no such name"]
        script = f"import socket; print(socket.gethostbyaddr({place.address!r})[0])"
        assert net.run(PYTHON, "-c", script, network="bridge").stdout == "web\n"


@pytest.mark.parametrize("published", ["18080:80", "127.0.0.1:18080:80", "0.0.0.0:18080:80", "[::1]:18080:80"])
def test_published_port(net: Tier, published: str) -> None:
    """It leads to the container from this machine, at once free again afterwards, and is told by `ps` and `port`."""
    with server(net, ports=read_publish(published)):
        host = "::1" if "::1" in published else "127.0.0.1"
        assert talk(host, 18080) == b"hello host"
        if published == "18080:80":
            assert talk("::1", 18080) == b"hello host"
        (mapping,) = net.driver.call("ports", "web")
        assert (mapping.host_port, mapping.container_port) == (18080, 80)
        with pytest.raises(Raised, match=r"18080.*in use"):
            net.run("true", network="bridge", networking=NetworkOptions(ports=read_publish("18080:80")))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 18080))


def test_published_for_others(net: Tier) -> None:
    """A port published on every address is reached at the machine's own addresses; one without an address is not."""
    address = _own_address()
    with server(net, ports=(*read_publish("0.0.0.0:18081:80"), *read_publish("18082:80"))):
        assert talk(address, 18081) == b"hello host"
        with pytest.raises(ConnectionRefusedError):
            talk(address, 18082)


def test_published_datagrams(net: Tier) -> None:
    """UDP is published, too: several peers at once, each gets its own answers."""
    with server(net, ports=read_publish("18053:53/udp")), contextlib.ExitStack() as undo:
        peers = [undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(5)]
        for number, peer in enumerate(peers):
            peer.settimeout(5)
            peer.sendto(b"peer %d" % number, ("127.0.0.1", 18053))
        assert [peer.recv(100) for peer in peers] == [b"PEER %d" % number for number in range(5)]


def test_published_range_and_free_port(net: Tier) -> None:
    """A range is published port by port; a port without a number of ours gets a free one."""
    with server(net, ports=(*read_publish("18090-18091:80-81"), *read_publish("80"))):
        assert talk("127.0.0.1", 18090) == b"hello host"
        with pytest.raises(ConnectionResetError):
            talk("127.0.0.1", 18091)
        free = net.driver.call("ports", "web")[-1].host_port
        assert free > 1023
        assert talk("127.0.0.1", free) == b"hello host"


def test_this_machine_cannot_be_reached(net: Tier) -> None:
    """Not its loopback, not by any address of it, not a published port, not the place where clouds keep secrets."""
    with contextlib.ExitStack() as undo:
        four, six = undo.enter_context(socket.socket()), undo.enter_context(socket.socket(socket.AF_INET6))
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        words = []
        for listener, address in ((four, "0.0.0.0"), (six, "::")):
            listener.bind((address, 0))
            listener.listen()
        own = [(four, "127.0.0.1"), (six, "::1"), *((six if ":" in each else four, each) for each in _own_addresses())]
        for listener, address in own:
            port = listener.getsockname()[1]
            socket.create_connection((address, port), 5).close()
            words.append(f"{address}:{port}")
        undo.enter_context(server(net, ports=read_publish("0.0.0.0:18083:80")))
        gateway = net.driver.call("inspect_network", "bridge").network
        words += [f"{each}:{four.getsockname()[1]}" for each in (gateway.gateway,)]
        words += [f"{gateway.gateway6}:{six.getsockname()[1]}", f"{_own_address()}:18083", "169.254.169.254:80"]
        tried = attempts(net, *words)
        assert set(tried) == set(words)
        assert set(tried.values()) <= {"ECONNREFUSED", "EHOSTUNREACH", "EACCES", "ENETUNREACH"}, tried


def test_abstract_sockets_of_this_machine(net: Tier) -> None:
    """They belong to the machine's network, and a container with one of its own finds nobody at their names."""
    name = f"\0nbcontainer-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(name)
        listener.listen()
        caller.connect(name)
        script = f"import socket; print(socket.socket(socket.AF_UNIX).connect_ex({name!r}))"
        assert net.run(PYTHON, "-c", script, network="bridge").stdout == f"{errno.ECONNREFUSED}\n"


def test_address_that_this_machine_gets_later(net: Tier) -> None:
    """It is closed to containers that run already, as soon as it is there."""
    if os.geteuid():
        pytest.skip("a further address takes root")
    with server(net), socket.socket() as listener:
        subprocess.run(["ip", "addr", "add", "198.51.100.77/32", "dev", "lo"], check=True)
        try:
            listener.bind(("198.51.100.77", 0))
            listener.listen()
            time.sleep(0.3)
            word = f"198.51.100.77:{listener.getsockname()[1]}"
            tried = net.driver.exec("web", PYTHON, "-c", TRY, word)
            assert tried.stdout.strip() in {f"{word} ECONNREFUSED", f"{word} EHOSTUNREACH"}, tried
        finally:
            subprocess.run(["ip", "addr", "del", "198.51.100.77/32", "dev", "lo"], check=True)


def test_outside_is_reached_and_cannot_reach_in(net: Tier, outside: str) -> None:
    """A server elsewhere is reached, by TCP and by UDP; a container cannot be reached from there past the ports."""
    assert attempts(net, f"{outside}:80") == {f"{outside}:80": "hello you"}
    script = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
    channel.settimeout(5)
    channel.sendto(b"up", ({outside!r}, 53))
    print(channel.recv(100))
"""
    assert net.run(PYTHON, "-c", script, network="bridge").stdout == "b'UP'\n"


def test_egress_reaches_its_names_alone(net: Tier, outside: str, name_server: str) -> None:
    """What a name resolves to can be reached then, and not before; nothing else, and no other name is looked up."""
    words = [f"{outside}:80", "answered.example:80", f"{outside}:80", "other.example:80", "198.51.100.3:80"]
    script = TRY.replace("sys.argv[1:]", repr(words))
    result = net.run(
        PYTHON, "-c", script, network="egress:answered.example", networking=NetworkOptions(dns=(name_server,))
    )
    assert result.ok, result
    said = [line.split(" ", 1)[1] for line in result.stdout.splitlines()]
    assert said == ["ECONNREFUSED", "hello you", "hello you", "no such name", "ECONNREFUSED"], said
    assert result.duration < 10


def test_egress_to_an_address_and_to_other_containers(net: Tier, outside: str) -> None:
    """An address may be named instead; a container of another network is not reached, by name or address."""
    with server(net):
        place = net.driver.call("inspect_network", "bridge").endpoints[0]
        tried = attempts(net, f"{outside}:80", "web:80", f"{place.address}:80", network=f"egress:{outside}")
        assert list(tried.values()) == ["hello you", "no such name", "ECONNREFUSED"]


def test_network_of_ones_own(net: Tier) -> None:
    """Containers of a network know each other, those of another do not reach them; it cannot go while it is used."""
    net.driver.call("create_network", "lab", subnets=("10.66.7.0/24",))
    try:
        with server(net, network="lab", address="10.66.7.9"):
            assert attempts(net, "web:80", "10.66.7.9:80", network="lab") == {
                "web:80": "hello you",
                "10.66.7.9:80": "hello you",
            }
            tried = attempts(net, "web:80", "10.66.7.9:80")
            assert tried["web:80"] == "no such name"
            assert tried["10.66.7.9:80"] in {"ECONNREFUSED", "EHOSTUNREACH"}
            with pytest.raises(Raised, match="network lab is in use by web"):
                net.driver.call("remove_network", "lab")
            with pytest.raises(Raised, match=r"10\.66\.7\.9 is taken"):
                net.run("true", network="lab", networking=NetworkOptions(address="10.66.7.9"))
            shown = net.driver.call("inspect_network", "lab")
            assert [each.names[0] for each in shown.endpoints] == ["web"]
    finally:
        net.driver.call("remove_network", "lab")
    with pytest.raises(Raised, match="no network 'lab'"):
        net.run("true", network="lab")


def test_internal_network_leads_nowhere(net: Tier, outside: str) -> None:
    """Its containers reach each other and nobody else; no name outside is looked up."""
    net.driver.call("create_network", "inner", internal=True)
    try:
        with server(net, network="inner"):
            tried = attempts(net, "web:80", f"{outside}:80", "answered.example:80", network="inner")
            assert tried["web:80"] == "hello you"
            assert tried[f"{outside}:80"] in {"ENETUNREACH", "ECONNREFUSED"}
            assert tried["answered.example:80"] == "no such name"
    finally:
        net.driver.call("remove_network", "inner")


def test_gateway_keeps_its_hardware_address(net: Tier) -> None:
    """Its own, not that of a container's link: those that stay would send to one that has gone, for seconds."""
    with server(net, ports=read_publish("18086:80")):
        gateway = net.driver.call("inspect_network", "bridge").network.gateway
        script = f"""
import socket
with socket.socket() as probe:
    probe.connect_ex(({gateway!r}, 9))
with open("/proc/net/arp") as table:
    print([line.split()[3] for line in table if line.startswith({gateway + " "!r})])
"""
        for _ in range(5):
            result = net.run(PYTHON, "-c", script, network="bridge")
            assert result.stdout == f"{[mac_of(IPv4Address(gateway))]}\n"
            assert talk("127.0.0.1", 18086) == b"hello host"


def test_connect_and_disconnect(net: Tier) -> None:
    """A running container gets a place in a further network, under an alias, and leaves it again."""
    net.driver.call("create_network", "lab")
    try:
        with server(net):
            place = net.driver.call("connect_network", "lab", "web", NetworkOptions(aliases=("again",)))
            assert place.interface == "eth1"
            assert attempts(net, "again:80", network="lab") == {"again:80": "hello you"}
            with pytest.raises(Raised, match="in network lab already"):
                net.driver.call("connect_network", "lab", "web")
            net.driver.call("disconnect_network", "lab", "web")
            assert attempts(net, "again:80", "web:80", network="lab") == {
                "again:80": "no such name",
                "web:80": "no such name",
            }
            assert attempts(net, "web:80") == {"web:80": "hello you"}
    finally:
        net.driver.call("remove_network", "lab")


def test_network_of_another_container(net: Tier) -> None:
    """What another container has on its loopback is there, whichever notebook runs it; and its names."""
    with server(net):
        assert attempts(net, "127.0.0.1:80", network="container:web") == {"127.0.0.1:80": "hello you"}
        links = net.run("sh", "-c", "cd /sys/class/net; echo *", network="container:web").stdout.split()
        assert links == ["eth0", "lo"]
        with pytest.raises(Raised, match="-p does not go with another container's network"):
            net.run("true", network="container:web", networking=NetworkOptions(ports=read_publish("80")))
    with pytest.raises(Raised, match="no container"):
        net.run("true", network="container:web")


ADDRESS = f"RUN echo $({PYTHON} -c 'import socket; print(socket.gethostbyname(socket.gethostname()))')"
"""An instruction that says, and writes to a file, which address it has; the file's name is still to come."""


def test_commands_of_a_build_have_one_network_after_another(net: Tier) -> None:
    """The next RUN finds the place of the last, and of that nothing: neither who listened there nor what was changed."""
    listener = 'import socket,time; s=socket.create_server(("",80)); print(1,flush=True); time.sleep(60)'
    closing = 'import socket; s=socket.create_server(("127.0.0.1",81)); c=socket.create_connection'
    closing += '(("127.0.0.1",81)); a,_=s.accept(); a.shutdown(1); c.recv(1); c.close(); a.recv(1); a.close()'
    text = f"""FROM {net.image}
{ADDRESS} > /first
RUN {PYTHON} -c '{listener}' > /up & while ! test -s /up; do :; done; mkdir -p /dev/shm/mine
RUN {PYTHON} -c 'import socket; assert socket.socket().connect_ex((socket.gethostname(), 80)) == 111'
RUN ! test -e /dev/shm/mine
RUN {PYTHON} -c '{closing}'
RUN {PYTHON} -c 'import socket; socket.socket().bind(("127.0.0.1", 81))'
RUN ! echo 1 > /proc/sys/net/ipv4/ip_forward
{ADDRESS} > /last
{ADDRESS} >> /last
"""
    net.driver.build(text, "placed", network="default", no_cache=True)
    first, last, same = net.run("cat", "/first", "/last", image="placed").stdout.split()
    assert last == same
    assert first != last, "a place in which a connection lingers was used again"
    assert IPv4Address(first).is_private


def test_stages_at_the_same_time_have_networks_of_their_own(net: Tier) -> None:
    """Two commands that run at once would be in each other's way."""
    text = "".join(f"FROM {net.image} AS {stage}\n{ADDRESS} > /mine; sleep 1 # {stage}\n" for stage in "ab")
    text += f"FROM {net.image}\nCOPY --from=a /mine /a\nCOPY --from=b /mine /b\n"
    net.driver.build(text, "apart", network="default", no_cache=True)
    assert len(set(net.run("cat", "/a", "/b", image="apart").stdout.split())) == 2


def test_build_that_waits_for_its_network_is_interrupted(net: Tier) -> None:
    """A launcher that does not answer cannot hold a build, and when it goes on, nothing begins."""
    with net.spawn(build_idle=60) as driver:
        driver.build(f"FROM {net.image}\nRUN true\n", "met", network="none", no_cache=True)
        # that of builds is the first: a user's notebook gets one of its own when the first RUN's folder is removed
        launcher = min(pid for pid in driver.processes() if len(processes_below(pid)) > 2)
        os.kill(launcher, signal.SIGSTOP)
        try:
            driver.begin_build(f"FROM {net.image}\nRUN sleep 987\n", "met", network="default", no_cache=True)
            time.sleep(0.5)
            driver.interrupt()
            with pytest.raises(Raised, match="interrupted"):
                driver.finish(within=30)
        finally:
            os.kill(launcher, signal.SIGCONT)
        time.sleep(1)
        below = [Path(f"/proc/{pid}/cmdline") for pid in driver.processes()]
        assert not [path for path in below if path.exists() and b"987" in path.read_bytes()]
        driver.build(f"FROM {net.image}\nRUN true\n", "met", network="default", no_cache=True)
        driver.begin("close")
        driver.finish()


@OWN_TIER
def test_engine_is_closed_during_a_build(net: Tier, tmp_path: Path) -> None:
    """A command in a place of a build does not hold the launcher's end, and nothing of the place is left."""
    failed: list[BaseException] = []
    before = processes_below(os.getpid())
    (tmp_path / "Dockerfile").write_text(f"FROM {net.image}\nRUN echo begun; sleep 988\n", encoding="ascii")
    begun = threading.Event()

    def build() -> None:
        options = BuildOptions(context=ContextSource(folder=str(tmp_path)), tags=("met",), network="bridge")
        try:
            engine.build(options, listener=lambda event: begun.set() if isinstance(event, StepOutput) else None)
        except NbcontainerError as problem:
            failed.append(problem)

    with Engine(Settings(root=str(tmp_path / "store"), network_idle=0.3)) as engine:
        thread = threading.Thread(target=build)
        thread.start()
        assert begun.wait(60), failed
        engine.close()
        thread.join(20)
        assert not thread.is_alive()
        assert failed
    others = processes_below(net.driver.pid)
    wait_until(lambda: not any(map(lives, processes_below(os.getpid()) - before - others)), what="nothing of it runs")


def test_killed_keeper_is_replaced_for_a_build(net: Tier) -> None:
    """A place of a keeper that was killed is not used again, in the same build neither."""
    with net.spawn(build_idle=60) as driver:
        text = f"FROM {net.image}\n{ADDRESS} > /seen; test -e /proc/sys/net/ipv4/conf/eth0\n"
        driver.build(text, "met", network="default", no_cache=True)
        for keeper in _keepers(net):
            os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not _keepers(net), what="the keeper is gone")
        time.sleep(0.2)  # who holds the network hears of it
        driver.build(text, "met", network="default", no_cache=True)
        assert _keepers(net)
        launcher = max(driver.processes(), key=lambda pid: len(processes_below(pid)))
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: not lives(launcher), what="the launcher of builds is gone")
        driver.build(text, "met", network="default", no_cache=True)
        driver.begin("close")
        driver.finish()


def test_killed_keeper_is_replaced(net: Tier) -> None:
    """After a kill -9 the next container finds a new keeper, which has the running ones back: links, names, ports."""
    with server(net, ports=read_publish("18084:80")):
        assert talk("127.0.0.1", 18084) == b"hello host"
        for pid in _keepers(net):
            os.kill(pid, signal.SIGKILL)
        assert attempts(net, "web:80") == {"web:80": "hello you"}
        assert talk("127.0.0.1", 18084) == b"hello host"


def test_killed_way_out_is_replaced(net: Tier, outside: str) -> None:
    """A user's pasta that was killed is there again for the next container; it has nothing of those that were there."""
    if net.privileged:
        pytest.skip("root's way out is the machine's own")
    with server(net):
        os.kill(_pasta(net), signal.SIGKILL)
        time.sleep(0.5)  # it has a network to take down
        assert attempts(net, f"{outside}:80", "web:80") == {f"{outside}:80": "hello you", "web:80": "hello you"}
        held = [os.readlink(each) for each in Path(f"/proc/{_pasta(net)}/fd").iterdir()]
        assert len([each for each in held if each.startswith("net:")]) == 1
        assert "anon_inode:[pidfd]" not in held


def _keepers(tier: Tier, store: str = "") -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{name}/cmdline").read_bytes()
            if b"keeper.py" in line and (store or tier.store).encode() in line:
                found.append(int(name))
    return found


def _pasta(tier: Tier) -> int:
    below = {pid for keeper in _keepers(tier) for pid in processes_below(keeper)}
    (found,) = [pid for pid in below if b"--config-net" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return found


def test_notebook_that_comes_when_the_last_has_gone(net: Tier, tmp_path: Path) -> None:
    """A kernel is restarted while the keeper of its networks waits for the next container: that finds it at work."""
    root = str(net.folder("store"))
    keepers = set()
    for _ in range(3):
        with net.spawn(root=root) as driver:
            assert driver.run("true", network="bridge").ok
            keepers.add(frozenset(_keepers(net, root)))
    assert len(keepers) == 1 or patient(1) > 1  # it waits for a second, in which a slow machine starts no engine
    wait_until(lambda: not _keepers(net, root), what="the keeper has left")


def test_nothing_is_left(net: Tier) -> None:
    """With the last container go bridge, links, packet filter and keeper."""
    with server(net, ports=read_publish("0.0.0.0:18085:80")):
        assert len(_keepers(net)) >= 1
    net.driver.begin("close")
    net.driver.finish()
    wait_until(lambda: not _keepers(net), what="the keeper has left")
    if net.privileged:
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        key = store_key(os.path.realpath(net.store), 0)
        assert f"nbc{key}" not in links
        tables = subprocess.run([found("nft") or "nft", "list", "tables"], capture_output=True, text=True, check=True)
        assert key not in tables.stdout


def test_names_elsewhere_are_asked_of_this_machines_servers(net: Tier, name_server: str) -> None:
    """A server of the machine's answers through ours; --dns asks another one, and containers are known all the same."""
    script = "import socket; print(socket.gethostbyname('answered.example'), socket.gethostbyname('web'))"
    with server(net):
        place = net.driver.call("inspect_network", "bridge").endpoints[0]
        result = net.run(PYTHON, "-c", script, network="bridge", networking=NetworkOptions(dns=(name_server,)))
        assert result.stdout == f"198.51.100.2 {place.address}\n", result


@pytest.fixture
def outside() -> Iterator[str]:
    """Have a server on a machine that is not this one: in a network namespace, behind a link."""
    if os.geteuid():
        pytest.skip("a further network namespace takes root")
    name = f"nbt{os.getpid() % 100000}"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    ip("netns", "add", name)
    try:
        ip("link", "add", f"{name}a", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("addr", "add", "198.51.100.1/24", "dev", f"{name}a")
        ip("link", "set", f"{name}a", "up")
        ip("-n", name, "addr", "add", "198.51.100.2/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        with subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", SERVER], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            try:
                yield "198.51.100.2"
            finally:
                process.kill()
    finally:
        ip("netns", "del", name)


@pytest.fixture
def name_server() -> Iterator[str]:
    """Serve 198.51.100.2 for every name, on a loopback address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        if os.geteuid():
            pytest.skip("a name server's port is root's")
        channel.bind(("127.0.0.153", 53))
        stop = threading.Event()

        def serve() -> None:
            channel.settimeout(0.1)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    query, peer = channel.recvfrom(4096)
                    end = query.index(b"\0", 12) + 5
                    found = query[end - 4 : end - 2] == b"\0\x01"
                    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04\xc6\x33\x64\x02" if found else b""
                    counts = b"\0\x01\0" + bytes((found,)) + b"\0\0\0\0"
                    channel.sendto(query[:2] + b"\x81\x80" + counts + query[12:end] + record, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "127.0.0.153"
        finally:
            stop.set()
            thread.join()


def _own_addresses() -> list[str]:
    listed = subprocess.run(["ip", "-o", "addr", "show", "scope", "global"], capture_output=True, text=True, check=True)
    lines = [line.split() for line in listed.stdout.splitlines()]
    return [words[3].partition("/")[0] for words in lines if not words[1].startswith("nbc")]


def _own_address() -> str:
    found = [each for each in _own_addresses() if "." in each]
    if not found:
        pytest.skip("this machine has no address but loopback")
    return found[0]
