"""Completion on ``%container`` lines, with jedi and without."""

from __future__ import annotations

import pytest
from IPython.core.completer import provisionalcompleter

from nbcontainer.dockerfile.flags import FLAGS
from nbcontainer.dockerfile.parser import parse
from nbcontainer.engine.verbs import VERBS
from nbcontainer.ipython.completion import completions
from nbcontainer.ipython.dockerfile_words import dockerfile_words
from nbcontainer.testing.engine import RecordingEngine


@pytest.fixture(params=[True, False], ids=["jedi", "plain"])
def complete(request, notebook):
    """What the front end would offer: the text before the cursor that is replaced, and the words."""
    notebook.shell.Completer.use_jedi = request.param
    notebook.engine.known = [RecordingEngine.image(), RecordingEngine.image("localhost:5000/a/b:1.2")]

    notebook.engine.kept.append(RecordingEngine.container("web", state="running"))

    def ask(text):
        with provisionalcompleter():
            found = list(notebook.shell.Completer.completions(text, len(text)))
        return {text[completion.start : completion.end] for completion in found}, [each.text for each in found]

    return ask


@pytest.mark.parametrize(
    ("text", "fragment", "word"),
    [
        ("%container im", "im", "images"),
        ("x = %container ins", "ins", "inspect"),
        ("%container pull deb", "deb", "debian"),
        ("%container pull ubu", "ubu", "ubuntu"),
        ("%container rmi localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1.2"),
        ("%container run --net", "--net", "--network"),
        ("%container run --network h", "h", "host"),
        ("%container rm w", "w", "work"),
        ("%container inspect w", "w", "work"),
        ("%container help his", "his", "history"),
        ("%%container debian:", "debian:", "debian:latest"),
        ("%container exec w", "w", "web"),
        ("%%container exec w", "w", "web"),
        ("%%container exec --she", "--she", "--shell"),
        ("%container start w", "w", "work"),
        ("%%container -e A=b --pull n", "n", "never"),
        ("%%container -e A=b ho", "ho", "host"),
        ("%%container --shell py", "py", "python3"),
    ],
)
def test_the_whole_word_is_completed(complete, text, fragment, word):
    """Names with colons and slashes are one piece, and nothing of others is mixed in."""
    fragments, words = complete(text)
    assert fragments == {fragment}
    assert word in words
    assert all(each.startswith(fragment) for each in words)


def test_commands_and_bodies_are_left_alone(complete):
    """After the image, in the body, and on other lines we say nothing."""
    for text in ("%%container debian deb", "%container run debian deb", "%%container debian\ndeb", "deb"):
        assert "debian" not in complete(text)[1]


def test_rmi_offers_only_what_is_here(complete):
    """Popular names are for pulling."""
    assert "fedora" not in complete("%container rmi ")[1]


def test_broken_store_breaks_nothing(notebook):
    """An error in ours leaves the others working."""
    notebook.engine.failure["images"] = RuntimeError("disk on fire")
    with provisionalcompleter():
        assert list(notebook.shell.Completer.completions("%container pull deb", 19)) is not None


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_verb_and_option_completes(notebook, verb):
    """The table is walked: nothing in it is left out."""
    first, _, second = verb.name.partition(" ")
    assert first in completions(first[:2], cell=False)[1]
    if second:
        assert second in completions(f"{first} {second[:1]}", cell=False)[1]
    for option in verb.offered("notebook"):
        flag = max(option.flags, key=len)
        assert flag in completions(f"{verb.name} {flag[:4]}", cell=False)[1]
    assert "--help" in completions(f"{verb.name} -", cell=False)[1]


_STAGES = "%%dockerfile -t x\nFROM debian AS tools\nfrom --platform=linux/amd64 a as Second\n"


@pytest.mark.parametrize(
    ("text", "fragment", "word"),
    [
        ("%%dockerfile --net", "--net", "--network"),
        ("%%dockerfile --network h", "h", "host"),
        ("%%dockerfile -t a --cache-", "--cache-", "--cache-from"),
        ("%%dockerfile -t x\nFR", "FR", "FROM"),
        ("%%dockerfile -t x\nfr", "fr", "from"),
        ("# above\n%%dockerfile -t x\n  WOR", "WOR", "WORKDIR"),
        ("%%dockerfile -t x\nFROM deb", "deb", "debian"),
        ("%%dockerfile -t x\nFROM localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1.2"),
        ("%%dockerfile -t x\nFROM scr", "scr", "scratch"),
        ("%%dockerfile -t x\nFROM debian A", "A", "AS"),
        (f"{_STAGES}FROM to", "to", "tools"),
        (f"{_STAGES}FROM --platform=x se", "se", "second"),
        (f"{_STAGES}COPY --fr", "--fr", "--from="),
        (f"{_STAGES}COPY --from=to", "--from=to", "--from=tools"),
        (f"{_STAGES}copy --link --from=sec", "--from=sec", "--from=second"),
        (f"{_STAGES}COPY --from=deb", "--from=deb", "--from=debian"),
        (f"{_STAGES}RUN --mount=type=c", "--mount=type=c", "--mount=type=cache,target="),
        (f"{_STAGES}RUN --mount=type=bind,from=t", "--mount=type=bind,from=t", "--mount=type=bind,from=tools"),
        (f"{_STAGES}RUN --network=n", "--network=n", "--network=none"),
        (f"{_STAGES}ONBUILD COPY --par", "--par", "--parents"),
        (f"{_STAGES}ONBUILD ENV", "ENV", "ENV"),
        (f"{_STAGES}HEALTHCHECK --retries=2 C", "C", "CMD"),
    ],
)
def test_dockerfiles(complete, text, fragment, word):
    """Options of the build, instructions, their flags, and the stages above."""
    fragments, words = complete(text)
    assert fragments == {fragment}
    assert word in words
    assert all(each.startswith(fragment) for each in words)


def test_a_target_may_be_below(notebook):
    """The stages of the whole cell can be the target, though the cursor is above them."""
    text = "%%dockerfile --target t\nFROM a AS tools\nFROM b AS other\n"
    with provisionalcompleter():
        found = list(notebook.shell.Completer.completions(text, len("%%dockerfile --target t")))
    assert [each.text for each in found] == ["tools"]


@pytest.mark.parametrize(
    "text",
    [
        "%%dockerfile -t x\nFROM debian\nRUN apt-get --fr",
        "%%dockerfile -t x\nFROM debian\nRUN a \\\n  CO",
        "%%dockerfile -t x\nFROM host",
        "%%dockerfile -t x\nFROM debian AS deb",
        "%%dockerfile --fil",
        "%%dockerfile -t x\nNOTHING --fr",
    ],
)
def test_what_is_no_dockerfiles_business(complete, text):
    """Commands, continued lines and what is refused are not completed by us."""
    words = complete(text)[1]
    assert not {"--from=", "COPY", "host", "debian", "--file"} & set(words)


@pytest.mark.parametrize("name", FLAGS)
def test_every_flag_is_one(name):
    """What is offered can be read."""
    values = {"checksum": "sha256:" + "0" * 64, "retries": "2", "mount": "type=tmpfs,target=/t", "security": "sandbox"}
    rests = {"ADD": "https://h/a /b", "COPY": "a /b", "FROM": "x", "HEALTHCHECK": "CMD a", "RUN": "a"}
    offered = dockerfile_words([], f"{name} --", list)[1]
    assert len(offered) == len([rule for rule in FLAGS[name] if not rule.refusal])
    for flag in offered:
        word, equals, _ = flag.removeprefix("--").partition("=")
        given = {"network": "none", "platform": "linux/amd64", "chmod": "644"}.get(word, values.get(word, "1s"))
        line = f"{name} --{word}{equals}{given if equals else ''} {rests[name]}"
        parse(line + "\n" if name == "FROM" else f"FROM x\n{line}\n")
