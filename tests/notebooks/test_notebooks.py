"""That the notebooks run from top to bottom, and that the outputs kept in them are what a run shows.

They run in a kernel of their own, with a store of their own. Docker Hub is a registry in this process: its ``debian``
is made of this machine's own shell and coreutils, so nothing is fetched from anywhere. The one about a web server
installs one, so it has a real Debian, and runs as root, as a user, and as a user without subordinate ids.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient

from nbcontainer.network.programs import found
from nbcontainer.testing.registry import InProcessRegistry
from nbcontainer.testing.rootfs import PROGRAMS, root_layer
from tests.harness.patience import patient
from tests.harness.users import run_as

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.harness.users import User

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
WEB_SERVER = FOLDER / "03-a-web-server.ipynb"
OS_RELEASE = b'PRETTY_NAME="Debian GNU/Linux, or what a test takes for it"\nID=debian\n'
PLAY = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.reads(sys.stdin.read(), as_version=4)
NotebookClient(notebook, timeout=float(sys.argv[1]), extra_arguments=["--log-level=ERROR"]).execute()
print(nbformat.writes(notebook))
"""
"""Runs the notebook on standard input, and writes it with its outputs; for somebody else to run."""
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module", autouse=True)
def event_loop_of_the_client() -> Iterator[None]:
    """The loop that nbclient makes on its first use and keeps: made before a test can be blamed for it."""
    loop = ensure_event_loop()
    yield
    loop.close()
    asyncio.set_event_loop(None)


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of a registry that has ``library/debian``."""
    with InProcessRegistry() as registry:
        layer = root_layer((*PROGRAMS, "grep"), files={"etc/os-release": OS_RELEASE})
        registry.add_image(
            "library/debian", "latest", layers=[layer], config={"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]}
        )
        yield registry.url


@pytest.fixture(scope="module")
def debian_hub(debian_root: Path) -> Iterator[str]:
    """The address of a registry whose ``library/debian`` is one."""
    with InProcessRegistry() as registry:
        layers = [debian_root.read_bytes()]
        registry.add_image("library/debian", "latest", layers=layers, compression="none", config={"Cmd": ["bash"]})
        yield registry.url


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("", marks=[pytest.mark.userns, pytest.mark.overlay], id="own"),
        pytest.param("user_with_range", marks=[pytest.mark.subids, pytest.mark.overlay], id="range"),
        pytest.param("user_without_range", marks=[pytest.mark.subids, pytest.mark.overlay], id="single"),
    ],
)
def reader(request: pytest.FixtureRequest) -> User | None:
    """Lend whoever runs the notebook; None is whoever runs the tests."""
    unprivileged = bool(request.param) or os.geteuid() != 0
    if found("nft") is None or (unprivileged and found("pasta") is None):
        pytest.skip("networks take nft, and as a user pasta")
    user: User | None = request.getfixturevalue(request.param) if request.param else None
    return user


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)


def shape(cell: Any) -> list[tuple[str, str]]:
    """Say what kinds of output a cell has, in order; what is written in them differs from run to run.

    Displays are left out: a notice is shown for some kinds of isolation and not for others.
    """
    outputs = [out for out in cell.get("outputs", ()) if out["output_type"] != "display_data"]
    kinds = [(out["output_type"], out.get("name", "") or out.get("ename", "")) for out in outputs]
    return [kind for kind, _ in itertools.groupby(kinds)]


def settings(store: Path | str, hub: str) -> dict[str, str]:
    """The environment of a kernel."""
    return {"NBCONTAINER_ROOT": str(store), "NBCONTAINER_MIRRORS": f"docker.io={hub}"}


def played(kept: Any, folder: Path, variables: Mapping[str, str], *, timeout: float) -> Any:
    """Run a copy of a notebook here, and return it with its outputs."""
    notebook = copy.deepcopy(kept)
    environment = {
        **os.environ,
        "IPYTHONDIR": str(folder / "ipython"),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH", "")))),
        **variables,
    }
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=timeout, resources=resources, extra_arguments=["--log-level=ERROR"])
    client.execute(env=environment)
    return notebook


def played_by(user: User, kept: Any, variables: Mapping[str, str], *, timeout: float) -> Any:
    """Run a copy of a notebook as somebody else, and return it with its outputs."""
    command = [user.python, "-c", PLAY, str(timeout)]
    done = run_as(user, command, env=variables, input=nbformat.writes(kept), timeout=2 * timeout)
    assert done.returncode == 0, done.stderr
    return nbformat.reads(done.stdout, as_version=4)


def assert_alike(kept: Any, notebook: Any) -> None:
    """Every cell has the kinds of output that are kept in it, and raises what is announced and nothing else."""
    for before, after in zip(kept.cells, notebook.cells, strict=True):
        assert shape(after) == shape(before), (after["source"], after.get("outputs"))
        expected = "raises-exception" in before["metadata"].get("tags", ())
        assert expected == any(kind == "error" for kind, _ in shape(after)), after["source"]


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != WEB_SERVER], ids=lambda path: path.stem)
@pytest.mark.userns
@pytest.mark.overlay
@pytest.mark.slow
def test_runs_and_shows_what_is_kept(path: Path, hub: str, tmp_path: Path) -> None:
    """A run raises nothing that is not announced, and every cell has the kinds of output that are kept in it."""
    kept = read(path)
    assert_alike(kept, played(kept, tmp_path, settings(tmp_path / "store", hub), timeout=60))


@pytest.mark.network
@pytest.mark.peers("mmdebstrap")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_web_server(reader: User | None, debian_hub: str, tmp_path: Path) -> None:
    """It is built, serves, is visited and ends, whoever runs the notebook; and nothing is left of it."""
    kept = read(WEB_SERVER)
    if reader is None:
        variables = settings(tmp_path / "store", debian_hub)
        try:
            notebook = played(kept, tmp_path, variables, timeout=patient(300))
        except BaseException:  # the server outlives a notebook that has stopped half-way
            remove = [sys.executable, "-m", "nbcontainer", "rm", "--force", "web"]
            subprocess.run(remove, env={**os.environ, **variables}, capture_output=True, check=False)
            raise
    else:
        store = f"{reader.home}/store-of-a-notebook"
        notebook = played_by(reader, kept, settings(store, debian_hub), timeout=patient(300))
    assert_alike(kept, notebook)


@each_notebook
def test_is_kept_as_a_page_to_read(path: Path) -> None:
    """Outputs are kept, in the order of one run from the top, and nothing in them names the machine they come from."""
    cells = [cell for cell in read(path).cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = path.read_text(encoding="utf-8")
    if path == WEB_SERVER:  # a port that is published has this address on every machine
        text = re.sub(r"127\.0\.0\.1:\d+(?=-(?:>|&gt;)|/?['\"\\<])", "", text)
    assert not re.search(r"/work/|/root/\.|/home/\w+/|127\.0\.0\.1|localhost|/tmp/\w", text)
    assert "widget-view" not in text


@each_notebook
def test_converts_to_a_page(path: Path) -> None:
    """A web page made of the notebook shows every cell, tables as tables and errors as one line."""
    from nbconvert import HTMLExporter

    exporter: Any = HTMLExporter
    body, _ = exporter(template_name="lab").from_notebook_node(read(path))
    assert body.count("jp-CodeCell") >= sum(cell["cell_type"] == "code" for cell in read(path).cells)
    assert "<table" in body
    assert "Traceback" not in body
