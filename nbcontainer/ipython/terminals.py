"""A terminal on a container, below a cell: shown by the notebook's server, asked for by a ticket.

The page decides, because only it knows what there is: a little script asks the server for the terminal and puts it into
the output. Where nobody answers (no server extension, another front end, a notebook that is read later) what was there
from the beginning stays: a sentence that says what to type in a terminal.
"""

from __future__ import annotations

import html
import os
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from nbcontainer.engine.tickets import Ticket, leave_ticket, ticket_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nbcontainer.engine.settings import Settings

__all__ = ["run_at_terminal", "show_terminal"]

_KEPT = ("HOME", "LANG", "PATH")
_KEPT_PREFIXES = ("LC_", "XDG_", "DOCKER_", "REGISTRY_", "NBCONTAINER_")

_PAGE = """\
<div id="nbcontainer-{name}"><p>{sentence}</p></div>
<script>
(() => {{
  const place = document.getElementById("nbcontainer-{name}");
  const data = document.getElementById("jupyter-config-data");
  const base = data ? JSON.parse(data.textContent).baseUrl : document.body.dataset.baseUrl;
  if (!place || !base) return;
  const address = new URL(`${{base}}nbcontainer/terminals/{name}`, location.href).href;
  fetch(address, {{ credentials: "same-origin" }}).then((answer) => {{
    if (!answer.ok || answer.redirected) return;
    const frame = document.createElement("iframe");
    frame.src = address;
    frame.title = {title};
    frame.style = "width: 100%; height: 26em; border: 0; resize: vertical; display: block";
    place.replaceChildren(frame);
  }}).catch(() => {{}});
}})();
</script>
"""


def show_terminal(words: Sequence[str], settings: Settings, environment: Mapping[str, str]) -> None:
    """Show a terminal with ``nbcontainer WORDS`` in it; `environment` has what the words refer to."""
    from IPython.display import display
    from jupyter_core.paths import jupyter_runtime_dir

    argv = (sys.executable, "-m", "nbcontainer", *words)
    ticket = Ticket(argv=argv, directory=os.getcwd(), environment={**_environment(settings), **environment})
    name = leave_ticket(ticket_folder(jupyter_runtime_dir()), ticket)
    line = shlex.join(("nbcontainer", *words))
    sentence = (
        f"for a terminal on the container, type <code>{html.escape(line)}</code> in one of this machine's"
        " (here it takes a notebook server that has nbcontainer installed beside it)"
    )
    plain = f"for a terminal on the container, type in one of this machine's: {line}"
    page = _PAGE.format(name=name, sentence=sentence, title=_script_text(line))
    shown: dict[str, Any] = {"text/plain": plain, "text/html": page}
    display(shown, raw=True)  # type: ignore[no-untyped-call,unused-ignore]


def run_at_terminal(words: Sequence[str], settings: Settings, environment: Mapping[str, str]) -> None:
    """The same where the person sits at a terminal already, that of IPython: lend it to the command line's door."""
    variables = {**os.environ, **_environment(settings), **environment}
    subprocess.run([sys.executable, "-m", "nbcontainer", *words], env=variables, check=False)


def _script_text(text: str) -> str:
    """Text as a literal of a script inside HTML: nothing in it can end either."""
    escaped = "".join(
        letter if letter.isalnum() or letter in " -_./:=" else f"\\u{{{ord(letter):x}}}" for letter in text
    )
    return f'"{escaped}"'


def _environment(settings: Settings) -> dict[str, str]:
    """What makes a command of the server's find what this kernel finds."""
    found = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    found["NBCONTAINER_ROOT"] = settings.root
    found["NBCONTAINER_MIRRORS"] = ";".join(f"{host}={','.join(bases)}" for host, bases in settings.mirrors.items())
    found["NBCONTAINER_INSECURE_REGISTRIES"] = ",".join(settings.insecure_registries)
    return found
