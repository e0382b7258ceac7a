"""The facade in this process: what it starts, keeps, and takes away."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine.engine import Engine
from nbcontainer.engine.settings import Settings
from nbcontainer.errors import (
    ContainerNotFound,
    ImageNotFound,
    InvalidInput,
    InvalidOption,
    InvalidReference,
    NotFound,
    RegistryUnreachable,
)
from nbcontainer.testing.registry import InProcessRegistry
from nbcontainer.testing.rootfs import root_layer
from tests.harness.leaks import processes_below
from tests.integration.tiers import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def registry() -> Iterator[InProcessRegistry]:
    """Lend a registry with an image that has a shell."""
    with InProcessRegistry() as registry:
        registry.add_image("tiny", "latest", layers=[root_layer(("sh", "cat", "echo", "sleep", "true"))])
        yield registry


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Name a store that is not there yet."""
    return str(tmp_path / "store")


@pytest.fixture
def engine(root: str) -> Iterator[Engine]:
    """Lend an engine on it."""
    with Engine(Settings(root=root, pool_size=1, network="none")) as engine:
        yield engine


def test_nothing_is_started_before_it_is_needed(engine: Engine) -> None:
    """Listing, asking and refusing start no process."""
    assert [image.reference for image in engine.images()] == ["host"]
    assert engine.containers(everything=True) == ()
    assert engine.version().items
    engine.disk_usage()
    with pytest.raises(ImageNotFound):
        engine.inspect_image("nonesuch")
    assert processes_below(os.getpid()) == set()


def test_unknown(engine: Engine) -> None:
    """What is not here is said not to be, each in its own way."""
    with pytest.raises(ContainerNotFound):
        engine.logs("nonesuch")
    with pytest.raises(ContainerNotFound):
        engine.remove_container("nonesuch")
    with pytest.raises(ImageNotFound):
        engine.remove_image("nonesuch")
    with pytest.raises(ImageNotFound):
        engine.history("nonesuch")
    with pytest.raises(NotFound, match="no container, image or volume 'nonesuch'"):
        engine.inspect("nonesuch")
    with pytest.raises(ImageNotFound, match="--pull never"):
        engine.pull("nonesuch", policy="never")


def test_host_is_no_ordinary_image(engine: Engine) -> None:
    """The embedded image can be seen, and neither removed, tagged, replaced nor pulled away."""
    assert engine.pull("host").reference == "host"
    assert engine.inspect_image("host").references == ("host",)
    for refused in (
        lambda: engine.remove_image("host"),
        lambda: engine.history("host"),
        lambda: engine.tag("host", "x"),
        lambda: engine.tag("x", "host"),
    ):
        with pytest.raises((InvalidInput, InvalidReference)):
            refused()


def test_mistyped_host(root: str) -> None:
    """Where no registry can be asked, a name near to one that is here is answered with that."""
    with Engine(Settings(root=root, mirrors={"docker.io": ("http://127.0.0.1:9",)})) as engine:
        with pytest.raises(RegistryUnreachable, match=r"; did you mean host[?]$"):
            engine.run("hots", ["true"])
        with pytest.raises(RegistryUnreachable, match=r"[^?]$"):
            engine.run("nonesuch", ["true"])


def test_command_and_script(engine: Engine) -> None:
    """A run is of a command or of a script, not both."""
    with pytest.raises(InvalidOption, match="not both"):
        engine.run("host", ["true"], script="true")


@pytest.mark.userns
@pytest.mark.overlay
class TestRuns:
    """With containers."""

    def test_life(self, engine: Engine, registry: InProcessRegistry) -> None:
        """Pull, list, tag, run, inspect, remove."""
        name = registry.reference("tiny")
        assert engine.run(name, ["echo", "hi"]).stdout == "hi\n"
        assert {image.reference for image in engine.images()} == {"host", name}
        engine.tag(name, "mine:v1")
        assert engine.run("mine:v1", ["echo", "hi"]).stdout == "hi\n"
        assert set(engine.inspect_image("mine:v1").references) == {name, "mine:v1"}
        assert [line.size > 0 for line in engine.history(name)] == [True]
        with pytest.raises(InvalidReference, match="has a digest"):
            engine.tag(name, f"x@{engine.inspect_image(name).summary.digest}")
        assert engine.remove_image(name).deleted == ()
        assert len(engine.remove_image("mine:v1").deleted) == 1
        assert engine.disk_usage().lines[0].size == 0
        assert len(dict(engine.info().items)) > 5

    def test_mistyped_image(self, engine: Engine, registry: InProcessRegistry) -> None:
        """So is one that the registry does not know."""
        name = registry.reference("tiny")
        engine.pull(name)
        with pytest.raises(ImageNotFound, match=rf"; did you mean {name.removesuffix(':latest')}[?]$"):
            engine.run(registry.reference("tinny").removesuffix(":latest"), ["true"])

    def test_close_ends_everything(self, engine: Engine) -> None:
        """Closing, twice too, ends a container that runs in another thread; the engine can be used again."""
        started = threading.Event()
        ended: list[object] = []

        def work() -> None:
            result = engine.run("host", script="echo on; sleep 1000", output=lambda *_: started.set())
            ended.append(result.reason)

        thread = threading.Thread(target=work)
        thread.start()
        assert started.wait(20)
        engine.close()
        thread.join(20)
        assert ended == ["lost"]
        engine.close()
        assert processes_below(os.getpid()) == set()
        assert engine.run("host", ["echo", "on"]).stdout == "on\n"

    def test_sink_that_raises(self, engine: Engine) -> None:
        """When whoever takes the output fails, its error comes out and the container is gone."""

        def broken(*_: object) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            engine.run("host", script="echo x; sleep 1000", output=broken)
        assert engine.run("host", ["true"]).ok

    def test_stdin_from_a_file(self, engine: Engine, tmp_path: Path) -> None:
        """An open file is read by the command itself."""
        (tmp_path / "input").write_bytes(b"from a file")
        with open(tmp_path / "input", "rb") as file:
            assert engine.run("host", ["cat"], stdin=file).stdout == "from a file"

    def test_two_engines_in_one_process(self, engine: Engine, root: str) -> None:
        """A second engine on the same store, in the same process, works beside the first."""
        with Engine(Settings(root=root, pool_size=0)) as other:
            assert engine.run("host", ["echo", "1"]).stdout + other.run("host", ["echo", "2"]).stdout == "1\n2\n"

    def test_interrupt_between_decision_and_start(
        self, engine: Engine, root: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run interrupted after its record was made and before its start leaves no directory."""

        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        assert engine.run("host", ["true"]).ok
        wait_until(lambda: not os.listdir(f"{root}/containers"), what="the first one's directory is gone")
        monkeypatch.setattr("nbcontainer.engine.engine.carry_out", interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.run("host", ["true"])
        assert os.listdir(f"{root}/containers") == []

    def test_sweep_of_a_directory_without_record(self, root: str) -> None:
        """What a removal cut short left, its record gone and its files not, is taken away by the next engine."""
        with Engine(Settings(root=root)) as engine:
            assert engine.run("host", ["true"]).ok
        folder = Path(root, "containers", "f" * 64)
        (folder / "upper/0").mkdir(parents=True)
        (folder / "upper/0/big").write_bytes(b"x" * 1000)
        os.utime(folder, (1, 1))
        with Engine(Settings(root=root)) as engine:
            assert engine.run("host", ["true"]).ok
        assert not folder.exists()
