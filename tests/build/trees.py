"""Trees for the tests of this folder, and what is in a tar."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbcontainer.build.sources import FileTree
from nbcontainer.dockerfile.ignore import Ignore
from nbcontainer.layers.pack import TarWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["made", "tar_of", "tree_of"]


def made(folder: Path, files: Mapping[str, str | bytes | None]) -> Path:
    """A folder with these files; None is a folder, and text after ``->`` where a link leads."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str) and content.startswith("->"):
            path.symlink_to(content[2:])
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@contextmanager
def tree_of(
    folder: Path, *, ignore: str = "", files: Mapping[str, bytes] | None = None, owned: bool = False
) -> Iterator[FileTree]:
    """A tree to copy from."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield FileTree(
            root_fd=fd, name="the tree", files=files or {}, ignore=Ignore.parse(ignore.encode()), owned=owned
        )
    finally:
        os.close(fd)


def tar_of(produce: Callable[[TarWriter], object]) -> dict[str, tarfile.TarInfo]:
    """The members by name of the tar that `produce` writes; contents are in their ``data``, as PAX headers."""
    file = os.memfd_create("tar")
    try:
        writer = TarWriter(file)
        produce(writer)
        writer.finish()
        data = os.pread(file, os.fstat(file).st_size, 0)
    finally:
        os.close(file)
    found = {}
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        for member in tar.getmembers():
            reader = tar.extractfile(member) if member.isfile() else None
            member.pax_headers = {"data": reader.read().decode("latin-1") if reader else ""}
            found[member.name] = member
    return found
