"""The embedded image: this machine's own root, copy-on-write. Pure planning from the mount table and the folders.

As root, each real file system is shown with its ids shifted into the containers' namespace, under an overlay:
container root may change everything, in its copy. As a user, the kernel does not let us clone ``/`` with the mounts
locked below it, so each top folder gets an overlay of its own; files that belong to others can be read as far as the
user could, and not changed (their copy-up answers EOVERFLOW).

What a sandbox should not see is masked: secrets in home folders, Jupyter's runtime files, password hashes and host
keys, this package's store, the machine's /run and /tmp.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbcontainer.model import ImageConfig, Mount, Platform

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "HOST_IMAGE",
    "home_folders",
    "host_config",
    "host_keys",
    "mount_points",
    "plan_as_root",
    "plan_as_user",
    "present",
    "real_file_systems",
    "secrets",
]

HOST_IMAGE = "host"

_REAL_TYPES = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "bcachefs", "overlay"})
_REPLACED = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp")  # noqa: S108 - the names of what is hidden
_SECRET_IN_HOME = (
    # keys, and what unlocks them
    ".ssh", ".gnupg", ".pki", ".putty", ".password-store", ".local/share/keyrings", ".gnome2/keyrings",
    ".local/share/kwalletd", ".vault-token", ".authinfo", ".authinfo.gpg", ".netrc", "_netrc", ".secrets", ".env",
    ".envrc", ".Xauthority", ".ICEauthority", ".dbus", ".vnc", ".openvpn", ".bitcoin", ".ethereum", ".electrum",
    # gh, gcloud, git/credentials, google-chrome, chromium, github-copilot, op, rclone, sops, doctl, pip, nushell, …
    ".config",
    # clouds and what deploys to them
    ".aws", ".azure", ".oci", ".boto", ".s3cfg", ".passwd-s3fs", ".mc", ".rclone.conf", ".aliyun", ".bluemix",
    ".kube", ".minikube", ".docker", ".terraform.d", ".terraformrc", ".pulumi", ".fly", ".netlify", ".wrangler",
    ".cloudflared", ".ngrok2", ".snowflake", ".snowsql", ".databrickscfg", ".bigqueryrc", ".modal.toml", ".lightning",
    ".ansible/galaxy_token", ".vault_pass",
    # coding agents: keys, and whole conversations
    ".claude", ".claude.json", ".codex", ".gemini", ".qwen", ".cursor", ".continue", ".codeium", ".windsurf",
    ".copilot", ".aider.conf.yml", ".aider", ".local/share/opencode", ".local/share/goose", ".ollama/id_ed25519",
    ".ollama/history",
    # packages, code and data sets
    ".git-credentials", ".hgrc", ".subversion/auth", ".pypirc", ".pip", ".condarc", ".continuum", ".npmrc",
    ".yarnrc.yml", ".cargo/credentials", ".cargo/credentials.toml", ".gem/credentials", ".bundle/config",
    ".composer/auth.json", ".m2/settings.xml", ".m2/settings-security.xml", ".gradle/gradle.properties",
    ".nuget/NuGet", ".huggingface", ".cache/huggingface/token", ".cache/huggingface/stored_tokens", ".kaggle",
    ".comet.config", ".local/share/uv/credentials",
    # databases and mail
    ".pgpass", ".my.cnf", ".mylogin.cnf", ".msmtprc", ".muttrc", ".mutt", ".fetchmailrc", ".getmail", ".mbsyncrc",
    ".offlineimaprc", ".thunderbird", ".purple", ".local/share/evolution", "Maildir",
    # browsers
    ".mozilla", ".cache/mozilla", ".cache/google-chrome", ".cache/chromium", ".var/app", "snap/firefox",
    "snap/chromium", "snap/thunderbird",
    # histories: people type passwords
    ".bash_history", ".zsh_history", ".zhistory", ".histfile", ".sh_history", ".ksh_history", ".ash_history",
    ".history", ".local/share/fish", ".local/share/atuin", ".python_history", ".local/state/python_history",
    ".node_repl_history", ".irb_history", ".Rhistory", ".julia/logs", ".psql_history", ".mysql_history",
    ".sqlite_history", ".rediscli_history", ".mongodb", ".dbshell", ".lesshst", ".viminfo", ".local/share/nvim/shada",
    # this notebook
    ".jupyter", ".local/share/jupyter/runtime", ".local/share/nbcontainer", ".ipython/profile_default/security",
    ".ipython/profile_default/history.sqlite", ".ipython/profile_default/history.sqlite-journal",
    ".ipython/profile_default/log",
)  # fmt: skip
_SECRET_OF_SYSTEM = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/security/opasswd", "/etc/sudoers",
    "/etc/sudoers.d", "/var/lib/sudo", "/var/backups", "/etc/ssl/private", "/etc/pki/tls/private", "/etc/letsencrypt",
    "/etc/krb5.keytab", "/var/lib/sss", "/var/lib/samba/private", "/etc/credstore", "/etc/credstore.encrypted",
    "/var/lib/systemd/credential.secret", "/etc/cryptsetup-keys.d", "/etc/luks", "/swapfile", "/swap.img",
    "/etc/wireguard", "/etc/openvpn", "/etc/ipsec.secrets", "/etc/ipsec.d/private", "/etc/swanctl/private",
    "/etc/ppp/chap-secrets", "/etc/ppp/pap-secrets", "/etc/NetworkManager/system-connections", "/etc/netplan",
    "/etc/wpa_supplicant", "/etc/mysql/debian.cnf", "/etc/exim4/passwd.client", "/etc/postfix/sasl_passwd",
    "/etc/postfix/sasl_passwd.db", "/var/mail", "/var/spool/mail", "/var/spool/cron", "/var/lib/cloud",
    "/etc/docker", "/etc/containers/auth.json", "/etc/kubernetes", "/etc/rancher", "/var/lib/rancher",
    "/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/var/lib/kubelet", "/var/lib/nbcontainer",
)  # fmt: skip
_DEPTH = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MountPoint:
    """A line of /proc/self/mountinfo, as far as we need it (proc_pid_mountinfo(5))."""

    path: str
    kind: str


def mount_points(mountinfo: str) -> tuple[MountPoint, ...]:
    """Read mountinfo; a path mounted twice counts as its topmost mount."""
    found: dict[str, MountPoint] = {}
    for line in mountinfo.splitlines():
        left, dash, right = line.partition(" - ")
        fields = left.split(" ")
        if not dash or len(fields) < 5:
            continue
        path = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        found[path] = MountPoint(path=path, kind=right.split(" ", 1)[0])
    return tuple(found.values())


def real_file_systems(points: Iterable[MountPoint]) -> tuple[str, ...]:
    """Mount points that hold files people know: ``/`` first, then the others as they lie below each other."""
    kept = {point.path for point in points if point.kind in _REAL_TYPES and not _replaced(point.path)}
    kept.add("/")
    return tuple(sorted(kept))


def plan_as_root(cloned: Sequence[str], writable: str, hidden: Sequence[str]) -> tuple[Mount, ...]:
    """Overlays over the shifted clones in `cloned`; `writable` is the folder for the changes."""
    layers = [
        Mount(
            kind="overlay",
            target=path,
            lower=(path,),
            upper=f"{writable}/upper/{number}",
            work=f"{writable}/work/{number}",
            idmapped=True,
        )
        for number, path in enumerate(cloned)
    ]
    return (*layers, *_private_folders(), *_masks(hidden))


def plan_as_user(points: Sequence[MountPoint], writable: str, hidden: Sequence[str]) -> tuple[Mount, ...]:
    """A fresh root with an overlay per folder of ``/``; a folder that has mounts inside is entered instead.

    Files in a folder that is entered are shown one by one, and read-only.
    """
    mounted = tuple(point.path for point in points)
    layers: list[Mount] = [Mount(kind="tmpfs", target="/")]
    _plan_folder("/", mounted, writable, layers, depth=0)
    return (*layers, *_private_folders(), *_masks(hidden))


def _plan_folder(folder: str, mounted: Sequence[str], writable: str, layers: list[Mount], *, depth: int) -> None:
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = os.path.join(folder, entry.name)
            if entry.is_symlink():
                layers.append(Mount(kind="symlink", target=path, source=os.readlink(path)))
            elif entry.is_dir() and not _replaced(path) and os.access(path, os.R_OK | os.X_OK):
                inside = any(point.startswith(f"{path}/") for point in mounted)
                if inside and depth < _DEPTH:
                    layers.append(Mount(kind="tmpfs", target=path))
                    _plan_folder(path, mounted, writable, layers, depth=depth + 1)
                elif inside:
                    layers.append(Mount(kind="bind", target=path, source=path, recursive=True, read_only=True))
                else:
                    number = len(layers)
                    upper, work = f"{writable}/upper/{number}", f"{writable}/work/{number}"
                    layers.append(Mount(kind="overlay", target=path, lower=(path,), upper=upper, work=work))
            elif entry.is_file() and os.access(path, os.R_OK):
                layers.append(Mount(kind="bind", target=path, source=path, read_only=True))


def _replaced(path: str) -> bool:
    return any(path == taken or path.startswith(f"{taken}/") for taken in _REPLACED)


def _private_folders() -> tuple[Mount, ...]:
    return (
        Mount(kind="tmpfs", target="/run", mode=0o755),
        Mount(kind="tmpfs", target="/tmp", mode=0o1777),  # noqa: S108 - the container's own
        Mount(kind="tmpfs", target="/var/tmp", mode=0o1777),  # noqa: S108 - the same
    )


def _masks(hidden: Sequence[str]) -> tuple[Mount, ...]:
    return tuple(Mount(kind="mask", target=path) for path in dict.fromkeys(hidden))


def secrets(homes: Iterable[str], store: str, more: Sequence[str] = ()) -> tuple[str, ...]:
    """Paths that a container of this machine's own root must not see, whether or not they exist."""
    listed = [f"{home.rstrip('/')}/{name}" for home in homes if home.rstrip("/") for name in _SECRET_IN_HOME]
    return tuple(path for path in (*listed, *_SECRET_OF_SYSTEM, store, *more) if path and not _replaced(path))


def present(paths: Iterable[str]) -> tuple[str, ...]:
    """Those of `paths` that are there, so that a start does not look for hundreds that are not."""
    return tuple(path for path in paths if os.path.lexists(path))


def home_folders(own: str) -> tuple[str, ...]:
    """Every home folder there may be: our own, root's, those in /home, and those that /etc/passwd names."""
    homes = [own, "/root"]
    with contextlib.suppress(OSError), os.scandir("/home") as entries:
        homes += [entry.path for entry in entries]
    with contextlib.suppress(OSError), open("/etc/passwd", encoding="utf-8", errors="surrogateescape") as accounts:
        fields = (line.rstrip("\n").split(":") for line in accounts)
        homes += [each[5] for each in fields if len(each) > 5 and each[5].startswith("/")]
    return tuple(dict.fromkeys(homes))


def host_keys() -> tuple[str, ...]:
    """The machine's ssh host keys."""
    try:
        return tuple(f"/etc/ssh/{name}" for name in os.listdir("/etc/ssh") if name.endswith("_key"))
    except OSError:
        return ()


def host_config(variables: Mapping[str, str], directory: str) -> ImageConfig:
    """How cells run on the machine's own root: its PATH and language, the notebook's folder, and no more."""
    kept = [f"{name}={variables[name]}" for name in ("PATH", "LANG", "LC_ALL", "LC_CTYPE") if variables.get(name)]
    home = os.path.expanduser("~")
    return ImageConfig(
        platform=Platform.host(),
        environment=(*kept, f"HOME={home}"),
        command=("/bin/sh",),
        working_directory="/" if _replaced(directory) else directory,
    )
