"""Write ``docs/reference.md`` from the table of verbs; with ``--check`` only say whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).with_name("reference.md")
_HEAD = "<!-- Written by docs/reference.py from nbcontainer/engine/verbs.py. Do not edit. -->\n\n"


def page() -> str:
    """The page as it should be."""
    from nbcontainer.cli import TERMINAL_VERBS
    from nbcontainer.engine.verbs import VERBS, reference_markdown

    return _HEAD + reference_markdown(TERMINAL_VERBS[len(VERBS) :]).rstrip("\n") + "\n"


def main(words: list[str]) -> int:
    """Write or check; 1 when the page is out of date."""
    text = page()
    current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    if words == ["--check"]:
        if current != text:
            print("docs/reference.md is out of date; run: python docs/reference.py", file=sys.stderr)
        return int(current != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
