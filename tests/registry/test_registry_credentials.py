"""Finding credentials in files and helpers."""

from __future__ import annotations

import base64
import json
import time

import pytest

from nbcontainer.registry.credentials import config_files, find_login
from nbcontainer.registry.failures import TransferCancelled
from nbcontainer.registry.interrupts import Interrupt
from nbcontainer.registry.settings import RegistrySettings


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def find(tmp_path):
    """Look up a registry in a config given as a dict."""

    def find(config, registry="reg.example", repository="team/app", timeout=5.0):
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        settings = RegistrySettings(docker_config=str(path), timeout=timeout)
        return find_login(registry, repository, settings, Interrupt("test"))

    return find


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Put a shell script on PATH as docker-credential-NAME."""

    def install(name, script):
        program = tmp_path / "bin" / f"docker-credential-{name}"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    return install


def test_search_order():
    """Podman's explicit file, docker's folder, podman's own places; $DOCKER_CONFIG replaces ~/.docker."""
    environment = {"HOME": "/h", "XDG_RUNTIME_DIR": "/r", "REGISTRY_AUTH_FILE": "/a.json"}
    assert config_files(None, environment) == (
        "/a.json",
        "/r/containers/auth.json",
        "/h/.config/containers/auth.json",
        "/h/.docker/config.json",
    )
    assert "/d/config.json" in config_files(None, {**environment, "DOCKER_CONFIG": "/d"})
    assert "/h/.docker/config.json" not in config_files(None, {**environment, "DOCKER_CONFIG": "/d"})


def test_explicit_config_may_be_a_folder(tmp_path):
    """The setting names a file, or the folder of config.json, and nothing else is read."""
    assert config_files(str(tmp_path), {"HOME": "/h"}) == (str(tmp_path / "config.json"),)
    assert config_files("/x.json", {"HOME": "/h"}) == ("/x.json",)


def test_environment_is_searched(tmp_path, monkeypatch):
    """The first file that holds the registry wins."""
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("DOCKER_CONFIG", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / "auth.json").write_text(json.dumps({"auths": {"reg.example": auth("bob", "x")}}))
    (tmp_path / "explicit.json").write_text(json.dumps({"auths": {"other.example": auth("eve", "y")}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "explicit.json"))
    login = find_login("reg.example", "a", RegistrySettings(), Interrupt("test"))
    assert login.credentials is not None
    assert login.credentials.username == "bob"


@pytest.mark.parametrize("key", ["reg.example", "https://reg.example", "https://reg.example/v1/", "REG.example/v2/"])
def test_spellings_of_a_host_key(find, key):
    """Old and new docker spellings of a host are the same key."""
    credentials = find({"auths": {key: auth("alice", "a:b")}}).credentials
    assert (credentials.username, credentials.password) == ("alice", "a:b")


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io"])
def test_docker_hub_keys(find, key):
    """Docker Hub's credentials are found under its historic key too."""
    assert find({"auths": {key: auth("h", "p")}}, "docker.io", "library/x").credentials.username == "h"


def test_most_specific_key_wins(find):
    """host/team/app before host/team before host; a longer name that only begins alike does not match."""
    auths = {
        "reg.example": auth("host", "p"),
        "reg.example/team": auth("team", "p"),
        "reg.example/team/app": auth("app", "p"),
    }
    assert find({"auths": auths}).credentials.username == "app"
    assert find({"auths": auths}, repository="team/other").credentials.username == "team"
    assert find({"auths": auths}, repository="teammate/app").credentials.username == "host"
    assert find({"auths": auths}, registry="reg.example:5000").credentials is None


def test_identity_and_registry_tokens(find):
    """Tokens are read beside or instead of a password."""
    credentials = find({"auths": {"reg.example": {**auth("u", ""), "identitytoken": "refresh"}}}).credentials
    assert (credentials.identity_token, credentials.basic) == ("refresh", None)
    assert find({"auths": {"reg.example": {"registrytoken": "t"}}}).credentials.registry_token == "t"


def test_nothing_is_shown(find):
    """The representation of credentials holds no secret."""
    shown = repr(find({"auths": {"reg.example": {**auth("u", "hidden"), "identitytoken": "hidden"}}}))
    assert "hidden" not in shown


@pytest.mark.parametrize("config", ["", "[]", "{", '{"auths": {"reg.example": {"auth": "%%%"}}}'])
def test_damaged_files_are_told(find, config):
    """A file that cannot be used is a sentence, not a traceback."""
    login = find(config)
    assert login.credentials is None
    assert "config.json" in login.problems[0]


@pytest.mark.parametrize(
    "config", ["{}", '{"auths": null}', '{"auths": {"reg.example": {}}}', '{"auths": {"reg.example": 1}}']
)
def test_nothing_there(find, config):
    """Empty entries, as docker leaves beside a store, are no credentials and no problem."""
    assert find(config) == find("{}")


def test_helper_for_one_registry(find, helper):
    """A helper is asked by stdin and answers in JSON; it goes before the store and the file."""
    helper(
        "one",
        'read server; echo "{\\"ServerURL\\": \\"$server\\", \\"Username\\": \\"$server\\", \\"Secret\\": \\"s\\"}"',
    )
    helper("all", "exit 1")
    config = {"credHelpers": {"reg.example": "one"}, "credsStore": "all", "auths": {"reg.example": auth("file", "p")}}
    credentials = find(config).credentials
    assert (credentials.username, credentials.password) == ("reg.example", "s")
    assert credentials.source == "docker-credential-one"


def test_store_is_asked_for_docker_hub_by_its_old_name(find, helper):
    """Docker Hub's server in a credential store is its v1 URL."""
    helper("all", 'read server; echo "{\\"Username\\": \\"$server\\", \\"Secret\\": \\"s\\"}"')
    assert find({"credsStore": "all"}, "docker.io").credentials.username == "https://index.docker.io/v1/"


def test_helper_with_identity_token(find, helper):
    """The user <token> says that the secret is an identity token."""
    helper("tok", 'echo \'{"Username": "<token>", "Secret": "refresh"}\'')
    assert find({"credsStore": "tok"}).credentials.identity_token == "refresh"


def test_helper_without_entry_leaves_the_file(find, helper):
    """The answer "credentials not found" is no error."""
    helper("none", "echo 'credentials not found in native keychain'; exit 1")
    login = find({"credsStore": "none", "auths": {"reg.example": auth("file", "p")}})
    assert login.credentials.username == "file"
    assert login.problems == ()


@pytest.mark.parametrize(
    ("name", "script", "said"),
    [
        ("bad", "echo keyring is locked; exit 2", "keyring is locked"),
        ("odd", "echo hello", "did not answer with"),
        ("missing", None, "is not installed"),
        ("../evil", None, "not a plain name"),
    ],
)
def test_helper_failures_are_one_sentence(find, helper, name, script, said):
    """What a helper did wrong is told in words."""
    if script:
        helper(name, script)
    (problem,) = find({"credsStore": name}).problems
    assert said in problem


def test_hung_helper_is_ended(find, helper):
    """A helper that does not answer is killed, with its children, when time is up."""
    helper("slow", "sleep 60 & sleep 60")
    start = time.monotonic()
    (problem,) = find({"credsStore": "slow"}, timeout=0.2).problems
    assert "did not answer within 0.2 s" in problem
    assert time.monotonic() - start < 5


def test_cancel_ends_a_helper(tmp_path, helper):
    """A helper does not outlive the wish to stop."""
    helper("slow", "sleep 60")
    path = tmp_path / "config.json"
    path.write_text('{"credsStore": "slow"}')
    interrupt = Interrupt("test")
    interrupt.trip()
    with pytest.raises(TransferCancelled):
        find_login("reg.example", "a", RegistrySettings(docker_config=str(path)), interrupt)
