"""Image names: what people type, and nothing else, becomes a reference."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.errors import InvalidReference
from nbcontainer.model import Digest, Reference

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "complete", "familiar"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("ubuntu:24.04", "docker.io/library/ubuntu:24.04", "ubuntu:24.04"),
        ("jupyter/base", "docker.io/jupyter/base:latest", "jupyter/base:latest"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("index.docker.io/library/ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest", "localhost:5000/x:latest"),
        ("127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1", "127.0.0.1:5000/a/b/c:1"),
        ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
        ("HOST/x", "HOST/x:latest", "HOST/x:latest"),
        ("quay.io/a__b-c.d/e---f", "quay.io/a__b-c.d/e---f:latest", "quay.io/a__b-c.d/e---f:latest"),
        (f"ubuntu@{SHA}", f"docker.io/library/ubuntu@{SHA}", f"ubuntu@{SHA}"),
        (f"ubuntu:x@{SHA}", f"docker.io/library/ubuntu:x@{SHA}", f"ubuntu:x@{SHA}"),
        ("a" * 64 + ":t", f"docker.io/library/{'a' * 64}:t", "a" * 64 + ":t"),
        ("x:_.-", "docker.io/library/x:_.-", "x:_.-"),
        ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),  # as docker reads it
    ],
)
def test_parse(text: str, complete: str, familiar: str) -> None:
    """A short name means what it means everywhere, and its familiar form is the short one."""
    reference = Reference.parse(text)
    assert (str(reference), reference.familiar) == (complete, familiar)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" x", "spaces"),
        ("x\n", "spaces"),
        ("https://x/y", "URL scheme; write 'x/y'"),
        ("Ubuntu", "lower case; try 'ubuntu'"),
        ("a//b", "component ''"),
        ("/a", "component ''"),
        ("a/", "component ''"),
        ("a/../b", "component '..'"),
        ("a b", "component 'a b'"),
        ("-a", "component '-a'"),
        ("a___b", "component"),
        ("x:", "tag ''"),
        ("x:-t", "tag '-t'"),
        ("x:" + "t" * 129, "1 to 128"),
        ("x:y:z", "tag 'y:z'"),
        (":t", "nothing before"),
        (f"@{SHA}", "nothing before"),
        ("x@sha256:12", "64 lower-case hex"),
        ("x@md5:12", "not supported"),
        ("x@sha256:../../../../etc/passwd", "lower-case hex"),
        ("x@", "no algorithm"),
        ("a" * 64, "image id"),
        ("a" * 250, "longer than 255"),
        ("ho_st.example/x", "not a host name"),
        ("[::1/x", "not a host name"),
        ("h.x:port/x", "not a host name"),
        ("ü", "component"),
        ("x:\u0664", "tag"),
        ("a\x00b", "component"),
    ],
)
def test_refuse(text: str, words: str) -> None:
    """What cannot be a name is refused with what is wrong with it."""
    with pytest.raises(InvalidReference) as raised:
        Reference.parse(text)
    assert words in str(raised.value)


COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
HOST = st.from_regex(
    r"[a-z]{1,6}\.[a-z]{2,4}(:[0-9]{1,5})?|localhost(:[0-9]{1,5})?|\[[0-9a-f:]{2,10}\](:[0-9]{1,5})?", fullmatch=True
)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True)
DIGEST = st.binary(max_size=4).map(Digest.of)


@given(
    host=st.none() | HOST,
    path=st.lists(COMPONENT, min_size=1, max_size=3),
    tag=st.none() | TAG,
    digest=st.none() | DIGEST,
)
def test_round_trip(host: str | None, path: list[str], tag: str | None, digest: Digest | None) -> None:
    """Both written forms of a reference are read as the same reference."""
    text = "/".join([*([host] if host else []), *path]) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    try:
        reference = Reference.parse(text)
    except InvalidReference as problem:  # 64 hex digits alone, or a first component that is a host
        assert "image id" in str(problem) or "host" in str(problem)  # noqa: PT017 - both are right
        return
    assert Reference.parse(str(reference)) == reference
    assert Reference.parse(reference.familiar) == reference
    assert reference.digest == digest
    assert reference.tag == (tag or ("" if digest else "latest"))


@given(st.text(max_size=60))
def test_any_text(text: str) -> None:
    """Any text is a reference or `InvalidReference`, and a reference holds no surprise for a path or a request."""
    try:
        reference = Reference.parse(text)
    except InvalidReference:
        return
    assert ".." not in reference.repository.split("/")
    assert str(reference).isascii()
    assert not set(str(reference)) & set(" \t\r\n\0?#%\\")
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("name", "familiar"),
    [
        ("docker.io/evil.io/x", "docker.io/evil.io/x:latest"),
        ("docker.io/localhost/x", "docker.io/localhost/x:latest"),
        ("docker.io/library/a/b", "library/a/b:latest"),
        ("docker.io/library/evil.io", "evil.io:latest"),
        ("docker.io/a/b", "a/b:latest"),
    ],
)
def test_familiar_names_are_read_as_the_same(name: str, familiar: str) -> None:
    """The short form is never another image: docker.io stays where its repository looks like a host."""
    parsed = Reference.parse(name)
    assert parsed.familiar == familiar
    assert Reference.parse(familiar) == parsed
