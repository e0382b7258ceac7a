"""The machine's own root, copy-on-write: what a person would not show to a stranger is not there, and nothing of it changes."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nbcontainer._linux import mounts
from nbcontainer.engine.host_image import secrets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.tiers import Driver, Tier

SECRET = "correct horse battery staple"


@pytest.fixture
def home(tier: Tier) -> Iterator[Path]:
    """Lend a home folder outside of /tmp, with a secret in every place that tools keep one, and a file that is none."""
    if tier.user is not None:
        path = tier.folder("home")
    elif tier.privileged:
        path = Path(tempfile.mkdtemp(prefix="nbcontainer-test-", dir="/home"))
    else:
        pytest.skip("needs a home folder that may be filled")
    for name in (*secret_names(), ".jupyter/jupyter_server_config.json", "open/file"):
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("for everybody" if name == "open/file" else SECRET)
    (path / ".netrc").unlink()
    (path / ".netrc").symlink_to("open/../.netrc-elsewhere")
    (path / ".netrc-elsewhere").write_text(SECRET)
    if tier.user is not None:
        for each in (path, *path.rglob("*")):
            os.chown(each, tier.user.uid, tier.user.gid, follow_symlinks=False)
    yield path
    shutil.rmtree(path)


def secret_names() -> tuple[str, ...]:
    """Files to fill: each secret as a file in a folder of its name, or as the file itself."""
    folders = {
        ".ssh": "id_ed25519", ".gnupg": "secring.gpg", ".aws": "credentials", ".azure": "token", ".config": "gh/hosts.yml",
        ".docker": "config.json", ".kube": "config", ".local/share/jupyter/runtime": "kernel-1.json", ".password-store": "x",
        ".local/share/keyrings": "login.keyring", ".mozilla": "cookies.sqlite", ".oci": "key.pem", ".kaggle": "kaggle.json",
        ".ipython/profile_default/security": "ipcontroller.json", ".local/share/nbcontainer": "blob", ".terraform.d": "x",
        ".huggingface": "token", ".gem": "credentials", ".cargo": "credentials.toml", ".jupyter": "x", ".thunderbird": "x",
        ".snowflake": "x", ".claude": ".credentials.json", ".codex": "auth.json", ".gemini": "oauth_creds.json",
        ".cache/huggingface/token": "", ".local/share/fish": "fish_history", ".local/share/atuin": "history.db",
        ".pki": "nssdb/key4.db", "snap/firefox": "common/key4.db", ".var/app": "org.mozilla.firefox/key4.db",
    }  # fmt: skip
    files = (
        ".netrc",
        ".pgpass",
        ".git-credentials",
        ".pypirc",
        ".npmrc",
        ".bash_history",
        ".my.cnf",
        ".vault-token",
        ".claude.json",
        ".zsh_history",
        ".python_history",
        ".env",
        ".condarc",
    )
    return (*(f"{folder}/{name}".rstrip("/") for folder, name in folders.items()), *files)


@pytest.fixture
def driver(tier: Tier, home: Path) -> Iterator[Driver]:
    """Lend an engine of the person whose home that is."""
    with tier.spawn(environment={"HOME": str(home)}, root=str(tier.folder("store"))) as driver:
        yield driver


def test_secrets_are_hidden(tier: Tier, driver: Driver, home: Path) -> None:
    """No secret of the home folder can be read or found; other files can."""
    look = f"cat {home}/open/file; grep -rs '{SECRET}' {home}; cat {home}/.netrc; true"
    assert driver.run(script=look, image="host").stdout == "for everybody"


def test_secrets_of_the_system_are_hidden(driver: Driver) -> None:
    """Password hashes and host keys show nothing, also to container root."""
    paths = " ".join(secrets([], ""))
    result = driver.run(
        script=f"for each in {paths} /etc/ssh/ssh_host_*_key; do cat $each 2>/dev/null; ls -A $each/ 2>/dev/null; done; true",
        image="host",
    )
    assert result.stdout == ""


def test_secrets_come_back_by_no_trick(driver: Driver, home: Path) -> None:
    """Moving, linking, or removing what hides a secret does not bring it back."""
    script = f"""
        cd {home}
        mv .ssh ssh-moved; rmdir .ssh; rm -rf .ssh
        ln .netrc-elsewhere hard; ln .git-credentials hard2; cp -a . /tmp/copy
        mv {home} {home}-moved; cd {home}-moved 2>/dev/null
        umount {home}/.ssh; umount -l .ssh
        grep -rs '{SECRET}' {home} {home}-moved /tmp /proc/self/root{home} . && echo FOUND
    """
    result = driver.run(script=script, image="host")
    assert SECRET not in result.stdout.replace(f"grep -rs '{SECRET}'", "")


def test_run_and_tmp_are_the_containers_own(driver: Driver) -> None:
    """The machine's /run and /tmp, with their sockets, are not there."""
    assert driver.run(script="ls -A /tmp /run", image="host").stdout == "/run:\n\n/tmp:\n"


def test_nothing_changes(driver: Driver, tier: Tier, home: Path) -> None:
    """What a cell removes or writes on the machine's root is untouched outside."""
    script = f"rm -rf {home}/open /usr/local /etc/hostname 2>/dev/null; echo x > {home}/new; ls -A {home}/open; cat {home}/new; touch /new-at-root; true"
    result = driver.run(script=script, image="host")
    assert result.stdout == "x\n"
    assert (home / "open/file").read_text() == "for everybody"
    assert not (home / "new").exists()
    assert os.path.isdir("/usr/local")
    assert not os.path.exists("/new-at-root")


def test_environment_of_the_notebook(driver: Driver) -> None:
    """Of the notebook's environment a cell gets the path, the language and the home, and nothing else."""
    names = {line.partition("=")[0] for line in driver.run("env", image="host").stdout.splitlines()}
    assert names <= {"PATH", "LANG", "LC_ALL", "LC_CTYPE", "HOME", "HOSTNAME", "PWD", "APT_CONFIG"}


def test_starts_where_the_notebook_is(driver: Driver, home: Path) -> None:
    """A cell starts in the notebook's folder."""
    driver.begin("chdir", path=str(home / "open"))
    driver.finish()
    assert driver.run(script="pwd; cat file", image="host").stdout == f"{home}/open\nfor everybody"


@pytest.mark.root
def test_file_that_is_mounted(tier: Tier) -> None:
    """A machine that is itself a container has files mounted over files; those around them are shown, too."""
    folder = Path(f"/srv/nbcontainer-{tier.name}-{os.getpid()}")
    folder.mkdir()
    mounted = folder / "mounted"
    try:
        for name in ("mounted", "beside", "over"):
            (folder / name).write_text(f"{name}\n")
        mounts.mount(str(folder / "over"), str(mounted), "", mounts.MS_BIND)
        with tier.spawn(root=str(tier.folder("store"))) as driver:
            shown = driver.run("cat", str(folder / "beside"), image="host")
            assert shown.stdout == "beside\n", shown
            if not tier.privileged:
                assert driver.run("cat", str(mounted), image="host").stdout == "over\n"
                assert not driver.run("sh", "-c", f"echo x > {folder}/beside", image="host").ok
    finally:
        with contextlib.suppress(OSError):
            mounts.unmount(str(mounted))
        shutil.rmtree(folder)
