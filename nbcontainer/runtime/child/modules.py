"""Loading, once, whatever a process will ever import.

After it has entered a user namespace the interpreter's own files may be out of reach (root's home is closed to
container root), and what lies at their paths may be a container's.
"""

from __future__ import annotations

import codecs
import importlib
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["load"]


def load(names: Iterable[str] = ()) -> None:
    """Import these modules, and take away the means to import more."""
    for codec in ("ascii", "latin-1", "utf-8"):
        codecs.lookup(codec)
    for name in names:
        importlib.import_module(name)
    sys.meta_path.clear()
