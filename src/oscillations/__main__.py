"""``python -m oscillations``: a process that lives for one command, most of them short.

A tenth of a second of each would go to looking for garbage among what the imports make, a third to taking torch apart.
"""

import atexit
import gc
import os
import sys

from oscillations.cli import main

gc.set_threshold(20_000)  # new objects until the next look; torch alone makes hundreds of thousands
code = main()
monitoring = getattr(sys, "monitoring", None)  # what profilers use from Python 3.12 on
if sys.getprofile() or sys.gettrace() or (monitoring and any(map(monitoring.get_tool, range(6)))):
    sys.exit(code)  # whoever watches wants to be told of the end
atexit._run_exitfuncs()
try:
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed from the start
        stream.flush()
except OSError:
    sys.exit(code)
os._exit(code)
