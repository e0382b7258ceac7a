"""What the verbs answer, ready to be looked at: tables, documents and messages over the engine's frozen values.

Each has a plain text form, as docker prints it, and an HTML form for notebooks. Names, labels and commands come from
strangers' images: control and direction-changing characters are shown as escapes in both forms, and HTML is escaped.
No colours are set, so that light and dark themes both stay readable.
"""

from __future__ import annotations

import dataclasses
import html
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from nbcontainer.engine.volume_use import container_mounts
from nbcontainer.errors import InvalidReference, NbcontainerError, printable
from nbcontainer.model import Reference
from nbcontainer.network.ports import port_text

if TYPE_CHECKING:
    from nbcontainer.engine.doctor import DoctorReport
    from nbcontainer.engine.views import (
        Change,
        ContainerDetail,
        ContainerSummary,
        DiskUsage,
        DiskUsageLine,
        HistoryLine,
        ImageDetail,
        ImageSummary,
        Pruned,
        VolumeSummary,
    )
    from nbcontainer.model import Digest

__all__ = [
    "Changes",
    "Column",
    "Document",
    "Message",
    "Report",
    "Shown",
    "Table",
    "ago",
    "container_table",
    "describe_container",
    "describe_image",
    "describe_volume",
    "disk_usage_table",
    "escape",
    "history_table",
    "image_table",
    "json_lines",
    "pairs_table",
    "printable",
    "pruned_message",
    "size_text",
    "span_text",
    "volume_table",
]

_Row = TypeVar("_Row")
_SHORT_COMMAND = 20
_NOTHING = "-"
_SHORT_CREATED_BY = 45


# Text


def escape(text: object) -> str:
    """`printable` text as HTML."""
    return html.escape(printable(str(text)), quote=True)


def size_text(size: float) -> str:
    """Decimal units with three figures, as docker shows sizes: ``29.7 MB``."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB", "PB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    figures = f"{value:.0f}" if unit == "B" or value >= 99.95 else f"{value:.3g}"
    return f"{figures} {unit}"


_SPANS: tuple[tuple[float, float, str], ...] = (  # below this many seconds, count in this unit (docker's steps)
    (60, 1, "second"),
    (3600, 60, "minute"),
    (48 * 3600, 3600, "hour"),
    (14 * 86400, 86400, "day"),
    (60 * 86400, 7 * 86400, "week"),
    (730 * 86400, 30 * 86400, "month"),
    (float("inf"), 365 * 86400, "year"),
)
_ABOUT_ONE = {"minute": "About a minute", "hour": "About an hour"}


def span_text(seconds: float) -> str:
    """A span as docker says it: ``3 days``, ``About an hour``."""
    if seconds < 1:
        return "Less than a second"
    unit, noun = next((unit, noun) for limit, unit, noun in _SPANS if seconds < limit)
    count = int(seconds / unit)
    return _ABOUT_ONE[noun] if count == 1 and noun in _ABOUT_ONE else _plural(count, noun)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def ago(moment: float | None) -> str:
    """``3 days ago``; "" when nobody knows."""
    return "" if moment is None else f"{span_text(time.time() - moment)} ago"


def _moment(moment: float | None) -> datetime | None:
    return None if moment is None else datetime.fromtimestamp(moment, timezone.utc)


def _iso(moment: float | None) -> str:
    return "" if moment is None else datetime.fromtimestamp(moment, timezone.utc).isoformat()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


# The three forms of an answer


@dataclasses.dataclass(frozen=True)
class Column(Generic[_Row]):
    """One column: its heading, the cell's text, and the value behind it for programs (the text when left out)."""

    title: str
    text: Callable[[_Row], str]
    value: Callable[[_Row], object] | None = None
    right: bool = False


class Table(Sequence[_Row]):
    """Rows of frozen values and how to draw them: a sequence to programs, a table to people."""

    def __init__(
        self,
        columns: Sequence[Column[_Row]],
        rows: Sequence[_Row],
        *,
        empty: str = "",
        caption: str = "",
        heading: bool = True,
    ) -> None:
        self.columns = tuple(columns)
        self.rows = tuple(rows)
        self.empty = empty
        self.caption = caption
        self.heading = heading

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[_Row]:
        return iter(self.rows)

    @overload
    def __getitem__(self, index: int) -> _Row: ...

    @overload
    def __getitem__(self, index: slice) -> Table[_Row]: ...

    def __getitem__(self, index: int | slice) -> _Row | Table[_Row]:
        if isinstance(index, slice):
            return Table(self.columns, self.rows[index], empty=self.empty, caption=self.caption, heading=self.heading)
        return self.rows[index]

    def cells(self) -> list[list[str]]:
        """The text of every cell, made harmless."""
        return [[printable(column.text(row)) for column in self.columns] for row in self.rows]

    def records(self) -> list[dict[str, object]]:
        """The values of every row by column name, for programs."""
        names = [column.title.lower().replace(" ", "_") for column in self.columns]
        readers = [column.value or column.text for column in self.columns]
        return [{name: read(row) for name, read in zip(names, readers, strict=True)} for row in self.rows]

    def df(self) -> Any:
        """The values as a pandas data frame."""
        try:
            import pandas as pd  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError as problem:
            raise NbcontainerError("df() needs pandas, which is not installed; use records() instead") from problem
        return pd.DataFrame(self.records(), columns=[column.title.lower().replace(" ", "_") for column in self.columns])

    def __str__(self) -> str:
        if not self.rows and self.empty:
            return self.empty
        lines = [[column.title for column in self.columns]] if self.heading else []
        lines += self.cells()
        widths = [max((len(line[place]) for line in lines), default=0) for place in range(len(self.columns))]
        text = "\n".join(self._line(line, widths) for line in lines)
        return f"{text}\n{self.caption}".strip("\n") if self.caption else text

    def _line(self, cells: list[str], widths: list[int]) -> str:
        padded = (
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(cells, widths, self.columns, strict=True)
        )
        return "   ".join(padded).rstrip()

    __repr__ = __str__

    def _html_cells(self, cells: list[str]) -> str:
        return "".join(
            f"<td{_align(column)}>{escape(cell)}</td>" for column, cell in zip(self.columns, cells, strict=True)
        )

    def _repr_html_(self) -> str:
        if not self.rows and self.empty:
            return f"<p>{escape(self.empty)}</p>"
        head = "".join(f"<th{_align(column)}>{escape(column.title)}</th>" for column in self.columns)
        body = "".join(f"<tr>{self._html_cells(cells)}</tr>" for cells in self.cells())
        heading = f"<thead><tr>{head}</tr></thead>" if self.heading else ""
        caption = f"<p><small>{escape(self.caption)}</small></p>" if self.caption else ""
        return f"<table>{heading}<tbody>{body}</tbody></table>{caption}"


class Changes(Table["Change"]):
    """What a container changed: a line for each path, as docker prints it, and a table in a notebook."""

    def __init__(self, rows: Sequence[Change]) -> None:
        columns = (Column["Change"]("KIND", lambda row: row.kind), Column["Change"]("PATH", lambda row: row.path))
        super().__init__(columns, rows)

    def __str__(self) -> str:
        return "\n".join(f"{row.kind} {printable(row.path)}" for row in self.rows) or "nothing has changed"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return super()._repr_html_() if self.rows else "<p>nothing has changed</p>"


def _align(column: Column[Any]) -> str:
    return f' style="text-align:{"right" if column.right else "left"}"'


class Document:
    """A JSON-like answer: indexes like the dict or list it holds, prints as indented JSON, folds in a notebook."""

    def __init__(self, value: dict[str, Any] | list[Any]) -> None:
        self.value = value

    def __getitem__(self, key: Any) -> Any:
        return self.value[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.value)

    def __len__(self) -> int:
        return len(self.value)

    def __contains__(self, key: object) -> bool:
        return key in self.value

    def keys(self) -> Sequence[str]:
        """The names of its fields (so ``dict(document)`` works); none for a list."""
        return list(self.value) if isinstance(self.value, dict) else []

    def __str__(self) -> str:
        text = json.dumps(self.value, indent=2, ensure_ascii=False, default=str)
        return "\n".join(printable(line) for line in text.split("\n"))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _fold(self.value, opened=True)


def _fold(value: Any, *, opened: bool = False) -> str:
    """Nested definition lists; whatever is larger than a line is folded away."""
    if isinstance(value, Mapping):
        entries = [(str(key), entry) for key, entry in value.items()]
    elif isinstance(value, (list, tuple)):
        entries = [(str(number), entry) for number, entry in enumerate(value)]
    else:
        return f"<code>{escape(json.dumps(value, ensure_ascii=False, default=str))}</code>"
    if not entries:
        return "<code>{}</code>" if isinstance(value, Mapping) else "<code>[]</code>"
    parts = []
    for name, entry in entries:
        large = isinstance(entry, (Mapping, list, tuple)) and bool(entry)
        inner = _fold(entry)
        parts.append(
            f"<details><summary>{escape(name)} ({len(entry)})</summary>{inner}</details>"
            if large
            else f"<div>{escape(name)}: {inner}</div>"
        )
    content = "".join(parts)
    return content if opened else f'<div style="padding-left:1.2em">{content}</div>'


class Message(str):
    """Plain lines as an answer: their own text to people, a `str` to programs."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        lines = "\n".join(escape(line) for line in self.split("\n"))
        return f'<pre style="margin:0">{lines}</pre>'  # JupyterLab would indent it by two ems


class Report:
    """A report that draws itself; printed in full also where `repr` would be asked. `report` is the value."""

    def __init__(self, report: DoctorReport) -> None:
        self.report = report

    @property
    def ok(self) -> bool:
        """What the report says of itself."""
        return self.report.ok

    def __str__(self) -> str:
        return str(self.report)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


class Shown(str):
    """An answer whose text is on the screen already: a `str` to programs, and nothing more to show to people."""

    __slots__ = ()

    def _ipython_display_(self) -> None:
        """Show nothing."""


# Images


def _names(summary: ImageSummary) -> tuple[str, str]:
    """The name as people type it, and its tag; ``host`` and unnamed images have none."""
    if summary.id is None or not summary.reference:
        return summary.reference or "<none>", ""
    try:
        reference = Reference.parse(summary.reference)
    except InvalidReference:
        return summary.reference, ""
    tag = f":{reference.tag}" if reference.tag else ""
    name = reference.familiar.partition("@")[0].removesuffix(tag)
    return name, reference.tag or "<none>"


def _short(digest: Digest | None) -> str:
    return "" if digest is None else digest.short


def _text(value: object) -> str:
    return "" if value is None else str(value)


def image_table(
    images: Sequence[ImageSummary], *, full: bool = False, digests: bool = False, quiet: bool = False
) -> Table[ImageSummary]:
    """``images``."""
    show_id: Callable[[ImageSummary], str] = (lambda row: _text(row.id)) if full else (lambda row: _short(row.id))
    identity: Column[ImageSummary] = Column("IMAGE ID", lambda row: show_id(row) or _NOTHING, lambda row: _text(row.id))
    if quiet:
        named: Column[ImageSummary] = Column("IMAGE ID", lambda row: show_id(row) or row.reference)
        return Table([named], images, heading=False)
    columns: list[Column[ImageSummary]] = [
        Column("IMAGE", lambda row: _names(row)[0]),
        Column("TAG", lambda row: _names(row)[1] or _NOTHING, lambda row: _names(row)[1]),
        identity,
        Column("CREATED", lambda row: ago(row.created) or _NOTHING, lambda row: _moment(row.created)),
        Column("SIZE", lambda row: size_text(row.size) if row.size else _NOTHING, lambda row: row.size, right=True),
    ]
    if digests:
        columns.insert(2, Column("DIGEST", lambda row: _text(row.digest) or _NOTHING, lambda row: _text(row.digest)))
    return Table(columns, images, empty="no images yet; pull one, for example debian")


def history_table(lines: Sequence[HistoryLine], *, full: bool = False) -> Table[HistoryLine]:
    """``history``, newest first."""

    def made_by(line: HistoryLine) -> str:
        text = " ".join(line.entry.created_by.split())
        return text if full else _cut(text, _SHORT_CREATED_BY)

    return Table(
        [
            Column("LAYER", lambda row: _text(row.layer) if full else _short(row.layer), lambda row: _text(row.layer)),
            Column("CREATED", lambda row: ago(_parse_time(row.entry.created)), lambda row: row.entry.created),
            Column("CREATED BY", made_by, lambda row: row.entry.created_by),
            Column("SIZE", lambda row: size_text(row.size), lambda row: row.size, right=True),
            Column("COMMENT", lambda row: row.entry.comment),
        ],
        lines,
        empty="the image keeps no history",
    )


def _parse_time(text: str) -> float | None:
    """Unix seconds of an RFC 3339 time; Python 3.10 reads neither ``Z`` nor nanoseconds, so both are cut off."""
    try:
        return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None


def describe_image(detail: ImageDetail) -> dict[str, Any]:
    """``inspect IMAGE`` in docker's field names."""
    config, summary = detail.config, detail.summary
    names = [Reference.parse(name).familiar if summary.id else name for name in detail.references]
    return {
        "Id": _text(summary.id),
        "RepoTags": names,
        "Digest": _text(summary.digest),
        "Created": config.created,
        "Author": config.author,
        "Platform": str(config.platform),
        "Os": config.platform.os,
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant,
        "Size": summary.size,
        "CompressedSize": summary.compressed_size,
        "Config": {
            "User": config.user,
            "Env": list(config.environment),
            "Entrypoint": list(config.entrypoint),
            "Cmd": list(config.command),
            "WorkingDir": config.working_directory,
            "Labels": dict(config.labels),
            "ExposedPorts": list(config.exposed_ports),
            "Volumes": list(config.volumes),
            "StopSignal": config.stop_signal,
            "Shell": list(config.shell),
        },
        "RootFS": {"Type": "layers", "Layers": [str(diff_id) for diff_id in config.diff_ids]},
        "Layers": [
            {"MediaType": layer.media_type, "Digest": str(layer.digest), "Size": layer.size} for layer in detail.layers
        ],
    }


# Containers


def _status(row: ContainerSummary) -> str:
    if row.state == "running":
        health = f" ({'health: ' if row.health == 'starting' else ''}{row.health})" if row.health else ""
        paused = " (Paused)" if row.paused else health
        return f"Up {span_text(time.time() - (row.started or row.created))}{paused}"
    if row.state == "restarting":
        code = "" if row.exit_code is None else f" ({row.exit_code})"
        return f"Restarting{code} {ago(row.finished)}".rstrip()
    if row.state == "dead" and row.reason:
        return f"Dead, {row.reason}"
    if row.state != "exited":
        return row.state.capitalize()
    code = "" if row.exit_code is None else f" ({row.exit_code})"
    reason = f", {row.reason}" if row.reason and row.reason != "exited" else ""
    return f"Exited{code} {ago(row.finished)}".rstrip() + reason


def container_table(
    containers: Sequence[ContainerSummary], *, full: bool = False, quiet: bool = False, everything: bool = False
) -> Table[ContainerSummary]:
    """``ps``."""

    def command(row: ContainerSummary) -> str:
        text = printable(row.title or " ".join(row.command))
        return text if full else _cut(text, _SHORT_COMMAND)

    identity: Column[ContainerSummary] = Column(
        "CONTAINER ID", lambda row: row.id if full else row.id[:12], lambda row: row.id
    )
    if quiet:
        return Table([identity], containers, heading=False)
    return Table(
        [
            identity,
            Column("IMAGE", lambda row: row.image),
            Column("COMMAND", command, lambda row: row.command),
            Column("CREATED", lambda row: ago(row.created), lambda row: _moment(row.created)),
            Column("STATUS", _status),
            Column("PORTS", lambda row: ", ".join(port_text(each) for each in row.ports), lambda row: row.ports),
            Column("NAMES", lambda row: row.name),
        ],
        containers,
        empty="no containers" if everything else "no running containers; ps -a lists those that ended",
    )


def describe_container(detail: ContainerDetail) -> dict[str, Any]:
    """``inspect CONTAINER``: the summary in docker's words, then the record as kept."""
    summary = detail.summary
    record = detail.record
    health = record.get("health")
    service = record.get("service")
    return {
        "Id": summary.id,
        "Name": summary.name,
        "Image": summary.image,
        "Command": list(summary.command),
        "Created": _iso(summary.created),
        "State": {
            "Status": summary.state,
            "Pid": summary.pid,
            "ExitCode": summary.exit_code,
            "StartedAt": _iso(summary.started),
            "FinishedAt": _iso(summary.finished),
            "Reason": summary.reason,
            **({"Health": _describe_health(health)} if isinstance(health, dict) else {}),
        },
        **(_describe_service(record, service) if isinstance(service, dict) else {}),
        "Labels": dict(summary.labels),
        "Mounts": container_mounts(record),
        "Record": record,
    }


def _describe_health(health: dict[str, Any]) -> dict[str, Any]:
    results = health.get("results")
    return {
        "Status": health.get("status"),
        "FailingStreak": health.get("failing"),
        "Log": [
            {
                "Start": _iso(each.get("start")),
                "End": _iso(each.get("end")),
                "ExitCode": each.get("exit_code"),
                "Output": each.get("output"),
            }
            for each in (results if isinstance(results, list) else [])
        ],
    }


def _describe_service(record: dict[str, Any], service: dict[str, Any]) -> dict[str, Any]:
    name, _, most = str(service.get("restart", "no")).partition(":")
    log = record.get("log")
    log = log if isinstance(log, dict) else {}
    return {
        "RestartCount": record.get("restarts", 0),
        "HostConfig": {
            "RestartPolicy": {"Name": name, "MaximumRetryCount": int(most or 0)},
            "AutoRemove": bool(service.get("remove")),
            "LogConfig": {
                "Type": "json-file",
                "Config": {"max-size": str(log.get("size", "")), "max-file": str(log.get("files", ""))},
            },
        },
    }


# The store and this package


def volume_table(volumes: Sequence[VolumeSummary], *, quiet: bool = False) -> Table[VolumeSummary]:
    """``volume ls``."""
    name: Column[VolumeSummary] = Column("VOLUME NAME", lambda row: row.name)
    if quiet:
        return Table([name], volumes, heading=False)
    return Table(
        [
            name,
            Column("CREATED", lambda row: ago(row.created), lambda row: _moment(row.created)),
            Column("USED BY", lambda row: ", ".join(row.used_by) or _NOTHING, lambda row: ", ".join(row.used_by)),
            Column(
                "LABELS",
                lambda row: ", ".join(f"{key}={value}" for key, value in row.labels.items()),
                lambda row: dict(row.labels),
            ),
        ],
        volumes,
        empty="no volumes; `run -v NAME:/path` makes one, as volume create does",
    )


def describe_volume(volume: VolumeSummary) -> dict[str, Any]:
    """``volume inspect``, in docker's field names, then what is ours."""
    return {
        "Name": volume.name,
        "Driver": "local",
        "Scope": "local",
        "CreatedAt": _iso(volume.created),
        "Mountpoint": volume.mountpoint,
        "Labels": dict(volume.labels),
        "Options": {},
        "Anonymous": volume.anonymous,
        "UsedBy": list(volume.used_by),
        "Ids": volume.ids,
        "Usable": volume.usable,
    }


def pruned_message(pruned: Pruned) -> Message:
    """What a prune removed, a line each, and what that freed."""
    return Message("\n".join((*pruned.names, f"freed {size_text(pruned.freed)}")))


def json_lines(table: Table[Any]) -> Message:
    """The values of a table, a JSON object a line."""
    return Message("\n".join(json.dumps(record, ensure_ascii=True, default=str) for record in table.records()))


def disk_usage_table(usage: DiskUsage) -> Table[DiskUsageLine]:
    """``df``."""

    def reclaimable(row: DiskUsageLine) -> str:
        share = f" ({100 * row.reclaimable // row.size} %)" if row.size else ""
        return size_text(row.reclaimable) + share

    return Table(
        [
            Column("TYPE", lambda row: row.kind),
            Column("TOTAL", lambda row: str(row.count), lambda row: row.count, right=True),
            Column("ACTIVE", lambda row: str(row.active), lambda row: row.active, right=True),
            Column("SIZE", lambda row: size_text(row.size), lambda row: row.size, right=True),
            Column("RECLAIMABLE", reclaimable, lambda row: row.reclaimable),
        ],
        usage.lines,
        caption=f"{usage.root}: {size_text(usage.free)} free of {size_text(usage.total)}",
    )


def pairs_table(items: Sequence[tuple[str, str]]) -> Table[tuple[str, str]]:
    """``info`` and ``version``: names and values, without a heading."""
    return Table([Column("NAME", lambda row: row[0]), Column("VALUE", lambda row: row[1])], items, heading=False)
