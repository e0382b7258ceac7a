"""What strangers might send, made of decisions: layers, messages, documents, names, Dockerfiles; nearly right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nbcontainer._linux.values import fields_of
from nbcontainer.runtime import protocol
from tests.layers.layer_tars import END, header, padded, pax

if TYPE_CHECKING:
    from tests.fuzz.choices import Choices

__all__ = ["make_dockerfile", "make_document", "make_message", "make_name", "make_tar"]

_PARTS = (
    b"a", b"b", b"d", b"l", b"up", b"out", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh.", b".wh..", b".wh...",
    b".wh..wh.plnk", b".wh.l", b"etc", b"proc", b"self", b"x" * 100, b"x" * 255, b"\xff\xfe", b"n\nl", b"\x1b[2J", b" ",
    b"outside", b"canary",
)  # fmt: skip
_KINDS = b"0" * 9 + b"1" * 6 + b"2" * 8 + b"5" * 6 + b"\x00637xgLKSDVMNAZ"
_NUMBERS = (
    b"0000644\0", b"0000000\0", b"7777777\0", b"0007777 ", b"\x80" + bytes(7), b"\xff" * 8, b"\x80" + b"\xff" * 7, b"-1     \0",
    b"8888888\0", bytes(8), b"+1_0   \0", b"        ",
)  # fmt: skip
_LONG_NUMBERS = (
    b"%011o\0" % 1_000_000_000, bytes(12), b"\x80" + bytes(7) + b"\xff" * 4, b"\xff" * 12, b"77777777777\0", b"           \0",
    b"\x80" + bytes(3) + b"\x7f" + b"\xff" * 7, b"00000000x00\0",
)  # fmt: skip
_PAX_KEYS = (
    b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name",
    b"GNU.sparse.realsize", b"GNU.sparse.size", b"GNU.sparse.map", b"GNU.sparse.offset", b"GNU.sparse.numbytes",
    b"GNU.sparse.numblocks", b"SCHILY.xattr.user.a", b"SCHILY.xattr.user.overlay.opaque", b"SCHILY.xattr.security.capability",
    b"SCHILY.xattr.trusted.overlay.redirect", b"SCHILY.xattr.", b"charset", b"comment",
)  # fmt: skip
_PAX_VALUES = (
    b"",
    b"0",
    b"1",
    b"512",
    b"-1",
    b"1e3",
    b"99999999999999999999",
    b"0,1,5,5",
    b"y",
    b"../outside/canary",
    b"1.5",
    b"-0.9",
)


_AIMS = (b"../outside", b"../outside/canary", b"../outside/new", b"/../../outside/canary", b"../../../../../../etc/x")


def _path(choices: Choices, used: list[bytes]) -> bytes:
    """A name: one that was used before, something below it, or another."""
    before = choices.pick(used[-4:])
    how = choices.number(4)
    if how == 0:
        return before
    parts = [before] if how == 1 else [choices.pick(_PARTS)]
    while choices.more() and len(parts) < 12:
        parts.append(choices.pick(_PARTS))
    return choices.pick((b"", b"", b"/", b"./")) + b"/".join(parts) + choices.pick((b"", b"", b"", b"/"))


def make_tar(choices: Choices, outside: bytes) -> bytes:
    """A layer whose headers are well formed and whose contents need not be; `outside` is a folder it may aim at."""
    archive = b""
    used = [b"a", b"l", b"up"]
    while choices.more() and len(archive) < 1 << 18:
        archive += _member(choices, outside, used)
    return archive if choices.rarely() else archive + END + choices.blob(4)


def _member(choices: Choices, outside: bytes, used: list[bytes]) -> bytes:
    kind = bytes([choices.pick(_KINDS)])
    name = _path(choices, used)
    link = choices.pick((*_AIMS, outside, outside + b"/canary")) if choices.number(2) else _path(choices, used)
    used.append(name)
    body = bytes(choices.number(2000)) if kind in b"07\0S" and choices.rarely() else choices.blob(choices.number(8))
    before = b""
    if choices.rarely():
        records = [(choices.pick(_PAX_KEYS), choices.pick((*_PAX_VALUES, name, link)))]
        while choices.more() and len(records) < 8:
            records.append((choices.pick(_PAX_KEYS), choices.pick((*_PAX_VALUES, name, link))))
        before = pax(*records, kind=choices.pick((b"x", b"x", b"g")))
    if kind in b"LK" or len(name) > 100 or len(link) > 100:
        for flag, text in ((b"L", name), (b"K", link)):
            before += header(b"././@LongLink", flag, len(text) + 1) + padded(text + b"\0")
        kind = choices.pick((b"0", b"2", b"1", b"5")) if kind in b"LK" else kind
    if kind in b"xg":
        body = choices.pick((b"6 a=b\n", b"5 a=b\n", b"999 a=b\n", b"6 a=b", b"\0", b"-6 a=b\n", body))
    raw = {name: choices.pick(_NUMBERS) for name in ("mode", "uid", "gid") if choices.rarely()}
    if choices.rarely():
        raw["mtime"] = choices.pick(_LONG_NUMBERS)
    size = choices.pick((0, 1, 511, 8**11 - 1)) if choices.rarely() else len(body)
    if choices.rarely():
        raw["magic"] = choices.pick((b"ustar  \0", bytes(8), b"ustar\x0000"))
    if choices.rarely():
        raw["tail"] = choices.blob(200)[:247]
    return before + header(name[:100], kind, size, link[:100], **raw) + padded(body)


def _value(choices: Choices, depth: int = 3) -> Any:
    simple: tuple[Any, ...] = (
        None, True, False, 0, -1, 1, 1 << 70, 1.5, "", "a", "sha256:" + "0" * 64, "sha256:../../x", "application/json",
        "\ud800", "\0", "A=b\nC=d", "/proc/self/fd/3", "x" * 300, 255, 2**63,
    )  # fmt: skip
    kind = choices.number(6) if depth else 0
    if kind == 4:
        listed: list[Any] = []
        while choices.more() and len(listed) < 6:
            listed.append(_value(choices, depth - 1))
        return listed
    if kind == 5:
        return _object(choices, depth)
    return choices.pick(simple)


_KEYS = (
    "schemaVersion", "mediaType", "config", "layers", "manifests", "annotations", "digest", "size", "platform", "os",
    "architecture", "variant", "rootfs", "diff_ids", "history", "Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Labels",
    "Volumes", "ExposedPorts", "StopSignal", "Shell", "created", "created_by", "empty_layer", "urls", "data", "subject",
    "artifactType", "imageLayoutVersion", "RepoTags", "Config", "Layers",
)  # fmt: skip
_MEDIA_TYPES = (
    "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip", "text/html", "",
)  # fmt: skip


def _object(choices: Choices, depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    while choices.more() and len(made) < 12:
        made[choices.pick(_KEYS)] = _value(choices, depth - 1)
    return made


def _descriptor(choices: Choices) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": choices.pick(_MEDIA_TYPES), "digest": "sha256:" + "ab" * 32, "size": 7}
    if choices.rarely():
        made[choices.pick(_KEYS)] = _value(choices)
    if choices.rarely():
        made["platform"] = {"os": "linux", "architecture": choices.pick(("amd64", "arm", "unknown")), "variant": "v7"}
    if choices.rarely():
        made["data"] = choices.pick(("YWI=", "!", "", "YWJjZGVmZw=="))
    return made


def make_document(choices: Choices) -> tuple[bytes, str]:
    """A manifest, index or image config, and the media type it is sent with."""
    kind = choices.number(4)
    media_type = choices.pick(_MEDIA_TYPES)
    made: Any = _value(choices) if kind == 3 else {"schemaVersion": 2}
    if kind == 0:
        made |= {"mediaType": media_type, "config": _descriptor(choices), "layers": [_descriptor(choices)]}
    elif kind == 1:
        made |= {"mediaType": media_type, "manifests": [_descriptor(choices) for _ in range(choices.number(4))]}
    elif kind == 2:
        made |= {"os": "linux", "architecture": "amd64", "config": {"Env": ["A=b"]}, "rootfs": {"diff_ids": []}}
        made["history"] = [{"created_by": "x", "empty_layer": True}]
    while isinstance(made, dict) and choices.more():
        inner = choices.pick([made, *(each for each in made.values() if isinstance(each, dict))])
        inner[choices.pick(_KEYS)] = _value(choices)
    data = json.dumps(made, ensure_ascii=bool(choices.number(2))).encode("utf-8", "surrogatepass")
    return (data[: choices.number(len(data) + 1)] if choices.rarely() else data), media_type


_MESSAGES: tuple[type[Any], ...] = (*protocol.Message.__args__, protocol.Room)


def make_message(choices: Choices) -> bytes:
    """A message of the launcher's, some fields of which are of another kind."""
    kind = choices.pick(_MESSAGES)
    usual: dict[str, Any] = {
        "str": "text", "int": 3, "bool": True, "float": 1.5, "list[str]": ["a"], "list[int]": [1], "dict[str, str]": {"a": "b"},
        "dict[str, Any]": {"a": [1]}, "list[dict[str, Any]]": [{"op": "x"}], "dict[str, list[int]]": {"7": [1, 2]},
    }  # fmt: skip
    room = {name: usual.get(declared) for name, declared in fields_of(protocol.Room).items()}
    usual |= {"Room": room, "list[Room]": [room]}
    body = {name: usual.get(declared) for name, declared in fields_of(kind).items()}
    while choices.more():
        body[choices.pick((*body, "more", "__class__"))] = _value(choices)
    if choices.rarely() and body:
        body.pop(choices.pick(tuple(body)))
    wrapped: Any = choices.pick(([kind.__name__, body], [kind.__name__, body], [body], [kind.__name__, body, 1], body))
    data = json.dumps(wrapped).encode()
    return data[: choices.number(len(data) + 1)] if choices.rarely() else data


_PIECES = (
    "docker.io", "localhost", "localhost:5000", "[::1]:5000", "127.0.0.1", "ubuntu", "library", "a", "A", "a_b", "a__b", "a..b",
    "a-b", "-", "_", ".", "..", "/", "/", "/", ":", ":", "@", "@", "sha256:", "sha256:" + "a" * 64, "sha512:" + "b" * 128,
    "latest", "1.2", "x" * 128, "x" * 200, "://", "http://", " ", "\n", "\0", "é", "%2f", "\u2028", "1" * 64,
)  # fmt: skip


def make_name(choices: Choices) -> str:
    """An image name out of the pieces of image names."""
    made = choices.pick(_PIECES)
    while choices.more() and len(made) < 600:
        made += choices.pick(_PIECES)
    return made


_WORDS = (
    "a",
    "b/*.c",
    "$a",
    "${b:-${a}}",
    "${c:?m}",
    "${stars//\\*/$b}",
    "${",
    '"x y"',
    "'$a'",
    "/x/",
    "..",
    "\u00e9\u2028",
    "#",
    "[",
)
_COPY_FLAGS = (
    "--from=a",
    "--from=$a",
    "--chown=$b",
    "--chmod=u=rwX,go=",
    "--chmod=$a",
    "--link",
    "--exclude=*$a",
    "--",
)
_MOUNTS = (
    "--mount=type=cache,target=/$a,id=$b", "--mount=target=/x,from=a", "--mount=type=secret,id=x,env=y", "--mount=type=ssh,mode=$a",
    "--mount=type=tmpfs,target=/a,size=1g", "--mount=type=$a", '--mount="a,b"', "--network=none", "--security=x",
)  # fmt: skip
_COMMANDS = ("a $b ${", '["a", "$b"]', '["a", 1]', "<<A", "cat <<-'B' 3<<C", "'", "[", "# a", "\u00e9", "")
_INSTRUCTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "FROM": (("--platform=$a",), ("a", "a AS b", "$a as C", "scratch", "${t}", "a b")),
    "RUN": (_MOUNTS, _COMMANDS),
    "COPY": ((*_COPY_FLAGS, "--parents"), ("a b", "$a ${b} /x/", '["a b", "c"]', "<<A <<-'B' /x", "a <<A", "a")),
    "ADD": ((*_COPY_FLAGS, "--unpack", "--checksum=$a"), ("a b", "http://a/$b /x", "<<A /", "git@a:b#c $a", "")),
    "ENV": ((), ("a=$a b='$b'", "a $b c", "c=1 =", '"a b"=c', "$a=1", "a=\\", "a=b c")),
    "ARG": ((), ("a b=1", "c=$a", "d=${e:?m}", "=", "TARGETOS")),
    "LABEL": ((), ("a=b", "a b", "a=$c$d")),
    "MAINTAINER": ((), ("a", "")),
    "EXPOSE": ((), ("80", "1-9/udp $a", "$b", "1:2/TCP", "x")),
    "VOLUME": ((), _COMMANDS),
    "USER": ((), _WORDS),
    "WORKDIR": ((), _WORDS),
    "CMD": ((), _COMMANDS),
    "ENTRYPOINT": ((), _COMMANDS),
    "HEALTHCHECK": (("--interval=1s", "--retries=3", "--timeout=x"), ("NONE", "CMD a", 'CMD ["a"]', "a")),
    "STOPSIGNAL": ((), _WORDS),
    "SHELL": ((), _COMMANDS),
    "onbuild": ((), ("RUN <<A", "COPY a $b", "ENV a=$b", "ONBUILD RUN a", "from a")),
}
_BREAKS = (*" " * 24, "\t", " \\\n", " \\\n# c\n", " \\\n\n", "", " `\n")
_BODIES = ("A\n", "x\nA\n\tB\nC\n", "$a \\$a '\nA\n\tB\n$b\nC\n", "\n", "")
_HEADS = (
    "",
    "",
    "# escape=`\n",
    "# syntax=a\n# check=skip=all;error=true\n",
    "\ufeff",
    "# check=x\n",
    "ARG a=1 b=$a\n",
    "ARG c=${d:?x}\n",
)


def make_dockerfile(choices: Choices) -> bytes:
    """A Dockerfile of instructions that are mostly right each, with heredocs that mostly end."""
    text = choices.pick(_HEADS) + ("" if choices.rarely() else choices.pick(("FROM a\n", "FROM $a AS b\n")))
    while choices.more() and len(text) < 4000:
        keyword = choices.pick(tuple(_INSTRUCTIONS))
        flags, arguments = _INSTRUCTIONS[keyword]
        line = keyword
        for _ in range(choices.number(3) if flags else 0):
            line += choices.pick(_BREAKS) + choices.pick(flags)
        line += choices.pick(_BREAKS) + choices.pick(_WORDS if choices.rarely() else arguments)
        text += line + ("\r\n" if choices.rarely() else "\n")
        if "<<" in line:
            text += choices.pick(_BODIES)
        elif choices.rarely():
            text += choices.pick(("# a is it\n", "\n", "RUM a\n", "\\\n"))
    return text.encode()
