"""Seconds to rank a whole test split both ways, features given, beside a plain loop.

    python benchmarks/retrieval_figures.py                         # the size of CUHK-PEDES
    python benchmarks/retrieval_figures.py --images 600 --texts 1200

Features of unit length lie around their persons. Timed are the similarities, the ten best pictures
of each caption, and R@1, R@5, R@10, mAP and mINP of captions finding pictures and of pictures
finding captions, with intervals, as `maskery evaluate` computes them. `processor_s` is the time
that all threads computed together, which other programs on the machine hardly change. The loop
sorts one row at a time and follows the definitions; its figures must be the same.

Shapes: T captions, I pictures, E features.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch

from maskery.evaluation.retrieval.metrics import FIGURES, best, retrieval_figures

ROUNDS = 7


def draw(persons: torch.Tensor, width: int, generator: torch.Generator) -> torch.Tensor:
    """(N, E) of unit length, each near its person's."""
    centres = torch.randn(int(persons.max()) + 1, width, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(len(persons), width, generator=generator)
    return torch.nn.functional.normalize(centres[persons] + 2 * noise, dim=1)


def plain(scores: np.ndarray, described: np.ndarray, shown: np.ndarray) -> list[float]:
    """The five figures by a loop over rows."""
    rows = []
    for row, person in zip(scores, described, strict=True):
        right = shown[np.argsort(-row, kind="stable")] == person
        ranks = np.flatnonzero(right) + 1
        precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
        found = [float(ranks[0] <= cutoff) for cutoff in (1, 5, 10)]
        rows.append([*found, precision, len(ranks) / ranks[-1]])
    return np.mean(rows, axis=0).tolist()


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=3074)
    parser.add_argument("--texts", type=int, default=6156)
    parser.add_argument("--persons", type=int, default=1000)
    parser.add_argument("--width", type=int, default=256)
    wanted = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    described, shown = (torch.arange(n) % wanted.persons for n in (wanted.texts, wanted.images))
    texts, images = (draw(persons, wanted.width, generator) for persons in (described, shown))

    def measured() -> list[list[float]]:
        scores = texts @ images.T
        best(scores, 10)
        found = retrieval_figures(scores, described, shown)
        back = retrieval_figures(scores.T, shown, described)
        return [[getattr(one, name).value for name in FIGURES] for one in (found, back)]

    seconds, computed = [], []
    for _ in range(ROUNDS):
        began, used = time.perf_counter(), time.process_time()
        figures = measured()
        seconds.append(time.perf_counter() - began)
        computed.append(time.process_time() - used)
    scores = (texts @ images.T).numpy()
    began = time.process_time()
    loop = [plain(scores, described.numpy(), shown.numpy())]
    loop.append(plain(scores.T, shown.numpy(), described.numpy()))
    took = time.process_time() - began
    np.testing.assert_allclose(figures, loop, rtol=1e-12)
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "first_s": round(seconds[0], 2),
                "median_s": round(statistics.median(seconds), 2),
                "slowest_s": round(max(seconds), 2),
                "processor_s": round(statistics.median(computed), 2),
                "plain_loop_processor_s": round(took, 2),
                "captions_to_pictures": dict(zip(FIGURES, loop[0], strict=True)),
                "pictures_to_captions": dict(zip(FIGURES, loop[1], strict=True)),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
