"""Images made and pushed by other programs, and their trees compared with what `umoci unpack` makes of them.

Two images go to a real registry on loopback, each pushed by docker (schema 2, gzip) and by skopeo (OCI, zstd): one
written by hand with every kind of entry a layer may hold, one that umoci made by comparing trees. A container of ours
lists its own root with `_WALK`; the same program lists umoci's root file system, and the two lists must be equal:
names, types, modes, owners, link targets, groups of hard links, extended attributes, contents, times.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from nbcontainer import Engine, Settings
from nbcontainer.testing.images import build_image
from nbcontainer.testing.rootfs import PYTHON, python_layer, root_layer
from tests.integration.programs import copy, run, tool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence


pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.peers("docker", "dockerd", "skopeo", "umoci", "docker-registry"),
    pytest.mark.slow,
]

_PUSHED_BY = {
    "docker": (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ),
    "skopeo": ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.layer.v1.tar+zstd"),
}
"""Who pushes, and the media types of manifest and layers by which one sees that it was so."""

_WALK = """\
import hashlib, json, os, stat, sys

top = os.fsencode(sys.argv[1])
skipped = {os.fsencode(name) for name in sys.argv[2:]}
found, inodes = {}, {}

def look(path, name):
    status = os.lstat(path)
    fact = {"mode": oct(status.st_mode), "uid": status.st_uid, "gid": status.st_gid, "mtime": status.st_mtime_ns}
    fact["xattrs"] = {each: os.getxattr(path, each, follow_symlinks=False).hex() for each in os.listxattr(path, follow_symlinks=False)}
    if stat.S_ISLNK(status.st_mode):
        fact["target"] = os.fsdecode(os.readlink(path))
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            fact["content"] = hashlib.sha256(file.read()).hexdigest()
        fact["size"] = status.st_size
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        fact["device"] = status.st_rdev
    if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
        inodes.setdefault((status.st_dev, status.st_ino), []).append(name)
    found[os.fsdecode(name)] = fact
    if stat.S_ISDIR(status.st_mode):
        for each in sorted(os.listdir(path)):
            below = each if name == b"." else name + b"/" + each
            if below not in skipped:
                look(path + b"/" + each, below)

look(top, b".")
for names in inodes.values():
    for name in names:
        found[os.fsdecode(name)]["links"] = [os.fsdecode(each) for each in sorted(names)]
sys.stdout.buffer.write(json.dumps(found).encode("ascii"))
"""
_OURS = ("proc", "sys", "dev", "etc/hosts", "etc/hostname", "etc/resolv.conf")
"""Where a container has mounts of its own; the images have something there, so that no directory is touched to mount it."""
_LISTING = "cat /etc/passwd; cd /; ls -lnR --time-style=full-iso bin etc home things 2>&1 | grep -v -e hosts -e hostname -e resolv.conf -e ^total; echo $((6 * 7))"

Tree = dict[str, dict[str, Any]]


# --- images -----------------------------------------------------------------------------------------------------------


def tar(entries: Sequence[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    """A layer of these entries."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def entry(
    name: str,
    data: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime: float = 1_600_000_000,
    link: str = "",
    xattrs: Mapping[str, str] | None = None,
    pax: Mapping[str, str] | None = None,
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of a layer."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.mtime, info.size, info.linkname = kind, mode, mtime, len(data), link
    info.uid, info.gid = owner
    info.pax_headers = {**{f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}, **(pax or {})}
    return info, data


def folder(name: str, *, mode: int = 0o755, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A directory."""
    return entry(name, kind=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A symbolic link."""
    return entry(name, kind=tarfile.SYMTYPE, link=target, mode=0o777, **more)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    """Another name for a file."""
    return entry(name, kind=tarfile.LNKTYPE, link=target)


# struct vfs_cap_data, revision 2 with the effective bit: cap_net_raw permitted
_CAPABILITY = (b"\x01\x00\x00\x02" + b"\x00\x20\x00\x00" + bytes(12)).decode("latin-1")
_LONG = "long/" + "/".join(letter * 60 for letter in "abcde")
_LONGEST = "n" * 255


def base_layer() -> bytes:
    """A root file system of this machine's programs, with something at every place where a container has mounts."""
    mounted = {"etc/hosts": b"", "etc/hostname": b"", "etc/resolv.conf": b""}
    return root_layer(files={**mounted, "bin/grep": Path(os.path.realpath(tool("grep"))).read_bytes()})


def things_layer() -> bytes:
    """One of everything, by pax headers."""
    return tar(
        [
            folder("./", mtime=1_500_000_000),
            folder("things", mode=0o2775, owner=(1000, 50), mtime=1_500_000_001.5),
            entry("things/plain", b"plain\n", mtime=1_234_567_890, pax={"mtime": "1234567890.123456789"}),
            entry("things/before-1970", b"", pax={"mtime": "-86400.25"}),
            entry("things/setuid", b"#!/bin/sh\n", mode=0o4755, owner=(1000, 1000)),
            entry("things/setgid", b"#!/bin/sh\n", mode=0o2750, owner=(1, 27)),
            entry("things/unreadable", b"secret\n", mode=0o000, owner=(65534, 65534)),
            folder("things/sticky", mode=0o1777),
            folder("things/empty", mode=0o700, owner=(1000, 1000), mtime=1_111_111_111),
            folder("things/closed", mode=0o111),
            entry("things/closed/inside", b"in\n", owner=(1000, 0), mode=0o600),
            entry("things/high-ids", b"", owner=(60_000, 59_999)),
            entry("things/hard-a", b"one file\n", mode=0o4711, owner=(12, 34), mtime=1_000_000_000),
            hard_link("things/hard-b", "things/hard-a"),
            hard_link("things/sticky/hard-c", "things/hard-a"),
            symlink("things/soft", "plain", owner=(1000, 50), mtime=1_222_222_222),
            symlink("things/soft-absolute", "/etc/passwd"),
            symlink("things/soft-dangling", "../../../../nowhere"),
            symlink("things/soft-folder", "sticky"),
            hard_link("things/hard-soft", "things/soft"),
            entry("things/fifo", kind=tarfile.FIFOTYPE, mode=0o622, owner=(0, 50)),
            entry("things/capable", b"#!/bin/sh\n", mode=0o755, xattrs={"security.capability": _CAPABILITY}),
            entry("things/tagged", b"", xattrs={"user.comment": "grüße\n", "user.empty": "", "user.a=b": "c=d"}),
            folder("things/tagged-folder", xattrs={"user.kind": "folder"}),
            entry("things/grüße-日本-🐍", "ü\n".encode()),
            entry("things/with space and\ttab and\nnewline", b""),
            entry("things/.wh-not-a-whiteout", b""),
            folder("long"),
            *(folder("/".join(_LONG.split("/")[: depth + 1])) for depth in range(1, 6)),
            entry(f"{_LONG}/{_LONGEST}", b"deep\n"),
            symlink("things/soft-long", f"../{_LONG}/{_LONGEST}"),
            hard_link("things/hard-long", f"{_LONG}/{_LONGEST}"),
        ]
    )


def names_layer() -> bytes:
    """Names that GNU tar writes its own way, and what the next layers take away."""
    gnu = [
        folder("gnu"),
        folder("gnu/" + "d" * 120),
        entry(f"gnu/{'d' * 120}/{'f' * 200}", b"gnu\n"),
        symlink("gnu/soft", "t" * 180),
        entry("gnu/latin1-\udce9\udcff", b"not UTF-8\n"),
        folder("gone-folder"),
        entry("gone-folder/a", b"a"),
        folder("gone-folder/b"),
        entry("gone-folder/b/c", b"c"),
        entry("gone-file", b""),
        folder("opaque", mode=0o750, owner=(1000, 1000)),
        entry("opaque/old", b"old"),
        folder("opaque/old-folder"),
        entry("opaque/old-folder/x", b"x"),
        entry("opaque/both", b"below"),
        folder("was-folder"),
        entry("was-folder/x", b"x"),
        entry("was-file", b"x"),
        symlink("was-link", "gnu"),
        folder("was-folder-too"),
        folder("kept", mode=0o711, owner=(3, 4), mtime=1_300_000_000),
        entry("kept/old", b"old", mtime=1_300_000_001),
        entry("kept/replaced", b"old", mode=0o600),
        folder("kept/below", mode=0o701, owner=(5, 6), mtime=1_300_000_002),
        entry("kept/below/old", b"old"),
        entry("twice", b"2"),
    ]
    return tar(gnu, tarfile.GNU_FORMAT)


def changes_layer() -> bytes:
    """Whiteouts, an opaque directory, and things that become other things."""
    return tar(
        [
            entry(".wh.gone-folder"),
            entry(".wh.gone-file"),
            entry(".wh.never-there"),
            folder("opaque", mode=0o755, owner=(1000, 1000), mtime=1_400_000_000),
            entry("opaque/.wh..wh..opq"),
            entry("opaque/both", b"above"),
            entry("opaque/new", b"new"),
            entry("was-folder", b"a file now"),
            folder("was-file", mode=0o770),
            entry("was-file/x", b"x"),
            folder("was-link"),
            entry("was-link/x", b"x"),
            symlink("was-folder-too", "kept"),
            folder("kept", mode=0o715, owner=(4, 3), mtime=1_300_000_003),
            entry("kept/replaced", b"new", mode=0o640, owner=(7, 8)),
            entry("kept/new", b"new"),
            folder("kept/below", mode=0o701, owner=(5, 6), mtime=1_300_000_004),
            entry("kept/below/.wh.old"),
            entry(".wh.twice"),
        ]
    )


def again_layer() -> bytes:
    """A third layer on top: what was gone comes back, what was opaque is so again."""
    return tar(
        [
            folder("gone-folder", mode=0o700, mtime=1_450_000_000),
            entry("gone-folder/d", b"d"),
            entry("twice", b"3", mode=0o600),
            folder("opaque", mtime=1_450_000_001),
            entry("opaque/.wh..wh..opq"),
            folder("opaque/old-folder", mtime=1_450_000_002),
            entry("opaque/old-folder/y", b"y"),
            folder("was-file", mode=0o755, mtime=1_450_000_003),
            entry("was-file/.wh.x"),
        ]
    )


def sparse_layers(source: Path) -> list[bytes]:
    """A tree with sparse files, as GNU tar writes it in two of its pax forms (the oldest form umoci cannot read)."""
    layers = []
    for version in ("0.1", "1.0"):
        with open(source / f"sparse-{version}", "wb") as file:
            file.write(b"begin")
            for hole in range(1, 9):
                file.seek(hole << 20)
                file.write(b"middle")
            file.truncate(10 << 20)
        form = ("--format=posix", f"--sparse-version={version}")
        run("tar", "-C", str(source), "--sparse", *form, "-cf", f"{source}.tar", "turns", f"sparse-{version}")
        layers.append(Path(f"{source}.tar").read_bytes())
        assert len(layers[-1]) < 1 << 20
    return layers


def write_layout(layers: Sequence[bytes], target: Path, tag: str) -> None:
    """An OCI image layout with uncompressed layers."""
    config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin:/usr/bin", "ANSWER=42"], "WorkingDir": "/"}
    image = build_image(layers, compression="none", config=config)
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, data in {**image.blobs, image.descriptor.digest: image.manifest_bytes}.items():
        (blobs / digest.hex).write_bytes(data)
    described = {
        "mediaType": image.manifest.media_type,
        "digest": str(image.descriptor.digest),
        "size": image.descriptor.size,
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))


def change_tree(root: Path) -> None:
    """What the image made by umoci has in its second layer."""
    # (a folder that becomes a file is in the image made by hand: umoci also whites out what was in the folder, below what
    # is a file now, and such a layer docker does not load)
    shutil.rmtree(root / "kept" / "below")
    (root / "kept" / "replaced").write_text("a file now")
    (root / "gnu" / "soft").unlink()
    (root / "things" / "plain").unlink()
    (root / "things" / "fifo").unlink()
    os.chown(root / "things" / "setuid", 33, 33)
    (root / "things" / "setuid").chmod(0o6755)
    os.setxattr(root / "things" / "tagged", "user.comment", b"changed")
    (root / "things" / "added").mkdir()
    (root / "things" / "added" / "file").write_text("added")
    os.link(root / "things" / "added" / "file", root / "things" / "added" / "link")
    (root / "was-file").rmdir()
    (root / "was-file").symlink_to("things")


@dataclass(frozen=True, slots=True)
class Published:
    """An image that a registry has twice, and what umoci makes of it."""

    repository: str
    rootfs: Path

    def reference(self, pusher: str) -> str:
        """The image as pushed by docker or skopeo."""
        return f"{self.repository}-{pusher}:latest"


def publish(layout: str, name: str, host: str, docker: Callable[..., str], place: Path) -> Published:
    """Push the image of an OCI layout both ways, and let umoci unpack what docker pushed."""
    published = Published(f"{host}/{name}", place / name / "rootfs")
    copy(f"oci:{layout}", f"docker-archive:{place}/{name}.tar:{published.reference('docker')}")
    docker("load", "--input", f"{place}/{name}.tar")
    docker("push", "--quiet", published.reference("docker"))
    zstd = ("--format", "oci", "--dest-compress-format", "zstd")
    copy(f"oci:{layout}", f"docker://{published.reference('skopeo')}", *zstd)
    copy(f"docker://{published.reference('docker')}", f"oci:{place}/{name}-back:docker")
    run("umoci", "unpack", "--image", f"{place}/{name}-back:docker", str(place / name))
    return published


@pytest.fixture(scope="session")
def by_hand(registry_host: str, docker: Callable[..., str], peers_folder: Path) -> Published:
    """An image with every kind of entry, written here."""
    layers = [
        base_layer(),
        python_layer(("hashlib", "json", "os", "stat")),
        things_layer(),
        names_layer(),
        changes_layer(),
        again_layer(),
    ]
    layout = peers_folder / "layout-by-hand"
    write_layout(layers, layout, "1")
    return publish(f"{layout}:1", "by-hand", registry_host, docker, peers_folder)


@pytest.fixture(scope="session")
def by_umoci(by_hand: Published, registry_host: str, docker: Callable[..., str], peers_folder: Path) -> Published:
    """The image above with another layer, which `umoci repack` made by comparing two trees."""
    layout, bundle = peers_folder / "layout-by-umoci", peers_folder / "bundle"
    copy(f"docker://{by_hand.reference('docker')}", f"oci:{layout}:1")
    run("umoci", "unpack", "--image", f"{layout}:1", str(bundle))
    change_tree(bundle / "rootfs")
    run("umoci", "repack", "--image", f"{layout}:2", str(bundle))
    shutil.rmtree(bundle)
    return publish(f"{layout}:2", "by-umoci", registry_host, docker, peers_folder)


@pytest.fixture(scope="session")
def not_for_docker(registry_host: str, peers_folder: Path) -> Published:
    """An image that docker cannot load: sparse files, and a folder that became a file as umoci writes it."""
    place = peers_folder / "not-for-docker"
    source = place / "source"
    (source / "turns" / "below").mkdir(parents=True)
    (source / "turns" / "below" / "file").write_text("x")
    layers = [base_layer(), python_layer(("hashlib", "json", "os", "stat")), *sparse_layers(source)]
    write_layout(layers, place / "layout", "1")
    run("umoci", "unpack", "--image", f"{place}/layout:1", f"{place}/bundle")
    shutil.rmtree(place / "bundle/rootfs/turns")
    (place / "bundle/rootfs/turns").write_text("a file now")
    run("umoci", "repack", "--image", f"{place}/layout:2", f"{place}/bundle")
    published = Published(f"{registry_host}/not-for-docker", place / "unpacked/rootfs")
    zstd = ("--format", "oci", "--dest-compress-format", "zstd")
    copy(f"oci:{place}/layout:2", f"docker://{published.reference('skopeo')}", *zstd)
    run("umoci", "unpack", "--image", f"{place}/layout:2", f"{place}/unpacked")
    return published


@pytest.fixture(scope="session")
def images(by_hand: Published, by_umoci: Published) -> dict[str, Published]:
    """Both, made before the first test, since dockerd has mounts while it runs."""
    return {"by hand": by_hand, "by umoci": by_umoci}


@pytest.fixture
def engine(peers_folder: Path) -> Iterator[Engine]:
    """Lend an engine with a new store."""
    root = peers_folder / "store"
    with Engine(Settings(root=str(root))) as engine:
        yield engine
    shutil.rmtree(root)


# --- trees ------------------------------------------------------------------------------------------------------------


def tree_inside(engine: Engine, image: str) -> Tree:
    """The root as a process in a container sees it."""
    result = engine.run(image, [PYTHON, "-I", "-S", "-B", "-c", _WALK, "/", *_OURS], check=True)
    tree: Tree = json.loads(result.stdout_bytes)
    return tree


def tree_at(root: str, *skipped: str) -> Tree:
    """The same of a directory here."""
    command = [sys.executable, "-I", "-S", "-c", _WALK, root, *skipped]
    tree: Tree = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return tree


def differences(ours: Tree, theirs: Tree) -> list[str]:
    """One line for each fact that is not the same."""
    lines = [f"only ours: {name!r}" for name in sorted(ours.keys() - theirs.keys())]
    lines += [f"only umoci's: {name!r} {theirs[name]}" for name in sorted(theirs.keys() - ours.keys())]
    for name in sorted(ours.keys() & theirs.keys()):
        one, other = ours[name], theirs[name]
        lines += [
            f"{name!r} {fact}: ours {one.get(fact)}, umoci's {other.get(fact)}"
            for fact in sorted(one.keys() | other.keys())
            if one.get(fact) != other.get(fact)
        ]
    return lines


def manifest_of(reference: str) -> dict[str, Any]:
    """The manifest as the registry has it."""
    host, _, rest = reference.partition("/")
    name, _, tag = rest.rpartition(":")
    accepted = ", ".join(manifest for manifest, _ in _PUSHED_BY.values())
    with requests.Session() as session:
        session.trust_env = False
        answer = session.get(f"http://{host}/v2/{name}/manifests/{tag}", headers={"Accept": accepted}, timeout=10)
    manifest: dict[str, Any] = answer.json()
    return manifest


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pusher", _PUSHED_BY)
@pytest.mark.parametrize("made", ["by hand", "by umoci"])
def test_the_tree_is_the_one_that_umoci_unpacks(images, made, pusher, engine):
    """Whoever made the image and whoever pushed it, a container sees every fact of every file as umoci unpacks it."""
    published: Published = images[made]
    image = published.reference(pusher)
    manifest = manifest_of(image)
    assert manifest["mediaType"] == _PUSHED_BY[pusher][0]
    # (skopeo leaves a layer as it is when the registry has it already)
    assert _PUSHED_BY[pusher][1] in {layer["mediaType"] for layer in manifest["layers"]}
    engine.pull(image)
    ours, theirs = tree_inside(engine, image), tree_at(str(published.rootfs), *_OURS)
    assert len(ours) > 100
    ours["."]["mtime"] = theirs["."]["mtime"]  # of a container's root: its mount points have just been made in it
    # an empty PAX value means "delete" to Go's tar, so umoci drops an attribute without a value; the layer has it
    ours.get("things/tagged", {}).get("xattrs", {}).pop("user.empty", None)
    assert not differences(ours, theirs)


@pytest.mark.parametrize("made", ["by hand", "by umoci"])
def test_it_runs_the_same_whoever_pushed_it(images, made, engine):
    """A script prints the same in containers of both and in umoci's tree, and the image's environment is there."""
    published: Published = images[made]
    results = [
        engine.run(published.reference(pusher), script=f"echo $ANSWER; {_LISTING}", check=True) for pusher in _PUSHED_BY
    ]
    expected = run("chroot", str(published.rootfs), "/bin/sh", "-c", f"echo 42; {_LISTING}")
    assert [result.stdout for result in results] == [expected, expected]
    assert [result.stderr for result in results] == ["", ""]


def test_what_only_skopeo_can_push_is_unpacked_as_by_umoci(not_for_docker, engine):
    """Sparse files have their holes read as zeros and still take no room; a folder that became a file is one."""
    image = not_for_docker.reference("skopeo")
    engine.pull(image)
    ours, theirs = tree_inside(engine, image), tree_at(str(not_for_docker.rootfs), *_OURS)
    ours["."]["mtime"] = theirs["."]["mtime"]
    assert not differences(ours, theirs)
    blocks = engine.run(image, ["stat", "-c", "%b", "/sparse-0.1", "/sparse-1.0"], check=True).stdout.split()
    assert all(int(count) * 512 < 1 << 20 for count in blocks)
