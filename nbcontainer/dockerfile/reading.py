"""A logical line to its instruction: flags checked, words cut, and a caret below what cannot be used.

One function for each instruction, found by its keyword in `_READERS`. What holds a variable can be judged only when the
instruction runs, so it is left alone here; `nbcontainer.dockerfile.expansion` looks again.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from nbcontainer.dockerfile.durations import parse_duration
from nbcontainer.dockerfile.flags import FLAGS, NETWORKS, NOT_TRIGGERED, SECURITY
from nbcontainer.dockerfile.forms import BLANKS, Flag, MixedArray, exec_form, split_blanks, split_flags, split_words
from nbcontainer.dockerfile.instructions import (
    Add,
    Arg,
    Argument,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    ExecForm,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Onbuild,
    Pair,
    Run,
    Shell,
    ShellForm,
    Stopsignal,
    User,
    Volume,
    Workdir,
)
from nbcontainer.dockerfile.modes import Chmod
from nbcontainer.dockerfile.mounts import mount_source, parse_mount
from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from nbcontainer.dockerfile.instructions import Command
    from nbcontainer.dockerfile.lines import Heredoc, Line

__all__ = ["read_instruction"]

_STAGE_NAME = re.compile(r"[a-z][a-z0-9._-]*", re.ASCII)
_VARIABLE = re.compile(r"\$[\w{]")


def read_instruction(line: Line, escape: str = "\\") -> Instruction:
    """The instruction of a logical line; raises `DockerfileError` with a caret below the place."""
    return _Reader(line, escape).read(line.text, 0)


class _Reader:
    """One line while it is read; offsets are into its text, for carets."""

    def __init__(self, line: Line, escape: str) -> None:
        self.line = line
        self.escape = escape
        self.name = ""
        self.keyword = (0, 0)  # where it is, and its width
        self.flags: tuple[Flag, ...] = ()
        self.start = 0  # where the arguments begin
        self.rest = ""  # the arguments, without flags
        self.same: dict[str, Any] = {}  # what every instruction has

    def read(self, text: str, offset: int, *, trigger: bool = False) -> Instruction:
        """Read the instruction that begins at `offset`, which is not 0 for what ONBUILD triggers."""
        keyword = BLANKS.split(text[offset:], maxsplit=1)[0]
        self.name = keyword.upper()
        self.keyword = (offset, len(keyword))
        if self.name not in _READERS:
            near = get_close_matches(self.name, _READERS, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(_READERS))}"
            raise self.line.error(f"there is no instruction {keyword!r}; {hint}", offset, len(keyword))
        if trigger and self.name in NOT_TRIGGERED:
            raise self.line.error(
                f"ONBUILD cannot trigger {self.name}; name an instruction that changes the image that is built", offset,
                len(keyword),
            )  # fmt: skip
        after = offset + len(keyword)
        arguments = text[after:]
        after += len(arguments) - len(arguments.lstrip())
        flags, body = split_flags(text[after:])
        self.flags = tuple(Flag(each.name, each.value, after + each.offset, each.width) for each in flags)
        self.start = after + body
        self.rest = text[self.start :].strip()
        self.same = {
            "origin": self.line.origin,
            "code": text[offset:].strip(),
            "keyword": keyword,
            "comments": self.line.comments,
        }
        return _READERS[self.name](self)

    # --- what the functions below are made of ------------------------------------------------------------------------

    def error(self, message: str, word: str = "") -> DockerfileError:
        """An error with a caret below `word` of the arguments, else below all of them, or the keyword without any."""
        if not self.rest:
            return self.line.error(message, *self.keyword)
        return self.line.error(message, self.start + max(0, self.rest.find(word)), len(word or self.rest))

    def need(self, what: str) -> str:
        """The arguments, of which there must be some."""
        if not self.rest:
            raise self.error(f"{self.name} needs {what}")
        return self.rest

    def options(self) -> dict[str, Flag]:
        """The flags by name, when the instruction has them and they stand once; of repeated ones the last."""
        rules = {rule.name: rule for rule in FLAGS[self.name]}
        names = [rule.name for rule in rules.values() if not rule.refusal]
        found: dict[str, Flag] = {}
        for flag in self.flags:
            rule = rules.get(flag.name)
            if rule is None:
                near = get_close_matches(flag.name, names, 1, 0.5)
                there = f"there are {', '.join(f'--{name}' for name in names)}" if names else "it has none; remove it"
                hint = f"did you mean --{near[0]}?" if near else there
                raise self.line.error(f"{self.name} has no flag --{flag.name}; {hint}", flag.offset, flag.width)
            if rule.refusal:
                raise self.line.error(rule.refusal, flag.offset, flag.width)
            if flag.name in found and not rule.repeated:
                raise self.line.error(f"the flag --{flag.name} stands twice; keep one", flag.offset, flag.width)
            found[flag.name] = flag
        return found

    def text(self, flag: Flag | None) -> str:
        """The value of a flag, which must have one; "" for a flag that is absent."""
        if flag is None:
            return ""
        if not flag.value:
            raise self.line.error(
                f"the flag --{flag.name} needs a value; write --{flag.name}=VALUE", flag.offset, flag.width
            )
        return flag.value

    def switch(self, flag: Flag | None) -> bool:
        """Whether a flag is given, and not as ``=false``."""
        if flag is None:
            return False
        value = "true" if flag.value is None else flag.value.lower()
        if value not in {"true", "false"}:
            raise self.line.error(
                f"the flag --{flag.name} is true or false, not {flag.value!r}", flag.offset, flag.width
            )
        return value == "true"

    def chosen(self, flag: Flag | None, options: tuple[str, ...]) -> str:
        """The value of a flag that names one of a few things; the first when the flag is absent."""
        value = self.text(flag) or options[0]
        if value not in options:
            assert flag is not None
            near = get_close_matches(value, options, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(options)}"
            raise self.line.error(f"--{flag.name} cannot be {value!r}; {hint}", flag.offset, flag.width)
        return value

    def duration(self, flag: Flag | None) -> int:
        """The nanoseconds of a flag; 0 when it is absent."""
        if flag is None:
            return 0
        value = parse_duration(self.text(flag))
        if value is None:
            message = f"--{flag.name} is a time such as 30s or 1m30s, not {flag.value!r}"
        elif 0 < value < 1_000_000:
            message = f"--{flag.name} cannot be less than 1ms; write 0 for the default"
        else:
            return value
        raise self.line.error(message, flag.offset, flag.width)

    def array(self) -> tuple[str, ...] | None:
        """The strings of the exec form, or None."""
        try:
            return exec_form(self.rest)
        except MixedArray:
            raise self.error(
                f"the JSON array of {self.name} holds something that is not a string; put it in double quotes"
            ) from None

    def command(self, what: str) -> Command:
        """The exec form, or the shell form."""
        text = self.need(what)
        words = self.array()
        return ShellForm(text) if words is None else ExecForm(words)

    def words(self, what: str) -> tuple[str, ...]:
        """Several words: a JSON array, in which blanks may stand, or words between blanks."""
        text = self.need(what)
        words = self.array()
        return split_blanks(text) if words is None else words

    def pairs(self) -> tuple[Pair, ...]:
        """``name=value …``, or the old ``name value``."""
        text = self.need("NAME=VALUE")
        words = split_words(text, self.escape)
        if not words or "=" not in words[0]:
            name, *value = BLANKS.split(text, maxsplit=1)
            if not value:
                raise self.error(f"{self.name} {name} has no value; write {name}=VALUE", name)
            return (Pair(name, value[0], legacy=True),)
        pairs = []
        for word in words:
            name, equals, value_text = word.partition("=")
            if not equals:
                raise self.error(f"{word!r} has no '='; write NAME=VALUE, with quotes round blanks in the value", word)
            if not name:
                raise self.error(f"{word!r} has no name before its '='; write NAME=VALUE", word)
            pairs.append(Pair(name, value_text))
        return tuple(pairs)


# --- one function for each instruction --------------------------------------------------------------------------------


def _from(reader: _Reader) -> Instruction:
    options = reader.options()
    words = split_blanks(reader.need("an image; write FROM IMAGE, or FROM scratch for an empty one"))
    if len(words) not in {1, 3} or (len(words) == 3 and words[1].upper() != "AS"):
        raise reader.error("FROM is 'FROM IMAGE' or 'FROM IMAGE AS NAME'; remove the other words")
    written = words[2] if len(words) == 3 else ""
    if written and not _STAGE_NAME.fullmatch(written.lower()):
        raise reader.error(
            f"a stage cannot be named {written!r}; begin with a letter and go on with letters, digits, '-', '_' or '.'",
            written,
        )
    return From(
        image=words[0],
        platform=reader.text(options.get("platform")),
        name=written.lower(),
        written_name=written,
        as_keyword=words[1] if written else "",
        **reader.same,
    )


def _run(reader: _Reader) -> Instruction:
    options = reader.options()
    flags = [flag for flag in reader.flags if flag.name == "mount"]
    mounts = []
    for flag in flags:
        try:
            mounts.append(parse_mount(reader.text(flag), None))
            mount_source(reader.text(flag))
        except DockerfileError as problem:
            if problem.line:
                raise
            raise reader.line.error(str(problem), flag.offset, flag.width) from problem
    known = [mount for mount in mounts if mount is not None]
    return Run(
        command=reader.command("a command"),
        heredocs=reader.line.heredocs,
        mount_flags=tuple(flag.value or "" for flag in flags),
        mounts=tuple(known) if len(known) == len(mounts) else (),
        network=reader.chosen(options.get("network"), NETWORKS),
        security=reader.chosen(options.get("security"), SECURITY),
        **reader.same,
    )


def _transfer(reader: _Reader, options: dict[str, Flag]) -> dict[str, Any]:
    """What COPY and ADD share."""
    words = reader.words("a source and a destination")
    if len(words) < 2:
        raise reader.error(f"{reader.name} needs a source and a destination; name both, the destination last")
    heredocs = list(reader.line.heredocs)
    sources = [word for word in words[:-1] if not _opens(word, heredocs)]
    if _opens(words[-1], heredocs):
        raise reader.error(
            f"the last word of {reader.name} is its destination, which cannot be a heredoc; add a path", words[-1]
        )
    mode = reader.text(flag := options.get("chmod"))
    if flag and not _VARIABLE.search(mode):
        try:
            Chmod.parse(mode)
        except DockerfileError as problem:
            raise reader.line.error(str(problem), flag.offset, flag.width) from problem
    return {
        "sources": tuple(sources),
        "heredocs": tuple(heredocs),
        "destination": words[-1],
        "owner": reader.text(options.get("chown")),
        "mode": mode,
        "link": reader.switch(options.get("link")),
        "excludes": tuple(reader.text(flag) for flag in reader.flags if flag.name == "exclude"),
        **reader.same,
    }


def _opens(word: str, heredocs: list[Heredoc]) -> bool:
    """Whether a word opened one of the heredocs that were found on the line."""
    return bool(heredocs) and bool(re.fullmatch(r"\d*<<-?[^<]+", word))


def _copy(reader: _Reader) -> Instruction:
    options = reader.options()
    source = reader.text(flag := options.get("from"))
    if flag and re.search(r"\$.", source):
        raise reader.line.error(
            "--from is not expanded; name a stage, and give that stage the variable in its FROM",
            flag.offset,
            flag.width,
        )
    return Copy(from_=source, parents=reader.switch(options.get("parents")), **_transfer(reader, options))


def _add(reader: _Reader) -> Instruction:
    options = reader.options()
    unpack = options.get("unpack")
    return Add(
        checksum=reader.text(options.get("checksum")),
        keep_git_dir=reader.switch(options.get("keep-git-dir")),
        unpack=None if unpack is None else reader.switch(unpack),
        **_transfer(reader, options),
    )


def _env(reader: _Reader) -> Instruction:
    reader.options()
    return Env(pairs=reader.pairs(), **reader.same)


def _label(reader: _Reader) -> Instruction:
    reader.options()
    return Label(pairs=reader.pairs(), **reader.same)


def _arg(reader: _Reader) -> Instruction:
    reader.options()
    arguments = []
    for word in split_words(reader.need("a name; write ARG NAME or ARG NAME=DEFAULT"), reader.escape):
        name, equals, default = word.partition("=")
        if not name:
            raise reader.error(f"{word!r} has no name before its '='; write NAME or NAME=DEFAULT", word)
        arguments.append(Argument(name, default if equals else None))
    return Arg(arguments=tuple(arguments), **reader.same)


def _maintainer(reader: _Reader) -> Instruction:
    reader.options()
    return Maintainer(author=reader.need("a name"), **reader.same)


def _expose(reader: _Reader) -> Instruction:
    reader.options()
    return Expose(ports=split_blanks(reader.need("a port")), **reader.same)


def _volume(reader: _Reader) -> Instruction:
    reader.options()
    paths = tuple(path.strip() for path in reader.words("a path"))
    if not paths or "" in paths:
        raise reader.error("VOLUME needs paths that are not empty")
    return Volume(paths=paths, **reader.same)


def _user(reader: _Reader) -> Instruction:
    reader.options()
    return User(user=reader.need("a user; write USER NAME or USER NAME:GROUP"), **reader.same)


def _workdir(reader: _Reader) -> Instruction:
    reader.options()
    return Workdir(path=reader.need("a path"), **reader.same)


def _stopsignal(reader: _Reader) -> Instruction:
    reader.options()
    return Stopsignal(signal=reader.need("a signal"), **reader.same)


def _cmd(reader: _Reader) -> Instruction:
    reader.options()
    return Cmd(command=reader.command("a command; write CMD [] for none"), **reader.same)


def _entrypoint(reader: _Reader) -> Instruction:
    reader.options()
    return Entrypoint(command=reader.command("a command; write ENTRYPOINT [] for none"), **reader.same)


def _shell(reader: _Reader) -> Instruction:
    reader.options()
    reader.need('a JSON array; write SHELL ["/bin/bash", "-c"]')
    words = reader.array()
    if not words:
        raise reader.error('SHELL takes a JSON array with double quotes; write SHELL ["/bin/bash", "-c"]')
    return Shell(shell=words, **reader.same)


def _healthcheck(reader: _Reader) -> Instruction:
    options = reader.options()
    text = reader.need("CMD and a command, or NONE")
    kind, *rest = BLANKS.split(text, maxsplit=1)
    if kind.upper() == "NONE":
        if rest or options:
            raise reader.error("HEALTHCHECK NONE stands alone; remove the rest of the line")
        return Healthcheck(**reader.same)
    if kind.upper() != "CMD":
        raise reader.error(f"HEALTHCHECK is followed by CMD or NONE, not {kind!r}; put CMD before the command", kind)
    retries = reader.text(flag := options.get("retries")) or "0"
    if not re.fullmatch(r"[0-9]{1,9}", retries, re.ASCII):
        assert flag is not None
        raise reader.line.error(f"--retries is a number, not {retries!r}", flag.offset, flag.width)
    reader.start += text.index(rest[0], len(kind)) if rest else 0
    reader.rest = rest[0] if rest else ""
    command = reader.command("a command after CMD")
    if command == ExecForm(()):
        raise reader.error("HEALTHCHECK needs a command after CMD")
    return Healthcheck(
        command=command,
        interval=reader.duration(options.get("interval")),
        timeout=reader.duration(options.get("timeout")),
        start_period=reader.duration(options.get("start-period")),
        start_interval=reader.duration(options.get("start-interval")),
        retries=int(retries),
        **reader.same,
    )


def _onbuild(reader: _Reader) -> Instruction:
    reader.options()
    expression = reader.need("an instruction")
    same = dict(reader.same)
    trigger = reader.read(reader.line.text, reader.start, trigger=True)
    bodies = "".join(f"\n{each.content}{each.name}" for each in reader.line.heredocs)
    return Onbuild(expression=expression + bodies, trigger=trigger, **same)


_READERS: dict[str, Callable[[_Reader], Instruction]] = {
    "ADD": _add,
    "ARG": _arg,
    "CMD": _cmd,
    "COPY": _copy,
    "ENTRYPOINT": _entrypoint,
    "ENV": _env,
    "EXPOSE": _expose,
    "FROM": _from,
    "HEALTHCHECK": _healthcheck,
    "LABEL": _label,
    "MAINTAINER": _maintainer,
    "ONBUILD": _onbuild,
    "RUN": _run,
    "SHELL": _shell,
    "STOPSIGNAL": _stopsignal,
    "USER": _user,
    "VOLUME": _volume,
    "WORKDIR": _workdir,
}
