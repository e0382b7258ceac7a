"""Entry of a monitor: ``python -I -S …/engine/monitor/__main__.py FD ID``, FD being its connection to who asked.

Isolated and without site-packages of its own: it looks for modules where the one who asked found them. It forks at
once, so that it is nobody's child but the machine's, and leads a session in which nobody types Ctrl-C.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    if os.fork():
        os._exit(0)
    os.setsid()
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from nbcontainer.engine.monitor.process import main

    main(int(sys.argv[1]))
