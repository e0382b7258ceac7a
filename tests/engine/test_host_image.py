"""Planning a container on the machine's own root, from made-up mount tables and folders."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine.host_image import (
    home_folders,
    host_config,
    mount_points,
    plan_as_root,
    plan_as_user,
    present,
    real_file_systems,
    secrets,
)

if TYPE_CHECKING:
    from pathlib import Path

MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
24 22 0:22 / /sys rw - sysfs sysfs rw
25 22 0:5 / /dev rw - devtmpfs udev rw
26 22 0:23 / /run rw master:2 propagate_from:1 - tmpfs tmpfs rw
27 22 8:2 / /home rw - xfs /dev/sda2 rw
28 27 8:3 / /home/a\\040b\\134c rw - btrfs /dev/sda3 rw
29 22 0:30 / /mnt/nfs rw - nfs4 server:/x rw
30 22 8:4 / /tmp/disk rw - ext4 /dev/sdb rw
31 22 0:40 / /data rw - tmpfs tmpfs rw
32 22 8:5 / /data rw - ext4 /dev/sdc rw
damaged line
33 22 - ext4
"""


def test_mount_points() -> None:
    """Paths are unescaped, the topmost mount counts, and damaged lines are left out."""
    kinds = {point.path: point.kind for point in mount_points(MOUNTINFO)}
    assert kinds["/home/a b\\c"] == "btrfs"
    assert kinds["/data"] == "ext4"
    assert kinds["/run"] == "tmpfs"
    assert len(kinds) == 10


def test_real_file_systems() -> None:
    """Those that hold files people know, upper ones first; /tmp and the kernel's are not among them."""
    assert real_file_systems(mount_points(MOUNTINFO)) == ("/", "/data", "/home", "/home/a b\\c")
    assert real_file_systems(()) == ("/",)


def test_plan_as_root() -> None:
    """Each file system has an overlay of its own over a clone with shifted ids, then our /run and /tmp, then masks."""
    mounts = plan_as_root(("/", "/home"), "/store/c", ("/root/.ssh", "/root/.aws", "/root/.ssh"))
    assert [m.target for m in mounts if m.kind == "overlay"] == ["/", "/home"]
    assert {"/run", "/tmp"} <= {m.target for m in mounts if m.kind == "tmpfs"}
    assert [m.target for m in mounts if m.kind == "mask"] == ["/root/.ssh", "/root/.aws"]
    order = [("overlay", "tmpfs", "mask").index(m.kind) for m in mounts]
    assert order == sorted(order)
    overlays = [m for m in mounts if m.kind == "overlay"]
    assert all(m.idmapped and m.lower == (m.target,) for m in overlays)
    assert len({m.upper for m in overlays} | {m.work for m in overlays}) == 4
    assert next(m for m in mounts if m.target == "/tmp").mode == 0o1777


def test_plan_as_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh root; links as links, a folder as an overlay, one with mounts inside entered; hidden ones left out."""
    for name in ("usr/lib", "home/me", "home/disk", "proc", "sys", "dev", "run", "tmp", "deep/a/b/c/d/mounted"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "file").touch()
    real_scandir, real_readlink, real_access = os.scandir, os.readlink, os.access
    monkeypatch.setattr("nbcontainer.engine.host_image.os.scandir", lambda path: real_scandir(f"{tmp_path}{path}"))
    monkeypatch.setattr("nbcontainer.engine.host_image.os.readlink", lambda path: real_readlink(f"{tmp_path}{path}"))
    monkeypatch.setattr(
        "nbcontainer.engine.host_image.os.access", lambda path, mode: real_access(f"{tmp_path}{path}", mode)
    )
    points = mount_points(
        "1 0 8:1 / / rw - ext4 x rw\n"
        "2 1 8:2 / /home/disk rw - ext4 x rw\n"
        "3 1 8:3 / /deep/a/b/c/d/mounted rw - ext4 x rw\n"
    )
    planned = plan_as_user(points, "/store/c", ("/home/me/.ssh",))
    private = [m.target for m in planned if m.target in {"/run", "/tmp"}]
    assert private == ["/run", "/tmp"]
    assert planned[-1].kind == "mask"
    assert [(m.kind, m.target) for m in planned if not m.target.startswith(("/run", "/tmp", "/var"))] == [
        ("tmpfs", "/"),
        ("symlink", "/bin"),
        ("tmpfs", "/deep"),
        ("tmpfs", "/deep/a"),
        ("tmpfs", "/deep/a/b"),
        ("bind", "/deep/a/b/c"),
        ("bind", "/file"),
        ("tmpfs", "/home"),
        ("overlay", "/home/disk"),
        ("overlay", "/home/me"),
        ("overlay", "/usr"),
        ("mask", "/home/me/.ssh"),
    ]
    uppers = [m.upper for m in planned if m.kind == "overlay"]
    assert len(set(uppers)) == 3
    folder, file = (m for m in planned if m.kind == "bind")
    assert folder.read_only
    assert file.read_only
    assert folder.recursive


def test_secrets() -> None:
    """Every home's secrets, the system's, the store; nothing that is hidden anyway; no home is the root."""
    hidden = secrets(["/home/a/", "/root", "/", ""], "/srv/store", ("/x/runtime", "", "/tmp/y"))
    assert {
        "/home/a/.ssh",
        "/root/.aws",
        "/home/a/.local/share/jupyter/runtime",
        "/etc/shadow",
        "/srv/store",
        "/x/runtime",
    } <= set(hidden)
    assert not any(path.startswith(("/tmp", "/run", "//", "/.")) for path in hidden)


KEPT_BY_TOOLS = """
    .ssh/id_ed25519 .aws/credentials .claude/.credentials.json .claude.json .codex/auth.json .gemini/oauth_creds.json
    .config/gh/hosts.yml .config/gcloud/credentials.db .config/git/credentials .config/google-chrome .config/chromium
    .azure/msal_token_cache.json .oci/config .kaggle/kaggle.json .huggingface/token .cache/huggingface/token .pypirc
    .netrc .git-credentials .terraform.d/credentials.tfrc.json .vault-token .password-store/x.gpg
    .local/share/keyrings/login.keyring .mozilla/firefox .thunderbird/profiles.ini .bash_history .zsh_history
    .local/share/fish/fish_history .python_history .node_repl_history .ipython/profile_default/history.sqlite
    .psql_history .viminfo .docker/config.json .kube/config .npmrc .cargo/credentials.toml .condarc .env
    """


@pytest.mark.parametrize("name", KEPT_BY_TOOLS.split())
def test_each_secret_is_listed(name: str) -> None:
    """What people's tools keep in a home folder is hidden: itself, or a folder above it."""
    hidden = secrets(["/home/a"], "/store")
    assert any(f"/home/a/{name}" == path or f"/home/a/{name}".startswith(f"{path}/") for path in hidden)


def test_work_is_not_hidden() -> None:
    """What people work with stays: code, packages, data, the caches of package managers."""
    hidden = secrets(["/home/a"], "/store")
    work = """
        work/x.py .local/lib/python3.12 .local/bin .cache/pip .cargo/bin .gitconfig .bashrc .cache/huggingface/hub
        .m2/repository .ipython/profile_default/startup .julia/packages
    """
    for name in work.split():
        assert not any(f"/home/a/{name}" == path or f"/home/a/{name}".startswith(f"{path}/") for path in hidden), name


def test_present(tmp_path: Path) -> None:
    """Only what is there is hidden; a link counts, wherever it leads."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    names = [str(tmp_path / name) for name in ("file", "link", "none", "file/below")]
    assert present(names) == tuple(names[:2])


def test_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own, root's, those in /home and those of accounts elsewhere; a damaged account is left out."""
    passwd = tmp_path / "passwd"
    passwd.write_bytes(b"a:x:1:1::/srv/a:/bin/sh\nb:x:2:2\n\xff:x:3:3::/srv/\xff:/bin/sh\nc:x:4:4:::/bin/sh\n\n")
    real_open, real_scandir = open, os.scandir
    (tmp_path / "home/d").mkdir(parents=True)
    monkeypatch.setattr(
        "builtins.open", lambda path, *a, **k: real_open(passwd if path == "/etc/passwd" else path, *a, **k)
    )
    monkeypatch.setattr("nbcontainer.engine.host_image.os.scandir", lambda path: real_scandir(f"{tmp_path}{path}"))
    assert home_folders("/own") == ("/own", "/root", f"{tmp_path}/home/d", "/srv/a", "/srv/\udcff")


def test_config() -> None:
    """Of the notebook's environment the path and the language are kept; cells start where the notebook is."""
    variables = {"PATH": "/bin", "LANG": "C.UTF-8", "JUPYTER_TOKEN": "x", "AWS_KEY": "y", "LC_ALL": ""}
    config = host_config(variables, "/home/me/work")
    assert {entry.partition("=")[0] for entry in config.environment} == {"PATH", "LANG", "HOME"}
    assert (config.working_directory, config.command) == ("/home/me/work", ("/bin/sh",))


@pytest.mark.parametrize("directory", ["/tmp", "/tmp/x", "/run/user/0", "/proc/1"])
def test_directory_that_is_not_there(directory: str) -> None:
    """A notebook in a folder that is hidden starts its cells at the root."""
    assert host_config({}, directory).working_directory == "/"
