#!/usr/bin/env python3
"""Container start to exit: ``true`` in a fresh container without network, and the same as a notebook cell.

    python benchmarks/start.py [--rounds 30] [--tar debian.tar] [--json FILE]

Who is compared, and with what, is told in `engines`. Cells are timed twice: in an IPython shell of this process, and
as a message to a kernel, from the request until reply and idle have come, which is what a person waits for.
`network.py` has them with a network.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import engines
import peers

if TYPE_CHECKING:
    from collections.abc import Collection

_SLOW_ROUNDS = 10
_IN_A_ROW = 50
_CELL = f"%%container --network {engines.NO_NETWORK}"
_CELLS = {
    _CELL: f"{_CELL} {engines.OURS_IMAGE}\ntrue\n",
    "%%bash": "%%bash\ntrue\n",
    "!true": "!true\n",
}
_TARGETS = (
    peers.Target(contender=engines.OURS, reference="bwrap", most=1),
    peers.Target(contender=engines.OURS, reference="crun", most=0.5),
    peers.Target(contender=engines.OURS, reference="docker", most=1 / 40),
    peers.Target(contender=f"kernel {_CELL}", reference="kernel %%bash", most=1.5),
)


def main() -> None:
    """Measure, print, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers.add_common_options(parser, rounds=30)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between two measurements (default 0.05)")
    options = parser.parse_args()
    peers.own_mounts()
    facts = peers.environment()
    peers.print_environment(facts)
    with peers.open_stage(options.temporary) as stage:
        tar = stage.root_tar(options.tar)
        contenders = make_contenders(stage, tar, tuple(filter(None, options.only.split(","))))
        peers.alternate(contenders, options.rounds, warm_up=2, pause=options.pause)
        peers.print_table(contenders, ("bwrap", engines.OURS, "%%bash", "kernel %%bash"))
        targets = peers.print_targets(contenders, _TARGETS)
        row = in_a_row(contenders)
        peers.json_report(options.json, facts, contenders, in_a_row=row, targets=targets)


def make_contenders(stage: peers.Stage, tar: str, only: Collection[str]) -> list[peers.Contender]:
    """Set everybody up; whoever cannot be is a contender with a problem."""
    names = (engines.OURS, "bwrap", "runc", "crun", "podman", "docker")
    ours, others, problems = engines.set_up(stage, tar, names, only)
    contenders = [peers.Contender(name=engines.OURS, act=ours.run)] if ours else []
    contenders += [
        peers.Contender(name=each.name, act=each.run, rounds=_SLOW_ROUNDS if each.slow else None) for each in others
    ]
    contenders += [peers.Contender(name=name, act=lambda: None, problem=text) for name, text in problems.items()]
    if ours is None:
        return contenders
    cells = [*shell_cells(stage, ours.root), *kernel_cells(stage, ours.root)]
    return [*contenders, *(each for each in cells if not only or each.name.startswith(tuple(only)))]


def shell_cells(stage: peers.Stage, root: str) -> list[peers.Contender]:
    """Cells of an IPython shell in this process, on the store that ours has filled."""
    os.environ["IPYTHONDIR"] = stage.path("ipython")
    os.environ["NBCONTAINER_ROOT"] = root
    from IPython.core.interactiveshell import InteractiveShell

    shell: Any = InteractiveShell.instance()
    stage.undo.callback(shell.history_manager.end_session)
    shell.run_line_magic("load_ext", "nbcontainer")
    stage.undo.callback(shell.run_line_magic, "unload_ext", "nbcontainer")

    def run_cell(text: str) -> None:
        shell.run_cell(text, store_history=False).raise_error()

    return [peers.Contender(name=name, act=partial(run_cell, text)) for name, text in _CELLS.items()]


def kernel_cells(stage: peers.Stage, root: str) -> list[peers.Contender]:
    """The same cells as requests to a kernel of its own, on the same store."""
    try:
        from jupyter_client.manager import KernelManager
    except ImportError:
        return [peers.Contender(name=f"kernel {_CELL}", act=lambda: None, problem="jupyter_client is not installed")]
    folder = stage.path("kernel")
    os.mkdir(folder)
    manager: Any = KernelManager(kernel_name="python3", connection_file=os.path.join(folder, "connection.json"))
    environment = {**os.environ, "IPYTHONDIR": os.path.join(folder, "ipython"), "NBCONTAINER_ROOT": root}
    manager.start_kernel(env=environment, cwd=folder)
    stage.undo.callback(manager.shutdown_kernel, now=True)
    client: Any = manager.client()
    client.start_channels()
    stage.undo.callback(client.stop_channels)
    client.wait_for_ready(timeout=60)

    def run_cell(text: str) -> None:
        reply = client.execute_interactive(text, store_history=False, timeout=60, output_hook=lambda _: None)
        if reply["content"]["status"] != "ok":
            raise RuntimeError(f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}")

    run_cell("%load_ext nbcontainer")
    return [peers.Contender(name=f"kernel {name}", act=partial(run_cell, text)) for name, text in _CELLS.items()]


def in_a_row(contenders: list[peers.Contender]) -> dict[str, float]:
    """Start one after the other without any pause, so that nothing done in the background is for free."""
    means = {}
    for each in contenders:
        if each.name in {engines.OURS, "bwrap"} and not each.problem:
            began = time.perf_counter()
            for _ in range(_IN_A_ROW):
                each.act()
            means[each.name] = (time.perf_counter() - began) / _IN_A_ROW
    if means:
        told = ", ".join(f"{name} {seconds * 1000:.2f} ms" for name, seconds in means.items())
        print(f"\nmean of {_IN_A_ROW} in a row, without a pause: {told}")
    return means


if __name__ == "__main__":
    sys.exit(main())
