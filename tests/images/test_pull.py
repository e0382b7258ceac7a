"""Pulling without a container: registry, store and layers are real, the helper works in this process."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer._linux.idmaps import single_id_map
from nbcontainer.errors import (
    Conflict,
    CorruptContent,
    ImageNotFound,
    InvalidImage,
    NbcontainerError,
    StorageError,
)
from nbcontainer.images.library import Library
from nbcontainer.images.pull import Puller
from nbcontainer.layers import apply
from nbcontainer.layers.overlay import OverlaySnapshotter
from nbcontainer.model import (
    Digest,
    Event,
    LayerProgress,
    Platform,
    PullFinished,
    PullStarted,
    Reference,
    chain_ids,
    ignore,
)
from nbcontainer.registry import RegistryClient, RegistrySettings
from nbcontainer.store import ContentStore, RefStore
from nbcontainer.testing.images import build_image, tiny_layer
from nbcontainer.testing.registry import InProcessRegistry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

AMD64 = Platform("linux", "amd64")


class Call:
    """A call of the helper in a thread."""

    def __init__(self, arguments: Mapping[str, Any], fds: Sequence[int]) -> None:
        self._fds = [os.dup(fd) for fd in fds]
        self._arguments = {**arguments, "confine": False}
        self._result: dict[str, Any] | NbcontainerError = {}
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._result = apply.serve(self._arguments, self._fds)
        except NbcontainerError as problem:
            self._result = problem
        finally:
            for fd in self._fds:
                os.close(fd)

    def result(self) -> dict[str, Any]:
        """Wait for it."""
        self._thread.join(10)
        assert not self._thread.is_alive()
        if isinstance(self._result, NbcontainerError):
            raise self._result
        return self._result

    def close(self) -> None:
        """Do nothing: the pipe's end ends it."""


class LocalHelper:
    """Applies layers in this process, as whoever we are."""

    def begin(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> Call:
        """Start applying."""
        assert target == "nbcontainer.layers.apply:serve"
        return Call(arguments, fds)

    def finish(self, connection: Call) -> dict[str, Any]:
        """Wait for it."""
        return connection.result()

    def call(self, target: str, arguments: Mapping[str, Any], fds: Sequence[int] = ()) -> dict[str, Any]:
        """Both."""
        return self.finish(self.begin(target, arguments, fds))


@pytest.fixture
def registry() -> Iterator[InProcessRegistry]:
    """Lend an empty registry."""
    with InProcessRegistry() as registry:
        yield registry


@pytest.fixture
def library(tmp_path: Path) -> Library:
    """Lend an empty store."""
    root = str(tmp_path / "store")
    snapshots = OverlaySnapshotter(root, single_id_map(os.geteuid(), os.getegid()))
    return Library(ContentStore(root), RefStore(root), snapshots)


@pytest.fixture
def puller(library: Library) -> Iterator[Puller]:
    """Lend a puller into that store."""
    with RegistryClient(RegistrySettings(timeout=5)) as client:
        yield Puller(
            content=library.content,
            refs=library.refs,
            snapshots=library.snapshots,
            helper=LocalHelper(),
            client=client,
            owners=False,
        )


LAYERS = [
    tiny_layer({"a": b"first", "gone": b"x"}),
    tiny_layer({"b": b"second", ".wh.gone": b""}),
    tiny_layer({"a": b"third"}),
]


@pytest.mark.parametrize("media", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_pull(registry: InProcessRegistry, puller: Puller, library: Library, media: Any, compression: Any) -> None:
    """Every kind of manifest and compression gives the same layers, named last and complete."""
    registry.add_image("x", "latest", layers=LAYERS, media=media, compression=compression)
    image = puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    chains = chain_ids(Digest.of(layer) for layer in LAYERS)
    assert image.chain == chains[-1]
    tops = library.snapshots.lowers(chains[-1])
    assert [Path(top, name).read_text() for top, name in zip(tops, "aba", strict=True)] == ["third", "second", "first"]
    assert library.find(registry.reference("x")) == image
    assert [each.name for each in library.walk()] == [image.name]


def test_events(registry: InProcessRegistry, puller: Puller) -> None:
    """A pull tells of its start, each layer's way to ready, and its end."""
    registry.add_image("x", "latest", layers=LAYERS)
    reference = Reference.parse(registry.reference("x"))
    events: list[Event] = []
    puller.pull(reference, AMD64, events.append)
    assert isinstance(events[0], PullStarted)
    assert isinstance(events[-1], PullFinished)
    assert events[-1].fetched > 0
    ready = [event.digest for event in events if isinstance(event, LayerProgress) and event.state == "ready"]
    assert ready == [layer.digest for layer in events[0].layers]
    again: list[Event] = []
    puller.pull(reference, AMD64, again.append)
    assert Counter(event.state for event in again if isinstance(event, LayerProgress)) == {"exists": 3}
    assert isinstance(again[-1], PullFinished)
    assert again[-1].fetched == 0


def test_same_layer_twice(registry: InProcessRegistry, puller: Puller) -> None:
    """An image that has the same blob several times, as empty layers often are, is pulled."""
    empty = tiny_layer({})
    registry.add_image("x", "latest", layers=[LAYERS[0], empty, LAYERS[1], empty, empty])
    image = puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert len(image.manifest.layers) == 5


def test_many_layers(registry: InProcessRegistry, puller: Puller, library: Library) -> None:
    """An image of more layers than threads is unpacked in order."""
    registry.add_image("x", "latest", layers=[tiny_layer({str(number): b"x"}) for number in range(40)])
    image = puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert image.chain is not None
    assert [os.listdir(top) for top in library.snapshots.lowers(image.chain)] == [[str(n)] for n in reversed(range(40))]


def test_shared_layers_are_fetched_once(registry: InProcessRegistry, puller: Puller) -> None:
    """A second image on the same base fetches what is new."""
    registry.add_image("x", "latest", layers=LAYERS[:2])
    registry.add_image("y", "latest", layers=LAYERS)
    puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    before = len(registry.asked("/blobs/"))
    puller.pull(Reference.parse(registry.reference("y")), AMD64, ignore)
    assert len(registry.asked("/blobs/")) - before == 2  # config and the third layer


def test_half_unpacked_layers_are_taken_away(
    registry: InProcessRegistry, puller: Puller, library: Library, tmp_path: Path
) -> None:
    """What a killed pull left goes with the next one; what another process is unpacking at this moment stays."""
    registry.add_image("x", "latest", layers=LAYERS)
    dead, living = (library.snapshots.prepare(Digest.of(text), None) for text in (b"dead", b"living"))
    Path(dead.fs, "half").write_bytes(b"x" * 1000)
    dead.lock.release()  # what the kernel does when a process dies
    puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert not os.path.exists(dead.path)
    assert os.path.exists(living.fs)
    library.snapshots.abort(living)


def test_removal_of_half_unpacked_layers_may_fail(
    registry: InProcessRegistry, puller: Puller, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pull goes on when the leftovers cannot be removed yet: whoever wrote them may still be dying."""

    def busy(path: str) -> None:
        raise OSError(39, "Directory not empty", path)

    registry.add_image("x", "latest", layers=LAYERS)
    dead = library.snapshots.prepare(Digest.of(b"dead"), None)
    dead.lock.release()
    with monkeypatch.context() as patch:
        patch.setattr(library.snapshots, "_remove_tree", busy)
        puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert library.snapshots.reap() == 1


def test_moved_tag(registry: InProcessRegistry, puller: Puller, library: Library) -> None:
    """A name means the new image once that is complete, and the old one until then."""
    registry.add_image("x", "latest", layers=LAYERS[:1])
    reference = Reference.parse(registry.reference("x"))
    old = puller.pull(reference, AMD64, ignore)
    image = build_image(LAYERS)
    registry.add_built("x", "latest", image)
    registry.faults.corrupt.add(image.manifest.layers[2].digest)
    with pytest.raises(CorruptContent):
        puller.pull(reference, AMD64, ignore)
    assert library.find(registry.reference("x")) == old
    registry.faults.corrupt.clear()
    assert puller.pull(reference, AMD64, ignore) != old


@pytest.mark.parametrize("number", [0, 1, 2])
def test_corrupted_layer(registry: InProcessRegistry, puller: Puller, library: Library, number: int) -> None:
    """Whichever layer is damaged, the pull says so, leaves no unfinished layer and names nothing."""
    image = build_image(LAYERS)
    registry.add_built("x", "latest", image)
    registry.faults.corrupt.add(image.manifest.layers[number].digest)
    with pytest.raises(CorruptContent, match=image.manifest.layers[number].digest.short):
        puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert library.refs.list() == ()
    assert library.snapshots.reap() == 0


def _pullers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "nbcontainer-pull"]


def test_no_thread_stays(registry: InProcessRegistry, puller: Puller) -> None:
    """A pull's threads end with it, also when it fails."""
    image = build_image(LAYERS)
    registry.add_built("x", "latest", image)
    registry.remove_blob(image.manifest.layers[1].digest)
    with pytest.raises(NbcontainerError):
        puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert _pullers() == []


def test_wrong_diff_id(registry: InProcessRegistry, puller: Puller, library: Library) -> None:
    """A layer that inflates to something else than promised is refused and not kept."""
    image = build_image(LAYERS[:1])
    other = build_image(LAYERS[1:2])
    config = other.manifest_bytes.replace(
        str(other.manifest.layers[0].digest).encode(), str(image.manifest.layers[0].digest).encode()
    ).replace(f'"size": {other.manifest.layers[0].size}'.encode(), f'"size": {image.manifest.layers[0].size}'.encode())
    registry.add_built("x", None, image)
    registry.add_built("x", None, other)
    registry.add_manifest("x", "latest", config, other.manifest.media_type)
    with pytest.raises(CorruptContent, match="promises"):
        puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    assert list(library.snapshots.walk()) == []
    assert library.snapshots.reap() == 0


def test_layers_that_do_not_match_the_config(registry: InProcessRegistry, puller: Puller) -> None:
    """A config with another number of layers is refused before anything is fetched."""
    image = build_image(LAYERS[:2])
    registry.add_built("x", None, image)
    fields = json.loads(image.manifest_bytes)
    fields["layers"] = fields["layers"][:1]
    registry.add_manifest("x", "latest", json.dumps(fields).encode(), image.manifest.media_type)
    with pytest.raises(InvalidImage, match="1 layers, but its config lists 2"):
        puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)


@pytest.mark.parametrize("layer", [b"", b"x" * 600, LAYERS[0][:700], b"\x1f\x8b\x08garbage"])
def test_damaged_tar(registry: InProcessRegistry, puller: Puller, library: Library, layer: bytes) -> None:
    """A layer whose digests are right and whose tar is not is refused, or is empty."""
    registry.add_image("x", "latest", layers=[layer], compression="none")
    try:
        puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore)
    except (InvalidImage, CorruptContent):
        assert library.refs.list() == ()
    else:
        assert layer == b""
    assert library.snapshots.reap() == 0


def test_broken_connection(registry: InProcessRegistry, puller: Puller) -> None:
    """A connection that breaks in the middle of a layer is taken up where it broke."""
    registry.add_image("x", "latest", layers=[tiny_layer({"big": os.urandom(500_000)})], compression="none")
    registry.faults.drop_after = 100_000
    assert puller.pull(Reference.parse(registry.reference("x")), AMD64, ignore).chain
    assert any("range" in request.headers for request in registry.asked("/blobs/"))


def test_remove(registry: InProcessRegistry, puller: Puller, library: Library) -> None:
    """With its last name go an image's content and layers, unless something else needs them."""
    registry.add_image("x", "latest", layers=LAYERS[:2])
    registry.add_image("y", "latest", layers=LAYERS)
    x, y = (puller.pull(Reference.parse(registry.reference(name)), AMD64, ignore) for name in "xy")
    removal = library.remove(registry.reference("y"), force=False, used=frozenset())
    assert (removal.untagged, removal.deleted) == ((y.name,), (y.record.id,))
    assert removal.freed > 0
    assert set(library.snapshots.walk()) == set(chain_ids(Digest.of(layer) for layer in LAYERS[:2]))
    assert x.chain is not None
    with pytest.raises(Conflict, match="used by a container"):
        library.remove(x.name, force=False, used=frozenset({x.chain}))
    library.remove(x.name, force=True, used=frozenset({x.chain}))
    assert set(library.snapshots.walk()) == set(chain_ids(Digest.of(layer) for layer in LAYERS[:2]))
    library.collect(frozenset())
    assert list(library.snapshots.walk()) == list(library.content.walk()) == []
    with pytest.raises(ImageNotFound):
        library.find(x.name)


def test_several_names(registry: InProcessRegistry, puller: Puller, library: Library) -> None:
    """One name of several is taken away alone; an id takes all, when it is forced to."""
    registry.add_image("x", "latest", layers=LAYERS)
    registry.add_image("x", "v2", layers=LAYERS)
    one, two = (puller.pull(Reference.parse(registry.reference("x", tag)), AMD64, ignore) for tag in ("latest", "v2"))
    assert one.record.id == two.record.id
    with pytest.raises(Conflict, match="several names"):
        library.remove(one.record.id.short, force=False, used=frozenset())
    assert library.remove(one.name, force=False, used=frozenset()).deleted == ()
    assert library.remove(two.record.id.short, force=False, used=frozenset()).deleted == (one.record.id,)


def test_lost_documents(registry: InProcessRegistry, puller: Puller, library: Library) -> None:
    """An image whose config the store has lost says so, is not listed, and stops no other; a new pull mends it."""
    registry.add_image("x", "latest", layers=LAYERS)
    registry.add_image("y", "latest", layers=LAYERS[:1])
    reference = Reference.parse(registry.reference("x"))
    x, y = puller.pull(reference, AMD64, ignore), puller.pull(Reference.parse(registry.reference("y")), AMD64, ignore)
    library.content.delete(x.record.config)
    fresh = Library(library.content, library.refs, library.snapshots)
    with pytest.raises(StorageError, match="pull it again"):
        fresh.find(x.name)
    assert [image.name for image in fresh.walk()] == [y.name]
    with pytest.raises(StorageError, match="damaged"):
        fresh.collect(frozenset())
    puller.pull(reference, AMD64, ignore)
    assert fresh.find(x.name).config == x.config
