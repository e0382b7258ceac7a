"""What the virtual machine's check decides, without booting one."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.vm.guest import SESSIONS, Plan, as_logged_in, pytest_command, verdict
from tests.vm.image import HERE, PLAN, Disk, Recipe, checkout, requirements
from tests.vm.machine import Machine


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("… passed\n\nverdict of the guest: 0\n", 0),
        ("verdict of the guest: 1\r\n", 1),
        ("a test that says verdict of the guest: 0\n", None),
        ("", None),
    ],
)
def test_verdict(report: str, expected: int | None) -> None:
    """Only a line of its own is an answer; a guest that died in the middle gave none."""
    assert verdict(report) == expected


def test_plan_travels() -> None:
    """What the host asks for is what the guest reads."""
    plan = Plan(sessions=("user",), seconds=60, tests=("tests/a.py",), arguments=("-k", "x y"), patience=2.5)
    assert Plan.parse(plan.text()) == plan


def test_every_session_requires_what_the_guest_can() -> None:
    """In the guest a skip for want of user namespaces or overlays is a failure, and waiting is patient."""
    for name in SESSIONS:
        command = pytest_command(name, Plan(sessions=(name,), seconds=60, patience=10), 59.5)
        (required,) = (word for word in command if word.startswith("--require="))
        assert {"userns", "overlay"} <= set(required.removeprefix("--require=").split(","))
        assert {"--timeout=1200", "--session-timeout=59"} <= set(command)
        assert set(SESSIONS[name].tests) <= set(command)


def test_logged_in_scope() -> None:
    """The user's command goes through a login and a delegated scope, whatever is in its words."""
    *_, script = as_logged_in(["pytest", "-k", "a or 'b'"], {"A": "x y"}, scope=True)
    assert "systemd-run --user --scope --quiet -p Delegate=yes env 'A=x y' pytest -k" in script
    assert script.endswith(r"""'a or '"'"'b'"'"''""")
    assert "systemd-run" not in as_logged_in(["pytest"], {}, scope=False)[-1]


def test_checkout_is_readable(tmp_path: Path) -> None:
    """The guest's user can read what travels, all of the package; no environment or history of ours goes along."""
    with tarfile.open(checkout(tmp_path / "checkout.tar", Plan(sessions=("root",), seconds=60))) as archive:
        entries = {entry.name: entry for entry in archive}
    modules = {str(path.relative_to(HERE)) for path in (HERE / "nbcontainer").rglob("*.py")}
    assert {*modules, "tests/conftest.py", "pyproject.toml", PLAN} <= set(entries)
    assert all(entry.mode & 0o004 and entry.uid == 0 for entry in entries.values())
    assert not [name for name in entries if "__pycache__" in name or name.startswith((".git", ".venv"))]


def test_disk_has_its_own_name() -> None:
    """Another package or requirement is another disk; the same ones are the same."""
    recipe = Recipe(suite="trixie")
    assert recipe.key(["a", "b"]) == Recipe(suite="trixie").key(["b", "a"])
    assert len({recipe.key(["a"]), recipe.key(["b"]), Recipe(suite="trixie", packages=()).key(["a"])}) == 3
    assert recipe.python == "3.13"
    assert any(need.startswith("pytest") for need in requirements())
    assert not any("ruff" in need for need in requirements())


def test_machine_changes_nothing(tmp_path: Path) -> None:
    """The disk is written to a copy that is thrown away, there is no network, and no acceleration is asked for."""
    root = tmp_path / "root.ext4"
    disk = Disk(root=root, kernel=Path("k"), initrd=Path("i"))
    command = Machine(disk=disk, checkout=Path("c"), folder=tmp_path, memory=64, processors=1).command()
    assert f"file={root},format=raw,if=virtio,snapshot=on" in command
    assert command[command.index("-nic") + 1] == "none"
    assert command[command.index("-accel") + 1].startswith("tcg")
