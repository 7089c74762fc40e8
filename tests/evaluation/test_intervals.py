"""Intervals against closed formulas and against how often they hold the true value."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from maskery.evaluation.intervals import LEAST_EXAMPLES, Kind, ratio_interval

Floats = npt.NDArray[np.float64]


def test_equal_examples_give_student_interval_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 40)
    interval = ratio_interval(values, np.ones(40))
    low, high = stats.t.interval(0.95, 39, values.mean(), stats.sem(values))
    assert interval == pytest.approx((values.mean(), low, high))


def test_unequal_examples_give_the_formula_of_bell_and_mccaffrey() -> None:
    """Written out with matrices: residual maker, its working covariance, Satterthwaite."""
    generator = np.random.default_rng(1)
    weights = generator.integers(1, 40, 12).astype(float)
    sums = generator.gamma(weights, 2.0)
    total = weights.sum()
    maker = np.eye(12) - np.outer(weights, np.ones(12)) / total
    adjusted = np.diag(1 / np.sqrt(1 - weights / total))
    residuals = adjusted @ maker @ sums
    working = adjusted @ maker @ np.diag(weights) @ maker.T @ adjusted
    freedom = np.trace(working) ** 2 / (working**2).sum()
    half = stats.t.ppf(0.975, freedom) * np.linalg.norm(residuals) / total
    value = sums.sum() / total
    interval = ratio_interval(sums, weights)
    assert interval == pytest.approx((value, value - half, value + half))


@pytest.mark.parametrize("hits", [0, 3, 20])
def test_a_share_of_equal_examples_is_wilson_with_student_quantile(hits: int) -> None:
    values = np.zeros(20)
    values[:hits] = 1.0
    interval = ratio_interval(values, np.ones(20), "share")
    # The variance of a mean divides by n - 1, so the effective sample is 19 where there is one.
    size, q, p = (19 if 0 < hits < 20 else 20), stats.t.ppf(0.975, 19), hits / 20
    middle = (p + q * q / (2 * size)) / (1 + q * q / size)
    half = q * math.sqrt(p * (1 - p) / size + q * q / (4 * size**2)) / (1 + q * q / size)
    assert interval.low == pytest.approx(middle - half, abs=1e-12)
    assert interval.high == pytest.approx(middle + half)
    assert 0.0 <= interval.low <= p <= interval.high <= 1.0 + 1e-12


def test_too_few_examples_have_no_interval() -> None:
    few = ratio_interval(np.ones(LEAST_EXAMPLES - 1), np.full(LEAST_EXAMPLES - 1, 2.0))
    assert few.value == 0.5
    assert not few.known
    # Examples without a token do not make them more.
    weights = np.r_[np.full(LEAST_EXAMPLES - 1, 2.0), 0.0]
    assert not ratio_interval(np.r_[np.ones(LEAST_EXAMPLES - 1), 0.0], weights).known
    assert ratio_interval(np.ones(LEAST_EXAMPLES), np.full(LEAST_EXAMPLES, 2.0)).known


def test_no_change_among_few_is_no_proof() -> None:
    interval = ratio_interval(np.zeros(10), np.ones(10), "difference of shares")
    assert interval.value == 0.0
    assert interval.low < -0.1
    assert interval.high > 0.1


def _losses(generator: np.random.Generator, size: int) -> tuple[Floats, Floats, float]:
    tokens = 1.0 + generator.poisson(np.exp(generator.normal(2.6, 0.7, size)))
    mean = 5.0 * np.exp(generator.normal(0.0, 0.15, size))
    return generator.gamma(tokens, mean), tokens, 5.0 * math.exp(0.15**2 / 2)


def _hits(generator: np.random.Generator, size: int) -> tuple[Floats, Floats, float]:
    tokens = 1 + generator.poisson(np.exp(generator.normal(2.6, 0.7, size)))
    chances = generator.beta(2.0, 13.0, size)
    return generator.binomial(tokens, chances).astype(float), tokens.astype(float), 2 / 15


def _changes(generator: np.random.Generator, size: int) -> tuple[Floats, Floats, float]:
    change = generator.choice([-1.0, 0.0, 1.0], size, p=[0.05, 0.75, 0.2])
    return change, np.ones(size), 0.15


@pytest.mark.parametrize("size", [8, 13, 26, 100])
@pytest.mark.parametrize(
    ("draw", "kind"),
    [(_losses, "mean"), (_hits, "share"), (_changes, "difference of shares")],
)
def test_coverage(
    draw: Callable[[np.random.Generator, int], tuple[Floats, Floats, float]],
    kind: Kind,
    size: int,
) -> None:
    generator = np.random.default_rng(size)
    held = 0
    for _ in range(1000):
        sums, tokens, truth = draw(generator, size)
        interval = ratio_interval(sums, tokens, kind)
        held += interval.low <= truth <= interval.high
    assert held >= 930 - 16  # at least 93%; two standard errors of 1000 trials are 1.6 points
