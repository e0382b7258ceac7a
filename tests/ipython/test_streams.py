"""Bytes to text below a cell."""

from __future__ import annotations

from nbcontainer.ipython.streams import OutputWriter


def test_every_split_of_a_text_survives(capsys):
    """However a read cuts, the text is the same."""
    data = "aé日𝄞\r50%\r100%\n".encode()
    for cut in range(len(data) + 1):
        writer = OutputWriter()
        writer.write("stdout", data[:cut])
        writer.write("stdout", data[cut:])
        writer.close()
        assert capsys.readouterr().out == data.decode()


def test_unfinished_and_wrong_bytes_become_replacement_characters(capsys):
    """Nothing is lost silently, and nothing raises."""
    writer = OutputWriter()
    writer.write("stderr", b"\xff a \xe6\x97")
    writer.close()
    writer.close()
    assert capsys.readouterr().err == "\ufffd a \ufffd"


def test_limit_cuts_each_stream_by_itself(capsys):
    """A cut inside a character does not hide the note; the other stream goes on."""
    writer = OutputWriter(limit=4)
    writer.write("stdout", "ééé".encode())
    writer.write("stdout", b"more")
    writer.write("stderr", b"e")
    writer.close()
    shown = capsys.readouterr()
    assert shown.out.startswith("éé\n[stdout truncated after 4 B; use --out VARIABLE")
    assert shown.err == "e"


def test_captured_streams_have_no_limit(capsys):
    """Who asks for a variable gets everything."""
    writer = OutputWriter(limit=4, captured={"stdout"})
    writer.write("stdout", b"x" * 100)
    writer.close()
    assert writer.text("stdout") == "x" * 100
    assert capsys.readouterr().out == ""


def test_tail_of_standard_error_is_kept_for_the_hint():
    """Shown or captured, and bounded."""
    writer = OutputWriter(captured={"stderr"})
    writer.write("stderr", b"x" * 100_000 + b"end")
    assert writer.stderr_tail.endswith("end")
    assert len(writer.stderr_tail) == 65536
