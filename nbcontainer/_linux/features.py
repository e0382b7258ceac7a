"""What this host lets us do: real attempts, each with the cause of a refusal and its cure, and the id map to use.

A *probe* performs the thing itself (makes a user namespace, mounts an overlay on the store's own file system),
because a version number says nothing about sysctls, AppArmor, a container's seccomp filter or an administrator. All
attempts are made in one short-lived child process: a notebook kernel has a dozen threads, and
``unshare(CLONE_NEWUSER)`` fails with EINVAL in a threaded process (unshare(2)). The child *observes*
(`Observations`); `explain`, a pure function, turns what was observed into `Feature` values, so the advice for hosts
we do not have is tested like any other function.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import platform
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from nbcontainer._linux.cgroups import (
    INSIDE,
    KernelFiles,
    controller_of,
    layout_of,
    machine_hierarchies,
    make_cgroup,
    remove_cgroup,
)
from nbcontainer._linux.idmaps import (
    CONTAINER_IDS,
    entries,
    overlap,
    own_entries,
    single_id_map,
    small_text,
    user_name_of,
    wanted_id_map,
    write_map,
)
from nbcontainer._linux.mounts import (
    MOUNT_ATTR_IDMAP,
    MOUNT_ATTR_RDONLY,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    clone_tree,
    mount,
    move_tree,
    new_overlay,
    set_attributes,
)
from nbcontainer._linux.processes import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    clone_into,
    die_with_parent,
    forbid_new_privileges,
    load_filter,
    pidfd_open,
    write_text,
)
from nbcontainer._linux.syscalls import RESOLVE_IN_ROOT, close_range, openat2, sethostname, unshare
from nbcontainer.model.idmap import IdMap, IdRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "Attempt",
    "Feature",
    "Observations",
    "explain",
    "observe",
    "probe",
]

# --- what was seen, and what it means -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One thing a host can or cannot do.

    `reason` says how we know (a cause when it does not work), `fix` what to do about it (empty when it works),
    `needed_for` what a person misses without it. Without a `required` feature no container runs at all.
    """

    name: str
    works: bool
    reason: str
    fix: str
    needed_for: str
    required: bool

    @property
    def sentence(self) -> str:
        """What works or not, why, and the next step, on one line."""
        verdict = "works" if self.works else "does not work here"
        return f"{self.name} {verdict}: {self.reason}." + (f" {self.fix}." if self.fix else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of one attempt: `problem` is empty when it worked, `detail` is what was learned by it."""

    problem: str = ""
    errno: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observations:
    """Everything `explain` reasons from; `id_map` is the map that was tried."""

    uid: int
    gid: int
    kernel: str
    id_map: IdMap
    attempts: Mapping[str, Attempt]
    sysctls: Mapping[str, str] = field(default_factory=dict)
    filtered: bool = False
    in_container: bool = False
    store_file_system: str = ""
    free_bytes: int = -1
    programs: tuple[str, ...] = ()
    tun: bool = True
    has_subuid: bool = False
    has_subgid: bool = False
    free_block: int = 100000
    ended: str = ""

    @property
    def working_id_map(self) -> IdMap:
        """The map that was tried, or the single-id map when it was refused."""
        works = self.id_map.single or not self.problem("id-map")
        return self.id_map if works else single_id_map(self.uid, self.gid)

    def problem(self, name: str) -> str:
        """Why `name` failed, or "" when it worked."""
        attempt = self.attempts.get(name)
        if attempt is None:
            return self.ended or "it was not reached"
        return attempt.problem

    def code(self, name: str) -> int:
        """The errno `name` failed with, or 0."""
        attempt = self.attempts.get(name)
        return attempt.errno if attempt else 0

    def detail(self, name: str) -> str:
        """What was learned by `name`."""
        attempt = self.attempts.get(name)
        return attempt.detail if attempt else ""


def probe(directory: str, *, timeout: float = 5.0) -> tuple[Feature, ...]:
    """Try everything; `directory` is the store's root (or where it will be), whose file system must carry overlays."""
    return explain(observe(directory, timeout=timeout))


def explain(seen: Observations) -> tuple[Feature, ...]:
    """Turn observations into features, in the order a person should read them."""
    return (
        _kernel(seen),
        _user_namespaces(seen),
        _subordinate_ids(seen),
        _namespaces(seen),
        _mount_api(seen),
        _in_namespace(seen, "proc", "process lists inside containers", required=True, fix=_PROC_FIX),
        _in_namespace(seen, "tmpfs", "private /dev, /tmp and /dev/shm", required=True, fix=_OUTER_FIX),
        _in_namespace(seen, "devpts", "terminals inside containers", required=True, fix=_OUTER_FIX),
        _in_namespace(
            seen,
            "hostname",
            "a container's own host name; it has that of the outer container otherwise",
            required=False,
            fix="The filter of an outer container refuses it (podman's default does): start that one with"
            " --security-opt seccomp=unconfined, or do without",
        ),
        _in_namespace(seen, "sysfs", "/sys inside containers", required=False, fix=_OUTER_FIX),
        _in_namespace(seen, "mqueue", "POSIX message queues inside containers", required=False, fix=_OUTER_FIX),
        _overlay(seen),
        _in_namespace(
            seen,
            "whiteouts",
            "deleting files of an image",
            required=False,
            fix="See overlay" if seen.problem("overlay") else "Use Linux 5.8 or newer",
        ),
        _in_namespace(
            seen,
            "overlay-long-chains",
            "images of very many layers",
            required=False,
            fix="Use Linux 6.5 or newer",
        ),
        *_idmapped_mounts(seen),
        _simple(seen, "openat2", "keeping layers inside their root", required=True, fix="Use Linux 5.6 or newer"),
        _simple(seen, "pidfd", "waiting for and ending containers", required=True, fix="Use Linux 5.3 or newer"),
        _simple(
            seen,
            "clone3",
            "starting containers",
            required=True,
            fix="Use Linux 5.3 or newer, or a system call filter around this process that allows clone3",
        ),
        _simple(
            seen, "close-range", "closing inherited files before a command", required=True, fix="Use Linux 5.9 or newer"
        ),
        _simple(
            seen,
            "seccomp",
            "the system call filter of every container",
            required=True,
            fix="Use a kernel with CONFIG_SECCOMP_FILTER",
        ),
        _simple(
            seen,
            "libseccomp",
            "compiling the system call filter",
            required=True,
            fix="Install it: apt install libseccomp2, or dnf install libseccomp",
        ),
        *_cgroups(seen),
        _disk(seen),
        _packet_filter(seen),
        _user_network(seen),
    )


_OUTER_FIX = "If this machine is itself a container, ask its administrator to allow mounts in user namespaces"
_PROC_FIX = (
    "A container around this one covers parts of /proc: start it with --security-opt systempaths=unconfined (docker)"
    " or --security-opt unmask=ALL (podman), or procMount: Unmasked (Kubernetes)"
)


def _kernel(seen: Observations) -> Feature:
    numbers = re.match(r"(\d+)\.(\d+)", seen.kernel)
    works = numbers is not None and (int(numbers[1]), int(numbers[2])) >= (5, 12)
    return Feature(
        name="kernel",
        works=works,
        reason=f"Linux {seen.kernel}" + ("" if works else " is older than 5.12"),
        fix="" if works else "Use Linux 5.12 or newer: overlays in user namespaces and mount_setattr came by then",
        needed_for="everything below",
        required=False,
    )


def _simple(seen: Observations, name: str, needed_for: str, *, required: bool, fix: str) -> Feature:
    problem = seen.problem(name)
    return Feature(
        name=name,
        works=not problem,
        reason=problem or seen.detail(name) or "tried",
        fix=fix if problem else "",
        needed_for=needed_for,
        required=required,
    )


def _in_namespace(seen: Observations, name: str, needed_for: str, *, required: bool, fix: str) -> Feature:
    """Explain something that was tried inside the user namespace: without one there was nothing to try."""
    if name not in seen.attempts and not _user_namespaces(seen).works:
        return Feature(
            name=name,
            works=False,
            reason="there is no user namespace to try it in",
            fix="See user-namespaces",
            needed_for=needed_for,
            required=required,
        )
    return _simple(seen, name, needed_for, required=required, fix=fix)


def _user_namespaces(seen: Observations) -> Feature:
    """Name the cause among the many that share EPERM: what is configured on this host tells them apart."""
    step = next((n for n in ("user-namespace", "own-map", "namespace-mount") if seen.problem(n)), "")
    if not step:
        reason, fix = "made one with a mount namespace inside", ""
    else:
        reason, fix = _user_namespace_cause(seen, step)
    return Feature(
        name="user-namespaces",
        works=not step,
        reason=reason,
        fix=fix,
        needed_for="every container: its root is not the root of this machine",
        required=True,
    )


def _user_namespace_cause(seen: Observations, step: str) -> tuple[str, str]:
    """Return the first cause that fits, and its cure; the order matters, from what is certain to what is likely."""
    code, said = seen.code(step), seen.problem(step)
    refused = code in {errno.EPERM, errno.EACCES}
    causes = (
        (
            seen.sysctls.get("user/max_user_namespaces") == "0",
            "the sysctl user.max_user_namespaces is 0",
            (
                "An administrator can allow them: sysctl -w user.max_user_namespaces=15000,"
                " kept by a file in /etc/sysctl.d"
            ),
        ),
        (
            refused and seen.uid != 0 and seen.sysctls.get("kernel/unprivileged_userns_clone") == "0",
            "the sysctl kernel.unprivileged_userns_clone is 0 (a setting of older Debian kernels)",
            "An administrator can allow them: sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            refused and seen.uid != 0 and seen.sysctls.get("kernel/apparmor_restrict_unprivileged_userns") == "1",
            (
                "AppArmor refuses them to programs without a profile"
                " (kernel.apparmor_restrict_unprivileged_userns=1, the default of Ubuntu 23.10 and later)"
            ),
            (
                "An administrator can allow them to this Python only, by a file in /etc/apparmor.d that says"
                ' "profile nbcontainer /path/to/python flags=(unconfined) { userns, }" (then apparmor_parser -r on it),'
                " or to all programs: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            ),
        ),
        (
            refused and seen.uid == 0 and step == "own-map",
            "root without the capability SETFCAP may not be root of a user namespace",
            "Start the outer container with that one (docker: --cap-add SETFCAP), or as another user (--user 1000)",
        ),
        (
            refused and (seen.filtered or seen.in_container),
            f"{said}: the system call filter of a container around this process refuses them (docker's default does)",
            (
                "Start the outer container with --security-opt seccomp=unconfined (docker), seccompProfile: Unconfined"
                " (Kubernetes), or a profile that allows unshare, clone and mount; podman's default allows them"
            ),
        ),
        (
            code in {errno.ENOSPC, errno.EUSERS},
            f"{said}: as many exist as this machine allows, or they are nested too deeply (32)",
            "Raise the limit: sysctl -w user.max_user_namespaces=15000",
        ),
        (code in {errno.EINVAL, errno.ENOSYS}, f"{said}: this kernel has none", "Use a kernel with CONFIG_USER_NS"),
        (
            refused,
            f"{said}: the kernel refuses them inside a chroot, and security modules may",
            "Run outside the chroot, or ask the administrator of this machine which module refuses them",
        ),
    )
    other = (said, "Run the doctor again; if it stays so, please report it with this table")
    return next(((reason, fix) for fits, reason, fix in causes if fits), other)


def _subordinate_ids(seen: Observations) -> Feature:
    problem, fix = seen.problem("id-map"), ""
    ids = sum(each.length for each in seen.id_map.uids)
    if seen.id_map.single and seen.uid == 0:
        problem = "this root user is root of one id only (it is inside a container itself)"
        fix = "Start the outer container with more ids; containers run with one id meanwhile"
    elif seen.id_map.single:
        problem, fix = _no_range(seen)
    elif not seen.problem("user-namespace") and problem:
        fix = _range_fix(seen)
    elif problem:
        problem, fix = "there is no user namespace to try it in", "See user-namespaces"
    how = "newuidmap and newgidmap wrote" if seen.id_map.method == "helpers" else "wrote"
    return Feature(
        name="subordinate-ids",
        works=not problem,
        reason=problem or f"{how} a map of {ids} ids",
        fix=fix,
        needed_for="several users inside a container (apt, postgres, chown); without them there is one",
        required=False,
    )


def _no_range(seen: Observations) -> tuple[str, str]:
    missing = [path for path, has in (("/etc/subuid", seen.has_subuid), ("/etc/subgid", seen.has_subgid)) if not has]
    if missing:
        return f"no usable line of {' and '.join(missing)} is for this user", _range_fix(seen)
    if not {"newuidmap", "newgidmap"} <= set(seen.programs):
        return (
            "the programs newuidmap and newgidmap are not installed",
            "Install them: apt install uidmap, or dnf install shadow-utils",
        )
    return "the ranges in /etc/subuid and /etc/subgid cannot be used", _range_fix(seen)


def _range_fix(seen: Observations) -> str:
    if seen.id_map.method in {"privileged", "direct"}:
        return "Root lacks CAP_SETUID, CAP_SETGID or CAP_SETFCAP here: start the outer container with them"
    if seen.id_map.method == "helpers":
        return (
            "newuidmap and newgidmap need their set-user-id bit or file capabilities, a file system without nosuid, and"
            " a process without no_new_privs in its primary group: apt install --reinstall uidmap restores the bits"
        )
    ids = f"{seen.free_block}-{seen.free_block + CONTAINER_IDS - 1}"
    return f'An administrator can give a range: usermod --add-subuids {ids} --add-subgids {ids} "the user name"'


def _namespaces(seen: Observations) -> Feature:
    kinds = ("mount", "pid", "network", "ipc", "uts", "cgroup")
    refused = [kind for kind in kinds if seen.problem(f"namespace-{kind}")]
    first = seen.problem(f"namespace-{refused[0]}") if refused else ""
    if refused and not _user_namespaces(seen).works:
        first, fix = "there is no user namespace to try them in", "See user-namespaces"
    elif refused:
        fix = f"Raise user.max_*_namespaces (sysctl -a | grep max_), or use a kernel with: {', '.join(refused)}"
    else:
        fix = ""
    return Feature(
        name="namespaces",
        works=not refused,
        reason=f"{', '.join(refused)}: {first}" if refused else ", ".join(kinds),
        fix=fix,
        needed_for="keeping a container's files, processes and network apart",
        required=True,
    )


def _mount_api(seen: Observations) -> Feature:
    return _in_namespace(
        seen,
        "mount-api",
        "preparing a container's file systems (fsopen, fsmount, move_mount, open_tree, mount_setattr)",
        required=True,
        fix="Use Linux 5.12 or newer",
    )


def _overlay(seen: Observations) -> Feature:
    on = seen.store_file_system
    if on in {"overlay", "overlayfs"} or on.startswith(("nfs", "fuse", "cifs", "smb", "lustre", "ceph", "9p")):
        fix = (
            f"The store lies on {on}, which cannot hold writable layers: move it to a local disk (ext4, xfs, btrfs), in"
            " an outer container to a volume of that one (NBCONTAINER_ROOT)"
        )
    elif on == "tmpfs":
        fix = "Use Linux 6.6 or newer (tmpfs has user xattrs from then on), or move the store to a local disk"
    else:
        fix = "Use Linux 5.11 or newer with the overlay module, and a store on a local disk (ext4, xfs, btrfs)"
    found = _in_namespace(seen, "overlay", "every container: its changes lie over its image", required=True, fix=fix)
    if not found.works:
        return found
    return Feature(
        name=found.name,
        works=True,
        reason=f"wrote to, deleted from and replaced in one on {on or 'the store'}",
        fix="",
        needed_for=found.needed_for,
        required=True,
    )


def _idmapped_mounts(seen: Observations) -> tuple[Feature, ...]:
    """For root alone: who is root of its own containers has files that fit without being shifted."""
    if seen.id_map.method != "privileged":
        return ()
    fix = "Use Linux 5.12 or newer and a file system that supports them (ext4, xfs, btrfs; tmpfs from 6.3)"
    needed_for = "bind mounts whose owners are right on both sides, and the image `host`"
    return (_in_namespace(seen, "idmapped-mounts", needed_for, required=False, fix=fix),)


def _cgroups(seen: Observations) -> tuple[Feature, ...]:
    """One controller each: a machine may hand some down and not others. The fix was found where the problem was."""
    return tuple(
        _simple(
            seen,
            f"{controller}-cgroup",
            needed_for,
            required=False,
            fix=seen.detail(f"{controller}-cgroup")
            or "Mount /sys/fs/cgroup with this controller, or boot with it enabled",
        )
        for controller, needed_for in CGROUP_CONTROLLERS.items()
    )


_ENOUGH = 1 << 30


def _disk(seen: Observations) -> Feature:
    works = seen.free_bytes >= _ENOUGH
    unknown = seen.free_bytes < 0
    return Feature(
        name="disk",
        works=works,
        reason="the store's folder cannot be read" if unknown else f"{seen.free_bytes / (1 << 30):.1f} GiB free",
        fix="" if works else "Free some space, or move the store to a larger disk: common images take about 1 GiB",
        needed_for="storing images and what cells write",
        required=False,
    )


_TUN_FIX = "Have an administrator open it, as distributions do: modprobe tun; chmod 0666 /dev/net/tun"


def _user_network(seen: Observations) -> Feature:
    found = "pasta" in seen.programs
    return Feature(
        name="user-network",
        works=found and seen.tun,
        reason="pasta is not installed"
        if not found
        else "found pasta"
        if seen.tun
        else "/dev/net/tun is closed to you",
        fix="" if found and seen.tun else _TUN_FIX if found else "Install it: apt install passt, or dnf install passt",
        needed_for="a network of a container's own, without root",
        required=False,
    )


def _packet_filter(seen: Observations) -> Feature:
    found = "nft" in seen.programs
    return Feature(
        name="packet-filter",
        works=found,
        reason="found nft" if found else "nft is not installed",
        fix="" if found else "Install it: apt install nftables, or dnf install nftables",
        needed_for="a network of a container's own, from which this machine cannot be reached",
        required=False,
    )


# --- observing ------------------------------------------------------------------------------------------------------

_SYSCTLS = (
    "user/max_user_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
)

_PROGRAMS = ("newuidmap", "newgidmap", "nft", "pasta")
_FURTHER_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where a program may be although a user's PATH does not lead there."""


def _program_path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *_FURTHER_FOLDERS))


def observe(directory: str, *, timeout: float = 5.0) -> Observations:
    """Make every attempt in a child process that is given `timeout` seconds, and read the settings that explain it.

    Leaves nothing behind: what the child made in `directory` (or its nearest existing parent) is removed, whatever
    became of the child. Attempts the child did not come to are missing from the result.
    """
    uid = os.geteuid()
    wanted = wanted_id_map()
    place = _nearest(directory)
    try:
        with _workshop(place, wanted) as room:
            attempts, ended = _attempts(room, wanted, timeout)
    except OSError as problem:
        # no room in the store: everything else can still be tried in a temporary folder
        with _workshop(tempfile.gettempdir(), wanted) as room:
            attempts, ended = _attempts(room, wanted, timeout)
        attempts["overlay"] = Attempt(
            problem=f"cannot write in the store's folder: {problem.strerror}", errno=problem.errno or 0
        )
    subuid, subgid = small_text("/etc/subuid"), small_text("/etc/subgid")
    name = user_name_of(uid)
    return Observations(
        uid=uid,
        gid=os.getegid(),
        kernel=platform.release(),
        id_map=wanted,
        attempts=attempts,
        sysctls={each: small_text(f"/proc/sys/{each}").strip() for each in _SYSCTLS},
        filtered="\nSeccomp:\t2\n" in small_text("/proc/self/status"),
        in_container=any(map(os.path.exists, ("/.dockerenv", "/run/.containerenv")))
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        store_file_system=_file_system(place),
        free_bytes=_free_bytes(place),
        programs=tuple(program for program in _PROGRAMS if shutil.which(program, path=_program_path())),
        tun=os.access("/dev/net/tun", os.R_OK | os.W_OK),
        has_subuid=bool(own_entries(subuid, name, uid)),
        has_subgid=bool(own_entries(subgid, name, uid)),
        free_block=_free_block(subuid, subgid),
        ended=ended,
    )


def _nearest(directory: str) -> str:
    place = os.path.abspath(directory)
    while not os.path.isdir(place) and place != "/":
        place = os.path.dirname(place)
    return place


@contextlib.contextmanager
def _workshop(place: str, id_map: IdMap) -> Iterator[str]:
    """Lend an empty folder in `place` that belongs to container root."""
    room = tempfile.mkdtemp(prefix=".nbcontainer-probe-", dir=place)
    try:
        if id_map.method == "privileged":
            with contextlib.suppress(PermissionError):  # a root without CAP_CHOWN: the attempts will tell
                os.chown(room, id_map.uids[0].outside, id_map.gids[0].outside)
        yield room
    finally:
        _remove_tree(room)


def _remove_tree(room: str) -> None:
    """Remove what the child left; an overlay's own folder has mode 0, which stops anybody but root from looking."""
    with contextlib.suppress(OSError):
        os.chmod(os.path.join(room, "work", "work"), 0o700)
    shutil.rmtree(room, ignore_errors=True)


def _file_system(place: str) -> str:
    """Return the type of the file system `place` is on, by device number from mountinfo (proc(5))."""
    try:
        device = os.stat(place).st_dev
    except OSError:
        return ""
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in small_text("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == number:
            return after.split()[0]
    return ""


def _free_bytes(place: str) -> int:
    try:
        found = os.statvfs(place)
    except OSError:
        return -1
    return found.f_bavail * found.f_frsize


def _free_block(subuid_text: str, subgid_text: str) -> int:
    """Return where a block that no line uses begins, from useradd's own SUB_UID_MIN on."""
    taken = [(first, count) for _, first, count in (*entries(subuid_text), *entries(subgid_text))]
    start = 100000
    while any(overlap((start, CONTAINER_IDS), other) for other in taken):
        start += CONTAINER_IDS
    return start


def _attempts(room: str, id_map: IdMap, timeout: float) -> tuple[dict[str, Attempt], str]:
    """Run the child; return what it tried and, when it did not come to its end, why."""
    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    # appended, so that nothing that lies beside the package can stand in for the standard library
    code = f"import sys; sys.path.append(sys.argv[1]); from {__name__} import _child_main; _child_main()"
    request = {
        "room": room,
        "method": id_map.method,
        "uids": [[r.inside, r.outside, r.length] for r in id_map.uids],
        "gids": [[r.inside, r.outside, r.length] for r in id_map.gids],
    }
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, home, json.dumps(request)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        ended = ""
        try:
            said, complaint = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            ended = f"the attempts took longer than {timeout:g} s and were ended before it"
            _end_session(child.pid)
            said, complaint = child.communicate()
            for place in (place for hierarchy in machine_hierarchies() for place in hierarchy.places):
                remove_cgroup(f"{place}/{_probe_cgroup(child.pid)}", KernelFiles())
        except BaseException:
            _end_session(child.pid)
            raise
    attempts = {}
    for line in said.decode(errors="replace").splitlines():
        with contextlib.suppress(ValueError):  # a line cut off by the end of the child
            message = json.loads(line)
            name = message.pop("name")
            attempts[name] = Attempt(**message)
    if child.returncode and not ended:
        last = complaint.decode(errors="replace").strip().splitlines()[-1:] or [f"code {child.returncode}"]
        ended = f"the attempts ended early ({last[0]})"
    return attempts, ended


def _end_session(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


# --- inside the child -----------------------------------------------------------------------------------------------
# One thread, so it may fork and unshare. Every attempt writes one line, so a hang costs only what comes after it.
# Inside the namespace nothing may be imported, not even a codec: container root may not be able to read our Python.

_NAMESPACES = {
    "mount": CLONE_NEWNS,
    "cgroup": CLONE_NEWCGROUP,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "pid": CLONE_NEWPID,
    "network": CLONE_NEWNET,
}
_ALLOW_EVERYTHING = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW


def _attempt(name: str, action: Callable[[], str | None]) -> bool:
    """Make one attempt and tell the parent; a line is shorter than PIPE_BUF, so lines of two processes never mix."""
    message: dict[str, object] = {"name": name}
    try:
        message["detail"] = action() or ""
    except OSError as problem:
        message.update(problem=(problem.strerror or str(problem))[:500], errno=problem.errno or 0)
        message["detail"] = str(getattr(problem, "fix", ""))[:500]
    os.write(1, json.dumps(message).encode() + b"\n")
    return "problem" not in message


def _child_main() -> None:
    """Be the child: attempts that need no namespace, then those inside one."""
    request = json.loads(sys.argv[2])
    # everything below is relative to this folder: after entering the namespace its parents may be closed to us
    os.chdir(request["room"])
    _attempt("openat2", _try_openat2)
    _attempt("pidfd", lambda: os.close(pidfd_open(os.getpid())))
    _attempt("clone3", _try_clone)
    _attempt("close-range", lambda: close_range(1000))
    _attempt("seccomp", _try_seccomp)
    _attempt("libseccomp", _try_libseccomp)
    for controller in CGROUP_CONTROLLERS:
        _attempt(f"{controller}-cgroup", functools.partial(_try_cgroup, controller))
    id_map = IdMap(
        uids=tuple(IdRange(*row) for row in request["uids"]),
        gids=tuple(IdRange(*row) for row in request["gids"]),
        method=request["method"],
    )
    _try_user_namespace(id_map)


def _last(action: Callable[[], object]) -> NoReturn:
    """Do `action` as the last thing of this fork, whose exit code is its errno."""
    code = errno.EIO
    try:
        die_with_parent()
        action()
        code = 0
    except Exception as problem:  # noqa: BLE001 - a fork has nobody above it to raise to
        code = getattr(problem, "errno", None) or code
        os.write(2, f"{type(problem).__name__}: {problem}\n".encode())
    finally:
        os._exit(code)


def _in_fork(action: Callable[[], object]) -> int:
    """Do `action` in a fork and return its errno, 0 for success."""
    pid = os.fork()
    if pid == 0:
        _last(action)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _check(code: int, what: str) -> None:
    if code:
        raise OSError(code, f"{what}: {os.strerror(code) if code > 0 else f'ended by signal {-code}'}")


def _try_openat2() -> None:
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        os.close(openat2(here, ".", os.O_PATH, resolve=RESOLVE_IN_ROOT))
    finally:
        os.close(here)


def _try_seccomp() -> None:
    """Load a filter that allows everything, in a fork: a filter can never be taken off."""

    def load() -> None:
        forbid_new_privileges()
        load_filter(_ALLOW_EVERYTHING)

    _check(_in_fork(load), "loading a system call filter")


def _try_clone() -> None:
    pid, pidfd = clone_into(0)
    if pid == 0:
        os._exit(0)
    os.close(pidfd)
    os.waitpid(pid, 0)


def _try_libseccomp() -> str:
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError as problem:
        raise OSError(errno.ENOENT, f"libseccomp.so.2 cannot be loaded ({problem})") from problem
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return "version " + ".".join(str(number) for number in library.seccomp_version().contents)


CGROUP_CONTROLLERS = {
    "pids": "a limit on the number of processes",
    "memory": "limits on memory (--memory), and its use in stats",
    "cpu": "limits on processor time (--cpus, --cpu-shares)",
    "cpuset": "keeping containers to some processors (--cpuset-cpus)",
    "freezer": "pausing containers",
}
"""What a person misses without each controller."""


def _probe_cgroup(pid: int) -> str:
    return f"nbcontainer-probe-{pid}"


def _try_cgroup(controller: str) -> str:
    """Make a cgroup, put a process in, remove it: rights on folders do not tell (cgroups(7), delegation)."""
    known = machine_hierarchies()
    hierarchy = controller_of(known, controller)
    layout = layout_of(known)
    if hierarchy is None:
        raise OSError(errno.ENOENT, f"there is no {controller} hierarchy (layout {layout})")
    files = KernelFiles()
    wanted = frozenset({controller}) & hierarchy.controllers
    group = make_cgroup(hierarchy, _probe_cgroup(os.getpid()), wanted, files, leaf=INSIDE)
    try:
        # a process to move: cgroup v2 refuses what is not below a common ancestor of ours
        enter = functools.partial(write_text, f"{group}/{INSIDE}/cgroup.procs", "0")
        _check(_in_fork(enter), f"entering a {controller} cgroup")
    finally:
        remove_cgroup(group, files)
    return f"made and entered one (cgroup v{hierarchy.version}, layout {layout})"


def _try_user_namespace(id_map: IdMap) -> None:
    """Fork into a new user namespace, have its map written, and go on inside."""
    ready, say_ready = os.pipe()
    go, say_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        os.close(say_go)
        _last(lambda: _enter(say_ready, go, id_map))
    os.close(say_ready)
    os.close(go)
    if os.read(ready, 1):
        tried = not id_map.single and _attempt("id-map", lambda: _write_map(pid, id_map))
        if tried and id_map.method == "privileged":
            _attempt("idmapped-mounts", lambda: _try_idmapped_mount(pid))
        os.write(say_go, b"m" if tried else b"s")
    _check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "the process in a user namespace")


def _write_map(pid: int, id_map: IdMap) -> None:
    problem = write_map(pid, id_map)
    if problem:
        raise OSError(errno.EPERM, problem)


def _enter(say_ready: int, go: int, id_map: IdMap) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if not _attempt("user-namespace", lambda: unshare(CLONE_NEWUSER)):
        return
    os.write(say_ready, b".")
    single = os.read(go, 1) != b"m"

    def become_root() -> None:
        if single:
            write_text("/proc/self/setgroups", "deny")  # else the gid map is refused (user_namespaces(7))
            write_text("/proc/self/uid_map", f"0 {uid} 1")
            write_text("/proc/self/gid_map", f"0 {gid} 1")
        else:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)

    if not _attempt("own-map", become_root):
        return
    die_with_parent()  # changing ids clears it (prctl(2))
    for kind, flag in _NAMESPACES.items():
        if not _attempt(f"namespace-{kind}", functools.partial(unshare, flag)) and kind == "mount":
            return  # a mount made now would be the host's
    _attempt("hostname", lambda: sethostname("probe"))
    pid = os.fork()  # the first process of the new pid namespace
    if pid == 0:
        _last(lambda: _try_mounts(terminals=id_map.holds_gid(5) and not single))
    _check(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "the first process of a pid namespace")


def _try_mounts(*, terminals: bool) -> None:
    mount("", "/", "", MS_REC | MS_PRIVATE)
    for name in ("proc", "sysfs", "mqueue", "devpts", "tmpfs", "tree", "moved"):
        os.mkdir(name)
    quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC
    group = ",gid=5" if terminals else ""
    _attempt("proc", lambda: mount("proc", "proc", "proc", quiet))
    _attempt("sysfs", lambda: mount("sysfs", "sysfs", "sysfs", quiet))
    _attempt("mqueue", lambda: mount("mqueue", "mqueue", "mqueue", quiet))
    _attempt(
        "devpts",
        lambda: mount(
            "devpts", "devpts", "devpts", MS_NOSUID | MS_NOEXEC, f"newinstance,ptmxmode=0666,mode=0620{group}"
        ),
    )
    _attempt("tmpfs", lambda: mount("tmpfs", "tmpfs", "tmpfs", quiet, "mode=755,size=1m"))
    _attempt("mount-api", _try_mount_api)
    _attempt("overlay", _try_overlay)
    _attempt("whiteouts", lambda: os.mknod("whiteout", stat.S_IFCHR, 0))
    _attempt("overlay-long-chains", _try_long_chain)


def _try_mount_api() -> None:
    """Copy a mount, make the copy read-only and attach it elsewhere: what preparing a container's /dev comes to."""
    mount("tmpfs", "tree", "tmpfs")
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    target = os.open("moved", os.O_PATH | os.O_DIRECTORY)
    tree = clone_tree(here, "tree")
    set_attributes(tree, MOUNT_ATTR_RDONLY)
    move_tree(tree, target)
    for fd in (here, target, tree):
        os.close(fd)


def _try_overlay() -> None:
    """Mount one on the store's file system, then copy up, delete and replace: each needs more than the mount did."""
    for name in ("lower", "upper", "work", "merged", "lower/folder"):
        os.mkdir(name)
    for name in ("lower/kept", "lower/gone", "lower/folder/inner"):
        with open(name, "w", encoding="utf-8") as file:
            file.write("lower")
    mount("overlay", "merged", "overlay", 0, "userxattr,lowerdir=lower,upperdir=upper,workdir=work")
    with open("merged/kept", "a", encoding="utf-8") as file:
        file.write(" and upper")
    os.unlink("merged/gone")
    os.unlink("merged/folder/inner")
    os.rmdir("merged/folder")
    os.mkdir("merged/folder")
    if os.listdir("merged/folder") or os.path.exists("merged/gone") or not os.path.exists("upper/kept"):
        raise OSError(errno.EIO, "an overlay showed files that were deleted from it")
    # without user xattrs the kernel mounts all the same and forgets what it cannot note (overlayfs documentation)
    os.getxattr("upper/folder", "user.overlay.opaque")


def _try_long_chain() -> None:
    for name in ("first", "second"):
        os.mkdir(name)
    os.close(new_overlay(("first", "second"), "", "", ("userxattr",)))


def _try_idmapped_mount(pid: int) -> None:
    """Shift a copy of this folder's mount into the namespace of `pid`; it is never attached, so it ends with its fd."""
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    tree = clone_tree(here, ".")
    try:
        set_attributes(tree, MOUNT_ATTR_IDMAP, userns=namespace)
    finally:
        for fd in (tree, here, namespace):
            os.close(fd)
