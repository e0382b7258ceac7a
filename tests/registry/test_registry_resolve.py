"""From a name to a manifest and config, and what may be wrong with them."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import pytest

from nbcontainer.errors import (
    CorruptContent,
    ImageNotFound,
    InvalidImage,
    RateLimited,
    RegistryRefused,
    RegistryUnreachable,
)
from nbcontainer.model import Digest, Platform, Reference
from nbcontainer.model.oci import DOCKER_MANIFEST, DOCUMENT_LIMIT, OCI_MANIFEST
from nbcontainer.registry import RegistryBusy, RegistryClient, RegistrySettings, TransferCancelled
from nbcontainer.testing.images import build_image, tiny_layer
from nbcontainer.testing.registry import InProcessRegistry

LINUX = Platform("linux", "amd64")
ARM = Platform("linux", "arm64", "v8")
LAYER = tiny_layer({"etc": None, "etc/motd": b"hello\n"})


@pytest.fixture
def registry():
    """A registry with one image, a:latest."""
    with InProcessRegistry() as registry:
        registry.add_image("a", "latest", layers=[LAYER], config={"Cmd": ["sh"]})
        yield registry


@pytest.fixture
def settings(tmp_path):
    """Settings with little patience."""
    return RegistrySettings(backoff=0.001, timeout=5, docker_config=str(tmp_path / "config.json"))


@pytest.fixture
def notices():
    """What the client told the person."""
    return []


@pytest.fixture
def client(settings, notices):
    """A client that tells `notices`."""
    with RegistryClient(settings, notice=notices.append) as client:
        yield client


def name(registry: InProcessRegistry, text: str = "a:latest") -> Reference:
    return Reference.parse(f"{registry.host}/{text}")


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_single_image(client, registry, media):
    """Both families of media types resolve to a manifest and a config."""
    digest = registry.add_image("b", "1", layers=[LAYER], media=media, config={"Env": ["A=1"], "User": "me"})
    image = client.resolve(name(registry, "b:1"), LINUX)
    assert image.digest == digest == image.manifest_descriptor.digest == Digest.of(image.manifest_bytes)
    assert image.manifest_descriptor.size == len(image.manifest_bytes)
    assert image.index_bytes is None
    assert image.config.environment == ("A=1",)
    assert image.config.diff_ids == (Digest.of(LAYER),)
    assert Digest.of(image.config_bytes) == image.manifest.config.digest


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_index(client, registry, media):
    """The platform is chosen from an index, which is kept with its own digest."""
    members = [build_image([LAYER], media=media, platform=platform) for platform in (LINUX, ARM)]
    for member in members:
        registry.add_built("multi", None, member)
    digest = registry.add_index("multi", "1", [member.descriptor for member in members], media=media)
    image = client.resolve(name(registry, "multi:1"), Platform("linux", "arm64"))
    assert image.digest == digest == Digest.of(image.index_bytes or b"")
    assert image.manifest_descriptor.digest == members[1].descriptor.digest
    assert image.config.platform == ARM


def test_by_digest(client, registry):
    """A digest is what is asked for, whatever tag stands beside it."""
    digest = client.resolve(name(registry), LINUX).digest
    image = client.resolve(name(registry, f"a:other@{digest}"), LINUX)
    assert image.digest == digest
    assert registry.asked(f"manifests/{digest}")


def test_platform_not_offered(client, registry):
    """The error lists what there is, attestations left out."""
    image = build_image([LAYER], platform=ARM)
    attestation = dataclasses.replace(image.descriptor, platform=Platform("unknown", "unknown"))
    registry.add_index("multi", "1", [image.descriptor, attestation])
    with pytest.raises(ImageNotFound) as caught:
        client.resolve(name(registry, "multi:1"), LINUX)
    assert "has no image for linux/amd64; its platforms are: linux/arm64/v8" in str(caught.value)


def test_other_platform_without_index_is_told(client, registry, notices):
    """An image without an index is taken as it is, with a word about its platform."""
    registry.add_image("arm", "1", layers=[], platform=ARM)
    client.resolve(name(registry, "arm:1"), LINUX)
    assert "made for linux/arm64/v8, not for linux/amd64" in notices[0]


def test_index_within_an_index(client, registry):
    """One index within another is read, a third is not."""
    image = build_image([LAYER])
    registry.add_built("deep", None, image)
    member = image.descriptor
    for depth in (1, 2, 3):
        digest = registry.add_index("deep", str(depth), [member])
        data, media_type = registry.find_manifest("deep", str(depth)) or (b"", "")
        member = dataclasses.replace(image.descriptor, digest=digest, size=len(data), media_type=media_type)
    assert client.resolve(name(registry, "deep:2"), LINUX).manifest == image.manifest
    with pytest.raises(InvalidImage, match="index within an index"):
        client.resolve(name(registry, "deep:3"), LINUX)


def test_inline_config_needs_no_request(client, registry):
    """A config carried in its descriptor is taken from there."""
    image = build_image([LAYER], inline_config=True)
    registry.add_built("inline", "1", image)
    registry.remove_blob(image.manifest.config.digest)
    assert client.resolve(name(registry, "inline:1"), LINUX).config.diff_ids == (Digest.of(LAYER),)
    assert registry.asked("blobs") == ()


def test_no_such_image(client, registry):
    """The sentence says where it was looked for, and that private images look the same."""
    with pytest.raises(ImageNotFound) as caught:
        client.resolve(name(registry, "nothing:here"), LINUX)
    for part in ("nothing:here was not found", "manifest unknown", "private", f"docker login {registry.host}"):
        assert part in str(caught.value)
    assert len(registry.requests) == 1


@pytest.mark.parametrize("pinned", [True, False])
def test_changed_manifest(client, registry, pinned):
    """Bytes are checked against the digest asked for, else against the one the registry states."""
    digest = client.head(name(registry))
    registry.faults.corrupt = {digest}
    with pytest.raises(CorruptContent, match=digest.short):
        client.resolve(name(registry, f"a@{digest}" if pinned else "a"), LINUX)


@pytest.mark.parametrize("stated", ["sha256:../../etc/passwd", "md5:abc", "sha256:" + "0" * 64])
def test_lying_digest_header(client, registry, stated):
    """A digest header that is unusable or wrong is not passed over."""
    registry.faults.digest_header = stated
    with pytest.raises(CorruptContent):
        client.resolve(name(registry), LINUX)


def test_without_digest_header(client, registry):
    """A registry that states no digest is believed, and the digest is our own."""
    registry.faults.digest_header = ""
    image = client.resolve(name(registry), LINUX)
    assert image.digest == Digest.of(image.manifest_bytes) == client.head(name(registry))


def test_content_type_must_agree(client, registry):
    """A document sent as another kind than it says is refused (CVE-2021-41190)."""
    registry.faults.media_type = DOCKER_MANIFEST
    with pytest.raises(InvalidImage, match="was sent as"):
        client.resolve(name(registry), LINUX)


def test_schema_1(client, registry):
    """Docker's first schema is named in the error."""
    document = json.dumps({"schemaVersion": 1, "fsLayers": []}).encode()
    registry.add_manifest("old", "1", document, "application/vnd.docker.distribution.manifest.v1+prettyjws")
    with pytest.raises(InvalidImage, match="schema 1"):
        client.resolve(name(registry, "old:1"), LINUX)


def test_not_a_container_image(client, registry):
    """A chart or another artifact is told apart from a broken image."""
    image = build_image([])
    document = json.loads(image.manifest_bytes)
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    registry.add_manifest("chart", "1", json.dumps(document).encode(), OCI_MANIFEST)
    with pytest.raises(InvalidImage, match="is not a container image"):
        client.resolve(name(registry, "chart:1"), LINUX)


def test_manifest_without_bound(client, registry):
    """A manifest is not read beyond its limit."""
    registry.add_manifest("big", "1", b" " * (DOCUMENT_LIMIT + 1), OCI_MANIFEST)
    with pytest.raises(InvalidImage, match="more than the 4194304 bytes"):
        client.resolve(name(registry, "big:1"), LINUX)


@pytest.mark.parametrize("size", [DOCUMENT_LIMIT + 1, 10**15])
def test_config_that_claims_to_be_large(client, registry, size):
    """A config beyond the limit is not asked for."""
    image = build_image([])
    document = json.loads(image.manifest_bytes)
    document["config"]["size"] = size
    registry.add_manifest("big", "1", json.dumps(document).encode(), OCI_MANIFEST)
    with pytest.raises(InvalidImage, match="the config of"):
        client.resolve(name(registry, "big:1"), LINUX)
    assert registry.asked("blobs") == ()


def test_changed_config(client, registry):
    """A config is checked like any blob."""
    config = client.resolve(name(registry), LINUX).manifest.config
    registry.faults.corrupt = {config.digest}
    with pytest.raises(CorruptContent):
        client.resolve(name(registry), LINUX)


def test_index_that_lies_about_a_size(client, registry):
    """The size in an index must be that of the manifest."""
    image = build_image([LAYER])
    registry.add_built("multi", None, image)
    registry.add_index("multi", "1", [dataclasses.replace(image.descriptor, size=5)])
    with pytest.raises(CorruptContent, match="its index says 5"):
        client.resolve(name(registry, "multi:1"), LINUX)


@pytest.mark.parametrize("status", [None, 404, 405])
def test_head(client, registry, status):
    """The tag's digest comes by HEAD, or by GET where HEAD is not served."""
    registry.faults.head_status = status
    assert client.head(name(registry)) == client.resolve(name(registry), LINUX).digest
    assert len(registry.asked("manifests")) == (1 if status is None else 2)


def test_head_of_a_digest_asks_nobody(client, registry):
    """A pinned reference cannot move."""
    digest = Digest.of(b"x")
    assert client.head(name(registry, f"a@{digest}")) == digest
    assert registry.requests == ()


def test_head_of_nothing(client, registry):
    """A missing tag has the same sentence as elsewhere."""
    with pytest.raises(ImageNotFound, match="was not found"):
        client.head(name(registry, "a:none"))


@pytest.mark.parametrize("fault", ["rate_limit", "unavailable"])
def test_passing_faults_pass(client, registry, notices, fault):
    """429 and 503 are waited out, and told."""
    setattr(registry.faults, fault, 2)
    registry.faults.retry_after = "0"
    assert client.resolve(name(registry), LINUX).config.command == ("sh",)
    assert len(notices) == 2
    assert "trying again in" in notices[0]


def test_rate_limit_that_stays(client, registry):
    """After the last attempt the person reads about limits, log-in and mirrors."""
    registry.faults.rate_limit = 99
    with pytest.raises(RateLimited) as caught:
        client.resolve(name(registry), LINUX)
    for part in ("pull rate limit", "log in", "mirror"):
        assert part in str(caught.value)
    assert len(registry.requests) == 5


def test_long_retry_after_is_not_waited_for(client, registry):
    """Six hours are told, not slept."""
    registry.faults.rate_limit, registry.faults.retry_after = 99, "21600"
    with pytest.raises(RateLimited, match="in 21600 s") as caught:
        client.resolve(name(registry), LINUX)
    assert caught.value.retry_after == 21600
    assert len(registry.requests) == 1


def test_server_errors_that_stay(client, registry):
    """The status and the registry's own words are in the error."""
    registry.faults.unavailable = 99
    with pytest.raises(RegistryBusy, match=r"status 503 .*\(it said: come back later\)") as caught:
        client.resolve(name(registry), LINUX)
    assert (caught.value.status, caught.value.codes) == (503, ("UNAVAILABLE",))


def test_error_body_without_bound(client, registry):
    """A huge error body is not read to its end, and the error still stands."""
    registry.faults.error_body = b"x" * 3_000_000
    with pytest.raises(ImageNotFound):
        client.resolve(name(registry, "none"), LINUX)


def test_error_with_a_strange_status(client, registry):
    """Any other status is told as it is, at once."""
    registry.faults.head_status = 418
    with pytest.raises(RegistryRefused, match="418"):
        client.head(name(registry))
    assert len(registry.requests) == 1


def test_mirror_first(settings, registry, notices):
    """A mirror is asked first and, when it has everything, alone."""
    with InProcessRegistry() as mirror:
        mirror.add_image("library/ubuntu", "latest", layers=[LAYER])
        settings = dataclasses.replace(settings, mirrors={"docker.io": (mirror.url,)})
        with RegistryClient(settings, notice=notices.append) as client:
            image = client.resolve(Reference.parse("ubuntu"), LINUX)
            assert client.head(Reference.parse("ubuntu")) == image.digest
    assert notices == []


def test_mirror_with_a_path(settings):
    """A mirror's path goes before the repository name."""
    with InProcessRegistry() as mirror:
        mirror.add_image("hub/library/ubuntu", "latest", layers=[LAYER])
        settings = dataclasses.replace(settings, mirrors={"docker.io": (f"{mirror.host}/hub",)})
        with RegistryClient(settings) as client:
            assert client.resolve(Reference.parse("ubuntu"), LINUX).config.diff_ids == (Digest.of(LAYER),)


def test_mirror_that_fails_is_passed_over(settings, registry, notices):
    """A mirror without the image, busy or away leaves the registry; each is told once and not retried."""
    with InProcessRegistry() as empty, InProcessRegistry() as busy:
        busy.faults.unavailable = 99
        settings = dataclasses.replace(settings, mirrors={registry.host: (empty.url, busy.url, "127.0.0.1:1")})
        with RegistryClient(settings, notice=notices.append) as client:
            assert client.head(name(registry)).algorithm == "sha256"
        assert len(busy.requests) == 1
    assert len(notices) == 3


def test_error_tells_of_the_mirrors(settings):
    """Where the registry cannot be reached, what the mirror said is what matters."""
    with InProcessRegistry() as mirror:
        settings = dataclasses.replace(settings, attempts=1, mirrors={"127.0.0.1:1": (mirror.url,)})
        with RegistryClient(settings) as client, pytest.raises(RegistryUnreachable) as caught:
            client.resolve(Reference.parse("127.0.0.1:1/a"), LINUX)
    assert "connection was refused" in str(caught.value)
    assert f"its mirror {mirror.host}" in str(caught.value)
    assert "was not found" in str(caught.value)


def test_scheme_is_tried_once(client, registry):
    """An insecure registry is asked by https first; what worked is remembered."""
    client.resolve(name(registry), LINUX)
    client.head(name(registry))
    assert {request.headers["host"] for request in registry.requests} == {registry.host}
    assert client._exchange._known == {registry.host: "http"}


def test_close_ends_a_waiting_resolve(settings, registry):
    """Closing from another thread ends a back-off at once."""
    registry.faults.unavailable = 99
    client = RegistryClient(dataclasses.replace(settings, backoff=20.0))
    threading.Timer(0.2, client.close).start()
    start = time.monotonic()
    with pytest.raises(TransferCancelled):
        client.resolve(name(registry), LINUX)
    assert time.monotonic() - start < 5
    client.close()
