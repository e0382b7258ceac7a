"""The same Dockerfiles built by docker (BuildKit) and by us: files and configs compared field by field.

Debian's docker has BuildKit without heredocs, --link, --parents and --exclude; what those do is told by `test_build`.
Every difference that is meant stands in `_known`, with its reason.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import time
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer import Engine, Settings
from nbcontainer.build.request import BuildOptions, BuildOutput, ContextSource
from nbcontainer.testing.rootfs import root_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from nbcontainer.testing.registry import InProcessRegistry

pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.peers("docker", "dockerd"),
    pytest.mark.slow,
]

CASES: dict[str, str] = {
    # RUN
    "run-shell": "RUN echo hi > /out",
    "run-exec": 'RUN ["/bin/sh", "-c", "echo hi > /out"]',
    "run-continued": "RUN echo one && \\\n  # a comment\n  echo two > /out",
    "run-nothing": "RUN true",
    "run-removes": "RUN rm /bin/tail /etc/group\nRUN rm -r /home",
    "run-replaces": "RUN rm -r /home && echo file > /home\nRUN mkdir -p /etc/passwd.d && mv /etc/group /etc/passwd.d/",
    "run-opaque": "RUN mkdir /d && echo 1 > /d/a && echo 2 > /d/b\nRUN rm -r /d && mkdir /d && echo 3 > /d/c",
    "run-modes": "RUN touch /s /t && chmod 4755 /s && chmod 1777 /tmp && chmod 600 /t && chown 12:34 /t",
    "run-links": "RUN echo a > /a && ln /a /b && ln -s a /c && mkfifo /p",
    "run-user": "USER alice\nRUN id -u > /tmp/who && id -g >> /tmp/who",
    "run-user-number": "USER 1234:77\nRUN id -u > /tmp/who && id -g >> /tmp/who",
    "run-workdir": "WORKDIR /work\nRUN pwd > out",
    "run-environment": "ENV A=1 B=two\nRUN echo $A$B > /out; unset HOSTNAME; env | sort > /env",
    "run-home": "RUN echo $HOME > /out\nUSER alice\nRUN echo $HOME > /tmp/out",
    "run-arg": "ARG V=5\nRUN echo $V > /out",
    "run-arg-given": "ARG GIVEN\nRUN echo $GIVEN > /out",
    "run-arg-and-env": "ARG V=arg\nENV V=env\nRUN echo $V > /out",
    "run-env-then-arg": "ENV V=env\nARG V=arg\nRUN echo $V > /out",
    "run-shell-instruction": 'SHELL ["/bin/sh", "-e", "-c"]\nRUN echo hi > /out\nCMD echo hi',
    "run-umask": "RUN umask > /out; touch /f; mkdir /d",
    "run-stdin": "RUN cat > /out",
    "run-cache-mount": "RUN --mount=type=cache,target=/c echo x > /c/x; ls /c > /out",
    "run-tmpfs-mount": "RUN --mount=type=tmpfs,target=/t echo x > /t/x; ls /t > /out",
    "run-bind-mount": "RUN --mount=type=bind,source=sub,target=/mnt/sub cat /mnt/sub/b.txt > /out",
    "run-bind-whole": "RUN --mount=target=/context ls /context > /out",
    "run-mount-stub-in-folder": "RUN mkdir /deep && echo x > /deep/x\nRUN --mount=type=cache,target=/deep/a/b true",
    "run-tmp-stays": "RUN echo x > /tmp/x && echo y > /var/y",
    # settings
    "env-forms": "ENV A b c\nENV B=\"x y\" C='$A' D=\\$A E=${A:-no} F=${NONE:-yes} G=${A:+set}",
    "env-order": "ENV Z=1\nENV A=2\nENV Z=3",
    "env-path": "ENV PATH=/opt/bin:$PATH",
    "env-self": "ENV A=1\nENV A=2 B=$A",
    "label-forms": 'LABEL a=b "c d"="e f"\nLABEL multi="one \\\ntwo"',
    "maintainer": "MAINTAINER Ada <ada@example.org>\nRUN true",
    "expose": "EXPOSE 80 443/tcp 53/udp\nEXPOSE 8000-8002",
    "volume": 'VOLUME /data\nVOLUME ["/a b", "/c"]',
    "user-twice": "USER alice\nUSER nobody:daemon",
    "cmd-shell": "CMD echo $HOME",
    "cmd-exec": 'CMD ["echo", "a b"]',
    "cmd-empty": "CMD []",
    "entrypoint-resets-cmd": 'CMD ["a"]\nENTRYPOINT ["b"]',
    "entrypoint-after-base": 'ENTRYPOINT ["/bin/echo"]',
    "entrypoint-shell": 'ENTRYPOINT exec echo hi\nCMD ["x"]',
    "healthcheck": "HEALTHCHECK --interval=5s --timeout=1m30s --start-period=2s --retries=4 CMD test -f /x",
    "healthcheck-exec": 'HEALTHCHECK CMD ["test", "-f", "/x"]',
    "healthcheck-none": "HEALTHCHECK CMD true\nHEALTHCHECK NONE",
    "stopsignal": "STOPSIGNAL SIGQUIT\nSTOPSIGNAL 9",
    "onbuild": "ONBUILD RUN echo triggered\nONBUILD COPY a.txt /",
    "workdir-relative": "WORKDIR /a\nWORKDIR b/c\nWORKDIR ../d",
    "workdir-exists": "WORKDIR /tmp\nRUN pwd > /out",
    "workdir-variable": "ENV D=/from/env\nWORKDIR $D/x",
    "workdir-user": "USER alice\nWORKDIR /home/alice/new",
    # COPY
    "copy-file": "COPY a.txt /",
    "copy-rename": "COPY a.txt /b.txt",
    "copy-into-new-folder": "COPY a.txt /new/folder/",
    "copy-folder-contents": "COPY sub /dst",
    "copy-folder-slash": "COPY sub/ /dst/",
    "copy-folder-onto-existing": "RUN mkdir -m 700 /dst && echo x > /dst/b.txt\nCOPY sub /dst",
    "copy-folder-mode": "COPY closed /dst",
    "copy-nested": "COPY nest /dst",
    "copy-several": "COPY a.txt run.sh sub /dst/",
    "copy-glob": "COPY *.txt /dst/",
    "copy-glob-question": "COPY ?.txt sub/[bc].txt /dst/",
    "copy-glob-folder": "COPY s*b /dst/",
    "copy-dot": "COPY . /all/",
    "copy-relative": "WORKDIR /w\nCOPY a.txt .\nCOPY sub other/\nCOPY a.txt ./x",
    "copy-link-top": "COPY link.txt /l",
    "copy-link-inside": "COPY links /links",
    "copy-folder-by-link": "COPY folder-link /dst",
    "copy-to-link": "RUN mkdir /real && ln -s /real /alias\nCOPY a.txt /alias/\nCOPY sub /alias",
    "copy-over-file": "RUN echo old > /a.txt && chmod 600 /a.txt\nCOPY a.txt /",
    "copy-over-link": "RUN echo old > /old && ln -s /old /new\nCOPY a.txt /new",
    "copy-chown-number": "COPY --chown=12:34 sub /dst/",
    "copy-chown-name": "COPY --chown=alice a.txt /x/y",
    "copy-chown-group": "COPY --chown=nobody:daemon nest /dst",
    "copy-chmod": "COPY --chmod=640 a.txt run.sh /dst/",
    "copy-user-has-no-say": "USER alice\nCOPY a.txt /tmp/",
    "copy-executable": "COPY run.sh /\nRUN /run.sh",
    "copy-dots": "COPY ../a.txt ./sub/../a.txt /dst/",
    "copy-variable": "ENV D=/dst\nARG S=a.txt\nCOPY $S ${D}/",
    "copy-space": 'COPY ["with space.txt", "/a b/"]',
    "copy-hard-links": "COPY hard /hard",
    "copy-empty-folder": "COPY empty /empty",
    "copy-sticky-parent": "COPY a.txt /tmp/sub/",
    "copy-into-home": "COPY a.txt /home/alice/",
    # ADD
    "add-file": "ADD a.txt /dst/",
    "add-tar": "ADD files.tar /dst",
    "add-tar-gz": "ADD files.tgz /dst/",
    "add-tar-bz2": "ADD packed.bin /dst/",
    "add-tar-xz": "ADD files.txz /",
    "add-folder": "ADD sub /dst",
    "add-not-a-tar": "ADD fake.tar /dst/",
    # stages
    "stage-copy": "RUN mkdir /o && echo x > /o/x && chown 5:6 /o/x\nFROM {base}\nCOPY --from=0 /o/x /got\nCOPY --from=0 /o /folder",
    "stage-name": "FROM {base} AS Tools\nRUN echo t > /tool\nFROM tools\nRUN cat /tool > /again",
    "stage-image": "COPY --from={base} /bin/cat /bin/cat2",
    "stage-args": 'ARG A=1\nFROM {base}\nARG A\nRUN echo "[$A]" > /out',
    "stage-scratch": "FROM scratch\nCOPY a.txt /",
    "stage-scratch-settings": 'FROM scratch\nCOPY a.txt /\nWORKDIR /x/y\nCMD ["/a.txt"]',
    "stage-mount": "FROM {base} AS one\nRUN mkdir /m && echo m > /m/m\nFROM {base}\nRUN --mount=from=one,source=/m,target=/mm cat /mm/m > /out",
    "stage-chown": "FROM {base} AS one\nRUN echo x > /x && chown 7:8 /x\nFROM {base}\nCOPY --from=one --chown=1:2 /x /y",
    "stage-glob": "FROM {base} AS one\nRUN mkdir /g && touch /g/1.a /g/2.a /g/3.b\nFROM {base}\nCOPY --from=one /g/*.a /g/",
    "stage-inherits": 'FROM {base} AS one\nENV X=1\nCMD ["a"]\nWORKDIR /one\nFROM one\nENTRYPOINT ["b"]\nRUN pwd > out',
}  # fmt: skip
"""A text after ``FROM {base}``, or a whole one when it has a FROM in front or a global ARG."""

_STUBS = {
    "run-cache-mount": ("c",),
    "run-tmpfs-mount": ("t",),
    "run-bind-mount": ("mnt", "mnt/sub"),
    "run-bind-whole": ("context",),
    "run-mount-stub-in-folder": ("deep/a", "deep/a/b"),
    "stage-mount": ("mm",),
    "stage-scratch": ("etc",),
    "stage-scratch-settings": ("etc",),
}
"""Empty folders that this docker leaves where something was mounted; later ones take them away, as we do."""
_PROGRAMS = (
    "cat", "chmod", "chown", "cp", "echo", "env", "id", "ln", "ls", "mkdir", "mkfifo", "mv", "pwd", "rm", "sh", "sort",
    "tail", "test", "touch", "true",
)  # fmt: skip
_FLAGS = re.compile(r" --(?:chown|chmod)=\S+")
"""What this docker does not tell of COPY and ADD, and later ones do."""
_SKIPPED = ("dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ".dockerenv")


@pytest.fixture(scope="module")
def base(registry: InProcessRegistry) -> str:
    """Lend an image with everything where the two engines have mounts of their own."""
    mounted: dict[str, Any] = {"etc/hosts": b"", "etc/hostname": b"", "etc/resolv.conf": b"", "proc": None, "sys": None}
    config = {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["/bin/sh"], "WorkingDir": "/"}
    layer = root_layer(_PROGRAMS, files={**mounted, "dev": None, "var": None})
    registry.add_image("peer-base", "latest", layers=[layer], compression="gzip", config=config)
    return registry.reference("peer-base")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lend a build context with some of everything."""
    top = tmp_path_factory.mktemp("context")
    files = {
        "a.txt": "a", "b.txt": "bb", "run.sh": "#!/bin/sh\necho ran > /ran\n", "sub/b.txt": "b", "sub/c.txt": "c",
        "nest/one/two/three.txt": "3", "nest/one/x": "x", "with space.txt": "s", "links/target": "t",
        "closed/inside": "in", "hard/one": "one", "ignored.log": "no", "kept.log": "yes", "fake.tar": "not a tar",
    }  # fmt: skip
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (top / "run.sh").chmod(0o755)
    (top / "nest/one/x").chmod(0o4711)
    (top / "closed").chmod(0o700)
    (top / "empty").mkdir(mode=0o750)
    (top / "link.txt").symlink_to("sub/b.txt")
    (top / "folder-link").symlink_to("sub")
    (top / "links/inside").symlink_to("target")
    (top / "links/up").symlink_to("../a.txt")
    (top / "links/dangling").symlink_to("/nowhere")
    os.link(top / "hard/one", top / "hard/two")
    (top / ".dockerignore").write_text("*.log\n!kept.log\n")
    packed: tuple[tuple[str, Any], ...] = (
        ("files.tar", "w"), ("files.tgz", "w:gz"), ("packed.bin", "w:bz2"), ("files.txz", "w:xz"),
    )  # fmt: skip
    for name, mode in packed:
        with tarfile.open(top / name, mode) as tar:
            for inner, kind, owner, bits in (("t", tarfile.DIRTYPE, 5, 0o750), ("t/f", tarfile.REGTYPE, 6, 0o4755)):
                entry = tarfile.TarInfo(inner)
                entry.type, entry.uid, entry.gid, entry.mode = kind, owner, owner + 1, bits
                entry.mtime = 1_400_000_000
                entry.size = 0 if kind == tarfile.DIRTYPE else 3
                tar.addfile(entry, io.BytesIO(b"tar"))
            link = tarfile.TarInfo("t/l")
            link.type, link.linkname, link.mtime = tarfile.SYMTYPE, "f", 1_400_000_000
            tar.addfile(link)
    for directory, names, others in os.walk(top, topdown=False):
        for name in (*names, *others):
            os.utime(os.path.join(directory, name), (1_300_000_000, 1_300_000_000), follow_symlinks=False)
    return top


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Lend a store."""
    return str(tmp_path_factory.mktemp("store"))


@pytest.fixture
def engine(store: str) -> Iterator[Engine]:
    """Lend an engine."""
    with Engine(Settings(root=store)) as engine:
        yield engine


def whole(text: str, base: str) -> str:
    """The Dockerfile of a case."""
    begins = text.startswith(("FROM", "ARG A=1\nFROM"))
    return (text if begins else f"FROM {base}\n{text}").replace("{base}", base) + "\n"


Tree = dict[str, dict[str, Any]]


def tree_of(data: bytes, since: float) -> Tree:
    """Everything in a tar, by name; times only where they are older than the build."""
    found: Tree = {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for entry in tar:
            name = entry.name.removeprefix("./").rstrip("/")
            if not name or any(name == each or name.startswith(f"{each}/") for each in _SKIPPED):
                continue
            fact: dict[str, Any] = {
                "type": entry.type,
                "mode": oct(entry.mode & 0o7777),
                "owner": (entry.uid, entry.gid),
            }
            if entry.isreg():
                content = tar.extractfile(entry)
                assert content is not None
                fact["content"] = sha256(content.read()).hexdigest()
            if entry.issym() or entry.islnk():
                fact["target"] = (
                    entry.linkname.removeprefix("./").removeprefix("/") if entry.islnk() else entry.linkname
                )
            if entry.mtime < since and not entry.isdir():
                fact["mtime"] = int(entry.mtime)
            found[name] = fact
    for fact in found.values():  # which of several names comes first is the packer's business
        if fact["type"] == tarfile.LNKTYPE:
            first = found[fact["target"]]
            group = sorted([fact["target"], *(n for n, f in found.items() if f.get("target") == fact["target"])])
            first["names"] = group
    for name, fact in list(found.items()):
        if fact["type"] == tarfile.LNKTYPE:
            found[name] = dict(found[fact["target"]])
    return found


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What an image's config says, without what is empty; ArgsEscaped is Windows' and deprecated."""
    found = (config.get("config") or {}).items()
    options = {name: value for name, value in found if value and name != "ArgsEscaped"}
    return {"config": options, "author": config.get("author", ""), "os": config["os"], "arch": config["architecture"]}


def history_of(config: dict[str, Any]) -> list[tuple[str, bool]]:
    """The lines of history and whether they have a layer; a health check is printed as Go prints a pointer there."""
    lines = []
    for entry in config["history"]:
        text = entry["created_by"].replace(" # buildkit", "").replace(" # nbcontainer", "")
        lines.append((text.split()[0] if text.startswith("HEALTHCHECK") else text, not entry.get("empty_layer")))
    return lines


@pytest.fixture(scope="module")
def by_docker(docker: Callable[..., str], base: str, folder: Path, peers_folder: Path) -> Callable[[str], Any]:
    """Lend a way to build with docker: the tar of all files, and the config."""
    os.environ["DOCKER_BUILDKIT"] = "1"
    docker("pull", base)

    def build(text: str) -> tuple[bytes, dict[str, Any]]:
        path = peers_folder / "Dockerfile"
        path.write_text(text)
        docker(
            "build",
            "--network",
            "host",
            "--no-cache",
            "--iidfile",
            str(peers_folder / "id"),
            "--build-arg",
            "GIVEN=word",
            "-t",
            "peer",
            "-f",
            str(path),
            str(folder),
        )
        container = docker("create", "peer", "/none").strip()
        docker("export", "-o", str(peers_folder / "files.tar"), container)
        algorithm, _, name = (peers_folder / "id").read_text().partition(":")  # the daemon is ours, and so is its store
        stored = peers_folder / "docker/image/overlay2/imagedb/content" / algorithm / name
        config: dict[str, Any] = json.loads(stored.read_bytes())
        return (peers_folder / "files.tar").read_bytes(), config

    return build


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_docker(
    case: str, *, base: str, folder: Path, engine: Engine, by_docker: Callable[[str], Any], tmp_path: Path
) -> None:
    """Files, settings and history of one Dockerfile are what docker makes of it."""
    text = whole(CASES[case], base)
    since = time.time() - 60
    files, config = by_docker(text)
    output = BuildOutput(kind="tar", destination=str(tmp_path / "files.tar"))
    built = engine.build(
        BuildOptions(
            context=ContextSource(folder=str(folder)),
            dockerfile=text.encode(),
            arguments={"GIVEN": "word"},
            outputs=(output,),
        )
    )
    assert built.image.id is not None
    blob = os.path.join(engine.settings.root, "blobs", "sha256", built.image.id.hex)
    with open(blob, "rb") as file:
        ours = json.load(file)
    assert settings_of(ours) == settings_of(config)
    assert [(_FLAGS.sub("", text), layer) for text, layer in history_of(ours)] == history_of(config)
    mine, theirs = tree_of((tmp_path / "files.tar").read_bytes(), since), tree_of(files, since)
    for name in _STUBS.get(case, ()):
        theirs.pop(name, None)
    assert sorted(mine) == sorted(theirs)
    different = {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
    assert different == {}
