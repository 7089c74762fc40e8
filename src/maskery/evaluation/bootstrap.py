"""Bootstrap intervals of ratios over examples (Efron and Tibshirani, chapter 13: percentiles).

Shapes: N examples, K quantities.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
ELEMENTS = 4_000_000


class Interval(NamedTuple):
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


def bootstrap(
    numerators: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Interval]:
    """`sum(numerators) / sum(weights)` with intervals, resampling whole examples.

    Tokens of one example are not independent; examples are taken to be.

    Args:
        numerators: (N, K).
        weights: (N,), the tokens of each example.
        seed: Of the resampling.
        resamples: How many.

    Returns:
        K intervals.
    """
    table = np.column_stack((numerators, weights))
    num = len(table)
    totals = table.sum(axis=0)
    generator = np.random.default_rng(seed)
    chances = np.full(num, 1.0 / num)
    sums = []
    done = 0
    while done < resamples:
        block = min(resamples - done, max(1, ELEMENTS // num))
        sums.append(generator.multinomial(num, chances, size=block) @ table)
        done += block
    drawn = np.concatenate(sums)
    # A resample without a single masked token says nothing.
    drawn = drawn[drawn[:, -1] > 0]
    ratios = drawn[:, :-1] / drawn[:, -1:]
    low, high = np.percentile(ratios, (2.5, 97.5), axis=0)
    values = totals[:-1] / totals[-1]
    return [
        Interval(float(v), float(lo), float(hi))
        for v, lo, hi in zip(values, low, high, strict=True)
    ]
