"""OCI documents: what strangers send is decoded, or refused by name."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.errors import InvalidImage
from nbcontainer.model import Digest, ImageConfig, Index, Manifest, Platform
from nbcontainer.model.oci import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    DOCKER_SCHEMA_1,
    DOCUMENT_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    decode_document,
)

SHA = "sha256:" + "a" * 64
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": SHA, "size": 5}
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": SHA, "size": 2}


def manifest(**changes: Any) -> bytes:
    """A manifest with some fields changed; None takes one away."""
    fields: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": CONFIG,
        "layers": [LAYER],
        **changes,
    }
    return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()


def index(*entries: Any) -> bytes:
    """An index of these."""
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


def entry(platform: str | None) -> dict[str, Any]:
    """One member of an index."""
    described: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": str(Digest.of(str(platform).encode())), "size": 1}
    if platform is not None:
        described["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
    return described


def test_manifest() -> None:
    """A manifest's config and layers are read, with their sum."""
    decoded = Manifest.from_json(manifest(annotations={"a": "b"}))
    assert (decoded.size, len(decoded.layers), dict(decoded.annotations)) == (7, 1, {"a": "b"})
    assert decoded.layers[0].declared_compression == "gzip"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "JSON list"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"nul", "not JSON"),
        (b" " * (DOCUMENT_LIMIT + 1), "more than the"),
        (manifest(config=None), "no config"),
        (manifest(config=[]), "no config"),
        (manifest(layers={}), "layers that is dict"),
        (manifest(layers=[1]), "not an object"),
        (manifest(layers=[LAYER] * 1001), "1001 layers"),
        (manifest(layers=[{**LAYER, "size": -1}]), "no usable size"),
        (manifest(layers=[{**LAYER, "size": True}]), "size that is bool"),
        (manifest(layers=[{**LAYER, "size": "5"}]), "size that is str"),
        (manifest(layers=[{**LAYER, "digest": "sha256:../../x"}]), "lower-case hex"),
        (manifest(layers=[{**LAYER, "digest": None}]), "no algorithm"),
        (manifest(layers=[{**LAYER, "urls": [1]}]), "urls"),
        (manifest(layers=[{**LAYER, "data": "!"}]), "not base64"),
        (manifest(layers=[{**LAYER, "data": "é"}]), "not base64"),
        (manifest(layers=[{**LAYER, "data": "\ud800"}]), "not base64"),
        (manifest(layers=[{**LAYER, "size": 1 << 63}]), "no usable size"),
        (manifest().decode().encode("utf-16"), "not JSON"),
        (manifest(annotations={"a": 1}), "annotations"),
        (manifest(mediaType=1), "mediaType that is int"),
        (manifest(mediaType=OCI_INDEX), "does not run"),
        (manifest(mediaType="application/vnd.oci.artifact.manifest.v1+json"), "does not run"),
        (manifest(manifests=[]), "both layers and manifests"),
    ],
    ids=range(27),
)
def test_hostile_manifest(data: bytes, words: str) -> None:
    """A manifest that cannot be one is refused, naming the field; two kinds in one are ambiguous (CVE-2021-41190)."""
    with pytest.raises(InvalidImage) as raised:
        Manifest.from_json(data)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_text_is_text() -> None:
    """Halves of surrogate pairs, which JSON can spell and nobody can show, are read as Go reads them."""
    config = {"Env": ["A=\ud800", "B=\U0001f600"], "Labels": {"\udfff": "\udc00\ud800"}, "Volumes": {"/\ud801": {}}}
    document = {"os": "linux", "rootfs": {}, "author": "\ud800", "config": config}
    read = ImageConfig.from_json(json.dumps(document).encode())
    assert read.environment == ("A=\ufffd", "B=\U0001f600")
    assert (read.labels, read.volumes, read.author) == ({"\ufffd": "\ufffd\ufffd"}, ("/\ufffd",), "\ufffd")


def test_media_types_disagree() -> None:
    """A document that says it is one kind and is sent as another is refused."""
    with pytest.raises(InvalidImage, match="was sent as"):
        Manifest.from_json(manifest(), DOCKER_MANIFEST)
    assert Manifest.from_json(manifest(), "application/json").media_type == OCI_MANIFEST
    assert (
        Manifest.from_json(manifest(mediaType=None), f"{DOCKER_MANIFEST}; charset=utf-8").media_type == DOCKER_MANIFEST
    )


def test_decode_document() -> None:
    """What a registry sends is a manifest or an index, whatever it says; schema 1 is gone."""
    assert isinstance(decode_document(manifest(), OCI_MANIFEST), Manifest)
    assert isinstance(decode_document(index(), OCI_INDEX), Index)
    assert isinstance(decode_document(b'{"manifests": []}', ""), Index)
    assert isinstance(decode_document(b'{"manifests": []}', DOCKER_INDEX), Index)
    for media_type, data in (
        (DOCKER_SCHEMA_1[0], b"{}"),
        (DOCKER_SCHEMA_1[1] + "; x=y", b"{}"),
        ("", b'{"schemaVersion": 1}'),
    ):
        with pytest.raises(InvalidImage, match="schema 1"):
            decode_document(data, media_type)


def test_inline_data() -> None:
    """Data in a descriptor counts only when it is what the digest says."""
    right = {**LAYER, "digest": str(Digest.of(b"right")), "size": 5, "data": base64.b64encode(b"right").decode()}
    wrong = {**right, "data": base64.b64encode(b"wrong").decode()}
    short = {**right, "size": 4}
    layers = Manifest.from_json(manifest(layers=[right, wrong, short])).layers
    assert [layer.data for layer in layers] == [b"right", None, None]


def test_choose() -> None:
    """The best platform is chosen; attestations never, entries without a platform last."""
    decoded = Index.from_json(
        index(*map(entry, ["unknown/unknown", None, "linux/arm/v6", "linux/amd64", "linux/arm/v7"]))
    )
    chosen = {text: decoded.choose(Platform.parse(text)) for text in ("linux/amd64", "linux/arm/v7", "linux/s390x")}
    assert {text: str(each.platform) if each else None for text, each in chosen.items()} == {
        "linux/amd64": "linux/amd64", "linux/arm/v7": "linux/arm/v7", "linux/s390x": "None",
    }  # fmt: skip
    assert decoded.platforms == ("linux/arm/v6", "linux/amd64", "linux/arm/v7")
    assert Index.from_json(index(entry("unknown/unknown"))).choose(Platform.host()) is None


def test_config() -> None:
    """An image config's fields are read; missing and null ones are empty."""
    data = {
        "architecture": "arm64", "os": "linux", "rootfs": {"diff_ids": [SHA]},
        "config": {"User": "a", "Env": ["A=b"], "Cmd": ["c"], "Entrypoint": None, "WorkingDir": "/w",
                   "Volumes": {"/v": {}}, "Labels": None},
        "history": [{"created_by": "x", "empty_layer": True}],
    }  # fmt: skip
    config = ImageConfig.from_json(json.dumps(data).encode())
    assert (config.user, config.environment, config.command, config.entrypoint) == ("a", ("A=b",), ("c",), ())
    assert (config.volumes, config.working_directory, str(config.platform)) == (("/v",), "/w", "linux/arm64")
    assert config.history[0].empty_layer


@pytest.mark.parametrize(
    "change",
    [
        {"rootfs": None}, {"rootfs": {"diff_ids": ["x"]}}, {"rootfs": {"diff_ids": [1]}}, {"config": []},
        {"config": {"Env": "A=b"}},
        {"config": {"Env": [1]}}, {"config": {"Cmd": "sh"}}, {"config": {"User": 0}}, {"history": [1]}, {"os": 1},
        {"config": {"Labels": {"a": {}}}}, {"history": [{"empty_layer": "yes"}]}, {"config": {"Volumes": []}},
    ],
)  # fmt: skip
def test_hostile_config(change: dict[str, Any]) -> None:
    """A config with a field of another kind is refused."""
    with pytest.raises(InvalidImage):
        ImageConfig.from_json(json.dumps({"rootfs": {"diff_ids": []}, **change}).encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "config",
                    "layers",
                    "manifests",
                    "digest",
                    "size",
                    "mediaType",
                    "platform",
                    "rootfs",
                    "diff_ids",
                    "Env",
                    "data",
                ]
            )
            | st.text(max_size=4),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json(value: Any) -> None:
    """Any JSON is a document or `InvalidImage`, never another error."""
    data = json.dumps(value).encode()
    for decode in (Manifest.from_json, Index.from_json, ImageConfig.from_json, lambda raw: decode_document(raw, "")):
        try:
            decode(data)
        except InvalidImage:
            continue
