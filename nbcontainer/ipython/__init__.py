"""The notebook's door: ``%load_ext nbcontainer``, then ``%%container debian``. Importing this registers nothing."""

from __future__ import annotations

from nbcontainer.ipython.extension import load_ipython_extension, unload_ipython_extension

__all__ = ["load_ipython_extension", "unload_ipython_extension"]
