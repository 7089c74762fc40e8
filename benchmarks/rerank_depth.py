"""What ranking anew brings and costs: figures and seconds of a run's test split, by k.

    python benchmarks/rerank_depth.py runs/quickstart-person-search/run --k 0 4 16 64

Each k is a whole `maskery evaluate --rerank K` in this process, pictures read and encoded anew, in
turn; seconds are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from maskery.evaluation.retrieval.evaluate import RetrievalFigures
from maskery.runs.person_search.evaluate import Overrides, evaluate_retrieval_models


def figures_of(found: RetrievalFigures) -> dict[str, float]:
    """R@1 and mAP in percent, of the last ranking that there is."""
    ranking = found.reranked or found.contrastive
    return {"r1": round(100 * ranking.r1.value, 1), "map": round(100 * ranking.map.value, 1)}


def main() -> None:
    """Evaluate in turn and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--k", type=int, nargs="+", default=[0, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    seconds: dict[int, list[float]] = {k: [] for k in wanted.k}
    figures: dict[int, dict[str, float]] = {}
    for _ in range(wanted.rounds):
        for k in wanted.k:
            began = time.perf_counter()
            found = evaluate_retrieval_models([str(wanted.run)], overrides=Overrides(rerank=k))
            seconds[k].append(time.perf_counter() - began)
            (of_run,) = found.figures.values()
            figures[k] = figures_of(of_run)
    rows = [
        {"k": k, **figures[k], "seconds": round(statistics.median(seconds[k]), 2)} for k in wanted.k
    ]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
