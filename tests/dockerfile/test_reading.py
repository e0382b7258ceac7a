"""Instructions: what each line becomes, and the sentence and caret for what it cannot become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from nbcontainer.dockerfile import (
    Add,
    Arg,
    Argument,
    BindRunMount,
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
    TmpfsRunMount,
    User,
    Volume,
    Workdir,
)
from nbcontainer.dockerfile.lines import Origin, read_lines
from nbcontainer.dockerfile.reading import read_instruction
from nbcontainer.errors import DockerfileError

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = 1_000_000_000


def read(source: str, escape: str = "\\") -> Instruction:
    (line,) = read_lines(source, escape=escape).lines
    return read_instruction(line, escape)


def make(kind: Callable[..., Instruction], **fields: Any) -> Instruction:
    return kind(origin=Origin(first=1, last=1, text=""), code="", **fields)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("FROM a", make(From, image="a")),
        ("from a:1 as B", make(From, image="a:1", name="b")),
        ("FROM --platform=$P a@b AS c-1.x_y", make(From, image="a@b", name="c-1.x_y", platform="$P")),
        ("RUN a  b", make(Run, command=ShellForm("a  b"))),
        ('RUN ["a", "b c"]', make(Run, command=ExecForm(("a", "b c")))),
        ("RUN ['a']", make(Run, command=ShellForm("['a']"))),
        (
            "RUN --network=none --security=insecure a",
            make(Run, command=ShellForm("a"), network="none", security="insecure"),
        ),
        (
            "RUN --mount=target=/a --mount=type=tmpfs,target=/b c",
            make(
                Run,
                command=ShellForm("c"),
                mount_flags=("target=/a", "type=tmpfs,target=/b"),
                mounts=(BindRunMount(target="/a"), TmpfsRunMount(target="/b")),
            ),
        ),
        (
            "RUN --mount=target=/a --mount=type=tmpfs,target=$b c",
            make(Run, command=ShellForm("c"), mount_flags=("target=/a", "type=tmpfs,target=$b"), mounts=()),
        ),
        ("COPY a b", make(Copy, sources=("a",), destination="b")),
        ('COPY ["a b", "c/"]', make(Copy, sources=("a b",), destination="c/")),
        (
            "COPY --from=x --chown=1:2 --chmod=u+x --link --parents --exclude=a --exclude=b c d e",
            make(
                Copy, sources=("c", "d"), destination="e", from_="x", owner="1:2", mode="u+x", link=True, parents=True,
                excludes=("a", "b"),
            ),
        ),
        ("COPY --link=false --parents=TRUE a b", make(Copy, sources=("a",), destination="b", parents=True)),
        ("COPY --chmod=$m a b", make(Copy, sources=("a",), destination="b", mode="$m")),
        ("ADD a b", make(Add, sources=("a",), destination="b")),
        (
            "ADD --checksum=sha256:1 --keep-git-dir --unpack=false --exclude=x http://a b",
            make(
                Add, sources=("http://a",), destination="b", checksum="sha256:1", keep_git_dir=True, unpack=False,
                excludes=("x",),
            ),
        ),
        ("ADD --unpack a b", make(Add, sources=("a",), destination="b", unpack=True)),
        ("ENV a=1 b='2 3' c=", make(Env, pairs=(Pair("a", "1"), Pair("b", "'2 3'"), Pair("c", "")))),
        ("ENV a b  c=d", make(Env, pairs=(Pair("a", "b  c=d"),))),
        ("ENV a=b=c", make(Env, pairs=(Pair("a", "b=c"),))),
        ("ENV a=b\\ c", make(Env, pairs=(Pair("a", "b\\ c"),))),
        ('LABEL a.b=c "d e"=f', make(Label, pairs=(Pair("a.b", "c"), Pair('"d e"', "f")))),
        ("ARG a b=1 c=", make(Arg, arguments=(Argument("a"), Argument("b", "1"), Argument("c", "")))),
        ("MAINTAINER A  B <c>", make(Maintainer, author="A  B <c>")),
        ("EXPOSE 80 8000-8010/udp $p", make(Expose, ports=("80", "8000-8010/udp", "$p"))),
        ("VOLUME /a /b", make(Volume, paths=("/a", "/b"))),
        ('VOLUME [" /a b"]', make(Volume, paths=("/a b",))),
        ("USER a:b", make(User, user="a:b")),
        ("WORKDIR /a b", make(Workdir, path="/a b")),
        ("STOPSIGNAL SIGINT", make(Stopsignal, signal="SIGINT")),
        ("CMD a", make(Cmd, command=ShellForm("a"))),
        ("CMD []", make(Cmd, command=ExecForm(()))),
        ('ENTRYPOINT ["a"]', make(Entrypoint, command=ExecForm(("a",)))),
        ('SHELL ["/bin/bash", "-c"]', make(Shell, shell=("/bin/bash", "-c"))),
        ("HEALTHCHECK none", make(Healthcheck)),
        ("HEALTHCHECK CMD a  b", make(Healthcheck, command=ShellForm("a  b"))),
        (
            '\tHEALTHCHECK --interval=1m30s --timeout=0.5s --start-period=1h --start-interval=5s --retries=4 cmd ["a"]',
            make(
                Healthcheck, command=ExecForm(("a",)), interval=90 * SECOND, timeout=SECOND // 2,
                start_period=3600 * SECOND, start_interval=5 * SECOND, retries=4,
            ),
        ),
        ("HEALTHCHECK --interval=0 CMD CMD", make(Healthcheck, command=ShellForm("CMD"))),
        (
            "ONBUILD  run --network=none  a",
            make(
                Onbuild, expression="run --network=none  a", trigger=make(Run, command=ShellForm("a"), network="none")
            ),
        ),
    ],
)  # fmt: skip
def test_read(source: str, expected: Instruction) -> None:
    """Each instruction becomes a value, with its words as they were written."""
    assert read(source) == expected


@pytest.mark.parametrize(
    ("source", "message", "marked"),
    [
        ("RUM a", "no instruction 'RUM'; did you mean RUN?", "RUM"),
        ("$x a", "there are ADD, ARG", "$x"),
        ("from", "FROM needs an image", "from"),
        ("FROM a b", "remove the other words", "a b"),
        ("FROM a of b", "remove the other words", "a of b"),
        ("FROM a AS 1b", "cannot be named '1b'", "1b"),
        ("FROM --platfrom=x a", "did you mean --platform?", "--platfrom=x"),
        ("FROM --platform a", "needs a value", "--platform"),
        ("RUN", "RUN needs a command", "RUN"),
        ("RUN --network=nome a", "did you mean none?", "--network=nome"),
        ("RUN --network=x a", "there are default, none, host", "--network=x"),
        ("RUN --security=x a", "there are sandbox, insecure", "--security=x"),
        ("RUN --device=vendor.com/gpu=all a", "no build gets any here", "--device=vendor.com/gpu=all"),
        ("RUN --mount a", "needs a value", "--mount"),
        ("RUN --mount=type=x,target=/a b", "no mount of type 'x'", "--mount=type=x,target=/a"),
        ("RUN --network=none --network=none a", "stands twice", "--network=none"),
        ("RUN [1]", "not a string", "[1]"),
        ("COPY a", "needs a source and a destination", "a"),
        ("COPY", "needs a source and a destination", "COPY"),
        ("COPY --form=x a b", "did you mean --from?", "--form=x"),
        ("COPY --from=$x a b", "not expanded", "--from=$x"),
        ("COPY --chmod=9 a b", "not octal", "--chmod=9"),
        ("COPY --link=maybe a b", "is true or false", "--link=maybe"),
        ("COPY --zzz a b", "there are --from, --chown", "--zzz"),
        ("COPY a <<b\nb", "cannot be a heredoc", "<<b"),
        ("ENV", "needs NAME=VALUE", "ENV"),
        ("ENV a", "ENV a has no value", "a"),
        ("ENV a=b c", "'c' has no '='", "c"),
        ("ENV =b", "no name before its '='", "=b"),
        ("ENV --x a=b", "it has none", "--x"),
        ("ARG", "ARG needs a name", "ARG"),
        ("ARG =b", "no name", "=b"),
        ("ARG \\", "ARG needs a name", "ARG"),
        ("VOLUME []", "paths that are not empty", "[]"),
        ('VOLUME [" "]', "paths that are not empty", '[" "]'),
        ('VOLUME ["a", ""]', "paths that are not empty", '["a", ""]'),
        ("SHELL bash", "takes a JSON array", "bash"),
        ("SHELL []", "takes a JSON array", "[]"),
        ("SHELL", "needs a JSON array", "SHELL"),
        ("HEALTHCHECK", "needs CMD and a command", "HEALTHCHECK"),
        ("HEALTHCHECK NONE a", "stands alone", "NONE a"),
        ("HEALTHCHECK --retries=1 NONE", "stands alone", "NONE"),
        ("HEALTHCHECK curl a", "followed by CMD or NONE, not 'curl'", "curl"),
        ("HEALTHCHECK CMD", "needs a command after CMD", "HEALTHCHECK"),
        ("HEALTHCHECK CMD []", "needs a command after CMD", "[]"),
        ("HEALTHCHECK --interval=x CMD a", "a time such as 30s", "--interval=x"),
        ("HEALTHCHECK --interval=1ns CMD a", "cannot be less than 1ms", "--interval=1ns"),
        ("HEALTHCHECK --retries=-1 CMD a", "is a number", "--retries=-1"),
        ("ONBUILD", "needs an instruction", "ONBUILD"),
        ("ONBUILD ONBUILD RUN a", "cannot trigger ONBUILD", "ONBUILD"),
        ("ONBUILD from a", "cannot trigger FROM", "from"),
        ("ONBUILD MAINTAINER a", "cannot trigger MAINTAINER", "MAINTAINER"),
        ("ONBUILD --x RUN a", "it has none", "--x"),
        ("ONBUILD COPY a", "needs a source and a destination", "a"),
    ],
)  # fmt: skip
def test_refused(source: str, message: str, marked: str) -> None:
    """A mistake is told by one sentence with the nearest word, and the caret is below it."""
    with pytest.raises(DockerfileError) as caught:
        read(source)
    told, row, caret = str(caught.value).split("\n")[:3]
    assert message in told
    assert told.startswith("line 1: ")
    assert row[caret.index("^") : caret.rindex("^") + 1] == marked


def test_caret_in_a_continuation() -> None:
    """The caret is on the physical line that holds the word."""
    with pytest.raises(DockerfileError) as caught:
        read("RUN --network=none \\\n   # why\n   --mount=typ=x a")
    assert (caught.value.line, caught.value.column) == (3, 4)
    assert "did you mean 'type'?" in str(caught.value)


def test_what_is_kept_beside_the_meaning() -> None:
    """Keyword, code and comments are as typed, and do not make two instructions differ."""
    upper, lower = read("# why\nRUN a \\\n  b"), read("run a   b")
    assert upper == lower
    assert (upper.keyword, upper.code, upper.comments) == ("RUN", "RUN a   b", ("why",))
    assert (lower.keyword, lower.comments) == ("run", ())


def test_trigger_keeps_its_heredocs() -> None:
    """An ONBUILD's expression has the bodies of heredocs, so that it can be read again."""
    onbuild = read("ONBUILD COPY <<a <<b /x\n1\na\n2\nb")
    assert isinstance(onbuild, Onbuild)
    assert onbuild.expression == "COPY <<a <<b /x\n1\na\n2\nb"
    assert read(onbuild.expression) == onbuild.trigger
    assert onbuild.code == "ONBUILD COPY <<a <<b /x"
    assert onbuild.trigger.code == "COPY <<a <<b /x"


def test_arguments_of_run() -> None:
    """The shell gets the text, with heredocs put back; a lone heredoc is the script itself."""
    shell = ("sh", "-c")

    def arguments(source: str) -> tuple[str, ...]:
        run = read(source)
        assert isinstance(run, Run)
        return run.arguments(shell)

    assert arguments("RUN a b") == (*shell, "a b")
    assert arguments('RUN ["a", "b"]') == ("a", "b")
    assert arguments("RUN <<E\na\nb\nE") == (*shell, "a\nb\n")
    assert arguments("RUN <<-'E X'\n\ta\n\tE X") == (*shell, "a\n")
    assert arguments("RUN cat <<-'E' <<F\n\t$a\n\tE\nb\nF") == (*shell, "cat <<-'E' <<F\n\t$a\nE\nb\nF")
    scripted = read("RUN <<E\n#!/usr/bin/env python3\nE")
    assert isinstance(scripted, Run)
    assert scripted.script is not None
    assert scripted.script.body.startswith("#!")


def test_forms_of_commands() -> None:
    """Commands say what is executed, and a health check what a config has."""
    assert ShellForm("a b").arguments(("s",)) == ("s", "a b")
    assert ExecForm(("a", "b")).arguments(("s",)) == ("a", "b")
    tests = [read(f"HEALTHCHECK {rest}") for rest in ("NONE", "CMD a b", 'CMD ["a"]')]
    assert [each.test for each in tests if isinstance(each, Healthcheck)] == [
        ("NONE",),
        ("CMD-SHELL", "a b"),
        ("CMD", "a"),
    ]


def test_escape_directive_in_words() -> None:
    """The escape character of the file parts words."""
    assert read("ENV a=b` c d=\\e", "`") == make(Env, pairs=(Pair("a", "b` c"), Pair("d", "\\e")))
