"""Runs the CLI as soon as another process has begun to: meet.py FOLDER ARGUMENTS...

Whoever comes leaves a file in the folder; who is alone for two minutes fails.
"""

import os
import sys
import time
from pathlib import Path

from oscillations.cli import main

folder, deadline = Path(sys.argv[1]), time.monotonic() + 120
folder.mkdir(exist_ok=True)
(folder / str(os.getpid())).touch()
while len(list(folder.iterdir())) < 2:
    if time.monotonic() > deadline:
        sys.exit("no other job runs beside this one")
    time.sleep(0.05)
sys.exit(main(sys.argv[2:]))
