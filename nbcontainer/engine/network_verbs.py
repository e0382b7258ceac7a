"""The verbs about networks and published ports: part of the one table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbcontainer.engine import tables
from nbcontainer.engine.command_line import Option, Positional, Verb, read_choice
from nbcontainer.engine.network_options import NETWORK_OPTIONS
from nbcontainer.errors import InvalidOption, NotFound
from nbcontainer.model.network import NetworkOptions
from nbcontainer.network.ports import port_text

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Sequence

    from nbcontainer.engine.door import Session
    from nbcontainer.engine.views import NetworkSummary

__all__ = ["NETWORK_VERBS"]


def _create(session: Session, arguments: Namespace) -> object:
    if arguments.driver not in {None, "bridge"}:
        raise InvalidOption(f"network driver {arguments.driver!r} is not there; a network is a bridge")
    summary = session.engine.create_network(
        arguments.name,
        subnets=arguments.subnet,
        gateways=arguments.gateway,
        internal=arguments.internal,
        mtu=arguments.mtu or 0,
        labels=arguments.label,
    )
    return tables.Message(summary.network.name)


def _list(session: Session, arguments: Namespace) -> object:
    return network_table(session.engine.networks(), quiet=arguments.quiet, full=arguments.no_trunc)


def _inspect(session: Session, arguments: Namespace) -> object:
    described = [_described(session.engine.inspect_network(name)) for name in arguments.network]
    return tables.Document(described[0] if len(described) == 1 else described)


def _described(summary: NetworkSummary) -> dict[str, Any]:
    """``network inspect``, in docker's words."""
    network = summary.network
    subnets = [(network.subnet, network.gateway), (network.subnet6, network.gateway6)]
    return {
        "Name": network.name,
        "Id": network.id,
        "Driver": "bridge",
        "Internal": network.internal,
        "Labels": dict(label.partition("=")[::2] for label in network.labels),
        "Mtu": network.mtu or None,
        "IPAM": {"Config": [{"Subnet": subnet, "Gateway": gateway} for subnet, gateway in subnets if subnet]},
        "Containers": {
            each.container: {
                "Name": each.names[0] if each.names else "",
                "Names": list(each.names),
                "MacAddress": each.mac,
                "IPv4Address": f"{each.address}/{each.prefix}",
                "IPv6Address": f"{each.address6}/{each.prefix6}" if each.address6 else "",
            }
            for each in summary.endpoints
        },
    }


def _remove(session: Session, arguments: Namespace) -> object:
    removed = []
    for name in arguments.network:
        try:
            removed.append(session.engine.remove_network(name).network.name)
        except NotFound:
            if not arguments.force:
                raise
    return tables.Message("\n".join(removed))


def _prune(session: Session, arguments: Namespace) -> object:  # noqa: ARG001 - every handler has this shape
    names = [each.network.name for each in session.engine.prune_networks()]
    return tables.Message("\n".join(names) if names else "every network that was made is in use")


def _connect(session: Session, arguments: Namespace) -> object:
    options = NetworkOptions(address=arguments.ip or "", address6=arguments.ip6 or "", aliases=arguments.alias)
    endpoint = session.engine.connect_network(arguments.network, arguments.container, options)
    return tables.Message(f"{arguments.container} is {endpoint.address} in {endpoint.network}")


def _disconnect(session: Session, arguments: Namespace) -> object:
    session.engine.disconnect_network(arguments.network, arguments.container)
    return tables.Message(f"{arguments.container} is not in {arguments.network} any more")


def _port(session: Session, arguments: Namespace) -> object:
    ports = session.engine.ports(arguments.container)
    if arguments.port is not None:
        number, _, protocol = arguments.port.partition("/")
        ports = tuple(
            each for each in ports if (str(each.container_port), each.protocol) == (number, protocol or "tcp")
        )
        if not ports:
            raise NotFound(f"port {arguments.port} of container {arguments.container} is not published")
        return tables.Message("\n".join(port_text(each).partition("->")[0] for each in ports))
    lines = [f"{inside} -> {outside}" for outside, _, inside in (port_text(each).partition("->") for each in ports)]
    return tables.Message("\n".join(lines))


def network_table(
    rows: Sequence[NetworkSummary], *, quiet: bool = False, full: bool = False
) -> tables.Table[NetworkSummary]:
    """``network ls``."""
    identity: tables.Column[NetworkSummary] = tables.Column(
        "NETWORK ID", lambda row: row.network.id if full else row.network.id[:12], lambda row: row.network.id
    )
    if quiet:
        return tables.Table([identity], rows, heading=False)
    return tables.Table(
        [
            identity,
            tables.Column("NAME", lambda row: row.network.name),
            tables.Column("SUBNET", lambda row: row.network.subnet or "-"),
            tables.Column("IPV6 SUBNET", lambda row: row.network.subnet6 or "-"),
            tables.Column("INTERNAL", lambda row: "yes" if row.network.internal else "no"),
            tables.Column(
                "CONTAINERS",
                lambda row: ", ".join(each.names[0] for each in row.endpoints if each.names),
                lambda row: len(row.endpoints),
            ),
        ],
        rows,
    )


def _read_mtu(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise InvalidOption(f"--mtu {text!r} is not a number of bytes; write for example 1400")
    return int(text)


_OPTIONS = {option.name: option for option in NETWORK_OPTIONS}
_NETWORK = Positional(name="NETWORK", help="a name or an id", completes="network")
_NETWORKS = Positional(name="NETWORK", help="a name or an id", count="some", completes="network")
_RUNNING = Positional(name="CONTAINER", help="a name or an id of one that runs", completes="running")

NETWORK_VERBS: tuple[Verb, ...] = (
    Verb(
        name="network create",
        summary="Make a network: containers in it know each other by name, and nobody else's",
        description="Its bridge is made when the first container comes, and taken away with the last one.",
        handler=_create,
        positionals=(Positional(name="NAME", help="its name"),),
        options=(
            Option(
                flags=("--subnet",),
                metavar="ADDRESS/BITS",
                many=True,
                help="its addresses, one subnet of IPv4 and one of IPv6; free ones are the default",
            ),
            Option(flags=("--gateway",), metavar="ADDRESS", many=True, help="the bridge's own address in a subnet"),
            Option(flags=("--internal",), help="lead nowhere outside, names included"),
            Option(
                flags=("--mtu",),
                metavar="BYTES",
                help="largest packet; the machine's own is the default",
                read=_read_mtu,
            ),
            Option(
                flags=("--label",),
                metavar="NAME=VALUE",
                many=True,
                help="a label",
                read=read_choice("label", r"[^=\s]+(?:=.*)?", "course=physics"),
            ),
            Option(flags=("-d", "--driver"), metavar="NAME", help="bridge, which is all there is"),
            Option(flags=("--ipv6",), help="have IPv6 addresses too: always so"),
            Option(flags=("-o", "--opt"), metavar="NAME=VALUE", refusal="use --mtu; there are no others"),
        ),
        examples=("network create lab", "network create --internal --subnet 10.50.0.0/24 lab"),
    ),
    Verb(
        name="network ls",
        summary="List networks, and the running containers in them",
        handler=_list,
        options=(
            Option(flags=("-q", "--quiet"), help="show only ids"),
            Option(flags=("--no-trunc",), help="show ids in full"),
        ),
        examples=("network ls",),
        aliases=("network list",),
    ),
    Verb(
        name="network inspect",
        summary="Show everything known of networks",
        description="One name answers an object, several a list of them.",
        handler=_inspect,
        positionals=(_NETWORKS,),
        examples=("network inspect lab",),
    ),
    Verb(
        name="network rm",
        summary="Remove networks",
        description="Not one that a container is in: end that first, or disconnect it.",
        handler=_remove,
        positionals=(_NETWORKS,),
        options=(Option(flags=("-f", "--force"), help="say nothing of one that is not there"),),
        examples=("network rm lab",),
        aliases=("network remove",),
    ),
    Verb(
        name="network prune",
        summary="Remove the networks that no container is in",
        description="Nothing is asked first.",
        handler=_prune,
        options=(Option(flags=("-f", "--force"), help="ask nothing: always so"),),
        examples=("network prune",),
    ),
    Verb(
        name="network connect",
        summary="Give a running container a place in a further network",
        handler=_connect,
        positionals=(_NETWORK, _RUNNING),
        options=(
            Option(
                flags=("--alias",),
                metavar="NAME",
                many=True,
                help="a further name for it in that network",
                read=_OPTIONS["network_alias"].read,
            ),
            _OPTIONS["ip"],
            _OPTIONS["ip6"],
        ),
        examples=("network connect lab web",),
    ),
    Verb(
        name="network disconnect",
        summary="Take a running container out of a network",
        handler=_disconnect,
        positionals=(_NETWORK, _RUNNING),
        options=(Option(flags=("-f", "--force"), help="ask nothing: always so"),),
        examples=("network disconnect lab web",),
    ),
    Verb(
        name="port",
        summary="Show which ports of this machine lead to a container",
        handler=_port,
        positionals=(
            _RUNNING,
            Positional(name="PORT", help="only this one of the container, for example 80 or 53/udp", count="optional"),
        ),
        examples=("port web", "port web 80"),
    ),
)
