"""A real in-process IPython shell with the extension loaded, and a recording engine behind it."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from IPython.terminal.interactiveshell import TerminalInteractiveShell

from nbcontainer.ipython import extension
from nbcontainer.testing.engine import RecordingEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from IPython.core.interactiveshell import InteractiveShell


@dataclass
class Outcome:
    """What a cell showed and did."""

    out: str
    err: str
    error: BaseException | None
    value: Any


class Notebook:
    """Runs cells in the one shell of this process."""

    def __init__(self, shell: Any, engine: RecordingEngine) -> None:
        self.shell = shell
        self.engine = engine

    def run(self, text: str) -> Outcome:
        """Run a cell as a notebook does, and take what it wrote."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            result = self.shell.run_cell(text)
        error = result.error_before_exec or result.error_in_exec
        return Outcome(out=out.getvalue(), err=err.getvalue(), error=error, value=result.result)

    @property
    def magics(self) -> Any:
        """The registered magics with their traits."""
        return self.shell.magics_manager.registry["ContainerMagics"]


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InteractiveShell]:
    """One shell for all tests: IPython is a singleton; its history goes nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        shell: Any = TerminalInteractiveShell.instance(simple_prompt=True, colors="nocolor")
        shell.history_manager.enabled = False
        yield shell
        shell.history_manager.end_session()
        TerminalInteractiveShell.clear_instance()


@pytest.fixture
def notebook(shell: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """The extension loaded over a recording engine, taken back afterwards."""
    engine = RecordingEngine(known=[RecordingEngine.image()], kept=[RecordingEngine.container()])
    monkeypatch.setattr(extension, "make_engine", lambda _: engine)
    extension.load_ipython_extension(shell)
    try:
        yield Notebook(shell, engine)
    finally:
        extension.unload_ipython_extension(shell)
        shell.user_ns.clear()
        shell.init_user_ns()
