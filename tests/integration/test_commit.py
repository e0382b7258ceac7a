"""`commit`: the image runs here, in every tier, and is what other programs make of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.testing.rootfs import PYTHON
from tests.integration.fixtures import OWN_TIER
from tests.integration.test_crash import sweep
from tests.integration.test_files import nbcontainer_as
from tests.integration.tiers import Raised

if TYPE_CHECKING:
    from tests.integration.tiers import Tier

_SCRIPT = """\
mkdir -p /work/sub
printf one > /work/x
ln /work/x /work/twin
ln -s x /work/link
mkfifo /work/fifo
rm /bin/tail /etc/group
rm -r /home
mkdir /home
printf new > /home/fresh
chmod 1770 /work/sub
touch -d @1600000000.123456789 /work/x
"""
_LOOK = "cat /work/link; ls /bin/tail 2>/dev/null; ls -A /home; test -p /work/fifo && echo fifo; stat -c '%a %h' /work/sub /work/x"


def document(tier: Tier, digest: object) -> dict[str, Any]:
    """A manifest or config of the store."""
    found: dict[str, Any] = json.loads((Path(tier.store) / "blobs" / str(digest).replace(":", "/")).read_bytes())
    return found


def config_of(tier: Tier, reference: str) -> dict[str, Any]:
    """An image's config as it is stored."""
    (image,) = (each for each in tier.driver.call("images") if each.reference == reference)
    return document(tier, image.id)


def test_commit_and_run(tier: Tier) -> None:
    """An image made of an ended container has its files, settings and history, and the base stays as it was."""
    before = config_of(tier, tier.image)
    assert tier.sh(_SCRIPT, name="box", environment=("SECRET=word",)).ok
    try:
        made = tier.driver.call(
            "commit",
            "box",
            "class/made:2",
            message="with files",
            author="Ada",
            changes=["ENV GREETING='hi there' PATH=$PATH:/work", "WORKDIR /work", 'CMD ["cat", "x"]', "LABEL a=b"],
        )
        try:
            assert made.image.reference == "class/made:2"
            config = config_of(tier, "class/made:2")
            assert tier.driver.run(image="class/made:2").stdout == "one"
            expected = "one" + "fresh\nfifo\n1770 2\n644 2\n"
            assert tier.driver.run("sh", "-c", _LOOK, image="class/made:2").stdout == expected
            assert tier.driver.run("sh", "-c", "echo $GREETING $PATH; pwd", image="class/made:2").stdout == (
                "hi there /bin:/usr/bin:/work\n/work\n"
            )
            assert not [entry for entry in config["config"]["Env"] if "SECRET" in entry]
            assert config["config"]["Labels"] == {"a": "b"}
            newest = tier.driver.call("history", "class/made:2")[0]
            assert (newest.entry.comment, newest.entry.author) == ("with files", "Ada")
            assert newest.layer == made.layer
            assert config["rootfs"]["diff_ids"][:-1] == before["rootfs"]["diff_ids"]
            assert bool(made.notices) == (not tier.has_users)
        finally:
            tier.driver.call("remove_image", "class/made:2")
        assert config_of(tier, tier.image) == before
        assert tier.run("ls", "/bin/tail").ok
    finally:
        tier.driver.call("remove_container", "box")


def test_commit_of_a_commit(tier: Tier) -> None:
    """A container of a committed image can be committed; without a name an image goes by its id."""
    assert tier.sh("echo 1 > /first", name="box").ok
    one = tier.driver.call("commit", "box")
    tier.driver.call("remove_container", "box")
    assert one.image.reference.startswith("localhost/untagged@sha256:")
    name = one.image.id.hex[:12]
    try:
        assert tier.driver.run("sh", "-c", "echo 2 > /second; rm /first", image=name, name="box").ok
        two = tier.driver.call("commit", "box", "second")
        assert tier.driver.run("sh", "-c", "ls -d /first /second", image="second").stdout == "/second\n"
        layers, base = (config_of(tier, name)["rootfs"]["diff_ids"] for name in ("second:latest", tier.image))
        assert layers[: len(base)] == base
        assert len(layers) == len(base) + 2
        assert two.image.id != one.image.id
        tier.driver.call("remove_container", "box")
        tier.driver.call("remove_image", "second")
    finally:
        tier.driver.call("remove_image", name)


def test_commit_while_it_runs(tier: Tier) -> None:
    """A container of another notebook that never stops writing becomes a whole image; the person is told that it ran."""
    write = "while :; do for n in 1 2 3 4 5; do echo $n > /busy/$n; rm -f /busy/$n.old; mv /busy/$n /busy/$n.old; done; done"
    with tier.spawn() as keeper:
        keeper.begin_run(script=f"mkdir /busy; echo whole > /still; echo ready; {write}", name="box", remove=True)
        keeper.wait_for_output(b"ready")
        for _ in range(3):
            made = tier.driver.call("commit", "box", "live")
            assert any("was running" in notice for notice in made.notices)
            assert tier.driver.run("cat", "/still", image="live").stdout == "whole\n"
        keeper.interrupt()
        keeper.finish()
    tier.driver.call("remove_image", "live")


def test_commit_of_a_container_held_still(tier: Tier) -> None:
    """With pause nothing is written meanwhile, so two files that grow together are alike; afterwards it goes on."""
    script = "touch /root/a /root/b; echo ready; while :; do echo x >> /root/a; echo x >> /root/b; done"
    with tier.spawn() as keeper:
        keeper.begin_run(script=script, name="busy", remove=True)
        keeper.wait_for_output(b"ready")
        try:
            made = tier.driver.call("commit", "busy", "class/still", pause=True)
        except Raised as raised:  # an ordinary user with cgroups v1
            assert not tier.privileged
            assert "cannot be paused" in str(raised)
        else:
            assert not any("was running" in notice for notice in made.notices)
            first, second = tier.run(script="wc -l < /root/a; wc -l < /root/b", image="class/still").stdout.split()
            assert int(first) - int(second) in {0, 1}
            tier.driver.call("remove_image", "class/still")
        (row,) = tier.driver.call("containers")
        assert not row.paused
        tier.driver.call("kill", "busy")
        keeper.finish()


def test_commit_refused(tier: Tier) -> None:
    """What cannot be is said before anything is stored."""
    assert tier.run("true", name="box").ok
    blobs = os.listdir(f"{tier.store}/blobs/sha256")
    try:
        for name, changes, sentence in (
            ("host", (), "embedded image"),
            ("UPPER", (), "lower case"),
            ("a@sha256:" + "0" * 64, (), "has a digest"),
            ("a", ("RUN ls",), "starts with 'RUN'"),
            ("a", ("ENV",), "says nothing after ENV"),
            ("a", ("EXPOSE 99999",), "is not a port"),
        ):
            with pytest.raises(Raised, match=sentence) as caught:
                tier.driver.call("commit", "box", name, changes=changes)
            assert caught.value.is_ours
        assert os.listdir(f"{tier.store}/blobs/sha256") == blobs
        done = nbcontainer_as(tier, "commit", "-x", "box")
        assert done.returncode == 2
    finally:
        tier.driver.call("remove_container", "box")


def test_commit_without_changes(tier: Tier) -> None:
    """A container that changed nothing gives a layer of nothing, as docker does, and an image that runs."""
    assert tier.run("true", name="box").ok
    try:
        made = tier.driver.call("commit", "box", "same")
        assert made.size == 1024
        assert tier.driver.run("echo", "on", image="same").stdout == "on\n"
        tier.driver.call("remove_image", "same")
    finally:
        tier.driver.call("remove_container", "box")


def test_base_that_is_gone(tier: Tier) -> None:
    """Without the image it stood on a container cannot become one, and its files can still be had."""
    root = str(tier.folder("store"))
    with tier.spawn(root=root) as engine:
        engine.pull(tier.image)
        assert engine.run("sh", "-c", "echo kept > /x", name="box").ok
        engine.call("remove_image", tier.image, force=True)
        with pytest.raises(Raised, match="is not here any more"):
            engine.call("commit", "box", "a")
        here = tier.folder("here")
        engine.call("copy_from", "box", "/x", str(here))
        assert (here / "x").read_text() == "kept\n"
        engine.call("remove_container", "box")


# --- what others make of it -------------------------------------------------------------------------------------------

_WALK = """\
import json, os, stat, sys
top, found = os.fsencode(sys.argv[1]), {}

def ends(path):
    with open(path, "rb") as file:
        start = file.read(50000)
        file.seek(-min(50000, os.fstat(file.fileno()).st_size), 2)
        return (start + file.read()).hex()

for folder, folders, files in os.walk(top):
    for each in folders + files:
        path = folder + b"/" + each
        name = os.fsdecode(os.path.relpath(path, top))
        if name.split("/")[0] in ("proc", "sys", "dev") or name in ("etc", "etc/hosts", "etc/hostname", "etc/resolv.conf"):
            continue
        status = os.lstat(path)
        fact = [status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns]
        if stat.S_ISLNK(status.st_mode):
            fact.append(os.fsdecode(os.readlink(path)))
        if stat.S_ISREG(status.st_mode):
            fact += [status.st_size, status.st_nlink, ends(path)]
        fact.append({key: os.getxattr(path, key, follow_symlinks=False).hex() for key in os.listxattr(path, follow_symlinks=False)})
        found[name] = fact
print(json.dumps(found))
"""


def write_layout(store: str, tag: str, manifest_digest: str, target: Path) -> None:
    """An OCI layout of an image in the store (image-spec, image-layout.md)."""
    blobs = target / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def take(digest: str) -> bytes:
        data = (Path(store) / "blobs" / digest.replace(":", "/")).read_bytes()
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return data

    manifest = json.loads(take(manifest_digest))
    for each in (manifest["config"], *manifest["layers"]):
        take(each["digest"])
    described = {
        "mediaType": manifest["mediaType"],
        "digest": manifest_digest,
        "size": (blobs / manifest_digest.partition(":")[2]).stat().st_size,
        "annotations": {"org.opencontainers.image.ref.name": tag},
    }
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))


@OWN_TIER
@pytest.mark.root
@pytest.mark.peers("umoci", "skopeo")
def test_umoci_unpacks_the_same_tree(tier: Tier, tmp_path: Path) -> None:
    """What umoci makes the image is the tree that a container of it has, attribute by attribute; skopeo takes it for sound."""
    sparse = f"{PYTHON} - <<'END'\nimport os\nfd = os.open('/work/sparse', os.O_CREAT | os.O_RDWR)\n"
    sparse += "os.truncate(fd, 50 << 20)\nos.pwrite(fd, b'here', 20 << 20)\n"
    sparse += "os.setxattr('/work/x', 'user.note', b'kept')\nos.mkdir('/work/' + 'd' * 255)\n"
    sparse += "os.close(os.open('/work/new\\nline', os.O_CREAT))\nos.chown('/work/link', 1000, 1000, follow_symlinks=False)\nEND\n"
    script = f"{_SCRIPT}{sparse}chown 1000:1000 /work/sub; chmod 4711 /work/x"
    assert tier.sh(script, name="box").ok
    result = tier.driver.call("commit", "box", "made")
    assert result.notices == ()
    try:
        layout = tmp_path / "layout"
        write_layout(tier.store, "made", str(result.image.digest), layout)
        subprocess.run(["umoci", "unpack", "--image", f"{layout}:made", str(tmp_path / "bundle")], check=True)
        theirs = subprocess.run(
            [shutil.which("python3") or "python3", "-c", _WALK, str(tmp_path / "bundle" / "rootfs")],
            check=True,
            capture_output=True,
        )
        ours = tier.driver.run(PYTHON, "-c", _WALK, "/", image="made")
        expected = tier.run(PYTHON, "-c", _WALK, "/")
        assert ours.ok, ours
        mine, his = json.loads(ours.stdout), json.loads(theirs.stdout)
        assert mine.keys() == his.keys()
        assert {name: (mine[name], his[name]) for name in mine if mine[name] != his[name]} == {}
        assert set(mine) - set(json.loads(expected.stdout)) > {"work/x", "work/sparse", "work/new\nline"}
        subprocess.run(
            ["skopeo", "--insecure-policy", "copy", f"oci:{layout}:made", f"dir:{tmp_path / 'copied'}"], check=True
        )
        tier.driver.call("export", "box", str(tmp_path / "root.tar"))
        with tarfile.open(tmp_path / "root.tar") as archive:
            exported = {member.name: member for member in archive.getmembers()}
        assert {name for name in exported if name.startswith("work/")} == {n for n in mine if n.startswith("work/")}
    finally:
        tier.driver.call("remove_image", "made")
        tier.driver.call("remove_container", "box")


@OWN_TIER
def test_what_a_killed_commit_leaves(tier: Tier) -> None:
    """A commit killed in the middle leaves no image and nothing that stays: the next collection takes it away."""
    root = str(tier.folder("store"))
    with tier.spawn(root=root) as engine:
        engine.pull(tier.image)
        fill = f'{PYTHON} -c \'import os; f = open("/big", "wb"); [f.write(os.urandom(1 << 20)) for _ in range(64)]\''
        assert engine.run("sh", "-c", fill, name="box").ok
        with tier.spawn(root=root) as other:
            other.call("diff", "box")
            other.begin("call", method="commit", arguments=("box", "half"), options={})
            while not any(name.startswith("draft-") for name in os.listdir(f"{root}/ingest")):
                pass
            other.kill()
        sweep(tier)
        assert [each.reference for each in engine.call("images")] == ["host", tier.image]
        assert engine.call("commit", "box", "whole").image.reference == "whole:latest"
        assert engine.run("sh", "-c", "stat -c %s /big", image="whole").stdout == f"{64 << 20}\n"
        engine.call("remove_container", "box")
        engine.call("remove_image", "whole")
