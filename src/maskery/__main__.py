"""`python -m maskery`, and so `torchrun -m maskery`: the command line."""

import sys

from maskery.cli.main import main

sys.exit(main())
