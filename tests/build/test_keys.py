"""Names of steps: the same for the same, another for anything else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbcontainer.build.keys import step_key
from nbcontainer.model import Digest

PARENT = Digest.of(b"parent")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(parts=st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), PLAIN, max_size=4))
def test_the_order_of_parts_does_not_count(parts: dict[str, Any]) -> None:
    """Whatever the parts are, their order has no say, and each of them has."""
    parts = {f"part_{name}": value for name, value in parts.items()}
    key = step_key("run", PARENT, **parts)
    assert key == step_key("run", PARENT, **dict(reversed(parts.items())))
    assert key != step_key("run", PARENT, **parts, more="x")
    assert key != step_key("copy", PARENT, **parts)
    assert key != step_key("run", None, **parts)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a b"], ["a", "b"]),
        (["ab", ""], ["a", "b"]),
        ("1", 1),
        (None, ""),
        (False, 0),
        ([["a", "b"]], [["a"], ["b"]]),
        ("\udcff", "\\udcff"),
        ("é", "e\u0301"),
        (['","'], ["", ""]),
    ],
)
def test_nothing_looks_like_something_else(one: object, other: object) -> None:
    """Values that read alike when they are joined have different keys."""
    assert step_key("run", PARENT, value=one) != step_key("run", PARENT, value=other)


def test_keys_stay_the_same() -> None:
    """A key is not another one tomorrow: what was built with the last release is found, until the version is raised."""
    expected = "sha256:39661baf37dfddd49c13ac66f74218c2a85d31c6ed047f1958d38a26ce3b0700"
    assert str(step_key("run", PARENT, words=["true"])) == expected
