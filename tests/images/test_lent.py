"""Images whose layers are fetched one by one: of an OCI layout, a registry, the store."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import CorruptContent, InvalidImage, InvalidInput, NbcontainerError, NotFound
from nbcontainer.images.image import load_image
from nbcontainer.images.lent import lent_by_layout, lent_by_registry, lent_by_store
from nbcontainer.model import Digest, Platform, Reference
from nbcontainer.registry import RegistryClient, RegistrySettings
from nbcontainer.store import ContentStore, ImageRecord
from nbcontainer.testing.images import build_image, build_index, tiny_layer
from nbcontainer.testing.registry import InProcessRegistry

if TYPE_CHECKING:
    from pathlib import Path

    from nbcontainer.testing.images import BuiltImage

AMD64 = Platform("linux", "amd64")
_LAYERS = (tiny_layer({"a": b"1"}), tiny_layer({"b": b"2" * 3_000_000}))


def unstopped() -> None:
    """Nobody stops it."""


@pytest.fixture
def content(tmp_path: Path) -> ContentStore:
    """Lend an empty store."""
    return ContentStore(str(tmp_path / "store"))


def files_of(image: BuiltImage, *, nested: int = 0) -> dict[str, bytes]:
    """The files of a layout of that image, below indexes as deep as asked."""
    blobs = {f"blobs/sha256/{digest.hex}": data for digest, data in image.blobs.items()}
    data, descriptor = image.manifest_bytes, image.descriptor
    blobs[f"blobs/sha256/{descriptor.digest.hex}"] = data
    index = build_index([descriptor])
    for _ in range(nested):
        blobs[f"blobs/sha256/{index.descriptor.digest.hex}"] = index.index_bytes
        index = build_index([index.descriptor])
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index.index_bytes, **blobs}


def written(folder: Path, files: dict[str, bytes], *, archive: bool) -> str:
    """The same as a folder, or as a tar."""
    if archive:
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / "image.tar", "w") as tar:
            for name, data in files.items():
                entry = tarfile.TarInfo(f"./{name}")
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return str(folder / "image.tar")
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("nested", [0, 1])
def test_a_layout(tmp_path: Path, content: ContentStore, archive: bool, nested: int) -> None:
    """Only the layer that is asked for comes into the store; descriptors go when it is closed."""
    image = build_image(_LAYERS)
    path = written(tmp_path / "layout", files_of(image, nested=nested), archive=archive)
    before = len(os.listdir("/proc/self/fd"))
    lent = lent_by_layout(path, AMD64, content)
    layer, diff_id = lent.take(1, unstopped)
    assert content.has(layer.digest)
    assert not content.has(lent.manifest.layers[0].digest)
    assert diff_id == Digest.of(_LAYERS[1])
    assert lent.take(1, unstopped) == (layer, diff_id)
    lent.close()
    lent.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_layout(tmp_path: Path, content: ContentStore) -> None:
    """It is said what is missing or wrong, nothing waits for a pipe, and no descriptor stays open."""
    image = build_image(_LAYERS)
    files = files_of(image)
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no tar")
    os.mkfifo(tmp_path / "fifo")
    os.mkfifo(tmp_path / "empty" / "oci-layout")
    fifo = tmp_path / "with-fifo"
    fifo.mkdir()
    os.mkfifo(fifo / "index.json")
    out = tmp_path / "out"
    written(out, files, archive=False)
    (out / "index.json").rename(tmp_path / "outside.json")
    (out / "index.json").symlink_to(tmp_path / "outside.json")
    other = written(tmp_path / "arm", files, archive=False)
    index = json.loads(files["index.json"])
    index["manifests"][0]["platform"] = {"os": "linux", "architecture": "s390x"}
    (tmp_path / "arm/index.json").write_text(json.dumps(index))
    cases: list[tuple[str, type[NbcontainerError], str]] = [
        (str(tmp_path / "none"), NotFound, "cannot be read: No such file"),
        (str(tmp_path / "empty"), NotFound, "index.json in .* cannot be read"),
        (str(tmp_path / "text"), InvalidInput, "no tar archive that can be read"),
        (str(tmp_path / "fifo"), InvalidInput, "neither a folder nor a file"),
        (str(fifo), InvalidImage, "is no file"),
        (str(out), NotFound, "index.json in .* cannot be read"),
        (other, NotFound, "no image for linux/amd64; its platforms are: linux/s390x"),
        (written(tmp_path / "deep", files_of(image, nested=2), archive=True), InvalidImage, "within an index"),
        (written(tmp_path / "less", {"index.json": files["index.json"]}, archive=True), NotFound, "no OCI archive"),
    ]
    for path, kind, sentence in cases:
        with pytest.raises(kind, match=sentence):
            lent_by_layout(path, AMD64, content)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("archive", [False, True])
def test_bytes_are_checked(tmp_path: Path, content: ContentStore, archive: bool) -> None:
    """A document or layer with other bytes than its name says is refused, and so is one with another size."""
    image = build_image(_LAYERS)
    files = files_of(image)
    manifest = f"blobs/sha256/{image.descriptor.digest.hex}"
    spoilt = {**files, manifest: files[manifest] + b" "}
    with pytest.raises(CorruptContent, match="other content than its name"):
        lent_by_layout(written(tmp_path / "one", spoilt, archive=archive), AMD64, content)
    layer = image.manifest.layers[0]
    name = f"blobs/sha256/{layer.digest.hex}"
    for data in (files[name][:-1] + b"\xff", files[name] + b"more", files[name][:-5]):
        path = written(tmp_path / f"layer{len(data)}", {**files, name: data}, archive=archive)
        with contextlib.closing(lent_by_layout(path, AMD64, content)) as lent, pytest.raises(CorruptContent):
            lent.take(0, unstopped)
        assert not content.has(layer.digest)


def test_a_size_that_the_store_knows_better(tmp_path: Path, content: ContentStore) -> None:
    """A manifest that lies of the size of a layer that is here already would make a manifest of ours lie, too."""
    image = build_image(_LAYERS)
    content.put(image.blobs[image.manifest.layers[0].digest])
    document = json.loads(image.manifest_bytes)
    document["layers"][0]["size"] += 1
    manifest = json.dumps(document).encode()
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": [dict(document["config"])]}
    index["manifests"][0] |= {"digest": str(Digest.of(manifest)), "size": len(manifest)}
    index["manifests"][0]["mediaType"] = image.manifest.media_type
    files = {
        **files_of(image),
        f"blobs/sha256/{Digest.of(manifest).hex}": manifest,
        "index.json": json.dumps(index).encode(),
    }
    path = written(tmp_path / "l", files, archive=False)
    with contextlib.closing(lent_by_layout(path, AMD64, content)) as lent:  # noqa: SIM117 - only the second may raise
        with pytest.raises(CorruptContent, match="which has others"):
            lent.take(0, unstopped)


def test_it_can_be_stopped(tmp_path: Path, content: ContentStore) -> None:
    """What `check` raises ends the transfer."""
    path = written(tmp_path / "layout", files_of(build_image(_LAYERS)), archive=True)

    def stop() -> None:
        raise InvalidInput("stopped")

    with contextlib.closing(lent_by_layout(path, AMD64, content)) as lent, pytest.raises(InvalidInput, match="stopped"):
        lent.take(1, stop)


def test_a_registry(content: ContentStore) -> None:
    """A layer is fetched when it is asked for; what cannot be used leaves its client to the caller."""
    with InProcessRegistry() as registry, ExitStack() as undo:
        registry.add_image("app", "1", layers=_LAYERS)
        reference = Reference.parse(registry.reference("app", "1"))
        client = undo.enter_context(RegistryClient(RegistrySettings()))
        with pytest.raises(NotFound):
            lent_by_registry(
                Reference.parse(registry.reference("none")), AMD64, client=client, content=content, undo=undo
            )
        lent = lent_by_registry(reference, AMD64, client=client, content=content, undo=undo)
        with contextlib.closing(lent):
            assert not registry.asked("/blobs/" + str(lent.manifest.layers[0].digest))
            layer, _ = lent.take(0, unstopped)
            assert content.has(layer.digest)
            assert not registry.asked("/blobs/" + str(lent.manifest.layers[1].digest))


def test_the_store(content: ContentStore) -> None:
    """Layers of an image that is here are here, or it is said that they are lost."""
    image = build_image(_LAYERS)
    first, second = image.manifest.layers
    for digest, data in image.blobs.items():
        if digest != second.digest:
            content.put(data)
    content.put(image.manifest_bytes)
    record = ImageRecord(
        reference=Reference.parse("app"),
        target=image.descriptor.digest,
        manifest=image.descriptor.digest,
        config=image.manifest.config.digest,
        pulled_at=0,
        size=1,
    )
    lent = lent_by_store(load_image(record, content), content)
    assert lent.take(0, unstopped)[0] == first
    with pytest.raises(NotFound, match="is not in the store any more"):
        lent.take(1, unstopped)
