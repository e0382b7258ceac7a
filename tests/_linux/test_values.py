"""Values without dataclasses."""

from __future__ import annotations

import pytest

from nbcontainer._linux.values import fields_of, replaced, value


@value
class Point:
    """Two fields, one with a default."""

    x: int
    y: int = 2


def test_made_by_place_and_by_name() -> None:
    """Fields are given in order or by name, and defaults fill in."""
    assert (Point(1).x, Point(1).y, Point(x=1, y=5).y) == (1, 2, 5)


@pytest.mark.parametrize(("places", "names"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 3}), ((1,), {"x": 3})])
def test_wrong_fields(places: tuple[int, ...], names: dict[str, int]) -> None:
    """Missing, too many, unknown and doubled fields are refused."""
    with pytest.raises(TypeError):
        Point(*places, **names)


def test_equal_by_fields() -> None:
    """Values are equal when kind and fields are."""
    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    other: object = (1, 2)
    assert Point(1) != other


def test_frozen() -> None:
    """Nothing can be changed or taken away, and nothing hashed that may hold a list."""
    point = Point(1)
    with pytest.raises(AttributeError, match=r"Point\.x cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(TypeError):
        hash(point)


def test_replaced() -> None:
    """A copy with other fields leaves the first as it was."""
    point = Point(1)
    assert (replaced(point, y=9), point) == (Point(1, 9), Point(1))
    with pytest.raises(TypeError):
        replaced(point, z=1)


def test_shown_and_told() -> None:
    """It shows its fields, matches by place, and tells their types as written."""
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert fields_of(Point) == {"x": "int", "y": "int"}
    match Point(3):
        case Point(x, y):
            assert (x, y) == (3, 2)
