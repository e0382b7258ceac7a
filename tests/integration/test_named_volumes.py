"""A person keeps files in volumes: made by name, by an image's VOLUME, shared, filled, seen by every verb, removed."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.errors import Conflict, InvalidImage, InvalidOption, UnsupportedHost, VolumeNotFound
from nbcontainer.model import RunOptions, ServiceOptions, TmpfsMount, VolumeMount
from nbcontainer.testing.rootfs import root_layer
from tests.integration.tiers import Raised, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nbcontainer.testing.registry import InProcessRegistry
    from tests.integration.tiers import Driver, Tier


def filled_layer() -> bytes:
    """A layer with a folder that is worth copying: owners, modes, attributes, links of both kinds, a hole."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, kind: bytes, *, mode: int, owner: int = 0, data: bytes = b"", link: str = "") -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode, entry.uid, entry.gid = kind, mode, owner, owner
            entry.size, entry.linkname, entry.mtime = len(data), link, 1_000_000_000
            if name.endswith("first"):
                entry.pax_headers = {"SCHILY.xattr.user.note": "kept"}
            tar.addfile(entry, io.BytesIO(data))

        add("data", tarfile.DIRTYPE, mode=0o2750, owner=1000)
        add("data/first", tarfile.REGTYPE, mode=0o640, owner=1000, data=b"first\n")
        add("data/again", tarfile.LNKTYPE, mode=0o640, owner=1000, link="data/first")
        add("data/link", tarfile.SYMTYPE, mode=0o777, link="/etc/passwd")
        add("data/deep/er", tarfile.DIRTYPE, mode=0o700, owner=1000)
        add("data/deep/er/file", tarfile.REGTYPE, mode=0o4755, data=b"x" * 10_000)
        add("empty", tarfile.DIRTYPE, mode=0o711)
        add("file", tarfile.REGTYPE, mode=0o644, data=b"a file\n")
        add("away", tarfile.SYMTYPE, mode=0o777, link="/data")
        add("nowhere", tarfile.SYMTYPE, mode=0o777, link="/not/there")
    return stream.getvalue()


@pytest.fixture(scope="session")
def images(registry: InProcessRegistry) -> dict[str, str]:
    """Lend images with files at /data: one that says nothing of it, one with VOLUMEs, one with a hopeless VOLUME."""
    layers = [root_layer(), filled_layer()]
    found = {}
    for name, volumes in (
        ("plain", []),
        ("volumes", ["/data", "/empty/"]),
        ("everything", ["/"]),
        ("proc", ["/proc/x"]),
    ):
        config = {"Env": ["PATH=/bin"], "Labels": {"of": "image"}, "Volumes": {path: {} for path in volumes}}
        registry.add_image(f"kept-{name}", "latest", layers=layers, compression="none", config=config)
        found[name] = registry.reference(f"kept-{name}")
    return found


@pytest.fixture
def volumes(tier: Tier) -> Iterator[Path]:
    """Lend the folder of volumes, and fail the test that leaves one behind."""
    yield (folder := _folder(tier))
    left = _names(tier)
    for row in tier.driver.call("containers", everything=True):
        tier.driver.call("remove_container", row.name or row.id, force=True)
    for name in left:
        tier.driver.call("remove_volume", name)
    assert left == []
    assert not folder.exists() or os.listdir(folder) == []


def _folder(tier: Tier) -> Path:
    return Path(tier.store) / "volumes"


def _names(tier: Tier) -> list[str]:
    return [volume.name for volume in tier.driver.call("volumes")]


def at(target: str, name: str = "", **options: Any) -> list[VolumeMount]:
    """One volume of the store."""
    return [VolumeMount(target=target, name=name, **options)]


def remove(tier: Tier, *names: str) -> None:
    """Take volumes away again."""
    for name in names:
        tier.driver.call("remove_volume", name)


LOOK = "stat -c '%n %a %u %h %F' /data /data/first /data/again /data/link /data/deep/er /data/deep/er/file"


def looked(tier: Tier, image: str, script: str = LOOK, **options: Any) -> str:
    """What a script finds, with nothing on standard error."""
    return tier.sh(script, image=image, **options).stdout


# --- keeping ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("volumes")
def test_files_outlive_their_container(tier: Tier) -> None:
    """What one container writes into a named volume the next one reads, in another notebook, too."""
    tier.sh("echo kept > /keep/file; chmod 600 /keep/file", mounts=at("/keep", "results"))
    assert tier.sh("cat /keep/file; stat -c %a:%u /keep/file", mounts=at("/keep", "results")).stdout == "kept\n600:0\n"
    with tier.spawn() as other:
        assert other.run(script="cat /else/file", mounts=at("/else", "results")).stdout == "kept\n"
    assert _names(tier) == ["results"]
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_read_only_volume(tier: Tier) -> None:
    """A read-only volume can be read and in no way changed."""
    tier.sh("echo kept > /keep/file", mounts=at("/keep", "results"))
    script = "cat /keep/file; for try in 'echo x > /keep/new' 'rm /keep/file' 'chmod 777 /keep'; do sh -c \"$try\"; done; true"
    result = tier.run(script=script, mounts=at("/keep", "results", read_only=True))
    assert result.stdout == "kept\n"
    assert result.stderr.count("Read-only file system") == 3
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_users_of_a_volume(tier: Tier) -> None:
    """Owners are kept apart in a volume, from one container to the next."""
    if not tier.has_users:
        pytest.skip("needs several ids")
    tier.sh("echo mine > /keep/file; chown 1000:50 /keep/file; chmod 600 /keep/file", mounts=at("/keep", "results"))
    result = tier.run("cat", "/keep/file", user="alice", mounts=at("/keep", "results"))
    assert result.stdout == "mine\n"
    assert tier.run("cat", "/keep/file", user="daemon", mounts=at("/keep", "results")).exit_code == 1
    assert tier.sh("stat -c %u:%g /keep/file", mounts=at("/keep", "results")).stdout == "1000:50\n"
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_two_containers_at_once(tier: Tier) -> None:
    """Two notebooks' containers see each other's files in a volume while they run."""
    with tier.spawn() as other:
        other.begin_run(
            script="echo ready; while ! test -e /keep/go; do sleep 0.02; done; cat /keep/go",
            mounts=at("/keep", "shared"),
        )
        other.wait_for_output(b"ready")
        tier.sh(
            "echo went > /keep/new; mv /keep/new /keep/go", mounts=at("/there", "other-one") + at("/keep", "shared")
        )
        assert other.finish()["exit_code"] == 0
        assert other.output["stdout"] == b"ready\nwent\n"
    remove(tier, "shared", "other-one")


# --- filling ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("volumes")
def test_filled_with_what_the_image_has(tier: Tier, images: dict[str, str]) -> None:
    """An empty volume gets the image's files on its first use: owners, modes, attributes and links as they are."""
    plain = looked(tier, images["plain"])
    assert looked(tier, images["plain"], mounts=at("/data", "filled")) == plain
    script = f"{LOOK}; cat /data/first; readlink /data/link; rm /data/again"
    found = looked(tier, images["plain"], script, mounts=at("/data", "filled"))
    assert found == f"{plain}first\n/etc/passwd\n"
    assert "/data 2750 " in plain
    assert "/data/deep/er/file 4755" in plain
    assert looked(tier, images["plain"], "ls /data", mounts=at("/data", "filled")) == "deep\nfirst\nlink\n"
    remove(tier, "filled")


@pytest.mark.usefixtures("volumes")
def test_attributes_are_copied(tier: Tier, images: dict[str, str]) -> None:
    """Extended attributes come along."""
    if not tier.privileged:
        pytest.skip("only root can look at the files from outside")
    tier.sh("true", image=images["plain"], mounts=at("/data", "filled"))
    assert os.getxattr(_folder(tier) / "filled/_data/first", "user.note") == b"kept"
    remove(tier, "filled")


@pytest.mark.usefixtures("volumes")
def test_not_filled(tier: Tier, images: dict[str, str]) -> None:
    """Nothing is copied where that was forbidden, into a part of a volume, over files, or where the image has nothing."""
    image = images["plain"]
    assert looked(tier, image, "ls /data", mounts=at("/data", "bare", copy=False)) == ""
    tier.sh("mkdir /keep/sub", mounts=at("/keep", "parts"))
    assert looked(tier, image, "ls /data", mounts=at("/data", "parts", subpath="sub")) == ""
    assert looked(tier, image, "ls /data", mounts=at("/data", "parts")) == "sub\n"
    assert looked(tier, image, "ls /new/place; stat -c %a /new/place", mounts=at("/new/place", "fresh")) == "755\n"
    assert looked(tier, image, "stat -c %a /empty", mounts=at("/empty", "hollow")) == "711\n"
    remove(tier, "bare", "parts", "fresh", "hollow")


@pytest.mark.usefixtures("volumes")
def test_filled_through_a_link(tier: Tier, images: dict[str, str]) -> None:
    """What is copied is what lies where the volume will be mounted, links of the image followed inside it."""
    script = "cat /away/first; ls /data | wc -l; readlink /away"
    assert looked(tier, images["plain"], script, mounts=at("/away", "filled")) == "first\n4\n/data\n"
    remove(tier, "filled")


@pytest.mark.usefixtures("volumes")
def test_settings_of_a_container_in_a_volume(tier: Tier) -> None:
    """A volume over /etc keeps the image's files, and each container's own name and hosts are shown in it."""
    script = "cat /etc/hostname; head -1 /etc/hosts; echo kept > /etc/mine"
    for name in ("one", "two"):
        found = tier.sh(script, hostname=name, mounts=at("/etc", "settings")).stdout
        assert found.splitlines() == [name, "127.0.0.1\tlocalhost"]
    found = tier.sh(
        "cat /x/mine; wc -c < /x/hosts; head -1 /x/passwd", mounts=at("/x", "settings", read_only=True)
    ).stdout
    assert found.splitlines() == ["kept", "0", "root:x:0:0:root:/root:/bin/sh"]
    remove(tier, "settings")


@pytest.mark.usefixtures("volumes")
def test_filled_from_the_machine_itself(tier: Tier) -> None:
    """On the host image a volume is filled with what this machine has there, and the machine's files stay as they are."""
    place = tier.folder("hosted") if tier.user else Path("/etc/default")  # /tmp is hidden
    if tier.user:
        (place / "file").write_text("mine\n")
    names = sorted(os.listdir(place))
    script = f"ls -A {place}; rm {place}/{names[0]}; touch {place}/new-here"
    found = tier.sh(script, image="host", mounts=at(str(place), "hosted")).stdout
    assert sorted(found.splitlines()) == names
    assert sorted(os.listdir(place)) == names
    kept = tier.sh("ls -A /keep", mounts=at("/keep", "hosted")).stdout.splitlines()
    assert sorted(kept) == sorted([*names[1:], "new-here"])
    remove(tier, "hosted")


@pytest.mark.parametrize(
    ("target", "words"),
    [("/file", "/file is a file in the image"), ("/nowhere", "a symbolic link there that leads nowhere")],
)
def test_places_that_cannot_be(tier: Tier, images: dict[str, str], volumes: Path, target: str, words: str) -> None:
    """A volume on a file, or on a link that leads nowhere, is refused by what is wrong; what was made for it is gone."""
    with pytest.raises(Raised, match=words):
        tier.run("true", image=images["plain"], mounts=at(target))
    wait_until(lambda: os.listdir(volumes) == [], what="volumes made for nothing are gone")
    assert tier.driver.call("containers", everything=True) == ()


@pytest.mark.usefixtures("volumes")
def test_running_container_keeps_its_empty_volume(tier: Tier, images: dict[str, str]) -> None:
    """An empty volume that a running container has is not filled: its folder would be another one then."""
    with tier.spawn() as other:
        other.begin_run(
            script="echo ready; while ! test -e /keep/go; do sleep 0.02; done", mounts=at("/keep", "shared")
        )
        other.wait_for_output(b"ready")
        script = "ls /data; touch /data/go"
        assert looked(tier, images["plain"], script, mounts=at("/data", "shared")) == ""
        assert other.finish()["exit_code"] == 0
    remove(tier, "shared")


@pytest.mark.usefixtures("volumes")
def test_many_at_once_fill_it_once(tier: Tier, images: dict[str, str]) -> None:
    """Notebooks that use a new volume at the same time make it once, and each sees all of it."""
    failed = []

    def work(driver: Driver) -> None:
        for _ in range(4):
            result = driver.run(script="ls /data | wc -l", image=images["plain"], mounts=at("/data", "shared"))
            if result.stdout != "4\n":
                failed.append(result)

    with tier.spawn() as first, tier.spawn() as second:
        workers = [threading.Thread(target=work, args=(driver,)) for driver in (first, second, tier.driver)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert failed == []
    remove(tier, "shared")


# --- VOLUME, and volumes of a container's own ------------------------------------------------------------------------


def test_volumes_of_an_image(tier: Tier, images: dict[str, str], volumes: Path) -> None:
    """Each VOLUME is a volume of its own, filled; it goes with a container that is thrown away."""
    script = f"{LOOK}; touch /data/new; for each in /data /empty /bin; do stat -f -c %T $each; done; stat -c %a /empty"
    stdout = looked(tier, images["volumes"], script)
    plain = looked(tier, images["plain"])
    assert stdout.startswith(plain)
    kinds = stdout.removeprefix(plain).split()
    assert kinds[0] == kinds[1] != "overlayfs"
    assert kinds[2:] == ["overlayfs", "711"]
    assert os.listdir(volumes) == []
    assert looked(tier, images["volumes"], "ls /data") == "again\ndeep\nfirst\nlink\n"


@pytest.mark.usefixtures("volumes")
def test_something_else_where_the_image_has_a_volume(tier: Tier, images: dict[str, str]) -> None:
    """A folder, a memory file system or a named volume at a VOLUME's place is used instead of a new one."""
    folder = tier.folder("work")
    script = "ls /data; stat -f -c %T /empty"
    options = {"volumes": [(folder, "/data", "rw")], "tmpfs": (TmpfsMount(target="/empty"),), "name": "work"}
    assert looked(tier, images["volumes"], script, **options) == "tmpfs\n"
    assert _names(tier) == []
    tier.driver.call("remove_container", "work")


@pytest.mark.usefixtures("volumes")
def test_volumes_stay_with_a_kept_container(tier: Tier, images: dict[str, str]) -> None:
    """A kept container has its volumes when it is started again; rm leaves them, rm -v takes them away."""
    script = "echo x >> /data/count; ls /data | wc -l; cat /data/count"
    assert looked(tier, images["volumes"], script, name="work") == "5\nx\n"
    assert tier.driver.start("work").stdout == "5\nx\nx\n"
    names = _names(tier)
    assert len(names) == 2
    detail = tier.driver.call("inspect", "work")
    assert sorted(each["name"] for each in detail.record["volumes"]) == names
    tier.driver.call("remove_container", "work")
    assert _names(tier) == names
    pruned = tier.driver.call("prune_volumes")
    assert sorted(pruned.names) == names
    looked(tier, images["volumes"], script, name="work", mounts=at("/named", "named"))
    tier.driver.call("remove_container", "work", volumes=True)
    assert _names(tier) == ["named"]
    remove(tier, "named")


@pytest.mark.usefixtures("volumes")
def test_remove_option_takes_new_volumes_along(tier: Tier, images: dict[str, str]) -> None:
    """A named container with --rm goes with the volumes that were made for it, not with others."""
    looked(tier, images["volumes"], "true", name="work", remove=True, mounts=at("/named", "named"))
    assert _names(tier) == ["named"]
    remove(tier, "named")


@pytest.mark.parametrize("which", ["everything", "proc"])
def test_volume_that_cannot_be(tier: Tier, images: dict[str, str], volumes: Path, which: str) -> None:
    """A VOLUME over everything or in /proc is refused, and nothing is made."""
    with pytest.raises(Raised, match="the image's VOLUME") as raised:
        tier.run("true", image=images[which])
    assert raised.value.is_a(InvalidImage)
    assert not volumes.exists() or os.listdir(volumes) == []


@pytest.mark.usefixtures("volumes")
def test_volume_without_a_name(tier: Tier) -> None:
    """``-v /path`` is a new volume each time."""
    for _ in range(2):
        assert tier.sh("ls /keep; touch /keep/x", mounts=at("/keep")).stdout == ""
    assert _names(tier) == []


def test_build_leaves_volumes_in_the_image(tier: Tier, images: dict[str, str], volumes: Path) -> None:
    """A RUN that changes files where the image has a VOLUME changes the image; no volume is made."""
    tier.driver.build(f"FROM {images['volumes']}\nRUN echo built > /data/built\n", "built-on-volume")
    assert not volumes.exists() or os.listdir(volumes) == []
    assert looked(tier, "built-on-volume", "cat /data/built; ls /data | wc -l") == "built\n5\n"
    tier.driver.call("remove_image", "built-on-volume")


def test_volumes_of_containers_on_behind(tier: Tier, images: dict[str, str], volumes: Path) -> None:
    """A container on behind has its volumes filled; with --rm those made for it go with it, others stay."""
    script = "ls /data | wc -l > /keep/count; echo ready; while ! test -e /keep/go; do sleep 0.02; done"
    for remove_it in (True, False):
        options = RunOptions(
            name="web", remove=remove_it or None, service=ServiceOptions(), volumes=tuple(at("/keep", "results"))
        )
        tier.driver.call("launch", images["volumes"], (), options=options, script=script)
        wait_until(lambda: tier.driver.call("logs", "web"), what="it is at work")
        assert len(os.listdir(volumes)) == 3
        with pytest.raises(Raised, match="in use by container web"):
            tier.driver.call("remove_volume", "results")
        assert tier.sh("cat /keep/count; touch /keep/go", mounts=at("/keep", "results")).stdout == "4\n"
        if remove_it:
            wait_until(lambda: os.listdir(volumes) == ["results"], what="what was made for it is gone")
            tier.sh("rm /keep/go", mounts=at("/keep", "results"))
        else:
            assert tier.driver.call("wait", "web").exit_code == 0
    assert len(os.listdir(volumes)) == 3
    tier.driver.call("remove_container", "web", volumes=True)
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_volumes_of_a_container_on_behind_that_cannot_start(tier: Tier, images: dict[str, str]) -> None:
    """What was made for a container without a name that cannot be started is taken back."""
    options = RunOptions(service=ServiceOptions())
    with pytest.raises(Raised, match="nonesuch"):
        tier.driver.call("launch", images["volumes"], ("nonesuch",), options=options)
    wait_until(lambda: not tier.driver.call("containers", everything=True), what="it is gone")
    wait_until(lambda: not _names(tier), what="its volumes are gone")


# --- order and parts -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("volumes")
def test_volumes_in_each_other(tier: Tier) -> None:
    """A folder is mounted before what lies in it, whatever the order it was asked in."""
    folder = tier.folder("work")
    (folder / "file").write_text("mine\n")
    mounts = at("/keep/deep/er", "inner") + at("/keep", "outer")
    script = "touch /keep/deep/er/inner /keep/outer; cat /keep/deep/mine/file"
    assert tier.sh(script, mounts=mounts, volumes=[(folder, "/keep/deep/mine", "ro")]).stdout == "mine\n"
    assert (
        tier.sh("ls /a /b", mounts=at("/a", "inner") + at("/b", "outer")).stdout == "/a:\ninner\n\n/b:\ndeep\nouter\n"
    )
    remove(tier, "inner", "outer")


@pytest.mark.usefixtures("volumes")
def test_part_of_a_volume(tier: Tier) -> None:
    """A folder or file of a volume can be shown alone; one that is not there is named."""
    tier.sh("mkdir -p /keep/a/b; echo x > /keep/a/b/file", mounts=at("/keep", "parts"))
    assert tier.sh("ls /part", mounts=at("/part", "parts", subpath="a/b/")).stdout == "file\n"
    assert tier.sh("cat /part", mounts=at("/part", "parts", subpath="a/b/file")).stdout == "x\n"
    with pytest.raises(Raised, match="volume parts has no a/c; make it first"):
        tier.run("true", mounts=at("/part", "parts", subpath="a/c"))
    for subpath in ("../parts", "/a", "a/../.."):
        with pytest.raises(Raised, match="must be a path below it") as raised:
            tier.run("true", mounts=at("/part", "parts", subpath=subpath))
        assert raised.value.is_a(InvalidOption)
    remove(tier, "parts")


def test_two_mounts_of_one_place(tier: Tier, volumes: Path) -> None:
    """Two mounts of one place contradict each other; the volumes made for them are not left."""
    with pytest.raises(Raised, match="/keep is named by two mounts"):
        tier.run("true", mounts=at("/keep", "one") + at("/keep/", "two"))
    assert os.listdir(volumes) == []


# --- other verbs -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("volumes")
def test_removing_what_is_used(tier: Tier) -> None:
    """A volume that a container names, running or not, is not removed, and the refusal names the container."""
    tier.sh("touch /keep/x", mounts=at("/keep", "results"), name="work")
    with pytest.raises(Raised, match=r"volume results is in use by container work; remove it first") as raised:
        tier.driver.call("remove_volume", "results")
    assert raised.value.is_a(Conflict)
    assert tier.driver.call("prune_volumes", everything=True).names == ()
    (row,) = tier.driver.call("volumes")
    assert row.used_by == ("work",)
    tier.driver.call("remove_container", "work")
    assert tier.driver.call("prune_volumes").names == ()
    assert tier.driver.call("prune_volumes", everything=True).names == ("results",)
    with pytest.raises(Raised) as raised:
        tier.driver.call("remove_volume", "results")
    assert raised.value.is_a(VolumeNotFound)


@pytest.mark.usefixtures("volumes")
def test_removing_what_others_own(tier: Tier) -> None:
    """A volume with folders that are closed to us, of users who are not us, goes all the same."""
    owner = "chown -R 1000:1000 /keep; " if tier.has_users else ""
    tier.sh(
        f"mkdir -p /keep/a/b; touch /keep/a/b/c; {owner}chmod 000 /keep/a/b /keep/a /keep", mounts=at("/keep", "closed")
    )
    (row,) = tier.driver.call("volumes")
    assert row.name == "closed"
    remove(tier, "closed")
    assert os.listdir(_folder(tier)) == []


@pytest.mark.usefixtures("volumes")
def test_exec_and_files(tier: Tier) -> None:
    """``exec`` and ``cp`` see a volume while the container runs and when it has ended; ``diff`` tells of the place only."""
    folder = tier.folder("copies")
    (folder / "mine").write_text("mine\n")
    with tier.spawn() as driver:
        driver.begin_run(
            script="echo x > /keep/file; echo ready; sleep 1000", mounts=at("/keep", "results"), name="work"
        )
        driver.wait_for_output(b"ready")
        with tier.spawn() as visitor:
            assert visitor.exec("work", "cat", "/keep/file").stdout == "x\n"
        tier.driver.call("copy_to", str(folder / "mine"), "work", "/keep/running")
        tier.driver.call("stop", "work", grace=0.2)
        driver.finish()
    tier.driver.call("copy_from", "work", "/keep/running", str(folder / "back"))
    assert (folder / "back").read_text() == "mine\n"
    tier.driver.call("copy_to", str(folder / "mine"), "work", "/keep/ended")
    assert tier.sh("ls /keep", mounts=at("/keep", "results")).stdout == "ended\nfile\nrunning\n"
    assert [change.path for change in tier.driver.call("diff", "work")] == ["/keep"]
    tier.driver.call("export", "work", str(folder / "all.tar"))
    with tarfile.open(folder / "all.tar") as tar:
        assert [name for name in tar.getnames() if name.startswith("keep")] == ["keep"]
    tier.driver.call("remove_container", "work")
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_labels_and_filters(tier: Tier, images: dict[str, str]) -> None:
    """A container has the image's labels and its own, and tells what it has mounted."""
    tier.sh(
        "true", image=images["plain"], name="work", labels=(("of", "mine"), ("x", "")), mounts=at("/keep", "results")
    )
    (row,) = tier.driver.call("containers", everything=True)
    assert row.labels == {"of": "mine", "x": ""}
    assert {"results", "/keep"} <= set(row.mounted)
    tier.driver.call("remove_container", "work")
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_volume_of_a_kept_container_is_gone(tier: Tier) -> None:
    """A container whose volume was taken away by hand says so when it is started again."""
    tier.sh("touch /keep/x", mounts=at("/keep", "results"), name="work")
    os.rename(_folder(tier) / "results/volume.json", _folder(tier) / "results/aside")
    with pytest.raises(Raised, match=r"volume results of container \w+ is gone"):
        tier.driver.start("work")
    os.rename(_folder(tier) / "results/aside", _folder(tier) / "results/volume.json")
    assert tier.driver.start("work").exit_code == 0
    tier.driver.call("remove_container", "work")
    remove(tier, "results")


@pytest.mark.usefixtures("volumes")
def test_volume_of_other_ids(tier: Tier) -> None:
    """A volume written under another id map is refused in a sentence instead of showing wrong owners."""
    tier.driver.call("create_volume", "results")
    record = _folder(tier) / "results/volume.json"
    text = record.read_text()
    record.write_text(text.replace('"ids": "', '"ids": "7.1-'))
    with pytest.raises(Raised, match=r"volume results was written with other user ids \(7\.1-") as raised:
        tier.run("true", mounts=at("/keep", "results"))
    assert raised.value.is_a(UnsupportedHost)
    (row,) = tier.driver.call("volumes")
    assert not row.usable
    record.write_text(text)
    remove(tier, "results")


# --- kills -----------------------------------------------------------------------------------------------------------


def test_killed_with_volumes(tier: Tier, images: dict[str, str], volumes: Path) -> None:
    """After a kill -9 the volumes made for a container thrown away are swept; named ones stay and can be removed."""
    with tier.spawn() as driver:
        driver.begin_run(script="echo ready; sleep 1000", image=images["volumes"], mounts=at("/keep", "results"))
        driver.wait_for_output(b"ready")
        assert len(os.listdir(volumes)) == 3
        driver.kill()
    with tier.spawn() as other:
        assert other.run("true").ok

        def swept() -> bool:
            with tier.spawn() as another:
                another.call("containers")
            return os.listdir(volumes) == ["results"]

        wait_until(swept, what="only the named volume is left")
    remove(tier, "results")


def test_interrupted_while_it_is_filled(tier: Tier, registry: InProcessRegistry, volumes: Path) -> None:
    """Ctrl-C while a volume is filled leaves no volume that is half full, and nobody who goes on copying."""
    registry.add_image("kept-large", "latest", layers=[root_layer(), large_layer()], compression="none")
    image = registry.reference("kept-large")
    with tier.spawn() as driver:
        driver.pull(image)
        driver.begin_run("true", image=image, mounts=at("/data", "large"))
        aside = volumes / "large" / ".copy"
        wait_until(aside.exists, what="the copy has begun")
        driver.interrupt()
        with pytest.raises(Raised) as raised:
            driver.finish()
        assert raised.value.is_a(KeyboardInterrupt)
        assert not aside.exists()
        assert driver.run("ls", "/data", mounts=at("/data", "large")).stdout == ""
        found = driver.run(script="ls /data | wc -l", image=image, mounts=at("/data", "large"))
        assert (found.stdout, found.stderr) == (f"{MANY}\n", "")
    remove(tier, "large")


MANY = 3000


def large_layer() -> bytes:
    """A layer with more files than are copied in a moment."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for number in range(MANY):
            entry = tarfile.TarInfo(f"data/{number}")
            entry.size = 4096
            tar.addfile(entry, io.BytesIO(bytes(4096)))
    return stream.getvalue()
