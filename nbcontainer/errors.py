"""Everything that can go wrong, drawn as one tree.

Branches are cut by what the reader can do about it, not by the module that noticed. Every message is
one sentence (or two) naming the object, the cause and the next step; magics and the command line show
it as it is, without a traceback.

    NbcontainerError
    ├── InvalidInput              what was typed or configured cannot be used: change it
    │   ├── InvalidReference      an image name
    │   ├── InvalidDigest         a content digest
    │   ├── InvalidOption         an option, a mount, a user, a platform
    │   └── DockerfileError       a Dockerfile, with the line and a caret under the place
    ├── NotFound                  the name is well formed, but there is no such thing
    │   ├── ImageNotFound
    │   ├── ContainerNotFound
    │   ├── VolumeNotFound
    │   └── BlobNotFound
    ├── Conflict                  it exists already, or somebody is using it
    ├── Denied                    somebody (registry, host) said no to these credentials
    ├── RemoteError               the registry or the way to it failed: retry, or ask its owner
    │   ├── RegistryUnreachable
    │   ├── RateLimited
    │   └── RegistryRefused
    ├── CorruptContent            bytes that are not what their digest or size says
    ├── InvalidImage              a manifest, config or layer that cannot be used
    │   └── UnsafeLayer           a layer that tried to write outside its root
    ├── StorageError              the local store cannot take or keep the bytes (disk full, read-only)
    ├── UnsupportedHost           this kernel or machine cannot do what was asked
    └── ContainerError            the container did not end well
        ├── ContainerStartError   it never ran its command (exit codes 125, 126, 127)
        ├── ContainerExit         its command ended with a non-zero code or a signal
        │   └── BuildFailed       that command was a RUN of a Dockerfile
        ├── ContainerTimeout      it was ended by its time limit
        └── ContainerInterrupted  it was ended because the person asked
"""

from __future__ import annotations

import re
import subprocess
import unicodedata

__all__ = [
    "BlobNotFound",
    "BuildFailed",
    "Conflict",
    "ContainerError",
    "ContainerExit",
    "ContainerInterrupted",
    "ContainerNotFound",
    "ContainerStartError",
    "ContainerTimeout",
    "CorruptContent",
    "Denied",
    "DockerfileError",
    "ImageNotFound",
    "InvalidDigest",
    "InvalidImage",
    "InvalidInput",
    "InvalidOption",
    "InvalidReference",
    "NbcontainerError",
    "NotFound",
    "RateLimited",
    "RegistryRefused",
    "RegistryUnreachable",
    "RemoteError",
    "StorageError",
    "UnsafeLayer",
    "UnsupportedHost",
    "VolumeNotFound",
    "class_named",
    "printable",
]

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_LONGEST = 4000


def printable(text: str) -> str:
    r"""Text on one line in which nothing can move the cursor, change colours or reverse the reading direction.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(mark) if unicodedata.category(mark) in _HIDDEN else mark for mark in text)


def _visible(mark: str) -> str:
    return repr(mark)[1:-1] if not mark.isprintable() else f"\\u{ord(mark):04x}"


def _on_screen(text: str) -> str:
    """A sentence as it is shown: names in it are strangers', so they may neither steer a terminal nor fill a page."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return "\n".join(printable(line.replace("\t", " ")) for line in text.split("\n"))


class NbcontainerError(Exception):
    """The root of the tree: one `except` clause catches everything this package raises on purpose."""

    @property
    def message(self) -> str:
        """The sentence to show, without a class name or traceback."""
        return _on_screen(str(self.args[0])) if self.args else type(self).__name__

    def __str__(self) -> str:
        return self.message

    def _render_traceback_(self) -> list[str]:
        """Show one line in IPython instead of a traceback (IPython calls this when it exists)."""
        return [f"{type(self).__name__}: {self}"]


def class_named(name: str, otherwise: type[NbcontainerError] = NbcontainerError) -> type[NbcontainerError]:
    """The class of that name in this tree, as another process has told it; `otherwise` for anything else."""
    kind = globals().get(name)
    return kind if isinstance(kind, type) and issubclass(kind, NbcontainerError) else otherwise


class InvalidInput(NbcontainerError, ValueError):
    """What was typed or configured cannot be used."""


class InvalidReference(InvalidInput):
    """Not an image name."""


class InvalidDigest(InvalidInput):
    """Not a content digest such as ``sha256:<64 hex digits>``."""


class InvalidOption(InvalidInput):
    """An option, mount, user or platform that cannot be used."""


class DockerfileError(InvalidInput):
    """A Dockerfile, or a .dockerignore, that cannot be used.

    `line` and `column` count from 1 and are 0 where the problem has no place; `drawing` shows the source
    with a caret below the place.
    """

    def __init__(self, message: str, *, line: int = 0, column: int = 0, drawing: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.drawing = drawing

    @property
    def message(self) -> str:
        """`line N: sentence`, then the drawing."""
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{super().message}" + (f"\n{_on_screen(self.drawing)}" if self.drawing else "")


class NotFound(NbcontainerError, LookupError):
    """The name is well formed, but there is no such thing."""


class ImageNotFound(NotFound):
    """No such image, here or in the registry that was asked."""


class ContainerNotFound(NotFound):
    """No such container."""


class VolumeNotFound(NotFound):
    """No such volume."""


class BlobNotFound(NotFound):
    """The content store, or a registry, does not hold this digest."""


class Conflict(NbcontainerError):
    """It exists already, or somebody is using it."""


class Denied(NbcontainerError, PermissionError):
    """Credentials were missing or were refused."""


class RemoteError(NbcontainerError):
    """The registry, or the way to it, failed."""


class RegistryUnreachable(RemoteError, ConnectionError):
    """No answer: name look-up, connection, TLS or time-out."""


class RateLimited(RemoteError):
    """The registry answered 429; `retry_after` is in seconds when it said so."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RegistryRefused(RemoteError):
    """The registry answered with an error; `status` is its HTTP status, `codes` the OCI error codes."""

    def __init__(self, message: str, *, status: int, codes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.codes = codes


class CorruptContent(NbcontainerError):
    """Bytes that are not what their digest or size says."""


class InvalidImage(NbcontainerError):
    """A manifest, config or layer that cannot be used."""


class UnsafeLayer(InvalidImage):
    """A layer entry that would have reached outside the layer's root."""


class StorageError(NbcontainerError):
    """The local store cannot take or keep the bytes."""


class UnsupportedHost(NbcontainerError):
    """This kernel or machine cannot do what was asked."""


class ContainerError(NbcontainerError):
    """The container did not end well."""


class ContainerStartError(ContainerError):
    """The container never ran its command; `exit_code` is 125, 126 or 127 as in docker.

    125: the engine could not set it up, 126: the command cannot be invoked, 127: it was not found.
    """

    def __init__(self, message: str, *, exit_code: int = 125) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ContainerExit(ContainerError, subprocess.CalledProcessError):
    """The command ended with a non-zero exit code.

    A `subprocess.CalledProcessError`, so code that runs notebooks or catches the errors of ``%%bash``
    needs no change. `returncode` is 128 + n for a command killed by signal n; `stderr_tail` holds the
    last lines of its standard error.
    """

    def __init__(
        self,
        returncode: int,
        cmd: tuple[str, ...],
        *,
        image: str,
        reason: str = "",
        output: str | None = None,
        stderr_tail: str = "",
    ) -> None:
        subprocess.CalledProcessError.__init__(self, returncode, list(cmd), output, stderr_tail)
        self.image = image
        self.reason = reason or f"exit code {returncode}"
        self.stderr_tail = stderr_tail

    @property
    def message(self) -> str:
        """`image: exit code N`, then the last lines of standard error."""
        lines = _COLOURS.sub("", self.stderr_tail).replace("\r\n", "\n").rstrip()
        tail = f"\n{_on_screen(lines)}" if lines.strip() else ""
        return f"{_on_screen(self.image)}: {_on_screen(self.reason)}{tail}"


class BuildFailed(ContainerExit):
    """A RUN of a Dockerfile ended badly, so there is no image.

    `line` is that of the instruction, `drawing` shows it; `hint` says what can be done with the state it left.
    """

    def __init__(
        self,
        returncode: int,
        cmd: tuple[str, ...],
        *,
        image: str,
        reason: str = "",
        output: str | None = None,
        stderr_tail: str = "",
        line: int = 0,
        drawing: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(returncode, cmd, image=image, reason=reason, output=output, stderr_tail=stderr_tail)
        self.line = line
        self.drawing = drawing
        self.hint = hint

    @property
    def message(self) -> str:
        """The instruction with a caret, the command, its last output, how it ended, and what can be done now."""
        lines = _COLOURS.sub("", self.stderr_tail).replace("\r\n", "\n").rstrip()
        parts = [
            f"line {self.line}: the command of {_on_screen(self.image)} failed: {_on_screen(self.reason)}",
            _on_screen(self.drawing),
            f"command: {_on_screen(' '.join(str(word) for word in self.cmd))}",
            f"last output:\n{_on_screen(lines)}" if lines.strip() else "",
            _on_screen(self.hint),
        ]
        return "\n".join(part for part in parts if part)


class ContainerTimeout(ContainerExit):
    """Ended by its time limit; every process of the container is gone."""


class ContainerInterrupted(ContainerExit, KeyboardInterrupt):
    """Ended because the person asked; every process of the container is gone."""
