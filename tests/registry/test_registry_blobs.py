"""Streams that heal and check themselves."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import random
import threading
import time
from typing import Any

import pytest

from nbcontainer.errors import BlobNotFound, CorruptContent, NbcontainerError, RegistryUnreachable
from nbcontainer.model import Descriptor, Digest, Reference
from nbcontainer.registry import RegistryBusy, RegistryClient, RegistrySettings, TransferCancelled
from nbcontainer.testing.registry import InProcessRegistry

DATA = random.Random(1).randbytes(700_000)


@pytest.fixture
def registry():
    """A registry that holds DATA."""
    with InProcessRegistry() as registry:
        registry.add_blob(DATA)
        yield registry


@pytest.fixture
def settings(tmp_path):
    """Settings with little patience."""
    return RegistrySettings(backoff=0.001, timeout=5, docker_config=str(tmp_path / "config.json"))


@pytest.fixture
def client(settings):
    """A client."""
    with RegistryClient(settings) as client:
        yield client


def describe(data: bytes = DATA, **changes: Any) -> Descriptor:
    descriptor = Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))
    return dataclasses.replace(descriptor, **changes)


def read(
    client: RegistryClient, registry: InProcessRegistry, descriptor: Descriptor | None = None, **options: Any
) -> bytes:
    reference = Reference.parse(f"{registry.host}/a")
    with client.open_blob(reference, descriptor or describe(), **options) as stream:
        return b"".join(stream)


def ranges(registry: InProcessRegistry) -> list[str | None]:
    return [request.headers.get("range") for request in registry.asked("blobs")]


def test_whole_blob(client, registry):
    """The bytes come as they are, with one request."""
    assert read(client, registry) == DATA
    assert ranges(registry) == [None]
    assert registry.requests[0].headers["accept-encoding"] == "identity"


def test_as_a_file(client, registry):
    """A stream is a raw binary file, also for a buffered reader."""
    reference = Reference.parse(f"{registry.host}/a")
    with client.open_blob(reference, describe()) as stream:
        assert stream.readable()
        assert stream.read(3) == DATA[:3]
        assert next(stream)[:5] == DATA[3:8]
    with io.BufferedReader(client.open_blob(reference, describe()), 4096) as file:
        assert file.read(10) == DATA[:10]
        assert file.read() == DATA[10:]


def test_closed_stream_is_not_read(client, registry):
    """Reading after the end of the context is a mistake of the caller."""
    stream = client.open_blob(Reference.parse(f"{registry.host}/a"), describe())
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        next(stream)


@pytest.mark.parametrize("data", [b"", b"x"])
def test_smallest_blobs(client, registry, data):
    """Nothing and one byte are blobs too."""
    registry.add_blob(data)
    assert read(client, registry, describe(data)) == data


def test_broken_connection_is_resumed(client, registry):
    """After a break the rest is asked for by Range, and the whole is verified."""
    registry.faults.drop_after, registry.faults.drop_times = 300_000, 2
    assert read(client, registry) == DATA
    first, second, third = ranges(registry)
    assert first is None
    assert second is not None
    assert third is not None
    assert 0 < int(second[6:-1]) <= 300_000 < int(third[6:-1]) <= 600_000


@pytest.mark.parametrize("fault", ["range_ignored", "range_shifted"])
def test_resume_only_after_a_true_206(client, registry, fault):
    """A 200, or a 206 of another range, means to start over: read again, compared, skipped."""
    registry.faults.drop_after = 300_000
    setattr(registry.faults, fault, True)
    assert read(client, registry) == DATA


def test_start_over_with_other_bytes(client, registry):
    """When the start has changed meanwhile, the blob is corrupt."""
    registry.faults.drop_after, registry.faults.range_ignored = 300_000, True
    reference = Reference.parse(f"{registry.host}/a")
    with client.open_blob(reference, describe()) as stream:
        next(stream)
        registry._blobs[Digest.of(DATA)] = b"?" + DATA[1:]
        with pytest.raises(CorruptContent, match="other bytes than before"):
            b"".join(stream)


def test_breaks_that_do_not_end(client, registry):
    """Without progress, patience ends with the attempts."""
    registry.faults.drop_after, registry.faults.drop_times = 0, 99
    with pytest.raises(RegistryUnreachable):
        read(client, registry)
    assert len(registry.requests) == 5


def test_progress_renews_patience(settings, registry):
    """A large blob may break more often than there are attempts, as long as it gets on."""
    data = bytes(8 * 1024 * 1024)
    registry.add_blob(data)
    registry.faults.drop_after, registry.faults.drop_times = 1_500_000, 99
    with RegistryClient(dataclasses.replace(settings, attempts=2)) as client:
        assert read(client, registry, describe(data)) == data


def test_busy_then_well(client, registry):
    """503 before the first byte is waited out."""
    registry.faults.unavailable = 3
    assert read(client, registry) == DATA


def test_busy_for_good(client, registry):
    """503 for ever is an error."""
    registry.faults.unavailable = 99
    with pytest.raises(RegistryBusy):
        read(client, registry)


def test_changed_bytes(client, registry):
    """The last chunk is not handed out when the digest is wrong."""
    registry.faults.corrupt = {Digest.of(DATA)}
    got = []
    with (
        client.open_blob(Reference.parse(f"{registry.host}/a"), describe()) as stream,
        pytest.raises(CorruptContent, match="whose digest is"),
    ):
        got.extend(stream)
    assert len(b"".join(got)) < len(DATA)


def test_too_many_bytes(client, registry):
    """A body without a length that goes on after the size is refused."""
    registry.faults.lengthen = {Digest.of(DATA)}
    with pytest.raises(CorruptContent, match="more than the 700000 bytes"):
        read(client, registry)


def test_announced_as_too_long(client, registry):
    """A Content-Length beyond the size is refused before anything is read."""
    with pytest.raises(CorruptContent, match="announced 700000 bytes"):
        read(client, registry, describe(size=1000))


def test_too_few_bytes(client, registry):
    """A short body is asked for again, and in the end an error that counts."""
    registry.faults.truncate = {Digest.of(DATA)}
    with pytest.raises(NbcontainerError, match="350000 of the 700000 bytes"):
        read(client, registry)
    assert len(registry.requests) > 4


def test_missing_blob(client, registry):
    """A blob that is not there is told at once, with its image."""
    with pytest.raises(BlobNotFound, match="blob unknown"):
        read(client, registry, describe(b"other"))
    assert len(registry.requests) == 1


@pytest.mark.parametrize("ignored", [False, True])
def test_offset_of_an_earlier_process(client, registry, ignored):
    """What is kept from before is not sent again, or is skipped; the hash covers all."""
    registry.faults.range_ignored = ignored
    hasher = hashlib.sha256(DATA[:500_000])
    assert read(client, registry, offset=500_000, hasher=hasher) == DATA[500_000:]
    assert ranges(registry) == ["bytes=500000-"]
    assert hasher.hexdigest() == Digest.of(DATA).hex


def test_offset_after_damaged_bytes(client, registry):
    """Kept bytes that were damaged make the whole corrupt."""
    hasher = hashlib.sha256(b"?" * 500_000)
    with pytest.raises(CorruptContent):
        read(client, registry, offset=500_000, hasher=hasher)


def test_offset_at_the_end_only_verifies(client, registry):
    """Everything kept: nothing is asked, the digest is still checked."""
    assert read(client, registry, offset=len(DATA), hasher=hashlib.sha256(DATA)) == b""
    with pytest.raises(CorruptContent):
        read(client, registry, offset=len(DATA), hasher=hashlib.sha256(b"x"))
    assert registry.requests == ()


def test_offset_needs_a_hash(client, registry):
    """An offset without the hash of what is before it could not be verified."""
    with pytest.raises(ValueError, match="hash"):
        read(client, registry, offset=5)


def test_sha512(client, registry):
    """Other registered algorithms are verified too."""
    registry._blobs[Digest.of(DATA, "sha512")] = DATA
    assert read(client, registry, describe(digest=Digest.of(DATA, "sha512"))) == DATA


def test_cancel_from_another_thread(client, registry):
    """A slow download ends at once, and only that one."""
    registry.faults.piece_delay = 0.3
    reference = Reference.parse(f"{registry.host}/a")
    start = time.monotonic()
    with client.open_blob(reference, describe()) as stream:
        threading.Timer(0.2, stream.cancel).start()
        with pytest.raises(TransferCancelled, match="was cancelled"):
            b"".join(stream)
    assert time.monotonic() - start < 2
    registry.faults.piece_delay = 0
    assert read(client, registry) == DATA


def test_cancel_before_the_first_read(client, registry):
    """A stream cancelled early asks nobody."""
    with client.open_blob(Reference.parse(f"{registry.host}/a"), describe()) as stream:
        stream.cancel()
        with pytest.raises(TransferCancelled):
            next(stream)
    assert registry.requests == ()


def test_close_of_the_client_ends_its_streams(settings, registry):
    """Closing the client ends every download."""
    registry.faults.piece_delay = 0.3
    client = RegistryClient(settings)
    threading.Timer(0.2, client.close).start()
    with pytest.raises(TransferCancelled):
        read(client, registry)


def test_parallel_downloads(client, registry):
    """Several threads read at once through one client."""
    blobs = [random.Random(seed).randbytes(200_000) for seed in range(6)]
    for blob in blobs:
        registry.add_blob(blob)
    registry.faults.drop_after, registry.faults.drop_times = 100_000, 3
    got: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda n=n, b=b: got.__setitem__(n, read(client, registry, describe(b))))
        for n, b in enumerate(blobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[number] for number in range(6)] == blobs


def test_another_mirror_takes_over(settings, registry):
    """When a mirror dies in the middle, the registry goes on from there."""
    with InProcessRegistry() as mirror:
        mirror.add_blob(DATA)
        mirror.faults.drop_after, mirror.faults.drop_times = 300_000, 99
        settings = dataclasses.replace(settings, attempts=1, mirrors={registry.host: (mirror.url,)})
        notices: list[str] = []
        with RegistryClient(settings, notice=notices.append) as client:
            assert read(client, registry) == DATA
    (asked,) = ranges(registry)
    assert asked is not None
    assert len(notices) == 1


def test_mirror_that_lies_is_not_asked_twice(settings, registry):
    """Wrong bytes are an error; the next try goes to the registry."""
    with InProcessRegistry() as mirror:
        mirror.add_blob(DATA)
        mirror.faults.corrupt = {Digest.of(DATA)}
        settings = dataclasses.replace(settings, mirrors={registry.host: (mirror.url,)})
        with RegistryClient(settings) as client:
            with pytest.raises(CorruptContent, match=mirror.host):
                read(client, registry)
            assert read(client, registry) == DATA


def test_foreign_layer_is_fetched_without_credentials(settings, registry):
    """Only when the registry lacks the blob, and whatever the other server asks for (CVE-2020-15157)."""
    with InProcessRegistry() as elsewhere:
        foreign = random.Random(2).randbytes(1000)
        elsewhere.add_blob(foreign)
        url = f"{elsewhere.url}/v2/x/blobs/{Digest.of(foreign)}"
        with RegistryClient(settings) as client:
            assert read(client, registry, describe(urls=(url,))) == DATA
            assert not elsewhere.asked("/")
            assert read(client, registry, describe(foreign, urls=(url,))) == foreign
            elsewhere.auth = "basic"
            with pytest.raises(NbcontainerError):
                read(client, registry, describe(foreign, urls=(url,)))
        assert [request.headers.get("authorization") for request in elsewhere.requests] == [None, None]


def test_foreign_layer_does_not_stand_in_for_a_fault(client, registry):
    """A registry that is busy is not a registry without the blob."""
    registry.faults.unavailable = 99
    with InProcessRegistry() as elsewhere:
        with pytest.raises(RegistryBusy):
            read(client, registry, describe(urls=(f"{elsewhere.url}/x",)))
        assert elsewhere.requests == ()
