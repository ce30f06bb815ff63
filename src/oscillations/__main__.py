import sys

from oscillations.cli import main

sys.exit(main())
