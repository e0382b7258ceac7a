"""Credentials for a registry, found where docker and podman keep them.

Sources: docker's config.json reference (``auths``, ``credHelpers``, ``credsStore``), the docker-credential-helpers
protocol, and containers-auth.json(5). Nothing is ever written, and what is found is never shown: the values have no
representation.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nbcontainer.model.reference import DEFAULT_REGISTRY
from nbcontainer.registry.addresses import redact_text
from nbcontainer.registry.settings import canonical_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nbcontainer.registry.interrupts import Interrupt
    from nbcontainer.registry.settings import RegistrySettings

    _AskHelper = Callable[[str, str], "Credentials | None"]

__all__ = ["Credentials", "Login", "config_files", "find_login"]

HUB_KEY = "https://index.docker.io/v1/"
_CONFIG_LIMIT = 1024 * 1024
_HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_TOKEN_USER = "<token>"  # noqa: S105 - the word of the helper protocol for "Secret is an identity token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What to log in with: a password, an identity (refresh) token, or a bearer token as it is."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    source: str = ""

    @property
    def basic(self) -> str | None:
        """The Basic header value (RFC 7617), or None without a name and a password."""
        if not self.username or not self.password:
            return None
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


@dataclass(frozen=True, slots=True)
class Login:
    """The outcome of a search: credentials or none, and sentences about what could not be read."""

    credentials: Credentials | None
    problems: tuple[str, ...] = ()


def config_files(docker_config: str | None, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Where to look, in order: podman's explicit file, docker's, podman's own, docker's default.

    ``$REGISTRY_AUTH_FILE`` names a file; ``$DOCKER_CONFIG`` names the *folder* of config.json.
    """
    if docker_config is not None:
        inside = os.path.join(docker_config, "config.json")
        return (inside if os.path.isdir(docker_config) else docker_config,)
    files = [environment.get("REGISTRY_AUTH_FILE", "")]
    home = environment.get("HOME") or os.path.expanduser("~")
    if folder := environment.get("DOCKER_CONFIG"):
        files.append(os.path.join(folder, "config.json"))
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        files.append(os.path.join(runtime, "containers", "auth.json"))
    settings = environment.get("XDG_CONFIG_HOME") or os.path.join(home, ".config")
    files.append(os.path.join(settings, "containers", "auth.json"))
    if not environment.get("DOCKER_CONFIG"):
        files.append(os.path.join(home, ".docker", "config.json"))
    return tuple(dict.fromkeys(file for file in files if file))


def find_login(registry: str, repository: str, settings: RegistrySettings, interrupt: Interrupt) -> Login:
    """The first credentials any file or helper holds for ``registry/repository``."""

    def ask_helper(name: str, server: str) -> Credentials | None:
        return _ask_helper(name, server, settings.timeout, interrupt)

    problems: list[str] = []
    for path in config_files(settings.docker_config, os.environ):
        try:
            config = _read(path)
            credentials = _from_config(config, path, registry, repository, ask_helper)
        except _Unusable as problem:
            problems.append(str(problem))
            continue
        if credentials is not None:
            return Login(credentials, tuple(problems))
    return Login(None, tuple(problems))


class _Unusable(Exception):
    """A file or helper that could not be used; the sentence says why."""


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_CONFIG_LIMIT + 1)
        config = json.loads(data) if len(data) <= _CONFIG_LIMIT else None
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as problem:
        raise _Unusable(f"the credentials file {path} cannot be read: {problem.strerror}") from problem
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise _Unusable(f"the credentials file {path} is not a JSON object; repair it or log in again")
    return config


def _from_config(
    config: dict[str, Any], path: str, registry: str, repository: str, ask_helper: _AskHelper
) -> Credentials | None:
    """As docker orders it: a helper named for the registry, then the store for all, then what the file holds itself."""
    helpers = config.get("credHelpers")
    helper = _best_entry(helpers, registry, repository) if isinstance(helpers, dict) else None
    for name in (helper, config.get("credsStore")):
        if isinstance(name, str) and name:
            found = ask_helper(name, HUB_KEY if registry == DEFAULT_REGISTRY else registry)
            if found is not None:
                return found
    auths = config.get("auths")
    entry = _best_entry(auths, registry, repository) if isinstance(auths, dict) else None
    return _from_entry(entry, path) if isinstance(entry, dict) else None


def _best_entry(entries: dict[str, Any], registry: str, repository: str) -> Any:
    """The value of the most specific key: ``host/a/b`` before ``host/a`` before ``host``."""
    by_key = {_normal_key(key): value for key, value in reversed(entries.items())}
    parts = repository.split("/")
    for length in range(len(parts), -1, -1):
        key = "/".join((registry, *parts[:length]))
        if key in by_key:
            return by_key[key]
    return None


def _normal_key(key: str) -> str:
    """``https://index.docker.io/v1/`` and its like as ``host[/path]``, Docker Hub by its one name."""
    bare = key.strip().partition("://")[2] or key.strip()
    host, _, path = bare.partition("/")
    path = path.strip("/")
    host = canonical_registry(host)
    return host if path in {"", "v1", "v2"} else f"{host}/{path}"


def _from_entry(entry: dict[str, Any], path: str) -> Credentials | None:
    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    username, password = text("username"), text("password")
    if packed := text("auth"):
        try:
            # docker pads old entries with NUL bytes
            username, _, password = base64.b64decode(packed, validate=True).decode().rstrip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise _Unusable(f"an auth entry in {path} is not base64 of user:password; log in again") from None
    found = Credentials(
        username=username,
        password=password,
        identity_token=text("identitytoken"),
        registry_token=text("registrytoken"),
        source=path,
    )
    return found if found.password or found.identity_token or found.registry_token else None


def _ask_helper(name: str, server: str, timeout: float, interrupt: Interrupt) -> Credentials | None:
    """``docker-credential-NAME get``: the server on stdin, JSON on stdout (docker-credential-helpers, "Protocol")."""
    program = f"docker-credential-{name}"
    if not _HELPER_NAME.fullmatch(name):
        raise _Unusable(f"the credential helper name {name[:40]!r} is not a plain name; correct the docker config")
    code, output = _run(program, server, timeout, interrupt)
    said = output.decode(errors="replace").strip()
    if code != 0:
        if "credentials not found" in said.lower():
            return None
        raise _Unusable(f"the credential helper {program} failed for {server}: {redact_text(said) or f'exit {code}'}")
    try:
        answer = json.loads(said)
        username, secret = answer.get("Username", ""), answer["Secret"]
    except (ValueError, KeyError, AttributeError):
        raise _Unusable(f"the credential helper {program} did not answer with a Username and Secret") from None
    if not isinstance(username, str) or not isinstance(secret, str) or not secret:
        return None
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret, source=program)
    return Credentials(username=username, password=secret, source=program)


def _run(program: str, server: str, timeout: float, interrupt: Interrupt) -> tuple[int, bytes]:
    """Run a helper in a session of its own, so that a hung one ends with all it started."""
    try:
        process = subprocess.Popen(
            [program, "get"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError as problem:
        raise _Unusable(
            f"the credential helper {program} is named in the docker config but is not installed;"
            " install it or remove the entry"
        ) from problem
    except OSError as problem:
        raise _Unusable(f"the credential helper {program} cannot be run: {problem.strerror}") from problem
    deadline = time.monotonic() + timeout
    request: bytes | None = server.encode() + b"\n"
    answered = False
    with process:
        try:
            while True:
                interrupt.check()
                try:
                    output, _ = process.communicate(request, timeout=0.1)
                except subprocess.TimeoutExpired:
                    request = None  # it has been taken over; communicate goes on with it
                    if time.monotonic() < deadline:
                        continue
                    raise _Unusable(f"the credential helper {program} did not answer within {timeout:g} s") from None
                answered = True
                return process.returncode, output
        finally:
            if not answered:  # not reaped yet, so the number is still that of its group
                os.killpg(process.pid, signal.SIGKILL)
