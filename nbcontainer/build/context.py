"""The build context: a folder, a tar, or nothing; with variables of the notebook over it.

A folder is read where it lies, with the person's rights, when a COPY asks for something; nothing is sent anywhere. A
tar is unpacked into a folder of the store that goes away with the build. What ``<Dockerfile>.dockerignore`` or
``.dockerignore`` leaves out is not there.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from nbcontainer._linux.mounts import AT_FDCWD
from nbcontainer._linux.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, openat2
from nbcontainer.build.sources import FileTree
from nbcontainer.dockerfile.ignore import Ignore
from nbcontainer.errors import CorruptContent, InvalidImage, InvalidInput, InvalidOption, NotFound, StorageError
from nbcontainer.layers.compression import decompress, write_all
from nbcontainer.layers.place import Landing, place
from nbcontainer.layers.tar import Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbcontainer.build.request import ContextSource
    from nbcontainer.build.scratch import Scratch

__all__ = ["Context", "opened"]

_NAME = "the build context"
_LARGEST_DOCKERFILE = 16 * 1024 * 1024
_PIECE = 1 << 20
_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """An open context."""

    tree: FileTree

    def dockerfile(self, name: str) -> tuple[bytes, str]:
        """The bytes of a Dockerfile in the context, and its path; links are followed inside the context only."""
        path = name or "Dockerfile"
        if path in self.tree.files:
            return self.tree.files[path], path
        data = self._read(path)
        if data is None and not name:
            path = "dockerfile"
            data = self._read(path)
        if data is None:
            wanted = name or "Dockerfile"
            raise NotFound(f"there is no {wanted} in {_NAME}; name it with -f, or write it into a cell: %%dockerfile")
        return data, path

    def ignoring(self, dockerfile: str) -> Context:
        """The same without what is to be left out: the Dockerfile's own list counts before the common one."""
        for name in (f"{dockerfile}.dockerignore" if dockerfile else "", ".dockerignore"):
            data = self._read(name) if name else None
            if data is not None:
                return self.leaving_out(data)
        return self

    def leaving_out(self, rules: bytes) -> Context:
        """The same without what the text of a .dockerignore leaves out."""
        return replace(self, tree=replace(self.tree, ignore=Ignore.parse(rules)))

    def _read(self, path: str) -> bytes | None:
        if path in self.tree.files:
            return self.tree.files[path]
        if self.tree.root_fd < 0:
            return None
        try:
            fd = openat2(self.tree.root_fd, path, os.O_RDONLY | os.O_NONBLOCK, resolve=_IN_ROOT)
        except OSError as problem:
            if isinstance(problem, (FileNotFoundError, NotADirectoryError)):
                return None
            raise InvalidInput(f"{path} in {_NAME} cannot be read: {problem.strerror}") from problem
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidInput(f"{path} in {_NAME} is no file; a file of that name is expected there")
        with open(fd, "rb") as file:
            try:
                data = file.read(_LARGEST_DOCKERFILE + 1)
            except OSError as problem:
                raise InvalidInput(f"{path} in {_NAME} cannot be read: {problem.strerror}") from problem
        if len(data) > _LARGEST_DOCKERFILE:
            raise InvalidInput(
                f"{path} in {_NAME} is larger than {_LARGEST_DOCKERFILE >> 20} MiB; is it the right file?"
            )
        return data


@contextlib.contextmanager
def opened(source: ContextSource, scratch: Scratch) -> Iterator[Context]:
    """Open a context for the length of a build; what an archive has is put into a folder of `scratch`."""
    for name in source.files:
        if not name or "/" in name or name in {".", ".."} or "\0" in name:
            raise InvalidOption(f"{name!r} cannot be the name of a file in the build context")
    with contextlib.ExitStack() as undo:
        folder = source.folder
        if source.archive is not None:
            folder = undo.enter_context(scratch.folder())
            _unpack(source.archive, folder)
        root_fd = -1
        if folder:
            root_fd = _open_folder(folder)
            undo.callback(os.close, root_fd)
        yield Context(tree=FileTree(root_fd=root_fd, name=_NAME, files=dict(source.files)))


def _open_folder(folder: str) -> int:
    path = os.path.abspath(os.path.expanduser(folder))
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as problem:
        raise NotFound(f"the build context {folder} does not exist on this machine") from problem
    except NotADirectoryError as problem:
        raise InvalidInput(f"the build context {folder} is no folder") from problem
    except OSError as problem:
        raise InvalidInput(f"the build context {folder} cannot be read: {problem.strerror}") from problem


def _unpack(archive: BinaryIO, folder: str) -> None:
    """Put what is in a tar, plain or compressed with gzip or zstd, into an empty folder, and nothing outside it."""

    def consume(reader: int) -> None:
        place(
            Stream(reader),
            AT_FDCWD,
            lambda _: Landing(folder=os.fsencode(folder), name=b""),
            resolve=0,
            owners=False,
            special=False,
            renamed=False,
        )

    try:
        with _read_by(consume) as writer:
            for piece in decompress(iter(lambda: archive.read(_PIECE), b"")):
                write_all(writer, piece)
    except (CorruptContent, InvalidImage) as problem:
        raise InvalidInput(f"the build context is no tar archive that can be read: {problem}") from problem
    except OSError as problem:
        raise StorageError(
            f"the build context cannot be unpacked into the store: {problem.strerror}; make room there"
        ) from problem


@contextlib.contextmanager
def _read_by(consume: Callable[[int], None]) -> Iterator[int]:
    """A pipe to write to in this thread, where Ctrl-C arrives, while another has `consume` read it.

    When that gives up, what it raised is raised.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    problems: list[BaseException] = []

    def work() -> None:
        try:
            consume(reader)
            while os.read(reader, _PIECE):  # what stands after the end of a tar
                pass
        except BaseException as problem:  # noqa: BLE001 - raised again in the thread that asked
            problems.append(problem)
        finally:
            os.close(reader)

    worker = threading.Thread(target=work, name="nbcontainer-unpack", daemon=True)
    worker.start()
    try:
        yield writer
    except BrokenPipeError:
        pass
    finally:
        os.close(writer)
        worker.join()
    if problems:
        raise problems[0]
