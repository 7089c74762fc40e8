"""Bootstrap intervals against theory."""

from __future__ import annotations

import numpy as np
import pytest

from maskery.evaluation.bootstrap import bootstrap


def test_the_interval_of_a_mean_has_the_width_that_theory_gives() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    (interval,) = bootstrap(values[:, None], np.ones(2000))
    assert interval.value == pytest.approx(values.mean())
    error = values.std() / np.sqrt(2000)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert interval.low < interval.value < interval.high


def test_coverage_is_near_95_percent() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        weights = generator.integers(1, 9, 150).astype(float)
        hits = generator.binomial(weights.astype(int), 0.3).astype(float)
        (interval,) = bootstrap(hits[:, None], weights, seed=trial, resamples=400)
        covered += interval.low <= 0.3 <= interval.high
    assert 175 <= covered <= 199  # 190 expected, standard error 3


def test_it_is_a_pure_function_of_its_seed() -> None:
    values = np.random.default_rng(2).normal(size=(50, 3))
    assert bootstrap(values, np.ones(50), seed=7) == bootstrap(values, np.ones(50), seed=7)
    assert bootstrap(values, np.ones(50), seed=7) != bootstrap(values, np.ones(50), seed=8)


def test_one_example_has_an_interval_of_no_width() -> None:
    (interval,) = bootstrap(np.array([[2.0]]), np.array([4.0]))
    assert tuple(interval) == (0.5, 0.5, 0.5)
