"""What is expanded of each instruction, and what is left to shells."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile import (
    Add,
    Arg,
    Argument,
    BindRunMount,
    CacheRunMount,
    Copy,
    Env,
    Expose,
    From,
    Instruction,
    Label,
    Onbuild,
    Pair,
    Run,
    Stopsignal,
    User,
    Volume,
    Workdir,
    assign_arguments,
    expand,
    global_arguments,
    parse,
    parse_trigger,
)
from nbcontainer.errors import DockerfileError

ENVIRONMENT = {"v": "1", "two": "a b", "empty": "", "path": "/p"}


def expanded(source: str, escape: str = "\\") -> Instruction:
    return expand(parse_trigger(source), ENVIRONMENT, escape=escape).instruction


def test_from() -> None:
    """FROM's image and platform are expanded."""
    base = parse("FROM --platform=$p a:${v}").stages[0].base
    result = expand(base, {"v": "1", "p": "linux/arm64"}).instruction
    assert isinstance(result, From)
    assert (result.image, result.platform) == ("a:1", "linux/arm64")


def test_run() -> None:
    """Of RUN only the options of mounts are expanded, each value on its own."""
    run = expanded("RUN --mount=type=cache,target=$path,id=$two --mount=target=/b,source=${no:-s} echo $v")
    assert isinstance(run, Run)
    assert run.mounts == (CacheRunMount(target="/p", id="a b"), BindRunMount(target="/b", source="s"))
    assert run.arguments(()) == ("echo $v",)
    heredoc = expanded("RUN cat <<E\n$v\nE")
    assert isinstance(heredoc, Run)
    assert heredoc.heredocs[0].content == "$v\n"


def test_copy() -> None:
    """Words, owner, mode and unquoted heredocs of COPY are expanded, excludes not; a value with a blank is one word."""
    source = "COPY --from=f --chown=$v:$v --chmod=u=rw --exclude=*.$v $two <<a <<-'b' $path/\n\t$v\na\n\t$v\n\tb"
    copy = expanded(source)
    assert isinstance(copy, Copy)
    assert (copy.sources, copy.destination) == (("a b",), "/p/")
    assert (copy.owner, copy.mode, copy.excludes, copy.from_) == ("1:1", "u=rw", ("*.$v",), "f")
    assert [each.body for each in copy.heredocs] == ["\t1\n", "$v\n"]


def test_chomped_heredoc_is_expanded_after_its_tabs_went() -> None:
    """Tabs that a value brings along are not taken for indentation."""
    instruction = parse_trigger("COPY <<-a /x\n\t$tab\na")
    copy = expand(instruction, {"tab": "\tx"}).instruction
    assert isinstance(copy, Copy)
    assert copy.heredocs[0].body == "\tx\n"


def test_add() -> None:
    """ADD is expanded as COPY is, and its checksum too."""
    add = expanded("ADD --checksum=sha256:$v http://x/$v a")
    assert isinstance(add, Add)
    assert (add.checksum, add.sources) == ("sha256:1", ("http://x/1",))


@pytest.mark.parametrize("kind", ["ENV", "LABEL"])
def test_pairs(kind: str) -> None:
    """Names and values of ENV and LABEL lose their quotes, and all see the environment from before."""
    result = expanded(f"{kind} v=2 a$v='$v' b=\"$v $two\" c=$v\\ d")
    assert isinstance(result, Env | Label)
    assert result.pairs == (Pair("v", "2"), Pair("a1", "$v"), Pair("b", "1 a b"), Pair("c", "1 d"))
    legacy = expanded(f"{kind} a  $v 'b'  c")
    assert isinstance(legacy, Env | Label)
    assert legacy.pairs == (Pair("a", "1 b  c"),)


def test_arg() -> None:
    """Defaults of ARG are expanded and see what is to their left, and no default is not an empty one."""
    result = expanded("ARG a b=$v c=$empty x$v=$no d=$b v=2 e=$v")
    assert isinstance(result, Arg)
    values = {each.name: each.default for each in result.arguments}
    assert values == {"a": None, "b": "1", "c": "", "x$v": "", "d": "1", "v": "2", "e": "2"}


def test_assign_arguments() -> None:
    """What is given counts before a default, which is not looked at then, and a global value where there is none."""
    arg = parse_trigger("ARG a b=${no:?say-so} c d=$c$b")
    assert isinstance(arg, Arg)
    result = assign_arguments(arg, {"no": ""}, {"b": "B"}, {"c": "C", "b": "x"})
    assert result.instruction.arguments == (
        Argument("a"),
        Argument("b", "B"),
        Argument("c", "C"),
        Argument("d", "CB"),
    )
    with pytest.raises(DockerfileError, match="line 1: no: say-so"):
        assign_arguments(arg, {"no": ""}, {}, {})


def test_expose() -> None:
    """A word of EXPOSE may become several, or none."""
    result = expand(
        parse_trigger("EXPOSE $ports 5$v $empty"), {"ports": "80 81/udp", "v": "1", "empty": ""}
    ).instruction
    assert isinstance(result, Expose)
    assert result.ports == ("80", "81/udp", "51")


def test_single_words() -> None:
    """VOLUME, USER, WORKDIR and STOPSIGNAL are expanded, a whole line to one word."""
    volume, user = expanded('VOLUME ["$path/$two", "x"]'), expanded("USER u$v:g")
    workdir, signal = expanded("WORKDIR $path/a b"), expanded("STOPSIGNAL SIG${no:-INT}")
    assert isinstance(volume, Volume)
    assert isinstance(user, User)
    assert isinstance(workdir, Workdir)
    assert isinstance(signal, Stopsignal)
    assert (volume.paths, user.user, workdir.path, signal.signal) == (("/p/a b", "x"), "u1:g", "/p/a b", "SIGINT")


@pytest.mark.parametrize(
    "source",
    ["CMD $v", 'CMD ["$v"]', "ENTRYPOINT $v", "HEALTHCHECK CMD $v", 'SHELL ["$v"]', "RUN $v ${", "RUN echo '"],
)
def test_left_to_shells(source: str) -> None:
    """Commands stay as they are, whatever is in them."""
    instruction = parse_trigger(source)
    assert expand(instruction, ENVIRONMENT).instruction == instruction


def test_triggers_and_authors_wait() -> None:
    """ONBUILD and MAINTAINER stay as they are."""
    for each in parse("FROM a\nMAINTAINER $v\nONBUILD ENV a=$v").stages[0].instructions:
        result = expand(each, ENVIRONMENT)
        assert (result.instruction, result.used) == (each, frozenset())
        assert result.instruction is each
    assert isinstance(each, Onbuild)


def test_what_was_looked_up() -> None:
    """Used and undefined variables of all words come together."""
    result = expand(parse_trigger("COPY --chown=$v $no <<a x$two\n$path $nor\na"), ENVIRONMENT)
    assert result.used == {"v", "two", "path"}
    assert result.undefined == {"no", "nor"}


def test_escape() -> None:
    """The escape character of the file is heeded."""
    result = expanded("WORKDIR c:\\$v`$v", "`")
    assert isinstance(result, Workdir)
    assert result.path == "c:\\1$v"


@pytest.mark.parametrize(
    ("source", "message", "marked"),
    [
        ("COPY a ${no:?say-so}", "no: say-so", "${no:?say-so}"),
        ("COPY a ${", "no name", "${"),
        ("COPY a $empty", "the destination '$empty' is empty", "$empty"),
        ("COPY --chmod=$two a b", "octal", "$two"),
        ("RUN --mount=target=$empty a", "needs a target", "$empty"),
        ("RUN --mount=type=x$v,target=/a b", "no mount of type 'x1'", None),
        ("EXPOSE 1 $two", "the port 'a'", "$two"),
        ("ENV $no=1", "the name '$no' is empty", "$no"),
        ("VOLUME a $no", "the path '$no' is empty", "$no"),
        ("USER $no", "the user '$no' is empty", "$no"),
        ("STOPSIGNAL $no", "the signal '$no' is empty", "$no"),
        ("STOPSIGNAL SIGTREM", "no signal 'SIGTREM'; did you mean SIGTERM?", "SIGTREM"),
        ("STOPSIGNAL $v$v$v$v$v$v$v$v$v$v", "write for example SIGTERM", None),
        ("COPY http://x/$v a", "write ADD to download it", None),
        ("COPY GIT@x:y a", "write ADD to download it", None),
        ("COPY <<a /x\n${\na", "no name", None),
    ],
)
def test_refused(source: str, message: str, marked: str | None) -> None:
    """What cannot be used once it is expanded is refused with the lines, and a caret where the word is found."""
    with pytest.raises(DockerfileError) as caught:
        expand(parse_trigger(source), ENVIRONMENT)
    told, row, *rest = str(caught.value).split("\n")
    assert message in told
    assert told.startswith("line 1: ")
    if marked:
        assert row[rest[0].index("^") : rest[0].rindex("^") + 1] == marked


def test_not_judged() -> None:
    """Checks can ask what is undefined with values that would not do."""
    for source in ("RUN --mount=target=$empty,uid=$nor a", "EXPOSE $two $nor", "COPY --chmod=$two $nor $empty"):
        assert expand(parse_trigger(source), ENVIRONMENT, judge=False).undefined == {"nor"}
    assert expand(parse_trigger("WORKDIR $empty"), ENVIRONMENT, judge=False).undefined == set()


def test_global_arguments() -> None:
    """Global ARGs are set from left to right, what is given wins, and what has no value stays unset."""
    arguments = parse("ARG a=1 b=${a}2\nARG c\nARG d=$P\nARG e=$f\nARG g\nFROM x").arguments
    assert global_arguments(arguments, {"a": "9", "c": "3", "other": "x"}, {"P": "p"}) == {
        "P": "p", "a": "9", "b": "92", "c": "3", "d": "p", "e": "",
    }  # fmt: skip


def test_global_argument_that_demands_a_value() -> None:
    """A default that fails is not looked at when a value is given."""
    arguments = parse('ARG a="${b:?give b}"\nFROM x').arguments
    assert global_arguments(arguments, {"a": "1"}, {}) == {"a": "1"}
    with pytest.raises(DockerfileError, match="give b"):
        global_arguments(arguments, {}, {})
