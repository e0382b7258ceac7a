"""That the house stands: what holds for every module, whoever wrote it and whenever."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nbcontainer

HOUSE = Path(nbcontainer.__file__).parent
CHECKOUT = Path(__file__).parents[1]
MODULES = sorted(path for path in HOUSE.rglob("*.py") if "__pycache__" not in path.parts)


def named(path: Path) -> str:
    """Return a module's dotted name."""
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {named(path): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def declared(tree: ast.Module) -> list[str] | None:
    """Return a module's ``__all__``, or None when it has none."""
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert isinstance(node.value, ast.List | ast.Tuple), "__all__ is written out"
            return [ast.literal_eval(each) for each in node.value.elts]
    return None


def bound(tree: ast.Module) -> set[str]:
    """Return every name that a module binds at its top, also below ``if`` and ``try``."""
    names: set[str] = set()
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.If | ast.Try):
            waiting += [each for each in ast.iter_child_nodes(node) if isinstance(each, ast.stmt)]
    return names


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if tree.body])
def test_module_opens_with_what_it_is(name: str) -> None:
    """Every module that holds anything has an opening docstring, whose first paragraph is a sentence."""
    docstring = ast.get_docstring(TREES[name])
    assert docstring
    assert docstring.split("\n\n")[0].rstrip().endswith((".", ":", "!", "?"))


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if declared(tree) is not None])
def test_all_is_true(name: str) -> None:
    """What `__all__` declares exists (or is given lazily), once, and nothing in it is private."""
    tree = TREES[name]
    names = declared(tree) or []
    assert len(names) == len(set(names))
    assert not [each for each in names if each.startswith("_") and each != "__version__"]
    if "__getattr__" not in bound(tree):
        assert set(names) <= bound(tree)


def borrowed() -> list[tuple[str, str, str]]:
    """Return (who, whose module, name) for every function or class taken from another package of the house."""
    found = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbcontainer."):
                source = node.module or ""
                if source.split(".")[1] != [*name.split("."), ""][1]:
                    found += [(name, source, alias.name) for alias in node.names]
    return found


def test_packages_use_what_others_declare() -> None:
    """Across packages only declared names are used: `__all__` is the whole truth about what may not change lightly.

    Constants (the kernel's numbers, mostly) and modules may be taken as they are.
    """
    wrong = [
        f"{who} takes {name} from {source}"
        for who, source, name in borrowed()
        if source in TREES
        and f"{source}.{name}" not in TREES
        and not name.isupper()
        and (names := declared(TREES[source])) is not None
        and name not in names
    ]
    assert wrong == []


def test_nothing_private_crosses_a_module() -> None:
    """No module takes an underscored name from another."""
    assert [each for each in borrowed() if each[2].startswith("_") and f"{each[1]}.{each[2]}" not in TREES] == []


FORBIDDEN = {
    "notes to oneself": ("TODO", "FIXME", "XXX", "HACK"),
    "a developer's machine": ('"/work/', " /work/", "/Users/", "/root/.", "/home/runner"),
    "debugging": ("breakpoint()", "pdb.set_trace", "import pdb", "import ipdb"),
    "a shell between us and a command": ("shell=True", "os.system(", "os.popen("),
    "Python between fork and exec in a threaded process": ("preexec_fn",),
    "silence": ("except Exception: pass", "except: pass"),
    "code that travels in data": ("pickle.load", "marshal.load", "yaml.load(", "extractall("),
}


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_no_forbidden_words(path: Path) -> None:
    """No module holds what does not belong in a product, or in this one."""
    text = path.read_text(encoding="utf-8")
    found = [f"{word} ({kind})" for kind, words in FORBIDDEN.items() for word in words if word in text]
    assert found == []


MAY_FORK = (
    "nbcontainer._linux.",
    "nbcontainer.runtime.child",
    "nbcontainer.engine.monitor.__main__",
    "nbcontainer.network.below",
    "nbcontainer.network.keeper",
    "nbcontainer.network.links",
)


@pytest.mark.parametrize("name", [name for name in TREES if not name.startswith(MAY_FORK)])
def test_only_single_threaded_children_fork(name: str) -> None:
    """A notebook kernel has a dozen threads: it never forks into Python and never unshares; our children may."""
    calls = [node.func for node in ast.walk(TREES[name]) if isinstance(node, ast.Call)]
    names = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
    assert not {"fork", "forkpty", "unshare", "clone_into", "setns"} & set(names)


HEAVY = (
    "ipywidgets", "pyroute2", "requests", "pyseccomp", "isal", "zstandard", "IPython", "asyncio",
    "nbcontainer.dockerfile", "nbcontainer.build.executor",
)  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """Return which of the heavy packages are loaded after `code` has run in a fresh interpreter."""
    report = f"{code}; import sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True, cwd=HOUSE.parent)
    return set(done.stdout.split())


def test_import_is_light() -> None:
    """`import nbcontainer` loads nothing that is not needed to find out that one does not need it."""
    assert loaded_by("import nbcontainer") == set()


@pytest.mark.skipif("nbcontainer.ipython.extension" not in TREES, reason="there is no extension module")
def test_extension_is_light() -> None:
    """`%load_ext nbcontainer` is instant: widgets, network and registry are loaded by what uses them."""
    assert not loaded_by("import nbcontainer.ipython.extension") & {"ipywidgets", "pyroute2", "requests", "pyseccomp"}


def test_the_builder_is_loaded_by_builds() -> None:
    """Neither a first cell nor a first command waits for what reads and builds Dockerfiles."""
    doors = "import nbcontainer.cli, nbcontainer.ipython.session, nbcontainer.engine.engine"
    assert not loaded_by(doors) & {"nbcontainer.dockerfile", "nbcontainer.build.executor"}


def test_container_child_is_light() -> None:
    """What runs in front of every container is the standard library and bedrock."""
    assert loaded_by("import nbcontainer.runtime.child, nbcontainer._linux.features") == set()


def test_package_is_typed() -> None:
    """What pyproject says of types is true for those who install the package: PEP 561's marker is in it."""
    assert (HOUSE / "py.typed").is_file()


def requirements(lines: list[str]) -> dict[str, str]:
    """Return the least version of each distribution named in requirement lines."""
    found = (re.match(r"([\w.-]+)\s*>=\s*([\d.]+)", line) for line in lines)
    return {each[1]: each[2] for each in found if each}


def test_conda_environment_agrees_with_pyproject() -> None:
    """environment.yml has everything a user of notebooks needs, with the same bounds, in a form that pip accepts."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    whole = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    project = whole["project"]
    wanted = requirements(
        [*project["dependencies"], *project["optional-dependencies"]["demo"], *whole["build-system"]["requires"]]
    )
    wanted["python"] = project["requires-python"].removeprefix(">=")
    wanted["python-isal"] = wanted.pop("isal")  # its name on conda-forge
    text = (CHECKOUT / "environment.yml").read_text(encoding="utf-8")
    conda, _, pip = text.partition("- pip:\n")
    entries = [line.strip().removeprefix("- ") for line in (conda + pip).splitlines()]
    offered = requirements(entries)
    assert {name: offered.get(name) for name in wanted} == wanted
    # a requirements file knows no other option of "pip install" on such a line
    options = [entry for entry in entries if entry.startswith("-")]
    assert options == ["--editable ."]


def test_wheel_carries_the_settings() -> None:
    """What pyproject hands to the wheel from outside the package exists."""
    tomllib = pytest.importorskip("tomllib")
    whole = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))
    shared = whole["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared == {
        "jupyter-config/ipython": "etc/ipython",
        "jupyter-config/server": "etc/jupyter/jupyter_server_config.d",
    }
    assert [path.name for path in (CHECKOUT / "jupyter-config/ipython").glob("*.py")] == ["nbcontainer_config.py"]
    (server,) = (CHECKOUT / "jupyter-config/server").iterdir()
    enabled = json.loads(server.read_text(encoding="utf-8"))["ServerApp"]["jpserver_extensions"]
    assert enabled == {"nbcontainer.jupyter": True}
    assert "nbcontainer.jupyter" in TREES
