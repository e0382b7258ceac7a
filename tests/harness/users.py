"""Acting as unprivileged users: most people of this package are not root, while its tests often are.

`user_with_range` has subordinate ids (useradd allots them), `user_without_range` has none: the two tiers below root.
Both are made once a session, by root only, and removed with everything they left. `run_as` runs a command as one.

Their Python: the interpreter of this session is used when they can run it. Often they cannot (a Python in somebody's
home, a virtual environment made from it). Then a *mirror* is made once, in a temporary folder that all can read:
interpreter, standard library, site-packages and this package, as hard links where the file system allows (a second),
as copies elsewhere. So it is the session's own version with the same compiled modules, without network or pip. It is
a snapshot: sources edited during a session are not seen by it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import nbcontainer
from tests.harness.host import absence
from tests.harness.patience import patient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["User", "mirrored_python", "run_as", "user_with_range", "user_without_range"]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An unprivileged user; `python` can import this package, and `ranges` are its blocks of uids (first, count)."""

    name: str
    uid: int
    gid: int
    home: str
    python: str
    ranges: tuple[tuple[int, int], ...] = ()


def run_as(
    user: User,
    argv: Sequence[str],
    *,
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
    input: str | None = None,  # noqa: A002 - the name subprocess.run gives it
) -> subprocess.CompletedProcess[str]:
    """Run a command as `user` in a session of its own, with no supplementary groups, from its home folder.

    Of our environment only PATH and the locale are kept; `env` is added to it. Output is text; on a timeout the whole
    session is killed and `subprocess.TimeoutExpired` raised. ``run_as(user, [user.python, "-c", ...])`` can import
    us.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in os.environ}
    kept["PATH"] = os.path.dirname(user.python) + os.pathsep + kept.get("PATH", os.defpath)
    environment = {**kept, "HOME": user.home, "USER": user.name, "LOGNAME": user.name, **(env or {})}
    with subprocess.Popen(
        list(argv),
        cwd=cwd or user.home,
        env=environment,
        user=user.uid,
        group=user.gid,
        extra_groups=[],
        umask=0o022,
        start_new_session=True,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            out, err = process.communicate(input, timeout=patient(timeout))
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)


@pytest.fixture(scope="session")
def user_with_range(request: pytest.FixtureRequest) -> Iterator[User]:
    """Lend a user that has subordinate uids and gids."""
    with _made_user(request, f"nbc-range-{secrets.token_hex(4)}") as user:
        assert user.ranges, "useradd allotted no subordinate ids: see SUB_UID_COUNT in /etc/login.defs"
        yield user


@pytest.fixture(scope="session")
def user_without_range(request: pytest.FixtureRequest) -> Iterator[User]:
    """Lend a user that has no subordinate ids at all."""
    # useradd allots none to system users
    with _made_user(request, f"nbc-single-{secrets.token_hex(4)}", "--system") as user:
        assert not user.ranges
        yield user


@contextlib.contextmanager
def _made_user(request: pytest.FixtureRequest, name: str, *options: str) -> Iterator[User]:
    reason = absence("subids")
    if reason:
        pytest.skip(reason)
    python: str = request.getfixturevalue("mirrored_python")
    _administer("useradd", "--create-home", "--shell", "/bin/sh", *options, name)
    try:
        entry = pwd.getpwnam(name)
        found = _ranges("/etc/subuid", name)
        assert bool(found) == bool(_ranges("/etc/subgid", name)), f"{name} has subordinate ids of one kind only"
        yield User(
            name=name,
            uid=entry.pw_uid,
            gid=entry.pw_gid,
            home=entry.pw_dir,
            python=python,
            ranges=found,
        )
    finally:
        _kill_everything_of(pwd.getpwnam(name).pw_uid, _ranges("/etc/subuid", name))
        _administer("userdel", "--remove", name)


def _administer(*argv: str) -> None:
    """Run useradd or userdel; another session may hold the lock of /etc/passwd (exit code 1) for a moment."""
    for _ in range(20):
        done = subprocess.run(argv, capture_output=True, text=True, timeout=patient(60), check=False)
        if done.returncode != 1:
            break
        time.sleep(0.25)
    # 12: userdel found no mail spool to remove beside the home folder
    assert done.returncode in {0, 12}, f"{argv[0]}: {done.stderr.strip()}"


def _ranges(path: str, name: str) -> tuple[tuple[int, int], ...]:
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        lines = [line.strip().split(":") for line in file]
        return tuple((int(line[1]), int(line[2])) for line in lines if line[0] == name)
    return ()


def _kill_everything_of(uid: int, ranges: tuple[tuple[int, int], ...]) -> None:
    """Kill the user's processes and those of its containers, whose ids lie in its ranges."""
    blocks = ((uid, 1), *ranges)
    for _ in range(50):
        living = [pid for pid, owner in _owners() if any(first <= owner < first + count for first, count in blocks)]
        if not living:
            return
        for pid in living:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)


def _owners() -> Iterator[tuple[int, int]]:
    """Give each process and its real uid; the owner of its /proc folder would be root for one that is not dumpable."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
            fields = dict(line.split(":", 1) for line in file if ":" in line)
            yield int(name), int(fields["Uid"].split()[0])


# --- a Python that others can run ---------------------------------------------------------------------------------

_CHECK = "import nbcontainer, requests, traitlets"


@pytest.fixture(scope="session")
def mirrored_python() -> Iterator[str]:
    """Lend an interpreter that any user can run and that can import the package and what it stands on."""
    nobody = 65534
    if not _complaint(sys.executable, nobody, nobody):
        yield sys.executable
        return
    with tempfile.TemporaryDirectory(prefix="nbc-python-", dir=_public_folder()) as top:
        python = _mirror(top)
        complaint = _complaint(python, nobody, nobody)
        assert not complaint, f"the mirrored Python does not run as an unprivileged user: {complaint}"
        yield python


def _complaint(python: str, uid: int, gid: int) -> str:
    try:
        done = subprocess.run(
            [python, "-c", _CHECK],
            cwd="/",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            user=uid,
            group=gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            timeout=patient(60),
            check=False,
        )
    except OSError as problem:
        return str(problem)
    return done.stderr.strip() if done.returncode else ""


def _public_folder() -> str:
    """Return a temporary folder that everybody can reach."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp"):
        if all(each.stat().st_mode & 0o001 for each in (Path(place), *Path(place).resolve().parents)):
            return place
    raise AssertionError("no temporary folder is reachable for other users")


def _link(source: str, target: str) -> str:
    """Link a file that others may read, else copy it and let them: changing a link's mode would change the original."""
    mode = os.stat(source).st_mode
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)  # never write through a link made before
    if mode & 0o004 and not os.path.islink(source):
        with contextlib.suppress(OSError):  # another file system
            os.link(source, target)
            return target
    shutil.copyfile(source, target)
    os.chmod(target, 0o755 if mode & 0o100 else 0o644)
    return target


def _copy_tree(source: str, target: str, *leave_out: str) -> None:
    shutil.copytree(
        source,
        target,
        copy_function=_link,
        ignore=shutil.ignore_patterns(*leave_out),
        ignore_dangling_symlinks=True,
        dirs_exist_ok=True,
    )


def _mirror(top: str) -> str:
    """Mirror interpreter and libraries below `top`, and return the interpreter."""
    os.chmod(top, 0o755)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = f"{top}/lib/{version}"
    site = f"{library}/site-packages"
    _copy_tree(sysconfig.get_path("stdlib"), library, "site-packages", "test", "idlelib", "ensurepip")
    for folder in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        _copy_tree(folder, site, "jupyterlab", "mypy", "*.pth", "__editable__*")
    _copy_tree(os.path.dirname(nbcontainer.__file__), f"{site}/nbcontainer", "__pycache__")
    os.mkdir(f"{top}/bin")
    python = f"{top}/bin/{version}"
    _link_interpreter(os.path.realpath(sys.executable), python, top)
    for each in Path(top).rglob("*"):
        if each.is_dir() and not each.is_symlink():
            each.chmod(0o755)
    os.symlink(version, f"{top}/bin/python3")
    os.symlink(version, f"{top}/bin/python")
    return python


def _link_interpreter(source: str, target: str, top: str) -> None:
    """Copy the interpreter and, where it has one, its shared library.

    A library outside the system's folders is found by a path written into the program (RUNPATH, ld.so(8)), which
    names the original folder. Rewriting it in the copy, rather than setting LD_LIBRARY_PATH, also serves children
    that are started with an environment of their own.
    """
    folder = os.path.join(sys.base_prefix, "lib")
    for library in Path(folder).glob("libpython*.so*"):
        _link(os.path.realpath(library), f"{top}/lib/{library.name}")
    program = Path(source).read_bytes()
    old, new = os.fsencode(folder) + b"\0", b"$ORIGIN/../lib\0"
    Path(target).write_bytes(program.replace(old, new.ljust(len(old), b"\0")) if len(old) >= len(new) else program)
    os.chmod(target, 0o755)
