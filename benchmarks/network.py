#!/usr/bin/env python3
"""What a network costs: start to exit of ``true`` in a container with one, and bytes per second by iperf3.

    python benchmarks/network.py [--rounds 30] [--seconds 3] [--as USER]… [--tar debian.tar] [--json FILE]

Ours with `bridge` (and, to tell them apart, with `none`) against docker and podman with the network that they have by
default. Started by root, all of it happens in a network namespace made for it, "this machine" of what follows, whose
only neighbour is another, "the outside": docker's rules and bridges, and ours, go with it. A USER of ``--as`` works in
the same one, where ours and podman lead out through pasta and slirp4netns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
import peers

from nbcontainer._linux import processes, syscalls
from nbcontainer.model.network import PortMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

_SLOW_ROUNDS = 10
_WITHOUT = f"{engines.OURS} --network {engines.NO_NETWORK}"
_BRIDGE = "bridge"
_TARGETS = (peers.Target(contender=engines.OURS, reference="docker", most=1 / 25),)

_MACHINE, _OUTSIDE = "198.18.0.1", "198.18.0.2"  # of RFC 2544: for benchmarks, and nobody's
_LOOPBACK = "127.0.0.1"
_PORT = 5201
_PUBLISHED = {engines.OURS: 5301, "podman": 5302, "docker": 5303}
_PATIENCE = 30
_TRIES = 3
_PACKAGES = "iperf3,hostname"
_IPERF_SERVER: engines.Command = ("iperf3", "--server", "--port", str(_PORT))
_CLIENT, _SERVER = "client", "server"
_PATHS = ("container to container", "container to outside", "machine to published port", "outside to published port")


def main() -> int:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=30)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two measurements (default 0.05)")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement by iperf3; 0 for none (default 3)")
    parser.add_argument("--as", metavar="USER", dest="users", action="append", default=[], help="also as this user")
    parser.add_argument("--outside", metavar="ADDRESS", default="", help="where an iperf3 server is (given to USER)")
    options = parser.parse_args()
    accounts = peers.accounts(parser, options.users)
    if not peers.own_mounts() and os.geteuid() == 0:
        parser.error("root needs namespaces of its own for mounts and for the network, which cannot be made here")
    facts = peers.environment()
    peers.print_environment(facts)
    failed = False
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar, _PACKAGES)
        place = Surroundings(stage) if os.geteuid() == 0 else None
        outside = place.address if place else options.outside
        with peers.open_stage(options.temporary) as inner:
            contenders, ends = make_contenders(inner, tar, tuple(filter(None, options.only.split(","))))
            peers.alternate(contenders, options.rounds, warm_up=2, pause=options.pause)
            print("start to exit of true:")
            peers.print_table(contenders, (engines.OURS, "docker"))
            targets = peers.print_targets(contenders, _TARGETS)
            lack = _lack(tar, options.seconds)
            moved = {} if lack else throughput(ends, place, outside, options.seconds)
            if lack:
                print(f"\nbytes per second: {lack}", flush=True)
        users = {}
        os.chmod(stage.folder, 0o711)  # users read the root file system in it, by its name
        for account in accounts:
            print(f"\n═══ as {account.pw_name}\n", flush=True)
            asked = [f"--{name}={getattr(options, name)}" for name in ("rounds", "pause", "seconds", "only")]
            arguments = (*asked, "--tar", tar, "--outside", outside)
            users[account.pw_name], code = peers.run_program("network.py", arguments, account)
            failed = failed or bool(code)
        peers.json_report(options.json, facts, contenders, targets=targets, throughput=moved, users=users)
    return int(failed)


# --- the surroundings -------------------------------------------------------------------------------------------------


class Surroundings:
    """A network namespace into which this process moves for good, and a neighbour with an iperf3 server.

    It passes packets on already, as a machine does on which docker has been started once: else docker sets a policy
    that stops whatever is not docker's. The folder of what runs is empty, so that nobody takes what is noted there of
    the real machine's network for this one's.
    """

    def __init__(self, stage: peers.Stage) -> None:
        self.address = _OUTSIDE
        peers.check("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        syscalls.unshare(processes.CLONE_NEWNET)
        neighbour = _neighbour(stage)
        self.enter = ("nsenter", f"--net=/proc/{neighbour}/ns/net")
        pair = ("type", "veth", "peer", "name", "eth0", "netns", str(neighbour))
        for words in (
            ("ip", "link", "set", "lo", "up"),
            ("ip", "link", "add", "eth0", *pair),
            ("ip", "address", "add", f"{_MACHINE}/24", "dev", "eth0"),
            ("ip", "link", "set", "eth0", "up"),
            ("ip", "route", "add", "default", "via", _OUTSIDE),
            (*self.enter, "ip", "link", "set", "lo", "up"),
            (*self.enter, "ip", "address", "add", f"{_OUTSIDE}/24", "dev", "eth0"),
            (*self.enter, "ip", "link", "set", "eth0", "up"),
        ):
            peers.check(*words)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")
        if peers.find("iperf3"):
            stage.undo.enter_context(_serving(self.enter))


def _neighbour(stage: peers.Stage) -> int:
    """A process in another network namespace, for as long as the stage stands."""
    process = stage.undo.enter_context(
        subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
    )  # fmt: skip
    stage.undo.callback(process.kill)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError("a second network namespace could not be made")
    return process.pid


# --- who takes part ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """How one engine gives the two containers between which bytes are moved."""

    name: str
    hold: Callable[[str, engines.Command, Sequence[str]], None]
    """Start a container with a command, its `_PORT` published at these addresses as the engine's of `_PUBLISHED`."""
    within: Callable[[str], engines.Command]
    release: Callable[[str], None]


def make_contenders(stage: peers.Stage, tar: str, only: Collection[str]) -> tuple[list[peers.Contender], list[Ends]]:
    """Set everybody up; whoever cannot be is a contender with a problem."""
    names = (engines.OURS, "podman", "docker")
    ours, others, problems = engines.set_up(stage, tar, names, only, network="")
    contenders, ends = [], []
    if ours:
        contenders += [
            peers.Contender(name=engines.OURS, act=partial(ours.run, _BRIDGE)),
            peers.Contender(name=_WITHOUT, act=ours.run),
        ]
        ends.append(_our_ends(ours))
    for each in others:
        contenders.append(peers.Contender(name=each.name, act=each.run, rounds=_SLOW_ROUNDS))
        ends.append(_their_ends(each))
    contenders += [peers.Contender(name=name, act=lambda: None, problem=text) for name, text in problems.items()]
    return contenders, ends


def _our_ends(ours: engines.Ours) -> Ends:
    def hold(name: str, argv: engines.Command, addresses: Sequence[str]) -> None:
        port = _PUBLISHED[engines.OURS]
        ports = [PortMapping(container_port=_PORT, host_ip=each, host_port=port) for each in addresses]
        ours.hold(name, argv, network=_BRIDGE, ports=ports)

    return Ends(name=engines.OURS, hold=hold, within=ours.within, release=ours.release)


def _their_ends(peer: engines.Peer) -> Ends:
    def hold(name: str, argv: engines.Command, addresses: Sequence[str]) -> None:
        ports = [f"{each}:{_PUBLISHED[peer.name]}:{_PORT}" for each in addresses]
        peer.begin_serving(name, tuple(word for each in ports for word in ("--publish", each)), argv)

    assert peer.within is not None
    return Ends(name=peer.name, hold=hold, within=peer.within, release=peer.end)


# --- bytes per second -------------------------------------------------------------------------------------------------


def _lack(tar: str, seconds: int) -> str:
    """Why bytes cannot be moved; "" when they can."""
    if not seconds:
        return "not asked for"
    if not peers.find("iperf3"):
        return "iperf3 is absent (apt install iperf3)"
    if "./usr/bin/iperf3\n" not in peers.check("tar", "--list", "--file", tar):
        return f"iperf3 is not in {tar}; make it with mmdebstrap --include={_PACKAGES}"
    return ""


def throughput(
    ends: Sequence[Ends], place: Surroundings | None, outside: str, seconds: int
) -> dict[str, dict[str, Any]]:
    """Move bytes for some `seconds` by each path with each engine, which take turns; print and return bits per second.

    The bytes go from the client to the server, and are counted where they arrive.
    """
    found: dict[str, dict[str, Any]] = {path: {} for path in _PATHS}
    with contextlib.ExitStack() as undo:
        routes: dict[str, dict[str, _Route | str]] = {}
        for each in ends:
            try:
                routes[each.name] = _routes(each, undo, place, outside)
            except (RuntimeError, OSError) as problem:
                routes[each.name] = dict.fromkeys(_PATHS, f"no containers: {_last_line(problem)}")
        for path in _PATHS:
            for name, listed in routes.items():
                route = listed[path]
                try:
                    found[path][name] = route if isinstance(route, str) else _client(*route, seconds)
                except (RuntimeError, OSError, subprocess.SubprocessError) as problem:
                    found[path][name] = _last_line(problem)
    _print(found)
    return found


_Route = tuple[engines.Command, str, int]
"""What goes before the client's command line, and the server's address and port."""


def _routes(
    ends: Ends, undo: contextlib.ExitStack, place: Surroundings | None, outside: str
) -> dict[str, _Route | str]:
    """Hold two containers, one of them a server; return a route or the lack of one for each path."""
    published = (_LOOPBACK, _MACHINE) if place else (_LOOPBACK,)
    for name, argv, addresses in ((_CLIENT, engines.SLEEP, ()), (_SERVER, _IPERF_SERVER, published)):
        undo.callback(_release, ends, name)
        ends.hold(name, argv, addresses)
    within = ends.within(_CLIENT)
    client, server = (peers.check(*ends.within(name), "hostname", "-I").split()[0] for name in (_CLIENT, _SERVER))
    port = _PUBLISHED[ends.name]
    among: _Route | str = (within, server, _PORT)
    if client == server:
        among = "both containers have the same address, they do not see each other in this network"
    out: _Route | str = (within, outside, _PORT)
    if not outside:
        out = "a user alone has no outside, let root run this with --as"
    ways: tuple[_Route | str, ...] = (
        among, out, ((), _LOOPBACK, port), (place.enter, _MACHINE, port) if place else "only root is outside",
    )  # fmt: skip
    return dict(zip(_PATHS, ways, strict=True))


def _release(ends: Ends, name: str) -> None:
    with contextlib.suppress(Exception):  # it has been told why it did not run
        ends.release(name)


@contextlib.contextmanager
def _serving(entered: engines.Command) -> Iterator[None]:
    """Run an iperf3 server there."""
    with subprocess.Popen(
        (*entered, *_IPERF_SERVER), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield
        finally:
            process.kill()


def _client(entered: engines.Command, address: str, port: int, seconds: int) -> float:
    """Send for some seconds; return the bits per second that arrived. A server may still be on its way."""
    words = (
        *entered, "iperf3", "--client", address, "--port", str(port), "--time", str(seconds), "--json",
        "--connect-timeout", "5000",
    )  # fmt: skip
    for tries in range(_TRIES):
        time.sleep(tries * 0.3)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + _PATIENCE, check=False
        )
        try:
            said = json.loads(done.stdout)
        except ValueError:
            said = {"error": _last_line(RuntimeError(done.stderr)) or f"exit code {done.returncode}"}
        if "error" not in said:
            return float(said["end"]["sum_received"]["bits_per_second"])
    raise RuntimeError(f"iperf3: {said['error']}")


def _last_line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or [repr(problem)])[-1]


def _print(found: dict[str, dict[str, Any]]) -> None:
    """A line for each path, a column for each engine, and how many times the others' is ours."""
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    others = [name for name in names if name != engines.OURS] if engines.OURS in names else []
    width = max(map(len, found))
    print("\nGbit/s:")
    print(f"{'':<{width}}" + "".join(f"{name:>13}" for name in (*names, *(f"x {name}" for name in others))))
    notes: dict[str, None] = {}
    for path, figures in found.items():
        cells = []
        for name in names:
            figure = figures.get(name, "not measured")
            if isinstance(figure, float):
                cells.append(f"{figure / 1e9:>13.2f}")
            else:
                cells.append(f"{'-':>13}")
                notes[f"{name}: {figure}"] = None
        for name in others:
            pair = (figures.get(engines.OURS), figures.get(name))
            known = all(isinstance(each, float) for each in pair)
            cells.append(f"{pair[0] / pair[1]:>13.2f}" if known else f"{'-':>13}")
        print(f"{path:<{width}}" + "".join(cells))
    print("".join(f"{note}\n" for note in notes), end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
