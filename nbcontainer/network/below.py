"""Networks of a user: the bridges are in a network namespace below the machine's, and pasta leads out of it.

Two processes. The keeper stays in the machine's network, where it can ask the machine's name servers and hold published
ports. Its child, the *wirer*, is in the user namespace of the person's containers and in a network namespace of its
own: there it may make links, and pass packets on. What goes out goes to pasta, which makes ordinary connections
of the person's of it; the machine's loopback and its own addresses are closed to it.

The wirer obeys the keeper on a socket, one question and one answer, and dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import traceback
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, NoReturn

from nbcontainer import errors
from nbcontainer._linux import processes, syscalls
from nbcontainer.errors import NbcontainerError, UnsupportedHost
from nbcontainer.model.network import Endpoint
from nbcontainer.network import rules
from nbcontainer.network.links import Links
from nbcontainer.network.plan import Subnets, interface_prefix, table_name
from nbcontainer.network.programs import NO_NFT, NO_TUN, NO_UPLINK, found, may_open_tun
from nbcontainer.network.wiring import Office, close_bridge, connect_container, lead_out, open_bridge, run_nft

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BelowWiring"]

_LARGEST = 1 << 20
_MOST_FDS = 4
_UPLINK = "uplink0"
_ADDRESS_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_UPLINK_PATIENCE = 10.0
_PASTA_MTU = 65520


class BelowWiring:
    """The keeper's side. `user_namespace` is that of the person's containers; it is closed here."""

    limits = True

    def __init__(self, key: str, user_namespace: int) -> None:
        if found("nft") is None:
            raise UnsupportedHost(NO_NFT)
        if found("pasta") is None:
            raise UnsupportedHost(NO_UPLINK)
        if not may_open_tun():
            raise UnsupportedHost(NO_TUN)
        self._key = key
        self._machine = Links()
        self._changes = _address_changes()
        self._pasta = 0
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = ours
        self._pid = os.fork()
        if self._pid == 0:
            try:
                ours.close()
                _Wirer(theirs, key, user_namespace).serve()
            finally:
                os._exit(1)
        theirs.close()
        os.close(user_namespace)
        try:
            self._sockets = self._call("begin")[1]
            self._start_pasta()
        except BaseException:
            self.close()
            raise

    # --- what is asked of the wirer ---------------------------------------------------------------------------------

    def _call(self, method: str, fds: Sequence[int] = (), **arguments: Any) -> tuple[Any, list[socket.socket]]:
        """Have it done below; the result, and the sockets that came along. Raise what it raised."""
        try:
            socket.send_fds(self._channel, [json.dumps([method, arguments]).encode()], list(fds))
            data, descriptors, _, _ = socket.recv_fds(self._channel, _LARGEST, _MOST_FDS)
        except OSError as problem:
            raise UnsupportedHost(f"the network of your containers is gone: {problem}") from problem
        sockets = [socket.socket(fileno=fd) for fd in descriptors]
        if not data:
            raise UnsupportedHost("the network of your containers is gone: the process that kept it was killed")
        error, result = json.loads(data)
        if error:
            raise errors.class_named(error, UnsupportedHost)(result)
        return result, sockets

    @property
    def below(self) -> int:
        """See `Wiring.below`."""
        return self._pid

    @property
    def changes(self) -> socket.socket | None:
        """See `Wiring.changes`: an address that the machine gets later must be closed to containers as well."""
        return self._changes

    def name_server(self) -> tuple[socket.socket, socket.socket]:
        """See `Wiring.name_server`."""
        return self._sockets[0], self._sockets[1]

    def taken(self) -> list[IPv4Network]:
        """See `Wiring.taken`: what this machine leads to must stay within reach."""
        return self._machine.subnets()

    def mtu(self) -> int:
        """See `Wiring.mtu`."""
        return _PASTA_MTU

    def open_bridge(self, name: str, subnets: Subnets, mtu: int) -> None:
        """See `Wiring.open_bridge`."""
        texts = {key: str(value) for key, value in asdict(subnets).items() if value is not None}
        self._call("open_bridge", name=name, subnets=texts, mtu=mtu)

    def close_bridge(self, name: str) -> None:
        """See `Wiring.close_bridge`."""
        self._call("close_bridge", name=name)

    def connect(self, name: str, bridge: str, namespace: int, endpoint: Endpoint, *, mtu: int, first: bool) -> Endpoint:
        """See `Wiring.connect`. A way out that has died meanwhile is made anew."""
        if not self._pasta_lives():
            self._start_pasta()
        place = asdict(endpoint)
        result, _ = self._call("connect", (namespace,), name=name, bridge=bridge, endpoint=place, mtu=mtu, first=first)
        return Endpoint.from_fields(result)

    def lead_out(self, namespace: int, endpoint: Endpoint) -> None:
        """See `Wiring.lead_out`."""
        self._call("lead_out", (namespace,), endpoint=asdict(endpoint))

    def disconnect(self, name: str) -> None:
        """See `Wiring.disconnect`."""
        self._call("disconnect", name=name)

    def open_socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        """See `Wiring.open_socket`: one made below, and used from here."""
        try:
            return self._call("open_socket", family=int(family), kind=int(kind))[1][0]
        except NbcontainerError as problem:
            raise OSError(str(problem)) from problem

    def filter(self, bridges: Sequence[rules.Bridge], publications: Sequence[rules.Publication]) -> None:
        """See `Wiring.filter`; ports are published from up here, never by the filter below."""
        del publications
        text = rules.ruleset(
            table_name(self._key),
            interface_prefix(self._key),
            bridges,
            (),
            forbidden=sorted(self._machine.own_addresses()),
            uplink=_UPLINK,
        )
        self._call("nft", text=text)

    def admit(self, bridge: str, address: str, seconds: int) -> None:
        """See `Wiring.admit`."""
        self._call("nft", text=rules.admit(table_name(self._key), bridge, address, seconds))

    def close(self) -> None:
        """See `Wiring.close`."""
        self._channel.close()
        _end(self._pid)
        if self._pasta:
            _end(self._pasta)  # all that it has is in its memory
            self._pasta = 0
        self._changes.close()
        self._machine.close()

    # --- pasta ------------------------------------------------------------------------------------------------------

    def _start_pasta(self) -> None:
        """Start pasta and wait for its link. It forwards no port and knows no way to this machine's loopback."""
        program = found("pasta")
        assert program is not None
        itself = ("--runas", f"{os.geteuid()}:{os.getegid()}") if os.geteuid() == 0 else ()  # else it becomes nobody
        self._pasta = _started(
            [
                program, *itself, "--foreground", "--quiet", "--config-net", "--no-map-gw",
                "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none",
                "--ns-ifname", _UPLINK, "--mtu", str(_PASTA_MTU),
                "--userns", f"/proc/{self._pid}/ns/user", "--netns", f"/proc/{self._pid}/ns/net",
            ]
        )  # fmt: skip
        deadline = time.monotonic() + _UPLINK_PATIENCE
        while not self._call("has_uplink")[0]:
            if not self._pasta_lives() or time.monotonic() > deadline:
                raise UnsupportedHost(
                    "pasta does not give your containers a way out (network/keeper.log in the store has its words); use"
                    " --network none or --network host"
                )
            time.sleep(0.01)

    def _pasta_lives(self) -> bool:
        if self._pasta and os.waitpid(self._pasta, os.WNOHANG)[0]:
            self._pasta = 0
        return bool(self._pasta)


def _end(pid: int) -> None:
    """End a child and collect it; nothing happens for one that is collected already."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _address_changes() -> socket.socket:
    """Hear of each address that this machine gets or loses (rtnetlink(7))."""
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    heard.bind((0, _ADDRESS_GROUPS))
    return heard


def _started(words: Sequence[str]) -> int:
    """Start a program that dies with us, however we do; its pid. What it complains of is kept with our own words."""
    pid = os.fork()
    if pid:
        return pid
    try:
        processes.die_with_parent()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)  # pasta wants to be the first who ignores the last
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for standard in (0, 1):
            os.dup2(null, standard)
        syscalls.close_all_but()  # what came by a socket is inherited (recv_fds heeds no flags)
        os.execv(words[0], list(words))  # noqa: S606 - a program of our choice, by path
    finally:
        os._exit(127)


class _Wirer:
    """The process below: in the containers' user namespace, with the bridges in its own network namespace."""

    def __init__(self, channel: socket.socket, key: str, user_namespace: int) -> None:
        self._channel = channel
        self._key = key
        self._user_namespace = user_namespace
        self._made: list[socket.socket] = []

    def serve(self) -> NoReturn:
        """Obey until the keeper is gone."""
        processes.die_with_parent()
        syscalls.close_all_but(self._channel.fileno(), self._user_namespace)
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._channel, _LARGEST, _MOST_FDS)
                if not data:
                    break
                answer = self._answered(data, fds)
                for fd in fds:
                    os.close(fd)
                socket.send_fds(self._channel, [json.dumps(answer).encode()], [each.fileno() for each in self._made])
                for each in self._made:
                    each.close()
                self._made = []
        os._exit(0)

    def _answered(self, data: bytes, fds: list[int]) -> list[Any]:
        try:
            method, arguments = json.loads(data)
            if fds:
                arguments["namespace"] = fds[0]
            return ["", getattr(self, f"_do_{method}")(**arguments)]
        except NbcontainerError as problem:
            return [type(problem).__name__, problem.message]
        except OSError as problem:
            return ["UnsupportedHost", f"the network of your containers cannot be made: {problem}"]
        except Exception as problem:  # noqa: BLE001 - the boundary of a process: whatever it was must be told
            traceback.print_exc()
            return ["UnsupportedHost", f"the network of your containers failed: {type(problem).__name__}: {problem}"]

    def _do_begin(self) -> None:
        syscalls.setns(self._user_namespace, processes.CLONE_NEWUSER)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        processes.die_with_parent()
        syscalls.unshare(processes.CLONE_NEWNET)
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                processes.write_text(f"/proc/sys/net/{path}", "1")
        processes.bring_loopback_up()
        self._links = Links()
        self._office = Office()
        self._made = list(self._office.sockets)

    def _do_has_uplink(self) -> bool:
        return bool(self._links.named(_UPLINK)) and (
            self._links.uplink() is not None or self._links.uplink(socket.AF_INET6) is not None
        )

    def _do_open_bridge(self, name: str, subnets: dict[str, str], mtu: int) -> None:
        six = "subnet6" in subnets
        made = Subnets(
            subnet=IPv4Network(subnets["subnet"]),
            gateway=IPv4Address(subnets["gateway"]),
            subnet6=IPv6Network(subnets["subnet6"]) if six else None,
            gateway6=IPv6Address(subnets["gateway6"]) if six else None,
        )
        open_bridge(self._links, self._office, name, made, mtu)

    def _do_close_bridge(self, name: str) -> None:
        close_bridge(self._links, name)

    def _do_connect(
        self, name: str, bridge: str, endpoint: dict[str, Any], namespace: int, *, mtu: int, first: bool
    ) -> dict[str, Any]:
        place = Endpoint.from_fields(endpoint)
        return asdict(connect_container(self._links, name, bridge, namespace, place, mtu=mtu, first=first))

    @staticmethod
    def _do_lead_out(endpoint: dict[str, Any], namespace: int) -> None:
        lead_out(namespace, Endpoint.from_fields(endpoint))

    def _do_disconnect(self, name: str) -> None:
        self._links.remove(name)

    def _do_open_socket(self, family: int, kind: int) -> None:
        self._made = [socket.socket(family, kind | socket.SOCK_CLOEXEC)]

    @staticmethod
    def _do_nft(text: str) -> None:
        run_nft(text)
