"""What ADD fetches: a file by http(s), a tree by git. Into a temporary folder, and read from there as a context is.

A Dockerfile is a stranger's text and git is a program with many doors: only four protocols are let through, no hooks,
no configuration of the person's, no prompts, and nothing of the text is taken as an option (CVE-2018-11235 and its
kin). The person's own keys and helpers are not used either; what needs them goes through --secret or --ssh and RUN.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

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
    from nbcontainer.dockerfile.instructions import Add, Transfer

__all__ = ["fetched", "is_remote"]

_HTTP = re.compile(r"https?://", re.IGNORECASE)
_GIT = re.compile(r"(?:git|ssh)://|git@[\w.-]+:|https?://[^#?]+\.git(?:#|$)", re.IGNORECASE)
_REF = re.compile(r"[\w][\w./+-]*", re.ASCII)
_PROTOCOLS = "http:https:git:ssh"
_TIMEOUT = 30.0
_GIT_TIMEOUT = 600.0
_PIECE = 1 << 20
_LARGEST = 64 * 1024**3


def is_remote(source: str) -> bool:
    """Whether a source of ADD is to be fetched."""
    return bool(_HTTP.match(source) or _GIT.match(source))


def fetched(
    source: str,
    instruction: Transfer,
    selection: Selection,
    *,
    undo: contextlib.ExitStack,
) -> Part:
    """Fetch one source: a tree, or an archive when it is to be unpacked."""
    add: Add = instruction  # type: ignore[assignment] # only ADD has remote sources
    folder = tempfile.mkdtemp(prefix="nbcontainer-add-")
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    chosen = Selection(sources=("",), excludes=selection.excludes, mode=selection.mode)
    if _GIT.match(source):
        subfolder = _clone(source, folder, keep_git=add.keep_git_dir, checksum=add.checksum)
        tree = FileTree(root_fd=_opened(os.path.join(folder, subfolder), undo), name=source)
        return TreePart.of(tree, chosen, [Top(path="", name="", is_dir=True)])
    name = _download(source, folder, add.checksum)
    tree = FileTree(root_fd=_opened(folder, undo), name=source)
    top = Top(path="download", name=name, is_dir=False)
    if add.unpack:
        archives, _ = archive_parts(tree, [top], mode=selection.mode, undo=undo)
        if not archives:
            raise InvalidInput(f"{source} is no archive that can be unpacked; leave --unpack out")
        return archives[0]
    if not name and instruction.destination.endswith("/"):
        raise InvalidInput(f"{source} has no file name at its end; name the file in the destination")
    return TreePart.of(tree, chosen, [top])


def _opened(path: str, undo: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    return fd


def _download(url: str, folder: str, checksum: str) -> str:
    """Fetch a file to ``download`` in a folder; its name by the address."""
    import requests

    algorithm, _, expected = checksum.partition(":")
    if checksum and (algorithm != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", expected, re.ASCII)):
        raise InvalidInput(f"--checksum={checksum} is not sha256: and 64 hex digits")
    path = os.path.join(folder, "download")
    total = hashlib.sha256()
    size = 0
    try:
        with requests.get(url, stream=True, timeout=_TIMEOUT) as answer:
            if answer.status_code >= 400:
                raise RegistryRefused(
                    f"ADD {url} was answered with {answer.status_code} {answer.reason}; check the address",
                    status=answer.status_code,
                )
            with open(path, "wb") as file:
                for piece in answer.iter_content(_PIECE):
                    total.update(piece)
                    size += len(piece)
                    if size > _LARGEST:
                        raise InvalidInput(f"ADD {url} is larger than {_LARGEST >> 30} GiB; refused")
                    file.write(piece)
            modified = answer.headers.get("Last-Modified", "")
    except requests.RequestException as problem:
        raise RegistryUnreachable(f"ADD {url} cannot be fetched: {type(problem).__name__}: {problem}") from problem
    if checksum and total.hexdigest() != expected:
        raise CorruptContent(f"ADD {url} has the digest sha256:{total.hexdigest()}, but --checksum says {checksum}")
    os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
    moment = time.time()
    with contextlib.suppress(TypeError, ValueError):
        moment = parsedate_to_datetime(modified).timestamp()
    os.utime(path, (moment, moment))
    return os.path.basename(unquote(urlsplit(url).path))


def _clone(source: str, folder: str, *, keep_git: bool, checksum: str) -> str:
    """Put a commit of a repository into a folder; the subfolder that is meant."""
    address, _, fragment = source.partition("#")
    ref, _, subfolder = fragment.partition(":")
    if ref and not _REF.fullmatch(ref):
        raise InvalidInput(f"ADD {source}: {ref!r} cannot be a branch, tag or commit")
    if shutil.which("git") is None:
        raise UnsupportedHost(f"ADD {source} takes the program git, which is not on this machine; install it")
    _git(folder, source, "init", "--quiet", ".")
    _git(folder, source, "fetch", "--quiet", "--depth=1", "--no-recurse-submodules", "--", address, ref or "HEAD")
    commit = _git(folder, source, "rev-parse", "FETCH_HEAD")
    if checksum and commit.strip() != checksum:
        raise CorruptContent(f"ADD {source} is the commit {commit.strip()}, but --checksum says {checksum}")
    _git(folder, source, "checkout", "--quiet", "--detach", "FETCH_HEAD")
    if not keep_git:
        shutil.rmtree(os.path.join(folder, ".git"), ignore_errors=True)
    parts = [part for part in subfolder.split("/") if part not in {"", "."}]
    path = os.path.join(folder, *parts)
    inside = os.path.realpath(path)
    if ".." in parts or not (inside == folder or inside.startswith(f"{folder}/")):
        raise InvalidInput(f"ADD {source}: the subfolder {subfolder!r} leads out of the repository; refused")
    if not os.path.isdir(inside):
        raise NotFound(f"ADD {source}: there is no folder {subfolder!r} in that commit")
    return os.path.relpath(inside, folder)


def _git(folder: str, source: str, *words: str) -> str:
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": folder,
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
        "LC_ALL": "C",
    }
    settings = ("-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never", "-c", "core.fsmonitor=false")
    try:
        done = subprocess.run(
            ["git", *settings, *words],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_TIMEOUT,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired as problem:
        raise RegistryUnreachable(f"ADD {source}: git did not end within {_GIT_TIMEOUT:.0f} s") from problem
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["git said nothing"]
        raise RegistryUnreachable(f"ADD {source} cannot be fetched: {lines[-1]}")
    return done.stdout
