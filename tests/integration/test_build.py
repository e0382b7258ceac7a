"""Builds, in every tier: what a Dockerfile says is what the image has; what was made before is not made again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import json
import os
import socket
import tarfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer import errors
from nbcontainer.model import Platform
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.rootfs import PYTHON
from tests.harness.leaks import deserted_cgroups, lives
from tests.harness.patience import patient
from tests.integration.fixtures import OWN_TIER
from tests.integration.test_crash import sweep
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Tier


def config_of(tier: Tier, built: dict[str, Any]) -> dict[str, Any]:
    """The config of a built image as it is stored."""
    path = Path(tier.store) / "blobs" / built["id"].replace(":", "/")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def context(tier: Tier, files: Mapping[str, str | bytes]) -> str:
    """A folder of the acting person's with these files."""
    folder = tier.folder("context")
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    if tier.user is not None:
        for directory, _, names in os.walk(folder):
            for name in (".", *names):
                os.chown(os.path.join(directory, name), tier.user.uid, tier.user.gid, follow_symlinks=False)
    return str(folder)


def test_the_whole_way(tier: Tier) -> None:
    """RUN, COPY, ENV, WORKDIR, USER and CMD end in an image that runs, and that the next build finds made."""
    folder = context(tier, {"a.txt": "one", "sub/b.txt": "two", "skip.log": "no", ".dockerignore": "*.log\n"})
    text = f"""\
FROM {tier.image}
ARG WHO=world
ENV GREETING="hello $WHO" PATH=$PATH:/app
RUN echo $GREETING > /made && mkdir -p /var/empty
WORKDIR /app/inner
COPY . ./
COPY a.txt /app/renamed
LABEL purpose=test
EXPOSE 80 8000-8001/udp
CMD ["sh", "-c", "cat /made renamed ../renamed; pwd; ls -A"]
"""
    built = tier.driver.build(text, "built", "built:two", folder=folder)
    assert all(end.startswith(("done", "cached: FROM")) for end in built["ends"])
    result = tier.driver.run("sh", "-c", "cat /made ../renamed; echo; pwd; ls -A; ls -d /var/empty", image="built")
    assert result.stdout == "hello world\none\n/app/inner\n.dockerignore\na.txt\nsub\n/var/empty\n"
    config = config_of(tier, built)
    assert config["config"]["Labels"] == {"purpose": "test"}
    assert config["config"]["ExposedPorts"] == {"80/tcp": {}, "8000/udp": {}, "8001/udp": {}}
    assert config["config"]["WorkingDir"] == "/app/inner"
    assert "GREETING=hello world" in config["config"]["Env"]
    assert "PATH=/bin:/usr/bin:/app" in config["config"]["Env"]
    again = tier.driver.build(text, "built", folder=folder)
    assert again["id"] == built["id"]
    assert all(end.startswith("cached") for end in again["ends"])
    other = tier.driver.build(text, folder=folder, arguments={"WHO": "you"})
    assert [end.partition(":")[0] for end in other["ends"]] == ["cached", *["done"] * 4]
    assert tier.driver.run("cat", "/made", image=other["id"].removeprefix("sha256:")[:12]).stdout == "hello you\n"


def test_a_change_of_the_context_counts_and_its_times_do_not(tier: Tier) -> None:
    """A step that copies is made again for other bytes or another mode, and not for another time or ignored files."""
    folder = context(tier, {"a": "one", "b.log": "x", ".dockerignore": "*.log\n.dockerignore\n"})
    text = f"FROM {tier.image}\nCOPY . /data/\nRUN cat /data/a\n"
    tier.driver.build(text, folder=folder)
    path = Path(folder) / "a"
    os.utime(path, (1, 1))
    (Path(folder) / "b.log").write_text("other")
    assert tier.driver.build(text, folder=folder)["cached"] == 3
    path.write_text("two")
    assert tier.driver.build(text, folder=folder)["cached"] == 1
    path.chmod(0o755)
    assert tier.driver.build(text, folder=folder)["cached"] == 1


def test_stages(tier: Tier) -> None:
    """Only what the target needs is built; a stage's files keep their owners and go where they are copied."""
    text = f"""\
FROM {tier.image} AS tools
RUN mkdir /out && echo tool > /out/tool && chmod 750 /out/tool && ln -s tool /out/link
FROM {tier.image} AS unused
RUN false
FROM tools AS child
RUN test -f /out/tool
FROM scratch
COPY --from=tools /out/ /opt/
COPY --from=child /bin /bin
COPY --from={tier.image} /lib /lib
COPY --from={tier.image} /lib64 /lib64
COPY --from={tier.image} /usr /usr
CMD ["/bin/cat", "/opt/link"]
"""
    built = tier.driver.build(text, "staged")
    assert not any("false" in end for end in built["ends"])
    assert tier.driver.run(image="staged").stdout == "tool\n"
    assert tier.driver.run("ls", "-l", "/opt/tool", image="staged").stdout.startswith("-rwxr-x---")
    with pytest.raises(Raised, match="there is no stage 'nowhere'"):
        tier.driver.build(text, target="nowhere")
    with pytest.raises(Raised) as caught:
        tier.driver.build(text, target="unused")
    assert caught.value.is_a(errors.BuildFailed)


def test_a_failing_step(tier: Tier) -> None:
    """It tells line, command, last output and code, leaves no image, and its state can be looked at before and after."""
    text = f"FROM {tier.image}\nENV WORD=xyzzy\nWORKDIR /work\nRUN echo before > /first\nRUN echo partly > half; echo oh no >&2; exit 7\n"
    images = len(tier.driver.call("images"))
    with pytest.raises(Raised) as caught:
        tier.driver.build(text, "never")
    problem = caught.value
    assert problem.is_a(errors.BuildFailed)
    assert problem.attributes["returncode"] == 7
    assert problem.attributes["line"] == 5
    for part in ("line 5", "exit code 7", "oh no", "5 | RUN echo partly", "^^^", "/bin/sh -c echo partly", "debug"):
        assert part in str(problem)
    assert len(tier.driver.call("images")) == images
    step = tier.driver.call("failed_step")
    assert (step.code, step.line, step.directory) == (7, 5, "/work")
    look = "cat /first half; echo $WORD; pwd"
    after = tier.driver.run(image="", script=look, failed="after")
    assert (after.stdout, after.stderr) == ("before\npartly\nxyzzy\n/work\n", "")
    before = tier.driver.run(image="", script="cat /first half", failed="before")
    assert before.stdout == "before\n"
    assert "half" in before.stderr
    tier.driver.call("remove_image", tier.driver.build(f"FROM {tier.image}\nLABEL a=b\n", "fine")["reference"])
    with pytest.raises(Raised, match="no failed step is kept"):
        tier.driver.call("failed_step")


def test_a_failed_step_survives_removals(tier: Tier) -> None:
    """Its files are kept when images are removed, and go with a prune."""
    with pytest.raises(Raised):
        tier.driver.build(f"FROM {tier.image}\nRUN echo kept > /kept; false\n")
    tier.driver.build(f"FROM {tier.image}\nRUN false || true\n", "other", no_cache=True)
    with pytest.raises(Raised):
        tier.driver.build(f"FROM {tier.image}\nRUN echo kept > /kept; false\n")
    tier.driver.call("remove_image", "other")
    assert tier.driver.run("cat", "/kept", image="", failed="after").stdout == "kept\n"
    tier.driver.call("clear_build_cache")
    with pytest.raises(Raised, match="no failed step is kept"):
        tier.driver.run("cat", "/kept", image="", failed="after")


def test_interrupt(tier: Tier) -> None:
    """■ ends the command with all its processes, no image is there, and the next build works."""
    text = f"FROM {tier.image}\nRUN echo begun; sleep 1000 & sleep 1000\n"
    tier.driver.begin_build(text, "interrupted")
    tier.driver.wait_for_output(b"begun")
    began = time.monotonic()
    tier.driver.interrupt()
    with pytest.raises(Raised) as caught:
        tier.driver.finish()
    assert caught.value.is_a(KeyboardInterrupt)
    assert time.monotonic() - began < patient(8)
    with pytest.raises(Raised, match="interrupted"):
        tier.driver.call("inspect_image", "interrupted")
    assert tier.driver.build(f"FROM {tier.image}\nRUN true\n")["layers"] > 0


def test_secrets_are_nowhere(tier: Tier) -> None:
    """A secret is there for its command only: in no layer, no config, no key, no record."""
    word = f"s3cr3t-{time.monotonic_ns()}"
    text = f"""\
FROM {tier.image}
RUN --mount=type=secret,id=token,required=true --mount=type=secret,id=token,env=TOKEN \\
    test "$(cat /run/secrets/token)" = "$TOKEN" && echo ${{#TOKEN}} > /length
RUN test ! -e /run/secrets/token && test -z "$TOKEN"
"""
    built = tier.driver.build(text, "secret", secrets={"token": word.encode()})
    assert tier.driver.run("cat", "/length", image="secret").stdout == f"{len(word)}\n"
    again = tier.driver.build(text, secrets={"token": b"another"})
    assert again["id"] == built["id"]
    for directory, _, names in os.walk(tier.store):
        for name in names:
            path = Path(directory) / name
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                assert word.encode() not in data, path
    with pytest.raises(Raised, match="the secret 'token' is required"):
        tier.driver.build(text, no_cache=True)
    assert tier.driver.run("ls", "/run", image="secret").stdout == tier.run("ls", "/run").stdout


def test_mounts(tier: Tier) -> None:
    """Bind, cache and tmpfs mounts are there for one command; only a cache is there again."""
    folder = context(tier, {"data/in.txt": "input", "script.sh": "#!/bin/sh\necho ran > /ran\n"})
    text = f"""\
FROM {tier.image} AS other
RUN mkdir /files && echo theirs > /files/x
FROM {tier.image}
ARG ROUND
WORKDIR /work
RUN --mount=type=bind,source=data,target=data cat data/in.txt > copied; ! touch data/new 2>/dev/null
RUN --mount=type=bind,from=other,source=/files,target=/theirs,rw cat /theirs/x > theirs; echo y > /theirs/y
RUN --mount=from=other,target=/root-of-other cat /root-of-other/files/x >> theirs
RUN --mount=type=bind,source=script.sh,target=/script.sh sh /script.sh
RUN --mount=type=cache,target=/cache,id=c-{tier.name} echo $ROUND >> /cache/rounds; cp /cache/rounds rounds
RUN --mount=type=tmpfs,target=/quick echo gone > /quick/x
"""
    built = tier.driver.build(text, "mounted", folder=folder, arguments={"ROUND": "1"})
    look = "cat copied; echo; cat theirs rounds; ls /; ls /ran"
    first = tier.driver.run("sh", "-c", look, image="mounted")
    assert first.stdout.startswith("input\ntheirs\ntheirs\n1\n")
    for name in ("theirs", "cache", "quick", "script.sh", "root-of-other"):
        assert name not in first.stdout.split("\n")[4:]
    assert first.stderr == ""
    assert built["layers"]
    tier.driver.build(text, "mounted", folder=folder, arguments={"ROUND": "2"})
    assert tier.driver.run("cat", "/work/rounds", image="mounted").stdout == "1\n2\n"


def test_copy_forms(tier: Tier) -> None:
    """Globs, several sources, owners, modes, heredocs, links, --parents and --exclude put files where docker does."""
    files = {"x/1.py": "1", "x/2.py": "2", "x/deep/3.txt": "3", "y.cfg": "y", "z.cfg": "z"}
    folder = context(tier, files)
    os.symlink("../y.cfg", f"{folder}/x/link")
    os.chmod(f"{folder}/x", 0o711)
    text = f"""\
FROM {tier.image} AS other
RUN mkdir -p -m 750 /o/p && touch /o/p/q && chmod 705 /o
FROM {tier.image}
RUN mkdir /target /real && ln -s /real /alias
COPY x/*.py *.cfg /py/
COPY --chmod=u=rwX,go=r x /modes
COPY --chmod=0604 y.cfg /exact
COPY y.cfg /target
COPY z.cfg /alias/in-real
COPY <<one <<"two" /here/
$PATH
one
$PATH
two
COPY --parents x/deep/3.txt x/./deep /parents/
COPY --parents --from=other /o/p/q /parents/
COPY --exclude=*.py x /excluded/
COPY --link y.cfg /linked/y
COPY --chown=12:34 y.cfg /owned
"""
    tier.driver.build(text, "copied", folder=folder)
    script = """\
ls /py; cat /exact /target/y.cfg /real/in-real; echo
cat /here/one /here/two
ls /parents/deep /parents/x/deep; ls /excluded; readlink /modes/link; cat /linked/y; echo
stat -c '%a %n' /modes /modes/1.py /modes/deep /exact /parents/x /parents/o /parents/o/p
stat -c '%u:%g' /owned
"""
    result = tier.driver.run(image="copied", script=script)
    owner = "12:34" if tier.has_users else "0:0"
    assert result.stdout == (
        "1.py\n2.py\ny.cfg\nz.cfg\nyyz\n/bin:/usr/bin\n$PATH\n/parents/deep:\n3.txt\n\n/parents/x/deep:\n3.txt\ndeep\nlink\n../y.cfg\ny\n"
        f"755 /modes\n644 /modes/1.py\n744 /modes/deep\n604 /exact\n711 /parents/x\n705 /parents/o\n750 /parents/o/p\n{owner}\n"
    )


def test_add_unpacks_archives(tier: Tier) -> None:
    """ADD unpacks what is an archive by its content, whatever it is called, and COPY never does."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        entry = tarfile.TarInfo("inner/file")
        entry.size, entry.mode, entry.uid, entry.gid = 4, 0o640, 7, 8
        tar.addfile(entry, io.BytesIO(b"data"))
        link = tarfile.TarInfo("inner/link")
        link.type, link.linkname = tarfile.SYMTYPE, "file"
        tar.addfile(link)
        hard = tarfile.TarInfo("inner/hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "inner/file"
        tar.addfile(hard)
    folder = context(tier, {"files.bin": buffer.getvalue(), "plain.tar": "no tar at all"})
    text = f"FROM {tier.image}\nADD files.bin plain.tar /a/\nCOPY files.bin /c/\nADD --unpack=false files.bin /d/\n"
    tier.driver.build(text, "added", folder=folder)
    result = tier.driver.run(image="added", script="ls /a /a/inner; cat /a/inner/link /a/inner/hard; echo; ls /c /d")
    found = "/a: inner plain.tar /a/inner: file hard link datadata /c: files.bin /d: files.bin"
    assert " ".join(result.stdout.split()) == found


@OWN_TIER
def test_no_source(tier: Tier) -> None:
    """What is not there is told with the line, and with the reason when .dockerignore has hidden it."""
    folder = context(tier, {"here": "x", "hidden": "x", ".dockerignore": "hidden\n"})
    for source, sentence in (("nowhere", "is not in the build context"), ("hidden", r"\.dockerignore leaves it out")):
        with pytest.raises(Raised, match=sentence) as caught:
            tier.driver.build(f"FROM {tier.image}\nCOPY {source} /\n", folder=folder)
        assert "line 2" in str(caught.value)
        assert caught.value.is_a(errors.NotFound)
    with pytest.raises(Raised, match="nothing"):
        tier.driver.build("FROM localhost:1/nothing\n")
    with pytest.raises(Raised, match="host is this machine's own root"):
        tier.driver.build("FROM host\n")


@OWN_TIER
def test_the_same_digest_on_two_machines(tier: Tier) -> None:
    """With SOURCE_DATE_EPOCH the same Dockerfile and context give the same image, made twice in two stores."""
    text = f"FROM {tier.image}\nRUN mkdir /made && date > /made/now; echo x > /made/x; rm /made/now\nWORKDIR /w\nCOPY . .\n"
    digests = set()
    for number in range(2):
        folder = context(tier, {"a": "one", "b/c": "two"})
        with tier.spawn(root=f"{tier.store}-{number}") as driver:
            digests.add(driver.build(text, folder=folder, epoch=1_600_000_000)["digest"])
        time.sleep(1.1)
    assert len(digests) == 1


@OWN_TIER
def test_variables_of_the_notebook(tier: Tier) -> None:
    """A variable is a file of the context, alone or over a folder."""
    text = f"FROM {tier.image}\nCOPY code.py /\nCOPY . /all/\n"
    tier.driver.build(text, "variables", files={"code.py": b"print(6 * 7)"})
    assert tier.driver.run("sh", "-c", "cat /code.py; ls /all", image="variables").stdout == "print(6 * 7)code.py\n"
    folder = context(tier, {"code.py": "old", "other": "x"})
    tier.driver.build(text, "variables", folder=folder, files={"code.py": b"new"})
    assert tier.driver.run("sh", "-c", "cat /code.py; ls /all", image="variables").stdout == "newcode.py\nother\n"


@OWN_TIER
def test_a_context_in_a_tar(tier: Tier) -> None:
    """A tar can be the context, with the Dockerfile in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in (("Dockerfile", f"FROM {tier.image}\nCOPY a /\n".encode()), ("a", b"from a tar")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    tier.driver.begin_build(None, "tarred", archive=buffer.getvalue())
    tier.driver.finish()
    assert tier.driver.run("cat", "/a", image="tarred").stdout == "from a tar"


@OWN_TIER
def test_outputs(tier: Tier) -> None:
    """A build can put its files into a folder or a tar, and its image into an archive."""
    folder = tier.folder("outputs")
    text = "FROM scratch\nCOPY a /top/\n"
    outputs = [("local", f"{folder}/local"), ("tar", f"{folder}/files.tar"), ("oci", f"{folder}/image.tar")]
    tier.driver.build(text, "put-out", files={"a": b"data"}, outputs=outputs)
    assert (folder / "local/top/a").read_bytes() == b"data"
    with tarfile.open(folder / "files.tar") as tar:
        assert tar.getnames() == ["top", "top/a"]
    with tarfile.open(folder / "image.tar") as tar:
        names = tar.getnames()
        assert {"oci-layout", "index.json", "manifest.json"} < set(names)
        index = json.load(tar.extractfile("index.json") or io.BytesIO())
    assert index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] == "latest"


@OWN_TIER
def test_network_none(tier: Tier) -> None:
    """RUN has the machine's network when asked so, and none when asked so, by the build or by the instruction."""
    count = "RUN test $(ls /sys/class/net | wc -l) {sign} 1\n"
    tier.driver.build(f"FROM {tier.image}\n" + count.format(sign="-eq"), network="none")
    tier.driver.build(f"FROM {tier.image}\nRUN --network=none test $(ls /sys/class/net | wc -l) -eq 1\n")
    if len(os.listdir("/sys/class/net")) > 1:
        tier.driver.build(f"FROM {tier.image}\n" + count.format(sign="-gt"))


@OWN_TIER
def test_triggers(tier: Tier) -> None:
    """ONBUILD is kept in the image, runs in the build that uses it, and not in the one after."""
    base = tier.driver.build(f"FROM {tier.image}\nONBUILD RUN echo triggered > /trigger\nONBUILD ENV T=1\n", "base-on")
    assert config_of(tier, base)["config"]["OnBuild"] == ["RUN echo triggered > /trigger", "ENV T=1"]
    assert tier.driver.run("ls", "/trigger", image="base-on").exit_code != 0
    child = tier.driver.build("FROM base-on\nRUN cat /trigger && test $T = 1\n", "child-on")
    assert "OnBuild" not in config_of(tier, child)["config"]
    assert tier.driver.run("cat", "/trigger", image="child-on").stdout == "triggered\n"


@OWN_TIER
def test_cache_is_kept_and_pruned(tier: Tier) -> None:
    """What builds remember survives the removal of the image and goes with a prune."""
    text = f"FROM {tier.image}\nRUN echo {time.monotonic_ns()} > /stamp\n"
    built = tier.driver.build(text, "kept")
    tier.driver.call("remove_image", "kept")
    assert tier.driver.build(text, "kept")["id"] == built["id"]
    tier.driver.call("remove_image", "kept")
    count, _ = tier.driver.call("clear_build_cache")
    assert count > 0
    assert tier.driver.build(text, "kept")["cached"] == 1


@OWN_TIER
def test_stages_run_at_once(tier: Tier) -> None:
    """Stages that do not need each other run at the same time."""
    folder = tier.folder("meeting")
    text = "".join(
        f"FROM {tier.image} AS s{each}\nRUN --mount=type=cache,target=/m,id=meet touch /m/{each};"
        f" n=0; while [ ! -e /m/{1 - each} ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n+1)); done; test -e /m/{1 - each}\n"
        for each in range(2)
    )
    text += f"FROM {tier.image}\nCOPY --from=s0 /etc/passwd /a\nCOPY --from=s1 /etc/passwd /b\n"
    tier.driver.build(text, "met")
    assert folder.is_dir()


@OWN_TIER
def test_what_builds_started_is_kept_a_while(tier: Tier) -> None:
    """The launcher of a build waits for the next one, and is gone when none has come."""
    with tier.spawn(build_idle=2) as driver:
        driver.run("true")
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="a full pool")
        driver.build(f"FROM {tier.image}\nRUN echo {time.time()} > /made\n")
        assert len(driver.processes()) > driver.at_rest
        wait_until(lambda: len(driver.processes()) == driver.at_rest, what="the launcher of builds is gone")


@OWN_TIER
def test_no_step_is_shown_that_only_waits(tier: Tier) -> None:
    """What takes files from another stage, by COPY or by a mount, begins when that stage is over."""
    text = (
        f"FROM {tier.image} AS made\nRUN sleep 0.5; echo made > /made\n"
        f"FROM {tier.image} AS copied\nCOPY --from=made /made /copy\n"
        f"FROM {tier.image}\nRUN --mount=from=made,target=/m cat /m/made\nCOPY --from=copied /copy /\n"
    )
    order = tier.driver.build(text)["order"]
    over = order.index("done: RUN sleep 0.5; echo made > /made")
    assert over < order.index("begun: COPY --from=made /made /copy")
    assert over < order.index("begun: RUN --mount=from=made,target=/m cat /m/made")


@OWN_TIER
def test_killed_in_the_middle(tier: Tier) -> None:
    """After SIGKILL to the notebook nothing of the build runs or is named, and the next one goes on from its steps."""
    known = deserted_cgroups()
    text = f"FROM {tier.image}\nRUN echo first > /first\nRUN echo begun; sleep 100\n"
    with tier.spawn() as driver:
        driver.begin_build(text, "killed")
        driver.wait_for_output(b"begun")
        below = driver.kill()
    wait_until(lambda: not any(map(lives, below)), what="every process is gone")
    sweep(tier, known)
    with pytest.raises(Raised):
        tier.driver.call("inspect_image", "killed")
    built = tier.driver.build(text.replace("sleep 100", "true"), "killed")
    assert built["cached"] == 2


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Lend the address of a web server on loopback, and its folder."""
    handler_class: Any = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(handler_class, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        worker = threading.Thread(target=server.serve_forever)
        worker.start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path
        server.shutdown()
        worker.join()


@OWN_TIER
def test_add_fetches_files(tier: Tier, web: tuple[str, Path]) -> None:
    """ADD of an address writes a file of mode 0600 with the server's time; a checksum has to fit; --unpack unpacks."""
    address, folder = web
    (folder / "file.txt").write_text("fetched")
    os.utime(folder / "file.txt", (1_500_000_000, 1_500_000_000))
    with tarfile.open(folder / "files.tgz", "w:gz") as tar:
        tar.add(folder / "file.txt", "inner/file.txt")
    right = hashlib.sha256(b"fetched").hexdigest()
    text = f"""\
FROM {tier.image}
ADD --checksum=sha256:{right} {address}/file.txt /got/
ADD --chmod=644 {address}/file.txt /renamed
ADD {address}/files.tgz /packed/
ADD --unpack {address}/files.tgz /unpacked/
"""
    tier.driver.build(text, "fetched")
    look = "cat /got/file.txt /unpacked/inner/file.txt; stat -c ' %a %Y' /got/file.txt /renamed; ls /packed"
    found = tier.driver.run("sh", "-c", look, image="fetched").stdout
    assert found == "fetchedfetched 600 1500000000\n 644 1500000000\nfiles.tgz\n"
    assert tier.driver.build(text)["cached"] == 5
    with pytest.raises(Raised, match="--checksum says"):
        tier.driver.build(text.replace(right, "0" * 64))
    with pytest.raises(Raised, match="answered with 404"):
        tier.driver.build(f"FROM {tier.image}\nADD {address}/nowhere /\n")
    with pytest.raises(Raised, match="no archive that can be unpacked"):
        tier.driver.build(f"FROM {tier.image}\nADD --unpack {address}/file.txt /\n")


def test_ssh_agent(tier: Tier) -> None:
    """A command with an ssh mount talks to the person's agent; without one it has no such socket."""
    folder = tier.folder("agent")
    path = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(path)
        if tier.user is not None:
            os.chown(path, tier.user.uid, tier.user.gid)
        agent.listen()

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = agent.accept()
                    with caller:
                        caller.sendall(b"keys for " + caller.recv(100))

        worker = threading.Thread(target=answer, daemon=True)
        worker.start()
        ask = (
            "import os, socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['SSH_AUTH_SOCK']);"
            " s.sendall(b'me'); print(s.recv(100).decode())"
        )
        text = f'FROM {tier.image}\nRUN --mount=type=ssh {PYTHON} -c "{ask}" > /answer\nRUN test -z "$SSH_AUTH_SOCK"\n'
        tier.driver.build(text, "agent", agents={"default": path})
        agent.shutdown(socket.SHUT_RDWR)
        worker.join(5)
    assert tier.driver.run("cat", "/answer", image="agent").stdout == "keys for me\n"
    with pytest.raises(Raised, match="ssh agent 'default' is required"):
        tier.driver.build(f"FROM {tier.image}\nRUN --mount=type=ssh,required=true true\n")


@OWN_TIER
def test_a_script_with_an_interpreter(tier: Tier) -> None:
    """A heredoc that begins with #! is run by what it names, another one by the shell, and both see the arguments."""
    text = f"""\
FROM {tier.image}
ARG N=3
RUN <<EOF
#!{PYTHON}
import os
with open("/made", "w") as file:
    file.write("x" * int(os.environ["N"]))
EOF
RUN <<EOF
echo "$N" > /shell
EOF
"""
    tier.driver.build(text, "scripts")
    assert tier.driver.run("cat", "/made", "/shell", image="scripts").stdout == "xxx3\n"


@OWN_TIER
def test_a_removal_does_not_wait_for_a_build(tier: Tier) -> None:
    """While somebody builds in the store only the name goes, and with the next removal what it named."""
    text = f"FROM {tier.image}\nRUN echo {time.monotonic_ns()} > /x\n"
    built = tier.driver.build(text, "goes")
    tier.driver.call("clear_build_cache")
    manifest = Path(tier.store) / "blobs" / built["digest"].replace(":", "/")
    with tier.spawn() as other:
        other.begin_build(f"FROM {tier.image}\nRUN echo on; sleep 60\n")
        other.wait_for_output(b"on")
        began = time.monotonic()
        removed = tier.driver.call("remove_image", "goes")
        assert time.monotonic() - began < patient(20)
        assert (removed.untagged, removed.deleted, removed.deferred) == (("goes:latest",), (), True)
        with pytest.raises(Raised, match="goes"):
            tier.driver.call("inspect_image", "goes")
        assert manifest.exists()
        other.interrupt()
        with pytest.raises(Raised):
            other.finish()
    tier.driver.build(f"FROM {tier.image}\nLABEL a=b\n", "also")
    removed = tier.driver.call("remove_image", "also")
    assert not removed.deferred
    assert not manifest.exists()


@OWN_TIER
def test_errors_point_at_the_place(tier: Tier) -> None:
    """A source that is not there is underlined, and an error of a registry stays one, with the line of its FROM."""
    text = f"FROM {tier.image}\nCOPY a.txt \\\n  nowhere.txt /data/\n"
    with pytest.raises(Raised) as caught:
        tier.driver.build(text, folder=context(tier, {"a.txt": "a"}))
    assert caught.value.is_a(errors.NotFound)
    assert str(caught.value).startswith("line 3: 'nowhere.txt' is not in the build context")
    assert "3 |   nowhere.txt /data/\n  |   ^^^^^^^^^^^\n" in f"{caught.value}\n"
    with pytest.raises(Raised) as caught:
        tier.driver.build(f"FROM {tier.image} AS one\nFROM {tier.image}\nCOPY --from=one /bin/none /x\n")
    assert "COPY --from=one /bin/none /x\n  |                 ^^^^^^^^^\n" in f"{caught.value}\n"
    with pytest.raises(Raised) as caught:
        tier.driver.build("FROM scratch AS one\nFROM 127.0.0.1:1/x\n")
    assert caught.value.is_a(errors.RegistryUnreachable)
    assert str(caught.value).startswith("line 2: ")


@OWN_TIER
def test_a_base_for_another_platform(tier: Tier, registry: InProcessRegistry) -> None:
    """BuildKit's check InvalidBaseImagePlatform: a warning, an error or nothing, as the Dockerfile has it."""
    foreign = Platform("linux", "s390x")
    registry.add_image("foreign", "latest", layers=[tiny_layer({"a": b"x"})], platform=foreign)
    text = f"FROM {registry.reference('foreign')}\nCOPY --from={tier.image} /bin/true /\n"
    tier.driver.begin_build(text)
    tier.driver.wait_for_event("BuildWarning")
    tier.driver.finish()
    with pytest.raises(Raised, match=r"InvalidBaseImagePlatform: .* is made for linux/s390x, and this build is for"):
        tier.driver.build(f"# check=error=true\n{text}")
    tier.driver.begin_build(f"# check=skip=InvalidBaseImagePlatform\n{text}")
    tier.driver.finish()
    with pytest.raises(AssertionError, match="it ended without BuildWarning"):
        tier.driver.wait_for_event("BuildWarning")
