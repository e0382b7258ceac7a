r"""Text to logical lines: parser directives, comments, continuations and heredocs, each with its place in the source.

A *physical line* is what an editor shows. A *logical line* is one instruction: physical lines that end in the escape
character are joined, comments between them are left out, and the bodies of heredocs that it opens belong to it. Only
here does anybody know of carriage returns, byte order marks and the escape directive; everything above has text, and a
map back from it to line and column.

The rules are those of BuildKit's parser, also where they surprise: a comment may be indented, an empty line inside a
continuation is skipped (and is deprecated), blanks may follow the escape character, and ``\\`` at the end continues
nothing.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field, replace

from nbcontainer.dockerfile.forms import BLANKS, MixedArray, exec_form, split_flags, split_words
from nbcontainer.errors import DockerfileError, printable

__all__ = ["Directives", "Finding", "Heredoc", "Line", "Origin", "Text", "read_lines"]

LONGEST_LINE = 65535
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.+?)\s*")
_DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC = re.compile(r"(\d*)<<(-?)([^<]+)")
_TAKES_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SHOWN = 8
_WIDEST = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where something stands: its physical lines, counted from 1, and their text with comments and heredoc bodies."""

    first: int
    last: int
    text: str

    def error(self, message: str, *, line: int = 0, column: int = 0, width: int = 1) -> DockerfileError:
        """An error that draws these lines, with a caret below `column` of `line` (both in the whole source)."""
        line = line or self.first
        drawing = _draw(self.text.split("\n"), self.first, line, column, width)
        return DockerfileError(message, line=line, column=column, drawing=drawing)


def _draw(rows: list[str], first: int, line: int, column: int, width: int) -> str:
    """Number the rows, leave out what is far from `line`, and put the caret below it."""
    last = first + len(rows) - 1
    gutter = len(str(last))
    start, end = max(first, line - _SHOWN + 2), min(last, line + 1)
    drawn = []
    for number in range(start, end + 1):
        row = rows[number - first].rstrip("\r")
        clipped = 0
        if number == line and column > _WIDEST:
            clipped = column - _WIDEST // 2
        shown = _visible(row[clipped : clipped + _WIDEST])
        drawn.append(f"{number:>{gutter}} | {shown}")
        if number == line and column:
            before = _visible(row[clipped : column - 1])
            marked = _visible(row[column - 1 : column - 1 + max(1, width)][:_WIDEST]) or " "
            drawn.append(f"{'':>{gutter}} | {' ' * len(before)}{'^' * len(marked)}")
    return "\n".join(drawn)


def _visible(row: str) -> str:
    return printable(row.replace("\t", " "))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something a check has to say about lines: `check` is BuildKit's name of it."""

    check: str
    message: str
    origin: Origin

    def fatal(self) -> DockerfileError:
        """What to raise for it when the Dockerfile wants findings to be errors."""
        return self.origin.error(f"{self.check}: {self.message} (the Dockerfile has check=error=true)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """A heredoc of RUN, COPY or ADD.

    `content` is the body as written, with its line ends; `expand` is False when any part of the word after ``<<`` was
    quoted; `chomp` is True for ``<<-``; `descriptor` is the number in front of ``<<``, if there was one.
    """

    name: str
    content: str
    expand: bool = True
    chomp: bool = False
    descriptor: int | None = None

    @property
    def body(self) -> str:
        """The content, without the leading tabs of its lines when ``<<-`` opened it."""
        return re.sub(r"^\t+", "", self.content, flags=re.MULTILINE) if self.chomp else self.content


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A logical line: `text` has no continuations, comments or heredoc bodies in it.

    `comments` are the lines of the comment block directly above. `pieces` says where in the source each part of `text`
    begins: (offset in text, line, column).
    """

    text: str
    origin: Origin
    heredocs: tuple[Heredoc, ...] = ()
    comments: tuple[str, ...] = ()
    pieces: tuple[tuple[int, int, int], ...] = field(default=((0, 1, 1),), repr=False)

    def place(self, offset: int) -> tuple[int, int]:
        """The line and column of an offset in `text`."""
        start, line, column = self.pieces[max(0, bisect_right(self.pieces, (offset, 1 << 60, 0)) - 1)]
        return line, column + offset - start

    def error(self, message: str, offset: int = 0, width: int = 1) -> DockerfileError:
        """An error with a caret below `width` characters of `text` from `offset`."""
        line, column = self.place(offset)
        return self.origin.error(message, line=line, column=column, width=width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Directives:
    """The parser directives at the top, as written: "" where there is none (`escape` has its default)."""

    syntax: str = ""
    escape: str = "\\"
    check: str = ""
    origin: Origin | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A whole Dockerfile as logical lines; `findings` are the deprecations noticed on the way."""

    directives: Directives
    lines: tuple[Line, ...]
    findings: tuple[Finding, ...]


def read_lines(source: str | bytes, *, escape: str = "") -> Text:
    """Cut a Dockerfile into logical lines; raises `DockerfileError`.

    With `escape` the text is a fragment of a file whose directives are known, such as a trigger of ONBUILD.
    """
    return _Reader(_decoded(source)).read(escape)


def _decoded(source: str | bytes) -> list[str]:
    """The physical lines without newlines, known to be text that can be shown, passed on and encoded again."""
    text = _utf8(source) if isinstance(source, bytes) else source
    rows = text.removeprefix("\ufeff").split("\n")
    if rows[-1] == "":
        rows.pop()
    for number, row in enumerate(rows, 1):
        wrong = "a NUL character" if "\0" in row else "half a surrogate pair" if _SURROGATE.search(row) else ""
        if wrong:
            raise DockerfileError(f"the line holds {wrong}, which no command or file name can; remove it", line=number)
        if len(row) > LONGEST_LINE // 4 and len(row.encode()) > LONGEST_LINE:
            raise DockerfileError(
                f"the line is longer than {LONGEST_LINE} bytes; put the text in a file and COPY it", line=number
            )
    return rows


def _utf8(source: bytes) -> str:
    try:
        return source.decode()
    except UnicodeDecodeError as problem:
        line = source.count(b"\n", 0, problem.start) + 1
        raise DockerfileError("the Dockerfile is not UTF-8 text here; save it as UTF-8", line=line) from problem


class _Reader:
    """One walk over the physical lines."""

    def __init__(self, rows: list[str]) -> None:
        self._rows = rows
        self._at = 0
        self._continued = re.compile("")
        self._findings: list[Finding] = []

    def read(self, escape: str) -> Text:
        directives = Directives(escape=escape) if escape else self._directives()
        mark = re.escape(directives.escape)
        self._continued = re.compile(rf"(?:(?<!{mark})|^){mark}[ \t]*$")
        lines: list[Line] = []
        comments: list[str] = []
        while self._at < len(self._rows):
            row = self._rows[self._at].strip()
            if row.startswith("#"):
                comments.append(row[1:].strip())
                self._at += 1
                continue
            line = self._logical(tuple(comments)) if row else None
            self._at += 0 if row else 1
            comments.clear()
            if line:
                lines.append(line)
        return Text(directives=directives, lines=tuple(lines), findings=tuple(self._findings))

    def _directives(self) -> Directives:
        """``# name=value`` lines at the very top; the first line that is none ends them."""
        found: dict[str, str] = {}
        while self._at < len(self._rows):
            match = _DIRECTIVE.fullmatch(self._rows[self._at].strip())
            name = match[1].lower() if match else ""
            if not match or name not in _DIRECTIVES:
                break
            origin = self._origin(self._at, self._at + 1)
            column = self._rows[self._at].index(match[1]) + 1
            if name in found:
                raise origin.error(
                    f"the directive {name!r} stands twice; keep one of the two lines", column=column, width=len(name)
                )
            if name == "escape" and match[2] not in {"\\", "`"}:
                raise origin.error(
                    f"the escape character {match[2]!r} is neither \\ nor `; write '# escape=`' or leave it out",
                    column=self._rows[self._at].rindex(match[2]) + 1,
                    width=len(match[2]),
                )
            found[name] = match[2]
            self._at += 1
        return Directives(
            syntax=found.get("syntax", ""),
            escape=found.get("escape", "\\"),
            check=found.get("check", ""),
            origin=self._origin(0, self._at) if self._at else None,
        )

    def _origin(self, first: int, end: int) -> Origin:
        return Origin(first=first + 1, last=end, text="\n".join(self._rows[first:end]))

    def _logical(self, comments: tuple[str, ...]) -> Line | None:
        """The instruction that begins here; None when it is nothing but escape characters."""
        first = self._at
        text, pieces, empty = self._joined()
        line = Line(text=text, origin=self._origin(first, self._at), comments=comments, pieces=pieces)
        if "<<" in text:
            heredocs = self._heredocs(line)
            line = replace(line, heredocs=heredocs, origin=self._origin(first, self._at))
        if empty:
            message = "an empty line inside an instruction is skipped, and will be an error one day; remove it"
            self._findings.append(Finding(check="NoEmptyContinuation", message=message, origin=line.origin))
        return line if text else None

    def _joined(self) -> tuple[str, tuple[tuple[int, int, int], ...], bool]:
        """Join continuations; also say where each piece came from, and whether an empty line was skipped."""
        row = self._rows[self._at].rstrip("\r")
        text, pieces, empty = "", [], False
        start = len(row) - len(row.lstrip())
        while True:
            match = self._continued.search(row, start)
            pieces.append((len(text), self._at + 1, start + 1))
            text += row[start : match.start() if match else None]
            self._at += 1
            if not match:
                return text.rstrip(), tuple(pieces), empty
            while self._at < len(self._rows) and (
                not (row := self._rows[self._at].rstrip("\r")).strip() or row.lstrip().startswith("#")
            ):
                empty = empty or not row.strip()
                self._at += 1
            if self._at == len(self._rows):
                return text.rstrip(), tuple(pieces), empty
            start = 0

    def _heredocs(self, line: Line) -> tuple[Heredoc, ...]:
        """Take the bodies of the heredocs that the line opens, one after the other."""
        keyword, rest = _keyword(line.text)
        if keyword == "ONBUILD":
            keyword, rest = _keyword(rest)
        if keyword not in _TAKES_HEREDOCS:
            return ()
        body = rest[split_flags(rest)[1] :]
        try:
            if exec_form(body) is not None:
                return ()
        except MixedArray:  # the reader of instructions says so
            return ()
        opened = [(each, word) for word in split_words(body, "\\") if (each := _opened(word))]
        return tuple(replace(each, content=self._body(line, each, word)) for each, word in opened)

    def _body(self, line: Line, opened: Heredoc, word: str) -> str:
        content: list[str] = []
        while self._at < len(self._rows):
            row = self._rows[self._at]
            self._at += 1
            bare = row.rstrip("\r")
            if (bare.lstrip("\t") if opened.chomp else bare) == opened.name:
                return "".join(content)
            content.append(row + "\n")
        raise line.error(
            f"the heredoc <<{opened.name} has no end; write a line with nothing but {opened.name} after its text",
            line.text.find(word),
            len(word),
        )


def _keyword(text: str) -> tuple[str, str]:
    """The first word in upper case, and what follows it."""
    keyword, *rest = BLANKS.split(text, maxsplit=1)
    return keyword.upper(), "".join(rest)


def _opened(word: str) -> Heredoc | None:
    """The heredoc a word of the line opens: ``<<NAME``, ``<<-NAME``, ``3<<NAME``, with the name quoted or not."""
    match = _HEREDOC.fullmatch(word)
    if not match:
        return None
    name = _unquoted(match[3])
    if not name:
        return None
    descriptor = int(match[1]) if 0 < len(match[1]) < 10 else None
    return Heredoc(name=name, content="", expand=name == match[3], chomp=bool(match[2]), descriptor=descriptor)


def _unquoted(word: str) -> str:
    """A word without its quotes and backslashes, as a shell compares the end of a heredoc with."""
    return re.sub(r"\\(.)|[\"']", lambda match: match[1] or "", word)
