"""How the verbs that move files are typed, at both doors."""

from __future__ import annotations

import pytest

from nbcontainer.engine.file_verbs import Place
from nbcontainer.engine.files import ContainerPath
from nbcontainer.engine.tables import Changes
from nbcontainer.engine.verbs import dispatch
from nbcontainer.engine.views import Change, CopyResult
from nbcontainer.errors import InvalidOption
from nbcontainer.testing.engine import RecordingEngine
from tests.engine.test_verbs import FakeSession


@pytest.mark.parametrize(
    ("text", "container", "path"),
    [
        ("work:/x", "work", "/x"),
        ("work:x:y", "work", "x:y"),
        ("work:.", "work", "."),
        ("./work:x", "", "./work:x"),
        ("/a:b", "", "/a:b"),
        ("~/a:b", "", "~/a:b"),
        ("data.csv", "", "data.csv"),
        (":x", "", ":x"),
        ("-", "", "-"),
    ],
)
def test_sides_of_a_copy(text: str, container: str, path: str) -> None:
    """A name with a colon is a container's unless it begins like a path."""
    assert Place.parse(text) == Place(container=container, path=path)


@pytest.mark.parametrize(
    ("text", "path", "directory", "contents"),
    [
        ("/a/b", "/a/b", False, False),
        ("a/b/", "/a/b", True, False),
        ("/a/.", "/a", True, True),
        ("/", "/", True, True),
        ("", "/", True, True),
        ("..", "/", True, True),
        ("/a/../../b", "/b", False, False),
        ("//a", "/a", False, False),
    ],
)
def test_paths_in_a_container(text: str, path: str, directory: bool, contents: bool) -> None:
    """They start at its root, and no number of dots leads above it."""
    assert ContainerPath.parse(text) == ContainerPath(path=path, directory=directory, contents=contents)


def test_copies() -> None:
    """The side with a container decides the direction; what was left out is said on standard error, even if quiet."""
    engine = RecordingEngine(copied=CopyResult(entries=2, bytes=1500, notices=("a\x1b was left out",)))
    session = FakeSession(engine)
    answer = dispatch(session, ["cp", "-aL", "work:/out/.", "here"])
    assert str(answer) == "copied work:/out/. to here: 2 entries, 1.5 kB"
    assert engine.last("copy_from") == {
        "container": "work", "path": "/out/.", "target": "here", "archive": True, "follow_link": True,
    }  # fmt: skip
    assert session.written == [("stderr", b"a\\x1b was left out\n")]
    assert dispatch(session, ["cp", "-q", "data", "work:/x"]) is None
    assert engine.last("copy_to")["source"] == "data"
    for words in (["a", "b"], ["a:b", "c:d"], ["work:", "x"], ["-", "work:/"], ["work:/", "-"]):
        with pytest.raises(InvalidOption):
            dispatch(session, ["cp", *words])


def test_commit_and_export() -> None:
    """Options arrive as they are typed; an export needs a file in a notebook."""
    engine = RecordingEngine()
    session = FakeSession(engine)
    answer = dispatch(
        session, ["commit", "-m", "x", "-a", "Ada", "-c", "ENV A=1", "-c", "USER me", "work", "class/b:2"]
    )
    assert str(answer).startswith("sha256:")
    assert engine.last("commit") == {
        "container": "work", "name": "class/b:2", "message": "x", "author": "Ada", "changes": ("ENV A=1", "USER me"),
        "pause": False,
    }  # fmt: skip
    dispatch(session, ["commit", "--pause", "work"])
    assert engine.last("commit")["pause"]
    dispatch(session, ["export", "-o", "root.tar", "work"])
    assert engine.last("export") == {"container": "work", "target": "root.tar"}
    with pytest.raises(InvalidOption, match="-o FILE"):
        dispatch(session, ["export", "work"])


def test_changes_as_docker_prints_them() -> None:
    """A line each in text, a table in HTML, rows to programs; names can neither move the cursor nor be markup."""
    shown = Changes((Change(kind="A", path="/<b>\n"), Change(kind="D", path="/x")))
    assert str(shown) == "A /<b>\\n\nD /x"
    assert "&lt;b&gt;" in shown._repr_html_()
    assert shown.records() == [{"kind": "A", "path": "/<b>\n"}, {"kind": "D", "path": "/x"}]
    assert str(Changes(())) == "nothing has changed"
