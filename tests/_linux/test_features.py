"""What is said about a host: the explanations by hand-made observations, the probes by this very host."""

from __future__ import annotations

import errno
import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux.features import Attempt, Feature, Observations, explain, observe, probe
from nbcontainer.model.idmap import IdMap, IdRange
from tests.harness.patience import patient
from tests.harness.users import User, run_as

if TYPE_CHECKING:
    from pathlib import Path

SINGLE = IdMap(uids=(IdRange(0, 1000, 1),), gids=(IdRange(0, 1000, 1),), method="single")
RANGE = IdMap(
    uids=(IdRange(0, 1000, 1), IdRange(1, 100000, 65536)),
    gids=(IdRange(0, 1000, 1), IdRange(1, 100000, 65536)),
    method="helpers",
)
EVERYTHING = (
    *("openat2", "pidfd", "clone3", "close-range", "seccomp", "libseccomp", "id-map", "user-namespace"),
    *("pids-cgroup", "memory-cgroup", "cpu-cgroup", "cpuset-cgroup", "freezer-cgroup"),
    *("own-map", "namespace-mount", "namespace-pid", "namespace-network", "namespace-ipc", "namespace-uts"),
    *("namespace-cgroup", "proc", "sysfs", "mqueue", "devpts", "tmpfs", "mount-api", "overlay", "whiteouts"),
    *("overlay-long-chains", "hostname"),
)
GOOD = Observations(
    uid=1000,
    gid=1000,
    kernel="6.1.0-generic",
    id_map=RANGE,
    attempts=dict.fromkeys(EVERYTHING, Attempt()),
    store_file_system="ext4",
    free_bytes=1 << 40,
    programs=("newuidmap", "newgidmap", "nft", "pasta"),
    has_subuid=True,
    has_subgid=True,
)


def without(*names: str, code: int = errno.EPERM, **facts: object) -> Observations:
    """Observe the good host, except that `names` failed (and, for a namespace, that nothing inside was reached)."""
    attempts = {
        **GOOD.attempts,
        **{name: Attempt(problem=f"{name}: {os.strerror(code)}", errno=code) for name in names},
    }
    if "user-namespace" in names:
        inside = EVERYTHING[EVERYTHING.index("id-map") :]
        attempts = {name: each for name, each in attempts.items() if name not in inside or name == "user-namespace"}
    return replace(GOOD, attempts=attempts, **facts)  # type: ignore[arg-type]


def named(seen: Observations, name: str) -> Feature:
    """Explain one feature."""
    return next(each for each in explain(seen) if each.name == name)


def test_good_host_has_no_advice() -> None:
    """Where everything works there is nothing to fix, and every feature still says what it is for."""
    for each in explain(GOOD):
        assert each.works
        assert not each.fix
        assert each.reason
        assert each.needed_for


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_failure_has_a_cause_and_a_fix(name: str) -> None:
    """Whatever fails, some feature says so with a reason and a next step."""
    failed = [each for each in explain(without(name)) if not each.works]
    assert failed
    assert all(each.reason and each.fix and each.sentence for each in failed)


@pytest.mark.parametrize(
    ("facts", "code", "words"),
    [
        ({"sysctls": {"user/max_user_namespaces": "0"}}, errno.ENOSPC, "max_user_namespaces is 0"),
        ({"sysctls": {"kernel/unprivileged_userns_clone": "0"}}, errno.EPERM, "Debian"),
        ({"sysctls": {"kernel/apparmor_restrict_unprivileged_userns": "1"}}, errno.EACCES, "Ubuntu 23.10"),
        ({"filtered": True}, errno.EPERM, "docker"),
        ({"in_container": True}, errno.EPERM, "docker"),
        ({}, errno.ENOSPC, "as many"),
        ({}, errno.EINVAL, "has none"),
        ({}, errno.EPERM, "chroot"),
        ({}, errno.EIO, "Input/output error"),
    ],
)
def test_refused_user_namespaces_are_told_apart(facts: dict[str, object], code: int, words: str) -> None:
    """The same EPERM has many causes; the host's settings name the one, and it has its own fix."""
    found = named(without("user-namespace", code=code, **facts), "user-namespaces")
    assert not found.works
    assert found.required
    assert words in found.reason
    assert found.fix


def test_ubuntu_refuses_after_the_fact() -> None:
    """Ubuntu 24.04 lets the namespace be made and takes its capabilities away: the same cause is named."""
    sysctls = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    for step in ("own-map", "namespace-mount"):
        assert "AppArmor" in named(without(step, sysctls=sysctls), "user-namespaces").reason


def test_apparmor_does_not_restrict_root() -> None:
    """The sysctl is about unprivileged users: for root another cause is named."""
    sysctls = {"kernel/apparmor_restrict_unprivileged_userns": "1"}
    found = named(without("user-namespace", sysctls=sysctls, uid=0), "user-namespaces")
    assert "AppArmor" not in found.reason


def test_root_of_an_outer_container_may_lack_a_capability() -> None:
    """Root without CAP_SETFCAP is refused its own id inside; a user needs none."""
    for uid in (0, 1000):
        reason = named(without("own-map", uid=uid, in_container=True), "user-namespaces").reason
        assert ("SETFCAP" in reason) is (uid == 0)


def test_what_was_not_reached_points_to_the_cause() -> None:
    """Without a user namespace nothing was tried inside one, and each such feature says where to look."""
    seen = without("user-namespace")
    for name in ("proc", "overlay", "tmpfs", "subordinate-ids", "namespaces", "mount-api"):
        found = named(seen, name)
        assert not found.works
        assert found.fix == "See user-namespaces"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"has_subuid": False, "has_subgid": False}, "/etc/subuid and /etc/subgid"),
        ({"has_subgid": False}, "/etc/subgid"),
        ({"programs": ("newuidmap",)}, "not installed"),
        ({}, "cannot be used"),
    ],
)
def test_missing_ranges_are_told_apart(facts: dict[str, object], words: str) -> None:
    """No line, a line in one file only, no helpers, unusable lines: each has its words."""
    found = named(replace(GOOD, id_map=SINGLE, **facts), "subordinate-ids")  # type: ignore[arg-type]
    assert not found.works
    assert not found.required
    assert words in found.reason


def test_fix_proposes_a_free_block() -> None:
    """The command for the administrator names ids that are free on this host."""
    found = named(replace(GOOD, id_map=SINGLE, has_subuid=False, free_block=231072), "subordinate-ids")
    assert "--add-subuids 231072-296607 --add-subgids 231072-296607" in found.fix


def test_refused_map_leaves_one_id() -> None:
    """When the helpers refuse, what can be used is the single-id map."""
    assert GOOD.working_id_map is RANGE
    assert without("id-map").working_id_map == SINGLE


@pytest.mark.parametrize(("on", "words"), [("overlay", "cannot hold"), ("nfs4", "cannot hold"), ("tmpfs", "6.6")])
def test_overlay_names_the_file_system(on: str, words: str) -> None:
    """An overlay refused because of where the store lies says where to move it; nothing runs without it."""
    found = named(without("overlay", store_file_system=on), "overlay")
    assert found.required
    assert words in found.fix


@pytest.mark.parametrize(("kernel", "works"), [("5.11.0", False), ("5.12.1", True), ("10.0", True), ("weird", False)])
def test_kernel_version(kernel: str, *, works: bool) -> None:
    """5.12 is the first kernel with all we use, and numbers are compared as numbers."""
    assert named(replace(GOOD, kernel=kernel), "kernel").works is works


def test_disk_that_is_full_or_unknown() -> None:
    """Less than 1 GiB, or a folder nobody can read, is said but stops nothing."""
    assert not named(replace(GOOD, free_bytes=1 << 20), "disk").works
    assert "cannot be read" in named(replace(GOOD, free_bytes=-1), "disk").reason


@pytest.mark.parametrize(
    ("facts", "words"), [({"programs": ("nft",)}, "apt install passt"), ({"tun": False}, "chmod 0666 /dev/net/tun")]
)
def test_network_of_a_user(facts: dict[str, object], words: str) -> None:
    """Without pasta, or the device that it opens, there is none, and each has its own next step."""
    assert named(GOOD, "user-network").works
    found = named(replace(GOOD, **facts), "user-network")  # type: ignore[arg-type]
    assert not found.works
    assert not found.required
    assert words in found.fix


def test_child_that_ended_early_is_the_reason() -> None:
    """Attempts that were not made because the child ended say that."""
    seen = replace(GOOD, attempts={}, ended="the attempts ended early (killed)")
    assert named(seen, "openat2").reason == "the attempts ended early (killed)"


# --- this host ---


def test_probe_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    """Everything is tried within two seconds on a busy machine, and the folder is as it was."""
    began = time.monotonic()
    features = probe(str(tmp_path))
    assert time.monotonic() - began < patient(2)
    assert os.listdir(tmp_path) == []
    assert len({each.name for each in features}) == len(features)


def test_store_that_is_not_there_yet(tmp_path: Path) -> None:
    """The nearest existing folder stands for a store that is to be made, and the store is not made by looking."""
    seen = observe(str(tmp_path / "some" / "where"))
    assert seen.free_bytes > 0
    assert os.listdir(tmp_path) == []


def test_hang_is_bounded_and_cleaned_up(tmp_path: Path) -> None:
    """A child that takes too long is ended with all its processes; what it did not come to says so."""
    seen = observe(str(tmp_path), timeout=0.001)
    assert "longer than" in seen.ended
    assert "longer than" in named(seen, "libseccomp").reason
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_root_has_everything_it_is_given(tmp_path: Path) -> None:
    """As root, the id map is written and what needs it was reached."""
    seen = observe(str(tmp_path))
    assert seen.id_map.method == "privileged"
    assert "idmapped-mounts" in seen.attempts
    assert "namespace-network" in seen.attempts


@pytest.mark.overlay
def test_overlay_works_as_the_probe_says(tmp_path: Path) -> None:
    """The overlay attempt reports the file system it ran on."""
    seen = observe(str(tmp_path))
    assert named(seen, "overlay").works
    assert seen.store_file_system in named(seen, "overlay").reason


REPORT = (
    "import dataclasses, json, sys; from nbcontainer._linux.features import probe;"
    "print(json.dumps([dataclasses.asdict(each) for each in probe(sys.argv[1])]))"
)


@pytest.mark.subids
@pytest.mark.parametrize("which", ["user_with_range", "user_without_range"])
def test_unprivileged_user_can_run_containers(which: str, request: pytest.FixtureRequest) -> None:
    """On a host where root can, an ordinary user has every required feature; the range makes the difference."""
    user: User = request.getfixturevalue(which)
    done = run_as(user, [user.python, "-c", REPORT, user.home])
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert [each for each in found.values() if each["required"] and not each["works"]] == []
    assert found["subordinate-ids"]["works"] is bool(user.ranges)
    assert "idmapped-mounts" not in found
    assert not [name for name in os.listdir(user.home) if "probe" in name]


@pytest.mark.subids
def test_store_that_cannot_be_written(user_without_range: User, tmp_path: Path) -> None:
    """A store in somebody else's folder is the overlay's problem, and everything else is still tried."""
    done = run_as(user_without_range, [user_without_range.python, "-c", REPORT, "/proc/none"])
    found = {each["name"]: each for each in json.loads(done.stdout)}
    assert "cannot write in the store's folder" in found["overlay"]["reason"]
    assert found["proc"]["works"]
