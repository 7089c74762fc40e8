"""Try many thousands of bad files on everything that Maskery reads.

    python benchmarks/soak.py
    python benchmarks/soak.py --cases 100000 --seed 7 --targets text pairs

A case is read, or refused in one line; a traceback, a message of several lines, more than two
seconds of processor time or a gigabyte of memory is a failure, printed with the smallest case that
shows it. The same seed tries the same cases. Exits with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "support")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from fuzz_targets import TARGETS, Target  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

# More than this in one case is a failure; far more ends the case, rather than the machine.
MEMORY, MOST = 1 << 30, 6 << 30


def peak() -> int:
    """The most bytes of memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def soak(name: str, target: Target, cases: int, number: int) -> dict[str, Any]:
    """Try one target; counts, and the failures with their smallest cases."""
    outcomes: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
        report_multiple_bugs=True,
    )
    @given(case=target.cases)
    def attempt(case: object) -> None:
        before = peak()
        outcomes["read" if target.attempt(case) else "refused"] += 1
        assert peak() - before < MEMORY, f"{peak() - before:,} bytes of memory"

    began, failures = time.process_time(), []
    try:
        attempt()
    except BaseExceptionGroup as group:
        failures = [describe(name, error) for error in group.exceptions]
    except Exception as error:
        failures = [describe(name, error)]
    return {
        "cases": outcomes.total() + len(failures),
        "read": outcomes["read"],
        "refused": outcomes["refused"],
        "processor_seconds": round(time.process_time() - began, 1),
        "failures": failures,
    }


def describe(name: str, error: BaseException) -> str:
    """A failure with what shows it again."""
    case = "\n".join(getattr(error, "__notes__", []))
    return f"{name}\n{case}\n{''.join(traceback.format_exception(error))}"


def main() -> int:
    """Share the cases among the targets and print what came out as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="over all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", choices=sorted(TARGETS), default=sorted(TARGETS))
    arguments = parser.parse_args()
    # As in the tests: a warning nobody expects is a fault.
    warnings.simplefilter("error")
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
    shares = sum(TARGETS[name].share for name in arguments.targets)
    figures = {}
    for name in arguments.targets:
        cases = -(-arguments.cases * TARGETS[name].share // shares)
        figures[name] = soak(name, TARGETS[name], cases, arguments.seed)
        counts = {k: v for k, v in figures[name].items() if k != "failures"}
        print(f"{name}: {json.dumps(counts)}", file=sys.stderr, flush=True)
        for failure in figures[name]["failures"]:
            print(f"\nFAILED {failure}", file=sys.stderr, flush=True)
    total = sum(figure["cases"] for figure in figures.values())
    failed = sum(len(figure["failures"]) for figure in figures.values())
    for figure in figures.values():
        figure["failures"] = len(figure["failures"])
    report = {"seed": arguments.seed, "cases": total, "failures": failed, "targets": figures}
    print(json.dumps(report, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
