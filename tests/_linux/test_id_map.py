"""The choice of an id map: a pure function of who we are and what two files and one namespace say."""

from __future__ import annotations

import os

import pytest

from nbcontainer._linux.idmaps import choose_id_map, id_map_for_host, map_refusal
from nbcontainer.model.idmap import IdMap, IdRange
from tests.harness.users import User, run_as

FIXED = 0x70000000 - 65536


def chosen(
    uid: int,
    subuid: str = "",
    subgid: str | None = None,
    *,
    helpers: bool = True,
    may_mount: bool = True,
    uid_map: str = "0 0 4294967295",
    gid_map: str = "0 0 4294967295",
) -> IdMap:
    """Choose for user `ada` (or root) with group 100 (or 0); one text stands for both files unless two are given."""
    return choose_id_map(
        uid,
        100 if uid else 0,
        "ada" if uid else "root",
        subuid,
        subuid if subgid is None else subgid,
        helpers_available=helpers,
        may_mount=may_mount,
        uid_map_text=uid_map,
        gid_map_text=gid_map,
    )


def test_root_without_entries_takes_the_fixed_block() -> None:
    """Root's containers get the top block of systemd's container range when nobody allotted another."""
    found = chosen(0)
    assert found == IdMap(uids=(IdRange(0, FIXED, 65536),), gids=(IdRange(0, FIXED, 65536),), method="privileged")


@pytest.mark.parametrize("entry", [f"eve:{FIXED}:65536", f"eve:{FIXED + 65535}:1", f"eve:{FIXED - 10}:11"])
@pytest.mark.parametrize("which", ["subuid", "subgid"])
def test_fixed_block_keeps_away_from_everybody(entry: str, which: str) -> None:
    """An entry of somebody that touches the block, in either file, moves it one block down."""
    found = chosen(0, entry, "") if which == "subuid" else chosen(0, "", entry)
    assert found.uids[0].outside == found.gids[0].outside <= FIXED - 65536


def test_root_prefers_an_entry_of_its_own() -> None:
    """`nbcontainer` comes before `root`, and exactly 65536 ids are used of a larger entry."""
    text = "root:200000:65536\nnbcontainer:400000:200000\n"
    assert chosen(0, text).uids == (IdRange(0, 400000, 65536),)
    assert chosen(0, "0:200000:65536").uids == (IdRange(0, 200000, 65536),)


@pytest.mark.parametrize(
    "text",
    ["root:200000:65535", "root:0:65536", "root:1000:100000", "root:200000:65536:extra", "#root:200000:65536"],
)
def test_root_refuses_entries_it_cannot_use(text: str) -> None:
    """Too few ids, ids of the machine's own users, and malformed lines lead to the fixed block."""
    assert chosen(0, text).uids[0].outside > 200000


def test_root_needs_both_files() -> None:
    """An entry in /etc/subuid alone is not used: uids and gids are chosen by the same rule."""
    assert chosen(0, "root:200000:65536", "").uids[0].outside == FIXED


def test_root_that_may_not_mount_is_root_of_its_containers() -> None:
    """Root of an outer container stays container root, as a user does, and gives away what it would have given."""
    found = chosen(0, may_mount=False)
    both = (IdRange(0, 0, 1), IdRange(1, FIXED, 65536))
    assert found == IdMap(uids=both, gids=both, method="direct")
    assert not found.single
    assert chosen(1000, "ada:100000:65536", may_mount=False) == chosen(1000, "ada:100000:65536")


def test_root_of_a_small_namespace_gives_away_what_exists() -> None:
    """Root inside a rootless container maps the ids that container has, except its own 0."""
    small = "         0       1000          1\n         1     100000      65536\n"
    merged = "0 100000 5000"
    assert chosen(0, uid_map=small, gid_map=small).uids == (IdRange(0, 1, 65536),)
    assert chosen(0, uid_map=small, gid_map=merged).gids == (IdRange(0, 1, 4999),)


def test_root_of_one_id_has_one_id() -> None:
    """Root of a namespace with a single id is in the same tier as a user without a range."""
    assert chosen(0, uid_map="0 1000 1", gid_map="0 1000 1").method == "single"


def test_user_with_range_is_container_root() -> None:
    """Inside, 0 is the user and the range follows from 1 on."""
    found = chosen(1000, "ada:100000:65536")
    assert found.method == "helpers"
    assert found.uids == (IdRange(0, 1000, 1), IdRange(1, 100000, 65536))
    assert found.gids == (IdRange(0, 100, 1), IdRange(1, 100000, 65536))


@pytest.mark.parametrize("owner", ["ada", "1000"])
def test_lines_go_by_name_or_number(owner: str) -> None:
    """subuid(5) allows the user's name or number, and subgid(5) names the user as well, not the group."""
    assert chosen(1000, f"{owner}:100000:65536").method == "helpers"


def test_large_block_is_used_alone() -> None:
    """A small block listed first does not come before one that holds every id images use."""
    found = chosen(1000, "ada:100000:10\nada:200000:65536\n")
    assert found.uids[1:] == (IdRange(1, 200000, 65536),)


def test_small_blocks_are_laid_end_to_end() -> None:
    """Several small blocks follow one another inside."""
    found = chosen(1000, "ada:100000:10\nada:300000:20\n")
    assert found.uids[1:] == (IdRange(1, 100000, 10), IdRange(11, 300000, 20))


def test_overlapping_blocks_are_used_once() -> None:
    """The same block by name and by number, or one that holds the user itself, would make the kernel refuse the map."""
    found = chosen(1000, "ada:100000:10\n1000:100000:10\nada:990:20\nada:0:5\n")
    assert found.uids[1:] == (IdRange(1, 100000, 10),)


@pytest.mark.parametrize(
    ("subuid", "subgid", "helpers"),
    [
        ("ada:100000:65536", "", True),
        ("", "ada:100000:65536", True),
        ("ada:100000:65536", "ada:100000:65536", False),
        ("adam:100000:65536", "ada:100000:65536", True),
        ("ada:100000:0", "ada:100000:65536", True),
        ("ada:-5:65536", "ada:100000:65536", True),
        ("ada:4294967000:65536", "ada:100000:65536", True),
        ("ada:\u0661\u0660\u0660\u0660\u0660\u0660:65536", "ada:100000:65536", True),
        ("ada", "ada:100000:65536", True),
        (":::\n\n", "ada:100000:65536", True),
    ],
)
def test_user_without_usable_range_has_one_id(subuid: str, subgid: str, *, helpers: bool) -> None:
    """A missing file, missing helpers or an unusable line leave one id: the user itself."""
    found = chosen(1000, subuid, subgid, helpers=helpers)
    assert found == IdMap(uids=(IdRange(0, 1000, 1),), gids=(IdRange(0, 100, 1),), method="single")


def test_range_outside_of_our_namespace_is_not_used() -> None:
    """Inside a container /etc/subuid may name ids that do not exist there."""
    small = "0 100000 65536"
    assert chosen(1000, "ada:100000:65536", uid_map=small, gid_map=small).method == "single"


def test_many_blocks_keep_the_key_short() -> None:
    """The key is a directory name: even a user with many blocks gets one of at most 255 bytes."""
    text = "".join(f"ada:{4000000000 + 70000 * each}:65000\n" for each in range(30))
    assert len(chosen(1000, text).key) <= 255


def test_id_map_for_host_is_ours() -> None:
    """On this host, container root is never root of this machine unless nothing else exists."""
    found = id_map_for_host()
    assert found.method in {"privileged", "helpers", "single"}
    if os.geteuid() == 0 and not found.single:
        assert found.uids[0].outside != 0


ASK = "from nbcontainer._linux.idmaps import id_map_for_host as f; m = f(); print(m.method, m.uids, m.gids)"


@pytest.mark.subids
def test_user_with_range_is_believed(user_with_range: User) -> None:
    """A real user with a range gets it, after the helpers have written it for a real child."""
    first, count = user_with_range.ranges[0]
    done = run_as(user_with_range, [user_with_range.python, "-c", ASK])
    expected = (IdRange(0, user_with_range.uid, 1), IdRange(1, first, count))
    assert done.stdout.startswith(f"helpers {expected}"), done.stderr


@pytest.mark.subids
def test_user_whose_helpers_are_powerless_has_one_id(user_with_range: User) -> None:
    """Under no_new_privs the set-user-id helpers are there and refuse: the range is not believed."""
    done = run_as(user_with_range, ["setpriv", "--no-new-privs", user_with_range.python, "-c", ASK])
    assert done.stdout.startswith("single "), done.stderr


@pytest.mark.subids
def test_user_without_range_has_one_id(user_without_range: User) -> None:
    """A real user without a range is container root and nobody else."""
    done = run_as(user_without_range, [user_without_range.python, "-c", ASK])
    assert done.stdout.startswith(f"single {(IdRange(0, user_without_range.uid, 1),)}"), done.stderr


@pytest.mark.subids
def test_refusal_carries_the_words_of_the_helper() -> None:
    """A map nobody allotted is refused, with the reason newuidmap gives."""
    greedy = IdMap(uids=(IdRange(0, 7, 1),), gids=(IdRange(0, 7, 1),), method="helpers")
    assert "newuidmap" in map_refusal(greedy)
