"""That the notebooks run from top to bottom, and that the outputs kept in them are what a run shows.

They run in a kernel of their own, with a store of their own. Docker Hub is a registry in this process: its ``debian``
is made of this machine's own shell and coreutils, so nothing is fetched from anywhere.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from jupyter_core.utils import ensure_event_loop
from nbclient import NotebookClient

from nbcontainer.testing.registry import InProcessRegistry
from nbcontainer.testing.rootfs import PROGRAMS, root_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OS_RELEASE = b'PRETTY_NAME="Debian GNU/Linux, or what a test takes for it"\nID=debian\n'
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


@each_notebook
@pytest.mark.userns
@pytest.mark.overlay
@pytest.mark.slow
def test_runs_and_shows_what_is_kept(path: Path, hub: str, tmp_path: Path) -> None:
    """A run raises nothing that is not announced, and every cell has the kinds of output that are kept in it."""
    kept = read(path)
    notebook = copy.deepcopy(kept)
    environment = {
        **os.environ,
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "NBCONTAINER_ROOT": str(tmp_path / "store"),
        "NBCONTAINER_MIRRORS": f"docker.io={hub}",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(FOLDER.parent), os.environ.get("PYTHONPATH", "")))),
    }
    resources = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, timeout=60, resources=resources, extra_arguments=["--log-level=ERROR"])
    client.execute(env=environment)
    for before, after in zip(kept.cells, notebook.cells, strict=True):
        assert shape(after) == shape(before), after["source"]
        expected = "raises-exception" in before["metadata"].get("tags", ())
        assert expected == any(kind == "error" for kind, _ in shape(after)), after["source"]


@each_notebook
def test_is_kept_as_a_page_to_read(path: Path) -> None:
    """Outputs are kept, in the order of one run from the top, and nothing in them names the machine they come from."""
    cells = [cell for cell in read(path).cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = path.read_text(encoding="utf-8")
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
