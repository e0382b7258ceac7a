"""Networks for containers of one engine: what was asked becomes a place, a gate, and three files in /etc.

The keeper does the work (`nbcontainer.network.keeper`); here the ports of this machine are taken, because this process
is in its network, and the answers are put where a container finds them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.lifecycle import Lifecycle
from nbcontainer.engine.saved import spec_of
from nbcontainer.engine.views import NetworkSummary
from nbcontainer.errors import Conflict, InvalidOption, NbcontainerError, NotFound, UnsupportedHost
from nbcontainer.model.network import Endpoint, Network, NetworkChoice, NetworkOptions, PortMapping
from nbcontainer.network import messages
from nbcontainer.network.client import KeeperClient
from nbcontainer.network.definitions import BRIDGE, Definitions
from nbcontainer.network.plan import SERVER_ADDRESS, check_mac, check_subnet, egress_network
from nbcontainer.network.ports import exposed_mappings, listen
from nbcontainer.network.programs import NO_NFT, NO_TUN, NO_UPLINK, found, may_open_tun
from nbcontainer.network.resolver import search_domains

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nbcontainer.engine.records import ContainerRecords, Stored
    from nbcontainer.engine.settings import Settings
    from nbcontainer.model import ContainerSpec, ImageConfig
    from nbcontainer.runtime.lent import LentNetwork

__all__ = ["Lease", "Networks", "check_networking", "new_network", "resolved_networking", "why_no_bridge"]

_CAP_NET_ADMIN = 12
_SHORT = 12
_LEAST_MTU = 1280
_MOST_MTU = 65535


def why_no_bridge(*, privileged: bool) -> str:
    """Why containers cannot have a network of their own here, with the fix; "" when they can."""
    if privileged:
        if not _may_administer_networks():
            return (
                "networks of containers take CAP_NET_ADMIN, which root does not have here (inside a container it is"
                " given with --cap-add NET_ADMIN); use --network none or --network host"
            )
        return "" if found("nft") else NO_NFT
    if not found("pasta"):
        return NO_UPLINK
    if not may_open_tun():
        return NO_TUN
    return "" if found("nft") else NO_NFT


def _may_administer_networks() -> bool:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_NET_ADMIN & 1)
    return False


def check_networking(choice: NetworkChoice, options: NetworkOptions) -> None:
    """Refuse, in docker's way, what cannot go together; raise `InvalidOption`."""
    asked = {
        "-p": options.ports or options.publish_all,
        "--dns": options.dns,
        "--dns-search": options.dns_search,
        "--ip": options.address,
        "--ip6": options.address6,
        "--mac-address": options.mac,
        "--network-alias": options.aliases,
        "--add-host": options.extra_hosts,
    }
    given = [flag for flag, value in asked.items() if value]
    if choice.is_bridged:
        pinned = [flag for flag in given if flag in {"--ip", "--ip6"}]
        if pinned and choice.kind == "egress":
            raise InvalidOption(f"{pinned[0]} does not go with --network egress, whose network is made for the run")
        return
    what = {"host": "this machine's network", "none": "no network", "container": "another container's network"}
    for flag in given:
        if flag == "--add-host" and choice.kind in {"host", "none"}:
            continue
        raise InvalidOption(f"{flag} does not go with {what[choice.kind]} (--network {choice.kind})")


def resolved_networking(options: NetworkOptions, config: ImageConfig) -> NetworkOptions:
    """With ``-P`` the image's exposed ports among those that are published."""
    if not options.publish_all:
        return options
    listed = {(each.container_port, each.protocol) for each in options.ports}
    further = [
        each for each in exposed_mappings(config.exposed_ports) if (each.container_port, each.protocol) not in listed
    ]
    return dataclasses.replace(options, ports=(*options.ports, *further), publish_all=False)


def new_network(
    name: str, subnets: Sequence[str], gateways: Sequence[str], *, internal: bool, mtu: int, labels: Sequence[str]
) -> Network:
    """A network as it was asked for; raise `InvalidOption`."""
    found: dict[str, Any] = {}
    waiting = list(gateways)
    for text in subnets:
        inside = [each for each in waiting if (":" in each) == (":" in text)]
        subnet, gateway = check_subnet(text, inside[0] if inside else "")
        waiting = [each for each in waiting if each not in inside[:1]]
        mark = "6" if ":" in subnet else ""
        if f"subnet{mark}" in found:
            raise InvalidOption(f"network {name} has one subnet of each kind, IPv4 and IPv6; leave {text} out")
        found |= {f"subnet{mark}": subnet, f"gateway{mark}": gateway}
    if waiting:
        raise InvalidOption(f"gateway {waiting[0]} belongs to no --subnet")
    if mtu and not _LEAST_MTU <= mtu <= _MOST_MTU:
        raise InvalidOption(f"MTU {mtu} is not between {_LEAST_MTU}, which IPv6 needs, and {_MOST_MTU}")
    return Network(name=name, id="", internal=internal, mtu=mtu, labels=tuple(labels), **found)


@dataclass(slots=True)
class Lease:
    """A container's network while it runs: how its spec changes, and what its start needs.

    `gate` and `namespace` are -1 where it needs none; with a `network` it is in one that others had before it.
    """

    spec: ContainerSpec
    gate: int = -1
    namespace: int = -1
    network: LentNetwork | None = None
    endpoints: tuple[Endpoint, ...] = ()
    _undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def fields(self) -> dict[str, Any]:
        """What a record keeps of it."""
        if not self.endpoints:
            return {}
        ports = [
            {
                "ip": mapping.host_ip or "127.0.0.1",
                "host_port": mapping.host_port,
                "container_port": mapping.container_port,
                "protocol": mapping.protocol,
            }
            for each in self.endpoints
            for mapping in each.ports
        ]
        return {"endpoints": [dataclasses.asdict(each) for each in self.endpoints], "ports": ports}

    def started(self) -> None:
        """The container has its own copies of the descriptors now. Safe twice."""
        self._undo.close()
        self.gate = self.namespace = -1


class Networks:
    """The networks of one store, as one engine sees them. Starts nothing before a container needs one."""

    def __init__(
        self,
        settings: Settings,
        records: ContainerRecords,
        *,
        privileged: bool,
        user_namespace: Callable[[], int],
        holds: Callable[[int], None],
    ) -> None:
        self._records = records
        self._privileged = privileged
        self._chosen = settings.network
        self.definitions = Definitions(settings.root)
        self._keeper = KeeperClient(
            settings.root,
            user_namespace=user_namespace,
            holds=holds,
            started=self._readmit,
            idle=settings.network_idle,
        )
        self._reason: str | None = None
        self._lock = threading.Lock()
        self._ahead: dict[str, Lease] = {}

    @property
    def problem(self) -> str:
        """Why there is no bridge here; looked up once."""
        if self._reason is None:
            self._reason = why_no_bridge(privileged=self._privileged)
        return self._reason

    @property
    def default(self) -> str:
        """The network of a container for which none was asked."""
        return self._chosen or ("none" if self.problem else BRIDGE.name)

    def close(self) -> None:
        """Let go of the keeper; containers keep their networks. Safe twice."""
        self.forget(tuple(self._ahead))
        self._keeper.close()

    # --- a container's network --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self, spec: ContainerSpec, name: str) -> Iterator[Lease]:
        """What `spec` asks for; given back at the end, when the container is over."""
        choice = NetworkChoice.parse(spec.network)
        if choice.kind == "container":
            lease = Lease(spec=self._beside(spec, choice.name))
            lease.namespace = self._namespace_of(choice.name, lease._undo)  # noqa: SLF001 - made by us, a line above
            try:
                yield lease
            finally:
                lease.started()
            return
        kept = self._claimed(spec)
        if kept is not None:
            with self._ending(kept):
                yield kept
            return
        if not choice.is_bridged:
            hosts = _host_lines(spec.networking.extra_hosts, "")
            yield Lease(spec=dataclasses.replace(spec, extra_hosts=(*spec.extra_hosts, *hosts)) if hosts else spec)
            return
        lease = self._place(spec, name, choice)
        with self._ending(lease):
            yield lease

    @contextlib.contextmanager
    def _ending(self, lease: Lease) -> Iterator[None]:
        try:
            yield
        finally:
            self._end(lease)

    def _end(self, lease: Lease) -> None:
        lease.started()
        with contextlib.suppress(NbcontainerError, OSError):  # a keeper that was killed has let go already
            self._keeper.ask_if_there(messages.Detach(container=lease.spec.id, over=True))

    def stand(self, spec: ContainerSpec) -> Lease:
        """A place that several containers have, one after another; `leave` gives it back."""
        return self._place(spec, "", NetworkChoice.parse(spec.network))

    def leave(self, lease: Lease) -> None:
        """Give back what `stand` gave. Safe twice, and when the keeper has died."""
        self._end(lease)

    @staticmethod
    def standing(spec: ContainerSpec, stand: Lease, network: LentNetwork) -> Lease:
        """What a container has there that asks for it now."""
        endpoints = tuple(dataclasses.replace(each, container=spec.id) for each in stand.endpoints)
        return Lease(spec=_placed(spec, endpoints[0]), network=network, endpoints=endpoints)

    def ahead(self, spec: ContainerSpec) -> Lease | None:
        """A place for a container that will probably be asked for; None when the keeper has none to give."""
        with self._lock:
            known = self._ahead.get(spec.id)
        if known is not None:
            return known
        try:
            lease = self._place(spec, "", NetworkChoice.parse(spec.network), ahead=True)
        except NbcontainerError:  # whoever asks for the container will meet it again, and be told
            return None
        with self._lock:
            self._ahead[spec.id] = lease
        return lease

    def forget(self, containers: Sequence[str]) -> None:
        """These will not be asked for any more."""
        for container in containers:
            with self._lock:
                lease = self._ahead.pop(container, None)
            if lease is not None:
                self._end(lease)

    def _claimed(self, spec: ContainerSpec) -> Lease | None:
        """The place that was kept for this container, where the keeper still has it."""
        with self._lock:
            lease = self._ahead.pop(spec.id, None)
        if lease is None:
            return None
        try:
            if self._keeper.ask_if_there(messages.Claim(container=spec.id)) is not None:
                lease.spec = _placed(spec, lease.endpoints[0])
                return lease
        except NbcontainerError:  # it has another keeper now
            pass
        lease.started()
        return None

    def _place(self, spec: ContainerSpec, name: str, choice: NetworkChoice, *, ahead: bool = False) -> Lease:
        if self.problem:
            raise UnsupportedHost(self.problem)
        network = self._network(spec.id, choice)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with ours:
                request = dataclasses.replace(self._request(spec, network, _names(spec, name), ports=True), ahead=ahead)
                endpoint = self._asked(request, [ours.fileno()], spec.networking.ports)
            lease = Lease(spec=_placed(spec, endpoint), gate=theirs.fileno(), endpoints=(endpoint,))
        except BaseException:
            theirs.close()
            raise
        lease._undo.callback(theirs.close)  # noqa: SLF001 - made by us, some lines above
        return lease

    @staticmethod
    def _request(
        spec: ContainerSpec, network: Network, names: tuple[str, ...], *, ports: bool, living: bool = False
    ) -> messages.Attach:
        options = spec.networking
        return messages.Attach(
            container=spec.id,
            network=network,
            names=names,
            address=options.address,
            address6=options.address6,
            mac=check_mac(options.mac) if options.mac else "",
            dns=options.dns,
            ports=options.ports if ports else (),
            living=living,
        )

    def _asked(self, request: messages.Attach, fds: Sequence[int], ports: Sequence[PortMapping]) -> Endpoint:
        """Take the ports on this machine and ask for the place."""
        with contextlib.ExitStack() as undo:
            taken: list[PortMapping] = []
            sockets: list[socket.socket] = []
            counts: list[int] = []
            for mapping in ports:
                mapping, listeners = listen(mapping)  # noqa: PLW2901 - the same, with its number
                for each in listeners:
                    undo.callback(each.close)
                taken.append(mapping)
                sockets += listeners
                counts.append(len(listeners))
            request = dataclasses.replace(request, ports=tuple(taken), sockets=tuple(counts))
            answer = self._keeper.ask(request, [*fds, *(each.fileno() for each in sockets)])
        if not isinstance(answer, messages.Attached):
            raise UnsupportedHost("the network keeper is of another version of nbcontainer; end it and try again")
        return answer.endpoint

    def _network(self, container: str, choice: NetworkChoice) -> Network:
        if choice.kind == "egress":
            return Network(name="egress", id=egress_network(container, choice.hosts), hosts=choice.hosts)
        return BRIDGE if choice.name == BRIDGE.name else self.definitions.find(choice.name)

    def _namespace_of(self, container: str, undo: contextlib.ExitStack) -> int:
        """Open the network namespace of a running container; `undo` closes it."""
        with Lifecycle(self._records).command_of(container) as (_, process):
            try:
                namespace = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as problem:
                raise UnsupportedHost(
                    f"the network of container {container} cannot be opened ({problem.strerror})"
                ) from problem
        undo.callback(os.close, namespace)
        return namespace

    def _beside(self, spec: ContainerSpec, container: str) -> ContainerSpec:
        """With the names of the container whose network it is: it has that one's address."""
        stored = self._records.find(container)
        endpoints = stored.endpoints
        addresses = tuple(text for each in endpoints for text in (each.address, each.address6) if text)
        text = _resolv_conf(NetworkOptions(), limited=False) if endpoints else spec.resolv_conf
        return dataclasses.replace(spec, addresses=addresses, resolv_conf=text)

    # --- what a person does with networks ---------------------------------------------------------------------------

    def walk(self) -> tuple[NetworkSummary, ...]:
        """Every network, and who is in it."""
        seen = self._seen()
        running = [endpoint for stored in self._records.walk() if stored.locked for endpoint in stored.endpoints]
        found = []
        for network in self.definitions.walk():
            there = next((each for each in seen.networks if each.id == network.id), network)
            places = tuple(each for each in running if each.network == network.name)
            found.append(NetworkSummary(network=there, endpoints=places))
        return tuple(found)

    def inspect(self, name: str) -> NetworkSummary:
        """One network; raise `NotFound`."""
        network = self.definitions.find(name)
        return next(each for each in self.walk() if each.network.id == network.id)

    def create(self, network: Network) -> Network:
        """Make a network; its bridge is made when the first container comes."""
        return self.definitions.create(network)

    def remove(self, name: str) -> Network:
        """Forget a network; raise `Conflict` while containers are in it."""
        network = self.definitions.find(name)
        used = [each.names[0] for each in self.inspect(name).endpoints]
        if used:
            raise Conflict(
                f"network {network.name} is in use by {', '.join(used)}; end them, or disconnect them from it"
            )
        self.definitions.remove(network)
        self._keeper.ask_if_there(messages.Remove(network=network.id))
        return network

    def prune(self) -> tuple[Network, ...]:
        """Remove the networks that no container is in, running or kept; return them."""
        named = set()
        for stored in self._records.walk():
            spec = stored.fields.get("spec")
            named |= {each.network for each in stored.endpoints}
            named.add(str(spec.get("network", "")) if isinstance(spec, dict) else "")
        return tuple(
            self.remove(each.name)
            for each in self.definitions.walk()
            if each.id != BRIDGE.id and each.name not in named
        )

    def connect(self, name: str, container: str, options: NetworkOptions) -> Endpoint:
        """Give a running container a place in a further network; raise `Conflict` when it has one."""
        network = self.definitions.find(name)
        stored = self._running(container)
        spec = spec_of(stored)
        if not NetworkChoice.parse(spec.network).is_bridged or network.hosts or spec.network.startswith("egress:"):
            raise InvalidOption(f"container {container} was started with --network {spec.network}, which stands alone")
        if any(each.network == network.name for each in stored.endpoints):
            raise Conflict(f"container {container} is in network {network.name} already")
        spec = dataclasses.replace(spec, networking=options)
        names = _names(spec, str(stored.fields.get("name") or ""))
        request = self._request(spec, network, names, ports=False, living=True)
        endpoint = self._living(stored.id, request, ())
        self._note(stored, (*stored.endpoints, endpoint))
        return endpoint

    def disconnect(self, name: str, container: str) -> None:
        """Take a running container out of a network; raise `NotFound` when it is not in it."""
        network = self.definitions.find(name)
        stored = self._running(container)
        left = tuple(each for each in stored.endpoints if each.network != network.name)
        if len(left) == len(stored.endpoints):
            raise NotFound(f"container {container} is not in network {network.name}; `inspect {container}` shows where")
        self._keeper.ask(messages.Detach(container=stored.id, network=network.name))
        self._note(stored, left)

    def renamed(self, stored: Stored) -> None:
        """A container has another name now, by which others shall find it."""
        if stored.locked and stored.endpoints:
            with contextlib.suppress(NbcontainerError):
                names = _names(spec_of(stored), str(stored.fields.get("name") or ""))
                self._keeper.ask_if_there(messages.Name(container=stored.id, names=names))
                self._note(stored, tuple(dataclasses.replace(each, names=names) for each in stored.endpoints))

    def _running(self, container: str) -> Stored:
        stored = self._records.find(container)
        if not stored.locked:
            raise Conflict(f"container {container} is not running; a network is chosen when it is run (--network)")
        return stored

    def _note(self, stored: Stored, endpoints: tuple[Endpoint, ...]) -> None:
        self._records.amend(stored, endpoints=[dataclasses.asdict(each) for each in endpoints])

    def _seen(self) -> messages.Seen:
        answer = self._keeper.ask_if_there(messages.Look())
        return answer if isinstance(answer, messages.Seen) else messages.Seen(networks=(), endpoints=())

    # --- a keeper that was killed -----------------------------------------------------------------------------------

    def _readmit(self) -> None:
        """Tell a new keeper of the containers that run: the one they had was killed, and its links were swept."""
        for stored in self._records.walk():
            if stored.locked and stored.endpoints:
                with contextlib.suppress(NbcontainerError, OSError, ValueError):  # it may be ending, or starting
                    spec = spec_of(stored)
                    for endpoint in stored.endpoints:
                        self._connect_living(stored, spec, endpoint)

    def _connect_living(self, stored: Stored, spec: ContainerSpec, endpoint: Endpoint) -> Endpoint:
        choice = NetworkChoice.parse(spec.network)
        if endpoint.network == "egress":
            network = self._network(stored.id, choice)
        else:
            network = self._network(stored.id, NetworkChoice(kind="bridge", name=endpoint.network))
        request = dataclasses.replace(
            self._request(spec, network, endpoint.names, ports=False, living=True),
            address=endpoint.address,
            address6=endpoint.address6,
            mac=endpoint.mac,
        )
        return self._living(stored.id, request, endpoint.ports)

    def _living(self, container: str, request: messages.Attach, ports: Sequence[PortMapping]) -> Endpoint:
        with contextlib.ExitStack() as undo, Lifecycle(self._records).command_of(container) as (_, process):
            namespace = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            undo.callback(os.close, namespace)
            return self._asked(request, [namespace, process.pidfd], ports)


def _placed(spec: ContainerSpec, endpoint: Endpoint) -> ContainerSpec:
    """The spec of a container that has this place: what its files in /etc say."""
    options = spec.networking
    return dataclasses.replace(
        spec,
        addresses=tuple(each for each in (endpoint.address, endpoint.address6) if each),
        extra_hosts=(*spec.extra_hosts, *_host_lines(options.extra_hosts, endpoint.gateway)),
        resolv_conf=_resolv_conf(options, limited=spec.network.startswith("egress:")),
    )


def _names(spec: ContainerSpec, name: str) -> tuple[str, ...]:
    """What a container is called in its network: the name it was given first."""
    listed = (name, *spec.networking.aliases, spec.hostname, spec.id[:_SHORT], spec.id)
    return tuple(dict.fromkeys(each for each in listed if each))


def _host_lines(extra: Sequence[str], gateway: str) -> tuple[str, ...]:
    """Lines of /etc/hosts for ``--add-host NAME:ADDRESS``."""
    lines = []
    for entry in extra:
        name, _, address = entry.partition(":")
        if address == "host-gateway":
            if not gateway:
                raise InvalidOption(f"--add-host {entry}: there is no gateway without a network of ours")
            address = gateway
        lines.append(f"{ipaddress.ip_address(address.strip('[]'))}\t{name}")
    return tuple(lines)


def _resolv_conf(options: NetworkOptions, *, limited: bool) -> str:
    """The name server is the keeper's, whichever servers it asks."""
    search = options.dns_search or (() if limited else search_domains())
    lines = [f"nameserver {SERVER_ADDRESS}", *([f"search {' '.join(search)}"] if search else []), "options ndots:0"]
    return "\n".join(lines) + "\n"
