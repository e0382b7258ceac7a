"""What runs in the guest, started as root by a systemd service: the tests as each person, then a line with the verdict.

First it looks whether the machine is what the check is for, so that a guest without AppArmor, or with a hierarchy of
cgroups v1, cannot pass for one. The `Plan` comes with the checkout, written by the host's side.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nbcontainer._linux.cgroups import layout_of, machine_hierarchies

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SESSIONS", "Plan", "Session", "verdict"]

PERSON = "tester"
_VERDICT = "verdict of the guest:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One person's run of pytest: which tests, and which markers may not be skipped.

    `login` is what the person's cgroup is: none of their own (root, in a service), a login session's, which is the
    system's, or a scope in it that is delegated to them.
    """

    tests: tuple[str, ...]
    require: tuple[str, ...]
    login: Literal["", "session", "scope"] = ""


SESSIONS = {
    "root": Session(
        tests=("tests/_linux", "tests/runtime", "tests/integration", "tests/security"),
        require=("root", "userns", "overlay", "subids"),
    ),
    "user": Session(tests=("tests/integration",), require=("userns", "overlay"), login="scope"),
    "login": Session(
        tests=("tests/integration/test_limits.py", "tests/integration/test_resources.py"),
        require=("userns", "overlay"),
        login="session",
    ),
}
"""Who runs what: root as a service; a user in a delegated scope; the same who has only logged in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the guest is asked to do; `tests` and `arguments` narrow down every session, `seconds` are for all."""

    sessions: tuple[str, ...]
    seconds: float
    tests: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    patience: float = 1

    def text(self) -> str:
        """The plan as a file."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Plan:
        """The plan of a file."""
        values = json.loads(text)
        return cls(
            sessions=tuple(values["sessions"]),
            seconds=float(values["seconds"]),
            tests=tuple(values["tests"]),
            arguments=tuple(values["arguments"]),
            patience=float(values["patience"]),
        )


def pytest_command(name: str, plan: Plan, seconds: float) -> list[str]:
    """The pytest command of one session, which stops after so many seconds and tells what it has found until then."""
    session = SESSIONS[name]
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "tests.vm.at_once", "-v"),
        "--durations=15",
        *(f"--timeout={int(120 * plan.patience)}", f"--session-timeout={max(int(seconds), 1)}"),
        f"--require={','.join(session.require)}",
        *(plan.tests or session.tests),
        *plan.arguments,
    ]


def as_logged_in(command: Sequence[str], environment: dict[str, str], *, scope: bool) -> list[str]:
    """The same command as `PERSON`, logged in, with `scope` in one whose cgroup is delegated to them."""
    run = ["systemd-run", "--user", "--scope", "--quiet", "-p", "Delegate=yes"] if scope else []
    words = [*run, "env", *(f"{name}={value}" for name, value in environment.items()), *command]
    return ["su", "--login", PERSON, "--command", f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(words)}"]


def verdict(report: str) -> int | None:
    """The status in a report, or None when the guest did not come to one."""
    found = re.findall(rf"^{_VERDICT} (\d+)\s*$", report, re.MULTILINE)
    return int(found[-1]) if found else None


def shortcomings() -> list[str]:
    """What this machine has not, of what the check is about."""
    found = []
    if _text("/proc/1/comm") != "systemd":
        found.append("PID 1 is not systemd")
    layout = layout_of(machine_hierarchies())
    if layout != "v2":
        found.append(f"the cgroups are {layout}, not v2 alone")
    if _text("/sys/module/apparmor/parameters/enabled") != "Y":
        found.append("AppArmor is not enabled")
    return found


def _text(path: str) -> str:
    return Path(path).read_text(encoding="utf-8").strip() if os.path.exists(path) else ""


def main() -> int:
    """Run every session of the plan, and tell the host."""
    from tests.vm.image import PLAN

    plan = Plan.parse(Path(PLAN).read_text(encoding="utf-8"))
    kernel = os.uname().release
    print(f"Linux {kernel}, {_text('/etc/debian_version')}, Python {sys.version.split()[0]}", flush=True)
    found = shortcomings()
    for sentence in found:
        print(f"this machine is not the one to test on: {sentence}", flush=True)
    status = 1 if found else run_sessions(plan)
    print(f"\n{_VERDICT} {status}", flush=True)
    return 0


def run_sessions(plan: Plan) -> int:
    """Run the plan's sessions one after another; the status of the first that failed, or 0."""
    environment = {"NBCONTAINER_TEST_PATIENCE": f"{plan.patience:g}", "PYTHONUNBUFFERED": "1"}
    subprocess.run([sys.executable, "-m", "compileall", "-q", "nbcontainer"], check=True)
    os.makedirs(".hypothesis", exist_ok=True)
    os.chmod(".hypothesis", 0o1777)
    results = []
    for name in plan.sessions:
        command = pytest_command(name, plan, plan.seconds - time.monotonic())  # a clock that began with the guest
        login = SESSIONS[name].login
        if login:
            command = as_logged_in(command, environment, scope=login == "scope")
        print(f"\n── as {name}: {shlex.join(command)}", flush=True)
        began = time.monotonic()
        code = subprocess.run(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, check=False
        ).returncode
        results.append((name, code, time.monotonic() - began))
    print()
    for name, code, seconds in results:
        print(f"{'passed' if code == 0 else f'FAILED ({code})':<12} {name:<16} {seconds:7.1f} s", flush=True)
    return next((code for _, code, _ in results if code), 0)


if __name__ == "__main__":
    sys.exit(main())
