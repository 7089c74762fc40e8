"""Maskery on one GPU: is it right, how fast is it, and what does it wait for?

    python benchmarks/gpu --out gpu.json             # make gpu: at most eight minutes
    python benchmarks/gpu --tiny --out gpu.json      # on a CPU, to see that it runs

It needs the project's tree with its tests, no network, `datasets`, `pyarrow` or `tyro`, and makes
its own data. A section that fails, or for which no time is left, says so, and the others go on.
The file is written after every figure, so that an end from outside loses none.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms ask for
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "benchmarks", "tests/models")]

import torch  # noqa: E402

from gpu import correct, speed  # noqa: E402
from gpu.parts import Report  # noqa: E402

# In the order of what is worth most, with the seconds that each may take.
SECTIONS = {
    "machine": (speed.machine, 5),
    "packed": (correct.packed_is_padded, 25),
    "resumed": (correct.resumed_is_unbroken, 30),
    "golden": (correct.golden_record, 20),
    "pictures": (correct.pictures_are_normalised, 5),
    "bert": (speed.bert_512, 80),
    "modernbert": (speed.modernbert_1024, 80),
    "compiled": (correct.compiled_is_eager, 60),
    "person_search": (speed.person_search, 60),
    "waits": (speed.host_waits, 20),
    "trainer": (speed.hugging_face_trainer, 40),
    "feeding": (speed.feeding, 20),
    "modernbert_8192": (speed.modernbert_8192, 80),
    "modernbert_512": (speed.modernbert_512, 60),
}


def forget() -> None:
    """Drop graphs and memory of the section before."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--seconds", type=float, default=420, help="after these none begins")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    report = Report(chosen.out, tiny=chosen.tiny)
    for name in chosen.only:
        section, needed = SECTIONS[name]
        if report.passed + needed > chosen.seconds + 60:
            report.say(name, "left out: no time")
            continue
        with report.guarded(name):
            section(report)
        forget()
    print(report)


if __name__ == "__main__":
    main()
