"""Steps taken over from an image (``--cache-from``): by another store, from a registry or a file; and what a lie is worth."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.build.claims import FIELD
from nbcontainer.build.request import CacheSource
from tests.integration.fixtures import OWN_TIER
from tests.integration.programs import copy
from tests.integration.test_build import config_of, context
from tests.integration.tiers import Driver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.tiers import Tier

pytestmark = OWN_TIER

_RANDOM = "cat /proc/sys/kernel/random/uuid"


def text_of(tier: Tier, *more: str) -> str:
    """A Dockerfile whose commands never make the same twice."""
    lines = [
        f"FROM {tier.image}",
        f"RUN {_RANDOM} > /one",
        "WORKDIR /new",
        "COPY a.txt ./",
        "COPY --link a.txt /linked/",
        f"RUN {_RANDOM} > /two",
        *more,
    ]
    return "\n".join(lines) + "\n"


@contextmanager
def other_store(tier: Tier) -> Iterator[tuple[Driver, Path]]:
    """An engine with a store that has nothing, and where that is: another machine, as far as builds can tell."""
    root = tier.folder("elsewhere") / "store"
    driver = Driver(tier, root=str(root))
    try:
        yield driver, root / "blobs"
    finally:
        driver.close()


def exported(tier: Tier, driver: Driver, text: str, folder: str, **options: Any) -> tuple[dict[str, Any], Path]:
    """Build it with its record and write it to an archive."""
    path = tier.folder("archive") / "app.tar"
    built = driver.build(text, folder=folder, inline_cache=True, outputs=[("oci", str(path))], **options)
    return built, path


def ends(built: dict[str, Any]) -> list[str]:
    """How each step after FROM ended."""
    return [end.partition(":")[0] for end in built["ends"][1:]]


@pytest.mark.peers("skopeo", "docker-registry")
def test_another_store_takes_steps_over_from_a_registry(tier: Tier, registry_host: str) -> None:
    """It makes none of them, has the same image, and fetches no layer that it has no use for."""
    folder = context(tier, {"a.txt": "one"})
    text = text_of(tier)
    built, archive = exported(tier, tier.driver, text, folder, no_cache=True)
    name = f"{registry_host}/cached/app:1"
    copy(f"oci-archive:{archive}", f"docker://{name}")
    source = (CacheSource(kind="image", place=name),)
    with other_store(tier) as (elsewhere, _):
        again = elsewhere.build(text, "again", folder=folder, cache_from=source, inline_cache=True)
        assert ends(again) == ["cached"] * 5
        assert again["id"] == built["id"]
        assert len(elsewhere.run("cat", "/one", "/two", image="again").stdout.splitlines()) == 2
        third = elsewhere.build(text_of(tier, "RUN true"), folder=folder, cache_from=source)
        assert ends(third) == [*["cached"] * 5, "done"]
    layers = [layer["digest"].replace(":", "/") for layer in _manifest(archive)["layers"][-5:]]
    with other_store(tier) as (elsewhere, blobs):
        changed = elsewhere.build(text.replace("WORKDIR /new", "WORKDIR /newer"), folder=folder, cache_from=source)
        assert ends(changed) == ["cached", "done", "done", "cached", "done"]
        assert not changed["notices"]
        assert [(blobs / layer).exists() for layer in layers] == [True, False, False, True, False]


def test_what_was_taken_over_is_not_remembered(tier: Tier) -> None:
    """The next build without the option makes the steps itself, and so does one that builds upon the image."""
    folder = context(tier, {"a.txt": "one"})
    text = text_of(tier)
    _, archive = exported(tier, tier.driver, text, folder, no_cache=True)
    source = (CacheSource(kind="local", place=str(archive)),)
    with other_store(tier) as (elsewhere, blobs):
        taken = elsewhere.build(text, "taken", folder=folder, cache_from=source, inline_cache=True)
        assert ends(taken) == ["cached"] * 5
        made = elsewhere.build(text, "made", folder=folder)
        assert ends(made) == ["done"] * 5
        assert made["id"] != taken["id"]
        child = elsewhere.build("FROM taken\nLABEL a=b\n", "child")
        assert FIELD not in json.loads(_stored(blobs, child["id"]))
        assert FIELD in json.loads(_stored(blobs, taken["id"]))
        assert FIELD not in json.loads(_stored(blobs, made["id"]))


def test_an_image_of_the_store_can_be_the_source(tier: Tier) -> None:
    """A name that is here is asked here: what a prune has forgotten is in the image still."""
    folder = context(tier, {"a.txt": "one"})
    text = text_of(tier)
    built = tier.driver.build(text, "kept:1", folder=folder, arguments={"BUILDKIT_INLINE_CACHE": "1"}, no_cache=True)
    assert FIELD in config_of(tier, built)
    tier.driver.call("clear_build_cache")
    source = (CacheSource(kind="image", place="kept:1"),)
    again = tier.driver.build(text, "kept:2", folder=folder, cache_from=source, inline_cache=True)
    assert (ends(again), again["id"]) == (["cached"] * 5, built["id"])
    unwilling = tier.driver.build(text, "kept:3", folder=folder, cache_from=source, no_cache=True)
    assert ends(unwilling) == ["done"] * 5


def test_sources_that_are_of_no_use(tier: Tier) -> None:
    """One that is not there, has no record or lies of its bytes is told of, and the steps are made."""
    folder = context(tier, {"a.txt": "one"})
    text = text_of(tier)
    _, archive = exported(tier, tier.driver, text, folder, no_cache=True)
    bare = tier.driver.build(text, "bare", folder=folder)
    assert ends(bare) == ["cached"] * 5
    lying = tier.folder("lie")
    _forged(archive, lying, keep_diff_ids=True)
    places = [
        CacheSource(kind="image", place="bare"),
        CacheSource(kind="registry", place=tier.image.replace("tiny", "nothing")),
        CacheSource(kind="local", place=str(tier.folder("nothing") / "no.tar")),
        CacheSource(kind="local", place=str(lying)),
    ]
    with other_store(tier) as (elsewhere, _):
        elsewhere.build(f"FROM {tier.image}\n", "bare")
        built = elsewhere.build(text, "made", folder=folder, cache_from=tuple(places))
        assert ends(built) == ["done"] * 5
        notices = "\n".join(built["notices"])
        assert "--cache-from bare is of no use: it has no record" in notices
        assert "nothing" in notices
        assert "no.tar cannot be read: No such file" in notices
        assert f"--cache-from {lying} cannot be used, so its steps are made here: a layer inflates to" in notices
        assert elsewhere.run("cat", "/one", image="made").stdout != "forged\n"


def test_a_lie_is_believed_by_nobody_who_did_not_ask(tier: Tier) -> None:
    """A forged layer gets into the build that names its source, as any image's would, and into no other."""
    folder = context(tier, {"a.txt": "one"})
    text = text_of(tier)
    _, archive = exported(tier, tier.driver, text, folder, no_cache=True)
    forged = tier.folder("forged")
    _forged(archive, forged, keep_diff_ids=False)
    source = (CacheSource(kind="local", place=str(forged)),)
    with other_store(tier) as (elsewhere, _):
        asked = elsewhere.build(text, "asked", folder=folder, cache_from=source)
        assert ends(asked)[0] == "cached"
        assert elsewhere.run("cat", "/one", image="asked").stdout == "forged\n"
        own = elsewhere.build(text, "own", folder=folder)
        assert ends(own)[0] == "done"
        assert elsewhere.run("cat", "/one", image="own").stdout != "forged\n"


# --- archives ---------------------------------------------------------------------------------------------------------


def _stored(blobs: Path, digest: str) -> bytes:
    return (blobs / digest.replace(":", "/")).read_bytes()


def _blob(archive: Path, digest: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"blobs/{digest.replace(':', '/')}")
        assert file is not None
        return file.read()


def _manifest(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as tar:
        file = tar.extractfile("index.json")
        assert file is not None
        index = json.loads(file.read())
    found: dict[str, Any] = json.loads(_blob(archive, index["manifests"][0]["digest"]))
    return found


def _forged(archive: Path, folder: Path, *, keep_diff_ids: bool) -> None:
    """The same image as a layout whose first own layer has another file; its config may promise the true one."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)
    manifest = _manifest(archive)
    config = json.loads(_blob(archive, manifest["config"]["digest"]))
    number = config[FIELD]["steps"][0]["layer"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("one")
        entry.size = 7
        tar.addfile(entry, io.BytesIO(b"forged\n"))
    layer = gzip.compress(buffer.getvalue())
    manifest["layers"][number] |= _put(folder, layer)
    if not keep_diff_ids:
        config["rootfs"]["diff_ids"][number] = f"sha256:{hashlib.sha256(buffer.getvalue()).hexdigest()}"
    manifest["config"] |= _put(folder, json.dumps(config).encode())
    index = {"schemaVersion": 2, "manifests": [{"mediaType": manifest["mediaType"]}]}
    index["manifests"][0] |= _put(folder, json.dumps(manifest).encode())  # type: ignore[index]
    (folder / "index.json").write_text(json.dumps(index))


def _put(folder: Path, data: bytes) -> dict[str, Any]:
    name = hashlib.sha256(data).hexdigest()
    (folder / "blobs/sha256" / name).write_bytes(data)
    return {"digest": f"sha256:{name}", "size": len(data)}
