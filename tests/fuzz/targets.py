"""What is fuzzed: each target takes any bytes, and whatever it raises is a finding.

A target with ``made`` in its name reads the bytes as decisions (`choices`) and makes nearly right input of them; the
others take them as they are. What strangers send may be refused by the one exception of its reader and may do nothing
else: leave the target's folder, leave descriptors open, or mean something else the second time.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import ipaddress
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from nbcontainer.build.claims import claims_in
from nbcontainer.dockerfile import Ignore, Verdict, expand, expand_text, expand_word, global_arguments, lint, parse
from nbcontainer.errors import DockerfileError, InvalidImage, InvalidReference, StorageError, printable
from nbcontainer.layers.apply import ApplyLimits, apply
from nbcontainer.model import ImageConfig, Reference
from nbcontainer.model.oci import Index, Manifest, decode_document
from nbcontainer.network import dns
from nbcontainer.runtime.protocol import ProtocolError, decode, encode, receive
from tests.fuzz.choices import Choices
from tests.fuzz.generators import make_dockerfile, make_document, make_message, make_name, make_tar
from tests.layers.layer_tars import folder, link, listing, member, tar, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CORPUS", "TARGETS", "corpus"]

CORPUS = Path(__file__).parent / "corpus"
"""A folder for each target, of inputs that were interesting once."""


def corpus(target: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted((CORPUS / target).glob("*"))


# --- messages of the launcher -----------------------------------------------------------------------------------------


def protocol(data: bytes) -> None:
    """Bytes from a container's side are a message or `ProtocolError`, and a message survives the way back."""
    try:
        message = decode(data)
    except ProtocolError:
        return
    assert decode(encode(message)) == message


def protocol_made(data: bytes) -> None:
    """The same for nearly right messages."""
    protocol(make_message(Choices(data)))


def datagram(data: bytes) -> None:
    """A datagram with descriptors, or one whose message is in a file: what is refused leaves none open."""
    choices = Choices(data)
    body = choices.pick((b"\0file", b"\0file", b"", make_message(choices)))
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as undo:
        ours, theirs = (undo.enter_context(end) for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        ours.setblocking(False)
        theirs.setblocking(False)
        sent = []
        for _ in range(choices.number(5)):
            sent.append(_some_file(choices))
            undo.callback(os.close, sent[-1])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", sent))] if sent else []
        theirs.sendmsg([body], rights)
        received = None
        with contextlib.suppress(ProtocolError):
            received = receive(ours)
        for fd in received[1] if received else ():
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


def _some_file(choices: Choices) -> int:
    kind = choices.number(5)
    if kind == 0:
        reading, writing = os.pipe()
        os.close(writing)
        return reading
    if kind == 1:
        return os.open(choices.pick(("/dev/zero", "/dev/null", "/", "/proc/self/mem")), os.O_RDONLY)
    if kind == 2:
        return os.open("/", os.O_PATH)
    fd = os.memfd_create("message")
    os.write(fd, make_message(choices) or b"x")
    if kind == 3:
        os.truncate(fd, choices.pick((0, 1, 1 << 40)))
    return fd


# --- layers -----------------------------------------------------------------------------------------------------------

_LIMITS = ApplyLimits(bytes=1 << 20, entries=500)
_SECRET = "the machine's own"


@functools.cache
def _arena() -> Path:
    """A folder with a lower layer full of links and a neighbour that must not change; targets come and go in it."""
    arena = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, arena)
    (arena / "outside").mkdir()
    (arena / "outside/canary").write_text(_SECRET)
    out, up = str(arena / "outside"), "../outside"
    lower = tar(folder("d"), member("d/a", data=b"x"), link("l", out), link("up", up), link("out", "/../../outside"))
    unpack(lower, arena / "lower", owners=False)
    return arena


@contextlib.contextmanager
def _target(arena: Path, *, copied: bool) -> Iterator[Path]:
    """An empty target in the arena, or one that starts as a copy of the lower layer."""
    target = arena / "target"
    if copied:
        shutil.copytree(arena / "lower", target, symlinks=True)
    else:
        target.mkdir()
    try:
        yield target
    finally:
        for path in (target, *target.rglob("*")):  # or it could not be removed
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(target)


def layer(data: bytes, *, flat: bool = False, above: bool = False) -> None:
    """A tar is applied or refused, and touches nothing but the target."""
    _apply(data, flat=flat, above=above)


def layer_made(data: bytes) -> None:
    """The same for tars with hostile names, links, types and numbers, on lower layers and not."""
    choices = Choices(data)
    flat, above = bool(choices.number(2)), bool(choices.number(2))
    _apply(make_tar(choices, os.fsencode(_arena() / "outside")), flat=flat, above=above)


def _apply(data: bytes, *, flat: bool, above: bool) -> None:
    arena = _arena()
    before, descriptors = _seen(arena), len(os.listdir("/proc/self/fd"))
    umask = os.umask(0o022)
    with contextlib.ExitStack() as undo:
        undo.callback(os.umask, umask)
        target = undo.enter_context(_target(arena, copied=flat and above))
        stream = os.memfd_create("layer")
        undo.callback(os.close, stream)
        os.write(stream, data)
        os.lseek(stream, 0, os.SEEK_SET)
        fds = []
        for path in (target, arena / "lower"):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
            undo.callback(os.close, fds[-1])
        with contextlib.suppress(InvalidImage, StorageError):
            apply(stream, fds[0], parents=fds[1:] if above else (), owners=False, flat=flat, limits=_LIMITS)
        assert os.umask(0o022) == 0o022
        assert _seen(arena) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors


def _seen(arena: Path) -> object:
    """Everything beside the target, times included."""
    names = sorted(name for name in os.listdir(arena) if name != "target")
    return [(name, listing(arena / name, times=True), _state(arena / name)) for name in names]


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns


# --- documents --------------------------------------------------------------------------------------------------------


def documents(data: bytes, media_type: str = "") -> None:
    """A manifest, index or config is read or refused by `InvalidImage`, and says the same twice."""
    for read in (
        lambda: decode_document(data, media_type),
        lambda: Manifest.from_json(data, media_type),
        lambda: Index.from_json(data, media_type),
        lambda: ImageConfig.from_json(data),
    ):
        with contextlib.suppress(InvalidImage):
            assert read() == read()


def documents_made(data: bytes) -> None:
    """The same for nearly right documents."""
    documents(*make_document(Choices(data)))


def claims(data: bytes) -> None:
    """What an image's config says of its steps is read or refused, and speaks of the image's own layers only."""
    with contextlib.suppress(InvalidImage):
        found = claims_in(data, layers=2)
        assert claims_in(data, layers=2) == found
        assert all(claim.layer in (0, 1) and key == claim.key for key, claim in found.items())


# --- names ------------------------------------------------------------------------------------------------------------


def reference(data: bytes) -> None:
    """A name is refused by `InvalidReference`, or written out it is the same name, and safe as a path."""
    _reference(data.decode("utf-8", "replace"))


def reference_made(data: bytes) -> None:
    """The same for names out of the pieces of names."""
    _reference(make_name(Choices(data)))


def _reference(text: str) -> None:
    try:
        parsed = Reference.parse(text)
    except InvalidReference:
        return
    assert Reference.parse(str(parsed)) == parsed
    assert Reference.parse(parsed.familiar) == parsed
    assert not any(part in {"", ".", ".."} for part in parsed.repository.split("/"))
    assert str(parsed).isascii()
    assert str(parsed).isprintable()


# --- Dockerfiles ------------------------------------------------------------------------------------------------------

_ENVIRONMENT = {"a": "1", "b": "x y", "empty": "", "stars": "*a*?", "PATH": "/bin:/sbin"}


def dockerfile(data: bytes) -> None:
    """A Dockerfile is read, checked and expanded or refused by `DockerfileError`, which can be shown."""
    try:
        read = parse(data)
    except DockerfileError as problem:
        _shown(problem, data)
        return
    assert parse(data) == read
    for act in (
        lambda: lint(read, ignore=Ignore(["a*", "!ab"])),
        lambda: global_arguments(read.arguments, {"a": "2"}, _ENVIRONMENT, escape=read.directives.escape),
    ):
        with contextlib.suppress(DockerfileError):
            act()
    for stage in read.stages:
        assert all(stage.sources)
        for each in (stage.base, *stage.instructions):
            try:
                expanded = expand(each, _ENVIRONMENT, escape=read.directives.escape)
            except DockerfileError as problem:
                _shown(problem, data)
            else:
                assert type(expanded.instruction) is type(each)
                assert expanded.used <= set(_ENVIRONMENT)


def _shown(problem: DockerfileError, data: bytes) -> None:
    assert 0 <= problem.line <= data.count(b"\n") + 1
    assert all(printable(row) == row for row in str(problem).split("\n"))


def dockerfile_made(data: bytes) -> None:
    """The same for nearly right Dockerfiles."""
    dockerfile(make_dockerfile(Choices(data)))


def words(data: bytes) -> None:
    """A word is expanded or refused, says the same twice, and takes neither time nor memory to speak of."""
    text = data.decode("utf-8", "replace")
    for expanding in (
        lambda: expand_word(text, _ENVIRONMENT),
        lambda: expand_word(text, _ENVIRONMENT, escape="`"),
        lambda: expand_text(text, _ENVIRONMENT),
    ):
        with contextlib.suppress(DockerfileError):
            result = expanding()
            assert expanding() == result
            assert not result.used & result.undefined


def ignore(data: bytes) -> None:
    """Rules are read or refused; a walk that skips what it may leaves out what asking for each path leaves out."""
    source, _, path = data.partition(b"\0")
    try:
        rules = Ignore.parse(source)
    except DockerfileError as problem:
        _shown(problem, source)
        return
    names = [name for name in path.decode("utf-8", "replace").split("/") if name][:20] or ["a"]
    verdicts: list[Verdict] = [rules.top]
    for name in names:
        verdicts.append(rules.entry(verdicts[-1], name))
    assert rules.ignores("/".join(names)) == verdicts[-1].ignored
    skipped = [index for index, each in enumerate(verdicts) if each.skippable]
    assert all(each.ignored for each in verdicts[min(skipped, default=len(verdicts)) :])


# --- names of containers ----------------------------------------------------------------------------------------------


def question(data: bytes) -> None:
    """A container's question is refused or answered: with the same question, under the same number, and readably."""
    try:
        query = dns.read_query(data)
    except dns.DnsError:
        return
    for answer in (dns.reply(query, [_ADDRESS, _ADDRESS6]), dns.reply(query, code=dns.REFUSED), dns.truncated(query)):
        assert dns.same_question(answer, query, query.id)
        assert {each.address for each in dns.addresses_in(answer)} <= {str(_ADDRESS), str(_ADDRESS6)}
    dns.name_of_pointer(query.name)


def answer(data: bytes) -> None:
    """A name server's answer gives addresses or is refused."""
    with contextlib.suppress(dns.DnsError):
        for found in dns.addresses_in(data):
            ipaddress.ip_address(found.address)
            assert found.ttl >= 0


_ADDRESS, _ADDRESS6 = ipaddress.ip_address("10.192.0.2"), ipaddress.ip_address("fd00::2")


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        protocol, protocol_made, datagram, layer, layer_made, documents, documents_made, claims, reference, reference_made,
        dockerfile, dockerfile_made, words, ignore, question, answer,
    )
}  # fmt: skip
