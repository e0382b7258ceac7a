"""Reading WWW-Authenticate."""

from __future__ import annotations

import pytest

from nbcontainer.registry.challenges import parse_challenges

HUB = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"'


def schemes(header: str) -> list[str]:
    return [challenge.scheme for challenge in parse_challenges(header)]


def test_docker_hub():
    """A quoted value keeps its commas and colons."""
    (challenge,) = parse_challenges(HUB)
    assert challenge.scheme == "bearer"
    assert dict(challenge.parameters) == {
        "realm": "https://auth.docker.io/token",
        "service": "registry.docker.io",
        "scope": "repository:a/b:pull,push",
    }


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        (",, ,", []),
        ("Negotiate", ["negotiate"]),
        ('Basic realm="a", ' + HUB, ["basic", "bearer"]),
        ("Negotiate, " + HUB, ["negotiate", "bearer"]),
        ("Negotiate YWJj==, Basic realm=x", ["negotiate", "basic"]),
        ('Digest qop="auth, auth-int", nonce=1 , Basic', ["digest", "basic"]),
        ('"stray", Basic realm="x"', ["basic"]),
        ('realm="of nobody", Basic', ["basic"]),
    ],
)
def test_several_challenges_in_one_header(header, expected):
    """Commas part challenges and parameters alike; both are told apart, garbage is passed over."""
    assert schemes(header) == expected


def test_unquoted_url_and_spaces_around_equals():
    """What registries really send, outside the grammar, is read."""
    (challenge,) = parse_challenges("Bearer realm = https://x.example/token?a=b,service=y")
    assert challenge.parameters == {"realm": "https://x.example/token?a=b", "service": "y"}


def test_escapes_and_missing_end_quote():
    """A backslash escapes; a quote that never ends goes to the end."""
    (challenge,) = parse_challenges('Basic realm="a \\"b\\" c", x="open')
    assert challenge.parameters == {"realm": 'a "b" c', "x": "open"}


def test_first_of_a_repeated_parameter_counts():
    """A second realm cannot replace the first."""
    (challenge,) = parse_challenges('Bearer realm="https://a/t",REALM="https://b/t"')
    assert challenge.parameters["realm"] == "https://a/t"
