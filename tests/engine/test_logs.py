"""The log of a container: written in files that take turns, read and followed from outside."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from nbcontainer.engine.logs import LogFollower, LogWriter, last_lines, limits_of, read_log, read_moment, within
from nbcontainer.engine.views import LogLine
from nbcontainer.errors import InvalidOption
from nbcontainer.model import LogLimits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    """Lend a log of three files, each for about five pieces."""
    writer = LogWriter(str(tmp_path), LogLimits(size=350, files=3))
    yield writer
    writer.close()


def numbers(pieces: object) -> list[int]:
    return [int(piece.data) for piece in pieces]  # type: ignore[attr-defined]


def test_files_take_turns(writer: LogWriter, tmp_path: Path) -> None:
    """The oldest is let go, the rest is read in order, across files."""
    for number in range(100):
        writer.append("stdout", b"%d\n" % number)
    assert sorted(os.listdir(tmp_path)) == ["output.jsonl", "output.jsonl.1", "output.jsonl.2"]
    assert all(path.stat().st_size <= 350 for path in tmp_path.iterdir())
    kept = numbers(read_log(str(tmp_path)))
    assert kept == list(range(kept[0], 100))
    assert 9 <= len(kept) <= 15


def test_one_file(tmp_path: Path) -> None:
    """With one file, its content is let go at once."""
    writer = LogWriter(str(tmp_path), LogLimits(size=200, files=1))
    for number in range(20):
        writer.append("stderr", b"%d" % number)
    writer.close()
    assert os.listdir(tmp_path) == ["output.jsonl"]
    assert numbers(read_log(str(tmp_path)))[-1] == 19


def test_a_piece_larger_than_a_file(writer: LogWriter, tmp_path: Path) -> None:
    """It is kept whole."""
    writer.append("stdout", b"1")
    writer.append("stdout", b"x" * 1000)
    writer.append("stdout", b"2")
    assert [len(piece.data) for piece in read_log(str(tmp_path))] == [1, 1000, 1]


def test_a_writer_goes_on_with_a_file(writer: LogWriter, tmp_path: Path) -> None:
    """The next life of a container adds to its log, and counts what is there."""
    for number in range(4):
        writer.append("stdout", b"%d" % number)
        writer.close()
    assert numbers(read_log(str(tmp_path))) == [0, 1, 2, 3]
    for number in range(4, 8):
        writer.append("stdout", b"%d" % number)
        writer.close()
    assert (tmp_path / "output.jsonl.1").exists()
    assert numbers(read_log(str(tmp_path))) == list(range(8))


def test_following_across_files(writer: LogWriter, tmp_path: Path) -> None:
    """Nothing is lost or told twice while files change their names, by one or two places between looks."""
    follower = LogFollower(str(tmp_path))
    seen: list[int] = []
    for number in range(200):
        writer.append("stdout", b"%d" % number)
        if number % 4 == 0:
            seen += numbers(follower.read())
    seen += numbers(follower.read())
    follower.close()
    assert seen == list(range(200))


def test_a_follower_that_is_left_behind(writer: LogWriter, tmp_path: Path) -> None:
    """What was let go meanwhile is lost to it; it goes on with the oldest there is."""
    follower = LogFollower(str(tmp_path))
    writer.append("stdout", b"0")
    assert numbers(follower.read()) == [0]
    for number in range(1, 100):
        writer.append("stdout", b"%d" % number)
    seen = numbers(follower.read())
    follower.close()
    assert seen[-9:] == list(range(91, 100))
    assert seen == sorted(set(seen))


def test_following_from_now(writer: LogWriter, tmp_path: Path) -> None:
    """What was there is skipped, also when there was nothing yet."""
    early, late = LogFollower(str(tmp_path)), LogFollower(str(tmp_path))
    early.skip()
    writer.append("stdout", b"1")
    late.skip()
    writer.append("stdout", b"2")
    assert (numbers(early.read()), numbers(late.read())) == ([1, 2], [2])
    early.close()
    late.close()


def test_follow_ends_with_all_that_was_written(writer: LogWriter, tmp_path: Path) -> None:
    """What came between the last look and the end is shown."""
    follower = LogFollower(str(tmp_path))
    looks = iter([False, True])

    def is_over() -> bool:
        over = next(looks)
        writer.append("stdout", b"%d" % over)
        return over

    assert numbers(follower.follow(is_over, lambda _: None)) == [0, 1]
    follower.close()


def test_the_log_of_nobody(tmp_path: Path) -> None:
    """A container that has written nothing, or is gone, has an empty one."""
    assert read_log(str(tmp_path)) == ()
    assert read_log(str(tmp_path / "gone")) == ()


def test_a_log_is_not_a_link(tmp_path: Path) -> None:
    """A link in its place is neither read nor written."""
    (tmp_path / "elsewhere").write_text('{"time": 1, "stream": "stdout", "log": "1"}\n')
    (tmp_path / "output.jsonl").symlink_to("elsewhere")
    assert read_log(str(tmp_path)) == ()
    with pytest.raises(OSError, match="symbolic"):
        LogWriter(str(tmp_path), LogLimits()).append("stdout", b"2")


def pieces(*texts: tuple[float, bytes]) -> list[LogLine]:
    return [LogLine(time=time, stream="stdout", data=data) for time, data in texts]


def test_a_span_and_the_last_lines() -> None:
    """Spans are of pieces, lines are counted across them."""
    all_of_it = pieces((1, b"a\nb\n"), (2, b"c"), (3, b"d\n"))
    assert [piece.data for piece in within(all_of_it, 2, None)] == [b"c", b"d\n"]
    assert [piece.data for piece in within(all_of_it, None, 2)] == [b"a\nb\n", b"c"]
    assert [piece.data for piece in last_lines(all_of_it, 3)] == [b"b\n", b"c", b"d\n"]
    assert last_lines(all_of_it, 0) == []
    assert len(last_lines(all_of_it, None)) == 4


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("10m", 1000 - 600),
        ("1h30m", 1000 - 5400),
        ("1.5s", 998.5),
        ("1700000000", 1_700_000_000),
        ("1700000000.25", 1_700_000_000.25),
        ("2026-01-31T09:30:00Z", 1_769_851_800),
        ("2026-01-31T09:30:00.5Z", 1_769_851_800.5),
        ("2026-01-31T10:30:00+01:00", 1_769_851_800),
        ("2026-01-31T04:30-05:00", 1_769_851_800),
    ],
)
def test_moments(text: str, moment: float) -> None:
    """Spans back from now, unix seconds, and dates with a zone."""
    assert read_moment(text, 1000) == pytest.approx(moment)


def test_a_moment_without_a_zone_is_of_this_machine() -> None:
    """As in docker."""
    assert read_moment("2026-01-31T09:30:00") - read_moment("2026-01-31") == 9.5 * 3600


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "10x", "-5m", "1e3", "2026-01-31T09:30:00+1"])
def test_what_is_no_moment(text: str) -> None:
    """The sentence shows the three forms."""
    with pytest.raises(InvalidOption, match="1h30m"):
        read_moment(text)


def test_limits_in_a_record() -> None:
    """What cannot be read is the default."""
    assert limits_of({"size": 5, "files": 2}) == LogLimits(size=5, files=2)
    for damaged in (None, 3, {}, {"size": "x", "files": 1}, {"size": 1, "files": True}):
        assert limits_of(damaged) == LogLimits()
    assert limits_of({"size": 0, "files": 0}) == LogLimits(size=1, files=1)
