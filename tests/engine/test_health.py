"""Health checks: which command, when, and what its end means."""

from __future__ import annotations

import dataclasses

import pytest

from nbcontainer.engine.health import Check, Health, effective, health_of, pause_before, saved_check, with_result
from nbcontainer.model import HealthCheck, ImageConfig

IMAGE = HealthCheck(test=("CMD-SHELL", "curl -f localhost"), interval=5, retries=2)
CHECK = Check(argv=("check",), interval=30, timeout=3, start_period=10, start_interval=2, retries=3)


def after(health: Health, *codes: int, lived: float = 60) -> Health:
    for code in codes:
        health = with_result(CHECK, health, code=code, output="x", began=1, ended=2, lived=lived)
    return health


def test_defaults_are_dockers() -> None:
    """30 s, 30 s, no start period, 3 retries; a line of text is the shell's, the image's own if it has one."""
    check = effective(HealthCheck(test=("CMD-SHELL", "true && true")), HealthCheck())
    assert check == Check(
        argv=("/bin/sh", "-c", "true && true"), interval=30, timeout=30, start_period=0, start_interval=5, retries=3
    )
    check = effective(HealthCheck(test=("CMD-SHELL", "x")), HealthCheck(), ("/bin/bash", "-ec"))
    assert check is not None
    assert check.argv == ("/bin/bash", "-ec", "x")
    check = effective(HealthCheck(test=("CMD", "a", "b c")), HealthCheck())
    assert check is not None
    assert check.argv == ("a", "b c")


def test_what_is_asked_wins_over_the_image() -> None:
    """Each field by itself."""
    check = effective(IMAGE, HealthCheck(interval=1))
    assert check is not None
    assert (check.argv[-1], check.interval, check.retries) == ("curl -f localhost", 1, 2)
    check = effective(IMAGE, HealthCheck(test=("CMD-SHELL", "mine")))
    assert check is not None
    assert (check.argv[-1], check.interval) == ("mine", 5)


@pytest.mark.parametrize("image", [None, HealthCheck(), HealthCheck(test=("NONE",)), HealthCheck(test=("CMD",))])
def test_no_check(image: HealthCheck | None) -> None:
    """An image without one, or with one that is none; and one that was switched off."""
    assert effective(image, HealthCheck(interval=5)) is None
    assert effective(IMAGE, HealthCheck(test=("NONE",))) is None


def test_three_failures_in_a_row_make_it_unhealthy() -> None:
    """Not two; and a success between them begins the count anew."""
    assert after(Health(), 1, 1).status == "starting"
    assert after(Health(), 1, 1, 1).status == "unhealthy"
    assert after(Health(), 1, 1, 0, 1, 1) == dataclasses.replace(
        after(Health(), 1, 1, 0, 1, 1), status="healthy", failing=2
    )
    assert after(Health(), 0, 1, 1, -1).status == "unhealthy"
    assert after(Health(), 1, 1, 1, 0) == dataclasses.replace(after(Health(), 1, 1, 1, 0), status="healthy", failing=0)


def test_failures_of_the_start_period_do_not_count() -> None:
    """Until the first success, which ends the period."""
    young = after(Health(), 1, 1, 1, 1, lived=5)
    assert (young.status, young.failing) == ("starting", 0)
    assert after(after(Health(), 0, lived=1), 1, 1, 1, lived=5).status == "unhealthy"


def test_checks_of_the_start_period_come_sooner() -> None:
    """The start interval holds there, unless the other one is shorter."""
    assert pause_before(CHECK, Health(), 5) == 2
    assert pause_before(CHECK, Health(), 10) == 30
    assert pause_before(CHECK, Health(status="healthy"), 5) == 30
    assert pause_before(dataclasses.replace(CHECK, interval=1), Health(), 5) == 1


def test_five_results_are_remembered() -> None:
    """The latest, oldest first."""
    health = after(Health(), 1, 2, 3, 4, 5, 6, 0)
    assert [each["exit_code"] for each in health.results] == [3, 4, 5, 6, 0]
    assert health.as_field()["status"] == "healthy"


def test_a_check_is_kept_in_a_record() -> None:
    """And read again; what is damaged is no check."""
    assert health_of(saved_check(CHECK) | {"argv": list(CHECK.argv)}) == CHECK  # type: ignore[operator]
    damages: list[object] = [None, [], {}, {"argv": 3}, {"argv": ["a"]}]
    for damaged in damages:
        assert health_of(damaged) is None


def test_an_image_tells_its_check() -> None:
    """Docker's nanoseconds are read as seconds; what cannot be a time is the default."""
    config = ImageConfig.from_json(
        b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"config":{"Healthcheck":'
        b'{"Test":["CMD","x"],"Interval":1500000000,"Timeout":-1,"Retries":4}}}'
    )
    assert config.health == HealthCheck(test=("CMD", "x"), interval=1.5, retries=4)
