"""Against the reference implementation, distribution's own registry, on loopback."""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import subprocess
import time

import pytest
import requests

from nbcontainer.errors import BlobNotFound, ImageNotFound
from nbcontainer.model import Descriptor, Digest, Platform, Reference
from nbcontainer.registry import RegistryClient, RegistrySettings
from nbcontainer.testing.images import build_image, build_index, tiny_layer

pytestmark = pytest.mark.peers
CONFIG = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "{host}"}}
log: {{level: error}}
"""


@pytest.fixture
def host(tmp_path):
    """The address of a running registry."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs the program docker-registry")
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
    config = tmp_path / "config.yml"
    config.write_text(CONFIG.format(folder=tmp_path / "data", host=host))
    process = subprocess.Popen([program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with process:
        try:
            wait_for(host)
            yield host
        finally:
            process.terminate()


def wait_for(host: str) -> None:
    """Wait until the registry accepts connections."""
    name, _, port = host.partition(":")
    for _ in range(200):
        try:
            socket.create_connection((name, int(port)), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("the registry did not start")


def push(session: requests.Session, base: str, target: str, data: bytes, media_type: str = "") -> None:
    """Push a blob (without media type) or a manifest by plain HTTP."""
    if media_type:
        answer = session.put(f"{base}/manifests/{target}", data=data, headers={"Content-Type": media_type})
    else:
        location = session.post(f"{base}/blobs/uploads/").headers["Location"]
        answer = session.put(location, params={"digest": target}, data=data)
    assert answer.status_code == 201, answer.text


@pytest.mark.parametrize("media", ["oci", "docker"])
def test_pull_from_the_reference_registry(host, media, tmp_path):
    """An index, an image, its blobs, a resumed blob, and what is not there."""
    layer = random.Random(1).randbytes(300_000)
    image = build_image([tiny_layer({"data": layer})], media=media, compression="gzip")
    index = build_index([image.descriptor], media=media)
    base = f"http://{host}/v2/team/app"
    with requests.Session() as session:
        session.trust_env = False
        for digest, blob in image.blobs.items():
            push(session, base, str(digest), blob)
        push(session, base, str(image.descriptor.digest), image.manifest_bytes, image.manifest.media_type)
        push(session, base, "1", index.index_bytes, index.media_type)

    reference = Reference.parse(f"{host}/team/app:1")
    with RegistryClient(RegistrySettings(docker_config=str(tmp_path / "none"), backoff=0.01)) as client:
        resolved = client.resolve(reference, Platform("linux", "amd64"))
        assert resolved.digest == client.head(reference) == index.descriptor.digest
        assert resolved.manifest == image.manifest
        (descriptor,) = resolved.manifest.layers
        with client.open_blob(reference, descriptor) as stream:
            whole = b"".join(stream)
        assert Digest.of(whole) == descriptor.digest
        with client.open_blob(reference, descriptor, offset=1000, hasher=hashlib.sha256(whole[:1000])) as stream:
            assert b"".join(stream) == whole[1000:]
        with pytest.raises(ImageNotFound, match="manifest unknown"):
            client.head(Reference.parse(f"{host}/team/app:2"))
        missing = Descriptor(media_type="x", digest=Digest.of(b"missing"), size=7)
        with pytest.raises(BlobNotFound), client.open_blob(reference, missing) as stream:
            next(stream)
