"""Whiteouts: what a layer takes away, on disk and as the kernel merges it."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from nbcontainer.errors import InvalidImage
from tests.layers.layer_tars import (
    Member,
    folder,
    hard,
    is_opaque,
    is_whiteout,
    link,
    listing,
    member,
    tar,
    unpack,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """A lower layer: d/a, d/b, d/sub/c, file, via -> d."""
    data = tar(
        folder("d", mode=0o750, mtime=5),
        member("d/a", data=b"a"),
        member("d/b", data=b"b", mode=0o4755),
        folder("d/sub"),
        member("d/sub/c", data=b"c"),
        member("file", data=b"f"),
        link("via", "d"),
    )
    unpack(data, tmp_path / "low")
    return tmp_path / "low"


def test_a_whiteout_becomes_an_overlay_whiteout(tmp_path: Path, low: Path) -> None:
    """Removing a file, a directory or a symlink of a lower layer leaves a 0/0 device."""
    top = tmp_path / "top"
    applied = unpack(tar(member("d/.wh.a"), member("d/.wh.sub"), member(".wh.via")), top, [low])
    assert applied.whiteouts == 3
    assert all(is_whiteout(top / name) for name in ("d/a", "d/sub", "via"))


def test_a_whiteout_of_nothing_leaves_nothing(tmp_path: Path, low: Path) -> None:
    """Where lower layers show nothing, a whiteout would only be noise in listings."""
    top = tmp_path / "top"
    data = tar(member("d/.wh.zzz"), member("new/.wh.a"), folder("own"), member("own/.wh.a"), member("file/.wh.x"))
    assert unpack(data, top, [low]).whiteouts == 0
    assert set(listing(top)) == {"d", "own"}
    assert unpack(tar(member(".wh.a"), member("d/.wh..wh..opq")), tmp_path / "bottom").whiteouts == 0
    assert listing(tmp_path / "bottom") == {}


def test_an_implied_directory_is_a_copy_of_the_lower_one(tmp_path: Path, low: Path) -> None:
    """A directory made only to hold something keeps mode, time and attributes of the one it covers."""
    os.setxattr(low / "d", "user.note", b"kept")
    before = (low / "d").stat()
    unpack(tar(member("d/new")), tmp_path / "top", [low])
    after = (tmp_path / "top/d").stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert os.getxattr(tmp_path / "top/d", "user.note") == b"kept"


def test_a_lower_symlink_is_followed_as_the_merged_view_does(tmp_path: Path, low: Path) -> None:
    """An entry below a lower symlink lands below its target, until this layer replaces the link."""
    top = tmp_path / "top"
    data = tar(member("via/x"), member("via/.wh.a"), folder("via"), member("via/y"))
    unpack(data, top, [low])
    assert set(listing(top)) == {"d", "d/x", "d/a", "via", "via/y"}
    assert is_whiteout(top / "d/a")


@pytest.mark.parametrize("first", [True, False])
def test_opaque_hides_lower_entries_and_never_own_ones(tmp_path: Path, low: Path, first: bool) -> None:
    """The place of ``.wh..wh..opq`` in the tar does not matter."""
    mark = member("d/.wh..wh..opq")
    body = [folder("d"), member("d/own"), folder("d/sub"), member("d/sub/own"), member("d/.wh.a")]
    top = tmp_path / "top"
    unpack(tar(*([mark, *body] if first else [*body, mark])), top, [low])
    assert is_opaque(top / "d")
    assert set(listing(top)) == {"d", "d/own", "d/sub", "d/sub/own"}


def test_a_whiteout_never_hides_an_own_entry(tmp_path: Path, low: Path) -> None:
    """Before or after: what the same layer brings stays, and only the lower one goes."""
    top = tmp_path / "top"
    data = tar(
        member("d/.wh.a"),
        member("d/a", data=b"new"),
        member("d/b", data=b"new"),
        member("d/.wh.b"),
        member("d/sub/own"),
        member("d/.wh.sub"),
    )
    unpack(data, top, [low])
    assert (top / "d/a").read_bytes() == (top / "d/b").read_bytes() == b"new"
    assert set(listing(top / "d/sub")) == {"own"}
    assert is_opaque(top / "d/sub")


def test_a_directory_after_its_whiteout_is_opaque(tmp_path: Path, low: Path) -> None:
    """A directory made anew must not show the old one's content, whether named or implied."""
    unpack(tar(member(".wh.d"), folder("d"), member("d/x")), tmp_path / "named", [low])
    unpack(tar(member(".wh.d"), member("d/x")), tmp_path / "implied", [low])
    unpack(tar(member("d"), folder("d"), member("d/x")), tmp_path / "replaced", [low])
    for name in ("named", "implied", "replaced"):
        assert is_opaque(tmp_path / name / "d"), name
        assert set(listing(tmp_path / name)) == {"d", "d/x"}


def test_a_directory_that_only_held_whiteouts_goes_with_its_parent(tmp_path: Path, low: Path) -> None:
    """A whiteout below a directory that is then removed itself leaves one whiteout."""
    top = tmp_path / "top"
    unpack(tar(member("d/sub/.wh.c"), member("d/.wh.sub"), member(".wh.d")), top, [low])
    assert set(listing(top)) == {"d"}
    assert is_whiteout(top / "d")


def test_the_root_can_be_emptied(tmp_path: Path, low: Path) -> None:
    """An overlay's root always merges, so an opaque root is a whiteout for each name."""
    top = tmp_path / "top"
    unpack(tar(folder("d"), member("d/own"), member(".wh..wh..opq"), member("file/x")), top, [low])
    assert is_whiteout(top / "via")
    assert is_opaque(top / "d")
    assert set(listing(top)) == {"d", "d/own", "via", "file", "file/x"}


def test_other_aufs_names_are_ignored(tmp_path: Path, low: Path) -> None:
    """``.wh..wh.plnk`` and its like mean nothing."""
    top = tmp_path / "top"
    data = tar(member(".wh..wh.plnk"), member(".wh..wh.aufs"), member("d/.wh..wh.orph", data=b"x"))
    assert unpack(data, top, [low]).whiteouts == 0
    assert listing(top) == {}


def test_hard_links_to_lower_files_are_copied_up(tmp_path: Path, low: Path) -> None:
    """A hard link to a lower layer's file brings that file, with mode and time, under both names."""
    top = tmp_path / "top"
    unpack(tar(hard("again", "d/b"), hard("third", "via/b"), hard("slink", "via")), top, [low])
    assert (top / "again").samefile(top / "d/b")
    assert (top / "third").samefile(top / "d/b")
    assert (top / "again").read_bytes() == b"b"
    assert stat.S_IMODE((top / "again").stat().st_mode) == 0o4755
    assert (top / "again").stat().st_mtime_ns == (low / "d/b").stat().st_mtime_ns
    assert (top / "slink").is_symlink()


def test_a_whited_out_lower_file_cannot_be_linked(tmp_path: Path, low: Path) -> None:
    """What a middle layer removed is not there for the layer above."""
    unpack(tar(member("d/.wh.a")), tmp_path / "middle", [low])
    with pytest.raises(InvalidImage):
        unpack(tar(hard("x", "d/a")), tmp_path / "top", [tmp_path / "middle", low])
    with pytest.raises(InvalidImage):
        unpack(tar(member("d/.wh.b"), hard("x", "d/b")), tmp_path / "top2", [low])


def test_layers_below_an_opaque_one_are_out_of_sight(tmp_path: Path, low: Path) -> None:
    """Whiteouts and implied directories see through the stack as the kernel does."""
    unpack(tar(folder("d", mode=0o700), member("d/.wh..wh..opq"), member("d/m")), tmp_path / "middle", [low])
    top = tmp_path / "top"
    applied = unpack(tar(member("d/.wh.a"), member("d/.wh.m")), top, [tmp_path / "middle", low])
    assert applied.whiteouts == 1
    assert set(listing(top)) == {"d", "d/m"}
    assert stat.S_IMODE((top / "d").stat().st_mode) == 0o700


def test_flat_targets_lose_what_is_whited_out(tmp_path: Path, low: Path) -> None:
    """Where the target holds the lower layers, whiteouts remove at once and keep what this layer brought."""
    data = tar(
        member("d/own"),
        member("d/sub/own"),
        member("d/.wh..wh..opq"),
        member(".wh.file"),
        member("via/late", data=b"x"),
        member(".wh.via"),
    )
    unpack(data, low, flat=True)
    assert set(listing(low)) == {"d", "d/own", "d/sub", "d/sub/own", "d/late"}


# The whole of it, against a model and against the kernel


@dataclass
class Model:
    """The merged view as the image specification words it: apply in order, whiteouts spare what the layer brought."""

    tree: dict[str, str] = field(default_factory=dict)
    own: set[str] = field(default_factory=set)

    def remove(self, path: str, *, spare: bool) -> None:
        """Take a path away with all below it, or only what lower layers have of it."""
        for each in [each for each in self.tree if each == path or each.startswith(path + "/")]:
            if not (spare and each in self.own):
                del self.tree[each]

    def bring(self, path: str, kind: str) -> None:
        """Put an entry, over whatever is there."""
        parts = path.split("/")
        for count in range(1, len(parts)):
            self.tree.setdefault("/".join(parts[:count]), "dir")
            self.own.add("/".join(parts[:count]))
        if not (kind == "dir" and self.tree.get(path) == "dir"):
            self.remove(path, spare=False)
            self.own -= {each for each in self.own if each.startswith(path + "/")}
        self.tree[path] = kind
        self.own.add(path)

    def allowed(self, path: str) -> bool:
        """Whether every directory on the way is one, or nothing yet."""
        parts = path.split("/")
        return all(self.tree.get("/".join(parts[:count]), "dir") == "dir" for count in range(1, len(parts)))


def random_layer(chance: random.Random, model: Model, number: int) -> list[Member]:
    """A layer of a few entries over few names, so that they meet; `model` takes the same steps."""
    members = []
    model.own = set()
    for step in range(chance.randint(1, 9)):
        path = "/".join(chance.choice("ab") for _ in range(chance.randint(1, 3)))
        parent = path.rpartition("/")[0]
        action = chance.choice(["dir", "file", "file", "whiteout", "whiteout", "opaque"])
        if not model.allowed(path):
            continue
        if action == "whiteout":
            model.remove(path, spare=True)
            members.append(member(f"{parent}/.wh.{path.rpartition('/')[2]}".lstrip("/")))
        elif action == "opaque":
            for each in [each for each in model.tree if each.startswith(f"{parent}/" if parent else "")]:
                if each not in model.own:
                    model.tree.pop(each, None)
            members.append(member(f"{parent}/.wh..wh..opq".lstrip("/")))
        else:
            text = f"{number}.{step}"
            model.bring(path, "dir" if action == "dir" else text)
            members.append(folder(path) if action == "dir" else member(path, data=text.encode()))
    return members


def shown(root: Path) -> dict[str, str]:
    """A tree in the model's words."""
    found = {}
    for path in sorted(root.rglob("*")):
        found[str(path.relative_to(root))] = "dir" if path.is_dir() else path.read_text()
    return found


MERGE = """if True:
import json, os, subprocess, sys
merged = sys.argv[1]
answer = []
for lowers in json.load(sys.stdin):
    options = "userxattr,lowerdir=" + ":".join(lowers)
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
    found = {}
    for directory, names, files in os.walk(merged):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, merged)] = "dir" if os.path.isdir(path) else open(path).read()
    subprocess.run(["umount", merged], check=True)
    answer.append(found)
print(json.dumps(answer))
"""


def merge(stacks: list[list[Path]], where: Path) -> list[dict[str, str]]:
    """What the kernel shows of each stack (topmost first), mounted in a user namespace."""
    where.mkdir()
    empty = where.parent / "empty"
    empty.mkdir()
    done = subprocess.run(
        ["unshare", "-Urm", sys.executable, "-I", "-S", "-c", MERGE.replace("if True:\n", ""), str(where)],
        input=json.dumps([[str(path) for path in [*stack, empty]] for stack in stacks]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: list[dict[str, str]] = json.loads(done.stdout)
    return answer


@pytest.mark.overlay
def test_the_kernel_merges_layers_into_what_the_specification_says(tmp_path: Path) -> None:
    """Random stacks of layers: the overlay mount, the flat tree and a plain model agree."""
    chance = random.Random(20260801)
    stacks, models = [], []
    for case in range(60):
        model = Model()
        stack: list[Path] = []
        flat = tmp_path / f"flat{case}"
        for number in range(3):
            data = tar(*random_layer(chance, model, number))
            snapshot = tmp_path / f"case{case}.{number}"
            unpack(data, snapshot, stack, owners=False)
            unpack(data, flat, flat=True, owners=False)
            stack = [snapshot, *stack]
        assert shown(flat) == model.tree, f"flat, case {case}"
        stacks.append(stack)
        models.append(model.tree)
    for case, merged in enumerate(merge(stacks, tmp_path / "merged")):
        assert merged == models[case], f"overlay, case {case}"
