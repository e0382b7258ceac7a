"""Answers: readable as text, harmless as HTML, useful to programs."""

from __future__ import annotations

import time
from importlib.util import find_spec

import pytest

from nbcontainer.engine.tables import (
    Column,
    Document,
    Message,
    Table,
    container_table,
    image_table,
    pairs_table,
    printable,
    size_text,
    span_text,
)
from nbcontainer.engine.views import ImageSummary
from nbcontainer.errors import NbcontainerError
from nbcontainer.testing.engine import RecordingEngine


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (29_700_000, "29.7 MB"),
        (117_000_000, "117 MB"),
        (1_230_000_000, "1.23 GB"),
    ],
)
def test_sizes_are_decimal_with_three_figures(size, text):
    """As docker shows them."""
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (47 * 3600, "47 hours"),
        (3 * 86400, "3 days"),
        (21 * 86400, "3 weeks"),
        (90 * 86400, "3 months"),
        (1000 * 86400, "2 years"),
    ],
)
def test_spans_are_said_as_docker_says_them(seconds, text):
    """Coarse, and larger units for longer times."""
    assert span_text(seconds) == text


def test_text_of_strangers_is_made_harmless():
    """Colours, cursor movements and reversed reading direction become visible escapes."""
    assert printable("a\x1b[31mb\r\n\u202ec\x7f") == "a\\x1b[31mb\\r\\n\\u202ec\\x7f"
    assert printable("größe 日本") == "größe 日本"


def test_html_is_escaped():
    """A name cannot bring markup along."""
    table = pairs_table([("<script>alert(1)</script>", "\x1b]0;x\x07&\"'")])
    html = table._repr_html_()
    assert "<script>" not in html
    assert "\x1b" not in html
    assert "&lt;script&gt;" in html
    assert "<b>" not in Document({"<b>": "<b>", "list": ["<b>"]})._repr_html_()
    assert "<b>" not in Message("<b>\x1b")._repr_html_()


def test_image_table_looks_like_dockers():
    """Name and tag apart, short id, age, size."""
    image = RecordingEngine.image("localhost:5000/a/b:1")
    lines = str(image_table([image])).splitlines()
    assert lines[0].split() == ["IMAGE", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert lines[1].startswith("localhost:5000/a/b   1 ")
    assert image.id is not None
    assert image.id.short in lines[1]
    assert lines[1].endswith("117 MB")
    assert repr(image_table([image])) == str(image_table([image]))


def test_tables_are_sequences_of_the_engines_values():
    """Length, index, slice and iteration give the values back."""
    images = [RecordingEngine.image(), RecordingEngine.image("debian:12")]
    table = image_table(images)
    assert len(table) == 2
    assert table[1] is images[1]
    assert list(table[:1]) == images[:1]
    assert images[0] in table
    assert table.records()[0]["size"] == 117_000_000
    assert str(image_table([])) == "no images yet; pull one, for example debian"


def test_quiet_tables_have_no_heading():
    """``-q`` is for programs."""
    image = RecordingEngine.image()
    assert image.id is not None
    assert str(image_table([image], quiet=True)) == image.id.short


def test_running_and_ended_containers():
    """A status says how long, or how it ended."""
    now = time.time()
    running = RecordingEngine.container(state="running", created=now - 120)
    killed = RecordingEngine.container(exit_code=137, reason="timeout 10 s", finished=now - 7200)
    text = str(container_table([running, killed], everything=True))
    assert "Up 2 minutes" in text
    assert "Exited (137) 2 hours ago, timeout 10 s" in text


def test_host_has_dashes_where_an_image_has_more():
    """The embedded image has no tag, id, age or size: a dash says so, and programs get the empty value."""
    host = ImageSummary(
        reference="host", id=None, digest=None, platform="linux/amd64", created=None, pulled=None, size=0,
        compressed_size=0,
    )  # fmt: skip
    assert str(image_table([host], digests=True)).splitlines()[1].split() == ["host", "-", "-", "-", "-", "-"]
    assert image_table([host]).records()[0] == {"image": "host", "tag": "", "image_id": "", "created": None, "size": 0}
    assert str(image_table([host], quiet=True)) == "host"


def test_cells_are_shown_by_their_first_line():
    """A cell is told by its text, shortened and harmless, and not by the name of the file it is given in."""
    cell = RecordingEngine.container(command=("/bin/sh", "/dev/cell"), title="pip install \x1b[31mnumpy pandas")
    assert "pip install \\x1b[31…" in str(container_table([cell]))
    assert "pip install \\x1b[31mnumpy pandas" in str(container_table([cell], full=True))
    assert "/dev/cell" not in str(container_table([cell], full=True))
    assert container_table([cell]).records()[0]["command"] == ("/bin/sh", "/dev/cell")


def test_restarted_containers_are_up_since_their_latest_start():
    """Not since they were made."""
    now = time.time()
    again = RecordingEngine.container(state="running", created=now - 7200, started=now - 120)
    assert "Up 2 minutes" in str(container_table([again]))


def test_data_frame_or_a_clear_error():
    """``df()`` needs pandas, and says so."""
    table = Table([Column("A B", str)], [1, 2])
    if find_spec("pandas") is None:
        with pytest.raises(NbcontainerError, match="pandas"):
            table.df()
    else:
        assert list(table.df()["a_b"]) == ["1", "2"]


def test_documents_index_like_what_they_hold():
    """A document is a dict or a list that prints well."""
    document = Document({"a": [1, {"b": "\u202e"}]})
    assert document["a"][0] == 1
    assert dict(document) == {"a": [1, {"b": "\u202e"}]}
    assert "\\u202e" in str(document)
    assert "<details>" in document._repr_html_()
    assert Document([1, 2])[1] == 2
