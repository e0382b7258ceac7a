"""The shipped fakes: tiny images, and the registry others may push to."""

from __future__ import annotations

import importlib
import io
import pkgutil
import shutil
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from typing import Any

import pytest

import nbcontainer.registry
from nbcontainer.model import Descriptor, Digest, Platform, Reference
from nbcontainer.registry import RegistryClient, RegistrySettings
from nbcontainer.testing.images import build_image, compress_layer, tiny_layer
from nbcontainer.testing.registry import InProcessRegistry


def test_tiny_layer():
    """Files, directories and ready entries, in order and without times."""
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "a"
    data = tiny_layer({"d": None, "d/a": b"1", "d/l": link})
    assert data == tiny_layer({"d": None, "d/a": b"1", "d/l": link})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        entries = {entry.name: (entry.type, oct(entry.mode), entry.mtime) for entry in tar}
    assert entries == {
        "d": (tarfile.DIRTYPE, "0o755", 0),
        "d/a": (tarfile.REGTYPE, "0o644", 0),
        "d/l": (tarfile.SYMTYPE, "0o644", 0),
    }


@pytest.mark.parametrize(
    ("compression", "magic"), [("gzip", b"\x1f\x8b"), ("zstd", b"\x28\xb5\x2f\xfd"), ("none", b"etc")]
)
def test_compressions(compression, magic):
    """A layer travels as asked; its diff_id stays that of the tar."""
    layer = tiny_layer({"etc": None})
    assert compress_layer(layer, compression).startswith(magic)
    image = build_image([layer], compression=compression)
    assert image.manifest.layers[0].declared_compression == compression


def test_push_by_hand():
    """POST, PATCH and PUT make a blob; a wrong digest is refused; tags are listed."""
    with InProcessRegistry() as registry:

        def send(method: str, path: str, body: bytes = b"", **headers: str) -> Any:
            url = path if path.startswith("http") else registry.url + path
            request = urllib.request.Request(url, data=body, method=method, headers=headers)
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer

        location = send("POST", "/v2/a/b/blobs/uploads/").headers["Location"]
        assert send("PATCH", location, b"he").status == 202
        digest = Digest.of(b"hello")
        assert send("PUT", f"{location}?digest={digest}", b"llo").status == 201
        assert registry.find_blob(digest) == b"hello"
        assert send("POST", f"/v2/x/blobs/uploads/?mount={digest}&from=a/b").status == 201
        with pytest.raises(urllib.error.HTTPError, match="400"):
            send("POST", f"/v2/x/blobs/uploads/?digest={digest}", b"other")
        assert send("PUT", "/v2/a/b/manifests/1", b"{}", **{"Content-Type": "x/y"}).status == 201
        assert registry.tags("a/b") == ["1"]


@pytest.mark.peers
def test_skopeo_can_push_and_pull(tmp_path):
    """A real client copies an image into the fake, and we read it back."""
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("needs the program skopeo")
    layer = tiny_layer({"hello": b"world"})
    with InProcessRegistry() as source, InProcessRegistry() as target:
        digest = source.add_image("a", "1", layers=[layer])
        command = [skopeo, "--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]
        addresses = [f"docker://{source.reference('a', '1')}", f"docker://{target.reference('b', '1')}"]
        subprocess.run([*command, *addresses], check=True, timeout=60)
        with RegistryClient(RegistrySettings(docker_config=str(tmp_path / "none"))) as client:
            image = client.resolve(Reference.parse(target.reference("b", "1")), Platform("linux", "amd64"))
    assert image.digest == digest
    assert image.config.diff_ids == (Digest.of(layer),)


def test_registry_leaves_no_thread():
    """After the context every thread of the server has ended, whatever its clients still hold."""
    before = set(threading.enumerate())
    with InProcessRegistry() as registry, RegistryClient() as client:
        digest = registry.add_blob(b"x" * 10)
        descriptor = Descriptor(media_type="x", digest=digest, size=10)
        with client.open_blob(Reference.parse(registry.reference("a")), descriptor) as stream:
            assert stream.read() == b"x" * 10
    assert set(threading.enumerate()) == before


def test_public_names_exist():
    """Every module says what it offers, and has it."""
    for module in pkgutil.iter_modules(nbcontainer.registry.__path__, "nbcontainer.registry."):
        loaded = importlib.import_module(module.name)
        assert all(hasattr(loaded, name) for name in loaded.__all__), module.name
    assert all(hasattr(nbcontainer.registry, name) for name in nbcontainer.registry.__all__)
