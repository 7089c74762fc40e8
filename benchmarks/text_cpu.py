"""Maskery beside the seed document's loop and HF's recipe, interleaved in one run on this machine.

    python benchmarks/text_cpu.py meditations.txt --rounds 3 --tokens 4096
    python benchmarks/text_cpu.py meditations.txt --contenders maskery seed --dropout none

The flags are those of `maskery bench`, which this is; it stands here so that `benchmarks/` holds
every measurement that the documentation quotes.
"""

from __future__ import annotations

import sys

from maskery.cli.bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
