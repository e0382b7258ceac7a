"""What ADD fetches: a file by http(s), a tree by git. Into a folder of the store, and read from there as a context is.

A Dockerfile is a stranger's text and git is a program with many doors: only four protocols are let through, no hooks,
no configuration of the person's, no prompts, and nothing of the text is taken as an option (CVE-2018-11235 and its
kin). The person's own keys and helpers are not used either; what needs them goes through --secret or --ssh and RUN.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from nbcontainer.build.parts import TreePart, archive_parts
from nbcontainer.build.sources import FileTree, Selection, Top
from nbcontainer.errors import (
    CorruptContent,
    InvalidInput,
    NotFound,
    RegistryRefused,
    RegistryUnreachable,
    UnsupportedHost,
)

if TYPE_CHECKING:
    from nbcontainer.build.parts import Part
    from nbcontainer.build.scratch import Scratch
    from nbcontainer.dockerfile.instructions import Add, Transfer
    from nbcontainer.registry import HttpResponse, Interrupt, RequestsTransport

__all__ = ["fetched", "is_remote"]

_HTTP = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"(?:git|ssh)://|git@[\w.-]+:|https?://[^#?]+\.git(?:#|$)", re.IGNORECASE)
_REF = re.compile(r"[\w][\w./+-]*", re.ASCII)
_PROTOCOLS = "http:https:git:ssh"
_TIMEOUT = 30.0
_GIT_TIMEOUT = 600.0
_PIECE = 1 << 20
_LARGEST = 64 * 1024**3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_LATEST = 253402300799.0
"""The end of the year 9999."""
_WHITEOUT = ".wh."
_SSH = "ssh -F none -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityFile=/dev/null -o IdentityAgent=none"
_BOUND = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""A program that becomes another, which ends with the thread that started it: nothing outlives a killed notebook."""


def is_remote(source: str) -> bool:
    """Whether a source of ADD is to be fetched."""
    return bool(_HTTP.match(source) or _GIT.match(source))


def fetched(
    source: str,
    instruction: Transfer,
    selection: Selection,
    *,
    interrupt: Interrupt,
    scratch: Scratch,
    undo: contextlib.ExitStack,
) -> Part:
    """Fetch one source: a tree, or an archive when it is to be unpacked. A trip of `interrupt` ends it."""
    add: Add = instruction  # type: ignore[assignment] # only ADD has remote sources
    folder = undo.enter_context(scratch.folder())
    chosen = Selection(sources=("",), excludes=selection.excludes, mode=selection.mode)
    if _GIT.match(source):
        subfolder = _clone(source, folder, keep_git=add.keep_git_dir, checksum=add.checksum, interrupt=interrupt)
        tree = FileTree(root_fd=_opened(os.path.join(folder, subfolder), undo), name=source)
        return TreePart.of(tree, chosen, [Top(path="", name="", is_dir=True)])
    name = _download(source, folder, add.checksum, interrupt)
    tree = FileTree(root_fd=_opened(folder, undo), name=source)
    top = Top(path="download", name=name, is_dir=False)
    if add.unpack:
        archives, _ = archive_parts(tree, [top], mode=selection.mode, scratch=scratch, undo=undo)
        if not archives:
            raise InvalidInput(f"{source} is no archive that can be unpacked; leave --unpack out")
        return archives[0]
    if not name and instruction.destination.endswith(("/", "/.", "/..")):
        raise InvalidInput(f"{source} has no file name at its end; name the file in the destination")
    return TreePart.of(tree, chosen, [top])


def _opened(path: str, undo: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def _download(url: str, folder: str, checksum: str, interrupt: Interrupt) -> str:
    """Fetch a file to ``download`` in a folder; its name by the address."""
    from nbcontainer.registry import RequestsTransport  # requests takes its time, and few builds need it

    algorithm, _, expected = checksum.partition(":")
    if checksum and (algorithm != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", expected, re.ASCII)):
        raise InvalidInput(f"--checksum={checksum} is not sha256: and 64 hex digits")
    try:
        name = os.path.basename(unquote(urlsplit(url).path))
    except ValueError as problem:
        raise InvalidInput(f"ADD {url} is no address: {problem}") from problem
    if name in {".", ".."} or "\0" in name or name.startswith(_WHITEOUT):
        raise InvalidInput(f"{url} ends in {name!r}, which is no name for a file; name the file in the destination")
    path = os.path.join(folder, "download")
    total = hashlib.sha256()
    size = 0
    transport = RequestsTransport(timeout=_TIMEOUT)
    try:
        answer = _answer(transport, url, interrupt)
        try:
            with open(path, "wb") as file:
                while piece := answer.read(_PIECE):
                    total.update(piece)
                    size += len(piece)
                    if size > _LARGEST:
                        raise InvalidInput(f"ADD {url} is larger than {_LARGEST >> 30} GiB; refused")
                    file.write(piece)
            modified = answer.headers.get("Last-Modified", "")
        finally:
            answer.close()
    finally:
        transport.close()
    if checksum and total.hexdigest() != expected:
        raise CorruptContent(f"ADD {url} has the digest sha256:{total.hexdigest()}, but --checksum says {checksum}")
    os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
    moment = _moment(modified)
    os.utime(path, (moment, moment))
    return name


def _answer(transport: RequestsTransport, url: str, interrupt: Interrupt) -> HttpResponse:
    """The answer with the file, redirects followed.

    None of the person's logins is sent (~/.netrc, cookies), and one that the address has itself to its own host only.
    """
    from nbcontainer.registry import HttpRequest

    at = url
    login = _login(url)
    for _ in range(_MOST_REDIRECTS):
        asked = login if urlsplit(at)[:2] == urlsplit(url)[:2] else None
        answer = transport.send(HttpRequest(method="GET", url=_without_login(at), authorization=asked), interrupt)
        location = answer.headers.get("Location", "")
        if answer.status in _REDIRECTS and location:
            answer.close()
            try:
                at = urljoin(at, location)
                valid = bool(_HTTP.match(at) and urlsplit(at).hostname)
            except ValueError:
                valid = False
            if not valid:
                raise RegistryUnreachable(f"ADD {url} is redirected to {location!r}, which is no http address; refused")
            continue
        if answer.status != HTTPStatus.OK:
            answer.close()
            raise RegistryRefused(
                f"ADD {url} was answered with {answer.status}; check the address", status=answer.status
            )
        return answer
    raise RegistryUnreachable(f"ADD {url} is redirected more than {_MOST_REDIRECTS} times; check the address")


def _login(url: str) -> str | None:
    """The user and password of an address as a header (RFC 7617)."""
    parts = urlsplit(url)
    if parts.username is None:
        return None
    words = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return f"Basic {base64.b64encode(words.encode()).decode()}"


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _moment(modified: str) -> float:
    """The time of a Last-Modified; now when there is none that can be."""
    with contextlib.suppress(TypeError, ValueError, IndexError, OverflowError):
        moment = parsedate_to_datetime(modified).timestamp()
        if 0 <= moment <= _LATEST:
            return moment
    return time.time()


def _clone(source: str, folder: str, *, keep_git: bool, checksum: str, interrupt: Interrupt) -> str:
    """Put a commit of a repository into a folder; the subfolder that is meant."""
    address, _, fragment = source.partition("#")
    ref, _, subfolder = fragment.partition(":")
    if ref and not _REF.fullmatch(ref):
        raise InvalidInput(f"ADD {source}: {ref!r} cannot be a branch, tag or commit")
    if shutil.which("git") is None:
        raise UnsupportedHost(f"ADD {source} takes the program git, which is not on this machine; install it")
    _git(folder, source, interrupt, "init", "--quiet", ".")
    _git(
        folder,
        source,
        interrupt,
        "fetch",
        "--quiet",
        "--depth=1",
        "--no-recurse-submodules",
        "--",
        address,
        ref or "HEAD",
    )
    commit = _git(folder, source, interrupt, "rev-parse", "FETCH_HEAD")
    if checksum and commit.strip() != checksum:
        raise CorruptContent(f"ADD {source} is the commit {commit.strip()}, but --checksum says {checksum}")
    _git(folder, source, interrupt, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    nested = os.path.lexists(os.path.join(folder, ".gitmodules"))
    if nested:
        # addresses in it may be relative to the repository's own; the protocols let through are the same for all
        _git(folder, source, interrupt, "config", "remote.origin.url", address)
        _git(folder, source, interrupt, "submodule", "--quiet", "update", "--init", "--recursive", "--depth=1")
    if not keep_git:
        shutil.rmtree(os.path.join(folder, ".git"), ignore_errors=True)
        if nested:
            _forget_submodules(folder)
    parts = [part for part in subfolder.split("/") if part not in {"", "."}]
    path = os.path.join(folder, *parts)
    inside = os.path.realpath(path)
    if ".." in parts or not (inside == folder or inside.startswith(f"{folder}/")):
        raise InvalidInput(f"ADD {source}: the subfolder {subfolder!r} leads out of the repository; refused")
    if not os.path.isdir(inside):
        raise NotFound(f"ADD {source}: there is no folder {subfolder!r} in that commit")
    return os.path.relpath(inside, folder)


def _forget_submodules(folder: str) -> None:
    """Take away the file in each submodule that led to what git kept; no commit can have a file of that name.

    Until Python 3.12 `os.walk` calls itself for each folder on the way down.
    """
    waiting = [folder]
    while waiting:
        found: list[os.DirEntry[str]] = []
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            found += entries
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.name == ".git":
                os.unlink(entry.path)


def _git(folder: str, source: str, interrupt: Interrupt, *words: str) -> str:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": folder,
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": _SSH,
        "LC_ALL": "C",
    }
    settings = ("-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never", "-c", "core.fsmonitor=false")
    program = [sys.executable, "-I", "-S", "-c", _BOUND, str(os.getpid()), "git", *settings, *words]
    with subprocess.Popen(
        program,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        unwatch = interrupt.watch(lambda: _end(process))
        try:
            output, said = process.communicate(timeout=_GIT_TIMEOUT)
        except subprocess.TimeoutExpired as problem:
            raise RegistryUnreachable(f"ADD {source}: git did not end within {_GIT_TIMEOUT:.0f} s") from problem
        finally:
            unwatch()
            _end(process)
    interrupt.check()
    if process.returncode != 0:
        lines = said.strip().splitlines() or ["git said nothing"]
        raise RegistryUnreachable(f"ADD {source} cannot be fetched: {lines[-1]}")
    return output


def _end(process: subprocess.Popen[str]) -> None:
    """End git and its helpers, which are of its session; safe when they have ended."""
    if process.returncode is None:  # else its number may be somebody else's by now
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
