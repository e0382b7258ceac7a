#!/usr/bin/env python3
"""Everything a developer runs: ``python3 dev.py demo`` and ``python3 dev.py test``, from a fresh clone.

Standard library only. The first use makes ``.venv`` beside this file with the interpreter that runs it and installs the
project there, editable; later ones notice when pyproject.toml or the interpreter has changed. pip is asked in the
ordinary way, so its own configuration and environment variables apply.

    python3 dev.py demo               run notebooks/00-demo.ipynb on the embedded host image, outputs shown as text
    python3 dev.py test [ARGUMENT…]   every check and every test; arguments go to pytest, for example -k store
    python3 dev.py check              the checks alone: lint, format, types, imports, docs
    python3 dev.py show NOTEBOOK      run a notebook and show its cells and outputs as text
    python3 dev.py save NOTEBOOK      run a notebook and keep the outputs in it
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
PYTHON = VENV / "bin" / "python"
DEMO = HERE / "notebooks" / "00-demo.ipynb"
OLDEST = (3, 10)
EXTRAS = {"demo": ("demo",), "test": ("demo", "test", "lint")}
CHECKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ruff check", ("-m", "ruff", "check", ".")),
    ("ruff format", ("-m", "ruff", "format", "--check", ".")),
    ("mypy", ("-m", "mypy")),
    ("import contract", ("-c", "from importlinter.cli import lint_imports_command as run; run()")),
    ("reference page", ("docs/reference.py", "--check")),
)


def main() -> int:
    """Carry out one task and answer its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("demo", "test", "check", "show", "save"))
    options, rest = parser.parse_known_args()
    os.chdir(HERE)
    if options.task == "demo":
        set_up("demo")
        return run(("dev.py", "show", str(DEMO)))
    if options.task == "test":
        set_up("test")
        return check_all((*CHECKS, ("pytest", ("-m", "pytest", *rest))))
    if options.task == "check":
        set_up("test")
        return check_all(CHECKS)
    if len(rest) != 1:
        parser.error(f"{options.task} takes one notebook")
    if not in_venv():
        set_up("demo")
        return run(("dev.py", options.task, rest[0]))
    return play(Path(rest[0]), keep=options.task == "save")


# --- setting up -------------------------------------------------------------------------------------------------------


def set_up(purpose: str) -> None:
    """Make the virtual environment and install the project with the extras of `purpose`, unless that is done."""
    if sys.version_info < OLDEST:
        sys.exit(f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed; this one is {sys.version.split()[0]}")
    if sys.platform != "linux":
        sys.exit(
            "Linux is needed: containers are made of its namespaces (on other systems, use a Linux virtual machine)"
        )
    wanted = fingerprint()
    stamp = VENV / "installed"
    lines = stamp.read_text(encoding="utf-8").split() if stamp.exists() and PYTHON.exists() else []
    made_by, extras = (lines[0], set(lines[1:])) if lines else ("", set())
    if made_by == wanted and set(EXTRAS[purpose]) <= extras:
        return
    extras = set(EXTRAS[purpose]) | (extras if made_by == wanted else set())
    if made_by != wanted:
        say(f"making {VENV.name} with Python {sys.version.split()[0]}")
        done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=False)
        if done.returncode:
            sys.exit("the virtual environment could not be made; on Debian and Ubuntu: apt install python3-venv")
    project = f".[{','.join(sorted(extras))}]"
    say(f"installing {project} (once)")
    if run(("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--editable", project)):
        sys.exit("pip could not install the project; its message is above")
    stamp.write_text("\n".join([wanted, *sorted(extras)]) + "\n", encoding="utf-8")


def fingerprint() -> str:
    """What the environment was made for: this interpreter and these requirements."""
    parts = (
        sys.version,
        os.path.realpath(sys.executable),
        str(HERE),
        Path("pyproject.toml").read_text(encoding="utf-8"),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def in_venv() -> bool:
    """Whether this very process runs in the environment."""
    return Path(sys.prefix).resolve() == VENV.resolve()


def run(arguments: Sequence[str]) -> int:
    """Run the environment's Python; its output goes where ours goes."""
    sys.stdout.flush()
    folder = str(VENV / "bin")
    environment = {
        **os.environ,
        "PATH": folder + os.pathsep + os.environ.get("PATH", os.defpath),
        "VIRTUAL_ENV": str(VENV),
    }
    environment.pop("PYTHONHOME", None)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return subprocess.run([str(PYTHON), *arguments], env=environment, cwd=HERE, check=False).returncode


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"── {text}", flush=True)


# --- checks -----------------------------------------------------------------------------------------------------------


def check_all(steps: Sequence[tuple[str, Sequence[str]]]) -> int:
    """Run every step, whatever the ones before said; 0 when all of them passed."""
    results = []
    for name, arguments in steps:
        say(name)
        began = time.monotonic()
        code = run(arguments)
        results.append((name, code, time.monotonic() - began))
    print()
    for name, code, seconds in results:
        print(f"{'passed' if code == 0 else f'FAILED ({code})':<12} {name:<16} {seconds:7.1f} s")
    return 0 if all(code == 0 for _, code, _ in results) else 1


# --- notebooks --------------------------------------------------------------------------------------------------------

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def play(path: Path, *, keep: bool) -> int:
    """Run a notebook from top to bottom, showing each cell as it is done; 1 when a cell failed that should not."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=300,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_start=lambda cell, cell_index: show_source(cell),  # noqa: ARG005 - nbclient passes both by name
        on_cell_executed=lambda cell, cell_index, execute_reply: show_outputs(cell),  # noqa: ARG005 - the same
    )
    try:
        client.execute()
    except CellExecutionError:
        print("\nThe notebook stopped at this cell.", file=sys.stderr)
        return 1
    if keep:
        for cell in notebook.cells:
            cell.get("metadata", {}).pop("execution", None)
            join_streams(cell)
        nbformat.write(notebook, path)
    return 0


def join_streams(cell: Any) -> None:
    """Make one output of neighbours that were written to the same stream: a page shows a box for each."""
    joined: list[Any] = []
    for output in cell.get("outputs", ()):
        before = joined[-1] if joined else None
        if before and output["output_type"] == before["output_type"] == "stream" and output["name"] == before["name"]:
            before["text"] += output["text"]
        else:
            joined.append(output)
    if "outputs" in cell:
        cell["outputs"] = joined


def show_source(cell: Any) -> None:
    """Print a cell as it is written."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print()
    for line in cell["source"].splitlines():
        if cell["cell_type"] == "code":
            print(f"  {bold}│ {line}{plain}")
        elif line.startswith("#"):
            print(f"{bold}{line.lstrip('# ')}{plain}")
        else:
            print("\n".join(textwrap.wrap(line, 100)))
    sys.stdout.flush()


def show_outputs(cell: Any) -> None:
    """Print what a cell put out, as text."""
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream":
            text = output["text"]
        elif output["output_type"] == "error":
            text = "\n".join(output["traceback"])
        else:
            text = output.get("data", {}).get("text/plain", "")
        print((text if sys.stdout.isatty() else _ESCAPES.sub("", text)).rstrip("\n"))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
