"""Entry of the launcher: ``python -I -S …/runtime/child/__main__.py FD``, FD being its connection to the engine.

(A second number is what a launcher in its second life remembers of the first.)

Isolated and without site-packages: a user's path settings, customisations and environment do not reach it.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from nbcontainer.runtime.child import launcher

    launcher.main(*(int(each) for each in sys.argv[1:]))
