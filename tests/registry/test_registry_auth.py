"""Logging in, and to whom credentials are shown."""

from __future__ import annotations

import base64
import dataclasses
import json
import threading

import pytest

from nbcontainer.errors import Denied, RegistryRefused, RemoteError
from nbcontainer.model import Platform, Reference
from nbcontainer.registry import RegistryClient, RegistrySettings, ResolvedImage
from nbcontainer.registry.auth import _decode_token
from nbcontainer.testing.images import tiny_layer
from nbcontainer.testing.registry import InProcessRegistry

LINUX = Platform("linux", "amd64")
LAYER = tiny_layer({"hello": b"world" * 1000})


@pytest.fixture
def settings(tmp_path):
    """Settings with little patience and nobody's credentials."""
    return RegistrySettings(backoff=0.001, timeout=5, docker_config=str(tmp_path / "config.json"))


@pytest.fixture
def log_in(tmp_path):
    """Write credentials for a registry where the settings look."""

    def log_in(host, user="alice", password="wonderland", **more):
        entry = {"auth": base64.b64encode(f"{user}:{password}".encode()).decode(), **more}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {host: entry}}))

    return log_in


def pull(registry: InProcessRegistry, settings: RegistrySettings) -> ResolvedImage:
    """Resolve and read everything; returns the resolved image."""
    reference = Reference.parse(registry.reference("team/app"))
    with RegistryClient(settings) as client:
        image = client.resolve(reference, LINUX)
        for layer in image.manifest.layers:
            with client.open_blob(reference, layer) as stream:
                b"".join(stream)
        return image


def authorizations(registry: InProcessRegistry, part: str = "/v2/") -> set[str]:
    return {request.headers.get("authorization", "").partition(" ")[0] for request in registry.asked(part)}


def test_anonymous_token(settings):
    """A public image behind tokens needs one token for everything, and no credentials."""
    with InProcessRegistry(auth="token") as registry:
        registry.add_image("team/app", "latest", layers=[LAYER, LAYER + b"\0" * 512])
        pull(registry, settings)
        (asked,) = registry.asked("/token")
    assert "authorization" not in asked.headers
    assert "scope=repository%3Ateam%2Fapp%3Apull" in asked.path
    assert "service=fake" in asked.path


def test_token_with_password(settings, log_in):
    """The password goes to the token server by Basic, and only there."""
    with InProcessRegistry(auth="token", anonymous=False) as registry:
        registry.add_image("team/app", "latest", layers=[LAYER])
        log_in(registry.host)
        pull(registry, settings)
        (asked,) = registry.asked("/token")
        assert asked.headers["authorization"].startswith("Basic ")
        assert "account=alice" in asked.path
        assert authorizations(registry) == {"", "Bearer"}


@pytest.mark.parametrize("field", ["token", "access_token"])
def test_both_names_of_the_token(settings, field):
    """A token server may answer with either field."""
    with InProcessRegistry(auth="token", token_field=field) as registry:
        registry.add_image("team/app", "latest", layers=[])
        assert pull(registry, settings).manifest.layers == ()


def test_identity_token_by_post(settings, log_in):
    """An identity token is exchanged by OAuth2 POST, in the body."""
    with InProcessRegistry(auth="token", anonymous=False) as registry:
        registry.add_image("team/app", "latest", layers=[])
        log_in(registry.host, "alice", "", identitytoken=registry.identity_token)
        pull(registry, settings)
        (asked,) = registry.asked("/token", "POST")
    assert b"grant_type=refresh_token" in asked.body
    assert b"identity-of-alice" in asked.body
    assert "identity" not in asked.path


def test_identity_token_falls_back_to_get(settings, log_in):
    """A token server without POST (405) is asked by GET with the token as password."""
    with InProcessRegistry(auth="token", anonymous=False, oauth=False) as registry:
        registry.add_image("team/app", "latest", layers=[])
        log_in(registry.host, "alice", "", identitytoken=registry.identity_token)
        pull(registry, settings)
        assert len(registry.asked("/token", "POST")) == 1
        assert len(registry.asked("/token")) == 1


def test_basic(settings, log_in):
    """Basic is answered after it was asked for, then sent along."""
    with InProcessRegistry(auth="basic") as registry:
        registry.add_image("team/app", "latest", layers=[LAYER])
        log_in(registry.host)
        pull(registry, settings)
        first, *others = registry.asked("/v2/team")
    assert "authorization" not in first.headers
    assert all(request.headers["authorization"].startswith("Basic ") for request in others)


def test_registry_token_is_sent_as_it_is(settings, log_in):
    """A ready bearer token needs no token server."""
    with InProcessRegistry(auth="token", anonymous=False) as registry:
        registry.add_image("team/app", "latest", layers=[])
        log_in(registry.host, registrytoken=registry.new_token())
        pull(registry, settings)
        assert registry.asked("/token") == ()


def test_token_refused_midway_is_renewed(settings):
    """A token revoked between two requests is fetched anew without anybody noticing."""
    with InProcessRegistry(auth="token") as registry, RegistryClient(settings) as client:
        registry.add_image("team/app", "latest", layers=[LAYER])
        reference = Reference.parse(registry.reference("team/app"))
        image = client.resolve(reference, LINUX)
        registry.revoke_tokens()
        with client.open_blob(reference, image.manifest.layers[0]) as stream:
            assert len(b"".join(stream)) == image.manifest.layers[0].size
        assert len(registry.asked("/token")) == 2


def test_threads_share_a_token(settings):
    """Parallel downloads log in once."""
    with InProcessRegistry(auth="token") as registry, RegistryClient(settings) as client:
        registry.add_image("team/app", "latest", layers=[LAYER])
        reference = Reference.parse(registry.reference("team/app"))
        registry.faults.delay = 0.02
        threads = [threading.Thread(target=client.head, args=(reference,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.asked("/token")) == 1


def test_no_access_without_credentials(settings):
    """A denial says that private and missing look the same, and how to log in."""
    with InProcessRegistry(auth="token", anonymous=False) as registry:
        with pytest.raises(Denied) as caught:
            pull(registry, settings)
        host = registry.host
    assert "it does not exist, or it is private" in str(caught.value)
    assert f"docker login {host}" in str(caught.value)
    assert len(registry.requests) == 2


@pytest.mark.parametrize("scheme", ["basic", "token"])
def test_wrong_password(settings, log_in, scheme):
    """The sentence names whose credentials from where were refused, and not the password; there is no retry."""
    with InProcessRegistry(auth=scheme) as registry:
        log_in(registry.host, "mallory", "hunter2")
        with pytest.raises(Denied) as caught:
            pull(registry, settings)
        assert len(registry.requests) == 2
    assert "mallory" in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_broken_helper_is_told_with_the_denial(settings, tmp_path):
    """Public images work with a broken credential helper; when access is denied it is named."""
    (tmp_path / "config.json").write_text('{"credsStore": "of-nobody"}')
    with InProcessRegistry(auth="token") as registry:
        registry.add_image("team/app", "latest", layers=[])
        assert pull(registry, settings).manifest.layers == ()
    with InProcessRegistry(auth="basic") as registry, pytest.raises(Denied, match="docker-credential-of-nobody"):
        pull(registry, settings)


def test_mirror_never_sees_the_registry_credentials(settings, log_in):
    """What is filed for the registry is not shown to its mirror, even when that asks."""
    with InProcessRegistry(auth="basic") as registry, InProcessRegistry(auth="basic") as mirror:
        registry.add_image("team/app", "latest", layers=[LAYER])
        log_in(registry.host)
        settings = dataclasses.replace(settings, mirrors={registry.host: (mirror.url,)})
        pull(registry, settings)
        assert mirror.asked("/v2/")
        assert authorizations(mirror) == {""}


def test_token_server_of_its_own(settings, log_in):
    """A realm on another host gets the credentials, the registry only the token."""
    with InProcessRegistry(auth="token", anonymous=False) as realm, InProcessRegistry(auth="token") as registry:
        registry.realm = f"{realm.url}/token"
        registry.tokens = realm.tokens
        registry.add_image("team/app", "latest", layers=[])
        log_in(registry.host)
        pull(registry, settings)
        assert len(realm.asked("/token")) == 1
        assert authorizations(registry) == {"", "Bearer"}


@pytest.mark.parametrize(
    "body",
    [None, b"", b"[]", b"{}", b'{"token": 5}', b'{"token": ""}', b'{"token": "a b"}', b'{"token": "a\\r\\nX: y"}'],
)
def test_unusable_tokens(body):
    """A token answer without a token fit for a header is refused."""
    with pytest.raises(RemoteError):
        _decode_token(body, 0.0, "x")


@pytest.mark.parametrize(
    ("stated", "lifetime"), [(None, 60), (300, 300), (10, 60), (-1, 60), (True, 60), ("300", 60), (10**9, 86400)]
)
def test_lifetime_of_a_token(stated, lifetime):
    """Sixty seconds unless told otherwise, never less, with a margin."""
    body = json.dumps({"token": "t", "expires_in": stated}).encode()
    assert _decode_token(body, 1000.0, "x").expires == 1000 + lifetime - 5


def test_long_token_answer_is_not_read(settings):
    """A token server cannot fill the memory."""
    with InProcessRegistry(auth="token", token_field="filler" * 200_000) as registry:
        registry.add_image("team/app", "latest", layers=[])
        with pytest.raises(RemoteError, match="more than 1048576 bytes"):
            pull(registry, settings)


def test_realm_that_is_no_url(settings):
    """Nonsense in a challenge is an error that names the registry."""
    nonsense = InProcessRegistry(auth="token", realm="file:///etc/passwd")
    with nonsense as registry, pytest.raises(RemoteError, match="not a plain http or https URL"):
        pull(registry, settings)


def test_log_in_is_not_redirected(settings, log_in):
    """The refresh token in a POST body does not follow a redirect to another server."""
    import http.server

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(307)
            self.send_header("Location", f"{thief.url}/token")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        with InProcessRegistry() as thief, InProcessRegistry(auth="token") as registry:
            registry.realm = f"http://127.0.0.1:{server.server_address[1]}/token"
            log_in(registry.host, "alice", "", identitytoken="refresh")
            with pytest.raises(RegistryRefused, match="credentials are not sent on"):
                pull(registry, settings)
            assert thief.requests == ()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
