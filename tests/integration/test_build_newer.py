"""What a newer docker than Debian 12's makes of newer Dockerfiles, kept as golden files, and made here again.

Heredocs, ``--link``, patterns in words: BuildKit has them for years, and the docker that CI compares with has not. So
what docker 26.1 (Debian 13) made of each case is kept in ``tests/golden/build``, as what is different from the base:
files, settings, history. To make the files anew, give the address of a newer daemon that reaches loopback (one in a
chroot will do): ``NBCONTAINER_TEST_DOCKER=unix:///… pytest tests/integration/test_build_newer.py``. ``--parents`` and
``--exclude`` are in no docker of Debian's yet; what they do is told by `test_build`.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer import Engine, Settings
from nbcontainer.build.request import BuildOptions, BuildOutput, ContextSource
from tests.integration.programs import copy, run
from tests.integration.test_build_peers import (
    Tree,
    base,
    engine,
    folder,
    history_of,
    settings_of,
    store,
    tree_of,
    whole,
)

if TYPE_CHECKING:
    import io

    from nbcontainer.model import Digest

__all__ = ["base", "engine", "folder", "store"]

pytestmark = [pytest.mark.root, pytest.mark.overlay, pytest.mark.slow]

_GOLDEN = Path(__file__).parent.parent / "golden/build"
_DOCKER = os.environ.get("NBCONTAINER_TEST_DOCKER", "")

CASES: dict[str, str] = {
    "heredoc-file": "COPY <<name /here/\ntext of $HOME and ${NONE:-none}\nname",
    "heredoc-renamed": "COPY <<EOF /here/file\none\n\n two \nEOF",
    "heredoc-quoted": "ARG A=x\nCOPY <<\"EOF\" /quoted\n$A ${A} \\$A\nEOF\nCOPY <<'EOF' /single\n$A\nEOF",
    "heredoc-expanded": "ARG A=x\nENV B=y\nCOPY <<EOF /file\n$A ${B} \\$A ${A:+set} '$A' \"$B\"\nEOF",
    "heredoc-tabs": "COPY <<-EOF /file\n\tone\n\t\ttwo\n  three\n\tEOF",
    "heredoc-several": "COPY <<one <<two a.txt /here/\n1\none\n2\ntwo",
    "heredoc-modes": "COPY --chmod=0640 --chown=12:34 <<EOF /new/file\nx\nEOF",
    "heredoc-add": "ADD <<EOF /file\nx\nEOF",
    "heredoc-empty": "COPY <<EOF /file\nEOF",
    "heredoc-run": "ENV A=x\nRUN <<EOF\necho $A > /one\necho two > /two\nEOF",
    "heredoc-run-fails-late": "RUN <<EOF\ntest -e /nowhere\necho on > /on\nEOF",
    "heredoc-run-interpreter": "RUN <<EOF\n#!/bin/sh -e\necho $# > /out\nfalse || echo x > /x\nEOF",
    "heredoc-run-input": "RUN cat > /out <<EOF\n$HOME text\nEOF",
    "heredoc-run-two": "RUN cat <<A > /a && cat <<B > /b\n1\nA\n2\nB",
    "heredoc-run-program": "RUN sh <<EOF\necho x > /x\nEOF",
    "heredoc-run-user": "USER alice\nRUN <<EOF\nid -u > /tmp/who\nEOF",
    "heredoc-run-shell": 'SHELL ["/bin/sh", "-e", "-c"]\nRUN <<EOF\necho x > /x\nEOF',
    "link-file": "COPY --link a.txt /new/a",
    "link-into-folder": "RUN mkdir /d && chmod 700 /d && echo x > /d/x\nCOPY --link a.txt /d/",
    "link-folder": "COPY --link sub /d",
    "link-owner": "COPY --link --chown=12:34 --chmod=600 a.txt /new/",
    "link-workdir": "WORKDIR /work\nCOPY --link a.txt ./",
    "link-stage": "FROM {base} AS one\nRUN echo x > /made\nFROM {base}\nCOPY --link --from=one /made /got/",
    "link-over": "RUN echo old > /file\nCOPY --link a.txt /file",
    "link-glob": "COPY --link *.txt /texts/",
    "link-scratch": "FROM scratch\nCOPY --link a.txt /\nCOPY --link sub /sub/",
    "words-prefix": "ENV A=one.two.three\nENV B=${A#*.} C=${A##*.} D=${A%.*} E=${A%%.*} F=${A#x}",
    "words-replace": "ENV A=a-b-c\nENV B=${A/-/+} C=${A//-/+} D=${A/x/y} E=${A//?/z}",
    "words-nested": "ENV A=x\nENV B=${NONE:-${A:-no}} C=${A:+${A}${A}} D=${NONE-unset} E=${A+set}",
    "health-start-interval": "HEALTHCHECK --start-interval=3s --start-period=1m --interval=5s CMD true",
    "arg-several": "ARG A=1 B=2\nRUN echo $A$B > /out",
    "copy-chmod-folder": "COPY --chmod=0705 nest /nest",
    "add-chmod": "ADD --chmod=0641 sub /sub/",
}


_MEANT = {
    ("heredoc-run-interpreter", "history"): "docker tells the file in which it puts the script, we tell the script",
}
"""What differs on purpose, and why."""


def changed(data: bytes, before: Tree, since: float) -> dict[str, Any]:
    """What a tar has that another tree has not, or has otherwise; and what it lacks, as None."""
    after = tree_of(data, since)
    found: dict[str, Any] = {name: None for name in before if name not in after}
    for name, fact in after.items():
        if fact != before.get(name):
            kept = {key: value for key, value in fact.items() if key != "mtime"}
            found[name] = {**kept, "type": fact["type"].decode()}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def docker(*arguments: str) -> str:
    """Call the newer docker; the client of Debian 12 has BuildKit built in."""
    return run("docker", "--host", _DOCKER, *arguments, env={**os.environ, "DOCKER_BUILDKIT": "1"})


def by_docker(text: str, base: str, folder: Path, place: Path) -> dict[str, Any]:
    """What docker makes of it."""
    import tarfile

    def files_of(image: str, name: str) -> bytes:
        container = docker("create", image, "/none").strip()
        docker("export", "-o", str(place / name), container)
        docker("rm", container)
        return (place / name).read_bytes()

    since = time.time() - 60
    (place / "Dockerfile").write_text(text)
    copy(f"docker://{base}", f"docker-archive:{place / 'base.tar'}:{base}")
    docker("load", "-i", str(place / "base.tar"))
    (place / "base.tar").unlink()
    docker("build", "--network", "host", "--no-cache", "-t", "peer", "-f", str(place / "Dockerfile"), str(folder))
    docker("save", "-o", str(place / "image.tar"), "peer")
    with tarfile.open(place / "image.tar") as tar:

        def read(name: str) -> Any:
            file: io.BufferedReader | None = tar.extractfile(name)  # type: ignore[assignment]
            assert file is not None
            return json.load(file)

        (manifest,) = read("manifest.json")
        config = read(manifest["Config"])
    on_base = text.startswith(f"FROM {base}")
    before = tree_of(files_of(base, "base.tar"), since) if on_base else {}
    files = changed(files_of("peer", "files.tar"), before, since)
    if not on_base:
        del files["etc"]  # made by `docker create` for what it mounts
    return {
        "by": docker("version", "--format", "docker {{.Server.Version}}").strip(),
        "dockerfile": text.replace(base, "BASE"),
        **told(config, files),
    }


def told(config: dict[str, Any], files: dict[str, Any]) -> dict[str, Any]:
    """An image as it is compared."""
    found = {"files": files, "settings": settings_of(config), "history": history_of(config)}
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def exported(engine: Engine, text: str, folder: Path, path: Path) -> tuple[Digest, bytes]:
    """What we make of it: the image's id, and a tar of its files."""
    output = BuildOutput(kind="tar", destination=str(path))
    source = ContextSource(folder=str(folder))
    built = engine.build(BuildOptions(context=source, dockerfile=text.encode(), outputs=(output,)))
    assert built.image.id is not None
    return built.image.id, path.read_bytes()


@pytest.fixture(scope="module")
def lower(base: str, store: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """Lend the files of the base as we have them."""
    with Engine(Settings(root=store)) as engine:
        text = f"FROM {base}\nLABEL of=base\n"
        return tree_of(exported(engine, text, folder, tmp_path_factory.mktemp("lower") / "files.tar")[1], time.time())


@pytest.mark.parametrize("case", CASES)
def test_the_same_as_newer_docker(
    case: str, *, base: str, lower: Tree, folder: Path, engine: Engine, tmp_path: Path
) -> None:
    """Files, settings and history are those that are kept."""
    text = whole(CASES[case], base)
    golden = _GOLDEN / f"{case}.json"
    if _DOCKER:
        made = by_docker(text, base, folder, tmp_path)
        golden.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    kept = json.loads(golden.read_text())
    assert kept["dockerfile"] == text.replace(base, "BASE"), "the case has changed; make its golden file anew"
    since = time.time() - 60
    image, files = exported(engine, text, folder, tmp_path / "files.tar")
    config = json.loads(Path(engine.settings.root, "blobs/sha256", image.hex).read_bytes())
    ours = told(config, changed(files, lower if text.startswith(f"FROM {base}") else {}, since))
    for part in ("settings", "history", "files"):
        assert (ours[part] == kept[part]) is ((case, part) not in _MEANT), part
