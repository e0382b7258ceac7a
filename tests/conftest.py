"""For every test: skip with a sentence where the host cannot run it, and fail it when it leaves something behind."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.harness.debian import debian_root
from tests.harness.host import PROBED, absence
from tests.harness.leaks import Leaks, adopt_orphans
from tests.harness.propagation import share_mounts
from tests.harness.users import mirrored_python, user_with_range, user_without_range

if TYPE_CHECKING:
    from collections.abc import Iterator

_USERS = ("range", "single", "", "")

__all__ = ["debian_root", "leaks", "mirrored_python", "no_leaks", "user_with_range", "user_without_range"]


settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--require``."""
    parser.addoption(
        "--require",
        default="",
        metavar="MARKER,...",
        help=f"fail instead of skipping where the host lacks what these markers need ({', '.join(PROBED)})",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse ``--require`` names that would never match, and live with shared mounts."""
    unknown = sorted(_required(config) - set(PROBED))
    if unknown:
        raise pytest.UsageError(f"--require: no marker {', '.join(unknown)}; there are {', '.join(PROBED)}")
    share_mounts()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell a story as ourselves and, every other one of them, as one kind of user, which its name decides; or as all.

    ``NBCONTAINER_TEST_TIERS=all`` asks. A test that names its tiers has those.
    """
    if os.environ.get("NBCONTAINER_TEST_TIERS") == "all":
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        (left_out if _is_left_out(item) else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def _is_left_out(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return False
    tier = item.callspec.params.get("person")
    if tier not in {"range", "single"} or any("person" in mark.args[0] for mark in item.iter_markers("parametrize")):
        return False
    return tier != _USERS[zlib.crc32(item.originalname.encode()) % len(_USERS)]  # of the four two are nobody


def _required(config: pytest.Config) -> set[str]:
    names: str = config.getoption("--require")
    return set(names.split(",")) - {""}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip or fail a marked test before its fixtures are set up; nothing is probed for unmarked ones."""
    required = _required(item.config)
    for marker in item.iter_markers():
        reason = absence(marker.name, *marker.args) if marker.name in PROBED else ""
        if reason and marker.name in required:
            pytest.fail(f"--require={marker.name}: {reason}", pytrace=False)
        if reason:
            pytest.skip(reason)


@pytest.fixture(scope="session")
def leaks(tmp_path_factory: pytest.TempPathFactory) -> Leaks:
    """Hold what wider-scoped fixtures are allowed to keep; see `tests.harness.leaks`."""
    adopt_orphans()
    return Leaks(words=(str(tmp_path_factory.getbasetemp()), "/nbcontainer", f"nbcontainer-{os.getpid()}"))


@pytest.fixture(autouse=True)
def no_leaks(leaks: Leaks) -> Iterator[None]:
    """Fail a test that leaves processes, mounts, cgroups or descriptors behind.

    Autouse fixtures come first within their scope: the snapshot follows the set-up of session and module fixtures,
    and the comparison follows the tear-down of the test's own.
    """
    before = leaks.snapshot()
    yield
    left = leaks.left_since(before)
    if left:
        pytest.fail("left behind:\n  " + "\n  ".join(left), pytrace=False)
