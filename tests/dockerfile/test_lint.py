"""Checks: each finds what it is for, keeps quiet beside it, and can be switched."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile import CHECKS, Ignore, lint, parse
from nbcontainer.errors import DockerfileError


def found(source: str, check: str, ignore: str = "") -> list[int]:
    """Return the lines in which a check finds something."""
    report = lint(parse(source), ignore=Ignore.parse(ignore))
    return [each.origin.first for each in report.findings if each.check == check]


@pytest.mark.parametrize(
    ("check", "source", "lines"),
    [
        ("StageNameCasing", "FROM a AS B\nFROM a AS c", [1]),
        ("FromAsCasing", "FROM a as b\nfrom a AS c\nFROM a AS d\nfrom a as e\nFROM x", [1, 2]),
        ("NoEmptyContinuation", "FROM a\nRUN b \\\n\n c", [2]),
        ("ConsistentInstructionCasing", "FROM a\nRUN b\nrun c\nRuN d", [3, 4]),
        ("ConsistentInstructionCasing", "from a\nrun b\nRUN c", [3]),
        ("ConsistentInstructionCasing", "FROM a\nrun c", [2]),
        ("DuplicateStageName", "FROM a AS b\nFROM a AS B\nFROM a\nFROM a", [2]),
        ("ReservedStageName", "FROM a AS scratch\nFROM a AS Context\nFROM scratch", [1, 2]),
        ("JSONArgsRecommended", 'FROM a\nCMD b\nENTRYPOINT c\nCMD ["d"]\nRUN e', [2, 3]),
        ("JSONArgsRecommended", 'FROM a AS s\nSHELL ["b"]\nCMD c\nFROM s\nCMD d\nFROM a\nCMD e', [7]),
        ("MaintainerDeprecated", "FROM a\nMAINTAINER b", [2]),
        ("UndefinedArgInFrom", "ARG a=1\nFROM x$a\nFROM x$b\nFROM --platform=$BUILDPLATFORM x$TARGETARCH", [3]),
        ("UndefinedArgInFrom", "FROM a:${b:-1}\nFROM a:${", []),
        ("WorkdirRelativePath", "FROM a\nWORKDIR b\nWORKDIR c\nFROM a\nWORKDIR /b\nWORKDIR c", [2]),
        ("WorkdirRelativePath", 'FROM a AS s\nWORKDIR "/b"\nFROM s\nWORKDIR c\nFROM a\nWORKDIR $d', []),
        ("MultipleInstructionsDisallowed", "FROM a\nCMD b\nCMD c\nCMD d\nENTRYPOINT e\nFROM a\nCMD f", [2, 3]),
        ("LegacyKeyValueFormat", "FROM a\nENV b c\nENV d=e\nLABEL f g\nLABEL h=i", [2, 4]),
        ("RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM a\nFROM --platform=${BUILDPLATFORM} b", [1]),
        ("SecretsUsedInArgOrEnv", "ARG API_TOKEN\nFROM a\nENV b=1 PASSWORD=2\nENV PUBLIC_KEY=3 TOKENIZER=4", [1, 3]),
        ("InvalidDefaultArgInFrom", "ARG t\nARG u=1\nFROM a:$t\nFROM a:$u\nFROM a:${t:-2}\nFROM $t", [3, 6]),
        (
            "InvalidDefaultArgInFrom",
            "ARG t\nARG s=st\nFROM a AS st\nFROM $s\nFROM A:${t:?tell}\nFROM b:$TARGETARCH",
            [],
        ),
        ("InvalidDefaultArgInFrom", "ARG t=${u:?x}\nFROM a:$t", []),
        ("InvalidDefaultArgInFrom", "ARG t\nFROM a:$t${u", []),
        (
            "FromPlatformFlagConstDisallowed",
            "FROM --platform=linux/amd64 a\nFROM --platform=linux/arm64 a AS x_arm64\nFROM --platform=$P a",
            [1],
        ),
        ("ExposeProtoCasing", "FROM a\nEXPOSE 80/TCP 81/udp 82\nEXPOSE 83/$p", [2]),
        ("ExposeInvalidFormat", "FROM a\nEXPOSE 127.0.0.1:80:80\nEXPOSE 80:80\nEXPOSE 80 ${p:-90}", [2, 3]),
        ("UndefinedVar", "FROM scratch\nCOPY $a b\nENV a=1\nCOPY $a b", [2]),
        ("UndefinedVar", "FROM unknown\nCOPY $a b\nENV PATH=$PAHT", [3]),
        ("UndefinedVar", "ARG a=1\nFROM unknown\nCOPY $a b\nARG a\nCOPY $a c", [3]),
        ("UndefinedVar", "FROM scratch AS s\nENV a=1\nFROM s\nCOPY $a b\nCOPY $c d\nONBUILD COPY $e f", [5]),
        ("UndefinedVar", "FROM scratch\nRUN $a\nCMD $a\nCOPY ${a:-b} ${c+d} /x\nCOPY a ${", []),
        ("UndefinedVar", "FROM scratch\nRUN --mount=target=/x,source=$a b\nEXPOSE $c\nWORKDIR $PATH", [2, 3]),
    ],
)
def test_check(check: str, source: str, lines: list[int]) -> None:
    """A check finds its lines and no others."""
    assert found(source, check) == lines


def test_copy_ignored_file() -> None:
    """What .dockerignore leaves out is told, where the source is a plain path of the context."""
    source = (
        "FROM a AS s\nCOPY x b/y /c\nADD ./x /c\nCOPY --from=s x /c\nCOPY * $x /c\nADD http://x https://x /c\nCOPY y /c"
    )
    assert found(source, "CopyIgnoredFile", "x\nb\n") == [2, 2, 3]
    assert found(source, "CopyIgnoredFile") == []


def test_environment_of_a_known_base() -> None:
    """What a base image sets is known to whoever has it."""
    dockerfile = parse("FROM py\nCOPY $VERSION $HOMES /x")
    assert lint(dockerfile).findings == ()
    (finding,) = lint(dockerfile, inherited={"py": ["VERSION", "HOME"]}).findings
    assert (finding.check, finding.message) == (
        "UndefinedVar",
        "COPY uses HOMES, which is not set here; did you mean HOME?",
    )


def test_experimental_check() -> None:
    """The check of descriptions is made only where it is asked for."""
    source = (
        "# about\nFROM a AS b\n# b is it\nFROM a AS b\n# c: no\nARG c\n# other\n#\nARG d\n# more\nRUN e\n# x\nFROM f"
    )
    assert found(source, "InvalidDefinitionDescription") == []
    for names in ("all", "InvalidDefinitionDescription"):
        assert found(f"# check=experimental={names}\n{source}", "InvalidDefinitionDescription") == [3, 7]


@pytest.mark.parametrize(
    ("directive", "checks", "fatal"),
    [
        ("", {"MaintainerDeprecated", "StageNameCasing"}, False),
        ("skip=StageNameCasing", {"MaintainerDeprecated"}, False),
        ("skip = StageNameCasing , MaintainerDeprecated ; error = true", set(), False),
        ("skip=all;error=true", set(), False),
        ("error=TRUE", {"MaintainerDeprecated", "StageNameCasing"}, True),
        ("error=false;skip=Unknown", {"MaintainerDeprecated", "StageNameCasing"}, False),
        ("error=1;", {"MaintainerDeprecated", "StageNameCasing"}, True),
    ],
)
def test_directive(directive: str, checks: set[str], fatal: bool) -> None:
    """The check directive skips, and makes what is found fatal."""
    head = f"# check={directive}\n" if directive else ""
    report = lint(parse(f"{head}FROM a AS B\nMAINTAINER c"))
    assert {each.check for each in report.findings} == checks
    assert report.fatal is fatal


@pytest.mark.parametrize("directive", ["all", "error=maybe", "skipp=a", "error", "skip"])
def test_directive_refused(directive: str) -> None:
    """A directive that is not understood is refused, with the line."""
    with pytest.raises(DockerfileError, match="write skip=NAME") as caught:
        lint(parse(f"# check={directive}\nFROM a"))
    assert caught.value.line == 1


def test_no_finding_in_a_good_file() -> None:
    """A file without faults has no findings, whichever checks there are."""
    source = """\
ARG VERSION=12
FROM debian:${VERSION} AS build
WORKDIR /src
COPY --chown=1000:1000 . .
RUN make
FROM debian:${VERSION}
ENV PATH=/app/bin:$PATH
COPY --from=build /src/out /app
EXPOSE 80/tcp
HEALTHCHECK CMD ["true"]
CMD ["/app/run"]
"""
    assert lint(parse(source), ignore=Ignore.parse("out")).findings == ()


def test_checks_are_told_apart() -> None:
    """Every check has a name of its own and a sentence."""
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    assert all(check.description for check in CHECKS)
