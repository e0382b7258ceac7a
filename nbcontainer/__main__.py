"""``python -m nbcontainer VERB …``: the same as ``nbcontainer VERB …``."""

from __future__ import annotations

import sys

from nbcontainer.cli import main

sys.exit(main())
