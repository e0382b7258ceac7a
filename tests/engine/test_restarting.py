"""When a container is started again: docker's policies and pauses, as numbers."""

from __future__ import annotations

import pytest

from nbcontainer.engine.restarting import Attempts, Ended, next_attempt, read_restart_policy
from nbcontainer.errors import InvalidOption
from nbcontainer.model import RestartPolicy


def ended(code: int = 1, *, lived: float = 0.1, wanted: bool = False) -> Ended:
    return Ended(exit_code=code, lived=lived, wanted=wanted)


@pytest.mark.parametrize(
    ("text", "code", "again"),
    [
        ("no", 0, False),
        ("no", 1, False),
        ("on-failure", 0, False),
        ("on-failure", 1, True),
        ("on-failure:1", 125, True),
        ("always", 0, True),
        ("always", 137, True),
        ("unless-stopped", 0, True),
    ],
)
def test_policies(text: str, code: int, again: bool) -> None:
    """Each policy after a good and a bad end; after one that somebody wanted, none starts anything."""
    policy = read_restart_policy(text)
    assert (next_attempt(policy, ended(code), Attempts()) is not None) == again
    assert next_attempt(policy, ended(code, wanted=True), Attempts()) is None
    assert str(policy) == text


def test_pauses_double_up_to_a_minute() -> None:
    """From a tenth of a second, for one that ends at once again and again."""
    attempts: Attempts | None = Attempts()
    pauses = []
    for _ in range(13):
        assert attempts is not None
        attempts = next_attempt(RestartPolicy(name="always"), ended(), attempts)
        assert attempts is not None
        pauses.append(round(attempts.pause, 3))
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60, 60]
    assert attempts is not None
    assert attempts.count == 13


def test_a_life_of_ten_seconds_begins_anew() -> None:
    """The pause is short again, the count goes on."""
    after = next_attempt(RestartPolicy(name="always"), ended(lived=10), Attempts(count=7, pause=12.8))
    assert after == Attempts(count=8, pause=0.1)


def test_retries_are_bounded() -> None:
    """on-failure:2 tries twice, however long the lives were."""
    policy = read_restart_policy("on-failure:2")
    attempts = next_attempt(policy, ended(), Attempts())
    assert attempts is not None
    attempts = next_attempt(policy, ended(lived=60), attempts)
    assert attempts is not None
    assert attempts.count == 2
    assert next_attempt(policy, ended(), attempts) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sometimes", "on-failure:N"),
        ("", "there are no, on-failure"),
        ("always:3", "on-failure alone"),
        ("on-failure:", "on-failure:5"),
        ("on-failure:-1", "on-failure:5"),
        ("on-failure:x", "on-failure:5"),
    ],
)
def test_what_is_no_policy(text: str, words: str) -> None:
    """The sentence says what there is."""
    with pytest.raises(InvalidOption, match=words):
        read_restart_policy(text)
