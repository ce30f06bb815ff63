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
if sys.getprofile() or sys.gettrace():  # whoever watches wants to be told of the end
    sys.exit(code)
try:
    sys.stdout.flush()
    sys.stderr.flush()
except OSError:
    sys.exit(code)
atexit._run_exitfuncs()
os._exit(code)
