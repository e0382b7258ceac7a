"""Dockerfiles, contexts, archives, repositories and base images that want more than a build: each gets nothing.

A test fails when its attack works. The canary lies in a folder of the machine's that everybody may read and write, so
what keeps it is the sandbox and no permission.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import socket
import stat
import subprocess
import tarfile
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer import errors
from nbcontainer.build.request import CacheSource
from nbcontainer.testing.images import build_image, tiny_layer
from tests.harness.leaks import deserted_cgroups, lives
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.test_build import config_of, context
from tests.integration.test_crash import sweep
from tests.integration.test_failures import small_disk
from tests.integration.tiers import Raised, wait_until
from tests.security.test_hostile_images import CANARY, base, outside, symlink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Driver, Tier

__all__ = ["outside", "small_disk"]

_SAME = 'RUN test "$(cat /etc/passwd)" = "$(cat /etc/passwd.was)"'
_SOON = 8.0
"""Within this many seconds an interrupt ends anything."""


_ONE_OF_EACH = ("COPY hosts", "COPY --from=evil /", "WORKDIR", "RUN --mount=type=bind", "RUN --mount=type=tmpfs")
"""What is tried with every link, where everything is tried with the first."""


def links(outside: Path) -> dict[str, str]:
    """Links that want to lead out, by name."""
    return {
        "absolute": str(outside),
        "dots": "../" * 20 + str(outside).lstrip("/"),
        "through": "/proc/self/root" + str(outside),
        "descriptor": "/proc/self/cwd",
    }


def seen(tier: Tier, image: str, path: str = "/got") -> str:
    """Everything of an image below a path, with the contents of its files."""
    script = f"find {path} -exec ls -ld {{}} + ; find {path} -type f -exec cat {{}} +"
    return tier.driver.run(
        image=image, script=f"{script} 2>/dev/null || ls -lR {path}; cat {path}/* {path} 2>/dev/null; true"
    ).stdout


def attempted(tier: Tier, text: str, **options: Any) -> str:
    """Build as image ``attempt`` and give what is in its /got, or the refusal; nothing of the canary may be in either."""
    try:
        tier.driver.build(text, "attempt", **options)
    except Raised as raised:
        assert raised.is_ours, (raised.kinds, str(raised))
        assert CANARY not in str(raised)
        assert CANARY.encode() not in b"".join(tier.driver.output.values())
        return f"refused: {raised}"
    assert CANARY.encode() not in b"".join(tier.driver.output.values())
    found = seen(tier, "attempt")
    assert CANARY not in found
    return found


# --- the context ----------------------------------------------------------------------------------------------------


def test_links_of_the_context(tier: Tier, outside: Path) -> None:
    """A link of the context is followed inside it only, as a source, as a folder on the way, and by a pattern."""
    folder = context(tier, {"plain": "x"})
    for name, target in links(outside).items():
        os.symlink(target, f"{folder}/{name}")
        os.symlink(f"{target}/canary", f"{folder}/{name}-file")
    for name in links(outside):
        for source in (f"{name}/canary", f"{name}-file", f"{name}/*", f"{name}-fil[e]"):
            assert attempted(tier, f"FROM {tier.image}\nCOPY {source} /got/\n", folder=folder).startswith("refused")
        attempted(tier, f"FROM {tier.image}\nCOPY {name}*/ /got/\n", folder=folder)
    mounted = f"FROM {tier.image}\nRUN --mount=source=absolute,target=/m cat /m/canary\n"
    assert attempted(tier, mounted, folder=folder).startswith("refused")
    tier.driver.build(f"FROM {tier.image}\nCOPY . /got\n", "attempt", folder=folder)
    assert tier.driver.run("readlink", "/got/absolute", image="attempt").stdout == f"{outside}\n"
    assert CANARY not in seen(tier, "attempt")


@OWN_TIER
def test_dockerfile_behind_a_link(tier: Tier, outside: Path) -> None:
    """A Dockerfile, its folder, or a list of what to leave out that is a link out of the context is not there."""
    (outside / "Dockerfile").write_text(f"FROM {tier.image}\nLABEL canary={CANARY!r}\n")
    (outside / ".dockerignore").write_text("*\n")
    try:
        for target in links(outside).values():
            folder = context(tier, {"a": "x"})
            os.symlink(target, f"{folder}/sub")
            os.symlink(f"{target}/Dockerfile", f"{folder}/Dockerfile")
            os.symlink(f"{target}/.dockerignore", f"{folder}/.dockerignore")
            for name in ("", "sub/Dockerfile", "Dockerfile"):
                tier.driver.begin_build(None, "attempt", folder=folder, dockerfile_name=name)
                with pytest.raises(Raised) as caught:
                    tier.driver.finish()
                assert caught.value.is_ours
                assert CANARY not in str(caught.value)
            assert tier.driver.build(f"FROM {tier.image}\nCOPY a /a\n", folder=folder)["layers"]
    finally:
        for name in ("Dockerfile", ".dockerignore"):
            (outside / name).unlink()


@OWN_TIER
@pytest.mark.parametrize("name", ["Dockerfile", ".dockerignore"])
def test_no_plain_file(tier: Tier, name: str) -> None:
    """A pipe, a folder, a socket or a link to itself in the place of what is read is refused at once, in a sentence."""
    for kind in ("pipe", "folder", "socket", "link", "device"):
        folder = context(
            tier, {"a": "x"} | ({} if name == "Dockerfile" else {"Dockerfile": "FROM scratch\nCOPY a /\n"})
        )
        path = f"{folder}/{name}"
        with contextlib.ExitStack() as undo:
            if kind == "pipe":
                os.mkfifo(path)
            elif kind == "folder":
                os.mkdir(path)
            elif kind == "socket":
                undo.enter_context(socket.socket(socket.AF_UNIX)).bind(path)
            elif kind == "link":
                os.symlink(name, path)
            else:
                os.symlink("/dev/zero", path)
            try:
                tier.driver.begin_build(None, folder=folder)
                tier.driver.finish(within=10)
            except Raised as raised:
                assert raised.is_ours, (kind, raised.kinds, str(raised))
            else:
                assert name == ".dockerignore", kind


@OWN_TIER
def test_special_files_of_the_context(tier: Tier) -> None:
    """A socket is left out of a folder and refused by name; a pipe is made anew and never opened."""
    folder = context(tier, {"d/a": "x"})
    os.mkfifo(f"{folder}/d/pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/d/socket")
        tier.driver.build(f"FROM {tier.image}\nCOPY d /got/\n", "attempt", folder=folder)
        with pytest.raises(Raised, match="device or a socket"):
            tier.driver.build(f"FROM {tier.image}\nCOPY d/socket /got/\n", folder=folder)
        tier.driver.build(f"FROM {tier.image}\nADD d/pipe /got/\n", folder=folder)
    result = tier.driver.run("sh", "-c", "ls /got; test -p /got/pipe", image="attempt")
    assert (result.stdout, result.exit_code) == ("a\npipe\n", 0)


# --- stages and images ----------------------------------------------------------------------------------------------


def hostile_base(registry: InProcessRegistry, outside: Path) -> str:
    """An image with links at its root that want to lead out, and one in every place that a build touches."""
    files: dict[str, Any] = {name: symlink(target) for name, target in links(outside).items()}
    files |= {f"{name}-file": symlink(f"{target}/canary") for name, target in links(outside).items()}
    files |= {"run": symlink(str(outside)), "up": symlink("../../../../../.."), "kernel": symlink("/proc")}
    name = registry.reference("hostile-base", f"t{abs(hash(str(outside)))}")
    registry.add_image("hostile-base", name.rpartition(":")[2], layers=[base(), tiny_layer(files)], compression="none")
    return name


@OWN_TIER
def test_sources_through_links(tier: Tier, registry: InProcessRegistry, outside: Path) -> None:
    """CVE-2024-1753: links of a base image or a stage lead no mount and no copy to the machine's files, by no option."""
    image = hostile_base(registry, outside)
    text = f"FROM {image} AS evil\nRUN ln -s {outside} /made && ln -s / /root-of-it\nFROM {tier.image}\n"
    for name in (*links(outside), "made", f"root-of-it{outside}", f"up{outside}"):
        for line in (
            f"COPY --from=evil /{name}/canary /got/",
            f"COPY --from={image} /{name}/canary /got/",
            f"COPY --from=evil /{name}/* /got/",
            f"RUN --mount=type=bind,from=evil,source=/{name},target=/m cat /m/canary",
            f"RUN --mount=type=bind,from=evil,source=/{name}/canary,target=/m cat /m",
            f"RUN --mount=type=cache,from=evil,source=/{name},target=/m,id=l{hash(name)} cat /m/canary",
        ):
            if not (name == "absolute" or (tier.name == "own" and line.startswith(_ONE_OF_EACH))):
                continue  # the same code resolves all names, and the same code finds all sources
            answer = attempted(tier, f"{text}{line}\n")
            assert name == "descriptor" or answer.startswith("refused"), (line, answer)
    for mount in ("bind,from=evil,source=/,rw", "cache,from=evil,id=whole"):
        attempted(tier, f"{text}RUN --mount=type={mount},target=/m cat /m/absolute/canary; touch /m/absolute/x; true\n")


@OWN_TIER
def test_targets_through_links(tier: Tier, registry: InProcessRegistry, outside: Path) -> None:
    """A destination, a WORKDIR or the target of a mount that is a link of the image is inside the image."""
    image = hostile_base(registry, outside)
    packed = tiny_layer({"file": b"mine", "hosts": b"mine"})
    for name in links(outside):
        text = f"FROM {image}\n"
        for line in (
            f"COPY hosts /{name}/",
            f"COPY hosts /{name}-file",
            f"ADD packed /{name}/",
            f"WORKDIR /{name}/below\nRUN touch here",
            f"RUN --mount=type=bind,source=hosts,target=/{name}/hosts cat /{name}/hosts",
            f"RUN --mount=type=cache,id=t,target=/{name}/deep/er touch /{name}/deep/er/x",
            f"RUN --mount=type=secret,id=s,target=/{name}/null cat /{name}/null",
            "RUN --mount=type=secret,id=s cat /run/secrets/s",
            f"RUN --mount=type=tmpfs,target=/{name} touch /{name}/x",
        ):
            if not (name == "absolute" or (tier.name == "own" and line.startswith(_ONE_OF_EACH))):
                continue
            attempted(tier, f"{text}{line}\n", files={"hosts": b"mine", "packed": packed}, secrets={"s": b"s"})


@OWN_TIER
def test_mounts_over_the_sandbox(tier: Tier, registry: InProcessRegistry, outside: Path) -> None:
    """No mount of a RUN lands on /proc, /sys or /dev, whether named or reached by a link."""
    image = hostile_base(registry, outside)
    for target in ("/proc", "/proc/sys", "/sys/fs", "/dev", "/dev/null", "/", "/x/../proc", "/kernel/self", "/kernel"):
        text = f"FROM {image}\nRUN --mount=type=tmpfs,target={target} test ! -e /proc/1/status || exit 9; grep -q tmpfs /proc/self/mountinfo\n"
        answer = attempted(tier, text)
        assert answer.startswith("refused"), (target, answer)


@OWN_TIER
def test_clean_up_through_a_link(tier: Tier, outside: Path) -> None:
    """CVE-2024-23652: what a build takes away after a RUN is never reached by a link that the RUN put in its way."""
    for name in ("folder", "file"):
        if name == "folder":
            (outside / name).mkdir()
        else:
            (outside / name).touch()
    try:
        for kind in (
            "tmpfs",
            "cache,id=c",
            "bind,from=other,source=/etc",
            "bind,from=other,source=/etc,rw",
            "secret,id=s",
        ):
            text = (
                f"FROM {tier.image} AS other\nFROM {tier.image}\n"
                f"RUN --mount=type={kind},target=/way/folder --mount=type=secret,id=s,target=/way/file"
                f" mv /way /moved && ln -s {outside} /way && ls -d /way\n"
            )
            attempted(tier, text, secrets={"s": b"s"})
            assert (outside / "folder").is_dir()
            assert (outside / "file").exists()
        text = (
            f"FROM {tier.image} AS other\nFROM {tier.image}\n"
            f"RUN --mount=type=bind,from=other,target=/m,rw rm -rf /m/etc && ln -s {outside} /m/etc && ln -s {outside} /m/x\n"
            f"RUN --mount=type=cache,target=/c,id=links ln -sfn {outside} /c/x\n"
            f"RUN --mount=type=cache,target=/c,id=links touch /c/x/y; true\n"
        )
        attempted(tier, text)
        tier.driver.call("clear_build_cache")
    finally:
        (outside / "folder").rmdir()
        (outside / "file").unlink()
    assert os.listdir(f"{tier.store}/build/mounts") == []


# --- archives -------------------------------------------------------------------------------------------------------


def member(kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """An entry without data."""
    entry = tarfile.TarInfo()
    entry.type, entry.linkname, entry.mode = kind, link, mode
    entry.devmajor, entry.devminor = 1, 3
    return entry


def hostile_archives(outside: Path) -> dict[str, dict[str, Any]]:
    """Archives that want to write elsewhere, by what they try."""
    away = str(outside).lstrip("/")
    return {
        "absolute": {f"{outside}/canary": b"mine", "/etc/passwd": b"mine"},
        "dots": {f"a/../../../../../../../../../../{away}/canary": b"mine"},
        "start": {f"../../../../../../../../../{away}/canary": b"mine", "..": None},
        "link": {"out": symlink(str(outside)), "out/canary": b"mine"},
        "link-dots": {"out": symlink("../" * 20 + away), "out/canary": b"mine"},
        "link-root": {"": symlink(str(outside)), "canary": b"mine"},
        "link-twice": {"a": symlink("b"), "b": symlink(str(outside)), "a/canary": b"mine"},
        "hard": {"out": member(tarfile.LNKTYPE, f"{outside}/canary"), "got": b"x"},
        "hard-dots": {"out": member(tarfile.LNKTYPE, "../" * 20 + f"{away}/canary")},
        "hard-link": {"l": symlink(f"{outside}/canary"), "out": member(tarfile.LNKTYPE, "l"), "x": b"x"},
        "hard-through": {"l": symlink(str(outside)), "out": member(tarfile.LNKTYPE, "l/canary"), "x": b"x"},
        "device": {"null": member(tarfile.CHRTYPE), "disk": member(tarfile.BLKTYPE), "ok": b"x"},
        "whiteout": {".wh.passwd": b"", ".wh..wh..opq": b"", "sub/.wh.x": b"", ".wh.": b"", ".wh...": b""},
    }


@OWN_TIER
@pytest.mark.parametrize(
    "kind",
    ["absolute", "dots", "start", "link", "link-dots", "link-root", "link-twice", "hard", "hard-dots", "hard-link", "hard-through", "device", "whiteout"],
)  # fmt: skip
def test_hostile_archives(tier: Tier, outside: Path, kind: str) -> None:
    """An archive that ADD unpacks, or that is the context, writes nothing but below where it was to go."""
    packed = tiny_layer(hostile_archives(outside)[kind])
    text = f"FROM {tier.image}\nRUN cp /etc/passwd /etc/passwd.was\nADD packed.tar /got/\n{_SAME}\n"
    found = attempted(tier, text, files={"packed.tar": packed})
    assert "mine" not in found.replace("refused", "") or kind in {
        "absolute",
        "link",
        "link-dots",
        "link-root",
        "link-twice",
    }, found
    text = f"FROM {tier.image}\nADD packed.tar /etc/\n{_SAME}\n".replace(
        "ADD", "RUN cp /etc/passwd /etc/passwd.was\nADD", 1
    )
    if kind != "absolute":
        answer = attempted(tier, text, files={"packed.tar": packed})
        assert not answer.startswith("refused") or "passwd.was" not in answer, answer
    if tier.name == "own":
        try:
            tier.driver.begin_build(f"FROM {tier.image}\nCOPY . /got\n", "attempt", archive=packed)
            tier.driver.finish()
        except Raised as raised:
            assert raised.is_ours, (raised.kinds, str(raised))
        else:
            assert CANARY not in seen(tier, "attempt")


def sparse_bomb(size: int) -> bytes:
    """A tar of some kilobytes with a file of `size` bytes that is one hole (GNU sparse format 1.0)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("GNUSparseFile.0/hole")
        body = b"1\n%d\n0\n" % size
        body += bytes(-len(body) % 512)
        entry.size = len(body)
        entry.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "hole",
            "GNU.sparse.realsize": str(size),
        }
        tar.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()


@OWN_TIER
def test_sparse_bomb(tier: Tier) -> None:
    """A small archive whose one file claims terabytes of hole does not become terabytes of zeros."""
    began = time.monotonic()
    for size in (1 << 40, 1 << 60):
        text = f"FROM {tier.image}\nADD bomb /got/\n"
        tier.driver.begin_build(text, "attempt", files={"bomb": sparse_bomb(size)})
        try:
            tier.driver.finish(within=20)
        except Raised as raised:
            assert raised.is_ours, (raised.kinds, str(raised))
        else:
            assert tier.driver.run("stat", "-c", "%b", "/got/hole", image="attempt").stdout == "0\n"
            tier.driver.call("remove_image", "attempt")
    assert time.monotonic() - began < patient(30)


@OWN_TIER
def test_truncated_archive(tier: Tier) -> None:
    """An archive that ends in the middle is refused, and never copied half or as it is."""
    whole = tiny_layer({f"f{number}": os.urandom(4000) for number in range(200)})
    for data in (whole[: len(whole) // 2], gzip.compress(whole)[:-400_000], gzip.compress(whole)[:-4]):
        answer = attempted(tier, f"FROM {tier.image}\nADD packed /got/\n", files={"packed": data})
        assert answer.startswith("refused"), "copied as it is"


def test_set_user_id_and_capabilities_of_archives(tier: Tier) -> None:
    """A set-user-id program that ADD brings gives nobody anything, and one put out to a folder has lost its bit."""
    entry = member(mode=0o6755)
    folder = tier.folder("out")
    text = "FROM scratch\nADD packed /got/\n"
    tier.driver.build(text, files={"packed": tiny_layer({"su": entry})}, outputs=[("local", f"{folder}/got")])
    mode = (folder / "got/got/su").stat().st_mode
    assert not mode & (stat.S_ISUID | stat.S_ISGID), oct(mode)


@OWN_TIER
def test_output_through_links(tier: Tier, outside: Path) -> None:
    """--output local into a folder that an earlier result filled with links goes through none of them."""
    folder = tier.folder("out")
    files = {"one": tiny_layer({"way": symlink(str(outside)), "name": symlink(f"{outside}/canary")})}
    tier.driver.build("FROM scratch\nADD one /\n", files=files, outputs=[("local", str(folder))])
    assert os.readlink(folder / "way") == str(outside)
    for files in ({"two": tiny_layer({"way/canary": b"mine"})}, {"two": tiny_layer({"name": b"mine"})}):
        with contextlib.suppress(Raised):
            tier.driver.build("FROM scratch\nADD two /\n", files=files, outputs=[("local", str(folder))])
    for kind in ("tar", "oci"):
        target = folder / f"result.{kind}"
        target.symlink_to(outside / "canary")
        tier.driver.build("FROM scratch\nCOPY a /\n", files={"a": b"x"}, outputs=[(kind, str(target))])
        assert not target.is_symlink()


# --- what is fetched ------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    """Answers by a table of paths and remembers what was asked."""

    daemon_threads = True

    def __init__(self, answers: Mapping[str, tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = answers
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.hold = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """Answer; ``/slow`` begins and never ends."""
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        status, headers, body = self.server.answers.get(self.path, (404, {}, b""))
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.path == "/slow":
            self.send_header("Content-Length", "1000000000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            self.wfile.flush()
            self.server.hold.wait(60)
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(answers: Mapping[str, tuple[int, dict[str, str], bytes]]) -> Iterator[_Server]:
    """A server on loopback."""
    server = _Server(answers)
    worker = threading.Thread(target=partial(server.serve_forever, 0.05))
    worker.start()
    try:
        yield server
    finally:
        server.hold.set()
        server.shutdown()
        worker.join()
        server.server_close()


@OWN_TIER
def test_names_of_downloads(tier: Tier) -> None:
    """The name at the end of an address is a name: no dots, no whiteout, nothing that steers a terminal."""
    paths = [
        "/..",
        "/a/..",
        "/.",
        "/%2e%2e",
        "/x%2f..",
        "/.wh.passwd",
        "/.wh..wh..opq",
        "/a%00b",
        "/%1b[31mred",
        "/..%2f..%2fpasswd",
    ]
    with serving({path: (200, {}, b"mine") for path in paths}) as server:
        for path in paths:
            text = (
                f"FROM {tier.image}\nRUN cp /etc/passwd /etc/passwd.was\n"
                f"ADD http://127.0.0.1:{server.server_port}{path} /etc/\n{_SAME}\n"
            )
            answer = attempted(tier, text)
            if answer.startswith("refused"):
                assert "passwd.was" not in answer, (path, answer)
                assert "\x1b" not in answer


@OWN_TIER
def test_logins_are_not_sent(tier: Tier) -> None:
    """ADD of an address sends none of the person's logins, neither to it nor to where it redirects."""
    with serving({"/file": (200, {}, b"x")}) as other, serving({}) as server:
        server.answers = {"/away": (302, {"Location": f"http://localhost:{other.server_port}/file"}, b"")}
        netrc = Path(tier.home) / ".netrc"
        netrc.write_text("machine 127.0.0.1 login me password word\nmachine localhost login me password word\n")
        netrc.chmod(0o600)
        try:
            tier.driver.build(f"FROM scratch\nADD http://127.0.0.1:{server.server_port}/away /x\n")
        finally:
            netrc.unlink()
        assert [path for path, _ in other.asked] == ["/file"]
        for _, headers in (*server.asked, *other.asked):
            assert "authorization" not in headers
            assert "cookie" not in headers


@pytest.fixture
def repository(tier: Tier, outside: Path) -> Iterator[tuple[str, Path]]:
    """Lend a hostile repository, served by git's own daemon."""
    top = tier.folder("repositories")
    work = top / "repo"
    environment = {
        **os.environ,
        "HOME": str(top),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }

    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=work, env=environment, check=True, capture_output=True)

    work.mkdir()
    git("init", "-q", "-b", "main")
    (work / "file").write_text("plain")
    (work / ".gitmodules").write_text(
        f'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch% {outside}/pwned"\n\tupdate = !touch {outside}/pwned\n'
        f'[submodule "../../pwned"]\n\tpath = y\n\turl = -u./touch {outside}/pwned\n'
    )
    (work / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (work / ".gitconfig").write_text(
        f'[filter "evil"]\n\tsmudge = touch {outside}/pwned\n[core]\n\tfsmonitor = touch {outside}/pwned\n'
    )
    os.symlink(outside, work / "out")
    os.symlink(f"{outside}/canary", work / "canary")
    git("add", "-A")
    git("commit", "-q", "-m", "hostile")
    git("checkout", "-q", "-b", "linked")
    for path in ("x", "y"):
        git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{path}")
    git("commit", "-q", "-m", "with submodules to fetch")
    (work / ".gitmodules").write_text(f'[submodule "x"]\n\tpath = x\n\turl = {work}\n')
    git("add", ".gitmodules")
    git("commit", "-q", "-m", "one of a folder of the machine")
    git("branch", "of-a-folder")
    git("reset", "-q", "--hard", "HEAD~1")
    git("checkout", "-q", "main")
    port = _free_port()
    daemon = subprocess.Popen(
        [
            "git",
            "daemon",
            "--export-all",
            f"--base-path={top}",
            "--listen=127.0.0.1",
            f"--port={port}",
            "--reuseaddr",
            str(top),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(lambda: _listens(port), what="git daemon listens")
        yield f"git://127.0.0.1:{port}/repo", work
    finally:
        os.killpg(daemon.pid, 9)
        daemon.wait()


def _free_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port: int = each.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@OWN_TIER
def test_repositories(tier: Tier, outside: Path, repository: tuple[str, Path]) -> None:
    """A repository's submodules, filters, hooks and links run nothing and lead nowhere."""
    address, work = repository
    hook = work / ".git/hooks/post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {outside}/pwned\n")
    hook.chmod(0o755)
    found = attempted(tier, f"FROM {tier.image}\nADD --keep-git-dir {address}#main /got/\n")
    assert "plain" in found
    for branch in ("linked", "of-a-folder"):
        assert attempted(tier, f"FROM {tier.image}\nADD {address}#{branch} /got/\n").startswith("refused"), branch
    for fragment in ("main:out", "main:out/..", "main:..", "main:../..", "main:canary", f"main:{outside}"):
        assert attempted(tier, f"FROM {tier.image}\nADD {address}#{fragment} /got/\n").startswith("refused"), fragment


@OWN_TIER
def test_options_for_git(tier: Tier, outside: Path, repository: tuple[str, Path]) -> None:
    """Nothing of an address is an option or a command to git or ssh."""
    address, _ = repository
    touch = f"touch${{IFS}}{outside}/pwned"
    for source in (
        f"{address}#--upload-pack={touch}",
        f"{address}#-u{touch}",
        f"{address}#main:--upload-pack={touch}",
        f"{address}#+main:refs/heads/x",
        f"{address}#:../..",
        f"ssh://-oProxyCommand={touch}/x",
        f"ssh://-oProxyCommand={touch}@host/x.git",
        "git@-oProxyCommand:x",
        f"git@host:--upload-pack={touch}",
        f"ext::sh%20-c%20{touch}",
        f"file://{outside}/../repo.git",
        "git://127.0.0.1:1/--upload-pack=x.git",
    ):
        began = time.monotonic()
        answer = attempted(tier, f"FROM {tier.image}\nADD {source} /got/\n")
        assert answer.startswith("refused"), (source, answer)
        assert time.monotonic() - began < patient(25), source


# --- secrets --------------------------------------------------------------------------------------------------------


@OWN_TIER
def test_secrets_of_a_failing_step(tier: Tier) -> None:
    """A step that fails keeps its secrets out of the error, of what is kept of it, and of a cell in its state."""
    word = f"s3cr3t-{time.monotonic_ns()}"
    text = (
        f"FROM {tier.image}\nRUN --mount=type=secret,id=t,env=TOKEN --mount=type=secret,id=t,target=/etc/deep/token"
        " test -n $TOKEN && test -s /etc/deep/token && exit 3\n"
    )
    with pytest.raises(Raised) as caught:
        tier.driver.build(text, secrets={"t": word.encode()})
    assert caught.value.attributes["returncode"] == 3
    step = tier.driver.call("failed_step")
    assert word not in f"{caught.value}{caught.value.attributes}{step}"
    assert word not in tier.driver.run(image="", script="env; cat /etc/deep/token", failed="after").stdout
    nowhere(tier, word)


@OWN_TIER
def test_secrets_through_links(tier: Tier, registry: InProcessRegistry, outside: Path) -> None:
    """A secret whose target goes through links of the image is in memory all the same, and in nothing that stays."""
    image = hostile_base(registry, outside)
    word = f"s3cr3t-{time.monotonic_ns()}"
    for target in ("/absolute/null", "/absolute/deep/new", "/dots/null", "/run/secrets/s"):
        text = f"FROM {image}\nRUN --mount=type=secret,id=s,target={target} test -s {target}\n"
        attempted(tier, text, secrets={"s": word.encode()}, no_cache=True)
    nowhere(tier, word)


@OWN_TIER
def test_secrets_of_a_killed_build(tier: Tier) -> None:
    """After SIGKILL in the middle of a RUN that has a secret, no file of the store has it."""
    known = deserted_cgroups()
    word = f"s3cr3t-{time.monotonic_ns()}"
    text = (
        f"FROM {tier.image}\nRUN --mount=type=secret,id=t,env=TOKEN --mount=type=secret,id=t,target=/token"
        " test -n $TOKEN && echo begun && sleep 100\n"
    )
    with tier.spawn() as driver:
        driver.begin_build(text, secrets={"t": word.encode()})
        driver.wait_for_output(b"begun")
        nowhere(tier, word)
        below = driver.kill()
    wait_until(lambda: not any(map(lives, below)), what="every process is gone")
    nowhere(tier, word)
    sweep(tier, known)


@OWN_TIER
def test_proxies_are_not_kept(tier: Tier) -> None:
    """A proxy's password given as a build argument is in no layer, no config, no key and no kept step."""
    word = f"pr0xy-{time.monotonic_ns()}"
    proxy = {"HTTP_PROXY": f"http://me:{word}@127.0.0.1:1"}
    built = tier.driver.build(f"FROM {tier.image}\nRUN test -n $HTTP_PROXY\n", arguments=proxy)
    assert word not in json.dumps(config_of(tier, built))
    with pytest.raises(Raised) as caught:
        tier.driver.build(f"FROM {tier.image}\nRUN exit 4\n", arguments=proxy)
    assert word not in f"{caught.value}{caught.value.attributes}"
    nowhere(tier, word)


def nowhere(tier: Tier, word: str) -> None:
    """Fail when a file of the store has a word in it."""
    for directory, _, names in os.walk(tier.store):
        for name in names:
            path = Path(directory) / name
            with contextlib.suppress(FileNotFoundError):  # the engine goes on meanwhile
                if path.is_file() and not path.is_symlink():
                    assert word.encode() not in path.read_bytes(), path


# --- hostile base images --------------------------------------------------------------------------------------------

_CONFIGS: dict[str, dict[str, Any]] = {
    "onbuild-onbuild": {"OnBuild": ["ONBUILD RUN true"]},
    "onbuild-from": {"OnBuild": ["FROM scratch"]},
    "onbuild-two": {"OnBuild": ["RUN true\nRUN false"]},
    "onbuild-nothing": {"OnBuild": ["", " ", "#"]},
    "onbuild-numbers": {"OnBuild": [5, None]},
    "onbuild-text": {"OnBuild": "RUN true"},
    "onbuild-itself": {"OnBuild": ["COPY --from=0 /x /y"]},
    "onbuild-later": {"OnBuild": ["COPY --from=last /x /y"]},
    "onbuild-host": {"OnBuild": ["COPY --from=host /etc/passwd /got"]},
    "onbuild-context": {"OnBuild": ["COPY ../../../../../../../etc/shadow /got"]},
    "onbuild-escape": {"OnBuild": ["RUN \x1b[31mred"]},
    "env-text": {"Env": "PATH=/bin"},
    "env-numbers": {"Env": [5, None, {}]},
    "env-odd": {"Env": ["=x", "", "A", "B=\x00", "PATH"]},
    "user-number": {"User": 5},
    "user-odd": {"User": "root\x00:x"},
    "directory-number": {"WorkingDir": 5},
    "directory-out": {"WorkingDir": "../../../../etc"},
    "directory-descriptor": {"WorkingDir": "/proc/self/fd/3/../../.."},
    "shell-text": {"Shell": "sh"},
    "shell-numbers": {"Shell": [5, {}]},
    "shell-nothing": {"Shell": []},
    "labels-list": {"Labels": ["a"]},
    "labels-numbers": {"Labels": {"a": 5}},
    "ports-list": {"ExposedPorts": ["80"]},
    "volumes-list": {"Volumes": ["/x"]},
    "command-number": {"Cmd": 5},
    "entrypoint-text": {"Entrypoint": "sh"},
    "health-text": {"Healthcheck": "x"},
}


@OWN_TIER
@pytest.mark.parametrize("kind", _CONFIGS)
def test_hostile_configs(tier: Tier, registry: InProcessRegistry, kind: str) -> None:
    """Whatever the settings of a base image are, a build ends in an image or in a sentence, and not by its program."""
    tag = f"c{time.monotonic_ns()}"
    registry.add_image("odd", tag, layers=[base()], compression="none", config={"Env": ["PATH=/bin"]} | _CONFIGS[kind])
    name = registry.reference("odd", tag)
    text = (
        f"FROM {name}\nENV A=b\nLABEL c=d\nEXPOSE 80\nVOLUME /v\nWORKDIR sub\nRUN true\nENTRYPOINT x\n"
        f"FROM {name} AS last\nCMD y\n"
    )
    for target in ("0", "last"):
        tier.driver.begin_build(text, target=target)
        try:
            built = tier.driver.finish(within=30)
        except Raised as raised:
            assert raised.is_ours, (raised.kinds, str(raised))
            assert "\x1b" not in str(raised)
        else:
            with contextlib.suppress(Raised):
                tier.driver.run("true", image=built["id"].removeprefix("sha256:")[:12])


@OWN_TIER
@pytest.mark.parametrize(
    "change",
    [
        {"config": []}, {"config": "x"}, {"history": "x"}, {"history": [5, None, "x"]}, {"history": [{}] * 50_000},
        {"author": 5}, {"created": 5}, {"created": "\x1b[31m"}, {"architecture": "\x1b[31m"}, {"os": "windows"},
        {"variant": 5}, {"rootfs": {"type": "layers", "diff_ids": []}},
    ],
    ids="-".join,
)  # fmt: skip
def test_hostile_documents(tier: Tier, registry: InProcessRegistry, change: dict[str, Any]) -> None:
    """The same for the rest of a base image's config."""
    image = build_image([base()], config={"Env": ["PATH=/bin"]}, compression="none")
    config = {**json.loads(image.blobs[image.manifest.config.digest]), **change}
    data = json.dumps(config).encode()
    manifest = json.loads(image.manifest_bytes)
    manifest["config"] |= {"digest": str(registry.add_blob(data)), "size": len(data)}
    for blob in image.blobs.values():
        registry.add_blob(blob)
    tag = f"d{time.monotonic_ns()}"
    registry.add_manifest("odd", tag, json.dumps(manifest).encode(), image.manifest.media_type)
    try:
        tier.driver.build(f"FROM {registry.reference('odd', tag)}\nENV A=b\nMAINTAINER x\nRUN true\n")
    except Raised as raised:
        assert raised.is_ours, (raised.kinds, str(raised))
        assert "\x1b" not in str(raised)


# --- the end in the middle ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deaf() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        yield server.getsockname()[1]


@contextlib.contextmanager
def busy(tier: Tier, registry: InProcessRegistry, phase: str) -> Iterator[Callable[[Driver], None]]:
    """Begin a build that then waits in one of its phases."""
    with contextlib.ExitStack() as undo:
        event = "StepStarted"
        folder = ""
        options: dict[str, Any] = {"no_cache": True}
        if phase == "from":
            tag = f"slow{time.monotonic_ns()}"
            layer = tiny_layer({"big": os.urandom(8_000_000)})
            registry.add_image("slow", tag, layers=[layer], compression="none")
            registry.faults.piece_delay = 0.5
            undo.callback(setattr, registry.faults, "piece_delay", 0)
            text, event = f"FROM {registry.reference('slow', tag)}\n", "LayerProgress"
        elif phase == "url":
            server = undo.enter_context(serving({"/slow": (200, {}, b"")}))
            text = f"FROM scratch\nADD http://127.0.0.1:{server.server_port}/slow /x\n"
        elif phase == "silent-url":
            text = f"FROM scratch\nADD http://127.0.0.1:{undo.enter_context(deaf())}/x /x\n"
        elif phase == "git":
            text = f"FROM scratch\nADD git://127.0.0.1:{undo.enter_context(deaf())}/x.git /x\n"
        elif phase == "cache":
            source = CacheSource(kind="registry", place=f"127.0.0.1:{undo.enter_context(deaf())}/x")
            options = {"cache_from": (source,)}
            text = f"FROM scratch\nWORKDIR /x{time.monotonic_ns()}\n"
        elif phase == "copy":
            folder = context(tier, {"a": "x"})
            for number in range(8):
                with open(f"{folder}/f{number}", "wb") as file:
                    file.write(os.urandom(32_000_000))
            text = f"FROM {tier.image}\nCOPY . /x\n"
        else:
            cache = "RUN --mount=type=cache,target=/c,id=held,sharing=locked echo begun;"
            other = undo.enter_context(tier.spawn())
            other.begin_build(f"FROM {tier.image}\n{cache} sleep 100\n", no_cache=True)
            undo.callback(_stop, other)
            other.wait_for_output(b"begun")
            text = f"FROM {tier.image}\n{cache} true\n"

        def begin(driver: Driver) -> None:
            driver.begin_build(text, "attempt-in-the-middle", folder=folder, **options)
            driver.wait_for_event(event)
            time.sleep(0.4)

        yield begin


def _stop(driver: Driver) -> None:
    driver.interrupt()
    with contextlib.suppress(Raised):
        driver.finish()


_PHASES = ["from", "url", "silent-url", "git", "cache", "copy", "lock"]


@OWN_TIER
@pytest.mark.parametrize("phase", _PHASES)
def test_interrupt_anywhere(tier: Tier, registry: InProcessRegistry, phase: str) -> None:
    """■ ends a build soon, whatever it waits for, with nothing of it left running or lying about."""
    with busy(tier, registry, phase) as begin:
        begin(tier.driver)
        began = time.monotonic()
        tier.driver.interrupt()
        with pytest.raises(Raised) as caught:
            tier.driver.finish()
        assert caught.value.is_a(KeyboardInterrupt) or caught.value.is_a(errors.ContainerInterrupted), (
            caught.value.kinds
        )
        assert time.monotonic() - began < patient(_SOON)
        wait_until(lambda: not remains(tier), what="nothing lies about")
    with pytest.raises(Raised):
        tier.driver.call("inspect_image", "attempt-in-the-middle")


@OWN_TIER
@pytest.mark.parametrize("phase", _PHASES)
def test_killed_anywhere(tier: Tier, registry: InProcessRegistry, phase: str) -> None:
    """After SIGKILL in any phase no process is left, nothing half made is named, and the next build works."""
    known = deserted_cgroups()
    with busy(tier, registry, phase) as begin, tier.spawn() as driver:
        begin(driver)
        below = driver.kill()
        wait_until(lambda: not any(map(lives, below)), what="every process is gone")
        with pytest.raises(Raised):
            tier.driver.call("inspect_image", "attempt-in-the-middle")
    sweep(tier, known)
    assert tier.driver.build(f"FROM {tier.image}\nRUN echo {time.monotonic_ns()} > /x\n")["layers"]
    active = [path for path, _, _ in os.walk(f"{tier.store}/snapshots") if os.path.basename(path) == "active"]
    assert [os.listdir(path) for path in active] == [[] for _ in active]


def remains(tier: Tier) -> list[str]:
    """What builds have put into the store for a moment."""
    return [name for name in os.listdir(f"{tier.store}/build") if name.startswith("scratch-")]


# --- two at once, no room -------------------------------------------------------------------------------------------


@OWN_TIER
def test_two_builds_of_the_same(tier: Tier) -> None:
    """Two notebooks that build the same thing at once both get it, and it is whole."""
    folder = context(tier, {f"f{number}": str(number) * 1000 for number in range(200)})
    text = f"FROM {tier.image}\nRUN echo {time.monotonic_ns()} > /x; seq 1000 > /y\nCOPY . /got\nWORKDIR /w\nRUN --mount=type=cache,target=/c touch /c/x /z\n"
    with tier.spawn() as other:
        drivers = [tier.driver, other]
        for driver in drivers:
            driver.begin_build(text, "same", folder=folder, epoch=1_600_000_000)
        built = [driver.finish() for driver in drivers]
        assert built[0]["digest"] == built[1]["digest"]
    result = tier.driver.run("sh", "-c", "ls /got | wc -l; cat /got/* | wc -c; ls /z", image="same")
    assert result.stdout == "200\n490000\n/z\n"


@OWN_TIER
def test_no_room(tier: Tier, small_disk: str) -> None:
    """A build onto a full disk says so, names nothing, and succeeds when there is room."""
    subprocess.run(["mount", "-o", "remount,size=150m", small_disk], check=True)
    folder = context(tier, {})
    with open(f"{folder}/big", "wb") as file:
        file.write(os.urandom(60_000_000))
    Path(folder, "big").chmod(0o644)
    with tier.spawn(root=f"{small_disk}/store") as driver:
        driver.pull(tier.image)
        for step in ("COPY big /got", "RUN head -c 200000000 /dev/urandom > /got"):
            with pytest.raises(Raised) as caught:
                driver.build(f"FROM {tier.image}\n{step}\n", "full", folder=folder)
            assert caught.value.is_ours, (caught.value.kinds, str(caught.value))
            assert "full" in str(caught.value) or "No space left" in str(caught.value)
            with pytest.raises(Raised):
                driver.call("inspect_image", "full")
        driver.call("clear_build_cache")
        subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
        driver.build(f"FROM {tier.image}\nCOPY big /got\n", "full", folder=folder)
        assert driver.run("stat", "-c", "%s", "/got", image="full").stdout == "60000000\n"


# --- what a screen shows --------------------------------------------------------------------------------------------


@OWN_TIER
def test_errors_do_not_steer_a_terminal(tier: Tier) -> None:
    """Control characters of a Dockerfile, of names of files and of servers are shown as escapes in errors."""
    odd = "\x1b]0;owned\x07\x1b[2J\u202e"
    folder = context(tier, {f"d{odd}/secret": "x", "e": "x"})
    for text in (
        f"FROM {tier.image}\nRUN exit 3 # {odd}\n",
        f"FROM {tier.image}\nCOPY x{odd} /y\n",
        f"FROM {tier.image}\nCOPY . /y\nCOPY e /y/d{odd}\n".replace("COPY e /y/d", "COPY --chown=no e /y/d"),
        f"FROM {odd}\n",
        f"FROM {tier.image} AS x{odd}\n",
        f"FROM {tier.image}\nWORKDIR /etc/passwd/{odd}\n",
        f"FROM {tier.image}\nUSER {odd}\nRUN true\n",
        f"FROM {tier.image}\nRUN --mount=type=bind,source=x{odd},target=/x true\n",
        f"FROM {tier.image}\n{odd} x\n",
    ):
        with pytest.raises(Raised) as caught:
            tier.driver.build(text, folder=folder)
        shown = str(caught.value) + str(caught.value.attributes.get("drawing", ""))
        assert not set(shown) & set("\x1b\x07\u202e"), (text, shown)
    with serving({"/x": (500, {}, b"")}) as server:
        with pytest.raises(Raised) as caught:
            tier.driver.build(f"FROM scratch\nADD http://127.0.0.1:{server.server_port}/x?{odd[:1]} /\n")
        assert "\x1b" not in str(caught.value)
