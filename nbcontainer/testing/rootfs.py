"""A small root file system, assembled when a test asks for it from this machine's own programs.

A shell, coreutils and a Python, with the shared libraries that ldd(1) lists for them: a few megabytes that run on any
machine whose programs are the same, so no test needs an image from elsewhere. Layers come as tar bytes, for
`InProcessRegistry.add_image`.

>>> layer = root_layer(("sh", "cat"))
>>> len(layer) > 100_000
True
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["PROGRAMS", "PYTHON", "python_layer", "root_layer", "shared_libraries"]

PROGRAMS = (
    "sh", "basename", "cat", "chgrp", "chmod", "chown", "cp", "cut", "date", "dd", "df", "dirname", "echo", "env",
    "false", "head", "hostname", "id", "ln", "ls", "mkdir", "mkfifo", "mknod", "mktemp", "mount", "mv", "nohup",
    "printf", "pwd", "readlink", "rm", "rmdir", "sed", "seq", "setsid", "sleep", "sort", "stat", "sync", "tail",
    "tee", "test", "timeout", "touch", "tr", "true", "umount", "uname", "unshare", "wc",
)  # fmt: skip
"""What `root_layer` puts into /bin unless told otherwise; a program this machine lacks is left out."""

PYTHON = "/opt/python/bin/python3"
"""Where `python_layer` has its interpreter."""

_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x[0-9a-f]+\)")
_FOLDERS = {
    "bin": 0o755, "etc": 0o755, "home": 0o755, "root": 0o700, "run": 0o755, "tmp": 0o1777, "usr/bin": 0o755,
    "var/tmp": 0o1777, "proc": 0o555, "sys": 0o555, "dev": 0o755,
}  # fmt: skip
_PASSWD = (
    b"root:x:0:0:root:/root:/bin/sh\n"
    b"daemon:x:1:1:daemon:/:/bin/sh\n"
    b"alice:x:1000:1000:Alice:/home/alice:/bin/sh\n"
    b"nobody:x:65534:65534:nobody:/:/bin/sh\n"
)
_GROUP = b"root:x:0:\ndaemon:x:1:\nalice:x:1000:\nwheel:x:27:alice\nstaff:x:50:alice,daemon\nnogroup:x:65534:\n"
_SHELLS = ("dash", "busybox", "bash", "sh")
_MODULES = (
    "array", "ctypes", "encodings.ascii", "encodings.idna", "encodings.latin_1", "errno", "fcntl", "glob", "json",
    "os", "pathlib", "resource", "select", "signal", "site", "socket", "stat", "struct", "subprocess", "sys",
    "threading", "time", "typing",
)  # fmt: skip


def root_layer(
    programs: Iterable[str] = PROGRAMS, *, files: Mapping[str, bytes | tarfile.TarInfo | None] | None = None
) -> bytes:
    """A layer with /bin, /etc/passwd and /etc/group (root, daemon, alice 1000, nobody), /tmp and /home/alice.

    `files` are added last: bytes make a file of mode 0755, None a directory, a `TarInfo` goes in as it is.
    """
    tree = _Tree()
    for name, mode in _FOLDERS.items():
        tree.folder(name, mode)
    tree.folder("home/alice", 0o700, owner=1000)
    tree.file("etc/passwd", _PASSWD)
    tree.file("etc/group", _GROUP)
    for program in programs:
        path = _shell() if program == "sh" else shutil.which(program)
        if path:
            tree.program(f"bin/{program}", os.path.realpath(path))
    if "env" in programs:
        tree.link("usr/bin/env", "/bin/env")
    tree.add(files or {})
    return tree.finished()


def python_layer(modules: Iterable[str] = _MODULES) -> bytes:
    """A layer with the Python that runs now, at `PYTHON`, and of its library only what `modules` need."""
    tree = _Tree()
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    interpreter = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    tree.program(PYTHON.strip("/"), interpreter)
    library = os.path.realpath(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix}))
    for path in _files_of(interpreter, modules, library):
        tree.program(f"opt/python/lib/{version}/{os.path.relpath(path, library)}", path, mode=0o644)
    tree.folder(f"opt/python/lib/{version}/lib-dynload", 0o755)
    return tree.finished()


def shared_libraries(program: str) -> tuple[str, ...]:
    """The paths that ldd(1) lists for a program; none for a static one, or for a script."""
    done = subprocess.run(["ldd", program], capture_output=True, text=True, env={"LC_ALL": "C"}, check=False)
    return tuple(match[1] for line in done.stdout.splitlines() if (match := _LIBRARY.search(line)))


def _shell() -> str | None:
    return next((path for name in _SHELLS if (path := shutil.which(name))), None)


def _files_of(interpreter: str, modules: Iterable[str], library: str) -> list[str]:
    """Source, compiled and extension files below `library` that importing `modules` touches."""
    program = (
        "import importlib, json, sys\n"
        "[importlib.import_module(name) for name in sys.argv[1:]]\n"
        "kinds = ('__file__', '__cached__')\n"
        "names = [getattr(module, name, None) for module in list(sys.modules.values()) for name in kinds]\n"
        "print(json.dumps([name for name in names if name]))\n"
    )
    done = subprocess.run(
        [interpreter, "-I", "-S", "-c", program, *modules], capture_output=True, text=True, check=True
    )
    found = {os.path.realpath(name) for name in json.loads(done.stdout)}
    found.add(os.path.join(library, "os.py"))  # the landmark by which an interpreter knows its library
    found.add(os.path.join(library, "collections", "abc.py"))  # only an alias from Python 3.13 on, so in no `__file__`
    return sorted(path for path in found if path.startswith(library + "/") and os.path.isfile(path))


class _Tree:
    """A tar being written: parents are made, nothing is added twice."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        self._names: set[str] = set()

    def finished(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()

    def add(self, files: Mapping[str, bytes | tarfile.TarInfo | None]) -> None:
        for name, content in files.items():
            if content is None:
                self.folder(name, 0o755)
            elif isinstance(content, tarfile.TarInfo):
                content.name = name
                self._tar.addfile(content)
            else:
                self.file(name, content, mode=0o755)

    def folder(self, name: str, mode: int, *, owner: int = 0) -> None:
        if self._is_new(name):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, owner, owner
            self._tar.addfile(entry)

    def file(self, name: str, data: bytes, *, mode: int = 0o644, time: float = 0) -> None:
        if self._is_new(name):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), mode, int(time)
            self._tar.addfile(entry, io.BytesIO(data))

    def link(self, name: str, target: str) -> None:
        if self._is_new(name):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            self._tar.addfile(entry)

    def program(self, name: str, source: str, *, mode: int = 0o755) -> None:
        """A file of this machine, and the libraries it needs where the loader looks for them."""
        self._copy(name, source, mode)
        if source.endswith((".py", ".pyc")):
            return
        for library in shared_libraries(source):
            # one from a folder of its own (a Python in somebody's home) goes where every loader looks
            known = library.startswith(("/lib", "/usr/lib"))
            self._copy(library.strip("/") if known else f"usr/lib/{os.path.basename(library)}", library, 0o755)

    def _copy(self, name: str, source: str, mode: int) -> None:
        if name not in self._names:
            with open(source, "rb") as file:
                self.file(name, file.read(), mode=mode, time=os.stat(source).st_mtime)

    def _is_new(self, name: str) -> bool:
        if name in self._names:
            return False
        for parent in _parents(name):
            if parent not in self._names:
                self.folder(parent, 0o755)
        self._names.add(name)
        return True


def _parents(name: str) -> Iterator[str]:
    parts = name.split("/")[:-1]
    for number in range(len(parts)):
        yield "/".join(parts[: number + 1])
