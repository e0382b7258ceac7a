"""Options of RUN --mount, for each type, with and without variables."""

from __future__ import annotations

import pytest

from nbcontainer.dockerfile.mounts import (
    BindRunMount,
    CacheRunMount,
    RunMount,
    SecretRunMount,
    SshRunMount,
    TmpfsRunMount,
    mount_source,
    parse_mount,
)
from nbcontainer.errors import DockerfileError


@pytest.mark.parametrize(
    ("flag", "mount"),
    [
        ("target=/a", BindRunMount(target="/a")),
        ("type=bind,dst=a,src=b,from=c,rw", BindRunMount(target="a", source="b", from_="c", readonly=False)),
        ("TYPE=bind,Destination=/a,ro", BindRunMount(target="/a")),
        ("target=/a,readonly=false", BindRunMount(target="/a", readonly=False)),
        ("target=/a,readwrite=false", BindRunMount(target="/a")),
        ("target=/a,ro,rw=1", BindRunMount(target="/a", readonly=False)),
        ("target=/a,rw,ro", BindRunMount(target="/a")),
        ('"target=/a,b"', BindRunMount(target="/a,b")),
        ("type=cache,target=/a", CacheRunMount(target="/a", id="/a")),
        ("type=Cache,target=/a//b/", CacheRunMount(target="/a//b/", id="/a/b")),
        (
            "type=cache,id=i,target=/a,sharing=LOCKED,from=f,source=s,mode=0700,uid=1,gid=2,ro",
            CacheRunMount(
                target="/a", id="i", source="s", from_="f", readonly=True, sharing="locked", mode=0o700, uid=1, gid=2
            ),
        ),
        ("type=tmpfs,target=/a", TmpfsRunMount(target="/a")),
        ("type=tmpfs,target=/a,size=64m", TmpfsRunMount(target="/a", size=64 << 20)),
        ("type=tmpfs,target=/a,size=1.5GiB", TmpfsRunMount(target="/a", size=3 << 29)),
        ("type=tmpfs,target=/a,size=100", TmpfsRunMount(target="/a", size=100)),
        ("type=tmpfs,target=/a,size=0", TmpfsRunMount(target="/a")),
        ("type=secret,id=a", SecretRunMount(id="a", target="/run/secrets/a")),
        ("type=secret,target=/x/y", SecretRunMount(id="y", target="/x/y")),
        ("type=secret,src=a,env=B", SecretRunMount(id="a", env="B")),
        ("type=secret,src=a/b,id=c", SecretRunMount(id="a/b", target="/run/secrets/b")),
        (
            "type=secret,id=a,env=B,target=/c,required,mode=0444,uid=1,gid=2",
            SecretRunMount(id="a", env="B", target="/c", required=True, mode=0o444, uid=1, gid=2),
        ),
        ("type=ssh", SshRunMount()),
        (
            "type=ssh,id=a,target=/b,required=true,mode=0666,uid=1,gid=2",
            SshRunMount(id="a", target="/b", required=True, mode=0o666, uid=1, gid=2),
        ),
    ],
)
def test_parse(flag: str, mount: RunMount) -> None:
    """Each type has its options and defaults, and means the same read with and without an environment."""
    assert parse_mount(flag, None) == mount
    assert parse_mount(flag, str) == mount


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("", "needs a target"),
        ("taget=/a", "did you mean 'target'?"),
        ("qqqq=/a", "there are destination, dst"),
        ("target", "needs a value"),
        ("type=bind", "needs a target"),
        ("type=bind,target=/", "cannot cover the root"),
        ("type=bind,target=/a/..", "cannot cover the root"),
        ("type=tmfps,target=/a", "did you mean 'tmpfs'?"),
        ("type=zzz,target=/a", "there are bind, cache"),
        ("type=bind,target=/a,id=b", "type bind has no option 'id'"),
        ("type=secret,id=a,from=b", "type secret has no option 'from'"),
        ("type=secret", "needs an id"),
        ("type=secret,target=/", "needs an id"),
        ("target=/a,ro=x", "'readonly' is true or false"),
        ("type=ssh,required=x", "'required' is true or false"),
        ("type=ssh,mode=8", "an octal mode"),
        ("type=ssh,mode=", "an octal mode"),
        ("type=ssh,uid=x", "'uid' is a number"),
        ("type=ssh,uid=4294967296", "'uid' is a number"),
        ("type=cache,target=/a,sharing=x", "shared, private or locked"),
        ("type=tmpfs,target=/a,size=x", "'size' is bytes"),
        ("target=/a,from=$x", "'from' is not expanded"),
        ('"target=/a', "no list of comma-separated options"),
    ],
)
def test_refused(flag: str, message: str) -> None:
    """What is no mount is refused by a sentence, before anything runs and then."""
    for expand in (None, str):
        with pytest.raises(DockerfileError) as caught:
            parse_mount(flag, expand)
        assert message in str(caught.value)


def test_variables_wait() -> None:
    """A value with a variable is judged when it is expanded, each on its own; names are judged at once."""
    flag = "type=$t,target=/a,id=$i"
    assert parse_mount(flag, None) is None
    values = {"$t": "cache", "$i": "b,sharing=locked"}
    assert parse_mount(flag, lambda word: values.get(word, word)) == CacheRunMount(target="/a", id="b,sharing=locked")
    with pytest.raises(DockerfileError, match="no option 'idd'"):
        parse_mount(flag + ",idd=1", None)


def test_source() -> None:
    """What a mount takes its files from is known without an environment."""
    assert mount_source("type=bind,FROM=a,target=/x") == "a"
    assert mount_source("target=/x,from") == ""
    assert mount_source("target=$x") == ""
