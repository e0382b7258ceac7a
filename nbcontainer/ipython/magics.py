"""``%container``, ``%%container``, ``%%dockerfile``: the thin class IPython holds; `session` has what they do.

Kept small because it is imported by ``%load_ext``: the traits must exist for ``%config ContainerMagics`` and for
``c.ContainerMagics…`` in a configuration file, everything else waits for the first use.
"""

from __future__ import annotations

from typing import Any

from IPython.core.magic import Magics, cell_magic, line_cell_magic, magics_class, needs_local_scope, no_var_expand
from traitlets import Dict, Enum, Float, Int, List, Unicode

__all__ = ["ContainerMagics"]


@magics_class
class ContainerMagics(Magics):
    """Run cells in copy-on-write containers. An unset trait leaves the environment variable or the default in force."""

    root = Unicode("", help="Folder of all state: images, layers, containers. Else NBCONTAINER_ROOT.").tag(config=True)
    default_image = Unicode("host", help="The image of a %%container line that names none.").tag(config=True)
    network = Unicode(
        "", help="The network of containers that ask for none. Else NBCONTAINER_NETWORK, or bridge where it can be."
    ).tag(config=True)
    mirrors = Dict(help="Registry host to the base, or list of bases, tried before it. Else NBCONTAINER_MIRRORS.").tag(
        config=True
    )
    insecure_registries = List(
        Unicode(), help="Registries that may be reached over plain http. Else NBCONTAINER_INSECURE_REGISTRIES."
    ).tag(config=True)
    interrupt_grace = Float(
        None, allow_none=True, help="Seconds between the interrupt of a cell and the end of all its processes."
    ).tag(config=True)
    output_limit = Int(10_000_000, min=0, help="Bytes of each stream shown below a cell; 0 is no limit.").tag(
        config=True
    )
    progress = Enum(
        ["auto", "widgets", "html", "text", "none"], "auto", help="How a pull is shown; auto suits the front end."
    ).tag(config=True)

    @no_var_expand
    @needs_local_scope
    @line_cell_magic
    def container(self, line: str, cell: str | None = None, local_ns: dict[str, Any] | None = None) -> object:
        """Run the cell, or a verb, in containers."""
        from nbcontainer.ipython.session import run_magic

        return run_magic(self, line, cell, local_ns or {})

    @no_var_expand
    @needs_local_scope
    @cell_magic
    def dockerfile(self, line: str, cell: str, local_ns: dict[str, Any] | None = None) -> object:
        """Build an image of the cell."""
        from nbcontainer.ipython.session import run_magic

        return run_magic(self, line, cell, local_ns or {}, builds=True)


def _help() -> str:
    """What ``%container?`` shows: made from the verb table when somebody asks."""
    from nbcontainer.engine.command_line import verb_help
    from nbcontainer.engine.verbs import RUN, VERBS, overview

    return f"{overview('notebook', VERBS)}\n\n\n{verb_help(RUN, 'notebook')}"


def _dockerfile_help() -> str:
    """What ``%%dockerfile?`` shows."""
    from nbcontainer.engine.command_line import verb_help
    from nbcontainer.engine.verbs import VERBS, find_verb

    cell = "%%dockerfile [OPTIONS] [PATH]      the cell is the Dockerfile"
    return f"{cell}\n\n\n{verb_help(find_verb('build', VERBS, 'notebook'), 'notebook')}"


# IPython asks an object for `getdoc` before it looks at its docstring (IPython.core.oinspect.getdoc).
ContainerMagics.container.getdoc = _help  # type: ignore[union-attr]
ContainerMagics.dockerfile.getdoc = _dockerfile_help  # type: ignore[union-attr]
