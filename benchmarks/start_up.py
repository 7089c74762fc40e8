"""How long commands take to get ready: heavy imports as they are, and as commands make them.

    python benchmarks/start_up.py --rounds 5

Each import has a process of its own, in turn; the figures are medians of seconds by the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

MODULES = (
    "maskery.runs.text.run",
    "maskery.runs.person_search.run",
    "maskery.evaluation.text.fill",
)
PLAIN = "import {module}"
QUICK = """
from maskery.core.system import quick_imports
with quick_imports():
    import {module}
"""


def seconds(code: str) -> float:
    """The time of a process that runs this code and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure in turn and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    figures = {}
    for module in MODULES:
        codes = {
            "torch and transformers": "import torch, transformers.modeling_utils",
            "plain": PLAIN.format(module=module),
            "quick": QUICK.format(module=module),
        }
        taken: dict[str, list[float]] = {name: [] for name in codes}
        for _ in range(rounds):
            for name, code in codes.items():
                taken[name].append(seconds(code))
        figures[module] = {
            name: round(statistics.median(values), 2) for name, values in taken.items()
        }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
