"""ADD of addresses: what is fetched, from whom, with what, and what is refused. Servers are on loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from nbcontainer.build import downloads
from nbcontainer.build.downloads import fetched, is_remote
from nbcontainer.build.scratch import Scratch
from nbcontainer.build.sources import Selection
from nbcontainer.dockerfile.expansion import expand
from nbcontainer.dockerfile.instructions import Add
from nbcontainer.dockerfile.parser import parse
from nbcontainer.errors import CorruptContent, InvalidInput, NbcontainerError, RegistryRefused, RegistryUnreachable
from nbcontainer.registry import Interrupt, TransferCancelled
from nbcontainer.testing.images import tiny_layer
from tests.build.trees import tar_of

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"what is at the address"
DIGEST = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers as `answers` says, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {"/file": (200, {}, DATA)}
        self.asked: list[tuple[str, str | None]] = []
        self.over = threading.Event()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        """Answer; ``/cut`` promises more than it gives, ``/slow`` never ends."""
        self.server.asked.append((self.path, self.headers["Authorization"]))
        status, headers, body = self.server.answers.get(self.path, (404, {}, b"nothing"))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        more = {"/cut": 100, "/slow": 1 << 30}.get(self.path, 0)
        self.send_header("Content-Length", str(len(body) + more))
        self.end_headers()
        self.wfile.write(body)
        if self.path == "/slow":
            self.wfile.flush()
            self.server.over.wait(30)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    """Lend one."""
    each = Server()
    worker = threading.Thread(target=partial(each.serve_forever, 0.02))
    worker.start()
    try:
        yield each
    finally:
        each.over.set()
        each.shutdown()
        worker.join()
        each.server_close()


def added(
    source: str, *, flags: str = "", destination: str = "/to/", interrupt: Interrupt | None = None
) -> dict[str, tarfile.TarInfo]:
    """The members of the layer that ``ADD`` of one source makes."""
    (stage,) = parse(f"FROM scratch\nADD {flags} {source} {destination}\n").stages
    instruction = expand(stage.instructions[0], {}, escape="\\").instruction
    assert isinstance(instruction, Add)
    selection = Selection(sources=instruction.sources, mode=instruction.mode, excludes=instruction.excludes)
    with contextlib.ExitStack() as undo:
        scratch = Scratch(tempfile.gettempdir())
        chosen = interrupt or Interrupt("the build")
        part = fetched(source, instruction, selection, interrupt=chosen, scratch=scratch, undo=undo)
        places = ["to" if top.is_dir else f"to/{top.name}" for top in part.tops]
        return tar_of(lambda writer: part.write(writer, places, None))


@pytest.mark.parametrize(
    ("source", "remote"),
    [
        ("http://x/y", True),
        ("HTTPS://x/y", True),
        ("git://x/y", True),
        ("ssh://git@x/y", True),
        ("git@github.com:a/b.git", True),
        ("https://x/y.git#main:sub", True),
        ("file", False),
        ("./http://x", False),
        ("ftp://x/y", False),
        ("file:///etc/passwd", False),
        ("ext::sh -c true", False),
        ("-x", False),
        ("git@", False),
    ],
)
def test_what_is_fetched(source: str, remote: bool) -> None:
    """Only http, git and ssh addresses are fetched; anything else is a path in the context."""
    assert is_remote(source) is remote


def test_a_file(server: Server) -> None:
    """A file has the name at the end of its address, the mode 0600, and the time that the server says."""
    server.answers["/dir/na%20me?query"] = (200, {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}, DATA)
    (member,) = added(f"{server.url}/dir/na%20me?query#fragment").values()
    assert (member.name, member.mode, member.mtime) == ("to/na me", 0o600, 1767323045)
    assert member.pax_headers["data"].encode() == DATA


@pytest.mark.parametrize(
    "moment",
    [
        "", "yesterday", "Fri, 32 Jan 2026 03:04:05 GMT", "Thu, 01 Jan 1901 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 -2359", "99999999999999999999", "Fri, 02 Jan 2026", "\x80", ",",
        "Fri, 02 Jan 2026 03:04:05 +9999999",
    ],
)  # fmt: skip
def test_odd_times(server: Server, moment: str) -> None:
    """A time that cannot be is now."""
    server.answers["/file"] = (200, {"Last-Modified": moment}, DATA)
    before = time.time()
    (member,) = added(f"{server.url}/file").values()
    assert before - 2 <= member.mtime <= time.time() + 2


def test_checksums(server: Server) -> None:
    """The right checksum passes, a wrong one is told with the right one, and one that is none asks nobody."""
    assert added(f"{server.url}/file", flags=f"--checksum=sha256:{DIGEST}")
    with pytest.raises(CorruptContent, match=f"the digest sha256:{DIGEST}, but --checksum says sha256:{'0' * 64}"):
        added(f"{server.url}/file", flags=f"--checksum=sha256:{'0' * 64}")
    server.asked.clear()
    for checksum in ("sha256:x", "md5:1", DIGEST, f"sha256:{DIGEST.upper()}", f"sha512:{DIGEST}"):
        with pytest.raises(InvalidInput, match="is not sha256"):
            added(f"{server.url}/file", flags=f"--checksum={checksum}")
    assert server.asked == []


def test_a_checksum_counts_after_redirects(server: Server) -> None:
    """What arrives is checked, wherever it came from."""
    server.answers["/a"] = (302, {"Location": "/b"}, b"")
    server.answers["/b"] = (307, {"Location": f"{server.url}/file"}, b"")
    (member,) = added(f"{server.url}/a", flags=f"--checksum=sha256:{DIGEST}").values()
    assert member.name == "to/a"
    assert [path for path, _ in server.asked] == ["/a", "/b", "/file"]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://x/", "data:,x", "//", "http://", "ext::sh"])
def test_redirects_elsewhere(server: Server, location: str) -> None:
    """A redirect to anything but http is refused, or is a path of the same server that is not there."""
    server.answers["/a"] = (302, {"Location": location}, b"")
    with pytest.raises(NbcontainerError):
        added(f"{server.url}/a")


def test_endless_redirects(server: Server) -> None:
    """Redirects in a circle come to an end."""
    server.answers["/a"] = (302, {"Location": "/a"}, b"")
    with pytest.raises(RegistryUnreachable, match="more than 10 times"):
        added(f"{server.url}/a")
    assert len(server.asked) == 10


def test_logins(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The login of an address goes to its own server only, and ~/.netrc to nobody."""
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password word\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    added(f"{server.url}/file")
    server.answers["/a"] = (302, {"Location": f"http://localhost:{server.server_port}/file"}, b"")
    added(f"http://us%40er:pa%3Ass@127.0.0.1:{server.server_port}/a")
    login = f"Basic {base64.b64encode(b'us@er:pa:ss').decode()}"
    assert server.asked == [("/file", None), ("/a", login), ("/file", None)]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 204, 206, 304])
def test_refusals(server: Server, status: int) -> None:
    """An answer that is not the file is told with its number; nothing of it is taken for the file."""
    server.answers["/file"] = (status, {}, b"" if status in {204, 304} else DATA)
    with pytest.raises(RegistryRefused, match=f"answered with {status}") as caught:
        added(f"{server.url}/file")
    assert caught.value.status == status


def test_a_short_answer(server: Server) -> None:
    """A body that ends before it should is no file."""
    server.answers["/cut"] = (200, {}, DATA)
    with pytest.raises(RegistryUnreachable):
        added(f"{server.url}/cut")


def test_nobody_there() -> None:
    """A server that is not there is told."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(RegistryUnreachable):
            added(f"http://127.0.0.1:{taken.getsockname()[1]}/x")


@pytest.mark.parametrize(
    "address", ["http://", "http:///x", "http://[::1", "http://a:b:c/", "http://x:99999999/", "http://\x7f/"]
)
def test_no_addresses(address: str) -> None:
    """What cannot be an address is refused in a sentence."""
    with pytest.raises(NbcontainerError):
        added(address)


@pytest.mark.parametrize("path", ["/..", "/a/..", "/.", "/%2e%2e", "/a%2f..", "/a%00b", "/.wh.x", "/%2ewh.x"])
def test_names_that_are_none(server: Server, path: str) -> None:
    """An address whose end is no name for a file is refused before anything is asked."""
    server.answers[path] = (200, {}, DATA)
    with pytest.raises(InvalidInput, match="no name for a file"):
        added(f"{server.url}{path}")
    assert server.asked == []


def test_no_name(server: Server) -> None:
    """An address without a name at its end needs one in the destination."""
    server.answers["/"] = (200, {}, DATA)
    with pytest.raises(InvalidInput, match="no file name at its end"):
        added(f"{server.url}/")
    assert added(f"{server.url}/", destination="/to/name")


def test_unpacking(server: Server) -> None:
    """A download is unpacked when asked to, and refused then when it is no archive."""
    server.answers["/x"] = (200, {}, tiny_layer({"inner": b"x"}))
    assert list(added(f"{server.url}/x")) == ["to/x"]
    assert list(added(f"{server.url}/x", flags="--unpack")) == ["to/inner"]
    with pytest.raises(InvalidInput, match="is no archive that can be unpacked"):
        added(f"{server.url}/file", flags="--unpack")


def test_too_large(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download beyond what a layer may have is given up."""
    monkeypatch.setattr(downloads, "_LARGEST", 10)
    with pytest.raises(InvalidInput, match="is larger than"):
        added(f"{server.url}/file")


def test_interrupts(server: Server) -> None:
    """A download ends with the build's interrupt, wherever it waits."""
    server.answers["/slow"] = (200, {}, b"x")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(4)
        port = deaf.getsockname()[1]
        for source in (f"{server.url}/slow", f"http://127.0.0.1:{port}/x", f"git://127.0.0.1:{port}/x.git"):
            interrupt = Interrupt("the build")
            timer = threading.Timer(0.4, interrupt.trip)
            timer.start()
            began = time.monotonic()
            with pytest.raises(TransferCancelled):
                added(source, interrupt=interrupt)
            timer.join()
            assert time.monotonic() - began < 10


# --- git ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[str]:
    """Lend the address of a repository with two commits and a tag, served by git's daemon."""
    work = tmp_path / "served/repo"
    work.mkdir(parents=True)
    names = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **names, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=work, env=environment, check=True, capture_output=True)

    git("init", "-q", "-b", "main")
    (work / "file").write_text("first")
    git("add", "-A")
    git("commit", "-q", "-m", "one")
    git("tag", "v1")
    (work / "file").write_text("second")
    (work / "sub/deep").mkdir(parents=True)
    (work / "sub/deep/x").write_text("x")
    (work / "out").symlink_to("/etc")
    git("add", "-A")
    git("commit", "-q", "-m", "two")
    git("init", "-q", "-b", "main", "../library")
    library = ("-C", "../library")
    (work.parent / "library/code").write_text("from the library")
    git(*library, "add", "-A")
    git(*library, "commit", "-q", "-m", "library")
    listed = subprocess.run(
        ["git", *library, "rev-parse", "HEAD"], cwd=work, check=True, capture_output=True, text=True
    )
    git("checkout", "-q", "-b", "with-submodules")
    (work / ".gitmodules").write_text('[submodule "l"]\n\tpath = sub/library\n\turl = ../library\n')
    git("add", "-A")
    git("update-index", "--add", "--cacheinfo", f"160000,{listed.stdout.strip()},sub/library")
    git("commit", "-q", "-m", "three")
    (work / ".gitmodules").write_text(f'[submodule "l"]\n\tpath = sub/library\n\turl = {work.parent}/library\n')
    git("add", ".gitmodules")
    git("commit", "-q", "-m", "a submodule on disk")
    git("branch", "on-disk")
    git("reset", "-q", "--hard", "HEAD~1")
    git("checkout", "-q", "main")
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port = each.getsockname()[1]
    daemon = subprocess.Popen(
        ["git", "daemon", "--export-all", f"--base-path={work.parent}", "--listen=127.0.0.1", f"--port={port}"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield f"git://127.0.0.1:{port}/repo"
    finally:
        os.killpg(daemon.pid, 9)
        daemon.wait()


def test_repositories(repository: str) -> None:
    """A repository is copied as of its branch, tag or default, whole or a folder of it, without what git keeps."""
    found = added(repository)
    assert sorted(found) == ["to/file", "to/out", "to/sub", "to/sub/deep", "to/sub/deep/x"]
    assert found["to/file"].pax_headers["data"] == "second"
    assert found["to/out"].linkname == "/etc"
    assert added(f"{repository}#v1")["to/file"].pax_headers["data"] == "first"
    assert list(added(f"{repository}#main:sub/deep")) == ["to/x"]
    assert list(added(f"{repository}#:sub")) == ["to/deep", "to/deep/x"]
    assert "to/.git/config" in added(repository, flags="--keep-git-dir")


def test_submodules(repository: str) -> None:
    """They come along, as with docker, without what git keeps; one that names a folder of the machine is refused."""
    found = added(f"{repository}#with-submodules:sub")
    assert sorted(found) == ["to/deep", "to/deep/x", "to/library", "to/library/code"]
    assert found["to/library/code"].pax_headers["data"] == "from the library"
    assert "to/sub/library/.git" in added(f"{repository}#with-submodules", flags="--keep-git-dir")
    with pytest.raises(RegistryUnreachable, match="cannot be fetched"):
        added(f"{repository}#on-disk")


def test_a_deep_repository(repository: str, tmp_path: Path) -> None:
    """However deep the folders of a commit go, they are looked through for what git keeps."""
    deep = "d/" * (sys.getrecursionlimit() + 100)
    commit = f"""\
commit refs/heads/deep
committer a <a@b> 0 +0000
data 0
M 100644 inline .gitmodules
data 0
M 100644 inline {deep}x
data 0
"""
    subprocess.run(["git", "fast-import", "--quiet"], cwd=tmp_path / "served/repo", input=commit.encode(), check=True)
    assert f"to/{deep}x" in added(f"{repository}#deep")


def test_commits(repository: str) -> None:
    """--checksum names the commit that must be found."""
    with pytest.raises(CorruptContent, match="is the commit") as caught:
        added(f"{repository}#v1", flags=f"--checksum={'0' * 40}")
    commit = str(caught.value).partition("is the commit ")[2][:40]
    assert added(f"{repository}#v1", flags=f"--checksum={commit}")


@pytest.mark.parametrize(
    "fragment", ["main:..", "main:sub/../..", "main:out", "main:out/ssl", "main:nowhere", "main:file", "main:/../.."]
)
def test_folders_that_lead_out(repository: str, fragment: str) -> None:
    """A folder that is none, or leads out of the repository, is refused."""
    with pytest.raises(NbcontainerError, match=r"leads out|no folder"):
        added(f"{repository}#{fragment}")


@pytest.mark.parametrize("ref", ["--upload-pack=x", "-x", "+a:b", "a b", "a..b;", "^main", "", "@{1}", "a\x1b"])
def test_references_that_are_none(repository: str, ref: str) -> None:
    """A reference that git could take for something else is refused; one that is not there is told."""
    if not ref:
        assert added(f"{repository}#{ref}")
        return
    add = Add(origin=parse("FROM x\n").stages[0].base.origin, code="ADD", sources=("x",), destination="/x")
    chosen = Selection(sources=("x",))
    scratch = Scratch(tempfile.gettempdir())
    with contextlib.ExitStack() as undo, pytest.raises(NbcontainerError) as caught:
        fetched(f"{repository}#{ref}", add, chosen, interrupt=Interrupt("the build"), scratch=scratch, undo=undo)
    assert "\x1b" not in str(caught.value)
    with pytest.raises(RegistryUnreachable, match="cannot be fetched"):
        added(f"{repository}#no-such-branch")
