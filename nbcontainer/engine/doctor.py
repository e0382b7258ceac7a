"""The doctor: what works on this host, what does not, why, and what to do about it.

`examine` composes the probes of `nbcontainer._linux.features` with versions into a `DoctorReport`, which a person can
read in a notebook or paste into a bug report: it holds no host name, no user name (home folders are shown as ``~``),
no environment, nothing from the store.
"""

from __future__ import annotations

import html
import importlib.metadata
import os
import platform
import pwd
import re
import textwrap
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from nbcontainer._linux.features import Feature, Observations, explain, observe
from nbcontainer.network.chains import forward_chains

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbcontainer.network.chains import ForwardChain

__all__ = ["DoctorReport", "Tier", "examine", "forwarding", "tier_of"]

_LIBRARIES = (
    "ipykernel",
    "ipython",
    "ipywidgets",
    "isal",
    "pyroute2",
    "pyseccomp",
    "requests",
    "traitlets",
    "zstandard",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """How much may be asked of this host: `name`, and in one sentence what is out of reach (`limits`)."""

    name: str
    limits: str


_ROOT = Tier(
    name="root",
    limits="Nothing is out of reach; container root is an unprivileged id of this machine, so it cannot write files of"
    " yours unless their folder is mounted for it.",
)
_RANGE = Tier(
    name="user with subordinate ids",
    limits="Containers have users of their own, but cannot change files of this machine that are not yours, nor make"
    " network links on it.",
)
_OUTER = Tier(
    name="root of an outer container",
    limits="Containers have users of their own, and their root is you, as a user's is: without CAP_SYS_ADMIN and"
    " CAP_SYS_PTRACE no files can be shown with other owners. Nor can network links be made here.",
)
_SINGLE = Tier(
    name="user with a single id",
    limits="All files of a container have one owner: chown, setgroups and switching users seem to work but change"
    " nothing, so programs that insist on another user (databases, mail servers) may refuse to start.",
)


def tier_of(method: str) -> Tier:
    """Name the tier of an id map's method (`IdMap.method`)."""
    return {"privileged": _ROOT, "helpers": _RANGE, "direct": _OUTER}.get(method, _SINGLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What was found; `str(report)` is a table to paste into a bug report."""

    features: tuple[Feature, ...]
    tier: Tier
    versions: tuple[tuple[str, str], ...]
    store_root: str

    @property
    def ok(self) -> bool:
        """True when containers can run here: every required feature works."""
        return not any(each.required for each in self.failures)

    @property
    def failures(self) -> tuple[Feature, ...]:
        """What does not work, what is required first."""
        failed = [each for each in self.features if not each.works]
        return tuple(sorted(failed, key=lambda each: not each.required))

    @property
    def verdict(self) -> str:
        """The whole report in one sentence."""
        missing = [each.name for each in self.failures if each.required]
        if missing:
            return f"Containers cannot run here; missing: {', '.join(missing)}."
        if self.failures:
            return f"Containers can run here, without: {', '.join(each.name for each in self.failures)}."
        return "Containers can run here, with everything."

    def to_dict(self) -> dict[str, object]:
        """Return plain values, ready for JSON."""
        return {
            "ok": self.ok,
            "verdict": self.verdict,
            "tier": asdict(self.tier),
            "store_root": self.store_root,
            "versions": dict(self.versions),
            "features": [asdict(each) for each in self.features],
        }

    def __str__(self) -> str:
        width = max((len(each.name) for each in self.features), default=0)
        lines = [self.verdict, "", f"tier: {self.tier.name}"]
        lines += textwrap.wrap(self.tier.limits, 100, initial_indent="      ", subsequent_indent="      ")
        lines += [f"store: {self.store_root}", ""]
        for each in self.features:
            lines.append(f"{_sign(each):<4} {each.name:<{width}}  {each.reason}")
            if not each.works:
                indent = " " * (width + 7)
                for label, text in (("needed for", each.needed_for), ("fix", each.fix)):
                    lines += textwrap.wrap(
                        f"{label}: {text}", 100, initial_indent=indent, subsequent_indent=indent + "  "
                    )
        lines += ["", *(f"{name} {version}" for name, version in self.versions)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show the same as a table; everything in it is escaped, for paths and kernels choose their own names."""
        rows = "".join(
            f"<tr><td>{_MARKS[_sign(each)]}</td><td style='text-align:left'><code>{html.escape(each.name)}</code></td>"
            f"<td style='text-align:left'>{html.escape(each.reason)}"
            + (
                ""
                if each.works
                else f"<br><small>needed for {html.escape(each.needed_for)}</small><br><b>{html.escape(each.fix)}</b>"
            )
            + "</td></tr>"
            for each in self.features
        )
        versions = ", ".join(f"{html.escape(name)} {html.escape(version)}" for name, version in self.versions)
        return (
            f"<div><p><b>{html.escape(self.verdict)}</b></p>"
            f"<p>Tier: <b>{html.escape(self.tier.name)}</b>. {html.escape(self.tier.limits)}<br>"
            f"Store: <code>{html.escape(self.store_root)}</code></p>"
            f"<table><tbody>{rows}</tbody></table>"
            f"<p><small>{versions}</small></p></div>"
        )


_MARKS = {"ok": "✓", "FAIL": "✗", "--": "-"}


def _sign(feature: Feature) -> str:
    if feature.works:
        return "ok"
    return "FAIL" if feature.required else "--"


def examine(store_root: str) -> DoctorReport:
    """Try everything this package needs of the host (about a quarter of a second; a hang is ended after 5 s)."""
    found = report(observe(store_root), store_root=store_root, versions=versions())
    return replace(found, features=(*found.features, *forwarding(forward_chains() if os.geteuid() == 0 else None)))


def forwarding(chains: Sequence[ForwardChain] | None) -> tuple[Feature, ...]:
    """Whether other tables let our bridges' packets pass, as far as their policy tells; nothing where it is not known.

    A packet must be accepted by every table, so no rule of ours can help.
    """
    if chains is None:
        return ()
    dropping = [each for each in chains if each.drops]
    where = ", ".join(f"table {each.table}, chain {each.name}" for each in dropping)
    return (
        Feature(
            name="forwarding",
            works=not dropping,
            reason=f"dropped by policy ({where})" if dropping else "no other table drops by policy",
            fix=""
            if not dropping
            else "Accept our bridges there; with docker: iptables -I DOCKER-USER -i nbc+ -j ACCEPT, and the same with"
            " -o nbc+",
            needed_for="the way out of containers' networks, as root",
            required=False,
        ),
    )


def report(seen: Observations, *, store_root: str, versions: tuple[tuple[str, str], ...]) -> DoctorReport:
    """Compose the report from what was observed, without names of people."""
    return DoctorReport(
        features=tuple(
            replace(each, reason=_anonymous(each.reason), fix=_anonymous(each.fix)) for each in explain(seen)
        ),
        tier=tier_of(seen.working_id_map.method),
        versions=versions,
        store_root=_anonymous(store_root),
    )


def _anonymous(text: str) -> str:
    """Replace the home folder by ``~`` and the user's name, where it is a part of a path, by ``USER``."""
    home = os.path.expanduser("~").rstrip("/")
    if home:
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return text
    return re.sub(rf"(?<=/){re.escape(name)}(?![\w.-])", "USER", text)


def versions() -> tuple[tuple[str, str], ...]:
    """Return what runs here, by name; libraries are asked of their metadata and not imported."""
    return (
        ("nbcontainer", _installed("nbcontainer")),
        ("python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("linux", f"{platform.release()} {platform.machine()}"),
        ("distribution", _distribution()),
        ("libc", " ".join(platform.libc_ver()).strip() or "unknown"),
        ("uid", str(os.geteuid())),
        *((name, _installed(name)) for name in _LIBRARIES),
    )


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _distribution() -> str:
    """Return the distribution's own name for itself (os-release(5))."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return "unknown"
