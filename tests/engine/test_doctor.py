"""The doctor's report: what people read and paste."""

from __future__ import annotations

import json
import os
import pwd
import socket
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from nbcontainer._linux.features import Attempt, Feature, Observations
from nbcontainer.engine.doctor import DoctorReport, examine, forwarding, report, tier_of
from nbcontainer.model.idmap import IdMap, IdRange
from nbcontainer.network.chains import ForwardChain

if TYPE_CHECKING:
    from pathlib import Path

BAD = Feature(
    name="overlay",
    works=False,
    reason="mount overlay: <b>Invalid</b> & argument",
    fix='Move the store to "ext4"',
    needed_for="speed",
    required=False,
)
GOOD = Feature(name="proc", works=True, reason="tried", fix="", needed_for="ps", required=True)
REPORT = DoctorReport(
    features=(GOOD, BAD),
    tier=tier_of("single"),
    versions=(("python", "CPython 3.12.1"), ("linux", "6.1<script>")),
    store_root="~/.local/share/nbcontainer",
)


def test_ok_depends_on_required_features() -> None:
    """A missing extra is named in the verdict; a missing requirement turns it."""
    assert REPORT.ok
    assert REPORT.verdict == "Containers can run here, without: overlay."
    broken = replace(REPORT, features=(BAD, replace(GOOD, works=False)))
    assert not broken.ok
    assert broken.verdict == "Containers cannot run here; missing: proc."
    assert [each.name for each in broken.failures] == ["proc", "overlay"]
    assert replace(REPORT, features=(GOOD,)).verdict == "Containers can run here, with everything."


def test_text_names_cause_purpose_and_fix() -> None:
    """Each failure says what, why, what for and the next step; each line fits a terminal."""
    text = str(REPORT)
    for words in (BAD.reason, "needed for: speed", f"fix: {BAD.fix}", "user with a single id", "CPython 3.12.1"):
        assert words in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_html_escapes_everything() -> None:
    """Reasons and versions come from the system: none of their characters becomes markup, and all tags close."""
    text = REPORT._repr_html_()
    assert "<b>Invalid" not in text
    assert "<script>" not in text
    assert "&lt;b&gt;Invalid&lt;/b&gt; &amp; argument" in text

    parsed = ET.fromstring(text.replace("<br>", "<br/>"))
    assert "mount overlay: <b>Invalid</b> & argument" in "".join(parsed.itertext())


def test_to_dict_is_json() -> None:
    """The values survive JSON and hold what the text holds."""
    found = json.loads(json.dumps(REPORT.to_dict()))
    assert found["ok"] is True
    assert found["features"][1]["fix"] == BAD.fix
    assert found["tier"]["name"] == "user with a single id"
    assert found["versions"]["python"] == "CPython 3.12.1"


@pytest.mark.parametrize(
    ("method", "name"),
    [("privileged", "root"), ("helpers", "user with subordinate ids"), ("single", "user with a single id")],
)
def test_tiers_say_what_they_cannot_do(method: str, name: str) -> None:
    """Each way to write an id map is a tier, with one sentence on its limits."""
    tier = tier_of(method)
    assert tier.name == name
    assert tier.limits.endswith(".")


def test_report_names_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Home folders and the user's name are taken out of paths, also where a program's message repeats them."""
    monkeypatch.setenv("HOME", "/home/ada.l")
    name = pwd.getpwuid(os.geteuid()).pw_name
    seen = Observations(
        uid=1000,
        gid=1000,
        kernel="6.1",
        id_map=IdMap(uids=(IdRange(0, 1000, 1),), gids=(IdRange(0, 1000, 1),), method="single"),
        attempts={
            "libseccomp": Attempt(problem=f"no such file: /home/ada.l/lib, /scratch/{name}/lib, /home/ada.lovelace")
        },
    )
    found = report(seen, store_root=f"/scratch/{name}/store", versions=())
    assert found.store_root == "/scratch/USER/store"
    assert "no such file: ~/lib, /scratch/USER/lib, /home/ada.lovelace" in str(found)


def test_examine_reports_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this host the report is complete, and holds neither its name nor anything of the environment."""
    monkeypatch.setenv("JUPYTER_TOKEN", "s3cret-value")
    found = examine(str(tmp_path))
    text = str(found) + found._repr_html_() + json.dumps(found.to_dict())
    assert "s3cret-value" not in text
    assert socket.gethostname() in {"localhost", ""} or socket.gethostname() not in text
    names = [name for name, _ in found.versions]
    for name in ("nbcontainer", "python", "linux", "distribution", "pyseccomp", "isal", "zstandard", "ipykernel"):
        assert name in names
    assert {each.name for each in found.features} >= {"user-namespaces", "overlay", "seccomp", "disk"}


def test_forwarding_that_others_drop() -> None:
    """It is named with the chain and the fix; it works where nothing drops; what is not known is not said."""
    drops = ForwardChain(table="ip filter", name="FORWARD", drops=True)
    (feature,) = forwarding([drops, ForwardChain(table="inet x", name="y", drops=False)])
    assert not feature.works
    assert not feature.required
    assert "table ip filter, chain FORWARD" in feature.reason
    assert "DOCKER-USER" in feature.fix
    (feature,) = forwarding([])
    assert feature.works
    assert forwarding(None) == ()
