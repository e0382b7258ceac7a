"""Every system call, tried in a container of ours and in one of Docker's with the same profile: both answer alike."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyseccomp
import pytest

from nbcontainer import Engine, Settings
from nbcontainer.runtime import profile
from nbcontainer.testing.rootfs import PYTHON, python_layer, root_layer
from tests.integration import system_calls
from tests.runtime.test_seccomp import FACTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nbcontainer.testing.registry import InProcessRegistry

pytestmark = [
    pytest.mark.root,
    pytest.mark.overlay,
    pytest.mark.peers("docker", "dockerd"),
    pytest.mark.slow,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are of x86_64"),
]

TRY_ALL = (PYTHON, "-I", "-S", "-c", Path(system_calls.__file__).read_text("utf-8").replace("from __future__", "#"))
Answers = dict[str, dict[str, str]]


def as_docker_takes_it(fact: dict[str, Any]) -> dict[str, Any]:
    """A fact about the profile as a rule of docker's JSON."""
    return {
        "names": fact["calls"],
        "action": "SCMP_ACT_ERRNO" if "errno" in fact else "SCMP_ACT_ALLOW",
        "errnoRet": fact.get("errno"),
        "args": [
            {"index": at, "op": f"SCMP_CMP_{operator}", "value": a, "valueTwo": b}
            for at, operator, a, b in fact.get("if", ())
        ],
        "includes": {"arches": fact.get("on", []), "caps": [f"CAP_{each}" for each in fact.get("with", ())]},
        "excludes": {"arches": fact.get("not on", []), "caps": [f"CAP_{each}" for each in fact.get("without", ())]},
    }


@pytest.fixture
def dockers(docker: Callable[..., str], peers_folder: Path) -> Answers:
    """What Docker's container answered, with the facts as its profile: its own may be older."""
    place = peers_folder / "calls"
    place.mkdir()
    stated = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
        "syscalls": [as_docker_takes_it(fact) for fact in FACTS],
    }
    (place / "seccomp.json").write_text(json.dumps(stated), encoding="utf-8")
    (place / "root.tar").write_bytes(root_layer())
    (place / "python.tar").write_bytes(python_layer())
    (place / "Dockerfile").write_text("FROM scratch\nADD root.tar /\nADD python.tar /\n", encoding="utf-8")
    image = docker("build", "--quiet", str(place)).strip()
    guards = ("--security-opt", "no-new-privileges", "--security-opt", f"seccomp={place}/seccomp.json")
    answers: Answers = json.loads(docker("run", "--rm", "--network", "none", *guards, image, *TRY_ALL))
    return answers


@pytest.fixture
def ours(peers_folder: Path, registry: InProcessRegistry) -> Iterator[Answers]:
    """What a container of ours answered."""
    with Engine(Settings(root=str(peers_folder / "calls-store"))) as engine:
        yield json.loads(engine.run(registry.reference("tiny"), list(TRY_ALL), check=True).stdout)


def _told(answer: str) -> str:
    """What an answer says of the filter: a call that crashes its caller (vfork) was let through, by whichever signal."""
    return "crashed" if answer in {"ended -6", "ended -7", "ended -11"} else answer


def test_every_call_answers_alike(dockers: Answers, ours: Answers) -> None:
    """All calls of x86_64, x32 and i386 do; but for those younger than Docker's libseccomp, which ours has by number.

    (What 64-bit arguments and `socketcall` may do differs on purpose: see ``tests/runtime/test_seccomp.py``.)
    """
    resolve, known = pyseccomp.resolve_syscall, pyseccomp.Arch.X86_64
    oldest_unknown = min((n for name, n in profile.NUMBERS.items() if resolve(known, name) == -1), default=1 << 16)
    differing = {
        f"{table} {number}": (ours[table][number], dockers[table][number])
        for table in dockers
        for number in dockers[table]
        if _told(ours[table][number]) != _told(dockers[table][number]) and int(number) not in range(oldest_unknown, 467)
    }
    assert differing == {}
    assert ours["x86_64"]["165"] == ours["i386"]["21"] == "EPERM"  # mount
    assert ours["x86_64"]["600"] == ours["i386"]["600"] == ours["x32"]["600"] == "ENOSYS"
    assert ours["x86_64"]["39"] == ours["i386"]["20"] == "0"  # getpid


def test_new_calls_work_or_are_not_there(ours: Answers) -> None:
    """C libraries fall back on ENOSYS alone, so no new call of the profile answers EPERM."""
    assert ours["x86_64"]["435"] == "ENOSYS"  # clone3
    for name in ("faccessat2", "fchmodat2", "openat2", "mseal", "statmount", "setxattrat", "futex_wait"):
        assert ours["x86_64"][str(profile.NUMBERS[name])] != "EPERM", name
