"""Any tree, through any tar, comes out as `tarfile` would have it."""

from __future__ import annotations

import contextlib
import io
import shutil
import tarfile
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from nbcontainer.errors import InvalidImage
from tests.layers.layer_tars import Member, folder, link, listing, member, tar, unpack

NAMES = st.sampled_from(["a", "b", "é", "x" * 120, "with space", "new\nline"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o1777, 0o700])
TIMES = st.sampled_from([0, 1, 1_700_000_000, 2**33 + 5, -100])
MEMBERS = st.one_of(
    st.builds(lambda name, mode, mtime: folder(name, mode=mode | 0o700, mtime=mtime), PATHS, MODES, TIMES),
    st.builds(
        lambda name, data, mode, mtime: member(name, data=data, mode=mode, mtime=mtime),
        PATHS,
        st.binary(max_size=2000),
        MODES,
        TIMES,
    ),
    st.builds(link, PATHS, st.sampled_from(["nowhere", "a", "../b", "/etc"])),
)


def acceptable(members: list[Member]) -> list[Member]:
    """The first member of each name, with no name below a file or symlink: what both readers take alike."""
    taken: dict[str, bytes] = {}
    kept = []
    for info, data in members:
        parts = info.name.split("/")
        ancestors = ["/".join(parts[:count]) for count in range(1, len(parts))]
        if info.name in taken or any(taken.get(each, tarfile.DIRTYPE) != tarfile.DIRTYPE for each in ancestors):
            continue
        missing = [each for each in ancestors if each not in taken]
        kept += [folder(each) for each in missing]
        taken.update(dict.fromkeys(missing, tarfile.DIRTYPE))
        taken[info.name] = info.type
        kept.append((info, data))
    return kept


@settings(max_examples=120, deadline=None)
@given(members=st.lists(MEMBERS, max_size=12), form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
def test_apply_agrees_with_tarfile(members: list[Member], form: int) -> None:
    """Content, modes, links and times of a random tree equal those of ``tarfile.extractall``."""
    data = tar(*acceptable(members), form=form)
    with tempfile.TemporaryDirectory() as directory:
        ours, theirs = Path(directory, "ours"), Path(directory, "theirs")
        unpack(data, ours, owners=False)
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            _extract(archive, theirs)
        expected = {name: _without_owner(entry) for name, entry in listing(theirs, times=True).items()}
        assert {name: _without_owner(entry) for name, entry in listing(ours, times=True).items()} == expected
        shutil.rmtree(ours)


def _extract(archive: tarfile.TarFile, target: Path) -> None:
    if hasattr(tarfile, "fully_trusted_filter"):
        archive.extractall(target, filter="fully_trusted")
    else:
        archive.extractall(target)


def _without_owner(entry: tuple[object, ...]) -> tuple[object, ...]:
    # tarfile sets no times on symlinks before 3.8 and keeps their mode; owners are the caller's here
    return entry[:-3] if entry[0] == 0o120000 else (*entry[:-3], entry[-1])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_archives_never_do_worse_than_an_error(data: st.DataObject) -> None:
    """Flip any bytes of an archive: it is applied or refused, and nothing appears beside the target."""
    archive = bytearray(tar(folder("a"), member("a/b", data=b"x" * 600), link("l", "a"), member("é" * 80, data=b"y")))
    for _ in range(data.draw(st.integers(1, 6))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        with contextlib.suppress(InvalidImage):
            unpack(bytes(archive), Path(directory, "fs"), owners=False)
        assert [path.name for path in Path(directory).iterdir()] == ["fs"]
