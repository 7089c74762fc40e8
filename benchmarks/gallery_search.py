"""The contrastive stage of a search over a million feature vectors: time and recall.

    python benchmarks/gallery_search.py
    python benchmarks/gallery_search.py --usearch             # beside USearch's exact scan
    python benchmarks/gallery_search.py --count 100000 --graph    # beside its HNSW graph
    python benchmarks/gallery_search.py --count 100000 --run RUN --picture FILE    # whole searches

Vectors of unit length are generated around centres, as features of persons lie around their
persons; queries are drawn around the same centres. They are written as float16 to a file, which is
memory-mapped and scanned as `maskery search` does. Recall is the share of the true ten nearest, by
float32 products of the vectors before they were rounded, that is found.

With a run, whole searches are timed as well, among as many vectors of its width, the index open: by
words, by the picture, and by both, the model's passes over the query and reading the picture
included. `processor_ms` is the time that all threads computed together, which other programs on the
machine hardly change.

Shapes: I vectors, E features, Q queries.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskery.evaluation.retrieval.search import Changes, Gallery, nearest, search
from maskery.runs.person_search.evaluate import open_for_retrieval

CENTRES, SPREAD, BLOCK = 50_000, 0.7, 50_000
TOP, CALLS = 10, 21


def draw(generator: np.random.Generator, centres: np.ndarray, count: int) -> np.ndarray:
    """(count, E) float32 of unit length, each near a centre."""
    rows = centres[generator.integers(0, len(centres), count)]
    noise = generator.standard_normal(rows.shape, dtype=np.float32)
    drawn = rows + SPREAD * noise
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def generate(path: Path, count: int, width: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Write the vectors; returns the queries (Q, E) and their true nearest (Q, TOP)."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((CENTRES, width), dtype=np.float32)
    asked = draw(generator, centres, queries)
    matrix = np.lib.format.open_memmap(path, "w+", np.float16, (count, width))
    best = np.full((queries, TOP), -np.inf, np.float32)
    indices = np.zeros((queries, TOP), np.int64)
    for first in range(0, count, BLOCK):
        rows = draw(generator, centres, min(BLOCK, count - first))
        matrix[first : first + len(rows)] = rows
        products = np.concatenate((best, asked @ rows.T), axis=1)
        numbers = np.concatenate(
            (indices, np.broadcast_to(np.arange(len(rows)) + first, (queries, len(rows)))), axis=1
        )
        order = np.argpartition(-products, TOP, axis=1)[:, :TOP]
        best = np.take_along_axis(products, order, 1)
        indices = np.take_along_axis(numbers, order, 1)
    matrix.flush()
    return asked, indices


def timed(action: Callable[[int], Any], count: int) -> list[tuple[float, float]]:
    """Milliseconds of each of some calls, on the clock and of the processor."""
    taken = []
    for number in range(count):
        started, used = time.perf_counter(), time.process_time()
        action(number)
        ended = time.perf_counter() - started, time.process_time() - used
        taken.append((1000 * ended[0], 1000 * ended[1]))
    return taken


def summary(taken: list[tuple[float, float]]) -> dict[str, float]:
    """The first call, the median and the slowest of the others."""
    later, used = ([one[kind] for one in taken[1:]] for kind in (0, 1))
    return {
        "first_ms": round(taken[0][0], 1),
        "median_ms": round(statistics.median(later), 1),
        "slowest_ms": round(max(later), 1),
        "processor_ms": round(statistics.median(used), 1),
    }


def measure_searches(run: str, picture: Path, count: int, queries: int) -> dict[str, Any]:
    """Whole searches with a run's model among vectors of its width, in one thread."""
    torch.set_num_threads(1)
    opened = open_for_retrieval(run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        generate(path, count, int(opened.model.config.embed_dim), queries)
        gallery = Gallery(
            folder=Path(folder),
            matrix=np.load(path, mmap_mode="c"),
            paths=[f"{number}.jpg" for number in range(count)],
            changes=Changes(read=0, encoded=0, removed=0),
            troubles=[],
        )
        words, asked = "a woman in a red coat", {"words": {}, "picture": {"like": picture}}
        asked["both"] = asked["picture"]
        return {
            kind: summary(
                timed(
                    lambda _, kind=kind, how=how: search(
                        opened, gallery, () if kind == "picture" else words, rerank=0, **how
                    ),
                    CALLS,
                )
            )
            for kind, how in asked.items()
        }


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """The share of the true nearest that is found."""
    return float(np.mean([len(set(f) & set(t)) / TOP for f, t in zip(found, true, strict=True)]))


def measure(count: int, width: int, queries: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One size of gallery."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.npy"
        asked, true = generate(path, count, width, queries)
        matrix = np.load(path, mmap_mode="c")
        row: dict[str, Any] = {"vectors": count, "width": width}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = timed(lambda i: nearest(matrix, asked[i], TOP), CALLS)
            row[f"maskery_{threads}_threads"] = summary(times)
        found = np.stack([nearest(matrix, query, TOP)[0] for query in asked])
        row["maskery_recall"] = recall(found, true)
        if arguments.usearch:
            row |= measure_usearch(matrix, asked, true)
        if arguments.graph:
            row["hnsw"] = measure_graph(matrix, asked, true)
    return row


def measure_usearch(matrix: np.ndarray, asked: np.ndarray, true: np.ndarray) -> dict[str, Any]:
    """USearch's exact scan of the same matrix."""
    from usearch.index import search

    half = asked.astype(np.float16)
    row: dict[str, Any] = {}
    for threads in (1, 2):
        times = timed(
            lambda i, t=threads: search(matrix, half[i], TOP, "ip", exact=True, threads=t), CALLS
        )
        row[f"usearch_{threads}_threads"] = summary(times)
    found = [search(matrix, query, TOP, "ip", exact=True).keys.astype(int) for query in half]
    row["usearch_recall"] = recall(np.stack(found), true)
    return row


def measure_graph(matrix: np.ndarray, asked: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """USearch's own graph on the same vectors: time to build, time to ask, recall."""
    from usearch.index import Index

    index = Index(ndim=matrix.shape[1], metric="ip", dtype="f16")
    started = time.perf_counter()
    index.add(np.arange(len(matrix)), matrix)
    built = time.perf_counter() - started
    rows = []
    for expansion in (64, 256, 1024):
        index.expansion_search = expansion
        times = timed(lambda i: index.search(asked[i], TOP), CALLS)
        found = np.asarray(index.search(asked, TOP).keys).astype(np.int64)
        rows.append(
            {
                "build_s": round(built, 1),
                "expansion": expansion,
                **summary(times),
                "recall": recall(found, true),
            }
        )
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, nargs="+", default=[256])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--usearch", action="store_true", help="USearch's exact scan too")
    parser.add_argument("--graph", action="store_true", help="build USearch's graph too")
    parser.add_argument("--run", help="a run or model whose whole searches are timed")
    parser.add_argument("--picture", type=Path, help="a picture to search by, with --run")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [
        measure(arguments.count, width, arguments.queries, arguments) for width in arguments.width
    ]
    if arguments.run:
        whole = measure_searches(arguments.run, arguments.picture, arguments.count, 1)
        rows.append({"vectors": arguments.count, **whole})
    print(json.dumps(rows, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
