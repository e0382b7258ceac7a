"""How long tests wait for what should happen: ten times longer with NBCONTAINER_TEST_PATIENCE=10, on a slow machine.

It is for waiting that ends when the thing has happened, and for claims that something is over "at once": on a machine
that is emulated, nothing is.
"""

from __future__ import annotations

import os

__all__ = ["patient"]

_FACTOR = float(os.environ.get("NBCONTAINER_TEST_PATIENCE") or 1)


def patient(seconds: float) -> float:
    """So many seconds, times the patience asked for."""
    return seconds * _FACTOR
