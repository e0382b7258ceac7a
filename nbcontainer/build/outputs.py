"""What becomes of a built stage: an image in the store with its names, and what --output asks for beside it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import tarfile
import threading
import time
from typing import TYPE_CHECKING, BinaryIO

from nbcontainer._linux.mounts import AT_FDCWD
from nbcontainer.errors import InvalidInput, InvalidOption, InvalidReference, StorageError
from nbcontainer.images.committing import checked_config, encoded, manifest_of
from nbcontainer.images.image import load_image
from nbcontainer.layers.place import Landing, place
from nbcontainer.layers.tar import Stream
from nbcontainer.model import Reference
from nbcontainer.model.oci import OCI_INDEX, OCI_MANIFEST
from nbcontainer.store import ImageRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from nbcontainer.build.stage import StageState
    from nbcontainer.build.workshop import Workshop
    from nbcontainer.images.image import Image
    from nbcontainer.model import Digest

__all__ = ["aside", "checked_tags", "named_image", "write_archive", "write_folder"]

_UNTAGGED = "localhost/untagged"
_HOST = "host"
_PIECE = 1 << 20


def checked_tags(tags: Sequence[str]) -> tuple[Reference, ...]:
    """The names an image is to have; raise `InvalidReference` before anything is built."""
    references = []
    for tag in tags:
        if tag == _HOST:
            raise InvalidReference("'host' is the embedded image, this machine's own root; choose another name")
        reference = Reference.parse(tag)
        if reference.digest is not None:
            raise InvalidReference(f"{tag!r} has a digest, and nobody knows that of an image not built yet")
        references.append(reference)
    return tuple(references)


def named_image(workshop: Workshop, state: StageState, names: Sequence[Reference]) -> Image:
    """Store the documents, and last of all the names. Without one the image goes by its digest."""
    content = workshop.content
    config = state.config()
    checked_config(config)
    config_data = encoded(config)
    config_digest = content.put(config_data)
    manifest_data = encoded(manifest_of(state.layers, config_digest, len(config_data)))
    manifest = content.put(manifest_data)
    chosen = tuple(names) or (Reference.parse(f"{_UNTAGGED}@{manifest}"),)
    records = [
        ImageRecord(
            reference=name,
            target=manifest,
            manifest=manifest,
            config=config_digest,
            pulled_at=time.time(),
            size=len(config_data) + sum(layer.size for layer in state.layers),
        )
        for name in chosen
    ]
    image = load_image(records[0], content)
    for record in records:
        workshop.refs.put(record)
    return image


# --- beside the store -----------------------------------------------------------------------------------------------


def write_folder(destination: str, export: Callable[[int], None]) -> None:
    """Put the files of a stage into a folder of the person's, whose owner they get; `export` writes them as a tar."""
    path = os.path.abspath(os.path.expanduser(destination))
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as problem:
        raise InvalidOption(f"--output: the folder {destination} cannot be made: {problem.strerror}") from problem
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(reader, "rb", buffering=0) as tar, _written(writer, export):
        place(
            Stream(tar.fileno()),
            AT_FDCWD,
            lambda _: Landing(folder=os.fsencode(path), name=b""),
            resolve=0,
            owners=False,
            special=False,
            renamed=False,
        )


@contextlib.contextmanager
def _written(writer: int, export: Callable[[int], None]) -> Iterator[None]:
    """Have `export` write to a pipe in a thread for the length of a block, and raise what it raised."""
    problems: list[BaseException] = []

    def work() -> None:
        try:
            export(writer)
        except BrokenPipeError:
            pass
        except BaseException as problem:  # noqa: BLE001 - raised in the thread that asked
            problems.append(problem)
        finally:
            os.close(writer)

    worker = threading.Thread(target=work, name="nbcontainer-export", daemon=True)
    worker.start()
    try:
        yield
    finally:
        worker.join()
    if problems:
        raise problems[0]


@contextlib.contextmanager
def aside(destination: str) -> Iterator[BinaryIO]:
    """A file that has its name when it is complete."""
    path = os.path.abspath(os.path.expanduser(destination))
    if os.path.isdir(path):
        raise InvalidInput(f"--output: {destination} is a folder; name the file to write")
    part = f"{path}.part-{secrets.token_hex(4)}"
    try:
        # a link that somebody has put there is not followed: the folder may be everybody's
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with open(fd, "wb") as file:
            yield file
        os.rename(part, path)
    except OSError as problem:
        raise StorageError(f"--output: {destination} cannot be written: {problem.strerror}") from problem
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)


def write_archive(workshop: Workshop, image: Image, names: Sequence[Reference], file: BinaryIO) -> None:
    """An OCI image layout as a tar, which docker, podman and skopeo read; it has docker's ``manifest.json``, too.

    The same image gives the same bytes.
    """
    record = image.record
    layers = [layer.digest for layer in image.manifest.layers]
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        for digest in dict.fromkeys([record.manifest, record.config, *layers]):
            with workshop.content.open(digest) as blob:
                entry = tarfile.TarInfo(f"blobs/{digest.algorithm}/{digest.hex}")
                entry.size = workshop.content.size(digest)
                entry.mode = 0o644
                tar.addfile(entry, blob)
        size = workshop.content.size(record.manifest)
        described = {"mediaType": OCI_MANIFEST, "digest": str(record.manifest), "size": size}
        listed = [
            {
                **described,
                "annotations": {
                    "io.containerd.image.name": str(name),
                    "org.opencontainers.image.ref.name": name.tag,
                },
            }
            for name in names
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed or [described]}
        _add(tar, "index.json", json.dumps(index).encode())
        docker = [
            {
                "Config": _blob(record.config),
                "RepoTags": [name.familiar for name in names] or None,
                "Layers": [_blob(digest) for digest in layers],
            }
        ]
        _add(tar, "manifest.json", json.dumps(docker).encode())


def _blob(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    tar.addfile(entry, io.BytesIO(data))
